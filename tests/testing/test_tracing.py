"""Each bytecode is traced, on each version of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Traces a function in two threads; the first has ended to trace, or not begun, when the second does.
SCRIPT = """
import sys, threading
from s3torch.testing.simulate.tracing import leave_bytecodes, trace_bytecodes

def traced():
    return sum([1, 2])

def bytecodes_of(act, *, leave=False):
    places = []
    def local(frame, event, _argument):
        if event == "opcode":
            places.append(frame.f_lasti)
            if leave:
                leave_bytecodes(frame)
                frame.f_trace = None
                return None
        return local
    def trace(frame, _event, _argument):
        if frame.f_code is not traced.__code__:
            return None
        trace_bytecodes(frame, local)
        return local
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return places

alone = bytecodes_of(traced)
assert len(alone) > 4, alone
assert bytecodes_of(traced) == alone

beside, is_traced, is_done = [], threading.Event(), threading.Event()
def act():
    traced()
    is_traced.set()
    is_done.wait()
thread = threading.Thread(target=lambda: beside.append(bytecodes_of(act)), daemon=True)
thread.start()
is_traced.wait()
assert len(bytecodes_of(traced, leave=True)) == 1
assert bytecodes_of(traced) == alone
traced()
is_done.set()
thread.join()
assert beside == [alone]
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython traces bytecodes")
def test_each_bytecode_is_traced():
    """From the first time in a process on, again and again, in each thread by itself; one that leaves gets no more."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
