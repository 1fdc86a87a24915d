"""The sequential reader: fetches forwards in parallel parts and keeps what it fetched.

What was fetched lies in one buffer of the object's size, filled from the front. The kernel backs only what is filled,
so the first bytes of a large object cost one part. Each time the buffer runs out, twice as much is fetched as the time
before, in parallel parts: reading on to the end is fast, and reading a little stays cheap. Once the object is complete
the buffer becomes a ``bytes`` object without a copy, and ``read()`` of all of it returns that very object.

Who reads large pieces into memory of his own, as torch.load does, has a place for them, and wants no copy. From the
first of these on no more of a large object is kept: a piece is received where it belongs, and together with it what
follows, into a window that is used again and again. That window is as large as the server's distance asks for. A look
at the end of a large object, where a zip archive has its directory, does not fetch all that lies before it either.

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

# A read into the caller's memory of at least so many bytes that are not there is received where it belongs. Not tuned.
_LARGE = 1024 * 1024
# Bytes at the end of an object that are fetched alone. The directory of an archive of 10,000 members is as long.
_TAIL = 1024 * 1024
_LEAST_TAIL = 64 * 1024
# The window behind large pieces, in bytes: its least size, and what a first byte that takes 20 ms asks for. Between the
# two it goes with the square of that time. What is in it is copied once; where the server is near that takes longer
# than waiting, where it is far most of the time would pass with waiting. Not tuned between the two.
_NEAR = 512 * 1024
_FAR = 256 * 1024 * 1024
_FAR_SECONDS = 0.02
# Bytes that may be skipped within a row: what archives put between two members.
_PADDING = 4096
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


class _Window:
    """Bytes of the object behind what is kept, in memory that is used again.

    Attributes:
        start: The first of them.
        stop: The byte after the last.
        began: Where the row of reads has begun that led here.
    """

    __slots__ = ("_buffer", "began", "start", "stop")

    def __init__(self, start: int) -> None:
        self.start = self.stop = self.began = start
        self._buffer: BytesBuffer | None = None

    def room(self, size: int) -> memoryview:
        """Return memory for other bytes, and forget those that are there."""
        self.stop = 0  # it holds nothing, whatever ``start`` is, until ``hold`` has done its last step
        if self._buffer is None or len(self._buffer.view) < size:
            self._buffer = BytesBuffer(size)
        return self._buffer.view[:size]

    def hold(self, start: int, stop: int) -> None:
        """Note that the memory of ``room`` has the bytes ``[start, stop)`` now."""
        self.start = start
        self.stop = stop  # last: an interrupt between the two leaves a window without bytes

    def holds(self, position: int) -> bool:
        """Whether the byte at ``position`` is there."""
        return self.start <= position < self.stop

    def follows(self, start: int) -> bool:
        """Whether a read at ``start`` goes on where the window ends, or within it."""
        return self.start <= start <= self.stop + _PADDING

    def note_read(self, start: int) -> None:
        """Note what is read that is not there: a jump begins another row of reads."""
        if not self.follows(start):
            self.began = start

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes ``[start, stop)``, as far as they are there."""
        if self._buffer is None:
            return memoryview(b"")
        return self._buffer.view[start - self.start : min(stop, self.stop) - self.start]


# What a reader has that has fetched nothing; nobody writes to it.
_NOTHING = _Store()


