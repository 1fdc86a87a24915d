"""The readers."""

from s3torch.compat.config import S3ReaderConfig
from s3torch.compat.readers import (
    DCPOptimizedConstructor,
    DCPOptimizedS3Reader,
    DCPS3ReaderConstructorProtocol,
    GetStreamCallable,
    ItemRange,
    RangedS3Reader,
    RangeGroup,
    S3Reader,
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    SequentialS3Reader,
)
from s3torch.config import ReaderType

__all__ = [
    "DCPOptimizedConstructor",
    "DCPOptimizedS3Reader",
    "DCPS3ReaderConstructorProtocol",
    "GetStreamCallable",
    "ItemRange",
    "RangeGroup",
    "RangedS3Reader",
    "ReaderType",
    "S3Reader",
    "S3ReaderConfig",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "SequentialS3Reader",
]
