"""PyTorch Distributed Checkpoint (``torch.distributed.checkpoint``) in S3."""

from s3torch.checkpoint.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3FileSystem,
    S3HuggingFaceStorageReader,
    S3HuggingFaceStorageWriter,
    S3PrefixStrategyBase,
    S3StorageReader,
    S3StorageWriter,
)

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
