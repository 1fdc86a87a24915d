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
from collections.abc import Iterator
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from s3torch import _buffer
from s3torch._aws import multipart
from s3torch._aws.operations import PutObject, UploadPart
from s3torch._file import S3File
from s3torch._transfer import plan
from s3torch.errors import ArgumentTypeError, RequestError, S3Error

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch._aws.bucket import Bucket
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
        self._upload: multipart.CreateMultipartUpload | None = None
        self._etags: list[str] = []

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
            S3Error: The object could not be stored, and nothing of it is visible; if that is not certain, the message
                says so.
        """
        if self.closed:
            return
        with self._abort_on_error():
            if self._upload is None:
                self._put_whole()
            else:
                self._send_part(memoryview(self._pending))
                self._complete(self._upload)
            self._end(_State.COMMITTED)

    def abort(self) -> None:
        """Give the upload up: nothing becomes visible, and parts that were sent are deleted.

        Does nothing if the writer is closed already, and never raises: if the service can't be reached, a warning with
        the upload's id is logged, and the bucket's lifecycle rule for incomplete uploads must clear it.
        """
        if self.closed:
            return
        upload = self._upload
        self._end(_State.ABORTED)
        if upload is None:
            return
        request = multipart.AbortMultipartUpload(self._where(), self.key, upload.upload_id)
        try:
            self._client.run_apart(request)
        except S3Error as error:
            if error.code != "NoSuchUpload":  # then it is gone already
                where = f"s3://{self.bucket}/{self.key}"
                _log.warning("Upload %s of %s could not be aborted: %s", upload.upload_id, where, error)

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
        body = memoryview(self._pending)
        self._client.engine().run([PutObject(self._where(), self.key, body, signed_fields=self._fields())])

    def _send_part(self, body: memoryview) -> None:
        with self._abort_on_error():
            if self._upload is None:
                upload = multipart.CreateMultipartUpload(self._where(), self.key, self._fields())
                self._client.engine().run([upload])
                self._upload = upload
            upload_id, number = self._upload.upload_id, len(self._etags) + 1
            part = UploadPart(self._where(), self.key, body, upload_id=upload_id, part_number=number)
            self._client.engine().run([part])
            self._etags.append(part.etag)

    def _complete(self, upload: multipart.CreateMultipartUpload) -> None:
        engine, where = self._client.engine(), self._where()
        multipart.complete(engine, where, self.key, upload.upload_id, self._etags, self._position, upload.began)

    def _where(self) -> Bucket:
        return self._client.bucket(self.bucket)

    def _fields(self) -> dict[str, str]:
        return {"x-amz-storage-class": self.storage_class} if self.storage_class else {}
