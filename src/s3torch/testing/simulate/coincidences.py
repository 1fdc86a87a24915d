"""What happens in the middle of a step: an interrupt, a signal handler, a collection, another thread's turn.

Each coincidence names the step of the program that it meets, and the moment: the n-th time that the network is waited
for (``select``), or the n-th place in s3torch where this interpreter looks for signals (``at``): counted from the
beginning of the step, or, which is much faster to run, from the n-th call of a function (``of``, ``call``). What there
is to choose from is found by running the program once without it.

To trace each bytecode takes ten times as long as to run it. So bytecodes are traced only where a place is near: calls
are counted first, and a tracer that has nothing more to wait for ends itself.
"""

from __future__ import annotations

import dataclasses
import dis
import gc
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import s3torch
from s3torch.testing.simulate.tracing import leave_bytecodes, trace_bytecodes

if TYPE_CHECKING:
    from s3torch.testing.simulate.play import Play
    from s3torch.testing.simulate.steps import Step

__all__ = [
    "Coincidence",
    "Collect",
    "Forget",
    "Interrupt",
    "Lose",
    "Replace",
    "Signal",
    "Tracer",
    "name_of",
    "places_of",
]


@dataclass(frozen=True, kw_only=True, repr=False)
class Coincidence:
    """Something that happens in the middle of a step.

    Args:
        step: Which step of the program.
        at: Which place of those where signals are looked for, from 1; 0 for none.
        select: Which wait for the network, from 1; 0 for none.
        of: The function with whose call the places begin to count, such as ``loop.py:turn``; empty: with the step.
        call: Which call of that function, from 1.
    """

    step: int
    at: int = 0
    select: int = 0
    of: str = ""
    call: int = 0

    def __repr__(self) -> str:
        told = [(each.name, getattr(self, each.name), each.default) for each in dataclasses.fields(self)]
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value, usual in told if value != usual)})"
        )

    @property
    def moment(self) -> str:
        """What it comes in the middle of: bytecodes or a wait."""
        return "a wait" if self.select else "bytecodes"

    def come(self, play: Play) -> None:
        """Let it happen, and take down that it did."""
        what = f"{type(self).__name__} at {self.moment}"
        play.happened.add(what)
        play.pairs.add((what, f"in {type(play.step).__name__}"))
        was_in_the_middle, play.is_in_the_middle = play.is_in_the_middle, True
        try:
            self.happen(play)
        finally:
            play.is_in_the_middle = was_in_the_middle  # one may come in the middle of another

    def happen(self, play: Play) -> None:
        """Let it happen."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, repr=False)
class Interrupt(Coincidence):
    """Ctrl-C."""

    def happen(self, play: Play) -> None:
        """Raise KeyboardInterrupt."""
        play.interrupted_at = play.world.now
        play.has_interrupted = True
        raise KeyboardInterrupt("simulated")


@dataclass(frozen=True, kw_only=True, repr=False)
class Signal(Coincidence):
    """A signal whose handler does something with the same client.

    Args:
        steps: What it does.
    """

    steps: tuple[Step, ...] = ()

    def happen(self, play: Play) -> None:
        """Do it."""
        for step in self.steps:
            step.run(play)


@dataclass(frozen=True, kw_only=True, repr=False)
class Collect(Coincidence):
    """The garbage collector."""

    def happen(self, play: Play) -> None:
        """Collect."""
        del play
        gc.collect()


@dataclass(frozen=True, kw_only=True, repr=False)
class Forget(Coincidence):
    """The last reference to the exceptions that were kept goes away."""

    def happen(self, play: Play) -> None:
        """Drop them."""
        play.kept.clear()


@dataclass(frozen=True, kw_only=True, repr=False)
class Lose(Coincidence):
    """The last reference to a reader, a writer or an iterator goes away.

    Args:
        name: Which.
    """

    name: str = ""

    def happen(self, play: Play) -> None:
        """Drop it."""
        play.drop(self.name)


@dataclass(frozen=True, kw_only=True, repr=False)
class Replace(Coincidence):
    """Somebody else stores another version of an object, or deletes it.

    Args:
        key: Which object.
        size: Of the new version; None deletes it.
    """

    key: str = ""
    size: int | None = None

    def happen(self, play: Play) -> None:
        """Do it."""
        play.replace(self.key, self.size)


_ROOT = str(Path(s3torch.__file__).parent)
_BESIDE = (str(Path(_ROOT, "testing")), str(Path(_ROOT, "bench")))
# After these the interpreter looks whether a signal has come (CPython 3.11 and newer).
_LOOKED_AFTER = {"RESUME", "CALL", "CALL_FUNCTION_EX", "CALL_KW"}
# Before these it does not, although it does nearly everywhere else (CPython 3.10).
_NOT_BEFORE = {"SETUP_FINALLY", "SETUP_WITH", "YIELD_FROM"}
_UNIT = 2  # bytes of an instruction
# CPython 3.10 copies the locals of a frame into a dictionary at each event that is traced, and drops them from there at
# the next one only. So a frame is traced to its end: else what an ``except`` has caught would stay in its frame behind
# the block, as a cycle that holds all that the frames hold which it has passed.
_COPIES_LOCALS = sys.version_info < (3, 11)


def places_of(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions before which the interpreter may run a signal handler."""
    if not code.co_filename.startswith(_ROOT) or code.co_filename.startswith(_BESIDE):
        return frozenset()
    found, previous = set(), ""
    for instruction in dis.get_instructions(code):
        if sys.version_info < (3, 11):
            if instruction.opname not in _NOT_BEFORE:
                found.add(instruction.offset)
        elif previous in _LOOKED_AFTER:
            found.add(instruction.offset)
        if instruction.opname == "JUMP_BACKWARD" and isinstance(instruction.argval, int):
            found.add(instruction.argval)
        previous = instruction.opname
    if code.co_name == "__del__" and found:
        # Python drops what is raised there, and no line of the finaliser has run: nothing can be done about it.
        found.remove(min(found))
    return frozenset(found)


