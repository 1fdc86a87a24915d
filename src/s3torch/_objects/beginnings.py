"""The first bytes of many objects, which are read at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from s3torch._transfer.buffers import BytesBuffer

if TYPE_CHECKING:
    from s3torch._objects.fetch import Fetch
    from s3torch._objects.remote import RemoteObject

__all__ = ["Beginning", "read_beginnings"]

T = TypeVar("T")


class Beginning:
    """The first bytes of an object, under way.

    Args:
        remote: The object.
        stop: The byte after the last of them; the object may end before it.

    Attributes:
        remote: As given.
        fetch: The read.
    """

    def __init__(self, remote: RemoteObject, stop: int) -> None:
        self.remote = remote
        self._stop = stop
        self._buffer = BytesBuffer(0)
        self.fetch: Fetch = remote.new_fetch(0, stop, self._place)

    def _place(self, size: int) -> memoryview:
        self._buffer = BytesBuffer(min(size, self._stop))
        return self._buffer.view

    def finish(self) -> bytes:
        """Wait until they are here, and return them.

        Raises:
            S3Error: They could not be read.
        """
        self.fetch.finish()
        return self._buffer.to_bytes()


def read_beginnings(remotes: Iterable[RemoteObject], stop: int, finish: Callable[[Beginning], T]) -> list[T]:
    """Read the first bytes of objects at the same time, and return what is made of each, in order.

    Args:
        remotes: The objects.
        stop: The byte after the last; an object may end before it.
        finish: Waits for one, and returns what is made of it. What it raises ends all others.
    """
    reads: list[Beginning] = []
    try:
        for remote in remotes:
            read = Beginning(remote, stop)
            reads.append(read)  # first: what is in there is cancelled
            read.fetch.begin()
        return [finish(read) for read in reads]
    except BaseException:
        for read in reads:
            read.fetch.cancel()
        raise
