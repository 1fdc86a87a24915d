"""Tests of the simulation: it goes the same way each time, runs what is right, and finds what is broken."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from s3torch._transfer.engine import Engine
from s3torch._transfer.http1 import Destination
from s3torch._transfer.loop import Loop
from s3torch.errors import S3Error
from s3torch.testing import simulate as package
from s3torch.testing.simulate import (
    KINDS,
    Batch,
    DatasetSpec,
    EndWriter,
    Epoch,
    Finding,
    Fork,
    Interrupt,
    Iterate,
    ListPages,
    Next,
    Open,
    OpenWriter,
    Prefetch,
    Program,
    Read,
    ReadInto,
    ReadRange,
    ReadRanges,
    Result,
    Signal,
    Together,
    Write,
    WriteTo,
    check,
    program_of,
    run,
    shrunk,
    simulate,
)
from s3torch.testing.simulate.probe import held_by
from tests.simulate.__main__ import main

each_kind = pytest.mark.parametrize("kind", KINDS)

# Nothing here needs more than one thing at a time.
SOUND = Program(
    seed=1,
    objects=(300, 0, 20_000, 70_000),
    datasets=(DatasetSpec("map"), DatasetSpec("iterable", reader="adaptive")),
    steps=(
        Batch(0, (0, 1, 2, 3)),
        Iterate("i", 1),
        Next("i", 100),
        Open("r", "k/003", "range"),
        Read("r", 1000),
        ReadInto("r", 30_000),
        ReadRange("k/002", 5, 70, into=True),
        ListPages("k/", 2),
        Write("w/1", (30_000, 30_000)),
        Write("w/2", (10,)),
    ),
    options={"part_size": 16 * 1024},
)


def test_what_is_right_passes():
    """A program that does one thing after the other breaks nothing, and its requests reach the server."""
    result = run(SOUND)
    assert result.findings == []
    assert len(result.log) > 10
    check(SOUND)


@each_kind
def test_a_seed_goes_the_same_way_each_time(kind: str):
    """A seed gives the same program, the same requests at the same virtual times, and the same findings."""
    for seed in range(3):
        (first, _), (second, _) = program_of(seed, kind), program_of(seed, kind)
        assert first == second
        assert repr(first) == repr(second)
        one, other = run(first), run(second)
        assert one.log == other.log
        assert one.findings == other.findings


def test_places_are_counted_the_same_each_time():
    """What happens at the n-th place happens there each time."""
    counts = [run(SOUND, counts="places").places for _ in range(3)]
    assert counts[1] == counts[2]
    assert all(counts[1])


@each_kind
def test_a_program_is_printed_as_python(kind: str):
    """What is printed is a program that Python reads again."""
    program, _ = program_of(7, kind)
    names = {name: getattr(package, name) for name in package.__all__}
    ast.parse(repr(program), mode="eval")
    assert eval(repr(program), names) == program


def test_an_interrupt_comes_where_it_is_asked_for():
    """The interrupt is raised in the step, which goes no further; the next one goes on."""
    places = len(run(SOUND, counts="places").places[6])
    first, last = (run(Program(**{**vars(SOUND), "coincidences": (Interrupt(step=6, at=at),)})) for at in (1, places))
    whole = run(SOUND)
    assert len(first.log) < len(whole.log)
    assert len(last.log) <= len(whole.log)


def test_a_signal_handler_is_called_in_the_middle():
    """Its requests are among those of the step that it interrupts."""
    handler = Signal(step=0, select=2, steps=(ReadRange("k/000", 0, 10),))
    result = run(Program(seed=1, objects=(300, 70_000), steps=(ReadRange("k/001", 0, None),), coincidences=(handler,)))
    assert any("k/000" in line for line in result.log)


def test_threads_take_turns():
    """Threads that share only the client get what they ask for, in an order that the seed decides."""
    steps = tuple(ReadRange(f"k/{number:03}", 0, None) for number in range(3))
    logs = []
    for seed in range(5):
        result = run(Program(seed=seed, objects=(300, 300, 300), steps=(Together((steps, steps, steps), 20),)))
        assert {each.invariant for each in result.findings} <= {"statistics"}
        logs.append([line.split()[2] for line in result.log])
    assert len({tuple(log) for log in logs}) > 1


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

# Parent and child read on by the same reader, while an upload is open.
FORKING = Program(
    seed=1,
    objects=(300, 70_000),
    steps=(
        OpenWriter("w", "w/1"),
        WriteTo("w", 60_000),
        Open("r", "k/001"),
        Read("r", 10),
        Fork((ReadRange("k/000", 0, 300), Read("r", 1000), Write("w/child", (9,)))),
        Read("r", -1),
        EndWriter("w"),
    ),
    options={"part_size": 16 * 1024},
)
# The child is forked while the parent waits for the bodies of its answers.
FORKING_IN_THE_MIDDLE = Program(
    seed=1,
    objects=(300, 70_000),
    steps=(ReadRange("k/001", 0, 70_000, into=True),),
    datasets=(DatasetSpec("map"),),
    coincidences=(Signal(step=0, select=4, steps=(Fork((Batch(0, (0, 1)),)),)),),
)


# The child has the thread that forked, and none of the others.
FORKING_THREAD = Program(
    seed=8235,
    objects=(4000, 90, 300, 4000, 20_000),
    steps=(
        Open("r", "k/004", "adaptive", told=True),
        Together(((Read("r", -1),), (Fork((ListPages(), ReadRange("k/003", 14, None))), Prefetch("r"))), gap=30),
    ),
    options={"part_size": 16 * 1024},
)
FORKS = {"between two calls": FORKING, "in a call": FORKING_IN_THE_MIDDLE, "beside a thread": FORKING_THREAD}


@needs_fork
@pytest.mark.parametrize("name", FORKS)
def test_a_fork(name: str):
    """Parent and child both get what they ask for, and what the child does reaches neither world nor parent.

    In a process of its own: a fork copies what threads of torch, which other tests have left, are in the middle of.
    """
    script = "import sys; from tests.testing.test_simulate import check_fork; check_fork(sys.argv[1])"
    command = [sys.executable, "-c", script, name]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr


def check_fork(name: str) -> None:
    """Run one of these programs."""
    result = run(FORKS[name])
    assert result.findings == []
    assert {"a child was forked", "a child was forked in the middle"} & result.happened
    assert not any("w/child" in line for line in result.log)


class _SamePid:
    """The module ``os``, by which a child takes itself for its parent."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.getpid = lambda: pid

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@needs_fork
@pytest.mark.parametrize(
    ("program", "module", "invariant"),
    [
        (FORKING, "s3torch._access.access", "connections"),
        (FORKING_IN_THE_MIDDLE, "s3torch._access.access", "in flight"),
        (FORKING, "s3torch.writer", "uploads"),
    ],
    ids=["connections", "in flight", "uploads"],
)
def test_a_child_that_takes_itself_for_its_parent_is_found(
    program: Program, module: str, invariant: str, monkeypatch: pytest.MonkeyPatch
):
    """Whoever would use a parent's engine, or end its upload, in a child is found."""
    monkeypatch.setattr(f"{module}.os", _SamePid())
    findings = run(program).findings
    assert invariant in {each.invariant for each in findings}
    assert all(each.detail.startswith("in a forked child: ") for each in findings)


