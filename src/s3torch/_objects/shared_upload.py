"""A multipart upload whose parts are sent by several processes: one begins and completes it, each sends its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from s3torch._aws import checksums
from s3torch._aws.multipart import UploadedPart
from s3torch._aws.object_options import ObjectOptions
from s3torch._objects.part_buffer import PartBuffer
from s3torch._objects.upload import MultipartUpload, _Flying

if TYPE_CHECKING:
    from s3torch._access import Access

__all__ = ["SentPart", "SharedUpload", "UploadTicket"]


class UploadTicket(NamedTuple):
    """What a process must know to send parts of an upload that another one has begun.

    Attributes:
        upload_id: Names the upload.
        algorithm: Of the checksums that the server verifies; None if it verifies none.
        kind: The type of the checksum that the object gets.
    """

    upload_id: str
    algorithm: str | None
    kind: str | None


class SentPart(NamedTuple):
    """A part that the service has, as one process tells another of it.

    Attributes:
        etag: From the answer.
        length: In bytes.
        crc32: Of its bytes; None if the service verifies none.
        attempts: How often it was sent.
    """

    etag: str
    length: int
    crc32: bytes | None
    attempts: int = 1


class SharedUpload(MultipartUpload):
    """One object's upload, in one of the processes that take part in it.

    Args:
        access: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        ticket: Of the upload; None for the process that begins it.
        on_part: Is called when a part has arrived, so that others get to know that this process gets on.

    Attributes:
        requests: That this process has sent to begin and to complete it, retries included.
        retries: Those of them that were sent again after an error.
        began: When it was begun here, by ``time.perf_counter``.
    """

    def __init__(
        self,
        access: Access,
        bucket: str,
        key: str,
        ticket: UploadTicket | None = None,
        *,
        on_part: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(access, bucket, key, ObjectOptions())
        self.requests = self.retries = 0
        self.began = time.perf_counter()
        self._on_part = on_part
        self._in_flight = 0
        self._attempts: dict[int, int] = {}
        if ticket is not None:
            self._id = ticket.upload_id
            self._checksums.note_created(ticket.algorithm, ticket.kind)

    @property
    def is_busy(self) -> bool:
        """Whether parts are under way."""
        return bool(self._flying)

    def ticket(self) -> UploadTicket:
        """Begin the upload with the service, and return what the others must know of it."""
        with self._counted():
            self.begin(resumes=False)
        if self._creation is None:
            raise AssertionError("an upload that was not begun")
        return UploadTicket(self._id, self._creation.checksum_algorithm, self._creation.checksum_type)

    def send_part(self, number: int, pieces: Sequence[memoryview]) -> None:
        """Begin to send a part; waits while as much is under way as the configuration allows.

        Args:
            number: From 1.
            pieces: Its bytes, in order, not all empty; they must not change before ``arrived`` returns.
        """
        size = sum(map(len, pieces))
        buffer = PartBuffer(size)
        for piece in pieces:
            if len(piece):
                buffer.lend(piece, checksums.compute(checksums.CRC32, [piece]))
        self._settle()
        while self._flying and self._in_flight + size > self._access.share.bytes_in_flight:
            self._await(self._flying[0])
            self._settle()
        flying = _Flying(self._access, self._part(number, buffer), buffer)
        self._flying.append(flying)  # first: what is in there is cancelled
        self._in_flight += size
        flying.begin()

    def arrived(self) -> dict[int, SentPart]:
        """Wait until all parts that this process sends are there, and return them by number."""
        while self._flying:
            self._await(self._flying[0])
            self._settle()
        return {
            number: SentPart(
                part.etag,
                part.length,
                None if part.checksum is None else part.checksum.value,
                self._attempts.get(number, 1),
            )
            for number, part in self._sent.items()
        }

    def complete_with(self, parts: Mapping[int, SentPart]) -> None:
        """Make the object appear.

        Args:
            parts: Of all processes, by number, from 1 on.
        """
        self._sent = {
            number: UploadedPart(
                part.etag, part.length, None if part.crc32 is None else checksums.Checksum(checksums.CRC32, part.crc32)
            )
            for number, part in parts.items()
        }
        self.parts = len(parts)
        with self._counted():
            self.complete()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the requests that this thread sends meanwhile."""
        stats = self._access.engine().stats
        requests, retries = stats.requests, stats.retries
        yield
        self.requests += stats.requests - requests
        self.retries += stats.retries - retries

    def _settle(self) -> None:
        for flying in self._flying:
            if flying.request.is_done:
                self._attempts[flying.request.part_number] = flying.request.attempts
        super()._settle()

    def _note_sent(self, number: int, etag: str, checksum: checksums.Checksum | None, buffer: PartBuffer) -> None:
        self._in_flight -= buffer.length
        super()._note_sent(number, etag, checksum, buffer)
        self._free.clear()  # no part is copied into memory of its own
        self._on_part()
