"""Trains with Lightning, is killed at any moment, and goes on where it was, in the middle of an epoch.

Run it with objects and a place for checkpoints of yours, and run the same line again after it was killed::

    torchrun --nproc-per-node 2 examples/train_lightning.py s3://my-bucket/train/ s3://my-bucket/run-1

A Trainer asks the loader for its state, and keeps it in its checkpoints. It counts batches as well: to go on in the
middle of an epoch, the next job needs the same number of processes and the same batch size.
"""

from __future__ import annotations

import argparse
import os

import lightning
import torch
from torch import nn

from s3torch import S3DataLoader, S3MapDataset, S3Reader
from s3torch.checkpoint import latest
from s3torch.lightning import S3LightningCheckpoint

_FEATURES = 64


def decode(reader: S3Reader) -> torch.Tensor:
    """Return the sample of an object."""
    content = bytearray(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"))
    return torch.frombuffer(content, dtype=torch.uint8).float()


class Autoencoder(lightning.LightningModule):
    """A model as Lightning trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_FEATURES, _FEATURES)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        return nn.functional.mse_loss(self.layer(batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what trains the model."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Saving(lightning.Callback):
    """Saves every few steps, as ModelCheckpoint does, which needs s3fs to look into S3."""

    def __init__(self, run: str, steps: int) -> None:
        self._run = run.rstrip("/")
        self._steps = steps

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Save after some of the steps."""
        if trainer.global_step % self._steps == 0:
            trainer.save_checkpoint(f"{self._run}/step-{trainer.global_step:06}.ckpt")


def main() -> None:
    """Train, from the newest checkpoint on if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    parser.add_argument("run", help="prefix of the checkpoints")
    arguments = parser.parse_args()
    dataset = S3MapDataset.from_prefix(arguments.data, transform=decode)
    # Each step needs all processes: even= gives them as many batches.
    loader = S3DataLoader(dataset, batch_size=4, shuffle=True, seed=1, even="wrap", num_workers=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp",
        max_epochs=2,
        use_distributed_sampler=False,  # the loader divides the samples itself
        logger=False,
        enable_checkpointing=False,
        plugins=[S3LightningCheckpoint()],
        callbacks=[Saving(arguments.run, steps=3)],
    )
    trainer.fit(Autoencoder(), loader, ckpt_path=latest(arguments.run))


if __name__ == "__main__":
    main()
