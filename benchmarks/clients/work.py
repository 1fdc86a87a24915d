"""Work that several clients share: in threads, one after the other, in another interpreter, through a DataLoader."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.content import content
from benchmarks.registry import Done, Work
from benchmarks.site import MIB, Effort, Site, Stored

if TYPE_CHECKING:
    from s3torch.datasets import ObjectTable

__all__ = [
    "BATCH",
    "IN_FLIGHT",
    "PART_SIZE",
    "OneByOne",
    "Ranges",
    "batch_size",
    "each_sample",
    "fill",
    "in_threads",
    "interpreter",
    "load",
    "parts",
    "ranges_at_once",
    "ranges_in_turn",
    "read_once",
    "table_of",
    "touched",
]

BATCH = 64  # samples
IN_FLIGHT = 32  # requests, connections or threads
PART_SIZE = 8 * MIB  # of those that fetch a large object in parts

Ranges = Sequence[tuple[int, int]]


def touched(size: int) -> bytearray:
    """Return memory whose pages are all there."""
    return bytearray(b"\xff") * size


def fill(view: memoryview, chunks: Iterable[Any]) -> int:
    """Copy chunks into memory, one after the other; returns how many bytes they had."""
    filled = 0
    for chunk in chunks:
        stop = filled + len(chunk)
        view[filled:stop] = memoryview(chunk)
        filled = stop
    return filled


def parts(size: int) -> list[tuple[int, int]]:
    """Cut an object into the ranges that are fetched side by side."""
    return [(start, min(start + PART_SIZE, size)) for start in range(0, size, PART_SIZE)]


def each_sample(site: Site, effort: Effort) -> list[Stored]:
    """Return the objects of one round of small GETs."""
    return list(itertools.islice(itertools.cycle(site.samples), effort.items))


def in_threads(site: Site, effort: Effort, fetch: Callable[[str], int]) -> Work:
    """Return work that fetches all small objects in 32 threads."""
    pool = ThreadPoolExecutor(IN_FLIGHT)
    keys = [sample.key for sample in each_sample(site, effort)]

    def work() -> Done:
        return Done(items=len(keys), bytes=sum(pool.map(fetch, keys)))

    return work


def read_once(site: Site, fetch: Callable[[str], int]) -> Work:
    """Return work that fetches the large object; a small one is fetched first, so that all modules are loaded."""
    fetch(site.samples[0].key)
    return lambda: Done(items=1, bytes=fetch(site.large.key))


def interpreter(program: str) -> Work:
    """Return work that runs a program in a new interpreter."""

    def work() -> Done:
        subprocess.run([sys.executable, "-c", program], check=True)
        return Done(items=1)

    return work


# --- Ranges -----------------------------------------------------------------------------------------------------------


def ranges_at_once(site: Site, effort: Effort, fetch: Callable[[Ranges], Sequence[Any]]) -> Work:
    """Return work that fetches all ranges by one call, after what came was compared with what is there."""
    ranges = site.ranges(_count(effort))
    _check(site, ranges[:IN_FLIGHT], fetch(ranges[:IN_FLIGHT]))

    def work() -> Done:
        return Done(items=len(ranges), bytes=sum(map(len, fetch(ranges))))

    return work


def ranges_in_turn(site: Site, effort: Effort, fetch: Callable[[int, int], Any]) -> Work:
    """Return work that fetches one range after the other until its time is up."""
    ranges = site.ranges(_count(effort))
    _check(site, ranges[:2], [fetch(*each) for each in ranges[:2]])

    def work() -> Done:
        received = count = 0
        deadline = time.perf_counter() + effort.seconds
        for start, stop in ranges:
            received += len(fetch(start, stop))
            count += 1
            if time.perf_counter() > deadline:
                break
        return Done(items=count, bytes=received)

    return work


def _count(effort: Effort) -> int:
    from benchmarks.site import PART

    bound = effort.items if effort.max_bytes is None else effort.max_bytes // PART
    return max(1, min(effort.items, bound))


def _check(site: Site, ranges: Ranges, came: Sequence[Any]) -> None:
    if not site.is_ours:
        return
    for (start, stop), part in zip(ranges, came, strict=True):
        if bytes(memoryview(part)) != content(start, stop):
            raise AssertionError(f"what came for the bytes [{start}, {stop}) is not what is there")


# --- Loaders ----------------------------------------------------------------------------------------------------------


def batch_size(site: Site, effort: Effort) -> int:
    """Return 64, or less where that would be more than a quarter of the bytes that may be read."""
    if effort.max_bytes is None:
        return BATCH
    mean = sum(sample.size for sample in site.samples) / len(site.samples)
    return max(1, min(BATCH, int(effort.max_bytes / 4 / mean)))


class OneByOne:
    """A map-style dataset as it is written by hand.

    Args:
        fetch: Returns the bytes of a key.
        site: Whose samples they are.
    """

    def __init__(self, fetch: Callable[[str], Sized], site: Site) -> None:
        self._fetch = fetch
        self._keys = [sample.key for sample in site.samples]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._keys)

    def __getitem__(self, index: int) -> Sized:
        """Return the bytes of a sample."""
        return self._fetch(self._keys[index])


def load(
    site: Site,
    effort: Effort,
    make: Callable[[], Any],
    *,
    loader: Callable[..., Any] | None = None,
    **options: Any,  # noqa: ANN401 - a DataLoader's
) -> Work:
    """Return work that loads batches until its time is up, epoch after epoch.

    Getting ready takes the first batch, which is timed from before the dataset and its client are made.

    Args:
        site: Whose samples they are.
        effort: When it has been enough.
        make: Returns the dataset.
        loader: The kind of DataLoader; None is that of torch.
        options: Of the DataLoader; batches of 64 unless they say otherwise.
    """
    from torch.utils.data import DataLoader

    if "batch_sampler" not in options:
        options = {"batch_size": batch_size(site, effort), **options}
    start = time.perf_counter()
    dataset = make()
    options = {name: value(dataset) if callable(value) else value for name, value in options.items()}
    batches = (loader or DataLoader)(dataset, num_workers=0, collate_fn=list, **options)
    first = next(iter(batches))
    first_batch_s = time.perf_counter() - start
    if site.is_ours and bytes(first[0]) != content(0, len(first[0])):
        raise AssertionError("the first sample is not what is there")

    def work() -> Done:
        samples = received = 0
        began = time.perf_counter()
        while True:
            for batch in batches:
                samples += len(batch)
                received += sum(map(len, batch))
                is_full = effort.max_bytes is not None and received >= effort.max_bytes
                if is_full or samples >= effort.items or time.perf_counter() - began > effort.seconds:
                    return Done(items=samples, bytes=received, extra={"first_batch_s": first_batch_s})

    return work


def table_of(site: Site, samples: Iterable[Stored]) -> ObjectTable:
    """Return objects that are listed already, with their sizes."""
    from s3torch._aws.listing import ObjectInfo
    from s3torch.datasets import ObjectTable
    from s3torch.datasets.objects import S3BucketKeyData

    return ObjectTable(
        S3BucketKeyData(site.bucket, sample.key, ObjectInfo(sample.key, "", sample.size, 0)) for sample in samples
    )
