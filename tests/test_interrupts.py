"""Where an interrupt may come, what is to end a call must see it."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType

import pytest

import s3torch

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no tables of handlers")
_HOME = Path(s3torch.__file__).parent


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _handler(code: CodeType, offset: int) -> int | None:
    entries = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]  # from Python 3.11 on
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), None)


def _unguarded(source: str) -> list[str]:
    """Return the loops whose jumps back are in a ``try``, while what stands before them is not.

    CPython looks for interrupts after the jump, and for their handler at the instruction before the one where it is
    then. Before a loop that a ``try`` begins with that is the ``try`` itself, which is outside of all handlers: an
    interrupt there passes every ``except`` and ``finally`` of the function.
    """
    found = []
    for code in _codes(compile(source, "source", "exec")):
        instructions = list(dis.get_instructions(code))
        before = {each.offset: earlier.offset for earlier, each in pairwise(instructions)}
        for each in instructions:
            if each.opname != "JUMP_BACKWARD" or _handler(code, each.offset) is None:
                continue
            if _handler(code, before[each.argval]) is None:
                found.append(code.co_name)
    return found


def test_what_is_looked_for():
    """A loop that begins a ``try`` is found, and one behind a statement is not."""
    loop = "  while True:\n   try:\n    g()\n   except ValueError:\n    continue\n   break\n finally:\n  h()\n"
    assert _unguarded(f"def f():\n try:\n  a = 1\n{loop}") == []
    assert _unguarded(f"def f():\n try:\n{loop}") == ["f"]


def test_no_interrupt_passes_what_ends_a_call():
    """No loop of the package begins where an interrupt would leave a call without its ``finally``."""
    paths = sorted(_HOME.rglob("*.py"))
    assert len(paths) > 100
    found = {str(path.relative_to(_HOME)): _unguarded(path.read_text()) for path in paths}
    assert {name: functions for name, functions in found.items() if functions} == {}
