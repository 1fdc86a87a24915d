"""Runs an example as it is, notes what its training loop receives, and kills one of its ranks in the middle.

``noting.py FOLDER KILLED_RANK KILLED_STEP EXAMPLE ...``: each rank writes ``FOLDER/RANK.jsonl``, with a line for the
state that it goes on from, and one for each batch. The samples are named by their first two bytes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from s3torch import S3DataLoader


def main(folder: str, killed_rank: str, killed_step: str, example: str, *arguments: str) -> None:
    """Run the example as ``__main__``."""
    rank = os.environ["RANK"]
    resume: Callable[..., None] = S3DataLoader.load_state_dict
    receive: Callable[..., Iterator[Any]] = S3DataLoader.__iter__
    update: Callable[..., Any] = torch.optim.AdamW.step
    steps = 0

    def note(what: str, value: object) -> None:
        with Path(folder, f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps({what: value}) + "\n")

    def load_state_dict(self: S3DataLoader[Any], state: Mapping[str, Any]) -> None:
        note("state", dict(state))
        resume(self, state)

    def iterate(self: S3DataLoader[Any]) -> Iterator[Any]:
        epoch = self.epoch
        for batch in receive(self):
            note("batch", [epoch, [256 * int(sample[0]) + int(sample[1]) for sample in batch]])
            yield batch

    def step(self: torch.optim.AdamW, closure: Callable[[], float] | None = None) -> object:
        nonlocal steps
        if rank == killed_rank and steps == int(killed_step):
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return update(self, closure)

    S3DataLoader.load_state_dict = load_state_dict  # type: ignore[method-assign]
    S3DataLoader.__iter__ = iterate  # type: ignore[method-assign]
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    sys.argv = [example, *arguments]
    runpy.run_path(example, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
