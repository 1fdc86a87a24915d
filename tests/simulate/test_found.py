"""What the simulator has found stays mended; and small programs are interrupted at each of their places in turn."""

from __future__ import annotations

import pytest

from s3torch.testing.simulate import (
    Batch,
    Collect,
    DatasetSpec,
    Interrupt,
    LoseInCycle,
    OpenWriter,
    Program,
    ReadRange,
    Signal,
    Write,
    WriteTo,
    check,
    everywhere,
    run,
)
from s3torch.testing.simulate.coincidences import Coincidence
from tests.simulate.found import FOUND


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str):
    """Each program that once broke an invariant breaks none."""
    check(FOUND[name])


READING = Program(
    seed=1,
    objects=(300, 300, 300),
    steps=(ReadRange("k/000", 0, 300, into=True), ReadRange("k/001", 0, 300, into=True)),
)
BATCHES = Program(
    seed=1,
    objects=(300, 300, 300),
    datasets=(DatasetSpec("map", "objects"),),
    steps=(Batch(0, (0, 1)), Batch(0, (2, 0)), Batch(0, (1,))),
)
WRITING = Program(seed=1, objects=(300,), steps=(Write("w/1", (20_000, 20_000)),), options={"part_size": 16 * 1024})
LOST_WRITER = Program(
    seed=3,
    objects=(300, 100_000),
    steps=(OpenWriter("w", "w/1"), WriteTo("w", 60_000), LoseInCycle("w"), ReadRange("k/001", 0, 100_000, into=True)),
    options={"part_size": 16 * 1024, "max_connections": 2, "call_timeout": 0.02},
)


@pytest.mark.parametrize(
    ("program", "coincidence", "stride"),
    [
        pytest.param(READING, Interrupt(step=0), 3, id="an interrupt of a read"),
        pytest.param(BATCHES, Interrupt(step=1), 11, id="an interrupt of a batch"),
        pytest.param(WRITING, Interrupt(step=0), 17, id="an interrupt of an upload"),
        pytest.param(READING, Signal(step=0, steps=(ReadRange("k/002", 0, 10),)), 7, id="a handler reads in a read"),
        pytest.param(BATCHES, Signal(step=1, steps=(Batch(0, (0, 2)),)), 13, id="a handler gets a batch in a batch"),
        pytest.param(WRITING, Signal(step=0, steps=(Write("w/2", (9,)),)), 19, id="a handler writes in an upload"),
        pytest.param(LOST_WRITER, Collect(step=3), 9, id="the collector finds a writer in a read"),
    ],
)
def test_everywhere(program: Program, coincidence: Coincidence, stride: int):
    """What may happen in the middle of a call may happen at each place of it."""
    found = []
    for each in everywhere(program, coincidence, stride=stride):
        result = run(each)
        found += [(result.met, finding) for finding in result.findings]
    assert found == []
