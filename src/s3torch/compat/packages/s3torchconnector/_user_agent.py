"""The User-Agent field."""

from s3torch.compat.client import UserAgent

__all__ = ["UserAgent"]
