"""What a finaliser has left to be sent.

The garbage collector may run a finaliser between any two bytecodes, in the middle of a turn of an engine, too. So a
finaliser sends nothing: it leaves a note here. The next call that sends anything reads it first, and so does the end
of the interpreter.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

__all__ = ["LEFT", "WITHIN", "leave", "send"]

# How long what was left may keep the end of the interpreter, or the call that sends it, in seconds. A loop that waits
# looks at its deadline every quarter of a second, and the whole is to take less than two.
WITHIN = 1.5

LEFT: deque[Callable[[float], None]] = deque()

clock = time.monotonic

_log = logging.getLogger(__name__)
_thread = threading.local()


def leave(act: Callable[[float], None]) -> None:
    """Leave something to be sent; safe from any thread and from the garbage collector.

    Args:
        act: Sends it, within the seconds that it is given.
    """
    LEFT.append(act)


def send() -> None:
    """Send all that was left."""
    if getattr(_thread, "is_sending", False):
        return  # what is being sent asks for an engine, too
    ends_at = clock() + WITHIN
    taken: deque[Callable[[float], None]] = deque()
    try:
        _thread.is_sending = True
        while True:
            try:
                # One step, within which Python runs no signal handler: an interrupt finds it in one place or the other.
                taken.extend(islice(iter(LEFT.popleft, None), 1))
            except IndexError:  # nothing is left
                return
            try:
                taken[0](max(0.0, ends_at - clock()))
            except Exception:  # noqa: BLE001  # whoever sends something else has no part in it
                _log.warning("What a finaliser has left could not be sent", exc_info=True)
            taken.clear()
    finally:
        LEFT.extend(taken)  # what an interrupt has left undone
        _thread.is_sending = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LEFT.clear)  # it is the parent's
