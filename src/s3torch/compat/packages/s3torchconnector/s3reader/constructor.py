"""The constructors of readers."""

from s3torch.compat.readers import DCPOptimizedConstructor, S3ReaderConstructor

__all__ = ["DCPOptimizedConstructor", "S3ReaderConstructor"]
