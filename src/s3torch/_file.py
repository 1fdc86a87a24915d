"""What readers and writers share as files: names, and refusing everything once they are closed."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO

from s3torch.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer, Self

    class _BinaryFile(io.BufferedIOBase, BinaryIO):
        """A binary file, as type checkers are to see it: torch.load, PIL and others ask for ``IO[bytes]``."""

else:
    _BinaryFile = io.BufferedIOBase

__all__ = ["S3File"]


class S3File(_BinaryFile):
    """A binary file over one object. The calls here differ from io's own in the error that a closed file raises."""

    _noun = "file"
    _ending = "closed"

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__()
        self._bucket = bucket
        self._key = key
        self._users: dict[int, object] = {}

    @property
    def bucket(self) -> str:
        """The object's bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """The object's key."""
        return self._key

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __iter__(self) -> Iterator[bytes]:
        self._check_open()
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def isatty(self) -> bool:
        """Whether it is a terminal: no."""
        self._check_open()
        return False

    def flush(self) -> None:
        """Do nothing: only closing a writer makes its object appear."""
        self._check_open()

    def readlines(self, hint: int = -1, /) -> list[bytes]:
        """Return the lines that follow; see ``io.IOBase.readlines``."""
        self._check_open()
        return super().readlines(hint)

    def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Write one after the other; no line ends are added."""
        self._check_open()
        for line in lines:
            self.write(line)

    def _what_is_shared(self) -> str:
        return f"The {self._noun} of s3://{self.bucket}/{self.key}"

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(
                f"I/O operation on closed file: the {self._noun} of s3://{self.bucket}/{self.key} was {self._ending}. "
                "Open another.",
                bucket=self.bucket,
                key=self.key,
            )
