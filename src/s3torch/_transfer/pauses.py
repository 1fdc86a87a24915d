"""Exchanges that pause before they are sent again."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from s3torch._transfer.connection import Origin
    from s3torch._transfer.exchange import Exchange

__all__ = ["CALLED_BACK_WITHIN", "Pauses"]

# What waits for a server that was down is sent again within this, in seconds, when it answers something.
CALLED_BACK_WITHIN = 1.0
_NEVER = float("inf")


class _Pause(NamedTuple):
    """They compare by when they end, and then by their order."""

    due: float
    order: int
    exchange: Exchange
    is_cut_off: bool


class Pauses:
    """Keeps exchanges until they are due.

    Args:
        jitter: Returns random numbers in [0, 1).

    Attributes:
        next_due: When the first one is due, in seconds of the loop's clock.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.next_due = _NEVER
        self._jitter = jitter
        self._pauses: list[_Pause] = []
        self._order = itertools.count()
        self._is_down: set[Origin] = set()

    def __iter__(self) -> Iterator[Exchange]:
        return (pause.exchange for pause in self._pauses)

    def add(self, exchange: Exchange, due: float, *, is_cut_off: bool) -> None:
        """Keep an exchange.

        Args:
            exchange: To be sent again.
            due: When.
            is_cut_off: Whether it could not reach its server, or that refuses all.
        """
        if is_cut_off:
            self._is_down.add(exchange.origin)
        heapq.heappush(self._pauses, _Pause(due, next(self._order), exchange, is_cut_off))
        self._note_next()

    def take_due(self, now: float) -> Iterator[Exchange]:
        """Yield those that are due, and keep them no longer."""
        while self._pauses and self._pauses[0].due <= now:
            yield heapq.heappop(self._pauses).exchange
        self._note_next()

    def call_back(self, origin: Origin, now: float) -> None:
        """Shorten the pauses of what an origin could not be reached for, or refused with all else: it answers again."""
        if origin in self._is_down:
            self._is_down.discard(origin)
            for index, pause in enumerate(self._pauses):
                if pause.is_cut_off and pause.exchange.origin == origin:
                    soon = now + self._jitter() * CALLED_BACK_WITHIN
                    self._pauses[index] = pause._replace(due=min(pause.due, soon))
            heapq.heapify(self._pauses)
            self._note_next()

    def drop_done(self) -> None:
        """Drop those that are done: they hold memory that their owner wants back."""
        self._pauses = [pause for pause in self._pauses if not pause.exchange.is_done]
        heapq.heapify(self._pauses)
        self._note_next()

    def clear(self) -> None:
        """Drop all."""
        self._pauses.clear()
        self._note_next()

    def _note_next(self) -> None:
        self.next_due = self._pauses[0].due if self._pauses else _NEVER
