"""The client."""

from s3torch.compat.client import S3Client

__all__ = ["S3Client"]
