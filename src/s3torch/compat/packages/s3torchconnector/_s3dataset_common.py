"""What datasets have in common."""

from s3torch.compat.client import S3Client
from s3torch.compat.datasets import S3BucketIterable, get_objects_from_prefix, get_objects_from_uris
from s3torch.compat.readers import S3Reader
from s3torch.datasets import S3BucketKeyData
from s3torch.datasets.base import identity
from s3torch.uri import parse_s3_uri

__all__ = [
    "S3BucketIterable",
    "S3BucketKeyData",
    "S3Client",
    "S3Reader",
    "get_objects_from_prefix",
    "get_objects_from_uris",
    "identity",
    "parse_s3_uri",
]
