"""Runs the example of Ray twice: ``on_ray.py FOLDER DATA RUN``. The first job is killed, the second one has 3 workers.

Each worker appends a line to ``FOLDER/JOB/RANK.jsonl`` for each batch whose loss it computes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch import Tensor, nn

EXAMPLE = Path(__file__).parents[2] / "examples/train_ray.py"


def noting(train: Callable[[dict[str, Any]], None], folder: str, killed_step: int) -> Callable[[dict[str, Any]], None]:
    """Return the function of a worker that notes what it trains with; the second one is killed at a step."""

    def noted(config: dict[str, Any]) -> None:
        rank = ray.train.get_context().get_world_rank()
        compute = nn.functional.mse_loss
        steps = 0

        def loss(made: Tensor, wanted: Tensor) -> Tensor:
            nonlocal steps
            if rank == 1 and steps == killed_step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            with Path(folder, f"{rank}.jsonl").open("a") as file:
                file.write(json.dumps([256 * int(sample[0]) + int(sample[1]) for sample in wanted]) + "\n")
            return compute(made, wanted)

        nn.functional.mse_loss = loss
        train(config)

    return noted


def main(folder: str, data: str, run: str, killed_step: str) -> None:
    """Run both jobs in one Ray."""
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 1024 * 1024)
    for job, step, options in (("killed", int(killed_step), []), ("later", -1, ["--workers=3", "--save-every=1000"])):
        Path(folder, job).mkdir()
        example = runpy.run_path(str(EXAMPLE), run_name="example")
        names = example["main"].__globals__
        names["train"] = noting(names["train"], f"{folder}/{job}", step)
        sys.argv = ["train_ray.py", data, run, *options]
        try:
            example["main"]()
        except Exception as error:
            if job == "later":
                raise
            Path(folder, "error").write_text(type(error).__name__)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
