"""The client's configuration."""

from s3torch.compat.config import S3ClientConfig

__all__ = ["S3ClientConfig"]