@needs_fork
@pytest.mark.parametrize("program", [FORKING, FORKING_IN_THE_MIDDLE], ids=["between two calls", "in a call"])
def test_a_child_that_closes_its_parents_connections_is_found(program: Program, monkeypatch: pytest.MonkeyPatch):
    """A child that would take its parent's connections from the selector that both share is found."""
    monkeypatch.setattr(Engine, "abandon", lambda self: self._loop.begin_anew())
    assert "connections" in {each.invariant for each in run(program).findings}


@needs_fork
def test_a_child_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch):
    """A child that waits for ever in earnest is ended, and found."""
    monkeypatch.setattr("s3torch.testing.simulate.forking._PATIENCE", 0.2)
    monkeypatch.setattr("s3torch.testing.simulate.forking._play", lambda *_: threading.Event().wait())
    assert [each.invariant for each in run(FORKING).findings] == ["time"]


@needs_fork
def test_a_child_that_raises_is_found(monkeypatch: pytest.MonkeyPatch):
    """What a child raises ends the child, and is found; nothing of the parent's program runs twice."""
    monkeypatch.setattr("s3torch.testing.simulate.forking._play", lambda *_: sys.exit(3))
    assert [each.invariant for each in run(FORKING).findings] == ["documented errors"]


def test_to_look_at_an_error_changes_nothing():
    """The frames of a handler's error that run are left as they are: what an ``except`` has caught is not kept."""

    class OddError(Exception):
        pass

    def look(error: BaseException) -> None:
        try:
            raise S3Error("of a handler") from error
        except S3Error as raised:
            held_by(raised, {})

    def catch() -> weakref.ref[OddError]:
        try:
            raise OddError
        except OddError as error:
            caught = weakref.ref(error)
            look(error)
        return caught

    catch.__code__ = catch.__code__.replace(co_filename=Engine.wait.__code__.co_filename)  # as if it were s3torch's
    was_on = gc.isenabled()
    gc.disable()
    try:
        assert catch()() is None
    finally:
        if was_on:
            gc.enable()


