"""What each of two processes of accelerate does: ``accelerating.py FOLDER``, for torchrun.

Each writes what it saw to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, Dataset, IterableDataset

from s3torch import S3BatchSampler, S3DataLoader, S3IterableDataset
from s3torch.errors import ArgumentError

_DATA: Dataset[int] = range(41)  # type: ignore[assignment]


def samples(loader: Iterable[Any]) -> list[int]:
    """Return what a loader yields."""
    return [int(sample) for batch in loader for sample in batch]


def error_of(call: Callable[[], object]) -> str:
    """Return the error that a call raises."""
    try:
        return f"none, but {call()}"
    except ArgumentError as error:
        return str(error)


def resumed(accelerator: Accelerator, folder: str, num_workers: int) -> dict[str, list[int]]:
    """Return what was received before a state was saved, and what a loader receives that is made anew."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)

    def prepared() -> S3DataLoader[int]:
        accelerator.free_memory()
        loader = S3DataLoader(_DATA, 4, shuffle=True, num_workers=num_workers)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return accelerator.prepare(model, optimizer, loader)[2]  # type: ignore[no-any-return]

    loader = prepared()
    before: list[int] = []
    for step, batch in enumerate(loader, 1):
        before += batch.tolist()
        if step == 2:
            accelerator.save_state(folder)
            break
    accelerator.wait_for_everyone()
    loader = prepared()
    accelerator.load_state(folder)
    rest = samples(loader)
    return {"before": before, "rest": rest, "next": samples(loader)}


def stream_errors(uri: str) -> list[str]:
    """Return what is said of a stream that divides its objects itself, divided both ways that accelerate has."""
    errors = []
    for dispatch in (True, False):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
        stream: IterableDataset[Any] = S3IterableDataset.from_objects([uri], enable_sharding=True)
        loader = accelerator.prepare(DataLoader(stream, 4))
        if accelerator.process_index == 0 or not dispatch:
            errors.append(error_of(lambda loader=loader: next(iter(loader))))  # type: ignore[misc]
    return errors


def main(folder: str) -> None:
    """Prepare loaders of all kinds."""
    accelerator = Accelerator(cpu=True)

    def sampler(**ranks: int) -> DataLoader[int]:
        return DataLoader(_DATA, batch_sampler=S3BatchSampler(_DATA, 4, **ranks))

    told: dict[str, Any] = {
        "loader": samples(accelerator.prepare(S3DataLoader(_DATA, 4))),
        "whole sampler": samples(accelerator.prepare(sampler(rank=0, world_size=1))),
        "sampler": error_of(lambda: samples(accelerator.prepare(sampler()))),
        "length": error_of(lambda: len(accelerator.prepare(sampler()))),
    }
    for num_workers in (0, 2):
        told[f"resumed {num_workers}"] = resumed(accelerator, f"{folder}/state-{num_workers}", num_workers)
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps(told))
    accelerator.wait_for_everyone()
    told["streams"] = stream_errors("s3://b/k")
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
