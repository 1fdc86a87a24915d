"""A file of torch.save that all ranks of a group read by the same calls: each byte is received from S3 once.

torch.load is deterministic: ranks with the same arguments ask a file for the same bytes in the same order. So each
read that is not served from memory is a collective: the first rank receives what is little and sends it to the others,
and what is much is read in shares. The end of the file, where its directory is, and small files come with the opening.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from s3torch import _buffer
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch._transfer.buffers import BytesBuffer
from s3torch.checkpoint.positioned import PositionedFile
from s3torch.checkpoint.together import Target, read_together

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch.checkpoint.ranks import Ranks
    from s3torch.client import S3Client

__all__ = ["SharedFile"]

_SMALL_FILE = 4 * 1024**2  # bytes of a file that the first rank receives whole
_TAIL = 64 * 1024  # bytes of a larger one that come first: its directory, unless there are over 500 records
_BLOCK = 64 * 1024  # bytes that are received for a smaller read
_SHARED = 1024**2  # bytes of a read from which on each rank reads a share


class SharedFile(PositionedFile):
    """One version of an object as a file.

    Args:
        ranks: That all make it and use it in the same way.
        client: Sends this rank's requests.
        bucket: Of the object.
        key: Of the object.
        version_id: The version; None for the newest.

    Attributes:
        bucket: Of the object.
        key: Of the object.
        remote: The object.
        size: In bytes.

    Raises:
        S3Error: The first rank could not open it.
    """

    def __init__(self, ranks: Ranks, client: S3Client, bucket: str, key: str, version_id: str | None) -> None:
        self.bucket, self.key = bucket, key
        self.remote = RemoteObject(client._access, bucket, key, version_id=version_id)
        self._ranks = ranks
        size, etag, modified, start, content = ranks.from_first(self._open)
        if ranks.rank:
            self.remote = RemoteObject(client._access, bucket, key, size=size, etag=etag, version_id=version_id)
            self.remote.modified = modified
        super().__init__(size)
        self._blocks = [(start, content)]

    def readinto(self, buffer: Buffer, /) -> int:
        """Read as much as there is into memory; returns how many bytes that is."""
        view = _buffer.writable_bytes(buffer)
        start, stop = self._position, min(self._position + len(view), self.size)
        if stop <= start:
            return 0
        known = self._known(start, stop)
        if known is None and stop - start >= _SHARED:
            self.receive([(start, stop)], [view[: stop - start]])
        elif known is None:
            end = min(max(stop, start + _BLOCK), self.size)
            self._blocks.append((start, self._ranks.from_first(lambda: self.remote.read(start, end))))
            known = self._known(start, stop)
        if known is not None:
            view[: stop - start] = known
        self._position = stop
        return stop - start

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many ranges; the first rank receives those that are not known."""
        found = [self._known(start, stop) for start, stop in ranges]
        missing = [each for each, known in zip(ranges, found, strict=True) if known is None]
        if missing:
            received = iter(
                self._ranks.from_first(lambda: self.remote.read_vector(missing, None, DEFAULT_MAX_GAP) or [])
            )
            return [next(received) if known is None else bytes(known) for known in found]
        return [bytes(known) for known in found if known is not None]

    def read_all(self) -> bytes:
        """Return all of it, which the first rank receives, and proves if it must be."""
        content: bytes = self._ranks.from_first(self._read_all)
        return content

    def _read_all(self) -> bytes:
        buffer = BytesBuffer(self.size)
        try:
            # Others wait meanwhile, for longer than a step takes.
            self.remote.read_ranges([(0, self.size)], [buffer.view], 0, lambda _: self._ranks.tell())
        except BaseException:
            buffer.release()  # whoever keeps the error keeps this frame
            raise
        return buffer.to_bytes()

    def receive(
        self,
        ranges: Sequence[tuple[int, int]],
        views: Sequence[memoryview],
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Fill memory with ranges, in shares; see ``filling.Receive``."""
        targets = []
        for (start, stop), view in zip(ranges, views, strict=True):
            known = self._known(start, stop)
            if known is not None:
                view[:] = known
            elif stop > start:
                targets.append(Target(self.remote, start, torch.frombuffer(view, dtype=torch.uint8)))
        read_together(self._ranks, sorted(targets, key=lambda target: target.start), progress)

    def _open(self) -> tuple[int, str | None, str | None, int, bytes]:
        size = self.remote.learn_size()
        start = 0 if size <= _SMALL_FILE else size - _TAIL
        content = self.remote.read(start, size) if size else b""
        return size, self.remote.etag, self.remote.modified, start, content

    def _known(self, start: int, stop: int) -> memoryview | None:
        for begin, content in reversed(self._blocks):
            if begin <= start and stop <= begin + len(content):
                return memoryview(content)[start - begin : stop - begin]
        return None
