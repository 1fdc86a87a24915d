"""One object of a dataset."""

from s3torch.datasets import S3BucketKeyData

__all__ = ["S3BucketKeyData"]
