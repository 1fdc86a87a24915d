"""Checkpoints."""

from s3torch.compat.checkpoint import S3Checkpoint

__all__ = ["S3Checkpoint"]
