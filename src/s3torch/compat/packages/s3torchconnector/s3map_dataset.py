"""The map dataset."""

from s3torch.compat.datasets import S3MapDataset

__all__ = ["S3MapDataset"]
