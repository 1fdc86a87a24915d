"""What the files have in common that torch.load is given: a position, and the size that is known beforehand."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:

    class _File(io.RawIOBase, BinaryIO):
        """A binary file, as type checkers are to see it."""

else:
    _File = io.RawIOBase

__all__ = ["PositionedFile"]


class PositionedFile(_File):
    """A file that can be read and has a position; a subclass has ``readinto``.

    Args:
        size: In bytes.

    Attributes:
        size: As given.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._position = 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it has a position: yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position, as in any file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek value {origin + offset}")  # as of any other file
        self._position = origin + offset
        return self._position
