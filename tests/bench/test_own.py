"""What is read of the user's own bucket."""

from __future__ import annotations

from s3torch.bench.own import choose
from s3torch.bench.site import Stored

SMALL, MEDIUM, HUGE = Stored("s", 10), Stored("m", 100), Stored("h", 1000)


def test_choose():
    """What is too large to be read whole is left out, unless there is nothing else."""
    assert choose([SMALL, HUGE, MEDIUM], 100) == ((SMALL, MEDIUM), MEDIUM)
    assert choose([HUGE, MEDIUM], 50) == ((MEDIUM,), MEDIUM)
