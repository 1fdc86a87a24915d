"""Facts of an origin: what one transfer has learned of a server, and all others of the process may know.

Flights belong to a thread; facts belong to the process. They are plain values without locks and without descriptors, so
a forked child may go on with what its parent knew. Threads may write them at the same time: then one of two
observations is lost, which changes a limit by as much as one answer does.
"""

from __future__ import annotations

from s3torch._transfer.connection import Origin
from s3torch._transfer.pacing import ConcurrencyWindow, FirstBytes, RetryBudget

__all__ = ["PROCESS_FACTS", "Facts", "OriginFacts"]

# How often the log tells that a server asks for fewer requests, in seconds.
_TOLD_EVERY = 60.0


class OriginFacts:
    """What is known of one origin.

    Attributes:
        is_reached: Whether it has ever answered: an endpoint that never did is more likely mistyped than down.
        first_bytes: How long first bytes took lately.
        retry_budget: What retries are paid from.
    """

    __slots__ = ("_told_of_throttling", "_windows", "first_bytes", "is_reached", "retry_budget")

    def __init__(self) -> None:
        self.is_reached = False
        self.first_bytes = FirstBytes()
        self.retry_budget = RetryBudget()
        self._windows: dict[int, ConcurrencyWindow] = {}
        self._told_of_throttling = -_TOLD_EVERY

    def is_to_tell_of_throttling(self, now: float) -> bool:
        """Whether the log is to tell that it asks for fewer requests; not again within a minute.

        Args:
            now: In seconds of the process's clock.
        """
        if now - self._told_of_throttling < _TOLD_EVERY:
            return False
        self._told_of_throttling = now
        return True

    def window(self, most: int) -> ConcurrencyWindow:
        """Return how many requests an engine may have in flight, out of so many connections."""
        window = self._windows.get(most)
        return window if window is not None else self._windows.setdefault(most, ConcurrencyWindow(most))


class Facts:
    """The facts of all origins."""

    def __init__(self) -> None:
        self._origins: dict[Origin, OriginFacts] = {}

    def of(self, origin: Origin) -> OriginFacts:
        """Return the facts of an origin; nothing is known of a new one."""
        known = self._origins.get(origin)
        return known if known is not None else self._origins.setdefault(origin, OriginFacts())

    def forget(self) -> None:
        """Forget everything, as a test wants it that begins."""
        self._origins.clear()


# One for all clients and threads of the process.
PROCESS_FACTS = Facts()
