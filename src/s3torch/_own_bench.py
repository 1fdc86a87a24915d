"""``s3torch bench --uri``: what s3torch does with the objects of one's own bucket. It only reads.

A task gets ready and returns what one round cost. Each round begins with a new client. The tasks take turns, round
after round, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import s3torch
from s3torch._aws.listing import ObjectInfo
from s3torch.client import S3Client
from s3torch.errors import ArgumentError
from s3torch.readers.base import S3Reader
from s3torch.uri import parse_s3_uri

__all__ = ["CASES", "Effort", "Place", "Sample", "choose", "find_objects", "run"]

_BATCH = 64  # samples
_RANGE = 64 * 1024  # bytes
_RANGES = 1000  # of one round
_SEED = 20


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is read.

    Attributes:
        bucket: Name of the bucket.
        region: Of the bucket.
        endpoint: URL of the server; None is found as by the AWS tools.
        samples: What the loaders read.
        large: What is read whole.
        wide: What the ranges are read of.
    """

    bucket: str
    region: str | None
    endpoint: str | None
    samples: Sequence[ObjectInfo]
    large: ObjectInfo
    wide: ObjectInfo

    def client(self) -> S3Client:
        """Return a new client."""
        return S3Client(self.region, endpoint=self.endpoint)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much one round does.

    Attributes:
        max_bytes: To read, and as much again to warm up.
        max_items: Samples or ranges.
        seconds: After which a loader ends.
    """

    max_bytes: int
    max_items: int = 20_000
    seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one round cost.

    Attributes:
        wall_s: Wall-clock seconds.
        cpu_s: CPU seconds of all threads, user and system.
        items: Samples, objects or ranges.
        bytes: That the caller got.
        requests: That were sent.
        bytes_received: Of their answers, heads included.
        first_batch_s: Of a loader: seconds until it gave its first batch, from before its dataset was made.
    """

    wall_s: float
    cpu_s: float
    items: int
    bytes: int
    requests: int
    bytes_received: int
    first_batch_s: float | None = None


Task = Callable[[Place, Effort], Sample]


def run(
    uri: str,
    cases: Sequence[str],
    *,
    endpoint: str | None,
    region: str | None,
    rounds: int,
    max_objects: int,
    effort: Effort,
    out: Path | None,
) -> int:
    """Measure, print a table for each case, and return the exit status.

    Args:
        uri: ``s3://bucket/prefix``.
        cases: Names of ``CASES``.
        endpoint: URL of the server; None finds it as the AWS tools do.
        region: Of the bucket; None finds it.
        rounds: Of each case.
        max_objects: To list.
        effort: Of one round.
        out: Folder for ``own.json`` and ``own.md``; None writes nothing.

    Raises:
        ArgumentError: There is nothing under the prefix.
        S3Error: It could not be listed or read.
    """
    place = _find_place(uri, endpoint, region, max_objects, effort.max_bytes)
    count = rounds * sum(len(CASES[case].tasks) for case in cases)
    most = 2 * effort.max_bytes
    _say(
        f"{len(place.samples):,} objects; {count} measurements of up to about {most:,} bytes, "
        f"{count * most / 1e9:,.1f} GB in all"
    )
    machine = f"s3torch {s3torch.__version__}, Python {platform.python_version()}, {platform.platform()}"
    print(machine)
    document: dict[str, Any] = {"schema": 1, "machine": machine, "cases": {}}
    tables = [machine]
    for case in cases:
        samples: dict[str, list[Sample]] = {name: [] for name in CASES[case].tasks}
        for number in range(1, rounds + 1):
            for name, task in CASES[case].tasks.items():
                _say(f"{case}, round {number} of {rounds}: {name}")
                samples[name].append(task(place, effort))
        tables.append(_table(CASES[case], samples))
        print(f"\n{tables[-1]}", flush=True)
        document["cases"][case] = {name: [asdict(each) for each in found] for name, found in samples.items()}
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "own.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            (out / "own.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return 0


