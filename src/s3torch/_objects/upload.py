"""A multipart upload: parts under way side by side, in memory that is used again.

What an upload was begun with (metadata, type, class, encryption) is the object's in the end, and no request tells it
before. So an upload that may be gone on with says it itself: one of its parts is a note, which holds a digest of all
that it was begun with. ListParts tells the ETag of each part, which is the MD5 of its bytes; so whoever would send the
same note goes on, and nobody else. Where ETags are no MD5s, nothing can be compared: then nothing is left for a later
writer.

On Amazon S3 the note is part 10,000. It is not named when the upload is completed, and S3 drops it
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html). Ceph refuses an upload with a part
that is not named. So on other servers the last part of the object takes the place of the note: a part that is sent
again replaces the one before. The note has the number of the last part if that is known, as the size is; else 10,000,
or 1,000 where a server takes no more. Numbers with a gap are refused by Amazon S3 where there are checksums, and by
some other servers; then the last part is sent once more, with the number behind the others.

With the note goes what the upload was begun with. So the last part is sent when all others have arrived, and what fails
after it is aborted and begun anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from s3torch._aws import checksums, multipart
from s3torch._aws.checksums import UploadChecksums
from s3torch._aws.listing import PageChain
from s3torch._aws.multipart import UploadedPart
from s3torch._aws.operations import HeadObject
from s3torch._aws.sending import UploadPart
from s3torch._aws.upload_listing import ListParts
from s3torch._objects.novelty import check_condition
from s3torch._objects.part_buffer import PartBuffer, StoredPart
from s3torch._objects.uploads import abort_multipart_upload, follow, list_multipart_uploads
from s3torch._transfer import plan
from s3torch._transfer.scope import LastingScope
from s3torch.errors import AccessDeniedError, RequestError, S3Error

if TYPE_CHECKING:
    from s3torch._access import Access
    from s3torch._aws.checksums import Checksum
    from s3torch._aws.object_options import ObjectOptions
    from s3torch._aws.upload_listing import PartsPage
    from s3torch._transfer.exchange import Exchange

__all__ = ["NOTE_NUMBER", "MultipartUpload", "note_of"]

_log = logging.getLogger(__name__)

# Of the note, the largest first: some servers take 1,000 parts and no more.
_NOTE_NUMBERS = (plan.MAX_PARTS, 1000)
# By which a server says that it does not take the parts that are named, or their numbers.
_REFUSED_PARTS = {"InvalidPart", "InvalidPartOrder", "InvalidArgument", "InvalidRequest"}

# Parts under way are moved at most this often while others are written, in seconds.
_NUDGE_INTERVAL = 0.0002


NOTE_NUMBER = plan.MAX_PARTS


def note_of(fields: Mapping[str, str]) -> bytes:
    """Return the note of an upload: the same for the same header fields of CreateMultipartUpload, whatever their order.

    It is a digest, as who may list parts may not be meant to read metadata.
    """
    text = json.dumps(sorted(fields.items()))
    return b"s3torch upload 1 " + hashlib.sha256(text.encode()).hexdigest().encode()


class _Flying(LastingScope):
    """A part that is under way.

    Args:
        access: Sends it.
        request: Sends the bytes of ``buffer``.
        buffer: Is the upload's again once the part has arrived.
    """

    def __init__(self, access: Access, request: UploadPart, buffer: PartBuffer) -> None:
        super().__init__(access.engine())
        self.request = request
        self.buffer = buffer

    def begin(self) -> None:
        """Send it, as far as that takes no waiting."""
        self.submit(self.request)
        self._engine.nudge()

    def cancel(self) -> None:
        """Cancel it, and drop its memory: an error that somebody keeps refers to this."""
        super().cancel()
        self.buffer = PartBuffer(0)

    def nudge(self) -> None:
        """Move the parts that are under way in this thread, without waiting."""
        if self.is_here:
            self._engine.nudge(_NUDGE_INTERVAL)


class MultipartUpload:
    """Sends the parts of one object, several at a time, while the next is written.

    Args:
        access: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        options: Of the object.

    Attributes:
        parts: How many parts were given to ``send``.
        can_be_resumed: Whether a later writer can know what it was begun with.
    """

    def __init__(self, access: Access, bucket: str, key: str, options: ObjectOptions) -> None:
        self.parts = 0
        self.can_be_resumed = False
        self._note_number = 0  # of the part that is the note, while there is one
        self._last: PartBuffer | None = None  # is kept where its number leaves a gap
        self._is_amazons = access.bucket(bucket).endpoint.is_amazons
        self._access = access
        self._bucket = bucket
        self._key = key
        self._options = options
        self._checksums = UploadChecksums(is_wanted=access.bucket(bucket).sends_checksums)
        self._fields = self._options.fields_to_create() | self._checksums.fields_to_create()
        self._stored: dict[int, StoredPart] = {}
        self._sent: dict[int, UploadedPart] = {}
        self._flying: deque[_Flying] = deque()
        self._free: list[PartBuffer] = []
        self._began: float | None = None
        self._id = ""
        self._creation: multipart.CreateMultipartUpload | None = None

    def begin(self, *, resumes: bool, last: int | None = None) -> None:
        """Begin it with the service.

        Args:
            resumes: Whether to go on with an upload of this key that was interrupted, if it was begun with the same,
                and to let a later writer do so.
            last: The number of the last part; None if that is not known.
        """
        note = note_of(self._fields) if resumes and self._access.bucket(self._bucket).has_md5_etags else None
        self._id = (self._find_interrupted(note, last) if note is not None else None) or self._create()
        if note is not None and not self.can_be_resumed:
            self._send_note(note, last)

    def buffer(self, capacity: int) -> PartBuffer:
        """Return memory for the next part; waits for an earlier part while all that may be used is."""
        self._settle()
        access = self._access
        limit = plan.upload_parts_at_once(capacity, access.config.part_size, access.share.bytes_in_flight)
        while not self._free and len(self._flying) >= limit:
            self._await(self._flying[0])
            self._settle()
        while self._free:
            buffer = self._free.pop()
            if buffer.capacity == capacity:
                return buffer
        return PartBuffer(capacity)

    def send(self, buffer: PartBuffer, *, is_last: bool = False) -> None:
        """Begin to send a part; its memory is this upload's from now on.

        Args:
            buffer: Its bytes.
            is_last: Whether no other comes behind it.
        """
        self.parts = number = self.parts + 1
        if is_last and self._note_number and not self._is_amazons:
            self._last = buffer
            del buffer  # whoever keeps an error keeps this frame
            self._wait_for_parts()  # while there is the note: what is interrupted here can be gone on with
            buffer, number = self._last, self._note_number
            self._last = buffer if number > self.parts else None
        if number == self._note_number:
            self.can_be_resumed = False  # first: an interrupt may come at any time
            self._note_number = 0
        stored = self._stored.get(number)
        if stored is not None and stored.holds(buffer):
            self._note_sent(number, stored.etag, self._crc32_of(buffer), buffer)
            return
        self._begin(number, buffer)

    def nudge(self) -> None:
        """Move the parts that are under way, without waiting."""
        if self._flying:
            self._flying[0].nudge()

    def complete(self) -> str:
        """Wait for all parts, and make the object appear; returns its ETag, empty if that was not told."""
        self._wait_for_parts()
        etag = self._complete()
        if etag is None:
            self._close_gap()
            etag = self._complete()
        if etag is None:
            raise AssertionError("a gap that is closed")
        if self._left and not self._is_amazons:
            self._check_size(sum(part.length for part in self._sent.values()))
        return etag

    @property
    def _left(self) -> int:
        """Bytes of parts that are not named."""
        return sum(part.length for number, part in self._stored.items() if number not in self._sent)

    def _close_gap(self) -> None:
        """Send the last part again, with the number behind the others."""
        last, self._last = self._last, None
        if last is None:
            raise AssertionError("no gap")
        number = max(self._sent)
        sent = self._sent.pop(number)
        self._stored[number] = StoredPart(sent.etag, sent.length)
        self._begin(self.parts, last)
        self._wait_for_parts()

    def _begin(self, number: int, buffer: PartBuffer) -> None:
        flying = _Flying(self._access, self._part(number, buffer), buffer)
        self._flying.append(flying)  # first: what is in there is cancelled
        flying.begin()

    def _complete(self) -> str | None:
        """Name all parts; returns the object's ETag, or None if their numbers are perhaps refused for a gap."""
        check_condition(self._access, self._bucket, self._key, self._options)
        parts = dict(sorted(self._sent.items()))
        if len(parts) != self.parts:
            raise AssertionError(f"{len(parts)} of {self.parts} parts")
        known = [(part.checksum, part.length) for part in parts.values() if part.checksum is not None]
        fields = self._options.fields_to_complete() | self._checksums.fields_to_complete(known)
        bucket, engine = self._access.bucket(self._bucket), self._access.engine()
        try:
            return multipart.complete(engine, bucket, self._key, self._id, parts, self._began, fields)
        except RequestError as error:
            if error.code not in _REFUSED_PARTS:
                raise
            if self._last is not None:
                return None
            if self._left:
                why = (
                    "The upload has parts that this object does not have, of an earlier writer with resume=True, and "
                    "the server may want all to be named. Write the object again: the upload is aborted."
                )
                error.args = (f"{error.args[0]} {why}",)
            raise

    def _check_size(self, size: int) -> None:
        """Check that the server has dropped the parts that were not named."""
        request = HeadObject(self._access.bucket(self._bucket), self._key, is_lenient=True)
        try:
            self._access.run([request])
        except AccessDeniedError:
            return  # a writer need not be permitted to look
        if request.size == size + self._left:  # another size is of somebody else's object, or of none
            raise S3Error(
                f"s3://{self._bucket}/{self._key} has {request.size} bytes, and {size} were written: the server puts "
                "parts into the object that are not named when the upload is completed. The object is damaged. Write "
                "it again without resume=True.",
                bucket=self._bucket,
                key=self._key,
            )

    def _wait_for_parts(self) -> None:
        """Wait until all parts that are under way have arrived."""
        while self._flying:
            self._await(self._flying[0])
            self._settle()

    def cancel(self) -> None:
        """Stop sending; the parts that arrived stay with the service. Safe from the garbage collector."""
        try:
            self._cancel_flying()
        except BaseException:
            self._cancel_flying()  # again: an interrupt came before all were cancelled
            raise
        self._free.clear()
        self._last = None

    def _cancel_flying(self) -> None:
        while self._flying:
            flying = self._flying[0]
            flying.cancel()
            if self._flying and self._flying[0] is flying:  # nobody else has taken it out meanwhile
                self._flying.popleft()  # only now: what was interrupted is found here

    def abort(self, within: float | None = None) -> None:
        """Stop sending and delete the parts that arrived; an error is logged and not raised.

        Args:
            within: Seconds that it may take at most; None: as long as the configuration allows.
        """
        self.cancel()
        # It may have begun although nobody got to know: an interrupt came between the answer and who asked.
        upload_id = self._id or (self._creation.upload_id if self._creation is not None else "")
        if not upload_id:
            return
        try:
            abort_multipart_upload(self._access, self._bucket, self._key, upload_id, within)
        except S3Error as error:
            _log.warning("Upload %s of s3://%s/%s could not be aborted: %s", upload_id, self._bucket, self._key, error)

    def _settle(self) -> None:
        """Note the parts that have arrived, and take their memory back.

        Raises:
            S3Error: One could not be sent.
        """
        for flying in list(self._flying):
            request = flying.request
            if not request.is_done:
                continue
            if request.error is not None:
                raise request.take_error()
            self._flying.remove(flying)
            self._note_sent(request.part_number, request.etag, request.checksum, flying.buffer)

    def _await(self, flying: _Flying) -> None:
        if not flying.is_here:  # begun by another thread, or before this process was forked
            buffer = flying.buffer
            flying.cancel()
            again = _Flying(self._access, self._part(flying.request.part_number, buffer), buffer)
            self._flying[self._flying.index(flying)] = flying = again
            flying.begin()
        flying.wait()

    def _part(self, number: int, buffer: PartBuffer) -> UploadPart:
        return UploadPart(
            self._access.bucket(self._bucket),
            self._key,
            buffer.views,
            self._crc32_of(buffer),
            upload_id=self._id,
            part_number=number,
            verifies_checksum=self._checksums.are_verified,
        )

    def _note_sent(self, number: int, etag: str, checksum: Checksum | None, buffer: PartBuffer) -> None:
        self._sent[number] = UploadedPart(etag, buffer.length, checksum if self._checksums.are_verified else None)
        if buffer is self._last:
            return
        buffer.clear()
        self._free.append(buffer)

    def _crc32_of(self, buffer: PartBuffer) -> Checksum | None:
        return buffer.crc32 if self._access.bucket(self._bucket).sends_checksums else None

    def _create(self) -> str:
        bucket = self._access.bucket(self._bucket)
        self._creation = request = multipart.CreateMultipartUpload(bucket, self._key, self._fields)
        self._access.run([request])
        self._checksums.note_created(request.checksum_algorithm, request.checksum_type)
        self._began = request.began
        self._note_server(request)
        return request.upload_id

    def _note_server(self, request: Exchange) -> None:
        """Note whether an answer is that of Amazon S3, which may stand behind a name that is not Amazon's."""
        if request.head is not None and request.head.fields.get("server") == "AmazonS3":
            self._is_amazons = True

    def _send_note(self, note: bytes, last: int | None) -> None:
        """Say in the upload what it was begun with."""
        bucket, body = self._access.bucket(self._bucket), [memoryview(note)]
        crc32 = checksums.compute(checksums.CRC32, body) if bucket.sends_checksums else None
        numbers = _NOTE_NUMBERS[:1] if self._is_amazons else (last,) if last is not None else _NOTE_NUMBERS
        refusal: RequestError | None = None
        for number in numbers:
            request = UploadPart(bucket, self._key, body, crc32, upload_id=self._id, part_number=number)
            try:
                self._access.run([request])
            except RequestError as error:
                refusal = refusal or error
                continue
            self._note_number = number
            self.can_be_resumed = StoredPart(request.etag, len(note)).is_note(note)
            return
        # The server takes no such part: the object can be written nevertheless.
        _log.warning("The upload to s3://%s/%s cannot be gone on with later: %s", self._bucket, self._key, refusal)

    def _find_interrupted(self, note: bytes, last: int | None) -> str | None:
        """Return the id of the newest upload of this key that has the note, and remember its parts; None if none has.

        Others were begun with other options, or by another program.
        """
        numbers = _NOTE_NUMBERS if last is None else (last, *_NOTE_NUMBERS)
        uploads = [
            each for each in list_multipart_uploads(self._access, self._bucket, self._key) if each.key == self._key
        ]
        for upload in sorted(uploads, key=lambda each: each.initiated, reverse=True):
            try:
                pages = list(self._pages_of_parts(upload.upload_id))
            except S3Error as error:
                if error.code != "NoSuchUpload":  # completed or aborted since it was listed
                    raise
                continue
            # All of them, before one is looked for: some servers take the number of a part for its place.
            stored = {part.number: StoredPart(part.etag, part.size) for page in pages for part in page.parts}
            noted = [number for number in numbers if number in stored and stored[number].is_note(note)]
            if not noted:
                continue
            del stored[noted[0]]
            if last is not None and not self._is_amazons and max(stored, default=0) >= last:
                continue  # it has parts that this object does not have, which some servers want to be named
            self._note_number = noted[0]
            self._began = upload.initiated
            self.can_be_resumed = True
            for page in pages:
                self._checksums.note_created(page.checksum_algorithm, page.checksum_type)
            self._stored = stored
            return upload.upload_id
        return None

    def _pages_of_parts(self, upload_id: str) -> Iterator[PartsPage]:
        marker = 0
        chain = PageChain()
        while True:
            request = ListParts(self._access.bucket(self._bucket), self._key, upload_id, marker)
            self._access.run([request])
            self._note_server(request)
            page = request.page
            yield page
            if page.following is None:
                return
            following = {} if page.following <= marker else {"part-number-marker": page.following}
            follow(chain, following, is_empty=not page.parts, bucket=self._bucket, key=self._key)
            marker = page.following
