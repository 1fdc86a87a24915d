"""The range-based reader: each read is exactly its byte range; nothing is kept unless a buffer is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.readers.base import S3Reader

if TYPE_CHECKING:
    from s3torch._objects.remote import RemoteObject

__all__ = ["RangedS3Reader"]

# Lines have no length to ask for, so lines are cut from windows of at least this many bytes, which are kept. Not tuned.
_LINE_WINDOW = 64 * 1024


class RangedS3Reader(S3Reader):
    """Reads parts of an object: a 100 GB object can be read with the memory of one read.

    Args:
        remote: The object.
        buffer_size: Reads of fewer bytes fetch this many and keep them; 0 keeps nothing.
    """

    def __init__(self, remote: RemoteObject, buffer_size: int = 0) -> None:
        super().__init__(remote)
        self._buffer_size = buffer_size
        self._window = b""
        self._window_start = 0

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_buffer_size": self._buffer_size, "_window": b"", "_window_start": 0}

    def close(self) -> None:
        """Close it and release what it holds."""
        self._window = b""
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
        return self._window, start - self._window_start if self._held(start, start + 1) else len(self._window)

    def _is_buffered(self, count: int) -> bool:
        return count < self._buffer_size

    def _is_end(self, position: int) -> bool:
        return self._remote.size is not None and position >= self._remote.size

    def _held(self, start: int, stop: int) -> memoryview:
        """Return what the window holds of ``[start, stop)`` from ``start`` on."""
        if not self._window_start <= start < self._window_start + len(self._window):
            return memoryview(b"")
        return memoryview(self._window)[start - self._window_start : stop - self._window_start]

    def _load(self, start: int, size: int) -> None:
        """Fetch the window of ``size`` bytes that begins at ``start``."""
        self._window = self._remote.read(start, start + size)
        self._window_start = start
