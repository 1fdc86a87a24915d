"""Datasets over the objects of S3: by index, and as a stream."""

from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.map import S3MapDataset
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData

__all__ = ["ObjectTable", "S3BucketKeyData", "S3IterableDataset", "S3MapDataset"]
