"""The requests that are made often, as exchanges: GetObject, HeadObject, PutObject, UploadPart, ListObjectsV2.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence

from s3torch._aws import sigv4
from s3torch._aws.answers import ErrorDocument, Subject, error_from_answer, parse_error_document
from s3torch._aws.bucket import Bucket
from s3torch._transfer import http1
from s3torch._transfer.engine import Exchange
from s3torch._transfer.http1 import ContentRange, Destination, Head, Inbox
from s3torch.errors import ObjectChangedError, ProtocolError, S3Error

__all__ = ["GetObject", "Operation", "PlaceRange", "PutObject", "Read", "UploadPart"]

_MAX_ERROR_BODY = 1024 * 1024
_NOTHING: Mapping[str, str] = {}
# A page of a listing is below 4 MiB: 1,000 keys of 1,024 bytes, each percent-encoded as three.
_MAX_READ_BODY = 16 * 1024 * 1024

Response = Generator[memoryview, int, S3Error | None]


class Operation(Exchange):
    """A request to S3 about one bucket, signed for each attempt.

    Args:
        name: The S3 API's name of the operation.
        method: The HTTP method.
        bucket: Makes and corrects the requests.
        key: The object's key, or None.
        query: Parameters.
        signed_fields: Header fields that are signed: ``x-amz-*``.
        memory: Bytes that the answer fills.
    """

    def __init__(
        self,
        name: str,
        method: str,
        bucket: Bucket,
        key: str | None,
        *,
        query: Mapping[str, str] | None = None,
        signed_fields: Mapping[str, str] | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__(bucket.endpoint.origin, memory)
        self.name = name
        self._method = method
        self._bucket = bucket
        self._key = key
        self._query = query or _NOTHING
        self._fields: dict[str, str] = {}
        self._signed_fields = signed_fields or _NOTHING
        self._corrected: set[type[S3Error]] = set()
        self._corrections = bucket.corrections

    def __repr__(self) -> str:
        state = "done" if self.is_done else "pending"
        return f"<{self.name} {self.subject} {state}, {self.attempts} attempts>"

    @property
    def subject(self) -> Subject:
        """What the request is about."""
        return Subject(self.name, self._bucket.name, self._key, str(self.origin))

    def request(self) -> Sequence[memoryview]:
        """Return the signed head; there is no body."""
        return [memoryview(self._sign(sigv4.EMPTY_SHA256))]

    def response(self, inbox: Inbox) -> Response:
        """Read the answer: a success by ``accept``, anything else as an error."""
        self.head = head = yield from http1.read_head(inbox)
        if self.is_success(head):
            return (yield from self.accept(inbox, head))
        return (yield from self._refusal(inbox, head))

    def is_success(self, head: Head) -> bool:
        """Whether ``accept`` is to read the answer."""
        return 200 <= head.status < 300

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the body of a success."""
        yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        return None

    def recover(self, error: S3Error) -> bool:
        """Let the bucket correct region, clock or credentials; once each, unless another fault came in between."""
        kind = type(error)
        if kind in self._corrected:
            return False
        if self.head is None or not self._bucket.correct(error, self.head.fields, self._corrections):
            self._corrected.clear()  # after an outage another key may have been withdrawn; attempts are bounded
            return False
        self._corrected.add(kind)
        self.origin = self._bucket.endpoint.origin
        return True

    def explain(self, error: S3Error) -> S3Error:
        """Name the operation and the object in errors that know neither."""
        if error.bucket is not None:
            return error
        error.bucket, error.key = self._bucket.name, self._key
        error.args = (f"{self.name} on {self.subject} failed: {error.args[0]}",)
        return error

    def _sign(self, payload_sha256: str) -> bytes:
        self._corrections = self._bucket.corrections
        return self._bucket.request_head(
            self._method, self._key, self._query, self._fields, self._signed_fields, payload_sha256
        )

    def _refusal(self, inbox: Inbox, head: Head) -> Response:
        document = ErrorDocument()
        if self._method != "HEAD" and head.status not in (204, 304):
            document = parse_error_document((yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)))
        return error_from_answer(self.subject, head.status, head.fields, document)


