"""Which bytes of a checkpoint's files the items of a load plan need, and which of them are read together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import ReadItem

from s3torch.checkpoint.dcp.layout import Layout

__all__ = ["Read", "Span", "spans"]


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of a file that one item of a plan needs.

    Attributes:
        item: Of the plan.
        path: Of the file, below the checkpoint's.
        start: First byte.
        stop: The byte after the last.
        layout: Of the rows that these bytes are; None: they are the item as it was stored.
    """

    item: ReadItem
    path: str
    start: int
    stop: int
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``[start, stop)`` of a file, and the reads that they serve."""

    path: str
    start: int
    stop: int
    reads: tuple[Read, ...]

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.stop - self.start

    def contents(self, content: memoryview) -> Iterator[tuple[Read, memoryview]]:
        """Return each read with its part of the bytes."""
        return ((read, content[read.start - self.start : read.stop - self.start]) for read in self.reads)


def spans(reads: Iterable[Read], max_gap: int, max_size: int) -> list[Span]:
    """Join reads of the same file that overlap or lie near each other.

    Args:
        reads: In any order.
        max_gap: Bytes between two reads that are read for nothing rather than sending another request.
        max_size: Bytes of a span at most, unless a single read is larger.
    """
    joined: list[Span] = []
    for read in sorted(reads, key=lambda read: (read.path, read.start, read.stop)):
        last = joined[-1] if joined else None
        if last is not None and last.path == read.path and read.start <= last.stop + max_gap:
            stop = max(last.stop, read.stop)
            if stop == last.stop or stop - last.start <= max_size:
                joined[-1] = Span(last.path, last.start, stop, (*last.reads, read))
                continue
        joined.append(Span(read.path, read.start, read.stop, (read,)))
    return joined
