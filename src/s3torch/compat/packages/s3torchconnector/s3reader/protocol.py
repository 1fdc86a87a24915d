"""What a constructor is."""

from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.compat.readers import (
    DCPS3ReaderConstructorProtocol,
    GetStreamCallable,
    ItemRange,
    S3Reader,
    S3ReaderConstructorProtocol,
)
from s3torch.compat.streams import GetObjectStream

__all__ = [
    "DCPS3ReaderConstructorProtocol",
    "GetObjectStream",
    "GetStreamCallable",
    "HeadObjectResult",
    "ItemRange",
    "ObjectInfo",
    "S3Reader",
    "S3ReaderConstructorProtocol",
]
