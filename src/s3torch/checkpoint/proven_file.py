"""A file of torch.save in memory, whose records are proven by the CRC-32s that torch.save noted."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from s3torch import _buffer
from s3torch.checkpoint.archive import Archive
from s3torch.errors import CheckpointFormatError, IntegrityError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ProvenFile"]


class ProvenFile(io.BytesIO):
    """Hands out whole records that have their CRC-32, and the directory that says it; made by ``of``.

    What else is read would be something on which two parsers of one damaged directory differ, and is refused.
    """

    def __init__(self, content: memoryview, archive: Archive) -> None:
        super().__init__(content)
        self._size = len(content)
        self._archive = archive

    @classmethod
    def of(cls, content: memoryview, what: str) -> ProvenFile | None:
        """Compare all records with their CRC-32s.

        Args:
            content: All of the file.
            what: It is, for messages.

        Returns:
            None if nothing in there proves it: it is something else, or was saved without CRC-32s.

        Raises:
            IntegrityError: A record does not have its CRC-32.
        """
        try:
            archive = Archive(
                io.BytesIO(content), lambda ranges: [bytes(content[left:right]) for left, right in ranges]
            )
            for record in archive.records():
                if record.is_guess:
                    record.check_header(content[record.header : record.start])
        except (zipfile.BadZipFile, CheckpointFormatError):
            return None
        if not all(record.has_crc32 for record in archive.records()):
            return None
        for record in archive.records():
            if not record.is_intact(content[record.start : record.stop]):
                raise IntegrityError(
                    f"{record.name!r} of {what} does not have the CRC-32 that torch.save noted: it was damaged on its "
                    "way or where it is stored, or saved without."
                )
        return cls(content, archive)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file.

        Raises:
            CheckpointFormatError: It is a part of a record, which no CRC-32 proves.
        """
        self._check(self._size if size is None or size < 0 else size)
        return super().read(size)

    def readinto(self, buffer: Buffer, /) -> int:
        """Read as any file; see ``read``."""
        view = _buffer.writable_bytes(buffer)
        self._check(len(view))
        return super().readinto(view)

    def _check(self, size: int) -> None:
        start = self.tell()
        stop = min(start + size, self._size)
        if start < self._archive.directory and stop < self._size and not self._archive.is_whole(start, stop):
            raise CheckpointFormatError(f"Its bytes [{start}, {stop}) are read as if they were a record, and are none.")
