"""How evenly an epoch is divided among the ranks: samples, batches and bytes."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch

from benchmarks.fleet.job import Job
from s3torch.datasets.cursor import Cursor, Even, Share, share_of
from s3torch.datasets.order import Shuffled

__all__ = ["WAYS", "Bytes", "Division", "bytes_of_ranks", "divide", "uneven_resumes"]

# What a user can ask for, and by which arguments of share_of.
WAYS: dict[str, tuple[Even | None, bool]] = {
    "even=None": (None, False),
    'even="drop"': ("drop", False),
    'even="pad"': ("pad", False),
    'even="wrap"': ("wrap", False),
    "drop_last=True": (None, True),
}

_AT_ONCE = 2**20
_POOL = 2**20  # sizes that were drawn; each object has one of them
_SPREAD = 1.0  # of the logarithm of a size: the middle two thirds are within a factor of 2.7 of the median


class Division(NamedTuple):
    """What ranks get of the rest of an epoch.

    Attributes:
        samples: Of the rank with the fewest, and with the most.
        batches: Likewise.
        left_out: Samples that nobody gets.
        twice: Samples that come once more.
    """

    samples: tuple[int, int]
    batches: tuple[int, int]
    left_out: int
    twice: int


class Bytes(NamedTuple):
    """What ranks read, as shares of the mean.

    Attributes:
        ranks: Of each rank, over the epoch.
        steps: Of the rank that reads the most in a step, for each of some steps.
        hundreds: Of the rank that reads the most in a hundred steps, for each of some hundreds.
    """

    ranks: list[float]
    steps: list[float]
    hundreds: list[float]


def divide(job: Job, way: str, consumed: int = 0) -> Division:
    """Return what ranks get from so many samples on."""
    shares = [_share(job, way, rank, consumed) for rank in range(job.world_size)]
    counts = [len(share.places) + (share.extra is not None) for share in shares]
    once = sum(len(share.places) for share in shares)
    batches = [len(share) for share in shares]
    return Division(
        (min(counts), max(counts)),
        (min(batches), max(batches)),
        job.objects - consumed - once,
        sum(counts) - once,
    )


def uneven_resumes(job: Job, way: str, turns: int) -> int:
    """Return at how many of so many random places to resume the ranks have unequal numbers of batches."""
    chance = random.Random(1)
    uneven = 0
    for _ in range(turns):
        consumed = chance.randrange(job.objects)
        # The first rank has as many as any, the last one as few as any: places go to the ranks in turn.
        first, last = (_share(job, way, rank, consumed) for rank in (0, job.world_size - 1))
        uneven += len(first) != len(last)
    return uneven


def bytes_of_ranks(job: Job, samples: int) -> Bytes:
    """Return what ranks read of so many samples of a shuffled epoch, if sizes are log-normal.

    Args:
        job: The job.
        samples: From the epoch's begin; rounded down to whole steps.
    """
    sizes = torch.empty(_POOL).log_normal_(
        math.log(job.object_size) - _SPREAD**2 / 2, _SPREAD, generator=torch.Generator().manual_seed(1)
    )
    order = Shuffled(job.objects, 1, 0)
    steps = max(1, samples // job.step)
    at_once = max(1, _AT_ONCE // job.step)
    read: list[torch.Tensor] = []  # bytes of each rank in each step
    for first in range(0, steps, at_once):
        places = range(first * job.step, min(first + at_once, steps) * job.step)
        size = sizes[torch.tensor(order.at(places)) * 2654435761 % _POOL]
        # The places of a rank are each one world behind the last, so a step is batch_size rows of all ranks.
        read.append(size.view(-1, job.batch_size, job.world_size).sum(1))
    each = torch.cat(read).double()
    whole = each.sum(0)
    hundreds = each[: max(1, steps // 100) * 100].view(-1, min(100, steps), job.world_size).sum(1)
    return Bytes(
        (whole / whole.mean()).tolist(),
        (each.max(1).values / each.mean(1)).tolist(),
        (hundreds.max(1).values / hundreds.mean(1)).tolist(),
    )


def _share(job: Job, way: str, rank: int, consumed: int) -> Share:
    even, drop_last = WAYS[way]
    return share_of(
        Cursor(0, consumed),
        job.objects,
        rank=rank,
        world_size=job.world_size,
        batch_size=job.batch_size,
        drop_last=drop_last,
        even=even,
    )
