"""One object of a dataset."""

from s3torch._aws.listing import ObjectInfo
from s3torch.datasets import S3BucketKeyData

__all__ = ["ObjectInfo", "S3BucketKeyData"]
