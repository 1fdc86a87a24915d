"""Files that tell what they took when they are stored, and how far they are before."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.saving import Counted
from s3torch.checkpoint.uploads import OnUpload, Watch, tell

if TYPE_CHECKING:
    from typing_extensions import Self

    from s3torch.client import S3Client
    from s3torch.writer import S3Writer

__all__ = ["WatchedFile"]


class WatchedFile(Counted):
    """An S3Writer, which it is in all else, that shows a bar and tells what it took.

    Args:
        client: That the writer is of.
        opened: Returns the writer.
        what: Happens, for the bar.
        size: Of what will be written, in bytes; None if nobody knows.
        progress: Whether there is a bar.
        on_upload: Is told once the object is stored.
    """

    def __init__(
        self,
        client: S3Client,
        opened: Callable[[], S3Writer],
        what: str,
        size: int | None,
        progress: bool | None,  # noqa: FBT001  # of S3StorageConfig
        on_upload: OnUpload | None,
    ) -> None:
        self._watch = Watch(client)
        self._on_upload = on_upload
        self._writer = opened()
        self._bar = new_byte_bar(what, size, is_wanted=bool(progress))
        super().__init__(self._writer, self._bar.update)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._bar.close()
            self._writer.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Make the object appear, as the writer does, and tell so."""
        self._bar.close()
        if not self._writer.closed:
            self._writer.close()
            tell(self._on_upload, self._watch.stats_of(self._writer))
