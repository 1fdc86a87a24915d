"""Tracing each bytecode, which each version of CPython wants to be asked for in another way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["end_in_child", "leave_bytecodes", "trace_bytecodes"]


def _frame() -> FrameType:
    return sys._getframe()


# CPython 3.12 tells of no bytecode unless a frame of the process has asked for them before ``sys.settrace``. This one
# has ended: a frame that asks and runs while only other threads are traced crashes the interpreter.
_frame().f_trace_opcodes = True


def trace_bytecodes(frame: FrameType, trace: Callable[[FrameType, str, Any], Any]) -> None:
    """Trace a frame at each of its bytecodes, but not at its lines, from the next one on.

    Args:
        frame: Which; of a thread that ``sys.settrace`` traces.
        trace: Is called with the event ``opcode`` before each of them, and with others.
    """
    frame.f_trace = trace  # first: CPython 3.13 does not hear a frame that asks before it is traced
    frame.f_trace_opcodes, frame.f_trace_lines = True, False


def leave_bytecodes(frame: FrameType) -> None:
    """Trace a frame's bytecodes no more.

    Args:
        frame: Which.
    """
    if sys.version_info < (3, 13):  # there it would end for all frames of the same code, of other threads too
        frame.f_trace_opcodes = False


def end_in_child() -> None:
    """Trace nothing more in a child that was forked from a process of which several threads were traced."""
    # To CPython 3.12 those threads are still there, and bytecodes are told of. A generator that asked for them in the
    # parent, and goes on in the child, crashes it unless there is somebody to tell.
    is_3_12 = (3, 12) <= sys.version_info < (3, 13)
    sys.settrace((lambda *_: None) if is_3_12 else None)