def misplaced_in(code: CodeType) -> frozenset[int]:
    """Return the offsets of places where an exception would meet another handler than an interrupt does.

    The interpreter looks at its signals at the end of a call, and looks for the handler at the call. A trace function
    raises at the instruction behind it, which may lie behind a ``with`` whose lock is still to be released.
    """
    parse = getattr(dis, "_parse_exception_table", None)  # what dis prints, in bytes; from CPython 3.11 on
    if parse is None:
        return frozenset()
    table = parse(code)

    def handler_at(offset: int) -> int | None:
        return next((entry.target for entry in table if entry.start <= offset < entry.end), None)

    return frozenset(place for place in places_of(code) if handler_at(place) != handler_at(place - _UNIT))


class _Known(NamedTuple):
    """What is known of some code; it keeps the code, whose identity is the key.

    To look code up by itself would hash its constants each time, which takes longer than all the rest.
    """

    code: CodeType
    name: str
    places: frozenset[int]
    misplaced: frozenset[int]


_known: dict[int, _Known] = {}


def _know(code: CodeType) -> _Known:
    known = _known[id(code)] = _Known(
        code, f"{Path(code.co_filename).name}:{code.co_name}", places_of(code), misplaced_in(code)
    )
    return known


def name_of(code: CodeType) -> str:
    """Return the name of a function of s3torch, as ``of`` has it; empty for others' code."""
    known = _known.get(id(code)) or _know(code)
    return known.name if known.places else ""


class _Moment:
    """A moment that is near.

    Args:
        left: Places until then.
        act: What is to be done.
    """

    def __init__(self, left: int, act: Callable[[], None]) -> None:
        self.left = left
        self.act = act


