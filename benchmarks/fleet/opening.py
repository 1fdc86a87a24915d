"""What a rank needs before its first batch: the table, the order, the state. Measured in CPU time."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks.fleet.job import Job
from s3torch.datasets import ObjectTable
from s3torch.datasets.cursor import Course, Cursor, cursor_of, share_of, state_of
from s3torch.datasets.objects import KeyColumns
from s3torch.datasets.order import Shuffled

__all__ = ["Opened", "Resumed", "estimate", "measure_opening", "measure_order", "measure_resuming"]

_PAGE = 100_000
_AT_ONCE = 4096


class Opened(NamedTuple):
    """What a table of so many objects costs a process that opens it.

    Attributes:
        objects: Of the table.
        file_mib: Size of its file.
        open_ms: To load it, and to read its digest.
        first_us: For each of the first look-ups at random places.
        own_mib: By which the memory of the process has grown that is its own.
    """

    objects: int
    file_mib: float
    open_ms: float
    first_us: float
    own_mib: float


class Resumed(NamedTuple):
    """What it costs to go on from a state.

    Attributes:
        state_bytes: As JSON.
        ms: From the JSON to the indices of the first batch.
        peak_kib: Of Python's memory meanwhile.
    """

    state_bytes: int
    ms: float
    peak_kib: float


def measure_opening(objects: int) -> Opened:
    """Save a table and open it in another process."""
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        path = Path(directory, "fleet.table")
        _table_of(objects).save(path)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_open, args=(theirs, str(path)))
        process.start()
        theirs.close()
        open_ms, first_us, own_mib = ours.recv()
        process.join()
        return Opened(objects, path.stat().st_size / 2**20, open_ms, first_us, own_mib)


def estimate(few: Opened, many: Opened, objects: int) -> Opened:
    """Return what a larger table costs, on the line through two that were measured; never less than the larger one.

    A first look-up verifies a block of each column, whatever the size of the table, so it costs what it did.
    """

    def on_line(small: float, large: float) -> float:
        return max(large, small + (large - small) * (objects - few.objects) / (many.objects - few.objects))

    return Opened(
        objects,
        on_line(few.file_mib, many.file_mib),
        on_line(few.open_ms, many.open_ms),
        many.first_us,
        on_line(few.own_mib, many.own_mib),
    )


def measure_order(objects: int, turns: int) -> tuple[float, float]:
    """Return the CPU time of the k-th index in microseconds: of one alone, and of each of 4,096."""
    order = Shuffled(objects, 3, 4)
    places = [turn * 7919 * 1009 % objects for turn in range(turns)]
    alone = _cpu_seconds(lambda: [order[place] for place in places]) / turns
    size = min(_AT_ONCE, objects)
    batches = max(1, turns // 20)
    firsts = [turn * 7919 * 1009 % (objects - size + 1) for turn in range(batches)]
    many = _cpu_seconds(lambda: [order.at(range(first, first + size)) for first in firsts]) / batches / size
    return alone * 1e6, many * 1e6


def measure_resuming(job: Job, turns: int) -> Resumed:
    """Return what it costs the last rank to go on in the middle of an epoch."""
    course = Course(job.objects, "0" * 32, None, None, None, shuffle=True, seed=1)
    state = json.dumps(state_of(course, Cursor(3, job.objects // 2)))
    ms = _cpu_seconds(lambda: [_resume(job, course, state) for _ in range(turns)]) / turns * 1e3
    tracemalloc.start()
    _resume(job, course, state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Resumed(len(state), ms, peak / 1024)


def _resume(job: Job, course: Course, state: str) -> list[int]:
    """Do what a loader does that resumes, up to the indices of its first batch."""
    begin = cursor_of(course, json.loads(state))
    rank = job.world_size - 1
    share = share_of(begin, job.objects, rank=rank, world_size=job.world_size, batch_size=job.batch_size, even="drop")
    return Shuffled(job.objects, course.seed, begin.epoch).at(share.places[:_AT_ONCE])[: job.batch_size]


def _table_of(count: int) -> ObjectTable:
    parts = []
    for first in range(0, count, _PAGE):
        numbers = range(first, min(first + _PAGE, count))
        keys = [b"train/%03d/image-%015d.jpg" % (number % 1000, number) for number in numbers]
        parts.append(KeyColumns(b"".join(keys), array("I", map(len, keys)), array("q", numbers)))
    return ObjectTable.of_columns("bucket", parts)


def _open(answer: Connection, path: str) -> None:
    before = _own_mib()
    tables: list[ObjectTable] = []
    open_ms = _cpu_seconds(lambda: tables.append(_opened(path))) * 1e3
    table = tables[0]
    places = [turn * 7919 * 1009 % len(table) for turn in range(1000)]
    first_us = _cpu_seconds(lambda: [table[place] for place in places]) / len(places) * 1e6
    answer.send((open_ms, first_us, _own_mib() - before))


def _opened(path: str) -> ObjectTable:
    table = ObjectTable.load(path)
    if not table.digest:
        raise AssertionError("a table has a digest")
    return table


def _own_mib() -> float:
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
