"""The pages of memory that is about to be filled: whether the kernel has made them yet.

Memory is given out without pages; the kernel makes each on its first touch, and fills it with zeros. For large reads
that costs more than the network: see docs/design.md.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Sequence

from s3torch._forks import NO_FORK

__all__ = ["are_new"]

# How many pages are looked at: they are spread over all of the memory. Each takes 2 us.
_SAMPLE = 16


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """Return the C library, where ``mincore`` is that of Linux."""
    if not sys.platform.startswith("linux"):
        return None
    with NO_FORK:
        return ctypes.CDLL(None)


@functools.cache
def _is_resident() -> Callable[[int], bool]:
    """Return what tells whether the page at an address exists: https://man7.org/linux/man-pages/man2/mincore.2.html."""
    libc = _libc()
    if libc is None or not hasattr(libc, "mincore"):
        return lambda _address: True
    mincore = libc.mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_ubyte)]
    mincore.restype = ctypes.c_int

    def is_resident(address: int) -> bool:
        found = ctypes.c_ubyte(1)
        page = address - address % mmap.PAGESIZE
        return bool(mincore(page, mmap.PAGESIZE, ctypes.byref(found)) or found.value & 1)

    return is_resident


def are_new(views: Sequence[memoryview]) -> bool:
    """Whether most pages of some memory do not exist yet, by a sample; False where that cannot be told.

    Args:
        views: Writable and contiguous, one byte an item.
    """
    sizes = [len(view) for view in views]
    step = max(1, sum(sizes) // _SAMPLE)
    is_resident = _is_resident()
    looked_at = absent = 0
    due = step // 2
    for view, size in zip(views, sizes, strict=True):
        if due < size:
            begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
            while due < size:
                looked_at += 1
                absent += not is_resident(begin + due)
                due += step
        due -= size
    return 2 * absent > looked_at
