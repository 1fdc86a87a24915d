"""Runs programs, finds places for what happens in the middle of them, and makes failing ones small."""

from __future__ import annotations

import contextlib
import cProfile
import dataclasses
import functools
import gc
import itertools
import logging
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any, Literal

from s3torch.testing.simulate import seam
from s3torch.testing.simulate.coincidences import (
    Coincidence,
    Collect,
    Forget,
    Interrupt,
    Lose,
    Replace,
    Signal,
    Tracer,
    name_of,
)
from s3torch.testing.simulate.forking import Fork
from s3torch.testing.simulate.invariants import (
    AFTER_A_TURN,
    AFTER_ALL,
    AT_ONCE,
    Finding,
    look_ahead_is_given_back,
)
from s3torch.testing.simulate.model import PROBE, BucketModel, Stored
from s3torch.testing.simulate.play import Play, ReaderState, longest_call
from s3torch.testing.simulate.programs import Program, draft, kind_of
from s3torch.testing.simulate.scheduler import StuckError
from s3torch.testing.simulate.server import Server
from s3torch.testing.simulate.steps import (
    Batch,
    Head,
    ListPages,
    ReadRange,
    Save,
    Step,
    Together,
    Write,
)
from s3torch.testing.simulate.world import World

__all__ = ["Result", "check", "everywhere", "program_of", "result_of", "run", "shrunk", "simulate"]

_SHARE_OF_RARE_CODE = 0.6
# How many places after the beginning of a function something happens: most functions have fewer than five.
_PLACES_AFTER = (1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 14, 20, 40)


@dataclass
class Result:
    """What came of a run.

    Attributes:
        findings: Which invariants did not hold; empty if all did.
        places: For each step, the code of each place that it passed where signals are looked for, if somebody counted.
        calls: For each step, how often each function of s3torch was called, if somebody counted.
        selects: For each step, how often it waited for the network.
        log: The requests that the server saw, with their times.
        met: Where in s3torch something happened in the middle of a step.
        names: The readers, writers and iterators that were there at the beginning of each step.
        happened: What happened at all, beside the steps.
        pairs: What of it met: in one program, or in the middle of a step of some kind.
    """

    findings: list[Finding] = field(default_factory=list)
    places: list[list[CodeType]] = field(default_factory=list)
    calls: list[dict[str, int]] = field(default_factory=list)
    selects: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    happened: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)


def run(program: Program, *, counts: Literal["", "places", "calls"] = "", ignore: Collection[str] = ()) -> Result:
    """Run a program and check all invariants.

    Args:
        program: What runs.
        ignore: Names of invariants that are known not to hold.
        counts: What to count, so that something may happen in the middle: ``places``, which takes long, or ``calls``.
    """
    bucket = BucketModel()
    for key, size in zip(program.keys, program.objects, strict=True):
        if size is not None:
            bucket.put(key, Stored.first(key, size))
    bucket.put(PROBE, Stored.of(b"z"))
    bucket.begin()
    # More than a call may take: a call that ends late is told with its result, one that does not end is ended.
    longest = 100.0 + longest_call(program)
    world = World(Server(bucket), program.seed, dict(program.faults), is_tls=program.is_tls, longest_call=longest)
    result = Result(log=world.log)
    with seam.connected(world), _collector_off(), _quiet() as in_finalisers:
        play = Play(program, world, frozenset(ignore))
        is_traced = counts == "places" or any(each.at for each in program.coincidences)
        is_traced |= any(isinstance(step, Together) for step in program.steps)
        if is_traced:
            play.tracer = Tracer()
            result.met = play.tracer.met
        result.findings = play.findings
        threads = threading.active_count()
        try:
            for number, step in enumerate(program.steps):
                result.names.append(sorted(name for name in play.things if " " not in name))
                _run_step(play, number, step, result, counts=counts)
                if play.findings or world.is_silent:
                    break
            _finish(play)
        except StuckError as error:
            play.find("time", str(error))
        except Exception as error:  # noqa: BLE001  # every one of them is what is looked for
            play.find("documented errors", f"{type(error).__name__}: {error}")
        for what in in_finalisers:
            play.find("documented errors", what)
        if threading.active_count() > threads:
            play.find("threads", "threads are left")
        play.clients.clear()
        del play.client
        gc.collect()  # a client and its buckets refer to each other
        for invariant in AFTER_ALL if not play.findings else ():
            invariant(play)
    result.happened = {*play.happened, *(f"fault: {fault}" for fault in world.faults_met)}
    result.pairs = {*play.pairs, *itertools.combinations(sorted(result.happened), 2)}
    return result