class SequentialS3Reader(S3Reader):
    """Reads an object forwards and keeps it: re-reading and seeking back cost nothing. Holds the object's size.

    From the first ``readinto`` of 1 MiB or more on it keeps no more of an object that is larger than a part: what was
    read since is fetched again by whoever seeks back to it.
    """

    # What a new one begins with, one that was pickled, and one whose constructor was interrupted.
    _expected = 0
    _pending: Fetch | None = None
    _complete: bytes | None = None
    _store = _NOTHING
    _window = 0
    _tail: tuple[int, bytes] | None = None
    _behind: _Window | None = None

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
        if self._complete is None and self._pending is None and self._behind is None and not self._store.filled:
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
        size, part_size = self._remote.size, self._remote.client_config.part_size
        if size is not None:
            return min(size, self._remote.access.share.bytes_in_flight)
        return min(self._expected or part_size, part_size)

    def _forget(self) -> None:
        self._pending = self._complete = None
        self._store = _NOTHING
        self._window = 0
        self._tail = self._behind = None

    def _learn_size(self) -> int:
        if self._remote.size is None:
            self._fetch_until(1)  # the answer tells the size, and its bytes are wanted anyway
        return super()._learn_size()

    def _read_at(self, start: int, stop: int | None) -> bytes:
        if self._is_apart(start, stop):
            size = self._remote.learn_size()
            stop = size if stop is None else min(stop, size)
            buffer = BytesBuffer(max(0, stop - start))
            try:
                self._readinto_apart(start, buffer.view)
            except BaseException:
                buffer.release()  # whoever keeps the error keeps this frame
                raise
            return buffer.to_bytes()
        self._fetch_until(stop)
        if self._complete is not None:
            return self._complete[start:stop]  # all of it is no copy
        return bytes(self._filled(start, stop))

    def _readinto_at(self, start: int, view: memoryview) -> int:
        stop = start + len(view)
        if len(view) >= _LARGE and self._behind is None:
            self._end_keeping()
        if self._is_apart(start, stop):
            return self._readinto_apart(start, view)
        self._fetch_until(stop)
        found = self._filled(start, stop)
        view[: len(found)] = found
        return len(found)

    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        if self._is_apart(start, start + 1):
            return bytes(self._piece_apart(start, start + _CHUNK)), 0
        self._fetch_until(start + 1)
        if self._complete is not None:
            return self._complete, min(start, len(self._complete))
        return bytes(self._filled(start, start + _CHUNK)), 0

    def _is_apart(self, start: int, stop: int | None) -> bool:
        """Whether some of ``[start, stop)`` is not to be kept: behind what was when that ended, or far away at the end.

        What goes on to the end from what is kept is all of the object, which is kept.
        """
        if self._complete is not None or self._remote.size is None:
            return False
        if start < self._store.filled:
            return self._behind is not None and stop is not None and stop > self._store.filled
        return self._behind is not None or self._is_tail(start)

    def _is_tail(self, start: int) -> bool:
        """Whether ``start`` is so near to the end, and so far from what is there, that what is between can wait."""
        size = self._remote.size or 0
        gap = start - (self._store.filled if self._pending is None else self.footprint)
        is_late = size - _TAIL <= start and gap > max(_TAIL, self._remote.client_config.part_size)
        return is_late and not self._remote.is_strict

    def _end_keeping(self) -> None:
        """Keep no more than what is there, of a large object, as its reader has memory for large pieces."""
        if self._pending is not None:
            self._take(self._pending)
        if self._remote.size is None:
            self._fetch_until(1)
        size = self._remote.size
        is_large = size is not None and size > self._remote.client_config.part_size
        if is_large and self._complete is None and not self._remote.is_strict:
            self._behind = _Window(self._store.filled)

    def _readinto_apart(self, start: int, view: memoryview) -> int:
        """Fill memory with bytes that are not kept, but for those that are there already; see ``_readinto_at``."""
        position, stop = start, min(start + len(view), self._remote.learn_size())
        if position < self._store.filled:
            found = self._filled(position, stop)
            view[: len(found)] = found
            position += len(found)
        while position < stop:
            missing = view[position - start : stop - start]
            held = self._behind
            if held is not None and not held.holds(position) and len(missing) >= _LARGE:
                self._receive(held, position, missing)
                break
            found = self._piece_apart(position, stop)
            missing[: len(found)] = found
            position += len(found)
        return max(0, stop - start)

    def _receive(self, window: _Window, start: int, view: memoryview) -> None:
        """Receive a large piece into ``view``, and what follows it into the window."""
        window.note_read(start)
        stop = start + len(view)
        end = min(self._remote.learn_size(), stop + self._reach(window, start))
        ahead = window.room(end - stop)
        self._remote.read_ranges([(start, stop), (stop, end)], [view, ahead], 0)
        window.hold(stop, end)

    def _piece_apart(self, start: int, stop: int) -> memoryview:
        """Return some of the bytes ``[start, stop)`` that are not kept, from ``start`` on; none at the object's end."""
        size = self._remote.learn_size()
        if start >= size:
            return memoryview(b"")
        if self._tail is not None and start >= self._tail[0]:
            return memoryview(self._tail[1])[start - self._tail[0] : stop - self._tail[0]]
        window = self._behind
        if window is None or (not window.follows(start) and self._is_tail(start)):
            begin = min(start, size - _LEAST_TAIL)
            self._tail = begin, self._remote.read(begin, size)
            return self._piece_apart(start, stop)
        if not window.holds(start):
            window.note_read(start)
            end = min(size, start + max(stop - start, self._reach(window, start)))
            self._remote.read_ranges([(start, end)], [window.room(end - start)], 0)
            window.hold(start, end)
        return window.view(start, stop)

    def _reach(self, window: _Window, start: int) -> int:
        """Return how many bytes a read at ``start`` fetches ahead: see ``_NEAR``; at most twice those of its row."""
        waited = self._remote.usual_first_byte()
        far = 1.0 if waited is None else min(1.0, (waited / _FAR_SECONDS) ** 2)
        most = min(int(_FAR * far), 2 * (start - window.began), self._remote.access.share.bytes_in_flight)
        return max(_NEAR, most)

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
        if self._store.filled != self._remote.size:
            return
        if before and self._remote.is_strict:
            self._verify()
        self._tail = self._behind = None  # all is kept after all
        store = self._store
        self._store = _NOTHING  # first: an interrupt in the next line costs another fetch, and nothing else
        self._complete = store.buffer.to_bytes() if store.buffer is not None else b""

    def _verify(self) -> None:
        """Verify what several fetches have brought; it is fetched anew by the next read if it is damaged."""
        if self._store.buffer is None:
            raise AssertionError("nothing was fetched")
        try:
            self._remote.verifier.prove(0, [self._store.buffer.view])
        except BaseException:
            self._forget()
            raise

    def _next_window(self) -> int:
        next_one = max(self._remote.client_config.part_size, 2 * self._window)
        self._window = min(next_one, self._remote.access.share.bytes_in_flight)
        return self._window
