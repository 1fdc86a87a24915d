"""The iterable dataset."""

import torch  # tests of programs patch what they find by this name

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.datasets import S3IterableDataset, get_objects_from_prefix, get_objects_from_uris
from s3torch.compat.readers import S3Reader, S3ReaderConstructor, S3ReaderConstructorProtocol
from s3torch.datasets import S3BucketKeyData
from s3torch.datasets.base import identity

__all__ = [
    "S3BucketKeyData",
    "S3Client",
    "S3ClientConfig",
    "S3IterableDataset",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "UserAgent",
    "get_objects_from_prefix",
    "get_objects_from_uris",
    "identity",
    "torch",
]
