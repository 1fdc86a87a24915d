"""The CheckpointIO of s3torchconnector: s3torch's, with its words."""

from __future__ import annotations

from typing import Any

from s3torch import lightning
from s3torch.compat.wording import worded

__all__ = ["S3LightningCheckpoint"]


class S3LightningCheckpoint(lightning.S3LightningCheckpoint):
    """Keeps the checkpoints of a Trainer in S3; see ``s3torch.lightning.S3LightningCheckpoint``."""

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  # those of s3torch
        """Load a checkpoint."""
        return worded(super().load_checkpoint)(*args, **kwargs)
