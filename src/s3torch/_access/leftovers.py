"""What a finaliser has left to be sent.

The garbage collector may run a finaliser between any two bytecodes, in the middle of a turn of an engine, too. So a
finaliser sends nothing: it leaves a note here. The next call that sends anything reads it first, and so does the end
of the interpreter.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import deque
from collections.abc import Callable

__all__ = ["LEFT", "WITHIN", "leave", "send"]

# How long what was left may keep the end of the interpreter, or the call that sends it, in seconds. A loop that waits
# looks at its deadline every quarter of a second, and the whole is to take less than two.
WITHIN = 1.5

LEFT: deque[Callable[[float], None]] = deque()

clock = time.monotonic


def leave(act: Callable[[float], None]) -> None:
    """Leave something to be sent; safe from any thread and from the garbage collector.

    Args:
        act: Sends it, within the seconds that it is given. It raises nothing.
    """
    LEFT.append(act)


def send() -> None:
    """Send all that was left."""
    ends_at = clock() + WITHIN
    while LEFT:
        try:
            act = LEFT.popleft()
        except IndexError:  # another thread has taken it
            return
        try:
            act(max(0.0, ends_at - clock()))
        except BaseException:
            LEFT.append(act)
            raise


atexit.register(send)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LEFT.clear)  # it is the parent's
