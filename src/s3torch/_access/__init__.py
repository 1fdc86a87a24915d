"""What sends: configuration, session, buckets, and the engines of this process and thread."""

from s3torch._access.access import Access

__all__ = ["Access"]
