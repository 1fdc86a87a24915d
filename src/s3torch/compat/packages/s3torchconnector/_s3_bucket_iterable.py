"""The objects under a prefix."""

from s3torch.compat.client import S3Client
from s3torch.compat.datasets import S3BucketIterable
from s3torch.datasets import S3BucketKeyData

__all__ = ["S3BucketIterable", "S3BucketKeyData", "S3Client"]