def _run_step(play: Play, number: int, step: Step, result: Result, *, counts: str) -> None:
    world, tracer, play.step = play.world, play.tracer, step
    mine = [each for each in play.program.coincidences if each.step == number]
    first = world.selects
    by_select = {first + each.select: each for each in mine if each.select}

    def on_select() -> None:
        coincidence = by_select.pop(world.selects, None)
        if coincidence is not None:
            coincidence.come(play)

    world.on_select = on_select if by_select else lambda: None
    trail: list[CodeType] = []
    profile = cProfile.Profile(subcalls=False, builtins=False) if counts == "calls" else None
    if tracer is not None:
        due = [(each, partial(each.come, play)) for each in mine if each.at]
        tracer.begin(due, trail if counts == "places" else None)
    if profile is not None:
        profile.enable()
    try:
        step.run(play)
    except KeyboardInterrupt:  # where no call of ours was the outermost, such as in a finaliser
        if not play.has_interrupted:
            raise
    finally:
        if profile is not None:
            profile.disable()
        if tracer is not None:
            tracer.stop()
        world.on_select = lambda: None
    play.interrupted_at = None
    result.places.append(trail)
    result.calls.append(_calls_of(profile) if profile is not None else {})
    result.selects.append(world.selects - first)
    play.check_memory(f"after step {number}")


def _calls_of(profile: cProfile.Profile) -> dict[str, int]:
    """Return how often each function of s3torch was called, in an order that does not depend on addresses."""
    calls: Counter[str] = Counter()
    for entry in profile.getstats():
        if isinstance(entry.code, CodeType) and (name := name_of(entry.code)):
            calls[name] += entry.callcount
    return dict(sorted(calls.items()))


def _finish(play: Play) -> None:
    """End all that the program left open, and check what must hold then."""
    play.tracer = None
    play.kept.clear()
    for name in list(play.things):
        thing = play.things.pop(name)
        if isinstance(thing, ReaderState):
            thing.reader.close()
        elif hasattr(thing, "abort"):
            thing.abort()
        del thing
    look_ahead_is_given_back(play)
    play.datasets.clear()
    play.forget_checkpoints()
    for invariant in AT_ONCE if not play.findings else ():
        if invariant.__name__ != "nothing_in_flight" or not play.is_lax:
            invariant(play)
    gc.collect()
    play.world.heal()
    for client in play.clients:
        play.attempt("a call afterwards", [PROBE], partial(client.head_object, seam.BUCKET, PROBE))
    play.check_memory("after another call")
    for invariant in AFTER_A_TURN if not play.findings else ():
        invariant(play)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Keep the collector from coming by chance, and from walking what was there before."""
    was_on, was_frozen = gc.isenabled(), _is_frozen()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if not was_frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


@functools.cache
def _is_frozen() -> bool:
    """Return whether the caller keeps its objects from the collector; asked once, as it takes 0.1 s of many objects."""
    return gc.get_freeze_count() > 0


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep warnings and the log from the terminal; collect what finalisers raise."""
    raised: list[str] = []

    def note(unraisable: Any) -> None:  # noqa: ANN401  # a class that sys does not name
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt):
            raised.append(f"a finaliser raised {type(error).__name__}: {error}")

    log = logging.getLogger("s3torch")
    handlers, propagates, hook = log.handlers, log.propagate, sys.unraisablehook
    log.handlers, log.propagate = (
        [logging.NullHandler()],
        False,
    )  # to change the level would clear caches of all loggers
    sys.unraisablehook = note
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield raised
    finally:
        sys.unraisablehook = hook
        log.handlers, log.propagate = handlers, propagates


def program_of(seed: int, only: str | None = None, *, ignore: Collection[str] = ()) -> tuple[Program, Result | None]:
    """Return the program of a seed, with what happens in the middle; and what was found on the way, if anything was.

    Args:
        seed: Any.
        only: One of KINDS, or None to let the seed choose.
        ignore: As for ``run``.
    """
    program = draft(seed, only)
    kind = kind_of(seed, only)
    if kind not in ("interrupts", "signals", "collections", "silence", "forks") or _forks(program):
        return program, None
    counted = run(program, counts="calls", ignore=ignore)
    if counted.findings and kind != "silence":
        return program, counted
    chance = random.Random(f"{seed} in the middle")
    placed = [_placed(chance, program, counted, kind) for _ in range(chance.choice((1, 1, 2)))]
    return dataclasses.replace(program, coincidences=tuple(each for each in placed if each is not None)), None


def _forks(program: Program) -> bool:
    return any(isinstance(step, (Fork, Together)) for step in program.steps)


def _placed(chance: random.Random, program: Program, counted: Result, kind: str) -> Coincidence | None:
    """Return something that happens in the middle of one of the steps."""
    by_select = chance.random() < (0.8 if kind == "silence" else 0.2)
    counts = counted.selects if by_select else [sum(calls.values()) for calls in counted.calls]
    if not any(counts):
        return None
    step = chance.choices(range(len(counts)), counts)[0]
    where: dict[str, Any] = {"step": step}
    if by_select:
        where["select"] = chance.randint(1, counts[step])
    else:
        calls = counted.calls[step]
        is_even = chance.random() < _SHARE_OF_RARE_CODE  # code that seldom runs is met as often as any other
        name = chance.choices(list(calls), None if is_even else list(calls.values()))[0]
        where |= {"of": name, "call": chance.randint(1, calls[name]), "at": chance.choice(_PLACES_AFTER)}
    if kind in ("interrupts", "silence"):
        return Interrupt(**where)
    if kind == "signals":
        if chance.random() < 0.15:
            return Replace(**where, key=chance.choice(program.keys), size=chance.choice((None, 300, 20_000)))
        return Signal(**where, steps=_handler(chance, program))
    if kind == "forks":
        return Signal(**where, steps=(Fork(_handler(chance, program)),))
    names = counted.names[step]
    choices: list[Coincidence] = [Collect(**where), Collect(**where), Forget(**where)]
    choices += [Lose(**where, name=name) for name in names if name not in program.steps[step].names]
    return chance.choice(choices)


