"""PyTorch Distributed Checkpoint in S3; ``s3torch.dcp`` is its public name."""

from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.dcp.hugging_face import S3HuggingFaceStorageWriter
from s3torch.checkpoint.dcp.hugging_face_reader import S3HuggingFaceStorageReader
from s3torch.checkpoint.dcp.prefixes import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from s3torch.checkpoint.dcp.reader import S3StorageReader
from s3torch.checkpoint.dcp.writer import S3StorageWriter

__all__ = [
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3FileSystem",
    "S3HuggingFaceStorageReader",
    "S3HuggingFaceStorageWriter",
    "S3PrefixStrategyBase",
    "S3StorageReader",
    "S3StorageWriter",
]
