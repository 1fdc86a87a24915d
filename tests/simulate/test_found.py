"""What the simulator has found stays mended; and small programs are interrupted at each of their places in turn."""

from __future__ import annotations

import pytest

from s3torch.testing.simulate import (
    Batch,
    Collect,
    DatasetSpec,
    Fork,
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


# Each with the distance of the places that are tried, and with that of the long run.
EVERYWHERE = {
    "an interrupt of a read": (READING, Interrupt(step=0), 29, 3),
    "an interrupt of a batch": (BATCHES, Interrupt(step=1), 43, 11),
    "an interrupt of an upload": (WRITING, Interrupt(step=0), 151, 17),
    "a handler reads in a read": (READING, Signal(step=0, steps=(ReadRange("k/002", 0, 10),)), 47, 7),
    "a handler gets a batch in a batch": (BATCHES, Signal(step=1, steps=(Batch(0, (0, 2)),)), 37, 13),
    "a handler writes in an upload": (WRITING, Signal(step=0, steps=(Write("w/2", (9,)),)), 157, 19),
    "a handler forks in a read": (READING, Signal(step=0, steps=(Fork((ReadRange("k/002", 0, 10),)),)), 97, 19),
    "a handler forks in a batch": (BATCHES, Signal(step=1, steps=(Fork((Batch(0, (0, 2)),)),)), 131, 29),
    "a handler forks in an upload": (WRITING, Signal(step=0, steps=(Fork((Write("w/2", (9,)),)),)), 397, 59),
    "the collector finds a writer in a read": (LOST_WRITER, Collect(step=3), 23, 9),
}


@pytest.mark.parametrize("is_long", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["some", "many"])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_everywhere(name: str, is_long: bool):
    """What may happen in the middle of a call may happen at each place of it."""
    program, coincidence, far, near = EVERYWHERE[name]
    found = []
    for each in everywhere(program, coincidence, stride=near if is_long else far):
        result = run(each)
        found += [(result.met, finding) for finding in result.findings]
    assert found == []
