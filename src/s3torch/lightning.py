"""Checkpoints of Lightning in S3: ``S3LightningCheckpoint``, for the Trainer of ``lightning`` or ``pytorch_lightning``."""

from s3torch.checkpoint.lightning import S3LightningCheckpoint

__all__ = ["S3LightningCheckpoint"]
