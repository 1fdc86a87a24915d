"""The writer."""

from s3torch.compat.client import S3Writer
from s3torch.compat.client import S3Writer as PutObjectStream

__all__ = ["PutObjectStream", "S3Writer"]