def find_objects(client: S3Client, uri: str, max_objects: int) -> list[ObjectInfo]:
    """List the objects that have content, the first of them at most.

    Args:
        client: That lists.
        uri: ``s3://bucket/prefix``.
        max_objects: To list.

    Raises:
        ArgumentError: There are none.
        S3Error: They could not be listed.
    """
    bucket, prefix = parse_s3_uri(uri)
    listed: list[ObjectInfo] = []
    for page in client.list_objects(bucket, prefix):
        listed += [info for info in page.object_info if info.size]
        if len(listed) >= max_objects:
            break
    if not listed:
        raise ArgumentError(f"There are no objects with content under {uri}.")
    return listed[:max_objects]


def choose(listed: Sequence[ObjectInfo], max_bytes: int) -> tuple[Sequence[ObjectInfo], ObjectInfo]:
    """Return the samples, and the largest object that is read whole.

    Args:
        listed: At least one object.
        max_bytes: That an object may have to be read whole; if all have more, the smallest is chosen.
    """
    fitting = [each for each in listed if each.size <= max_bytes]
    samples = fitting or [min(listed, key=_size)]
    return samples, max(samples, key=_size)


def _find_place(uri: str, endpoint: str | None, region: str | None, max_objects: int, max_bytes: int) -> Place:
    client = S3Client(region, endpoint=endpoint)
    listed = find_objects(client, uri, max_objects)
    client.close()
    samples, large = choose(listed, max_bytes)
    return Place(
        bucket=parse_s3_uri(uri)[0],
        region=client.region,
        endpoint=endpoint,
        samples=samples,
        large=large,
        wide=max(listed, key=_size),
    )


def _size(info: ObjectInfo) -> int:
    return info.size


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- What is measured -------------------------------------------------------------------------------------------------


