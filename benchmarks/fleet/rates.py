"""Requests a second against the limits of S3, which are those of a partitioned prefix."""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.fleet.job import GETS_PER_SECOND, PUTS_PER_SECOND, Job
from s3torch.datasets.order import InOrder, Order, Shuffled

__all__ = ["Hot", "hottest", "put_seconds", "samples_of_seconds"]


class Hot(NamedTuple):
    """What the busiest of some prefixes is asked for, over some seconds of an epoch.

    Attributes:
        most: Its GETs a second at most.
        beyond: Share of all requests that are beyond the limit of their prefix.
    """

    most: int
    beyond: float


def samples_of_seconds(job: Job, rate: int, seconds: int, *, shuffle: bool) -> list[torch.Tensor]:
    """Return the indices that a fleet asks for in each of some seconds, spread over an epoch.

    Args:
        job: The job.
        rate: Samples a second of all ranks.
        seconds: How many to look at.
        shuffle: Whether the epoch is shuffled.
    """
    order: Order = Shuffled(job.objects, 1, 0) if shuffle else InOrder(job.objects)
    rate = min(rate, job.objects)
    firsts = [(job.objects - rate) * second // max(1, seconds - 1) for second in range(seconds)]
    return [torch.tensor(order.at(range(first, first + rate))) for first in firsts]


def hottest(job: Job, seconds: list[torch.Tensor], prefixes: int) -> Hot:
    """Return how hot the busiest prefix gets, if each has as many keys, which follow each other."""
    most = beyond = total = 0
    for indices in seconds:
        loads = torch.bincount(indices * prefixes // job.objects, minlength=prefixes)
        most = max(most, int(loads.max()))
        beyond += int((loads - GETS_PER_SECOND).clamp(min=0).sum())
        total += len(indices)
    return Hot(most, beyond / total)


def put_seconds(job: Job, rank_bytes: int, part_size: int) -> tuple[int, float]:
    """Return the PUTs of a checkpoint to which each rank gives so many bytes, and what one prefix needs for them."""
    puts = job.world_size * -(-rank_bytes // part_size)
    return puts, puts / PUTS_PER_SECOND