class Tracer:
    """Counts calls and places, and calls back at chosen ones; lets threads take turns.

    Attributes:
        trail: The code of each place of the main thread, if that is to be remembered.
        met: Where something happened, as file, line and function.
    """

    def __init__(self) -> None:
        self.trail: list[CodeType] | None = None
        self.met: list[str] = []
        self._main = threading.get_ident()
        self._awaited: dict[str, list[tuple[int, _Moment]]] = {}
        self._calls: dict[str, int] = {}
        self._near: dict[int, list[_Moment]] = {}
        self._draw: Callable[[], tuple[int, int]] | None = None
        self._switch: Callable[[], None] = lambda: None
        self._until_switch = 0
        self._places_more = 1

    def begin(self, due: Iterable[tuple[Coincidence, Callable[[], None]]], trail: list[CodeType] | None = None) -> None:
        """Begin a step, and to trace the calling thread, if there is anything to wait for.

        Args:
            due: What is to be called when.
            trail: Takes the code of each place; None if nobody wants that.
        """
        self.trail = trail
        self._awaited, self._calls, self._near = {}, {}, {}
        for coincidence, act in due:
            moment = _Moment(coincidence.at, act)
            if coincidence.of:
                self._awaited.setdefault(coincidence.of, []).append((coincidence.call, moment))
            elif coincidence.at:
                self._near.setdefault(self._main, []).append(moment)
        if self._awaited or self._near or trail is not None:
            self.start()

    def take_turns(self, draw: Callable[[], tuple[int, int]], switch: Callable[[], None]) -> None:
        """Let threads take turns from now on.

        Args:
            draw: Returns after how many calls, and how many places more, the next switch is due.
            switch: Passes the turn on.
        """
        self._draw, self._switch = draw, switch
        self._until_switch, self._places_more = draw()

    def end_turns(self) -> None:
        """Let them do so no more."""
        self._draw = None

    def leave(self) -> None:
        """Take down that the calling thread has done its part."""
        sys.settrace(None)
        if self._near.pop(threading.get_ident(), None) and self._draw is not None:
            self._until_switch, self._places_more = self._draw()

    def start(self) -> None:
        """Begin to trace the calling thread."""
        sys.settrace(self._enter)

    def stop(self) -> None:
        """End it."""
        sys.settrace(None)
        self._awaited, self._near = {}, {}

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:  # noqa: ANN401  # as settrace has it
        code = frame.f_code
        known = _known.get(id(code)) or _know(code)
        if not known.places:
            return None
        if self._awaited and known.name in self._awaited and threading.get_ident() == self._main:
            self._count_call(known.name, frame)
        if self._draw is not None:
            self._until_switch -= 1
            if not self._until_switch:
                self._await(threading.get_ident(), [_Moment(self._places_more, self._switch_now)], frame)
        if self.trail is None:
            if not self._near:
                if not (self._awaited or _COPIES_LOCALS) and self._draw is None:
                    sys.settrace(None)
                return None
            if not self._near.get(threading.get_ident()):
                return None
        trace_bytecodes(frame, self._local)
        return self._local

    def _await(self, thread: int, moments: list[_Moment], frame: FrameType) -> None:
        """Count places from now on: in the functions that are called, and in those that have called."""
        self._near.setdefault(thread, []).extend(moments)
        caller = frame.f_back
        while caller is not None:
            if name_of(caller.f_code):
                trace_bytecodes(caller, self._local)
            caller = caller.f_back

    def _count_call(self, name: str, frame: FrameType) -> None:
        """Count a call of a function that something is to happen in or after."""
        count = self._calls[name] = self._calls.get(name, 0) + 1
        waiting = self._awaited[name]
        if near := [moment for call, moment in waiting if call == count]:
            self._await(self._main, near, frame)
        self._awaited[name] = [pair for pair in waiting if pair[0] > count]
        if not self._awaited[name]:
            del self._awaited[name]

    def _local(self, frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401  # as settrace has it
        if event != "opcode":
            return self._local
        thread = threading.get_ident()
        near = self._near.get(thread)
        if not near and self.trail is None:
            leave_bytecodes(frame)
            if _COPIES_LOCALS:
                return self._local
            frame.f_trace = None
            return None
        code = frame.f_code
        if frame.f_lasti not in _known[id(code)].places:
            return self._local
        if self.trail is not None and thread == self._main:
            self.trail.append(code)
        if near:
            self._pass_place(frame, near)
        return self._local

    def _pass_place(self, frame: FrameType, near: list[_Moment]) -> None:
        for moment in near:
            moment.left -= 1
        is_misplaced = frame.f_lasti in _known[id(frame.f_code)].misplaced  # then it is for the next place
        for moment in [moment for moment in near if moment.left <= 0]:
            if is_misplaced and moment.act != self._switch_now:
                continue
            near.remove(moment)
            if moment.act != self._switch_now:
                code = frame.f_code
                self.met.append(f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}")
            moment.act()

    def _switch_now(self) -> None:
        if self._draw is not None:
            self._until_switch, self._places_more = self._draw()
            self._switch()
