"""Checkpoints of Lightning in S3: ``S3LightningCheckpoint``, for ``lightning`` and for ``pytorch_lightning``."""

from s3torch.checkpoint.lightning import S3LightningCheckpoint

__all__ = ["S3LightningCheckpoint"]
