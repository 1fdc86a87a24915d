"""What torch.save writes, written to an object: the size is told first, where it is known."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from s3torch import _buffer
from s3torch._progress import new_byte_bar
from s3torch.checkpoint.outline import File, Outline, torch_save
from s3torch.checkpoint.staging import Snapshot
from s3torch.checkpoint.uploads import OnUpload, UploadEstimate, estimate_upload, writing

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch.client import S3Client
    from s3torch.writer import S3Writer

__all__ = ["Counted", "Sink", "estimate_object", "save_object"]

# Of a tensor that is copied, looked at and copied while they are in the cache of the CPU. Not tuned.
_PIECE = 256 * 1024


def save_object(
    client: S3Client,
    opened: Callable[[], S3Writer],
    obj: object,
    what: str,
    *,
    progress: bool | None,
    on_upload: OnUpload | None,
    may_change: bool = False,
) -> None:
    """Save what torch.save can save.

    Args:
        client: That the writer is of.
        opened: Returns the writer.
        obj: Such as a state dict, or a snapshot.
        what: Is saved, for the bar.
        progress: Whether to show a bar; None shows one on a terminal.
        on_upload: See ``writing``.
        may_change: Whether tensors may change while they are saved. Then they are copied as they are sent: what is
            stored of such a tensor is a mixture, as with torch.save, where one that is sent from its place is refused.
    """
    with writing(client, opened, on_upload) as writer, new_byte_bar(what, None, is_wanted=progress) as bar:
        whole = obj if isinstance(obj, Snapshot) else Outline.of(obj)
        if whole is None:
            torch_save(obj, Counted(writer, bar.update))
            return
        writer.expect(whole.size)
        bar.total = whole.size
        whole.write_to(_Copying(writer) if may_change else writer, bar.update)


def estimate_object(obj: object, part_size: int) -> UploadEstimate:
    """Return what ``save_object`` would send.

    Args:
        obj: Such as a state dict.
        part_size: Of the configuration.
    """
    whole = obj if isinstance(obj, Snapshot) else Outline.of(obj)
    if whole is not None:
        return estimate_upload(whole.size, part_size)
    sink = Sink()
    torch_save(obj, sink)
    return estimate_upload(sink.size, part_size, is_known=False)


class Counted:
    """A file that counts what is written to it, and is the other one in all else.

    Args:
        file: Is written to.
        count: Is told how many bytes more were written.
    """

    def __init__(self, file: Any, count: Callable[[int], object]) -> None:  # noqa: ANN401  # any file
        self._file = file
        self._count = count

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a file has
        return getattr(self._file, name)

    def write(self, data: Buffer, /) -> int:
        """Write bytes, as the other file does."""
        written: int = self._file.write(data)
        self._count(written)
        return written

    def flush(self) -> None:
        """Do what the other file does."""
        self._file.flush()


class _Copying:
    """A file that is written by copies, of which it tells the CRC-32.

    Args:
        file: Is written to.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def write(self, data: Buffer, /) -> int:
        return self._file.write(data)

    def write_lasting(self, data: Buffer, /) -> int:
        view, crc32 = _buffer.readable_bytes(data), 0
        for begin in range(0, len(view), _PIECE):
            piece = bytes(view[begin : begin + _PIECE])  # so that the CRC-32 is of what is sent
            crc32 = zlib.crc32(piece, crc32)
            self._file.write(piece)
        return crc32


class Sink(io.RawIOBase):
    """A file that keeps nothing of what is written but its size.

    Attributes:
        size: In bytes.
    """

    def __init__(self) -> None:
        self.size = 0

    def writable(self) -> bool:
        """Whether it can be written: yes."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.size

    def write(self, data: Buffer, /) -> int:
        """Count bytes."""
        count = len(_buffer.readable_bytes(data))
        self.size += count
        return count
