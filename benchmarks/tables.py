"""``python -m benchmarks.tables``: what a table of many objects costs, beside one of ten.

Keys are of 34 bytes, sizes known. In CPU time: to save, to open, to verify the whole, and to look objects up at
random, in memory and in the mapped file. Its blocks are verified when they are touched first: so a look-up is told for
the first ones, and for later ones.

A worker is a process that is spawned and gets the table by pickle, as DataLoader does it; medians of several turns, in
which all kinds take part. Told are the bytes of the pickle, how long the worker takes to have the first object, and by
what its memory grows on that: its own, and pages of the file that it shares with all other processes (of a file that
was just written Linux maps 2 MiB for each page that is touched). Last, how long the process takes from its start to
there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from s3torch.datasets import ObjectTable
from s3torch.datasets.objects import KeyColumns

__all__ = ["main"]

_FIELDS = ("objects", "MiB", "save ms", "open ms", "verify ms", "memory us", "first us", "mapped us")
_OF_WORKERS = ("pickle kB", "ready ms", "own MiB", "shared MiB", "start ms")
_FEW = 10
_PAGE = 1_000_000
_LOOKUPS = 100_000


class _Worker(NamedTuple):
    """One spawned process, in kB, ms and MiB."""

    pickled: float
    ready_ms: float
    own: float
    shared: float
    started_ms: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Tables of many objects.")
    parser.add_argument("--objects", type=int, default=10_000_000, help="of the large table (default: 10,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="workers of each kind (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        paths = {count: Path(directory, f"{count}.table") for count in (_FEW, options.objects)}
        print("".join(f"{name:>12}" for name in _FIELDS))
        for count, path in paths.items():
            print(f"{count:12}" + "".join(f"{value:12.2f}" for value in _costs(count, path)))
        tables = {f"{count}, mapped": ObjectTable.load(path) for count, path in paths.items()}
        tables[f"{options.objects}, in memory"] = _table_of(options.objects)
        turns: dict[str, list[_Worker]] = {name: [] for name in tables}
        for _ in range(options.rounds):
            for name, table in tables.items():
                turns[name].append(_spawned(table))
        print(f"\n{'a spawned worker':24}" + "".join(f"{name:>12}" for name in _OF_WORKERS))
        for name, workers in turns.items():
            medians = [statistics.median(values) for values in zip(*workers, strict=True)]
            print(f"{name:24}" + "".join(f"{value:12.2f}" for value in medians))
    return 0


def _costs(count: int, path: Path) -> list[float]:
    table = _table_of(count)
    save_ms = _cpu_ms(lambda: table.save(path))  # with the digest
    chance = random.Random(1)
    places = [chance.randrange(count) for _ in range(_LOOKUPS)]
    opened: list[ObjectTable] = []
    open_ms = _cpu_ms(lambda: opened.append(ObjectTable.load(path)))
    verify_ms = _cpu_ms(ObjectTable.load(path).verify)
    return [
        path.stat().st_size / 2**20,
        save_ms,
        open_ms,
        verify_ms,
        _lookup_us(table, places),
        _lookup_us(opened[0], places),
        _lookup_us(opened[0], places),
    ]


def _table_of(count: int) -> ObjectTable:
    parts = []
    for first in range(0, count, _PAGE):
        numbers = range(first, min(first + _PAGE, count))
        keys = [b"train/%02d/image-%015d.jpg" % (number % 50, number) for number in numbers]
        parts.append(KeyColumns(b"".join(keys), array("I", map(len, keys)), array("q", numbers)))
    return ObjectTable.of_columns("bucket", parts)


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e3


def _lookup_us(table: ObjectTable, places: list[int]) -> float:
    began = time.process_time()
    for place in places:
        table[place]
    return (time.process_time() - began) / len(places) * 1e6


def _spawned(table: ObjectTable) -> _Worker:
    pickled = pickle.dumps(table)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.perf_counter()
    worker = context.Process(target=_work, args=(theirs, pickled))
    worker.start()
    ready_ms, own, shared = ours.recv()
    started_ms = (time.perf_counter() - began) * 1e3
    worker.join()
    return _Worker(len(pickled) / 1e3, ready_ms, own, shared, started_ms)


def _work(answer: Connection, pickled: bytes) -> None:
    """Get a table, as a DataLoader's worker does, and look one object up. The imports are those of this module."""
    own, shared = _resident_mib()
    began = time.perf_counter()
    table = pickle.loads(pickled)  # noqa: S301  # our own
    table[len(table) // 2]
    ready_ms = (time.perf_counter() - began) * 1e3
    own_then, shared_then = _resident_mib()
    answer.send((ready_ms, own_then - own, shared_then - shared))


def _resident_mib() -> tuple[float, float]:
    """Return the resident memory of this process: its own, and what it has of files."""
    status = Path("/proc/self/status").read_text()
    own, shared = (int(status.partition(f"{name}:")[2].split()[0]) for name in ("RssAnon", "RssFile"))
    return own / 1024, shared / 1024


if __name__ == "__main__":
    sys.exit(main())
