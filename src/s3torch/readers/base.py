"""What all readers share: position, size, the checks of arguments, and the io calls built on three primitives.

A kind of reader says how bytes are fetched (``_read_at``, ``_readinto_at``) and what is at hand for reading lines
(``_chunk_at``). It never sees a position that is negative, or a request on a closed reader.
"""

from __future__ import annotations

import io
import operator
from abc import abstractmethod
from typing import TYPE_CHECKING, SupportsIndex

from s3torch import _buffer
from s3torch._exclusive import exclusive
from s3torch._file import S3File
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer


__all__ = ["S3Reader"]

# What read1() without a size returns at most, in bytes; io.TextIOWrapper asks in such steps. Not tuned.
_READ1_SIZE = 64 * 1024


class S3Reader(S3File):
    """A read-only binary file over one object.

    No request is sent before the first read. A reader may be handed from thread to thread. Two at the same time get a
    ConcurrentUseError. It pickles as what it reads and its position, without what it holds.

    Reads are never short in the middle: ``read(n)`` returns n bytes unless the object ends before, or raises. All
    reads of one reader are of one version of the object; if it is replaced meanwhile they raise ObjectChangedError.
    """

    _noun = "reader"

    def __init__(self, remote: RemoteObject) -> None:
        super().__init__(remote.bucket, remote.key)
        self._remote = remote
        self._position = 0

    def __repr__(self) -> str:
        size = "unknown" if self._remote.size is None else self._remote.size
        state = " closed" if self.closed else ""
        return f"<{type(self).__name__} s3://{self.bucket}/{self.key} position={self._position} size={size}{state}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        return super().__reduce_ex__(max(2, operator.index(protocol)))  # 0 and 1 refuse what derives from io

    def __getstate__(self) -> dict[str, object]:
        return {"_bucket": self.bucket, "_key": self.key, "_remote": self._remote, "_position": self._position}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._users = {}

    @property
    @exclusive
    def size(self) -> int:
        """The object's size in bytes; asks for it if no listing or answer has told it yet."""
        self._check_open()
        return self._learn_size()

    def readable(self) -> bool:
        """Whether it can be read: yes, while it is open."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Whether the position can be changed: yes, while it is open."""
        self._check_open()
        return True

    def writable(self) -> bool:
        """Whether it can be written: no."""
        self._check_open()
        return False

    def tell(self) -> int:
        """Return the position in bytes."""
        self._check_open()
        return self._position

    @exclusive
    def seek(self, offset: SupportsIndex, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; beyond the end stays at the end, as in s3torchconnector.

        Args:
            offset: In bytes.
            whence: SEEK_SET, SEEK_CUR or SEEK_END: what the offset is relative to.

        Returns:
            The new position.

        Raises:
            ArgumentError: The position would be negative, or ``whence`` is unknown; it stays as it was.
            ArgumentTypeError: ``offset`` is not an integer.
        """
        self._check_open()
        target = _buffer.as_index("offset", offset)
        whence = _buffer.as_index("whence", whence)
        if whence == io.SEEK_CUR:
            target += self._position
        elif whence == io.SEEK_END:
            target += self._learn_size()
        elif whence != io.SEEK_SET:
            raise ArgumentError(f"Seek must be passed SEEK_CUR, SEEK_SET, or SEEK_END (1, 0 or 2), got {whence}.")
        if target < 0:
            raise ArgumentError(
                f"negative seek value {target}: s3://{self.bucket}/{self.key} begins at 0.",
                bucket=self.bucket,
                key=self.key,
            )
        if target > self._position:  # where it stands was inside, or at the end
            target = min(target, self._learn_size())
        self._position = target
        return target

    @exclusive
    def read(self, size: SupportsIndex | None = -1, /) -> bytes:
        """Read ``size`` bytes, or up to the end if there are fewer; None or -1 reads to the end.

        Raises:
            NotFoundError: There is no such bucket or object.
            ObjectChangedError: The object was replaced since it was listed or first read.
            S3Error: Any other failure; the position stays as it was.
        """
        self._check_open()
        count = -1 if size is None else _buffer.as_index("size", size)
        stop = None if count < 0 else self._position + count
        if stop == self._position:
            return b""
        data = self._read_at(self._position, stop)
        self._position += len(data)
        return data

    @exclusive
    def read1(self, size: SupportsIndex | None = -1, /) -> bytes:
        """Read some bytes, up to ``size`` of them: those at hand, or else what one request brings."""
        self._check_open()
        limit = -1 if size is None else _buffer.as_index("size", size)
        if limit == 0:
            return b""
        chunk, offset = self._chunk_at(self._position)
        data = chunk[offset : offset + (limit if limit > 0 else _READ1_SIZE)]
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read to the end."""
        return self.read()

    @exclusive
    def readinto(self, buffer: Buffer, /) -> int:
        """Read into memory until it is full or the object ends.

        Args:
            buffer: Writable and C-contiguous, of items of any type: a bytearray, a numpy array, ...

        Returns:
            How many bytes were read; 0 at the end.

        Raises:
            ArgumentTypeError: The buffer is read-only, or none.
            ArgumentError: It is not C-contiguous.
            S3Error: As ``read``; the buffer may be partly overwritten then.
        """
        self._check_open()
        view = _buffer.writable_bytes(buffer)
        count = self._readinto_at(self._position, view) if len(view) else 0
        self._position += count
        return count

    def readinto1(self, buffer: Buffer, /) -> int:
        """Read into memory; the same as ``readinto``."""
        return self.readinto(buffer)

    @exclusive
    def read_ranges(
        self,
        ranges: Iterable[tuple[int, int]],
        into: Iterable[Buffer] | None = None,
        *,
        max_gap: int = DEFAULT_MAX_GAP,
    ) -> list[bytes] | None:
        """Read many ranges concurrently; the position stays where it is. See ``S3Client.read_ranges``."""
        self._check_open()
        return self._remote.read_vector(ranges, into, max_gap)

    @exclusive
    def readline(self, size: SupportsIndex | None = -1, /) -> bytes:
        """Read up to and including the next newline, at most ``size`` bytes.

        Raises:
            S3Error: As ``read``; the position stays as it was.
        """
        self._check_open()
        limit = -1 if size is None else _buffer.as_index("size", size)
        pieces: list[bytes] = []
        missing, position = limit, self._position
        while missing:
            chunk, offset = self._chunk_at(position)
            newline = chunk.find(b"\n", offset) + 1
            stop = newline or len(chunk)
            if missing > 0:
                stop = min(stop, offset + missing)
                missing -= stop - offset
            pieces.append(chunk[offset:stop])
            position += stop - offset
            if stop in (newline, offset):
                break
        line = b"".join(pieces)
        self._position = position  # only now: a line that fails in the middle is read again from its beginning
        return line

    def write(self, _data: Buffer, /) -> int:
        """Refuse: a reader cannot write."""
        raise io.UnsupportedOperation(f"{self!r} is a reader; write by S3Client.put_object or S3Checkpoint.writer")

    def prefetch(self, *, send: bool = True) -> None:
        """Begin to fetch what this kind of reader would fetch anyway, without waiting; most kinds: nothing.

        What was begun moves on whenever the calling thread waits for any transfer.

        Args:
            send: Send the requests now. Else they are sent when the calling thread waits for any transfer, which
                takes less time for many readers.
        """
        del send
        self._check_open()

    def expect(self, size: int) -> None:
        """Say how large the object probably is, where that is not known: ``prefetch`` asks for so much then."""

    @property
    def known_size(self) -> int | None:
        """The object's size in bytes, or None: unlike ``size``, it asks nobody."""
        return self._remote.size

    @property
    def footprint(self) -> int:
        """The bytes of memory that reading it takes at most, as far as can be told without asking."""
        return 0

    @abstractmethod
    def _read_at(self, start: int, stop: int | None) -> bytes:
        """Return the bytes ``[start, stop)``, or fewer if the object ends before; None means the end."""

    @abstractmethod
    def _readinto_at(self, start: int, view: memoryview) -> int:
        """Fill ``view``, which is not empty, from ``start`` on; returns fewer than its length only at the end."""

    @abstractmethod
    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        """Return some bytes, and the offset in them that is ``start``; no byte behind it means the end."""

    def _learn_size(self) -> int:
        return self._remote.learn_size()
