"""Where an interrupt may come, what is to end a call must see it."""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType

import pytest

import s3torch

_HOME = Path(s3torch.__file__).parent
with_tables = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no tables of handlers")


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


@with_tables
def test_what_is_looked_for():
    """A loop that begins a ``try`` is found, and one behind a statement is not."""
    loop = "  while True:\n   try:\n    g()\n   except ValueError:\n    continue\n   break\n finally:\n  h()\n"
    assert _unguarded(f"def f():\n try:\n  a = 1\n{loop}") == []
    assert _unguarded(f"def f():\n try:\n{loop}") == ["f"]


def _conditional(source: str) -> list[str]:
    """Return the functions that have a ``while`` with a condition in a ``try`` or a ``with``.

    CPython 3.13 tests the condition once more at the end of the loop, and jumps back by an instruction that belongs to
    no handler: an interrupt there passes every ``except`` and ``finally`` of the function. The jump of ``while True``
    belongs to them. (https://github.com/python/cpython/issues/130279)
    """
    found: list[str] = []

    def look(node: ast.AST, function: str, *, is_guarded: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function, is_guarded = node.name, False
        if isinstance(node, ast.While) and is_guarded and ast.unparse(node.test) != "True":
            found.append(function)
        if isinstance(node, (ast.Try, ast.With)):
            within: list[ast.AST] = [*node.body]
            if isinstance(node, ast.Try) and node.finalbody:
                within += [*node.handlers, *node.orelse]
        else:
            within = []
        for each in ast.iter_child_nodes(node):
            look(each, function, is_guarded=is_guarded or each in within)

    look(ast.parse(source), "", is_guarded=False)
    return found


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("def f():\n try:\n  while a:\n   b()\n finally:\n  c()\n", True),
        ("def f():\n with a:\n  if b:\n   while c:\n    d()\n", True),
        ("def f():\n try:\n  a()\n except b:\n  while c:\n   d()\n finally:\n  e()\n", True),
        ("def f():\n try:\n  while True:\n   b()\n finally:\n  c()\n", False),
        ("def f():\n try:\n  a()\n finally:\n  while b:\n   c()\n", False),
        ("def f():\n with a:\n  def f():\n   while b:\n    c()\n", False),
    ],
)
def test_what_a_condition_is(source: str, is_found: bool):
    """A condition is looked for in all that a handler guards, and nowhere else."""
    assert _conditional(source) == (["f"] if is_found else [])


@pytest.mark.parametrize("find", [pytest.param(_unguarded, marks=with_tables), _conditional])
def test_no_interrupt_passes_what_ends_a_call(find: Callable[[str], list[str]]):
    """No loop of the package jumps back where an interrupt would leave a call without its ``finally``."""
    paths = sorted(_HOME.rglob("*.py"))
    assert len(paths) > 100
    found = {str(path.relative_to(_HOME)): find(path.read_text()) for path in paths}
    assert {name: functions for name, functions in found.items() if functions} == {}
