"""The sequential reader: fetches forwards in parallel parts and keeps what it fetched.

What was fetched lies in one buffer of the object's size, filled from the front. The kernel backs only what is filled,
so the first bytes of a large object cost one part. Each time the buffer runs out, twice as much is fetched as the time
before, in parallel parts: reading on to the end is fast, and reading a little stays cheap. Once the object is complete
the buffer becomes a ``bytes`` object without a copy, and ``read()`` of all of it returns that very object.

With ``checksums="strict"`` no byte is handed out before all of them are there and verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._exclusive import exclusive
from s3torch._transfer.buffers import BytesBuffer
from s3torch.readers.base import S3Reader

if TYPE_CHECKING:
    from s3torch._objects.fetch import Fetch

__all__ = ["SequentialS3Reader"]

# A step of reading lines from a buffer that is not complete yet, in bytes: each is a copy. Not tuned.
_CHUNK = 64 * 1024


class _Store:
    """What was fetched, from the front of the object on.

    A request that is under way may refer to it, but not to the reader, which could not be collected then.

    Attributes:
        buffer: Of the object's size; None before it is known.
        filled: Bytes that are there.
    """

    __slots__ = ("buffer", "filled")

    def __init__(self) -> None:
        self.buffer: BytesBuffer | None = None
        self.filled = 0

    def room(self, size: int) -> memoryview:
        """Return the memory behind what is there."""
        if self.buffer is None or not self.filled:  # what a failed fetch has left may be of another size
            self.buffer = BytesBuffer(size)
        return self.buffer.view[self.filled :]


# What a reader has that has fetched nothing; nobody writes to it.
_NOTHING = _Store()


class SequentialS3Reader(S3Reader):
    """Reads an object forwards and keeps it: re-reading and seeking back cost nothing. Holds the object's size."""

    # What a new one begins with, one that was pickled, and one whose constructor was interrupted.
    _expected = 0
    _pending: Fetch | None = None
    _complete: bytes | None = None
    _store = _NOTHING
    _window = 0

    def __del__(self) -> None:
        # The one of io calls ``close``, which takes time for nothing where nothing is under way.
        if self._pending is not None:
            self.close()

    @exclusive
    def close(self) -> None:
        """Close it, release what it holds, and cancel what was prefetched.

        Raises:
            ConcurrentUseError: Another thread is in the middle of a call.
        """
        if not self.closed:
            if self._pending is not None:
                self._pending.cancel()  # before it is forgotten: an interrupted close leaves it to the next one
            self._forget()
        super().close()

    @exclusive
    def prefetch(self, *, send: bool = True) -> None:
        """Begin to fetch the object, as much of it as may be in flight at once, without waiting.

        What was begun moves on whenever the calling thread waits for any transfer. It is lost, and fetched again, if
        the reader is then used in another thread or process.

        Args:
            send: As in ``S3Reader.prefetch``.
        """
        self._check_open()
        if self._complete is None and self._pending is None and not self._store.filled:
            fetch = self._new_fetch(self.footprint)
            try:
                self._pending = fetch
                fetch.begin()
                if send:
                    fetch.nudge()
            except BaseException:
                self._pending = None
                fetch.cancel()
                raise

    def expect(self, size: int) -> None:
        """Say how large the object probably is: what ``prefetch`` asks for if no listing has told the size."""
        self._expected = size

    @property
    def footprint(self) -> int:
        """The bytes that ``prefetch`` fetches at most."""
        config, size = self._remote.client_config, self._remote.size
        if size is not None:
            return min(size, config.max_bytes_in_flight)
        return min(self._expected or config.part_size, config.part_size)

    def _forget(self) -> None:
        self._pending = self._complete = None
        self._store = _NOTHING
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
        store = self._store
        if store.buffer is None:
            self._check_open()  # another thread may have closed it
            raise AssertionError("nothing was fetched")
        return store.buffer.view[start : store.filled if stop is None else min(stop, store.filled)]

    def _fetch_until(self, stop: int | None) -> None:
        """Have at least ``[0, stop)`` of the object, or all of it for None."""
        if self._remote.is_strict:
            stop = None
        if self._pending is not None and not self._has(stop):
            self._take(self._pending)
        if not self._has(stop):
            self._take(self._new_fetch(stop if stop is None else max(stop, self._store.filled + self._next_window())))

    def _has(self, stop: int | None) -> bool:
        return self._complete is not None or (stop is not None and stop <= self._store.filled)

    def _new_fetch(self, stop: int | None) -> Fetch:
        store = self._store
        if store is _NOTHING:
            store = self._store = _Store()
        return self._remote.new_fetch(store.filled, stop, store.room)

    def _take(self, fetch: Fetch) -> None:
        """Wait for a fetch that goes on where the store ends."""
        self._pending = None
        try:
            if fetch.is_here:
                before = self._store.filled
                self._store.filled += fetch.finish()  # no variable: whoever keeps an error keeps this frame
                self._note_completed(before)
                return
        except BaseException:
            fetch.cancel()
            if not self._store.filled:
                self._store = _NOTHING  # whoever keeps the error keeps the reader
            raise
        fetch.cancel()
        self._store = _NOTHING  # the other thread's loop may still write into the old one

    def _note_completed(self, before: int) -> None:
        """Verify the object if all of it is there and must be, and keep it as bytes.

        Args:
            before: How many bytes were there before the last fetch.
        """
        store = self._store
        if store.filled != self._remote.size:
            return
        if before and self._remote.is_strict:
            self._verify(store)
        self._store = _NOTHING  # first: an interrupt in the next line costs another fetch, and nothing else
        self._complete = store.buffer.to_bytes() if store.buffer is not None else b""

    def _verify(self, store: _Store) -> None:
        """Verify what several fetches have brought; it is fetched anew by the next read if it is damaged."""
        if store.buffer is None:
            raise AssertionError("nothing was fetched")
        try:
            self._remote.verifier.prove(0, [store.buffer.view])
        except BaseException:
            self._forget()
            raise

    def _next_window(self) -> int:
        config = self._remote.client_config
        self._window = min(max(config.part_size, 2 * self._window), config.max_bytes_in_flight)
        return self._window
