"""Which tests call which functions of the library: so a mutant meets the tests that can notice it, the quickest first.

Both classes are plugins of pytest.
"""

from __future__ import annotations

import ast
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

__all__ = ["Recorder", "Selection", "Watched", "reaching"]


class Watched(NamedTuple):
    """What a test has done without a change.

    Attributes:
        name: Its id.
        seconds: How long it took, watched.
        called: The functions that it called: file, below the package, and the line where the function begins.
    """

    name: str
    seconds: float
    called: frozenset[tuple[str, int]]


def reaching(tests: Iterable[Watched], module: str, source: str, line: int) -> list[Watched]:
    """Return the tests that call the function that a line is in, or one within that function; the quickest first.

    Args:
        tests: Of one file.
        module: Where the line is.
        source: Of that module.
        line: Of a function or method.
    """
    first, last = _function_around(ast.parse(source), line)
    return sorted(
        (test for test in tests if any(path == module and first <= at <= last for path, at in test.called)),
        key=lambda test: test.seconds,
    )


def _function_around(tree: ast.AST, line: int) -> tuple[int, int]:
    """Return the first and the last line of the outermost function that a line is in, its decorators included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                return (
                    _function_around(node, line)
                    if isinstance(node, ast.ClassDef)
                    else (first, node.end_lineno or first)
                )
    raise ValueError(f"line {line} is in no function")


class Recorder:
    """Takes down what each test calls, in processes that it forks, too, and which tests fail.

    Args:
        package: The folder of the library.
        notes: A file for what forked processes call.
    """

    def __init__(self, package: Path, notes: Path) -> None:
        self.tests: list[Watched] = []
        self.failed: set[str] = set()
        self._package = f"{package}/"
        self._called: set[tuple[str, int]] = set()
        self._owner = os.getpid()
        self._notes = notes.open("w+b", buffering=0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Watch a test, what it sets up, and the threads that it starts."""
        self._called = set()
        began = time.monotonic()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type] # typeshed knows no None here
            self._called |= self._called_by_forks()
            called = frozenset((path.removeprefix(self._package), line) for path, line in self._called)
            self.tests.append(Watched(item.nodeid, time.monotonic() - began, called))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down a failure."""
        if report.failed:
            self.failed.add(report.nodeid)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self._package):
            return
        called = code.co_filename, code.co_firstlineno
        if called not in self._called:
            self._called.add(called)
            if os.getpid() != self._owner:
                self._notes.write(f"{called[1]} {called[0]}\n".encode())  # they share the place to write at

    def _called_by_forks(self) -> set[tuple[str, int]]:
        self._notes.seek(0)
        lines = self._notes.read().decode().splitlines()
        self._notes.seek(0)
        self._notes.truncate()
        return {(path, int(number)) for number, _, path in (line.partition(" ") for line in lines)}


class Selection:
    """Runs some of the tests, file by file, and ends the process if one of them takes far too long.

    Args:
        tests: In order; those of one file follow each other.
        limits: Seconds, of each.
        log: A descriptor: where it is told that a test took too long.
        current: A file that has the id of the test that was begun last.
    """

    def __init__(self, tests: Sequence[Watched], limits: Sequence[float], log: int, current: Path) -> None:
        self._places = {test.name: place for place, test in enumerate(tests)}
        self._limits = dict(zip(self._places, limits, strict=True))
        self._log, self._current = log, current

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out all others."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._places), key=lambda item: self._places[item.nodeid]
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test; one that takes too long ends the process with status 1."""
        self._current.write_text(item.nodeid)
        with self._watched(self._limits[item.nodeid]):
            return (yield)

    @contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._log)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
