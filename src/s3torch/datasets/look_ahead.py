"""Objects fetched ahead of their consumer, in order and within bounds."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from s3torch.readers import S3Reader

__all__ = ["LookAhead"]


# Transfers are moved between samples this often at most, in seconds: to move a few at once costs less. Not tuned.
_NUDGE_INTERVAL = 0.0002


class _Started(NamedTuple):
    item: int
    reader: S3Reader
    footprint: int


class LookAhead:
    """A window of readers whose objects are being fetched while the consumer is busy with the one before them.

    Nothing runs in the background: the transfers move while the consumer waits for one of them, and the kernel receives
    into its buffers meanwhile.

    Args:
        max_objects: How many objects are in the window at most, the one that is being consumed included.
        max_bytes: How many bytes they take at most; a larger object is alone in the window.
        nudge: Moves transfers without waiting, unless that was done within the seconds that it is given.
    """

    def __init__(self, max_objects: int, max_bytes: int, nudge: Callable[[float], None]) -> None:
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._nudge = nudge
        self._started: deque[_Started] = deque()
        self._waiting: _Started | None = None
        self._bytes = 0

    @property
    def indices(self) -> list[int]:
        """The indices of the readers that were taken in and not handed out yet, in order."""
        return [started.item for started in (*self._started, *filter(None, [self._waiting]))]

    def through(self, readers: Iterator[tuple[int, S3Reader]], count: int | None = None) -> Iterator[S3Reader]:
        """Hand readers out in order, having started as many of those behind them as fit.

        If the consumer stops before the end, or anything is raised, all that was started is cancelled.

        Args:
            readers: Each with an index; taken in as there is room.
            count: How many to hand out; None hands out all. Those started beyond are kept for the next call.
        """
        try:
            for _ in itertools.repeat(None) if count is None else range(count):
                self._fill(readers)
                if not self._started:
                    return
                footprint = self._started[0].footprint
                yield self._started.popleft().reader  # and keep no reference: what it holds is free once it is consumed
                self._bytes -= footprint
            self._nudge(0.0)  # whoever asked for so many will be busy with them
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Cancel all that was started."""
        while self._started:
            self._started.popleft().reader.close()
        self._waiting = None
        self._bytes = 0

    def _fill(self, readers: Iterator[tuple[int, S3Reader]]) -> None:
        while len(self._started) < self._max_objects:
            if self._waiting is None:
                index, reader = next(readers, (0, None))
                if reader is None:
                    break
                self._waiting = _Started(index, reader, reader.footprint)
            if self._started and self._bytes + self._waiting.footprint > self._max_bytes:
                break
            started, self._waiting = self._waiting, None
            started.reader.prefetch(send=False)
            self._started.append(started)
            self._bytes += started.footprint
        self._nudge(_NUDGE_INTERVAL)