def _handler(chance: random.Random, program: Program) -> tuple[Step, ...]:
    """Return what a signal handler does."""
    key = chance.choice(program.keys)
    choices: list[Step] = [
        ReadRange(key, 0, chance.choice((10, 50_000)), into=True),
        Write("w/handler", (chance.choice((100, 40_000)),)),
        ListPages("k/", 5),
        Head(key),
        Save("c/handler", (chance.choice((100, 40_000)),)),
    ]
    choices += [
        Batch(number, tuple(chance.randrange(len(program.objects)) for _ in range(4)))
        for number, spec in enumerate(program.datasets)
        if spec.kind == "map" and "nested" not in spec.transform
    ]
    return tuple(chance.choice(choices) for _ in range(chance.choice((1, 1, 2))))


def simulate(seed: int, only: str | None = None, *, ignore: Collection[str] = ()) -> tuple[Program, list[Finding]]:
    """Run the program of a seed; returns it, and what was found."""
    program, result = result_of(seed, only, ignore=ignore)
    return program, result.findings


def result_of(seed: int, only: str | None = None, *, ignore: Collection[str] = ()) -> tuple[Program, Result]:
    """Run the program of a seed; returns it, and what came of it."""
    program, early = program_of(seed, only, ignore=ignore)
    return program, early or run(program, ignore=ignore)


def everywhere(program: Program, coincidence: Coincidence, *, stride: int = 1) -> Iterator[Program]:
    """Yield the program with something in the middle of a step, once for each place of the step.

    Args:
        program: Without coincidences.
        coincidence: What happens in the middle of its step.
        stride: Take only each n-th place.
    """
    places = len(run(program, counts="places").places[coincidence.step])
    for at in range(1, places + 1, stride):
        yield dataclasses.replace(program, coincidences=(dataclasses.replace(coincidence, at=at),))


def check(program: Program) -> None:
    """Run a program and raise if anything is found; for a program that was printed.

    Raises:
        AssertionError: An invariant does not hold.
    """
    findings = run(program).findings
    assert not findings, "\n".join(f"{each.invariant}: {each.detail}" for each in findings)


def shrunk(program: Program, findings: list[Finding], *, tries: int = 200, ignore: Collection[str] = ()) -> Program:
    """Return a smaller program that breaks one of the same invariants.

    Args:
        program: One that breaks an invariant.
        findings: What was found.
        tries: How many programs to run at most.
        ignore: As for ``run``.
    """
    names = {each.invariant for each in findings}
    left = tries
    is_smaller = True
    while is_smaller and left > 0:
        is_smaller = False
        for candidate in _smaller(program):
            left -= 1
            if left < 0:
                break
            if names & {each.invariant for each in run(candidate, ignore=ignore).findings}:
                program, is_smaller = candidate, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Yield programs that lack something of this one."""
    for place in reversed(range(len(program.steps))):
        moved = [
            dataclasses.replace(each, step=each.step - (each.step > place))
            for each in program.coincidences
            if each.step != place
        ]
        steps = program.steps[:place] + program.steps[place + 1 :]
        if steps:
            yield dataclasses.replace(program, steps=steps, coincidences=tuple(moved))
    for name in ("coincidences", "faults"):
        items = getattr(program, name)
        for place in range(len(items)):
            yield dataclasses.replace(program, **{name: items[:place] + items[place + 1 :]})
    for option in program.options:
        yield dataclasses.replace(
            program, options={name: value for name, value in program.options.items() if name != option}
        )
    if program.is_tls:
        yield dataclasses.replace(program, is_tls=False)
    for place, step in enumerate(program.steps):
        for smaller in _smaller_step(step):
            yield dataclasses.replace(program, steps=(*program.steps[:place], smaller, *program.steps[place + 1 :]))
    if len(program.objects) > 2:
        yield dataclasses.replace(program, objects=program.objects[: len(program.objects) // 2])
    for place, size in enumerate(program.objects):
        if size is not None and size > 300:
            yield dataclasses.replace(program, objects=(*program.objects[:place], 300, *program.objects[place + 1 :]))


def _smaller_step(step: Step) -> Iterator[Any]:
    for name in ("steps", "threads", "batches", "places", "upcoming", "sizes", "ranges"):
        items = getattr(step, name, None)
        if not isinstance(items, tuple) or len(items) < 2:
            continue
        changed: Any = step
        yield dataclasses.replace(changed, **{name: items[: len(items) // 2]})
        yield dataclasses.replace(changed, **{name: items[len(items) // 2 :]})
