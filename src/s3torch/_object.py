"""One object as it is read: its size and ETag once they are known, and reads of byte ranges into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from s3torch._aws.operations import GetObject, Place
from s3torch._transfer import plan
from s3torch._transfer.buffers import BytesBuffer
from s3torch._transfer.http1 import ContentRange
from s3torch.errors import ObjectChangedError, ProtocolError

if TYPE_CHECKING:
    from s3torch.client import S3Client
    from s3torch.config import S3ClientConfig

__all__ = ["RemoteObject"]


class RemoteObject:
    """Reads ranges of one version of an object, in parallel parts.

    The first answer fixes which version that is: all later requests carry its ETag, and an answer of another version
    is an ObjectChangedError.

    Args:
        client: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        size: In bytes, if known beforehand.
        etag: If known beforehand.
        version_id: The version to read; None for the newest.

    Attributes:
        size: In bytes; None while unknown.
        etag: None while unknown.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        key: str,
        *,
        size: int | None = None,
        etag: str | None = None,
        version_id: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.key = key
        # That an object is empty is asked again: no read would notice that it has grown since.
        self.size = size or None
        self.etag = etag
        self._told_size = size
        self.version_id = version_id
        self._client = client

    def learn_size(self) -> int:
        """Return the size in bytes; asks for it (HeadObject) if no answer has told it yet."""
        if self.size is None:
            found = self._client.head_object(self.bucket, self.key, version_id=self.version_id)
            self._observe(found.size, found.etag or None)
        if self.size is None:
            raise AssertionError("a HEAD that tells no size")
        return self.size

    def read_into(self, start: int, view: memoryview) -> int:
        """Fill memory with the bytes from ``start`` on.

        Args:
            start: First byte.
            view: Writable memory, one byte an item.

        Returns:
            How many bytes were read: all of ``view``, or fewer if the object ends before.
        """
        if not len(view):
            return 0
        return self.fetch(start, start + len(view), lambda _size: view)

    def read(self, start: int, stop: int | None = None) -> bytes:
        """Return the bytes of ``[start, stop)``, up to the object's end; None reads to the end."""
        buffer = BytesBuffer(0)

        def place(size: int) -> memoryview:
            nonlocal buffer
            buffer = BytesBuffer((size if stop is None else min(stop, size)) - start)
            return buffer.view

        if stop is None or stop > start:
            self.fetch(start, stop, place)
        return buffer.to_bytes()

    def fetch(self, start: int, stop: int | None, place: Callable[[int], memoryview]) -> int:
        """Read ``[start, stop)``, up to the object's end, into memory that is chosen once the size is known.

        If the size is unknown, the head of the first part's answer tells it, and the other parts follow while the
        first one's body is still arriving.

        Args:
            start: First byte.
            stop: The byte after the last; None for the end of the object.
            place: Gets the object's size and returns memory for what follows ``start``. Not called if nothing does.

        Returns:
            How many bytes were read.
        """
        gets: list[GetObject] = []
        try:
            self._fetch_parts(gets, start, stop, place)
            self._client.engine().wait(gets)
        except BaseException:
            self._client.engine().cancel(gets)
            raise
        return self._conclude(gets)

    def _fetch_parts(
        self, gets: list[GetObject], start: int, stop: int | None, place: Callable[[int], memoryview]
    ) -> None:
        """Submit the requests of ``fetch``, adding each to ``gets``."""
        memory: memoryview | None = None
        begun = start
        if self.size is None:

            def place_first(content_range: ContentRange) -> memoryview:
                nonlocal memory
                memory = place(content_range.total or 0)
                return memory[: content_range.stop - start]

            begun = start + self._part_size if stop is None else min(stop, start + self._part_size)
            gets.append(self._get(start, begun, place_first))
            self._await_head(gets[0])
        elif start < self.size:
            memory = place(self.size)
        if memory is not None and self.size is not None:
            end = self.size if stop is None else min(stop, self.size)
            for left, right in plan.split(begun, end, self._part_size):
                gets.append(self._get(left, right, memory[left - start : right - start]))
                self._client.engine().submit(gets[-1])

    @property
    def client_config(self) -> S3ClientConfig:
        """The client's configuration."""
        return self._client.s3client_config

    @property
    def _part_size(self) -> int:
        return self.client_config.part_size

    def _await_head(self, first: GetObject) -> None:
        """Send the request that tells size and ETag; returns as soon as they are known."""
        engine = self._client.engine()
        engine.submit(first)
        while first.total is None and not first.is_done:
            engine.turn()
        if first.error is None:
            self._observe(first.total, first.etag)

    def _get(self, start: int, stop: int, into: memoryview | Place) -> GetObject:
        bucket = self._client.bucket(self.bucket)
        return GetObject(bucket, self.key, start, stop, into, etag=self.etag, version_id=self.version_id)

    def _conclude(self, gets: list[GetObject]) -> int:
        """Check that all answers are of one version and complete; returns the bytes read."""
        for get in gets:
            self._observe(get.total, get.etag)
        size = self.size
        for get in gets:
            due = max(0, min(get.stop, size) - get.start) if size is not None else 0
            if get.filled != due:
                raise ProtocolError(
                    f"{get.filled} bytes were received of s3://{self.bucket}/{self.key} where {due} are due.",
                    bucket=self.bucket,
                    key=self.key,
                )
        return sum(get.filled for get in gets)

    def _observe(self, size: int | None, etag: str | None) -> None:
        for name, known, found in (("size", self._told_size, size), ("ETag", self.etag, etag)):
            if known is not None and found is not None and known != found:
                raise ObjectChangedError(
                    f"s3://{self.bucket}/{self.key} was replaced since it was listed or opened: its {name} was {known} "
                    f"and is {found} now. List or open it again to read the new version.",
                    bucket=self.bucket,
                    key=self.key,
                )
        if size is not None:
            self.size = self._told_size = size
        self.etag = etag or self.etag
