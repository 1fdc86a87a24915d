"""What the requests of an epoch cost, of objects and of shards."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.fleet.job import DOLLARS_PER_GET, DOLLARS_PER_LIST, KEYS_OF_A_PAGE, Job

__all__ = ["Bill", "bills", "listing_dollars"]

_SHARD = 100_000_000  # bytes


class Bill(NamedTuple):
    """What one epoch is charged for.

    Attributes:
        gets: GET requests.
        dollars: For them.
    """

    gets: int
    dollars: float


def bills(job: Job, part_size: int) -> dict[str, Bill]:
    """Return what the GETs of an epoch cost, for ways to keep and to read the samples.

    Args:
        job: The job.
        part_size: Of the ranges in which a shard is read.
    """
    shards = -(-job.objects * job.object_size // _SHARD)
    gets = {
        "one object a sample": job.objects,
        f"shards of {_SHARD // 10**6} MB, one range a sample": job.objects,
        f"shards of {_SHARD // 10**6} MB, in ranges of {part_size // 2**20} MiB": shards * -(-_SHARD // part_size),
        f"shards of {_SHARD // 10**6} MB, each by one GET": shards,
    }
    return {name: Bill(count, count * DOLLARS_PER_GET) for name, count in gets.items()}


def listing_dollars(job: Job, askers: int) -> float:
    """Return what it costs if so many processes list all objects."""
    return askers * -(-job.objects // KEYS_OF_A_PAGE) * DOLLARS_PER_LIST
