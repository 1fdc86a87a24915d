"""The range-based reader: each read is exactly its byte range; nothing is kept unless a buffer is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._exclusive import exclusive
from s3torch.readers.base import S3Reader
from s3torch.readers.window import Block

if TYPE_CHECKING:
    from s3torch._objects.remote import RemoteObject

__all__ = ["RangedS3Reader"]

# Lines have no length to ask for, so lines are cut from windows of at least this many bytes, which are kept. Not tuned.
_LINE_WINDOW = 64 * 1024
_NOTHING = Block(0, b"")


class RangedS3Reader(S3Reader):
    """Reads parts of an object: a 100 GB object can be read with the memory of one read.

    Args:
        remote: The object.
        buffer_size: Reads of fewer bytes fetch this many and keep them; 0 keeps nothing.
    """

    def __init__(self, remote: RemoteObject, buffer_size: int = 0) -> None:
        super().__init__(remote)
        self._buffer_size = buffer_size
        self._window = _NOTHING

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_buffer_size": self._buffer_size, "_window": _NOTHING}

    @exclusive
    def close(self) -> None:
        """Close it and release what it holds."""
        self._window = _NOTHING
        super().close()

    def _read_at(self, start: int, stop: int | None) -> bytes:
        if stop is None or not self._is_buffered(stop - start):
            return self._remote.read(start, stop)
        held = self._held(start, stop)
        if len(held) < stop - start and not self._is_end(start + len(held)):
            self._load(start + len(held), self._buffer_size)
            return bytes(held) + bytes(self._held(start + len(held), stop))
        return bytes(held)

    def _readinto_at(self, start: int, view: memoryview) -> int:
        if not self._is_buffered(len(view)):
            return self._remote.read_into(start, view)
        data = self._read_at(start, start + len(view))
        view[: len(data)] = data
        return len(data)

    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        if not self._held(start, start + 1) and not self._is_end(start):
            self._load(start, max(self._buffer_size, _LINE_WINDOW))
        content = self._window.content
        return content, start - self._window.start if self._held(start, start + 1) else len(content)

    def _is_buffered(self, count: int) -> bool:
        return count < self._buffer_size

    def _is_end(self, position: int) -> bool:
        return self._remote.size is not None and position >= self._remote.size

    def _held(self, start: int, stop: int) -> memoryview:
        """Return what the window holds of ``[start, stop)`` from ``start`` on."""
        begin, content = self._window
        if not begin <= start < begin + len(content):
            return memoryview(b"")
        return memoryview(content)[start - begin : stop - begin]

    def _load(self, start: int, size: int) -> None:
        """Fetch the window of ``size`` bytes that begins at ``start``."""
        self._window = Block(start, self._remote.read(start, start + size))
