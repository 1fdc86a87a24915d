"""The meter."""

from __future__ import annotations

import sys

import pytest

from benchmarks.measure import AccessLog, Sample, measure, together
from benchmarks.registry import Done
from benchmarks.site import MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is read from /proc")


def test_rounds(tmp_path):
    """The warm-up is done and not counted, and answers are those that the server gave meanwhile."""
    log = tmp_path / "access.log"
    log.write_text("1\n")
    rounds = []

    def work() -> Done:
        rounds.append(None)
        with log.open("a") as file:
            file.write("1000\n")
        return Done(items=2, bytes=900, requests=7, wire_bytes=7, extra={"round": len(rounds)})

    sample = measure(work, warm_up=2, rounds=3, access_log=str(log))
    assert len(rounds) == 5
    assert (sample.items, sample.bytes, sample.requests, sample.wire_bytes) == (6, 2700, 3, 3000)
    assert sample.extra == {"round": 5}


def test_counted_by_the_client():
    """Where no server counts, the client's own counts are taken, if it has any."""
    counted = measure(lambda: Done(items=1, requests=2, wire_bytes=3), warm_up=0, rounds=2, access_log=None)
    assert (counted.requests, counted.wire_bytes) == (4, 6)
    silent = measure(lambda: Done(items=1), warm_up=0, rounds=1, access_log=None)
    assert (silent.requests, silent.wire_bytes) == (None, None)


def test_time_of_its_own():
    """Work that says which part of it counts is believed."""
    assert measure(lambda: Done(items=1, seconds=5.0), warm_up=0, rounds=2, access_log=None).wall_s == 10.0


def test_peak():
    """The peak of the resident memory is seen although it is free again in the end."""
    sample = measure(lambda: Done(items=len(bytearray(b"x") * (64 * MIB))), warm_up=0, rounds=1, access_log=None)
    assert 60 * MIB < sample.peak_growth < 80 * MIB


def test_no_log():
    """A server that counts nothing has no counts."""
    assert AccessLog(None).counts() is None


def test_together():
    """Ranks together take as long as the slowest and cost what all cost; the server's counts are of all already."""
    fast = Sample(wall_s=1, cpu_s=2, peak_growth=30, items=1, bytes=100, requests=7, wire_bytes=300, extra={"mood": 1})
    slow = Sample(wall_s=3, cpu_s=1, peak_growth=20, items=1, bytes=90, requests=8, wire_bytes=310)
    both = Sample(wall_s=3, cpu_s=3, peak_growth=30, items=1, bytes=190, requests=8, wire_bytes=310, extra={"mood": 1})
    assert together([fast, slow]) == both
    assert together([fast]) == fast
    uncounted = Sample(wall_s=1, cpu_s=1, peak_growth=0, items=1, bytes=0)
    assert together([uncounted, uncounted]).requests is None
