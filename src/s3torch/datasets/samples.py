"""The samples of one iteration over an iterable dataset."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from s3torch._exclusive import exclusive
from s3torch.datasets.look_ahead import LookAhead, Source
from s3torch.datasets.objects import S3BucketKeyData
from s3torch.errors import S3Error
from s3torch.readers import S3Reader

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SampleSource", "Samples"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Items:
    """The objects of an iteration, numbered. It can go back to those that were taken in and not delivered.

    Args:
        listing: The objects. If it fails once, what comes later is not taken for its end.
    """

    def __init__(self, listing: Iterator[S3BucketKeyData]) -> None:
        self._listing = listing
        self._taken: deque[S3BucketKeyData] = deque()
        self._delivered = 0
        self._cursor = 0
        self._failure: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, S3BucketKeyData]:
        if self._cursor == len(self._taken):
            self._taken.append(self._next_of_listing())
        item = self._taken[self._cursor]
        self._cursor += 1
        return self._delivered + self._cursor, item

    def deliver(self) -> None:
        """Note that the first of those that were taken in is done with."""
        self._taken.popleft()
        self._delivered += 1
        self._cursor -= 1

    def rewind(self) -> None:
        """Go back to the first that was not delivered."""
        self._cursor = 0

    def _next_of_listing(self) -> S3BucketKeyData:
        try:
            item = next(self._listing)
        except StopIteration:
            if self._failure is None:
                raise
        except BaseException as error:
            self._failure = _again(error)
            raise
        else:
            self._failure = None
            return item
        # A generator that has failed says that it is at its end. That would be taken for the end of the data.
        raise copy.copy(self._failure)


def _again(error: BaseException) -> Exception:
    """Return what is raised when a listing is asked to go on that has failed, without the frames of its failure."""
    if isinstance(error, S3Error):
        return copy.copy(error)
    return RuntimeError(f"This iteration cannot go on, as it has failed before: {type(error).__name__}: {error}")


class SampleSource(Source, Protocol[T_co]):
    """A dataset."""

    def _sample(self, item: S3BucketKeyData, reader: S3Reader) -> T_co:
        """Return what the transform makes of an object."""


class Samples(Iterator[T], Generic[T]):
    """Yields samples, and owns the transfers of the objects ahead.

    After an error nothing is in flight. The next call goes on with the object behind the one that failed; after an
    interrupt (KeyboardInterrupt) with the same one.

    Args:
        listing: The objects.
        window: Of this iteration alone.
        source: The dataset: opens readers, and makes samples of them.
    """

    def __init__(
        self,
        listing: Iterator[S3BucketKeyData],
        window: LookAhead,
        source: SampleSource[T],
    ) -> None:
        self._items = _Items(listing)
        self._window = window
        self._source = source
        self._users: dict[int, object] = {}

    def __del__(self) -> None:
        if hasattr(self, "_window"):  # not after an interrupted constructor
            self._window.cancel()

    def __iter__(self) -> Self:
        return self

    @exclusive
    def __next__(self) -> T:
        """Return the next sample.

        Raises:
            ConcurrentUseError: Another thread is in the middle of this.
            S3Error: The listing, or the object, could not be read.
        """
        begun = None
        try:
            begun = self._window.take(self._items, self._source)
            if begun is None:
                raise StopIteration
            sample = self._source._sample(begun.item, begun.reader)
            self._window.settle(begun)
        except BaseException as error:
            self._window.discard(begun)
            self._window.cancel()
            if begun is not None and isinstance(error, Exception):
                self._items.deliver()
            self._items.rewind()
            raise
        self._items.deliver()
        return sample

    @exclusive
    def close(self) -> None:
        """Cancel what is in flight."""
        self._window.cancel()
        self._items.rewind()

    def _what_is_shared(self) -> str:
        return "An iterator over a dataset"
