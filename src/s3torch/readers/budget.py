"""The memory that all adaptive readers of a process share."""

from __future__ import annotations

import weakref

__all__ = ["BUDGET", "MemoryBudget", "Share"]

MiB = 1024 * 1024


class MemoryBudget:
    """Counts bytes that are held, up to a limit. For all threads.

    Each holder has a share that says what it holds, and the count is the sum over the shares that are alive. So no
    interrupt between two steps can make them disagree, and what a collected holder held is free.

    There is no lock: an interrupt may leave one locked, a fork may copy one that another thread has, and a signal
    handler may wait for what it came into the middle of.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._shares: dict[int, weakref.ref[Share]] = {}

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
        """Take ``wanted`` bytes, or as many as are left; returns how many that is.

        All are taken first, and what is too much is given back. So of threads that do this at the same time each sees
        what the others take, and what they keep is never more than the limit; it may be less than was left.
        """
        number, shares = id(share), self._shares
        if number not in shares:
            shares[number] = weakref.ref(share, lambda _: shares.pop(number, None))
        before = share.held
        share.held = before + wanted
        taken = max(0, wanted - max(0, self.held - self.limit))
        share.held = before + taken
        return taken


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
