"""What the native client hands out."""

from s3torch._aws.listing import ListObjectsResult as ListObjectResult
from s3torch._aws.listing import ObjectInfo, RestoreStatus
from s3torch.client import HeadObjectResult
from s3torch.compat.client import ListObjectStream
from s3torch.compat.client import S3Writer as PutObjectStream
from s3torch.compat.mock import MockMountpointS3Client
from s3torch.compat.native import MountpointS3Client, join_all_managed_threads
from s3torch.compat.streams import GetObjectStream
from s3torch.compat.version import __version__
from s3torch.errors import S3Error as S3Exception

__all__ = [
    "GetObjectStream",
    "HeadObjectResult",
    "ListObjectResult",
    "ListObjectStream",
    "MockMountpointS3Client",
    "MountpointS3Client",
    "ObjectInfo",
    "PutObjectStream",
    "RestoreStatus",
    "S3Exception",
    "__version__",
    "join_all_managed_threads",
]
