"""Forks beside threads: what a thread has half done at a ``fork``, nobody in the child will ever finish.

Python's own locks survive that, or are made anew; those of a module that is being imported, and OpenSSL's, do not: a
child that needs them waits for ever. So a fork waits for a thread that imports, sets TLS up or asks for credentials.
"""

from __future__ import annotations

import logging  # noqa: F401  # see below
import os
import threading

__all__ = ["NO_FORK"]

# Hold it (``with NO_FORK:``) around what must be whole at a fork; a thread may hold it more than once.
NO_FORK = threading.RLock()

# What was registered last is done first: this lock is taken before that of logging, which a thread may want that holds
# this one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=NO_FORK.acquire, after_in_parent=NO_FORK.release, after_in_child=NO_FORK.release)
