"""The level of trace messages, which s3torch has none of."""

TRACE = 5

__all__ = ["TRACE"]
