"""``python -m benchmarks.fleet``: 100 million objects on 1,024 ranks of 16 workers, computed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.fleet.job import Job
from benchmarks.fleet.report import Size, find

__all__ = ["main"]

_SMALL = Size(
    tables=(1000, 2000),
    turns=200,
    samples=100_000,
    rate=5,
    seconds=4,
    clients=4,
    outage=(9, 4, 20),
    limited=((4, 0.03),),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure and simulate, print tables, and draw charts if a folder is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description="A job of a thousand ranks.")
    parser.add_argument("--out", type=Path, help="write the charts into this folder")
    parser.add_argument("--small", action="store_true", help="a job of 64 ranks, within seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.small:
        findings = find(Job(objects=1_000_003, world_size=64, workers=2), _SMALL)
    else:
        findings = find(Job(), Size())
    if options.out is not None:
        from benchmarks.fleet.charts import draw

        for path in draw(findings, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
