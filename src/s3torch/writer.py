"""S3Writer: an object that appears whole, or not at all.

What is written is collected in one part's memory. An object that fits is one PUT at ``close``; a larger one becomes a
multipart upload, whose parts are sent side by side while the next is written. Only ``close`` commits. An exception
inside ``with``, an explicit ``abort``, the garbage collector and the end of the interpreter all abort the upload, so
that a reader never sees half an object and no parts are left behind.

What an exception or the end of the interpreter aborts is given two seconds: whoever presses Ctrl-C does not want to
wait for a server that is silent. The garbage collector sends nothing at all: see ``_access/leftovers.py``.

It is one file of over 450 lines: each way in which a writer ends is a few lines, and they are to be read together.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from s3torch import _buffer
from s3torch._access import leftovers
from s3torch._aws import checksums
from s3torch._aws.checksums import Checksum
from s3torch._aws.object_options import ObjectOptions
from s3torch._aws.operations import HeadObject
from s3torch._aws.sending import PutObject
from s3torch._exclusive import exclusive, in_use
from s3torch._file import S3File
from s3torch._objects.novelty import check_condition
from s3torch._objects.part_buffer import PartBuffer
from s3torch._objects.upload import NOTE_NUMBER, MultipartUpload
from s3torch._transfer import plan
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestError,
    S3Error,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch._access import Access

__all__ = ["S3Writer"]


_MD5 = re.compile(r"[0-9a-f]{32}")

# Fewer bytes are copied: to send a piece of its own takes a system call. Not tuned.
_WORTH_LENDING = 64 * 1024


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


class S3Writer(S3File):
    """A write-only binary file over one object; made by ``S3Client.put_object``.

    The object appears when the writer is closed, and replaces what had its key until then. A writer may be handed from
    thread to thread. Two at the same time get a ConcurrentUseError.

    Args:
        access: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        options: Of the object.
        resumes: Whether to go on with an upload that was interrupted, and to leave what arrived if this one is.
        size: Bytes that will be written; None if that is not known.

    Attributes:
        etag: Of the object, once the writer was closed and it appeared, with the quotes; None before, and where the
            server does not tell it. ``put_object(if_match=)`` replaces this version and no other.

    Raises:
        ArgumentError: S3 takes no object of that size.
    """

    _noun = "writer"

    def __init__(
        self,
        access: Access,
        bucket: str,
        key: str,
        options: ObjectOptions | None = None,
        *,
        resumes: bool = False,
        size: int | None = None,
    ) -> None:
        super().__init__(bucket, key)
        self.options = options or ObjectOptions()
        self._access = access
        self._resumes = resumes
        self._size = None if size is None else self._checked(size)
        self._pid = os.getpid()
        self._state = _State.OPEN
        self.etag: str | None = None
        self._position = 0
        self._upload: MultipartUpload | None = None
        self._parts = 0
        self._buffer = PartBuffer(self._part_size())
        _open_writers.add(self)

    def __repr__(self) -> str:
        state = f"{self._state.value} position={self._position} parts={self._parts}"
        return f"<S3Writer s3://{self.bucket}/{self.key} {state}>"

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(f"cannot pickle {self!r}: an upload belongs to the process that began it.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit; or abort if the block raised, which takes two seconds at most."""
        if kind is None:
            self.close()
        else:
            self._abandon()

    def __del__(self) -> None:
        try:
            was_left = self._leave_unclosed()
        except BaseException:
            self._leave_unclosed()  # again: an interrupt may have come before it was done
            raise
        if was_left:
            warnings.warn(was_left, ResourceWarning, stacklevel=2, source=self)

    def _leave_unclosed(self) -> str | None:
        """Abort what nobody closed; returns what is to be said of it."""
        # A forked child inherits the writer, but the upload is its parent's.
        if getattr(self, "_state", None) is not _State.OPEN or self._pid != os.getpid():
            return None
        complaint = f"{self!r} was never closed: what was written is discarded"
        with contextlib.suppress(Exception):  # at interpreter exit anything may be gone already
            self._leave()
        return complaint

    @property
    def storage_class(self) -> str | None:
        """Of the object; None is the bucket's default."""
        return self.options.storage_class

    @property
    def closed(self) -> bool:
        """Whether it was committed or aborted."""
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

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> NoReturn:  # noqa: ARG002  # io's signature
        """Refuse: what was written may have been sent.

        Raises:
            io.UnsupportedOperation: Always. The writer can go on.
        """
        raise io.UnsupportedOperation(
            f"{self!r} cannot seek: what was written may have been sent. What does seek, as torch.export.save, must "
            "write to an io.BytesIO first; then call writer.write(buffer.getbuffer())."
        )

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._position

    @exclusive
    def expect(self, size: int) -> None:
        """Say how many bytes will be written, before any is; see ``size`` of ``S3Client.put_object``.

        Args:
            size: In bytes.

        Raises:
            ArgumentError: S3 takes no object of that size, or something was written already.
            ClosedError: The writer was closed.
        """
        self._check_open()
        if self._position:
            raise ArgumentError(f"size={size} comes too late: {self._position} bytes of {self!r} are written.")
        self._size = self._checked(size)
        self._buffer = PartBuffer(self._part_size())

    def _checked(self, size: int) -> int:
        largest = self._most_parts() * plan.MAX_PART_SIZE
        if not 0 <= size <= largest:
            raise ArgumentError(
                f"s3://{self.bucket}/{self.key} cannot have {size} bytes: S3 takes {largest} (50 TB) at "
                "most. Save it as several objects.",
                bucket=self.bucket,
                key=self.key,
            )
        return size

    @exclusive
    def write(self, data: Buffer) -> int:
        """Write bytes; once a part is full it is sent.

        Args:
            data: C-contiguous memory of items of any type. It may change after the call.

        Returns:
            Its size in bytes; all of it was taken.

        Raises:
            ClosedError: The writer was closed.
            ArgumentError: It is more than the size that was told. The upload is aborted then, and the writer closed.
            S3Error: A part could not be sent. The upload is aborted then, and the writer closed.
        """
        return self._take(data, PartBuffer.add)

    @exclusive
    def write_lasting(self, data: Buffer, /) -> int:
        """Write bytes that stay as they are until the writer is closed: many of them are sent from where they are.

        If they change nevertheless the server refuses them; if checksums are off the object is damaged.

        Args:
            data: C-contiguous memory of items of any type.

        Returns:
            Its CRC-32, as ``zlib.crc32`` has it.

        Raises:
            ClosedError: As ``write``, like the other.
            S3Error: A part could not be sent.
        """
        known: list[tuple[Checksum, int]] = []

        def lend(buffer: PartBuffer, piece: memoryview) -> None:
            crc32 = checksums.compute(checksums.CRC32, [piece])
            known.append((crc32, len(piece)))
            if len(piece) < _WORTH_LENDING:
                buffer.add(piece)
            else:
                buffer.lend(piece, crc32)

        self._take(data, lend)
        return int.from_bytes(checksums.combine_all(checksums.CRC32, known).value, "big")

    def _take(self, data: Buffer, take: Callable[[PartBuffer, memoryview], None]) -> int:
        """Give bytes to the parts, as much at a time as fits; returns how many those were."""
        try:
            self._check_open()
            view = _buffer.readable_bytes(data)
        except Exception:  # which are of the call alone: the writer can go on
            raise
        except BaseException:
            self._abandon()
            raise
        begin = 0
        with self._abandoned_on_error():
            if self._size is not None and self._position + len(view) > self._size:
                raise self._other_size(self._position + len(view))
            while True:
                if begin == len(view):
                    break
                if not self._buffer.room:
                    self._next_part()
                end = min(begin + self._buffer.room, len(view))
                take(self._buffer, view[begin:end])
                begin = end
            if self._upload is not None:
                self._upload.nudge()
        self._position += begin
        return begin

    @exclusive
    def close(self) -> None:
        """Send what is left and make the object appear. Does nothing if the writer is closed already.

        Raises:
            ArgumentError: Fewer bytes were written than was told; nothing is stored.
            S3Error: The object could not be stored, and nothing of it is visible; if that is not certain, the message
                says so.
        """
        if self.closed:
            return
        with self._abandoned_on_error():
            if self._size is not None and self._position != self._size:
                raise self._other_size(self._position)
            if self._upload is None:
                self._put_whole()
            else:
                self._send(self._upload, is_last=True)
                self.etag = self._upload.complete() or None
            self._end(_State.COMMITTED)

    @exclusive
    def abort(self) -> None:
        """Abort the upload: nothing becomes visible, and parts that were sent are deleted.

        Does nothing if the writer is closed already, and never fails: if the service can't be reached, a warning with
        the upload's id is logged, and the bucket's lifecycle rule for incomplete uploads must clear it.
        """
        if self.closed:
            return
        upload = self._upload
        try:
            try:
                self._end(_State.ABORTED)
                if upload is not None:
                    upload.abort()
            except BaseException:
                if upload is not None:
                    leftovers.leave(upload.abort)  # the next call does what was interrupted
                raise
        except BaseException:
            if upload is not None:
                upload.cancel()  # but nothing is under way until then
            raise

    def _abandon(self) -> None:
        """Abort, in two seconds at most; or leave what arrived, if a later writer is to go on with it."""
        if not self.closed:
            self._leave()
            leftovers.send()  # what a second Ctrl-C interrupts here is left to the next call

    def _check_not_ended(self) -> None:
        """Check, in the middle of a write, that no other thread has left the ``with`` block by an error.

        Raises:
            ConcurrentUseError: One has: the upload is aborted.
        """
        if self.closed:
            raise in_use(self)

    def _leave(self) -> None:
        """Abort by whoever sends something next: the caller may be the garbage collector."""
        upload = self._upload
        if upload is not None and not self._is_to_stay(upload):
            leftovers.leave(upload.abort)  # first: only now the writer may forget it
        try:
            self._end(_State.ABORTED)
            if upload is not None:
                upload.cancel()
        except BaseException:
            if upload is not None:
                upload.cancel()  # again: an interrupt may have come before its first line
            raise

    def _is_to_stay(self, upload: MultipartUpload) -> bool:
        """Whether what arrived is for a later writer, or another process goes on with this upload."""
        return (self._resumes and upload.can_be_resumed) or self._pid != os.getpid()

    def _end(self, state: _State) -> None:
        """Close the file."""
        self._state = state
        self._ending = state.value
        self._upload = None
        self._buffer = PartBuffer(0)

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _part_size(self) -> int:
        number = self._parts + 1
        most = self._most_parts()
        if number > most:
            raise RequestError(
                f"s3://{self.bucket}/{self.key} has {self._position} bytes in {most} parts, "
                "which is all that S3 takes. Use a larger S3ClientConfig(part_size=...), or say the size beforehand: "
                "put_object(..., size=...).",
                bucket=self.bucket,
                key=self.key,
            )
        if self._size is not None:
            return plan.known_upload_part_size(self._size, self._access.config.part_size, most)
        return plan.upload_part_size(number, self._access.config.part_size)

    def _most_parts(self) -> int:
        return NOTE_NUMBER - 1 if self._resumes else plan.MAX_PARTS  # that of the note is no part of the object

    def _other_size(self, position: int) -> ArgumentError:
        return ArgumentError(
            f"{position} bytes were written to s3://{self.bucket}/{self.key}, which was to have size={self._size}. "
            "Nothing is stored.",
            bucket=self.bucket,
            key=self.key,
        )

    def _next_part(self) -> None:
        """Send the part that is full, and take memory for the next."""
        self._check_not_ended()
        upload = self._upload
        if upload is None:
            # Known before it begins: whatever interrupts that, the upload is aborted.
            self._upload = upload = MultipartUpload(self._access, self.bucket, self.key, self.options)
            last = None if self._size is None else -(-self._size // self._part_size())
            upload.begin(resumes=self._resumes, last=last)
        self._send(upload)
        self._buffer = upload.buffer(self._part_size())
        if self.closed:
            upload.abort(leftovers.WITHIN)  # another thread has aborted what was there before this part
            raise in_use(self)

    def _send(self, upload: MultipartUpload, *, is_last: bool = False) -> None:
        upload.send(self._buffer, is_last=is_last)
        self._parts += 1

    def _put_whole(self) -> None:
        bucket = self._access.bucket(self.bucket)
        check_condition(self._access, self.bucket, self.key, self.options)
        crc32 = self._buffer.crc32 if bucket.sends_checksums else None
        put = PutObject(bucket, self.key, self._buffer.views, crc32, signed_fields=self.options.fields())
        try:
            self._access.run([put])
            self.etag = put.etag
        except (ObjectExistsError, ObjectChangedError, ObjectNotFoundError) as error:
            if put.sent < 2 or not self.options.fields_to_complete():
                raise
            # An attempt whose answer was lost may have stored it.
            is_own = self._is_stored()
            if is_own is None:
                sentence = "An earlier request has met no answer, and whether it has stored this object is not known."
                error.args = (f"{error.args[0]} {sentence}",)
            if not is_own:
                self.etag = None
                raise

    def _is_stored(self) -> bool | None:
        """Whether what was written is what is there: by checksum or MD5; None if neither can be compared."""
        bucket = self._access.bucket(self.bucket)
        stored = HeadObject(bucket, self.key, asks_checksum=bucket.sends_checksums)
        try:
            self._access.run([stored])
        except S3Error:
            return None
        if stored.head is None:
            raise AssertionError("a HEAD that succeeded without an answer")
        fields = stored.head.fields
        self.etag = fields.get("etag")
        if stored.size != self._buffer.length:
            return False
        etag = fields.get("etag", "").removeprefix("W/").strip('"')
        if etag == self._buffer.md5:
            return True
        told = checksums.checksum_of_object(fields, is_range=False)
        if told is not None and checksums.is_available(told.algorithm):
            return told == checksums.compute(told.algorithm, self._buffer.views)
        is_md5 = bucket.has_md5_etags and _MD5.fullmatch(etag) and "x-amz-server-side-encryption" not in fields
        return False if is_md5 else None


# Writers whose upload must be aborted before the interpreter ends.
_open_writers: weakref.WeakSet[S3Writer] = weakref.WeakSet()


@atexit.register
def _leave_open_writers() -> None:
    """Leave the uploads of open writers to be aborted: what sends them was registered before, and comes after."""
    for writer in list(_open_writers):
        writer.__del__()
