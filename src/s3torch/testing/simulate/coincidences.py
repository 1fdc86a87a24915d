"""What happens in the middle of a step: an interrupt, a signal handler, a collection, another thread's turn.

Each coincidence names the step of the program that it meets, and the moment: the n-th place in s3torch where this
interpreter looks for signals (``at``), or the n-th time that the network is waited for (``select``). Places are counted
by running the program once without it, so that it is always inside.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import s3torch

if TYPE_CHECKING:
    from s3torch.testing.simulate.play import Play
    from s3torch.testing.simulate.steps import Step

__all__ = ["Coincidence", "Collect", "Forget", "Interrupt", "Lose", "Replace", "Signal", "Tracer", "places_of"]


@dataclass(frozen=True, kw_only=True)
class Coincidence:
    """Something that happens in the middle of a step.

    Args:
        step: Which step of the program.
        at: Which place of those where signals are looked for, from 1; 0 for none.
        select: Which wait for the network, from 1; 0 for none.
    """

    step: int
    at: int = 0
    select: int = 0

    def happen(self, play: Play) -> None:
        """Let it happen."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Interrupt(Coincidence):
    """Ctrl-C."""

    def happen(self, play: Play) -> None:
        """Raise KeyboardInterrupt."""
        play.interrupted_at = play.world.now
        play.has_interrupted = True
        raise KeyboardInterrupt("simulated")


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Collect(Coincidence):
    """The garbage collector."""

    def happen(self, play: Play) -> None:
        """Collect."""
        del play
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class Forget(Coincidence):
    """The last reference to the exceptions that were kept goes away."""

    def happen(self, play: Play) -> None:
        """Drop them."""
        play.kept.clear()


@dataclass(frozen=True, kw_only=True)
class Lose(Coincidence):
    """The last reference to a reader, a writer or an iterator goes away.

    Args:
        name: Which.
    """

    name: str = ""

    def happen(self, play: Play) -> None:
        """Drop it."""
        play.drop(self.name)


@dataclass(frozen=True, kw_only=True)
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
    return frozenset(found)


_known_places: dict[CodeType, frozenset[int]] = {}


class Tracer:
    """Counts the places of the main thread, and calls back at chosen ones; lets threads take turns.

    Attributes:
        count: Places so far, since it was last set to 0.
        is_on: Whether it counts now.
        due: What is to be called at which count.
        tick: Called for each place of any thread.
        trail: The code of each place, if that is to be remembered.
        met: Where something happened, as file, line and function.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_on = False
        self.due: dict[int, list[Callable[[], None]]] = {}
        self.tick: Callable[[], None] | None = None
        self.trail: list[CodeType] | None = None
        self.met: list[str] = []
        self._main = threading.get_ident()

    def start(self) -> None:
        """Begin to trace the calling thread."""
        sys.settrace(self._enter)

    def stop(self) -> None:
        """End it."""
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:  # noqa: ANN401  # as settrace has it
        code = frame.f_code
        places = _known_places.get(code)
        if places is None:
            places = _known_places[code] = places_of(code)
        if not places:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if threading.get_ident() == self._main:
            return self._local_of_main
        return self._local_of_other

    def _local_of_main(self, frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401  # as settrace has it
        if event == "opcode" and self.is_on and frame.f_lasti in _known_places[frame.f_code]:
            self.count += 1
            if self.trail is not None:
                self.trail.append(frame.f_code)
            if self.count in self.due:
                code = frame.f_code
                self.met.append(f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}")
                for action in self.due.pop(self.count):
                    action()
            if self.tick is not None:
                self.tick()
        return self._local_of_main

    def _local_of_other(self, frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401  # as settrace has it
        if event == "opcode" and self.tick is not None and frame.f_lasti in _known_places[frame.f_code]:
            self.tick()
        return self._local_of_other
