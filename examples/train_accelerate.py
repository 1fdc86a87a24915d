"""Trains with Hugging Face accelerate, is killed at any moment, and goes on where it was.

Run it with objects and a folder of yours, and run the same line again after it was killed::

    accelerate launch --num_processes 2 examples/train_accelerate.py s3://my-bucket/train/ /tmp/run-1

accelerate leaves an S3DataLoader as it is: that divides the samples itself, and resumes with any number of processes.
What ``prepare`` does to other loaders is left to you: batches are moved to the device here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from s3torch import S3DataLoader, S3MapDataset, S3Reader

_FEATURES = 64


def decode(reader: S3Reader) -> torch.Tensor:
    """Return the sample of an object."""
    content = bytearray(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"))
    return torch.frombuffer(content, dtype=torch.uint8).float()


def main() -> None:
    """Train, from the newest checkpoint on if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    parser.add_argument("run", type=Path, help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=3, help="steps")
    arguments = parser.parse_args()

    accelerator = Accelerator()
    dataset = S3MapDataset.from_prefix(arguments.data, transform=decode)
    # Each step needs all processes: even= gives them as many batches.
    loader = S3DataLoader(dataset, batch_size=4, shuffle=True, seed=1, even="wrap", num_workers=1)
    model: nn.Module = nn.Linear(_FEATURES, _FEATURES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    step = 0
    if done := sorted(arguments.run.glob("step-??????")):
        accelerator.load_state(str(done[-1]))  # of the loader as well
        step = int(done[-1].name.removeprefix("step-"))

    while loader.epoch < arguments.epochs:
        for batch in loader:
            features = batch.to(accelerator.device)
            loss = nn.functional.mse_loss(model(features), features)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % arguments.save_every == 0:
                path = arguments.run / f"step-{step:06}"
                accelerator.save_state(f"{path}.part")
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    Path(f"{path}.part").rename(path)  # so that only whole ones are found
    accelerator.end_training()


if __name__ == "__main__":
    main()
