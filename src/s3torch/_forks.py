"""Forks beside threads: what a thread has half done at a ``fork``, nobody in the child will ever finish.

Python's own locks survive that, or are made anew; those of a module that is being imported, and OpenSSL's, do not: a
child that needs them waits for ever. So a fork waits for a thread that imports, sets TLS up or asks for credentials.
"""

from __future__ import annotations

import logging  # noqa: F401  # see below
import os
import threading

__all__ = ["NO_FORK", "count_forks"]

# Hold it (``with NO_FORK:``) around what must be whole at a fork; a thread may hold it more than once.
NO_FORK = threading.RLock()

_forks = 0


def count_forks() -> int:
    """Return how often this process, and those that it was forked from, have forked.

    Who notes the number, and finds another one later, may have been copied into another process in between.
    """
    return _forks


def _count() -> None:
    global _forks  # noqa: PLW0603  # one count a process
    _forks += 1


# What was registered last is done first: this lock is taken before that of logging, which a thread may want that holds
# this one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count)  # is done last, under the lock
    os.register_at_fork(before=NO_FORK.acquire, after_in_parent=NO_FORK.release, after_in_child=NO_FORK.release)
