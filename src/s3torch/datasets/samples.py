"""The samples of one iteration over an iterable dataset."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from s3torch._exclusive import exclusive, in_use
from s3torch.datasets.bad_samples import RAISE, SKIP, BadSamples
from s3torch.datasets.look_ahead import Begun, LookAhead, Source
from s3torch.datasets.members import Item, Items, SampleReaders, SampleTable
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.order import AT_ONCE, Order
from s3torch.datasets.sharding import Position, shard
from s3torch.datasets.stream_cursor import Plan, Progress
from s3torch.errors import BadSamplesError, S3Error
from s3torch.readers import S3Reader

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SampleSource", "Samples"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Items:
    """The objects of an iteration, numbered. It can go back to those that were taken in and not delivered.

    Objects of a table are asked for by their numbers, so that an interrupt costs none of them. Whatever else lists
    them is an iterator, which nobody can ask twice: after an interrupt in it nobody knows what comes next, so that
    is said instead.

    Args:
        begin: Returns what is read, given this; called when the first object is asked for.
        position: Whose objects are wanted.

    Attributes:
        delivered: How many objects are done with.
        owed: Those of them that were skipped, and that others are still to fill in for.
        step: How many objects all ranks and workers together have read when each has read one.
        is_over: Whether the end was told.
    """

    def __init__(self, begin: Callable[[_Items], Plan], position: Position) -> None:
        self._begin: Callable[[_Items], Plan] | None = begin
        self._position = position
        self._first, self.step, self._end = position.first, position.step, 0
        self.is_over = False
        self._table: Items | None = None
        self._order: Order | None = None
        self._ordered: tuple[int, list[int]] = (0, [])  # the number of the first, and the indices from there on
        self._iterator: Iterator[S3BucketKeyData] | None = None
        self.delivered = 0
        self.owed: tuple[int, ...] = ()
        self._taken: deque[tuple[int, S3BucketKeyData]] = deque()
        self._cursor = 0
        self._is_asking = False
        self._failure: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Item]:
        if self._table is None and self._iterator is None:
            self._start()
        number = self._cursor
        if self._table is not None:
            place = self._first + self.step * number
            if place >= self._end:
                raise StopIteration
            index = place if self._order is None else self._index(self._order, number, place)
            item: Item = self._table[index]
        else:
            while self._taken and self._taken[0][0] < self.delivered:
                self._taken.popleft()
            if not self._taken or number > self._taken[-1][0]:
                self._ask(number)
            item = self._taken[number - self._taken[0][0]][1]
        self._cursor = number + 1
        return number, item

    @property
    def handed_out(self) -> int:
        """How many samples have come. Who goes on behind them reads once more what is owed, and others fill in."""
        return self.delivered - len(self.owed)

    def index(self, number: int) -> int:
        """Return which object it is among those of all ranks and workers."""
        place = self._first + self.step * number
        return place if self._order is None else self._index(self._order, number, place)

    def rewind(self) -> None:
        """Go back to the first that was not delivered."""
        self._cursor = self.delivered

    def _start(self) -> None:
        if self._begin is None:
            raise AssertionError("an iteration that has begun and has nothing")
        objects, self._order, consumed = self._begin(self)
        if isinstance(objects, (ObjectTable, SampleTable)):
            self._first = self._position.first + consumed
            self._end = len(objects)
            self._table = objects
        else:
            self._iterator = shard(objects, self._position)
        self._begin = None  # it knows the dataset, which knows this

    def _index(self, order: Order, number: int, place: int) -> int:
        """Return which object comes as this number. Of many at once each costs a tenth."""
        first, indices = self._ordered
        if not first <= number < first + len(indices):
            first, indices = number, order.at(range(place, self._end, self.step)[:AT_ONCE])
            self._ordered = first, indices
        return indices[number - first]

    def _ask(self, number: int) -> None:
        """Take in what the iterator has next, as this number."""
        if self._iterator is None:
            raise AssertionError("a listing that was not begun")
        if self._is_asking:
            raise RuntimeError("This iteration cannot go on: it was interrupted while it was listing. Begin another.")
        self._is_asking = True
        try:
            item = next(self._iterator)
        except StopIteration:
            self._is_asking = False
            if self._failure is None:
                raise
        except Exception as error:
            self._failure = _again(error)
            self._is_asking = False
            raise
        else:
            self._failure = None
            self._taken.append((number, item))
            self._is_asking = False
            return
        # A generator that has failed says that it is at its end. That would be taken for the end of the data.
        raise copy.copy(self._failure)


def _again(error: Exception) -> Exception:
    """Return what is raised when a listing is asked to go on that has failed, without the frames of its failure."""
    if isinstance(error, S3Error):
        return copy.copy(error)
    return RuntimeError(f"This iteration cannot go on, as it has failed before: {type(error).__name__}: {error}")


class SampleSource(Source, Protocol[T_co]):
    """A dataset.

    Attributes:
        _bad_samples: What it does with samples that cannot be made.
    """

    _bad_samples: BadSamples

    def _sample(self, item: Item, reader: S3Reader | SampleReaders) -> T_co:
        """Return what the transform makes of an object, or of those of a sample."""


class Samples(Iterator[T], Generic[T]):
    """Yields samples, and owns the transfers of the objects ahead.

    A sample that cannot be made may be skipped; the transfers of the others go on then. If others are to fill in, the
    object of the last good sample is read once more, or that of the next one where none came before: so as many samples
    come as there are objects.

    After an error nothing is in flight. The next call goes on with the object behind the one that failed; after an
    interrupt (KeyboardInterrupt) with the same one, or with an error if it met the listing.

    Args:
        begin: Returns what is read, given how far that is; called when the first sample is asked for.
        position: Whose samples are wanted.
        window: Of this iteration alone.
        source: The dataset: opens readers, and makes samples of them.
    """

    def __init__(
        self,
        begin: Callable[[Progress], Plan],
        position: Position,
        window: LookAhead,
        source: SampleSource[T],
    ) -> None:
        self._items = _Items(begin, position)
        self._window = window
        self._source = source
        self._is_torn = False
        self._good: tuple[int, Item] | None = None  # the last one
        self._users: dict[int, object] = {}

    def __del__(self) -> None:
        if hasattr(self, "_window"):  # not after an interrupted constructor
            self._window.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Return the next sample.

        Raises:
            ConcurrentUseError: Another thread is in the middle of this.
            S3Error: The listing, or the object, could not be read.
        """
        # As ``exclusive`` does. But behind the sample no call may follow: an interrupt comes at calls, and a sample
        # that it keeps from the caller must not count as delivered.
        token: list[object] = []
        users, items, window = self._users, self._items, self._window
        begun = None
        try:
            if users.setdefault(0, token) is not token:
                raise in_use(self)
            if self._is_torn:
                window.cancel()
                items.rewind()
            try:
                # Until it has gone well: an interrupt may come anywhere, also in what follows an error. It stands here
                # as no loop may begin a try: for an interrupt of its jump back that would be outside of all handlers.
                self._is_torn = True
                while True:
                    begun = None
                    try:
                        begun = self._next_begun()
                        if begun is None:
                            break
                        sample = self._source._sample(begun.item, begun.reader)
                    except Exception as error:
                        found = self._answer(error, begun)
                        if found is RAISE:
                            raise
                        if found is SKIP:
                            continue
                        sample = found  # type: ignore[assignment]  # what the program wants as a sample
                    break
                due, owed = self._due(begun), items.owed[1:]
                if due is None:
                    items.is_over = True
                    raise StopIteration
                self._settle(begun)
            except Exception:
                self._go_past(begun)
                raise
            except BaseException:
                self._cancel(begun)
                raise
            begun = None  # and with it what its reader holds: its finaliser is a call, too
            if due[0] < 0:
                items.owed = owed
            else:
                self._good = due
                items.delivered = due[0] + 1
            self._is_torn = False
            return sample
        finally:
            if 0 in users and users[0] is token:
                del users[0]

    def _next_begun(self) -> Begun | None:
        """Return what is read next: the next object, or a good one once more where another was skipped.

        That has a place below 0, which counts for nothing.
        """
        items = self._items
        if items.owed and self._good is not None:
            number, item = self._good
            return Begun(~number, item, self._source._open(item), 0)
        begun = self._window.take(items, self._source)
        if begun is None and items.owed:
            count, items.owed = len(items.owed), ()
            raise BadSamplesError(
                f"{count} samples of this stream cannot be made, and there is no good one to fill in for them."
            )
        return begun

    def _answer(self, error: Exception, begun: Begun | None) -> object:
        """Return what takes the place of a sample that cannot be made; see BadSamples."""
        bad = self._due(begun)
        if bad is None:  # it is of the listing
            return RAISE
        place, item = bad
        self._window.discard(begun)  # it alone: what was begun behind it goes on
        bad_samples = self._source._bad_samples
        found = bad_samples.answer(error, item, self._items.index(place if place >= 0 else ~place))
        if found is SKIP:
            self._settle(begun)
            if place < 0:
                self._good = None  # it is good no longer
            else:
                if bad_samples.fills and place not in self._items.owed:
                    self._items.owed = (*self._items.owed, place)
                self._items.delivered = place + 1
        return found

    def _settle(self, begun: Begun | None) -> None:
        if begun is not None:  # else the object could not even be opened, and takes no room
            self._window.settle(begun)

    def _due(self, begun: Begun | None) -> tuple[int, Item] | None:
        """Return place and item of what was due: it was begun, or could not even be opened. None: it was the end."""
        return self._window.failed if begun is None else (begun.place, begun.item)

    def _go_past(self, begun: Begun | None) -> None:
        """Cancel everything, and go on behind the object that failed, if it was one."""
        self._cancel(begun)
        bad = self._due(begun)
        if bad is not None and bad[0] >= 0:
            self._items.delivered = bad[0] + 1
        elif bad is not None:
            self._good = None  # it would fail again and again, and the stream never end
        self._items.rewind()
        self._is_torn = False

    def _cancel(self, begun: Begun | None) -> None:
        self._window.discard(begun)
        self._window.cancel()

    @exclusive
    def close(self) -> None:
        """Cancel what is in flight."""
        self._window.cancel()
        self._items.rewind()

    def _what_is_shared(self) -> str:
        return "An iterator over a dataset"
