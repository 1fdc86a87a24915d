"""The memory that all adaptive readers of a process share."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["BUDGET", "MemoryBudget", "Share"]

MiB = 1024 * 1024
# Who cannot get the lock for so many seconds goes without memory: readers fetch exactly what is asked for then.
_PATIENCE = 1.0


class MemoryBudget:
    """Counts bytes that are held, up to a limit. For all threads.

    Each holder has a share that says what it holds, and the count is the sum over the shares that are alive. So no
    interrupt between two steps can make them disagree, and what a collected holder held is free.

    A forked child inherits the holders and what they hold, but never the lock, which another thread may have held.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._shares: dict[int, weakref.ref[Share]] = {}
        self._lock = threading.RLock()  # a signal handler may take in the middle of a take
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def __repr__(self) -> str:
        return f"MemoryBudget(held={self.held}, limit={self.limit})"

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        shares = [reference() for reference in list(self._shares.values())]
        return sum([share.held for share in shares if share is not None])

    def share(self) -> Share:
        """Return the share of a new holder."""
        return Share(self)

    def take(self, share: Share, wanted: int) -> int:
        """Take ``wanted`` bytes, or as many as are left; returns how many that is."""
        number, shares = id(share), self._shares
        if number not in shares:
            shares[number] = weakref.ref(share, lambda _: shares.pop(number, None))
        # Who holds the lock may wait for us: a signal handler in the middle of a take, for a thread of its own.
        if not self._lock.acquire(timeout=_PATIENCE):
            return 0
        try:
            taken = max(0, min(wanted, self.limit - self.held))
            share.held += taken
            return taken
        finally:
            self._lock.release()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


class Share:
    """What one holder holds of a budget.

    Attributes:
        held: In bytes. The holder sets it to what it really holds: one assignment.
    """

    __slots__ = ("__weakref__", "_budget", "held")

    def __init__(self, budget: MemoryBudget) -> None:
        self.held = 0
        self._budget = budget

    def take(self, wanted: int) -> int:
        """Take ``wanted`` bytes more, or as many as are left; returns how many that is."""
        return self._budget.take(self, wanted)


# Enough for four windows of the default size. Not tuned; each process, so each DataLoader worker, has its own.
BUDGET = MemoryBudget(256 * MiB)
