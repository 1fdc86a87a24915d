"""What a load has read of one object with ``checksums="strict"``, until all of it is proven."""

from __future__ import annotations

from s3torch._objects.proving import prove_each_byte
from s3torch._objects.remote import RemoteObject
from s3torch.errors import IntegrityError

__all__ = ["Proof"]


class Proof:
    """Bytes of one object that a load hands out once they are proven, all together: what is whole is cheap to prove.

    Args:
        remote: The object.
    """

    def __init__(self, remote: RemoteObject) -> None:
        self._remote = remote
        self._ranges: list[tuple[int, int]] = []
        self._views: list[memoryview] = []
        self._parsed: list[tuple[bytes, memoryview]] = []

    def add(self, start: int, view: memoryview) -> None:
        """Note bytes that lie from ``start`` on; what is damaged is fetched again, into their memory."""
        self._ranges.append((start, start + len(view)))
        self._views.append(view)

    def add_parsed(self, start: int, content: bytes) -> None:
        """Note bytes by which the others were found: if they were damaged, to fetch them again is too late."""
        copy = memoryview(bytearray(content))
        self._parsed.append((content, copy))
        self.add(start, copy)

    def conclude(self) -> None:
        """Verify all of it.

        Raises:
            IntegrityError: Bytes are damaged.
            UnverifiedError: Nothing proves them, or not without reading much more.
        """
        ranges, views, parsed = self._ranges, self._views, self._parsed
        self._ranges, self._views, self._parsed = [], [], []
        try:
            prove_each_byte(self._remote, ranges, views)
            if any(content != copy for content, copy in parsed):
                raise IntegrityError(
                    f"The header of s3://{self._remote.bucket}/{self._remote.key} arrived damaged, and was used before "
                    "that was known. What is stored is not damaged: load it again.",
                    bucket=self._remote.bucket,
                    key=self._remote.key,
                )
        finally:
            views.clear()  # whoever keeps an error keeps this frame
            parsed.clear()
