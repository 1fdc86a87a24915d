"""The memory that all adaptive readers of a process share."""

from __future__ import annotations

import os
import threading

__all__ = ["BUDGET", "MemoryBudget"]

MiB = 1024 * 1024


class MemoryBudget:
    """Counts bytes that are held, up to a limit. For all threads.

    The garbage collector may close a reader, which gives back, while the same thread is counting: so the lock is
    re-entrant, and the count is right between any two calls. A forked child inherits the readers and what they hold,
    so it inherits the count as well, but never the lock, which another thread may have held.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def __repr__(self) -> str:
        return f"MemoryBudget(held={self._held}, limit={self.limit})"

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def take(self, wanted: int) -> int:
        """Take ``wanted`` bytes, or as many as are left; returns how many that is."""
        with self._lock:
            taken = max(0, min(wanted, self.limit - self._held))
            self._held += taken
            return taken

    def give_back(self, count: int) -> None:
        """Give back bytes that were taken."""
        with self._lock:
            self._held -= count
        if self._held < 0:
            raise AssertionError(f"{count} bytes were given back that nobody had taken")

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


# Enough for four windows of the default size. Not tuned; each process, so each DataLoader worker, has its own.
BUDGET = MemoryBudget(256 * MiB)
