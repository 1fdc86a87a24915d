"""One part of an upload: in memory while it gathers, and as a server has stored it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch._aws import checksums

if TYPE_CHECKING:
    from s3torch._aws.checksums import Checksum

__all__ = ["PartBuffer", "StoredPart"]


@dataclass(slots=True)
class _Piece:
    """Some bytes of a part: in its own memory from ``start`` on, or lent, with their CRC-32."""

    length: int
    start: int = 0
    lent: memoryview | None = None
    crc32: Checksum | None = None


class PartBuffer:
    """The bytes of one part while they gather: copied into memory of its own, or left where they are.

    Its memory is small at first, since most objects are.

    Attributes:
        capacity: Bytes of the part.
        length: Bytes that have gathered.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._memory = bytearray()
        self.clear()

    def clear(self) -> None:
        """Empty it, to be used again."""
        self.length = 0
        self._copied = 0
        self._pieces: list[_Piece] = []

    @property
    def views(self) -> list[memoryview]:
        """What has gathered, in order."""
        memory = memoryview(self._memory)
        return [
            memory[piece.start : piece.start + piece.length] if piece.lent is None else piece.lent
            for piece in self._pieces
        ]

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self.capacity - self.length

    @property
    def md5(self) -> str:
        """The MD5 of all that has gathered, in hexadecimal digits: the ETag of an object of one part."""
        digest = hashlib.md5(usedforsecurity=False)
        for view in self.views:
            digest.update(view)
        return digest.hexdigest()

    @property
    def crc32(self) -> Checksum:
        """The CRC-32 of all that has gathered."""
        known = [
            (piece.crc32 or checksums.compute(checksums.CRC32, [view]), piece.length)
            for piece, view in zip(self._pieces, self.views, strict=True)
        ]
        return checksums.combine_all(checksums.CRC32, known)

    def add(self, data: memoryview) -> None:
        """Copy bytes behind the others; they must fit."""
        begin, self._copied = self._copied, self._copied + len(data)
        if self._copied > len(self._memory):
            grown = bytearray(min(self.capacity, max(self._copied, 2 * len(self._memory))))
            memoryview(grown)[:begin] = memoryview(self._memory)[:begin]
            self._memory = grown  # the old one may still be looked at, and could not grow then
        # A view is written to directly; a slice of a bytearray would make another copy first.
        memoryview(self._memory)[begin : self._copied] = data
        self.length += len(data)
        if self._pieces and self._pieces[-1].lent is None:
            self._pieces[-1].length += len(data)
        elif len(data):
            self._pieces.append(_Piece(len(data), begin))

    def lend(self, data: memoryview, crc32: Checksum) -> None:
        """Take bytes behind the others that stay where and as they are; they must fit, and not be none."""
        self._pieces.append(_Piece(len(data), lent=data, crc32=crc32))
        self.length += len(data)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of an earlier, interrupted upload.

    Args:
        etag: Its ETag: the MD5 of its bytes, unless the object is encrypted with a key of KMS.
        length: In bytes.
    """

    etag: str
    length: int

    def holds(self, buffer: PartBuffer) -> bool:
        """Whether it is certain that it holds these bytes."""
        return self.length == buffer.length and self.etag.strip('"') == buffer.md5

    def is_note(self, note: bytes) -> bool:
        """Whether it is certain that it is this note."""
        return self.length == len(note) and self.etag.strip('"') == _md5(note)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
