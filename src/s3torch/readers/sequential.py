"""The sequential reader: fetches forwards in parallel parts and keeps what it fetched.

What was fetched lies in one buffer of the object's size, filled from the front. The kernel backs only what is filled,
so the first bytes of a large object cost one part. Each time the buffer runs out, twice as much is fetched as the time
before, in parallel parts: reading on to the end is fast, and reading a little stays cheap. Once the object is complete
the buffer becomes a ``bytes`` object without a copy, and ``read()`` of all of it returns that very object.

With ``checksums="strict"`` no byte is handed out before all of them are there and verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._transfer.buffers import BytesBuffer
from s3torch.readers.base import S3Reader

if TYPE_CHECKING:
    from s3torch._object import Fetch, RemoteObject

__all__ = ["SequentialS3Reader"]

# A step of reading lines from a buffer that is not complete yet, in bytes: each is a copy. Not tuned.
_CHUNK = 64 * 1024


class SequentialS3Reader(S3Reader):
    """Reads an object forwards and keeps it: re-reading and seeking back cost nothing. Holds the object's size."""

    def __init__(self, remote: RemoteObject) -> None:
        super().__init__(remote)
        self._pending: Fetch | None = None
        self._forget()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._forget()

    def close(self) -> None:
        """Close it, release what it holds, and cancel what was prefetched."""
        if not self.closed:
            if self._pending is not None:
                self._pending.give_up()
            self._forget()
        super().close()

    def prefetch(self, *, send: bool = True) -> None:
        """Begin to fetch the object, as much of it as may be in flight at once, without waiting.

        What was begun moves on whenever the calling thread waits for any transfer. It is lost, and fetched again, if
        the reader is then used in another thread or process.

        Args:
            send: As in ``S3Reader.prefetch``.
        """
        self._check_open()
        if self._complete is None and self._pending is None and not self._fetched:
            self._pending = self._begin(self.footprint)
            if send:
                self._pending.engine.nudge()

    @property
    def footprint(self) -> int:
        """The bytes that ``prefetch`` fetches at most."""
        config, size = self._remote.client_config, self._remote.size
        return config.part_size if size is None else min(size, config.max_bytes_in_flight)

    def _forget(self) -> None:
        self._pending = None
        self._complete: bytes | None = None
        self._buffer: BytesBuffer | None = None
        self._fetched = 0
        self._window = 0

    def _learn_size(self) -> int:
        if self._remote.size is None:
            self._fetch_until(1)  # the answer tells the size, and its bytes are wanted anyway
        return super()._learn_size()

    def _read_at(self, start: int, stop: int | None) -> bytes:
        self._fetch_until(stop)
        if self._complete is not None:
            return self._complete[start:stop]  # all of it is no copy
        return bytes(self._filled(start, stop))

    def _readinto_at(self, start: int, view: memoryview) -> int:
        stop = start + len(view)
        self._fetch_until(stop)
        found = self._filled(start, stop)
        view[: len(found)] = found
        return len(found)

    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        self._fetch_until(start + 1)
        if self._complete is not None:
            return self._complete, min(start, len(self._complete))
        return bytes(self._filled(start, start + _CHUNK)), 0

    def _filled(self, start: int, stop: int | None) -> memoryview:
        if self._complete is not None:
            return memoryview(self._complete)[start:stop]
        if self._buffer is None:
            raise AssertionError("nothing was fetched")
        return self._buffer.view[start : self._fetched if stop is None else min(stop, self._fetched)]

    def _fetch_until(self, stop: int | None) -> None:
        """Have at least ``[0, stop)`` of the object, or all of it for None."""
        if self._remote.is_strict:
            stop = None
        if self._pending is not None and not self._has(stop):
            self._take(self._pending)
        if not self._has(stop):
            self._take(self._begin(stop if stop is None else max(stop, self._fetched + self._next_window())))

    def _has(self, stop: int | None) -> bool:
        return self._complete is not None or (stop is not None and stop <= self._fetched)

    def _begin(self, stop: int | None) -> Fetch:
        return self._remote.begin(self._fetched, stop, self._room)

    def _take(self, fetch: Fetch) -> None:
        """Wait for a fetch that was begun where the buffer ends."""
        self._pending = None
        if not self._remote.is_current(fetch):
            fetch.give_up()
            self._buffer = None  # the other thread's loop may still write there
            return
        before = self._fetched
        self._fetched += fetch.finish()
        if self._fetched == self._remote.size:
            if before and self._remote.is_strict:
                self._verify()
            self._complete = self._buffer.to_bytes() if self._buffer is not None else b""
            self._buffer = None

    def _verify(self) -> None:
        """Verify what several fetches have brought; it is fetched anew by the next read if it is damaged."""
        if self._buffer is None:
            raise AssertionError("nothing was fetched")
        try:
            self._remote.verify_if_whole(self._buffer.view)
        except BaseException:
            self._forget()
            raise

    def _next_window(self) -> int:
        config = self._remote.client_config
        self._window = min(max(config.part_size, 2 * self._window), config.max_bytes_in_flight)
        return self._window

    def _room(self, size: int) -> memoryview:
        if self._buffer is None or not self._fetched:  # what a failed fetch has left may be of another size
            self._buffer = BytesBuffer(size)
        return self._buffer.view[self._fetched :]
