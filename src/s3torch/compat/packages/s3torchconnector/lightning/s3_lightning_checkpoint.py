"""Checkpoints of Lightning."""

from s3torch.compat.lightning import S3LightningCheckpoint

__all__ = ["S3LightningCheckpoint"]
