"""What is in the objects of our own servers: each 4 KiB begin with their number, so that a misplaced byte is seen."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.site import MIB

__all__ = ["content", "pieces"]

_BLOCK = 4096
_FILLER = random.Random(0).randbytes(_BLOCK - 8)


def content(start: int, stop: int) -> bytes:
    """Return the bytes ``[start, stop)`` of any object: they depend on the offset only."""
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = b"".join([number.to_bytes(8, "big") + _FILLER for number in range(first, last)])
    return blocks[start - first * _BLOCK : stop - first * _BLOCK]


def pieces(size: int) -> Iterator[bytes]:
    """Yield an object of this size, a MiB at a time."""
    for start in range(0, size, MIB):
        yield content(start, min(start + MIB, size))
