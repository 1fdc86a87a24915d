"""The client."""

from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.compat.client import ListObjectStream, S3Client, S3Writer, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.native import MountpointS3Client, join_all_managed_threads
from s3torch.compat.readers import S3Reader, S3ReaderConstructor, S3ReaderConstructorProtocol
from s3torch.compat.streams import GetObjectStream

__all__ = [
    "GetObjectStream",
    "HeadObjectResult",
    "ListObjectStream",
    "MountpointS3Client",
    "ObjectInfo",
    "S3Client",
    "S3ClientConfig",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "S3Writer",
    "UserAgent",
    "join_all_managed_threads",
]
