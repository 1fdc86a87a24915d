"""The CheckpointIO of s3torchconnector: s3torch's, with its words."""

from __future__ import annotations

from typing import Any

from s3torch import lightning
from s3torch.checkpoint.loading import MapLocation
from s3torch.compat.wording import worded

__all__ = ["S3LightningCheckpoint"]


class S3LightningCheckpoint(lightning.S3LightningCheckpoint):
    """Keeps the checkpoints of a Trainer in S3; see ``s3torch.lightning.S3LightningCheckpoint``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: object = None) -> None:
        """Save a checkpoint; ``storage_options`` are ignored."""
        del storage_options
        worded(super().save_checkpoint)(checkpoint, path)

    def load_checkpoint(
        self,
        path: str,
        map_location: MapLocation = None,
        weights_only: bool | None = None,  # noqa: FBT001  # as Lightning has it
    ) -> dict[str, Any]:
        """Load a checkpoint, unless told otherwise to the devices that it was saved from."""
        return worded(super().load_checkpoint)(path, map_location, weights_only)
