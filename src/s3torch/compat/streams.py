"""What reader constructors are given: ``get_object_info`` and ``get_stream``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from s3torch._objects.fetch import Fetch, Place
from s3torch._objects.remote import RemoteObject
from s3torch.client import S3Client
from s3torch.compat.wording import worded
from s3torch.errors import ArgumentError, TruncatedBodyError

if TYPE_CHECKING:
    from typing_extensions import Self

    from s3torch._aws.listing import KnownObject

__all__ = [
    "GetObjectInfo",
    "GetObjectStream",
    "GetStreamCallable",
    "ObjectStreams",
    "StreamedObject",
    "WholeStream",
    "remote_object",
]

GetObjectInfo = Callable[[], "KnownObject"]


class GetStreamCallable(Protocol):
    """What constructors are given to open streams."""

    def __call__(self, start: int | None = None, end: int | None = None) -> Iterable[bytes]:
        """Return the bytes ``[start, end)`` of the object, in parts."""


class GetObjectStream:
    """Iterates over the bytes ``[start, end)`` of an object, in parts. Begun, its first part is there.

    Attributes:
        bucket: Of the object.
        key: Of the object.
    """

    def __init__(self, remote: RemoteObject, start: int | None, end: int | None) -> None:
        self.bucket = remote.bucket
        self.key = remote.key
        self._remote = remote
        self._position = start or 0
        self._end = end
        self._first: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part, self._first = self._first, None
        if part is None:
            part = self._read_part()
        if not part:
            raise StopIteration
        self._position += len(part)
        return part

    def begin(self) -> Self:
        """Read the first part: what is wrong with the object shows now, as with the stream of s3torchconnector."""
        self._first = self._read_part()
        return self

    @worded
    def _read_part(self) -> bytes:
        stop = self._position + self._remote.client_config.part_size
        return self._remote.read(self._position, stop if self._end is None else min(stop, self._end))

    def tell(self) -> int:
        """Return the position in the object of what comes next, in bytes."""
        return self._position


class ObjectStreams:
    """The ``get_stream`` of a client: returns streams of one object.

    Args:
        remote: The object, which readers of s3torch read without a stream.
    """

    def __init__(self, remote: RemoteObject) -> None:
        self.remote = remote

    def __call__(self, start: int | None = None, end: int | None = None) -> GetObjectStream:
        """Return a stream of ``[start, end)``, which has begun; None is the object's begin or end."""
        return GetObjectStream(self.remote, start, end).begin()


class WholeStream:
    """A ``get_stream`` that cuts ranges out of one stream of everything, which it opens without arguments.

    Args:
        get_stream: Of the program's own.
    """

    def __init__(self, get_stream: GetStreamCallable) -> None:
        self._get_stream = get_stream

    def __call__(self, start: int | None = None, end: int | None = None) -> list[bytes]:
        """Return the bytes ``[start, end)`` in one part."""
        return [self._content[start:end]]

    @cached_property
    def _content(self) -> bytes:
        return b"".join(self._get_stream())


def remote_object(bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> RemoteObject:
    """Return what a reader reads that is made of these arguments.

    Raises:
        ArgumentError: The bucket is empty.
    """
    if isinstance(get_stream, ObjectStreams):
        return get_stream.remote
    if not bucket:
        raise ArgumentError("Bucket should be specified")
    return StreamedObject(bucket, key, get_object_info, get_stream)


class StreamedObject(RemoteObject):
    """An object that comes from a ``get_stream`` of the program's own, range by range.

    Args:
        bucket: Of the object.
        key: Of the object.
        get_object_info: Tells its size.
        get_stream: Called as ``get_stream(start, end)``, returns an iterable of bytes.
    """

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> None:
        super().__init__(S3Client()._access, bucket, key)
        self._get_object_info = get_object_info
        self._get_stream = get_stream

    def learn_size(self) -> int:
        """Return the size in bytes, as ``get_object_info`` tells it."""
        if self.size is None:
            self.size = self._get_object_info().size
        return self.size

    def new_fetch(self, start: int, stop: int | None, place: Place, *, proves_ranges: bool = False) -> Fetch:
        """Return what reads the range when it is waited for; nothing can be verified."""
        del proves_ranges
        return _StreamFetch(self, start, stop, place)

    def read_ranges(  # noqa: D102  # as RemoteObject
        self,
        ranges: Iterable[tuple[int, int]],
        views: Iterable[memoryview],
        max_gap: int,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        del max_gap, progress
        for (start, _), view in zip(ranges, views, strict=True):
            self.read_into(start, view)

    def stream_into(self, start: int, view: memoryview) -> None:
        """Fill memory from a stream of its range.

        Raises:
            TruncatedBodyError: The stream ends before.
        """
        count = 0
        for part in self._get_stream(start, start + len(view)):
            piece = memoryview(part)[: len(view) - count]
            view[count : count + len(piece)] = piece
            count += len(piece)
            if count == len(view):
                return
        raise TruncatedBodyError(
            f"The stream of s3://{self.bucket}/{self.key} has ended after {count} of {len(view)} bytes.",
            bucket=self.bucket,
            key=self.key,
        )


class _StreamFetch(Fetch):
    """A read from a stream, which begins when it is waited for."""

    is_here = True

    def __init__(self, remote: StreamedObject, start: int, stop: int | None, place: Place) -> None:
        self._streamed = remote
        self._range = start, stop
        self._placed = place

    def begin(self) -> None:
        """Do nothing: it begins when it is waited for."""

    def nudge(self) -> None:
        """Do nothing: nothing has begun."""

    def finish(self) -> int:
        start, stop = self._range
        size = self._streamed.learn_size()
        count = max(0, (size if stop is None else min(stop, size)) - start)
        if count:
            self._streamed.stream_into(start, self._placed(size)[:count])
        return count

    def cancel(self) -> None:
        """Do nothing: nothing has begun."""
