"""A client for tests."""

from s3torch.compat.mock import MockS3Client

__all__ = ["MockS3Client"]
