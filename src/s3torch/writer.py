"""S3Writer: an object that appears whole, or not at all.

What is written is collected in one part's memory. An object that fits is one PUT at ``close``; a larger one becomes a
multipart upload, whose parts are sent as they fill. Only ``close`` commits. An exception inside ``with``, an explicit
``abort`` and the garbage collector all give the upload up, so that a reader never sees half an object and no parts are
left behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from s3torch import _buffer
from s3torch._aws.checksums import UploadChecksums
from s3torch._aws.operations import PutObject, UploadPart
from s3torch._file import S3File
from s3torch._transfer import plan
from s3torch.errors import ArgumentTypeError, ProtocolError, RequestError, S3Error

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch.client import S3Client

__all__ = ["S3Writer"]

_log = logging.getLogger(__name__)


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


class S3Writer(S3File):
    """A write-only binary file over one object; made by ``S3Client.put_object``.

    The object appears when the writer is closed, and replaces what had its key until then. Not to be used by two
    threads at the same time.

    Args:
        client: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        storage_class: Such as ``STANDARD_IA``; None is the bucket's default.
    """

    _noun = "writer"

    def __init__(self, client: S3Client, bucket: str, key: str, storage_class: str | None = None) -> None:
        super().__init__(bucket, key)
        self.storage_class = storage_class
        self._client = client
        self._pid = os.getpid()
        self._state = _State.OPEN
        self._position = 0
        self._pending = bytearray()
        self._upload_id: str | None = None
        self._etags: list[str] = []
        self._checksums = UploadChecksums(is_wanted=client.s3client_config.checksums != "off")

    def __repr__(self) -> str:
        return (
            f"<S3Writer s3://{self.bucket}/{self.key} {self._state.value} position={self._position} "
            f"parts={len(self._etags)}>"
        )

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(f"cannot pickle {self!r}: an upload belongs to the process that began it.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit; or give the upload up if the block raised."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # A forked child inherits the writer, but the upload is its parent's.
        if getattr(self, "_state", None) is _State.OPEN and self._pid == os.getpid():
            complaint = f"{self!r} was never closed: what was written is discarded"
            with contextlib.suppress(Exception):  # at interpreter exit anything may be gone already
                self.abort()
            warnings.warn(complaint, ResourceWarning, stacklevel=2, source=self)

    @property
    def closed(self) -> bool:
        """Whether it was committed or given up."""
        return self._state is not _State.OPEN

    def readable(self) -> bool:
        """Whether it can be read: no."""
        return False

    def writable(self) -> bool:
        """Whether it can still be written."""
        return not self.closed

    def seekable(self) -> bool:
        """Whether the position can be changed: no."""
        return False

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._position

    def write(self, data: Buffer, /) -> int:
        """Write bytes; once a part is full it is sent.

        Args:
            data: C-contiguous memory of items of any type. It may change after the call.

        Returns:
            Its size in bytes; all of it was taken.

        Raises:
            ClosedError: The writer was closed.
            S3Error: A part could not be sent. The upload is given up then, and the writer closed.
        """
        self._check_open()
        view = _buffer.readable_bytes(data)
        written = 0
        while written < len(view):
            if len(self._pending) == self._part_size():
                self._send_part(memoryview(self._pending))
                self._pending = bytearray()
            room = self._part_size() - len(self._pending)
            if not self._pending and len(view) - written > room:
                self._send_part(view[written : written + room])  # straight from the caller's memory
            else:
                self._pending += view[written : written + room]
            written += min(room, len(view) - written)
        self._position += written
        return written

    def close(self) -> None:
        """Send what is left and make the object appear. Does nothing if the writer is closed already.

        Raises:
            S3Error: The object could not be stored; nothing of it is visible, unless the answer to the last request
                was lost on its way, in which case it may be complete.
        """
        if self.closed:
            return
        with self._abort_on_error():
            if self._upload_id is None:
                self._put_whole()
            else:
                self._send_part(memoryview(self._pending))
                self._complete()
            self._end(_State.COMMITTED)

    def abort(self) -> None:
        """Give the upload up: nothing becomes visible, and parts that were sent are deleted.

        Does nothing if the writer is closed already, and never raises: if the service can't be reached, a warning with
        the upload's id is logged, and the bucket's lifecycle rule for incomplete uploads must clear it.
        """
        if self.closed:
            return
        upload_id = self._upload_id
        self._end(_State.ABORTED)
        if upload_id is None:
            return
        try:
            self._call("AbortMultipartUpload", "abort_multipart_upload", UploadId=upload_id)
        except S3Error as error:
            _log.warning("Upload %s of s3://%s/%s could not be aborted: %s", upload_id, self.bucket, self.key, error)

    def _end(self, state: _State) -> None:
        self._state = state
        self._ending = state.value
        self._pending = bytearray()

    @contextlib.contextmanager
    def _abort_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _part_size(self) -> int:
        number = len(self._etags) + 1
        if number > plan.MAX_PARTS:
            raise RequestError(
                f"s3://{self.bucket}/{self.key} has {self._position} bytes in {plan.MAX_PARTS} parts, "
                "which is all that S3 takes. Use a larger S3ClientConfig(part_size=...).",
                bucket=self.bucket,
                key=self.key,
            )
        return plan.upload_part_size(number, self._client.s3client_config.part_size)

    def _put_whole(self) -> None:
        fields = {"x-amz-storage-class": self.storage_class} if self.storage_class else {}
        bucket = self._client.bucket(self.bucket)
        self._client.engine().run([PutObject(bucket, self.key, memoryview(self._pending), signed_fields=fields)])

    def _send_part(self, body: memoryview) -> None:
        with self._abort_on_error():
            if self._upload_id is None:
                more = self._checksums.parameters_to_create()
                if self.storage_class:
                    more["StorageClass"] = self.storage_class
                answer = self._call("CreateMultipartUpload", "create_multipart_upload", **more)
                self._upload_id = _upload_id(answer)
                self._checksums.note_created(answer)
            part = UploadPart(
                self._client.bucket(self.bucket),
                self.key,
                body,
                upload_id=self._upload_id,
                part_number=len(self._etags) + 1,
            )
            self._client.engine().run([part])
            self._etags.append(part.etag)
            self._checksums.note_part(part.part_number, part.etag, part.checksum, len(body))

    def _complete(self) -> None:
        self._call(
            "CompleteMultipartUpload",
            "complete_multipart_upload",
            UploadId=self._upload_id,
            **self._checksums.parameters_to_complete(),
        )

    def _call(self, operation: str, method: str, **parameters: object) -> dict[str, object]:
        return self._client.call_rarely(operation, self.bucket, self.key, method, **parameters)


def _upload_id(answer: Mapping[str, object]) -> str:
    upload_id = answer.get("UploadId")
    if not isinstance(upload_id, str) or not upload_id:
        raise ProtocolError("CreateMultipartUpload was answered without an UploadId.")
    return upload_id
