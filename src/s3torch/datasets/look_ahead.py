"""Objects fetched ahead of their consumer, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from s3torch.datasets.members import Item, SampleReaders
from s3torch.errors import ConcurrentUseError
from s3torch.readers import S3Reader

__all__ = ["Begun", "ExpectedSize", "LookAhead", "Source"]

# Transfers are moved between samples this often at most, in seconds: to move a few at once costs less. Not tuned.
_NUDGE_INTERVAL = 0.0002
# The size of objects is guessed from so many, and never below this, in bytes. Not tuned.
_SIZES_SEEN = 32
_LEAST_EXPECTED = 64 * 1024


class Begun(NamedTuple):
    """An object, or a sample of several, whose transfer has begun.

    Attributes:
        place: What the consumer knows it by: its index, or how many came before it.
        item: What it is.
        reader: Reads it.
        footprint: Bytes that it counts for in the window.
    """

    place: int
    item: Item
    reader: S3Reader | SampleReaders
    footprint: int

    @property
    def objects(self) -> int:
        """How many it counts for in the window."""
        return len(self.reader) if isinstance(self.reader, SampleReaders) else 1


class Source(Protocol):
    """Where readers come from: a dataset."""

    def _open(self, item: Item) -> S3Reader | SampleReaders:
        """Return a reader of an object, or those of a sample."""

    def _nudge(self, interval: float) -> None:
        """Move transfers without waiting, unless that was done within so many seconds."""


class LookAhead:
    """A window of readers whose objects are being fetched while the consumer is busy with the one before them.

    Nothing runs in the background: the transfers move while the consumer waits for one of them, and the kernel receives
    into its buffers meanwhile. A window belongs to one iterator or one sequence of batches, in one thread; whoever ends
    that, in whatever way, cancels the window.

    Args:
        max_objects: How many objects are in the window at most, the one that is being consumed included; those of the
            last sample may exceed it.
        max_bytes: How many bytes they take at most; a larger object is alone in the window.

    Attributes:
        failed: Place and item that ``take`` has raised an error for, as it could not be opened; None if the error was
            of ``items``. ``take`` goes on behind it.
    """

    def __init__(self, max_objects: int, max_bytes: int) -> None:
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._begun: deque[Begun] = deque()
        self._next: Begun | None = None  # has no room yet
        self._error: Exception | None = None
        self._bad: tuple[int, Item] | None = None
        self._bytes = 0
        self._objects = 0  # of those that are begun and not handed out
        self._sizes = ExpectedSize(max_bytes // max_objects)
        self.failed: tuple[int, Item] | None = None

    def __len__(self) -> int:
        return len(self._begun) + (self._next is not None)

    def __iter__(self) -> Iterator[Begun]:
        return iter(self._begun)

    @property
    def places(self) -> list[int]:
        """The places of the objects that were taken in and not handed out yet, in order."""
        return [begun.place for begun in (*self._begun, *filter(None, [self._next]))]

    def go_on(self) -> None:
        """Begin to take from other items, which follow those that were taken in: an error of the old ones is void."""
        self._error = self._bad = None

    def take(self, items: Iterator[tuple[int, Item]], source: Source) -> Begun | None:
        """Hand out the next object, having begun as many of those behind it as fit.

        An error of ``items`` is raised only when all that came before it was handed out: an object that is good is not
        lost for one behind it.

        Args:
            items: Each with its place; taken in as there is room.
            source: The dataset. It is not kept: a dataset keeps windows, and that would be a cycle.

        Returns:
            The object; None if there is none any more.
        """
        self.failed = None
        while self._objects < self._max_objects:
            begun = self._next or self._take_in(items, source)
            if begun is None:
                break
            if self._begun and self._bytes + begun.footprint > self._max_bytes:
                self._next = begun
                break
            self._next = None
            self._begun.append(begun)  # first: what is in there is cancelled
            self._bytes += begun.footprint
            self._objects += begun.objects
            begun.reader.prefetch(send=False)
        source._nudge(_NUDGE_INTERVAL)
        if not self._begun:
            if self._error is not None:
                raise self._taken_error()
            return None
        self._objects -= self._begun[0].objects
        return self._begun.popleft()  # and keep no reference: what it holds is free once it is consumed

    def settle(self, begun: Begun) -> None:
        """Note that the consumer is done with what was handed out last: its memory is free."""
        self._bytes -= begun.footprint
        if begun.item.object_info is None:
            self._sizes.note(begun.reader.known_size)

    def discard(self, begun: Begun | None) -> None:
        """End the transfer of what was handed out last: its consumer has failed."""
        if begun is not None:
            try:
                begun.reader.close()
            except ConcurrentUseError:
                pass  # the consumer has given it to another thread, and it is that one's now

    def cancel(self) -> None:
        """Cancel all that was begun."""
        while self._begun:
            self._begun[0].reader.close()
            self._begun.popleft()  # only now: what was interrupted is found here
        self._next = self._error = self._bad = None
        self._bytes = self._objects = 0

    def _taken_error(self) -> Exception:
        """Return the error, and keep it no longer. A frame that raised one of its own variables would be a cycle."""
        error, self._error = self._error, None
        self.failed, self._bad = self._bad, None
        if error is None:
            raise AssertionError("no error to take")
        return error

    def _take_in(self, items: Iterator[tuple[int, Item]], source: Source) -> Begun | None:
        if self._error is not None:
            return None
        try:
            place, item = next(items)
        except StopIteration:
            return None
        except Exception as error:  # noqa: BLE001  # of a listing or a table, whatever it is: raised by ``take``
            self._error = error
            return None
        try:
            reader = source._open(item)
            if item.object_info is None:
                reader.expect(self._sizes.expected)
            return Begun(place, item, reader, reader.footprint)
        except Exception as error:  # noqa: BLE001  # of an object that cannot be: raised in its turn
            self._error, self._bad = error, (place, item)
            return None


class ExpectedSize:
    """Guesses the size of objects whose size no listing has told, from those that were read.

    To count each as a whole part would let a few small ones fill the window.

    Args:
        first: The guess while nothing is known, in bytes.
    """

    def __init__(self, first: int) -> None:
        self.expected = max(_LEAST_EXPECTED, first)
        self._seen: deque[int] = deque(maxlen=_SIZES_SEEN)

    def note(self, size: int | None) -> None:
        """Learn the size of one, if it is known."""
        if size is not None:
            self._seen.append(size)
            if size > self.expected or len(self._seen) == _SIZES_SEEN:
                largest = max(self._seen)
                self.expected = max(_LEAST_EXPECTED, largest + largest // 4)
                if len(self._seen) == _SIZES_SEEN:
                    self._seen.clear()
