"""The iterable dataset."""

from s3torch.compat.datasets import S3IterableDataset

__all__ = ["S3IterableDataset"]
