"""The base of readers and writers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

__all__ = ["BinaryFile"]

if TYPE_CHECKING:

    class BinaryFile(io.BufferedIOBase, BinaryIO):
        """A binary file, as type checkers are to see it: torch.load, PIL and others ask for ``IO[bytes]``."""

else:
    BinaryFile = io.BufferedIOBase
