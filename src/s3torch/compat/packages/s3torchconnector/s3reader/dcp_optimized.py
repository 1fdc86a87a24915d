"""The reader of distributed checkpoints."""

from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.compat.readers import DEFAULT_MAX_GAP_SIZE, DCPOptimizedS3Reader, ItemRange, RangeGroup, S3Reader
from s3torch.compat.streams import GetObjectStream

__all__ = [
    "DEFAULT_MAX_GAP_SIZE",
    "DCPOptimizedS3Reader",
    "GetObjectStream",
    "HeadObjectResult",
    "ItemRange",
    "ObjectInfo",
    "RangeGroup",
    "S3Reader",
]
