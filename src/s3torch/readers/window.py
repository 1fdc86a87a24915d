"""How the adaptive reader decides what to fetch. Pure: positions go in, byte ranges come out.

A reader is not told what its caller is about to do, so it guesses from what the caller has done. It asks here only for
bytes that it does not hold (a miss), and the answer depends on where the miss lies:

- **Forward**: at or shortly behind the end of what was fetched last. Whoever has read N bytes in a row may well read N
  more, so N bytes are read ahead, up to ``max_window``. The window doubles each time it is used up, and a whole object
  costs ``log2(max_window / 16 KiB) + size / max_window`` fetches, however small the reads. A gap that is skipped is
  not fetched, and breaks no row if it is no longer than the window.
- **A jump**: anywhere else. The row is over: what was asked for is fetched and no more, or 16 KiB if that is less, as
  the header of something mostly stands before it.
- **The head** and **the tail**: formats keep their directories there (HDF5, TIFF, tar; zip, Parquet) and come back to
  them. A small read in the first 16 KiB fetches those, one close to the end fetches the last 32 KiB; both are kept, and
  end no row.
- **A small object** that is touched a second time: the rest of it. One request of S3 takes as long as some hundred kB.

Guesses are paid for: **each byte that was read pays for one that nobody asked for.** So, whatever the pattern,

    bytes fetched <= 2 * bytes read + 64 KiB        (or the whole object, if that is at most 512 KiB)

and a caller that jumps about with tiny reads, once it has used up the 64 KiB, gets what a range-based reader would
fetch, or twice that. What is given up: the first megabyte of an object that is read to its end takes six requests
instead of one, and a window that has grown is lost when the caller really jumps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["BLOCK", "SMALL_OBJECT", "Block", "Kind", "ReadAhead", "Step"]

KiB = 1024

# Bytes of the smallest fetch, and of the head. Not tuned: some pages of a format's header, 0.2 ms of one connection.
BLOCK = 16 * KiB
# The directory of a zip archive of some 400 members, or the footer of a Parquet file of some dozen columns. Not tuned.
TAIL = 32 * KiB
# A read that reaches the end is kept as the tail up to this size; pyarrow begins with the last 64 KiB.
_LONGEST_TAIL = 64 * KiB
# Bytes that may be fetched for nothing before anything was read: enough for head and tail.
SLACK = 64 * KiB
# Objects of at most this many bytes are fetched whole when they are touched again: about one request's time.
SMALL_OBJECT = 512 * KiB


class Block(NamedTuple):
    """Bytes of the object that a reader holds."""

    start: int
    content: bytes


class Kind(Enum):
    """Why a range is fetched, which says where it is kept."""

    HEAD = "head"
    TAIL = "tail"
    FORWARD = "forward"
    JUMP = "jump"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Step:
    """A range ``[start, stop)`` to fetch, and why."""

    start: int
    stop: int
    kind: Kind


class ReadAhead:
    """Watches the reads of one object, and says what to fetch for those that miss.

    Call ``plan`` for a miss, ``note_fetched`` once its range is there, and ``note_read`` for all that the caller gets.

    Args:
        max_window: Bytes to read ahead at most.
    """

    __slots__ = ("_fetched", "_head", "_max_window", "_reach", "_read", "_run", "_stop", "_tail")

    def __init__(self, max_window: int) -> None:
        self._max_window = max_window
        self._read = 0  # bytes that the caller got
        self._fetched = 0
        self._run = 0  # bytes read in a row
        self._reach = 0  # where the row has come to
        self._stop = 0  # where the last fetch of the row ended
        self._head = 0  # where the head that is held ends
        self._tail: int | None = None  # where the tail that is held begins

    @property
    def window(self) -> int:
        """How many bytes to read ahead if the row goes on."""
        return min(max(self._run, BLOCK), self._max_window)

    def plan(self, position: int, stop: int, size: int | None) -> Step:
        """Return what to fetch because ``position`` is not held, and is not behind the end.

        Args:
            position: The first byte that is missing.
            stop: The end of the read, behind ``position``.
            size: Of the object; None while unknown.

        Returns:
            A range that holds ``position``. It ends before ``stop`` only where the object or the tail that is held
            begins, and may reach beyond the object's end while the size is unknown.
        """
        if size is None:
            return self._plan_without_size(position, stop)
        end = size if self._tail is None or position >= self._tail else self._tail
        if size <= SMALL_OBJECT and self._fetched:
            return Step(self._head if position >= self._head else 0, end, Kind.WHOLE)
        stop = min(stop, end)
        allowed = self._allowed(position, stop)
        if self._is_head(stop) and min(BLOCK, end) <= allowed:
            return Step(0, min(BLOCK, end), Kind.HEAD)
        if self._stop and self._reach <= position <= self._stop + self.window:
            ahead = self.window if stop - position < self._max_window else 0  # large reads need no help
            return Step(position, max(stop, min(stop + ahead, position + allowed, end)), Kind.FORWARD)
        start = min(position, max(0, size - TAIL))
        if self._tail is None and size - start <= min(_LONGEST_TAIL, allowed):
            return Step(start, size, Kind.TAIL)
        return Step(position, max(stop, min(position + BLOCK, position + allowed, end)), Kind.JUMP)

    def note_fetched(self, step: Step, count: int) -> None:
        """Take down that a step was done, and how many bytes it brought."""
        self._fetched += count
        if step.kind is Kind.TAIL:
            self._tail = step.start
            return
        if step.kind is Kind.HEAD:
            self._head = count
            if self._stop:
                return
        elif step.kind is Kind.FORWARD:
            self._reach = max(self._reach, step.start)
        else:
            self._run = 0
            self._reach = step.start
        self._stop = step.start + count

    def note_read(self, start: int, stop: int) -> None:
        """Take down that the caller got ``[start, stop)``, which was fetched or held."""
        self._read += stop - start
        if self._reach < stop and start <= self._stop:
            progress = min(stop, self._stop)
            self._run += max(0, progress - max(start, self._reach))
            self._reach = max(self._reach, progress)

    def note_asked(self, count: int) -> None:
        """Take down that a caller asked for bytes whose number it could not know, as of a line."""
        self._read += count

    def note_dropped(self) -> None:
        """Take down that head and tail are not held any more."""
        self._head = 0
        self._tail = None

    def _allowed(self, position: int, stop: int) -> int:
        """How many bytes may be fetched for a read of ``[position, stop)``; see the head of the file."""
        return SLACK + 2 * (self._read + stop - position) - self._fetched

    def _is_head(self, stop: int) -> bool:
        return stop <= BLOCK and not self._head

    def _plan_without_size(self, position: int, stop: int) -> Step:
        if self._is_head(stop):
            return Step(0, BLOCK, Kind.HEAD)
        return Step(position, max(stop, position + BLOCK), Kind.JUMP)