class _Meter:
    """Counts from when it is made.

    Args:
        client: Whose requests are counted.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._before = client.stats
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def sample(self, items: int, received: int, first_batch_s: float | None = None) -> Sample:
        """Return what it cost to get these items and bytes."""
        wall_s, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        after = self._client.stats
        return Sample(
            wall_s=wall_s,
            cpu_s=cpu_s,
            items=items,
            bytes=received,
            requests=after.requests - self._before.requests,
            bytes_received=after.bytes_received - self._before.bytes_received,
            first_batch_s=first_batch_s,
        )


def _read(reader: S3Reader) -> bytes:
    return reader.read()


def _load_map(place: Place, effort: Effort) -> Sample:
    return _load(place, effort, "S3MapDataset", looks_ahead=False)


def _load_map_ahead(place: Place, effort: Effort) -> Sample:
    return _load(place, effort, "S3MapDataset", looks_ahead=True)


def _load_iterable(place: Place, effort: Effort) -> Sample:
    return _load(place, effort, "S3IterableDataset", looks_ahead=False)


def _load(place: Place, effort: Effort, kind: str, *, looks_ahead: bool) -> Sample:
    """Load batches, epoch after epoch, until it is enough; the first batch comes before, and is timed apart."""
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    from s3torch.datasets import LookAheadBatchSampler, ObjectTable
    from s3torch.datasets.objects import S3BucketKeyData

    mean = sum(map(_size, place.samples)) / len(place.samples)
    size = max(1, min(_BATCH, effort.max_items, int(effort.max_bytes / 4 / mean)))
    table = ObjectTable(S3BucketKeyData(place.bucket, info.key, info) for info in place.samples)
    start = time.perf_counter()
    dataset: Any = getattr(s3torch, kind).from_table(
        table, region=place.region, endpoint=place.endpoint, transform=_read
    )
    options: dict[str, Any] = {"batch_size": size}
    if looks_ahead:
        in_order = BatchSampler(SequentialSampler(dataset), size, drop_last=False)
        options = {"batch_sampler": LookAheadBatchSampler(in_order)}
    loader: DataLoader[Any] = DataLoader(dataset, collate_fn=list, **options)
    try:
        next(iter(loader))
        first_batch_s = time.perf_counter() - start
        meter = _Meter(dataset.client)
        samples = received = 0
        while True:
            for batch in loader:
                samples += len(batch)
                received += sum(map(len, batch))
                is_late = time.perf_counter() - start > first_batch_s + effort.seconds
                if is_late or received >= effort.max_bytes or samples >= effort.max_items:
                    return meter.sample(samples, received, first_batch_s)
    finally:
        dataset.client.close()


def _read_large(place: Place, effort: Effort) -> Sample:
    """Read an object into memory that is used again, once to warm up."""
    count = min(place.large.size, effort.max_bytes)
    buffer = bytearray(count)
    client = place.client()
    try:
        client.read_range(place.bucket, place.large.key, 0, count, into=buffer)
        meter = _Meter(client)
        received = client.read_range(place.bucket, place.large.key, 0, count, into=buffer)
        return meter.sample(1, received)
    finally:
        client.close()


def _read_ranges(place: Place, effort: Effort) -> Sample:
    """Read ranges at random places by one call, after a few to warm up; the places are the same in each round."""
    chance = random.Random(_SEED)
    size = min(_RANGE, place.wide.size)
    count = max(1, min(_RANGES, effort.max_items, effort.max_bytes // _RANGE))
    starts = [chance.randrange(place.wide.size - size + 1) for _ in range(count)]
    ranges = [(start, start + size) for start in starts]
    client = place.client()
    try:
        client.read_ranges(place.bucket, place.wide.key, ranges[:32])
        meter = _Meter(client)
        parts = client.read_ranges(place.bucket, place.wide.key, ranges)
        return meter.sample(len(parts), sum(map(len, parts)))
    finally:
        client.close()


# --- How it is shown --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    title: str
    digits: int
    of: Callable[[Sample], float]


@dataclass(frozen=True)
class _Case:
    title: str
    tasks: dict[str, Task]
    columns: tuple[_Column, ...]


def _rate(what: str) -> _Column:
    return _Column(f"{what}/s", 0, lambda sample: sample.items / sample.wall_s)


_FIRST_BATCH = _Column("time to first batch, ms", 0, lambda sample: (sample.first_batch_s or 0.0) * 1e3)
_GB_PER_S = _Column("GB/s", 2, lambda sample: sample.bytes / sample.wall_s / 1e9)
_CPU_US = _Column("CPU us each", 1, lambda sample: sample.cpu_s / sample.items * 1e6)
_CPU_S_PER_GIB = _Column("CPU s/GiB", 3, lambda sample: sample.cpu_s / sample.bytes * 2**30)
_REQUESTS = _Column("requests each", 2, lambda sample: sample.requests / sample.items)
_OVERFETCH = _Column("bytes received per byte wanted", 2, lambda sample: sample.bytes_received / sample.bytes)

CASES = {
    "loader": _Case(
        f"DataLoader over your objects, batches of {_BATCH}, no workers",
        {
            "S3MapDataset": _load_map,
            "S3MapDataset, LookAheadBatchSampler": _load_map_ahead,
            "S3IterableDataset": _load_iterable,
        },
        (_rate("samples"), _FIRST_BATCH, _GB_PER_S, _CPU_US, _REQUESTS, _OVERFETCH),
    ),
    "large": _Case(
        "Your largest object within --max-bytes, into memory that is used again",
        {"read_range": _read_large},
        (_GB_PER_S, _CPU_S_PER_GIB, _REQUESTS),
    ),
    "ranges": _Case(
        "Random ranges of 64 KiB of your largest object",
        {"read_ranges": _read_ranges},
        (_rate("ranges"), _CPU_US, _REQUESTS, _OVERFETCH),
    ),
}
"""What can be measured, by its name on the command line."""


def _table(case: _Case, samples: dict[str, list[Sample]]) -> str:
    """Return a table in Markdown: medians, in parentheses the least and the greatest."""
    titles = ["", *(column.title for column in case.columns)]
    rows = [[name, *(_cell(column, found) for column in case.columns)] for name, found in samples.items()]
    lines = [titles, ["---", *["---:"] * len(case.columns)], *rows]
    return "\n".join([f"### {case.title}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def _cell(column: _Column, samples: Sequence[Sample]) -> str:
    values = [column.of(sample) for sample in samples]
    low, median, high = (
        f"{value:,.{column.digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{median} ({low}-{high})"