class Read(Operation):
    """A request whose answer is read whole: HeadObject, or a page of a listing.

    Attributes:
        body: The answer's body; empty for HEAD.
    """

    is_read = True
    body = b""

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Keep the body."""
        if self._method != "HEAD" and head.status != 204:
            self.body = yield from http1.read_small_body(inbox, head, _MAX_READ_BODY)
        return None


PlaceRange = Callable[[ContentRange], memoryview]


class GetObject(Operation):
    """GetObject of a range, received into given memory.

    An answer that broke off goes on from the byte that it reached, with If-Match on the ETag of its first head, so
    that bytes of two versions are never mixed. Every Content-Range and length is checked.

    Args:
        bucket: Of the object.
        key: Of the object.
        start: First byte.
        stop: The byte after the last; the object may end before it.
        into: Memory of ``stop - start`` bytes, in one or several pieces; or what returns memory for the answered range
            once that is known.
        etag: What the object's ETag must be, or None for any.
        version_id: The version to read, or None for the newest.

    Attributes:
        total: The object's size in bytes, once known. None also if the range lies beyond the end and the server does
            not say what the size is.
        etag: The object's ETag, once known.
        filled: Bytes received.
    """

    is_read = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        start: int,
        stop: int,
        into: memoryview | Sequence[memoryview] | PlaceRange,
        *,
        etag: str | None = None,
        version_id: str | None = None,
    ) -> None:
        query = None if version_id is None else {"versionId": version_id}
        super().__init__("GetObject", "GET", bucket, key, query=query, memory=stop - start)
        self.start = start
        self.stop = stop
        self.etag = etag
        self.total: int | None = None
        self._into = into
        self._destination: Destination | None = None
        if not callable(into):
            self._destination = Destination(into) if isinstance(into, memoryview) else Destination(*into)

    @property
    def filled(self) -> int:
        """How many bytes were received."""
        return self._destination.filled if self._destination is not None else 0

    def request(self) -> Sequence[memoryview]:
        """Return the signed head, asking for what is still missing."""
        is_filled = self.total is not None and self.filled >= min(self.stop, self.total) - self.start
        if self._destination is not None and is_filled:
            self._destination.rewind(0)  # only the end mark of the body is missing, and no range asks for that
        self._fields["range"] = http1.format_range(self.start + self.filled, self.stop)
        if self.etag is not None:
            self._fields["if-match"] = self.etag
        return super().request()

    def is_success(self, head: Head) -> bool:
        """Whether this is the range that was asked for, or says that there is nothing in it."""
        return head.status in (200, 206, 416)

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the body into its memory."""
        if head.status == 416:
            return (yield from self._accept_nothing(inbox, head))
        begin = self.start + self.filled
        content_range = self._answered_range(head, begin)
        changed = self._observe(content_range.total, head.fields.get("etag"))
        if changed is not None:
            raise changed  # the body is not wanted, so neither is the connection
        if content_range.total == 0:
            return None
        if self._destination is None:
            if not callable(self._into):
                raise AssertionError("memory without a destination")
            self._destination = Destination(self._into(content_range))
        try:
            yield from http1.read_body(inbox, head, self._destination, content_range.stop - begin)
        except ProtocolError:
            self._destination.rewind(begin - self.start)  # bytes of a misframed body are not to be trusted
            raise
        return None

    def _accept_nothing(self, inbox: Inbox, head: Head) -> Response:
        yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        field = head.fields.get("content-range")
        total = http1.parse_content_range(field).total if field else None
        if total is None and self.start == 0:
            total = 0  # only an empty object has no first byte
        if self.filled:
            return self._changed(f"it was {self.total} bytes long, and is {total} now")
        if total is not None and total > self.start:
            raise ProtocolError(
                f"Bytes {self.start}-{self.stop - 1} were asked for, and the server answers that its {total} bytes "
                "have none of them. The server does not serve ranges properly."
            )
        return self._observe(total, head.fields.get("etag"))

    def _answered_range(self, head: Head, begin: int) -> ContentRange:
        field = head.fields.get("content-range")
        if head.status == 200 or field is None:
            return self._whole_object(head, begin)
        answered = http1.parse_content_range(field)
        if answered.total is None:
            raise ProtocolError(f"The answer's Content-Range {field!r} does not tell the size of the object.")
        if answered.start != begin or answered.stop != min(self.stop, answered.total):
            raise ProtocolError(
                f"Bytes {begin}-{self.stop - 1} were asked for and {field!r} was answered. "
                "The server does not serve ranges properly."
            )
        return answered

    def _whole_object(self, head: Head, begin: int) -> ContentRange:
        """Take an answer without a range for the whole object, if the whole object is what was asked for."""
        length = head.content_length
        if head.status != 200 or begin != 0 or length is None or length > self.stop:
            raise ProtocolError(
                f"Bytes {begin}-{self.stop - 1} were asked for, and the answer has status {head.status} and no "
                "Content-Range. The server does not serve ranges."
            )
        return ContentRange(0, length, length)

    def _observe(self, total: int | None, etag: str | None) -> S3Error | None:
        """Remember size and ETag; a later answer with others is of another version."""
        if self.total is not None and total is not None and total != self.total:
            return self._changed(f"it was {self.total} bytes long, and is {total} now")
        if self.etag is not None and etag is not None and etag != self.etag:
            return self._changed(f"its ETag was {self.etag}, and is {etag} now")
        self.total = total if total is not None else self.total
        self.etag = etag or self.etag
        return None

    def _changed(self, how: str) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self.subject} was replaced while it was read: {how}. Open it again to read the new version.",
            bucket=self._bucket.name,
            key=self._key,
        )


class PutObject(Operation):
    """PutObject of bytes that are at hand; also UploadPart, which differs by its query.

    Over TLS the body is signed as ``UNSIGNED-PAYLOAD``; over plain HTTP its SHA-256 is signed, which lets the server
    verify it.

    Args:
        bucket: Of the object.
        key: Of the object.
        body: Must not change until the exchange is done.
        signed_fields: More header fields, such as ``x-amz-storage-class``.

    Attributes:
        etag: What the server answered.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        body: memoryview,
        *,
        signed_fields: Mapping[str, str] | None = None,
        name: str = "PutObject",
        query: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, "PUT", bucket, key, query=query, signed_fields=signed_fields, memory=len(body))
        self.etag = ""
        self._body = body
        self._fields["content-length"] = str(len(body))
        is_secure = bucket.endpoint.origin.scheme == "https"
        self._payload_sha256 = sigv4.UNSIGNED_PAYLOAD if is_secure else hashlib.sha256(body).hexdigest()

    def request(self) -> Sequence[memoryview]:
        """Return the signed head and the body."""
        head = memoryview(self._sign(self._payload_sha256))
        return [head, self._body] if len(self._body) else [head]

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Remember the ETag."""
        self.etag = head.fields.get("etag", "")
        return (yield from super().accept(inbox, head))


class UploadPart(PutObject):
    """UploadPart of a multipart upload.

    Args:
        upload_id: From CreateMultipartUpload.
        part_number: From 1.
    """

    def __init__(self, bucket: Bucket, key: str, body: memoryview, *, upload_id: str, part_number: int) -> None:
        query = {"partNumber": str(part_number), "uploadId": upload_id}
        super().__init__(bucket, key, body, name="UploadPart", query=query)
        self.part_number = part_number
