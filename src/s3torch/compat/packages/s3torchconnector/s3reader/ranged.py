"""The range-based reader."""

from s3torch.compat.readers import RangedS3Reader

__all__ = ["RangedS3Reader"]
