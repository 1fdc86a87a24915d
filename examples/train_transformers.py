"""Trains with the Trainer of transformers, is killed at any moment, and goes on where it was.

Run it with objects and a folder of yours, and run the same line again after it was killed::

    torchrun --nproc-per-node 2 examples/train_transformers.py s3://my-bucket/train/ /tmp/run-1

The Trainer counts steps, and skips as many batches of the epoch when it resumes: of their indices, nothing of them is
read. So the next job needs the same number of processes and the same batch size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from s3torch import S3DataLoader, S3MapDataset, S3Reader

_FEATURES = 64


def decode(reader: S3Reader) -> dict[str, torch.Tensor]:
    """Return the sample of an object."""
    content = bytearray(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"))
    return {"features": torch.frombuffer(content, dtype=torch.uint8).float()}


class Autoencoder(nn.Module):
    """A model as the Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_FEATURES, _FEATURES)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss of a batch."""
        return {"loss": nn.functional.mse_loss(self.layer(features), features)}


class S3Trainer(Trainer):
    """A Trainer that trains from an S3DataLoader."""

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader. It divides the samples itself, so it is not prepared by accelerate."""
        return S3DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            shuffle=True,
            seed=self.args.seed,
            even="wrap",  # each step needs all processes
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )


def main() -> None:
    """Train, from the newest checkpoint on if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    parser.add_argument("run", help="folder of the checkpoints")
    arguments = parser.parse_args()
    Path(arguments.run).mkdir(parents=True, exist_ok=True)  # where get_last_checkpoint looks
    options = TrainingArguments(
        output_dir=arguments.run,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        dataloader_num_workers=1,
        save_steps=3,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    dataset = S3MapDataset.from_prefix(arguments.data, transform=decode)
    trainer = S3Trainer(Autoencoder(), options, data_collator=default_data_collator, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.run))


if __name__ == "__main__":
    main()
