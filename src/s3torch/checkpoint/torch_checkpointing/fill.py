"""Memory that whole files are received into, and that serves the next file when nobody needs it any more.

The tensors that the library loads from a file are slices of one memory. Its pages cost more than the transfer when they
are new, so what was let go is kept. The operating system is told that it may take the pages of kept memory whenever
it needs them (``MADV_FREE``), so it is never missing elsewhere; where that cannot be told, nothing is kept unless the
user says so.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import weakref
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch_checkpointing.storage.torch_serialization import MmapLike

__all__ = ["KeptMemory"]

# A file may be given memory this many times its size; more would hold what a larger one could use.
_MOST_SLACK = 2


class KeptMemory:
    """Gives out memory, and keeps what comes back.

    Threads may share it. A child of a fork has a copy, as of all memory.

    Args:
        limit: Bytes to keep at most.
        is_reclaimable: Whether the system may take the pages of what is kept. To tell it takes a third of the CPU time
            of a transfer.
    """

    def __init__(self, limit: int, *, is_reclaimable: bool = True) -> None:
        self.limit = limit if hasattr(mmap, "MADV_FREE") or not is_reclaimable else 0
        self._is_reclaimable = is_reclaimable
        self._kept: list[mmap.mmap] = []

    @property
    def kept(self) -> int:
        """Bytes that are kept now."""
        return sum(map(len, tuple(self._kept)))

    def take(self, size: int) -> tuple[MmapLike, memoryview]:
        """Return memory, which comes back by itself when nobody refers to it any more.

        Args:
            size: In bytes, 1 or more.

        Returns:
            What the library takes for a mapped file, and the same memory to be filled. Its content is arbitrary.
        """
        memory = self._find(size)
        if memory is None:
            memory = _new(size)
        window = _window_type(size).from_buffer(memory)
        weakref.finalize(window, self._give_back, memory).atexit = False
        return cast("MmapLike", window), memoryview(memory)[:size]

    def _find(self, size: int) -> mmap.mmap | None:
        fitting = [memory for memory in tuple(self._kept) if size <= len(memory) <= _MOST_SLACK * size]
        for memory in sorted(fitting, key=len):
            try:
                self._kept.remove(memory)
            except ValueError:
                continue  # another thread has taken it
            return memory
        return None

    def _give_back(self, memory: mmap.mmap) -> None:
        """Keep memory; called by whoever drops the last tensor, so it may be in the middle of anything."""
        if len(memory) + self.kept <= self.limit:
            if self._is_reclaimable:
                memory.madvise(mmap.MADV_FREE)  # type: ignore[attr-defined, unused-ignore]  # the limit is 0 elsewhere
            self._kept.append(memory)


def _new(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_ANONYMOUS"):  # only the pages of private memory can be left to the system
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _window_type(size: int) -> Any:  # noqa: ANN401  # ctypes makes a type for each size
    """Return a type of memory of a size that reads like a file, as the reader of torch's archives wants it."""

    class Window(ctypes.c_ubyte * size):  # type: ignore[misc]  # see above
        _position = 0

        def tell(self) -> int:
            return self._position

        def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
            self._position = max(0, base + offset)
            return self._position

        def read(self, count: int = -1) -> bytes:
            stop = size if count < 0 else min(size, self._position + count)
            content = bytes(memoryview(self)[self._position : stop])
            self._position += len(content)
            return content

        def close(self) -> None:
            """Do nothing: the memory goes back when nobody refers to it."""

    return Window
