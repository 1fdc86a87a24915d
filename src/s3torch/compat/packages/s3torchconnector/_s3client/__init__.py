"""The client."""

from s3torch.compat.client import S3Client
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.mock import MockS3Client

__all__ = ["MockS3Client", "S3Client", "S3ClientConfig"]
