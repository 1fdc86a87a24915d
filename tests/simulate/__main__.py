"""Simulates for as long as one likes: ``python -m tests.simulate --seeds 10000 --start 1 --minutes 5 --jobs 2``.

Each seed is one program with what happens in the middle of it. Ends with 1 if anything was found; each finding is
printed as a program that fails again, made small, with the invariants that it breaks. The report at the end says how
many programs there were, how many of them had an interrupt or a collection between two bytecodes, and, with
``--pairs``, how often any two things met.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import reduce

from s3torch.testing.simulate import KINDS, NAMES
from tests.simulate.work import Order, Report, work

__all__ = ["main"]

_MOST_FINDINGS = 20


def main(arguments: list[str]) -> int:
    """Simulate as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many; default: as many as the time allows")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="for how long at most; default: one, or until all seeds are done")
    parser.add_argument("--jobs", type=int, default=1, help="processes, which share the seeds")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--findings", type=int, default=_MOST_FINDINGS, help="when a process stops")
    parser.add_argument(
        "--ignore", choices=NAMES, action="append", default=[], help="an invariant that is known to break"
    )
    parser.add_argument("--whole", action="store_true", help="print programs as they are, not made small")
    parser.add_argument("--pairs", action="store_true", help="tell how often any two things met")
    chosen = parser.parse_args(arguments)
    minutes = chosen.minutes or (1.0 if chosen.seeds is None else None)
    stop = None if chosen.seeds is None else chosen.start + chosen.seeds
    rest = (chosen.only, tuple(chosen.ignore), chosen.findings, chosen.whole)
    orders = [Order(chosen.start + job, stop, chosen.jobs, minutes, *rest) for job in range(chosen.jobs)]
    began = time.monotonic()
    if len(orders) == 1:
        report = work(orders[0])
    else:
        with ProcessPoolExecutor(len(orders), multiprocessing.get_context("spawn")) as pool:
            report = reduce(Report.__add__, pool.map(work, orders))
    print(report.told(time.monotonic() - began, pairs=chosen.pairs))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
