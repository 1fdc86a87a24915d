"""Memory that becomes ``bytes`` without a copy."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable

from s3torch._forks import NO_FORK

__all__ = ["BytesBuffer"]


class _File(io.BytesIO):
    def __del__(self) -> None:
        """Do nothing: the one of io calls ``close``, which takes longer than all else here."""

    def close(self) -> None:
        """Close it; that slices of its memory are still referred to, as after a failed read, is nobody's concern."""
        try:
            super().close()
        except BufferError:
            pass


# These two crash when the garbage collector meets a BytesIO whose memory is referred to (python/cpython#111049).
_NEEDS_A_COPY = sys.version_info[:3] in ((3, 12, 0), (3, 12, 1))


@functools.cache
def _allocator() -> Callable[[int], bytes]:
    """Return what makes bytes of a size, whatever is in them: to zero 100 kB takes as long as to copy them.

    Source: https://docs.python.org/3/c-api/bytes.html#c.PyBytes_FromStringAndSize.
    """
    if sys.implementation.name != "cpython":
        return bytes
    with NO_FORK:
        import ctypes  # takes 5 ms

    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]

    def allocate(size: int) -> bytes:
        if not 0 <= size <= sys.maxsize:  # ctypes would cut its upper bits off
            raise MemoryError(f"{size} bytes")
        content: bytes = make(None, size)
        return content

    return allocate


class BytesBuffer:
    """Writable memory of a fixed size that is handed over as ``bytes``.

    CPython's BytesIO takes over the bytes object that it is given when nobody else holds it, and hands the same object
    back when it was not resized: 64 MiB cost 6 us. Elsewhere the same calls make a copy, and the result is the same.
    The kernel backs memory when it is first filled, so what is not filled costs nothing. It is not zeroed: whoever
    takes the bytes must have filled all of them.

    Args:
        size: In bytes.
    """

    __slots__ = ("_file", "view")

    def __init__(self, size: int) -> None:
        self._file = None if _NEEDS_A_COPY else _File(_allocator()(size))
        self.view = memoryview(bytearray(size)) if self._file is None else self._file.getbuffer()

    def to_bytes(self) -> bytes:
        """Return the memory as bytes and drop the buffer. Slices of ``view`` must be gone, or it is copied."""
        content = bytes(self.view) if self._file is None else None
        self.view.release()
        return self._file.getvalue() if self._file is not None else content or b""

    def release(self) -> None:
        """Drop the memory. Slices of ``view`` that others still hold keep it until they are gone."""
        self.view = memoryview(b"")
        self._file = None
