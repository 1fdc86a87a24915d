"""The sequential reader."""

from s3torch.compat.readers import SequentialS3Reader

__all__ = ["SequentialS3Reader"]
