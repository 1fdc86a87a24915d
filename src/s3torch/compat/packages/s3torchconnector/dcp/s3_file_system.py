"""Distributed checkpoints."""

from s3torch.checkpoint.dcp import DefaultPrefixStrategy, S3PrefixStrategyBase
from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.dcp import S3FileSystem, S3StorageReader, S3StorageWriter, StorageMetadata
from s3torch.compat.readers import DCPS3ReaderConstructorProtocol, S3ReaderConstructor, S3ReaderConstructorProtocol
from s3torch.errors import S3Error as S3Exception
from s3torch.uri import parse_s3_uri

__all__ = [
    "DCPS3ReaderConstructorProtocol",
    "DefaultPrefixStrategy",
    "S3Client",
    "S3ClientConfig",
    "S3Exception",
    "S3FileSystem",
    "S3PrefixStrategyBase",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "S3StorageReader",
    "S3StorageWriter",
    "StorageMetadata",
    "UserAgent",
    "parse_s3_uri",
]
