"""A job of many ranks, computed: its parts, and a whole run that is small."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.fleet.__main__ import main
from benchmarks.fleet.division import WAYS, bytes_of_ranks, divide, uneven_resumes
from benchmarks.fleet.dollars import bills, listing_dollars
from benchmarks.fleet.job import Job
from benchmarks.fleet.opening import Opened, estimate
from benchmarks.fleet.rates import hottest, put_seconds, samples_of_seconds
from benchmarks.fleet.service import Behaviour, Limit, simulate
from benchmarks.fleet.storm import credentials, names
from benchmarks.fleet.throttling import at_the_limit, outage
from s3torch._transfer.retry import RetryPolicy

_JOB = Job(objects=10_007, world_size=8, local_ranks=4, workers=2, batch_size=5)


def test_a_small_run(tmp_path, capsys):
    """A run prints a table of each part, and draws its charts."""
    pytest.importorskip("matplotlib", reason="charts need matplotlib, of the extra test")
    assert main(["--small", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(\|---)+\|$", printed, re.MULTILINE)) == 13
    charts = sorted(path.name for path in tmp_path.iterdir())
    assert charts == ["scale-503.png", "scale-bytes.png", "scale-prefixes.png", "scale-start.png"]
    assert all(f"{tmp_path / name}\n" in printed for name in charts)


def test_an_estimate_is_on_the_line():
    """What grows with a table grows on; what does not stays as it was."""
    found = estimate(Opened(10, 1.0, 2.0, 3.0, 4.0), Opened(20, 2.0, 1.0, 9.0, 4.0), 100)
    assert found == Opened(100, 10.0, 1.0, 9.0, 4.0)


@pytest.mark.parametrize("consumed", [0, 1, 9_999])
def test_nothing_is_lost(consumed):
    """Samples of all ranks, and those that are left out, are all that there were."""
    for way in WAYS:
        found = divide(_JOB, way, consumed)
        left = _JOB.objects - consumed
        assert 0 <= found.left_out < _JOB.step
        assert found.samples[0] <= (left - found.left_out + found.twice) / _JOB.world_size <= found.samples[1]
        if way != "even=None":
            assert found.samples[0] == found.samples[1]
            assert found.batches[0] == found.batches[1]


def test_unequal_batches_are_found():
    """Where a rank has a batch more than another one, that is counted; not where ranks are made equal."""
    assert uneven_resumes(_JOB, "even=None", 200) > 0
    assert not any(uneven_resumes(_JOB, way, 200) for way in WAYS if way != "even=None")


def test_bytes():
    """There is a share for each rank, and the mean of them is 1; the heaviest one is never below it."""
    found = bytes_of_ranks(_JOB, 4000)
    assert len(found.ranks) == 8
    assert sum(found.ranks) == pytest.approx(8)
    assert len(found.steps) == 100
    assert min(found.steps + found.hundreds) >= 1.0


def test_the_busiest_prefix():
    """Samples in order hit one prefix, shuffled ones all of them, and what is beyond the limit is counted."""
    job = Job(objects=1_000_000)
    in_order = samples_of_seconds(job, 11_000, 2, shuffle=False)
    assert [(int(some[0]), int(some[-1])) for some in in_order] == [(0, 10_999), (989_000, 999_999)]
    assert hottest(job, in_order, 10) == (11_000, 0.5)
    shuffled = samples_of_seconds(job, 11_000, 2, shuffle=True)
    assert len(torch.unique(shuffled[0])) == 11_000
    assert 1100 <= hottest(job, shuffled, 10).most < 1300
    assert hottest(job, shuffled, 10).beyond == 0.0


def test_the_puts_of_a_checkpoint():
    """Each rank stores its bytes in parts, the last of which may be smaller."""
    assert put_seconds(Job(world_size=7000), 9, 8) == (14_000, 4.0)


def test_a_limit():
    """A bucket holds what comes in a second, and its rate may change."""
    limit = Limit([(0.0, 2.0), (10.0, 0.0), (20.0, 1.0)])
    assert [limit.admits(now) for now in (0.0, 0.0, 0.0, 0.5, 0.9)] == [True, True, False, True, False]
    assert [limit.admits(now) for now in (10.0, 15.0, 20.0, 20.9, 21.0)] == [False, False, False, False, True]


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(has_jitter=False, has_window=False, has_rests=False)])
def test_each_request_is_answered_or_given_up(behaviour):
    """Whatever clients do: what they wanted was answered, or was given up after so many attempts."""
    course = simulate(Limit([(0.0, 50.0)]), clients=20, behaviour=behaviour, wanted=30)
    assert course.served.total() + course.failed == 600
    assert course.served.total() <= 50 * (course.ended + 1)
    assert course.refused.total() >= 10 * course.failed


def test_what_a_policy_gives_up():
    """A request that is refused as often as the policy lets it be sent is given up."""
    behaviour = Behaviour(policy=RetryPolicy(max_attempts=3))
    course = simulate(Limit([(0.0, 0.0)]), clients=2, behaviour=behaviour, wanted=4)
    assert (course.failed, course.refused.total(), course.served.total()) == (8, 24, 0)


def test_a_sample_holds_up_those_behind_it():
    """No more samples are under way than those that follow the oldest one that is not there yet."""
    behaviour = Behaviour(policy=RetryPolicy(base=20.0), has_jitter=False)
    course = simulate(Limit([(0.0, 0.0), (0.05, 1e6)]), clients=1, behaviour=behaviour, ahead=4, until=0.9)
    assert (course.refused.total(), course.served.total()) == (4, 0)


def test_starts():
    """All are served where there are few; the queries of a node are two a process and name."""
    assert credentials(600, has_jitter=True)[:4] == (600, 600, 600, 0)
    storm = credentials(3000, has_jitter=True)
    assert storm.sent > storm.asked == 3000
    assert names(_JOB, 5).asked == 4 * 3 * 2 * 5


def test_an_outage_ends():
    """Clients come back after an outage; in it they send less than they would without a budget."""
    size = {"clients": 4, "connections": 16, "in_step": False, "per_client": 80.0, "before": 9, "lasts": 5, "after": 60}
    found, hasty = outage(Behaviour(), **size), outage(Behaviour(has_rests=False), **size)
    assert found.limited == pytest.approx(320, rel=0.1)
    assert found.recovered is not None
    assert found.in_outage < hasty.in_outage


def test_clients_in_step():
    """No client is more than two batches ahead of what all clients have."""
    behaviour = Behaviour(policy=RetryPolicy(base=20.0), has_jitter=False, has_window=False)
    course = simulate(Limit([(0.0, 10.0), (0.05, 1e6)]), clients=3, behaviour=behaviour, in_step=4, until=0.9)
    assert (course.served.total(), course.refused.total()) == (10, 14)


def test_the_share_of_a_limit():
    """Clients that ask for less at a time than the service can take use what they can, and are not refused."""
    found = at_the_limit(Behaviour(), clients=4, connections=1, rate=344.0, latency=0.03, burst=1.0)
    assert 0.2 < found.used < 0.4  # 1 / 0.03 s of 86 a second
    assert found[1:] == (0.0, 0)


@pytest.mark.parametrize(("latency", "burst"), [(0.005, 0.1), (0.03, 0.1), (0.03, 1.0), (0.1, 5.0)])
def test_clients_in_step_use_a_limit(latency, burst):
    """Clients that wait for each other use nearly all of a limit, and what they waste is a moderate share."""
    found = at_the_limit(Behaviour(), clients=8, connections=16, rate=320.0, latency=latency, burst=burst)
    assert found.used > 0.8
    assert found.wasted < 0.25
    assert found.failed == 0


def test_dollars():
    """100 million GETs are 40 dollars, a listing of as many keys is half a dollar."""
    found = bills(Job(), 8 * 2**20)
    assert [bill.gets for bill in found.values()] == [100_000_000, 100_000_000, 1_200_000, 100_000]
    assert [round(bill.dollars, 2) for bill in found.values()] == [40.0, 40.0, 0.48, 0.04]
    assert listing_dollars(Job(), 1) == pytest.approx(0.5)
