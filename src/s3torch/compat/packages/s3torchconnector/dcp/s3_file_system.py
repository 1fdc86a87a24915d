"""Distributed checkpoints."""

from s3torch.compat.dcp import S3FileSystem, S3StorageReader, S3StorageWriter, StorageMetadata

__all__ = ["S3FileSystem", "S3StorageReader", "S3StorageWriter", "StorageMetadata"]