@pytest.mark.parametrize("at", [1, 5, 14, 26])
def test_to_trace_changes_nothing(at: int):
    """What the loop has caught when something comes in the middle of it is not kept by its frame."""
    handler = Signal(step=0, of="loop.py:_complete", call=1, at=at, steps=(ReadRange("k/001", 0, 10, into=True),))
    datasets = (DatasetSpec("map", "objects", reader="range"),)
    check(Program(seed=1, objects=(300, 300), datasets=datasets, steps=(Batch(0, (0, 1)),), coincidences=(handler,)))


def _first_finding(kind: str, seeds: int, ignore: tuple[str, ...] = ()) -> tuple[Program, list[Finding]]:
    """Return the first program of a kind that breaks something."""
    for seed in range(seeds):
        program, findings = simulate(seed, kind, ignore=ignore)
        if findings:
            return program, findings
    raise AssertionError(f"nothing was found in {seeds} programs")


def _lossy(advance: Callable[[Destination, int], None]) -> Callable[[Destination, int], None]:
    def advance_wrongly(self: Destination, count: int) -> None:
        self.room(self.filled + 1)[:1] = b"?"
        advance(self, count)

    return advance_wrongly


def test_a_wrong_byte_is_found(monkeypatch: pytest.MonkeyPatch):
    """One flipped bit of a body is found, and the program is made small."""
    monkeypatch.setattr(Destination, "advance", _lossy(Destination.advance))
    steps = tuple(step for step in SOUND.steps if isinstance(step, (Open, Read, ReadInto, ReadRange)))
    program = Program(**{**vars(SOUND), "steps": steps, "options": {"checksums": "off"}})
    findings = run(program).findings
    assert {each.invariant for each in findings} == {"results"}
    small = shrunk(program, findings)
    assert len(small.steps) <= 2
    with pytest.raises(AssertionError, match="results"):
        check(small)


def test_an_engine_that_does_not_cancel_is_found(monkeypatch: pytest.MonkeyPatch):
    """Transfers that go on after their call has failed are found within a few programs."""
    monkeypatch.setattr(Engine, "cancel", lambda self, exchanges: None)
    program, findings = _first_finding("deadline", 60, ("errors", "statistics", "documented errors"))
    assert {each.invariant for each in findings} & {"in flight", "memory", "results", "time", "uploads", "connections"}
    assert program.steps


def test_a_loop_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch):
    """A loop that turns for ever without any time passing ends, and is found."""
    monkeypatch.setattr(Loop, "_start_queued", lambda self: None)
    assert {each.invariant for each in run(SOUND).findings} >= {"time"}


def test_the_gaps_of_joined_ranges():
    """What one request brings of several ranges is compared with what was asked for."""
    result = run(Program(seed=1, objects=(300,), steps=(ReadRanges("k/000", ((0, 10), (290, 300)), into=True),)))
    assert result.findings == []


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """It tells what it found as a program, and by its exit status."""
    monkeypatch.setattr("tests.simulate.work.result_of", lambda seed, only, ignore: (SOUND, Result()))
    assert main(["--seeds", "3"]) == 0
    assert "3 programs" in capsys.readouterr().out
    broken = Result(findings=[Finding("results", "wrong")])
    monkeypatch.setattr("tests.simulate.work.result_of", lambda seed, only, ignore: (SOUND, broken))
    assert main(["--seeds", "3", "--whole", "--findings", "1"]) == 1
    told = capsys.readouterr().out
    assert "results: wrong" in told
    assert "check(Program(" in told


def test_processes_share_the_seeds(capsys: pytest.CaptureFixture[str]):
    """Each seed is played once, and there is one report."""
    assert main(["--seeds", "5", "--jobs", "2", "--only", "plain", "--pairs"]) == 0
    assert "5 programs" in capsys.readouterr().out


def test_an_interrupt_at_the_end_of_a_call_is_within_its_with():
    """The interpreter looks for the handler of an interrupt at the call: a ``with`` that returns what it calls ends."""
    program = Program(
        seed=272,
        objects=(1, 300, 200_000),
        steps=(Epoch(0, ((2, 1),), 2),),
        datasets=(DatasetSpec(kind="map", source="prefix", transform="oops", reader="sequential", special=1),),
        coincidences=(Interrupt(step=0, at=14, of="selecting.py:select_from_table", call=1),),
    )
    result = run(program)
    assert result.met
    assert result.findings == []
