"""The requests to S3 as exchanges; those that send an object are in ``sending``, those of uploads in ``multipart``.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html.

It is one file of over 450 lines: reading is most of them, and what all requests share is read beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Generic, TypeVar

from s3torch._aws import checksums, sigv4
from s3torch._aws.answers import ErrorDocument, Subject, error_from_answer, parse_error_document
from s3torch._aws.bucket import Bucket
from s3torch._aws.checksums import Checksum
from s3torch._transfer import http1
from s3torch._transfer.connection import Origin
from s3torch._transfer.exchange import Exchange
from s3torch._transfer.http1 import ContentRange, Destination, Head, Inbox
from s3torch.errors import IntegrityError, ObjectChangedError, ProtocolError, S3Error

__all__ = [
    "DeleteObject",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "Operation",
    "PlaceRange",
    "Response",
    "damaged",
]

_MAX_ERROR_BODY = 1024 * 1024
_NOTHING: Mapping[str, str] = {}
# A page of a listing is below 4 MiB: 1,000 keys of 1,024 bytes, each percent-encoded as three.
_MAX_PAGE = 16 * 1024 * 1024

Response = Generator[memoryview, int, S3Error | None]
_Page = TypeVar("_Page")


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

    Attributes:
        takes_customer_key: Whether it carries the key of SSE-C, where one is used: it is about an object's bytes.
    """

    takes_customer_key = False

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
        if bucket.customer_key and self.takes_customer_key:
            self._signed_fields = {**self._signed_fields, **bucket.customer_key}
        self._corrected: set[tuple[type[S3Error], str | None]] = set()
        self._access_key: str | None = None
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
        """Read the body."""
        yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        return None

    def recover(self, error: S3Error) -> bool:
        """Let the bucket correct region, clock or credentials, once for each key unless another fault came between."""
        correction = type(error), self._access_key
        if correction in self._corrected:
            return False
        if self.head is None or not self._bucket.correct(error, self.head.fields, self._corrections):
            self._corrected.clear()  # after an outage another key may have been withdrawn; attempts are bounded
            return False
        self._corrected.add(correction)
        self.origin = self._bucket.endpoint.origin
        return True

    def explain(self, error: S3Error) -> S3Error:
        """Name the operation and the object in errors that know neither."""
        if error.bucket is not None:
            return error
        error.bucket, error.key = self._bucket.name, self._key
        hint = "" if self.head is not None else _ignored_proxy(self.origin) + self._bucket.region_hint
        error.args = (f"{self.name} on {self.subject} failed: {error.args[0]}{hint}",)
        return error

    def _sign(self, payload_sha256: str) -> bytes:
        self._corrections = self._bucket.corrections
        head = self._bucket.request_head(
            self._method, self._key, self._query, self._fields, self._signed_fields, payload_sha256
        )
        self._access_key = self._bucket.access_key
        return head

    def _refusal(self, inbox: Inbox, head: Head) -> Response:
        document = ErrorDocument()
        if self._method != "HEAD":
            document = parse_error_document((yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)))
        return error_from_answer(self.subject, head.status, head.fields, document)


class HeadObject(Operation):
    """HeadObject: ``head`` is the answer.

    Args:
        bucket: Of the object.
        key: Of the object.
        version_id: The version, or None for the newest.
        etag: What the object's ETag must be, or None for any.
        asks_checksum: Whether the answer is to tell the object's checksum.
    """

    is_read = True
    takes_customer_key = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        version_id: str | None = None,
        *,
        etag: str | None = None,
        asks_checksum: bool = False,
    ) -> None:
        fields = checksums.MODE_FIELDS if asks_checksum else None
        super().__init__("HeadObject", "HEAD", bucket, key, query=_version(version_id), signed_fields=fields)
        if etag is not None:
            self._fields["if-match"] = etag

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Check that it tells a length."""
        del inbox  # there is no body, whatever length is told (RFC 9110 9.3.2)
        yield from ()
        if head.content_length is None:
            return ProtocolError("The answer to a HEAD has no Content-Length.")
        return None


class ListObjectsV2(Operation, Generic[_Page]):
    """A page of a listing.

    Args:
        bucket: To list.
        query: See ``listing.list_parameters``.
        parse: Returns what a page says, or raises ProtocolError; a page that it refuses is asked for again.

    Attributes:
        page: What ``parse`` returned, once the exchange has succeeded.
    """

    is_read = True
    page: _Page

    def __init__(self, bucket: Bucket, query: Mapping[str, str], parse: Callable[[bytes], _Page]) -> None:
        super().__init__("ListObjectsV2", "GET", bucket, None, query=query)
        self._parse = parse

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read and parse the page."""
        body = yield from http1.read_small_body(inbox, head, _MAX_PAGE)
        self.page = self._parse(body)
        return None


def _ignored_proxy(origin: Origin) -> str:
    """Return a sentence on the proxy that the environment names for an origin; empty if there is none."""
    from urllib.request import getproxies_environment, proxy_bypass

    if origin.scheme not in getproxies_environment() or proxy_bypass(origin.host):
        return ""
    return (
        f" {origin.scheme.upper()}_PROXY is set, and s3torch uses no proxies: the endpoint must be reached directly, "
        "such as by a VPC endpoint."
    )


class DeleteObject(Operation):
    """DeleteObject. That there is no such object is no error, as in S3."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        super().__init__("DeleteObject", "DELETE", bucket, key)


def _version(version_id: str | None) -> Mapping[str, str]:
    return _NOTHING if version_id is None else {"versionId": version_id}


PlaceRange = Callable[[ContentRange], memoryview]


class GetObject(Operation):
    """GetObject of a range, received into given memory.

    An answer that broke off goes on from the byte that it reached, with If-Match on the ETag of its first head, so
    that bytes of two versions are never mixed. Every Content-Range and length is checked. If the answer has all bytes
    of the object and their checksum, that is checked, too. A 416 that does not tell the object's size is not taken for
    an answer: HeadObject is asked for it, once. Nor is a whole object that is longer than it should be: it is asked for
    as a range, whose answer tells the size apart from the length.

    Args:
        bucket: Of the object.
        key: Of the object.
        start: First byte.
        stop: The byte after the last; the object may end before it.
        into: Memory of ``stop - start`` bytes, in one or several pieces; or what returns memory for the answered range
            once that is known.
        etag: What the object's ETag must be, or None for any.
        version_id: The version to read, or None for the newest.
        is_whole: Whether this is the whole object, of ``stop`` bytes: then no range is asked for, since many servers
            tell no checksum with a range, even of all bytes.
        has_gaps: Whether some of the memory is to be thrown away, and used more than once: what arrived cannot be
            compared with a checksum then.

    Attributes:
        total: The object's size in bytes, once known.
        etag: The object's ETag, once known.
        filled: Bytes received.
        is_verified: Whether they were compared with the object's checksum.
    """

    is_read = True
    takes_customer_key = True

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
        is_whole: bool = False,
        has_gaps: bool = False,
    ) -> None:
        self._may_verify = bucket.has_checksums and not has_gaps
        fields = checksums.MODE_FIELDS if self._may_verify else None
        query = _version(version_id)
        super().__init__("GetObject", "GET", bucket, key, query=query, signed_fields=fields, memory=stop - start)
        self.start = start
        self.stop = stop
        self.etag = etag
        self.is_verified = False
        self._is_whole = is_whole
        self._checksum: Checksum | None = None
        self.total: int | None = None
        self._into: memoryview | Sequence[memoryview] | PlaceRange | None = into
        self._lacks_size = self._has_asked_size = self._is_longer = False
        self._destination: Destination | None = None
        self._filled = 0
        if not callable(into):
            self._destination = Destination(into) if isinstance(into, memoryview) else Destination(*into)

    def release(self) -> None:
        """Drop the caller's memory."""
        self._filled = self.filled
        self._into = self._destination = None

    @property
    def filled(self) -> int:
        """How many bytes were received."""
        return self._destination.filled if self._destination is not None else self._filled

    @property
    def _missing_from(self) -> int:
        """The first byte to ask for: all anew if only the end of the body is missing, or what is there is damaged."""
        is_filled = self.total is not None and self.filled >= min(self.stop, self.total) - self.start
        return self.start if is_filled else self.start + self.filled

    def request(self) -> Sequence[memoryview]:
        """Return the signed head, asking for what is still missing; a request before it may still be under way."""
        begin = self._missing_from
        if self._method == "HEAD" or (self._is_whole and begin == self.start):
            self._fields.pop("range", None)
        else:
            self._fields["range"] = http1.format_range(begin, self.stop)
        if self.etag is not None:
            self._fields["if-match"] = self.etag
        return super().request()

    def is_success(self, head: Head) -> bool:
        """Whether this is the range that was asked for, or says that there is nothing in it."""
        return head.status in (200, 206, 416) if self._method == "GET" else head.status == 200

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the body into its memory."""
        if self._method == "HEAD":
            self._method = "GET"
            return self._end_at(head.content_length, head.fields.get("etag"))
        if head.status == 416:
            return (yield from self._accept_nothing(inbox, head))
        begin = self._missing_from
        content_range = self._answered_range(head, begin)
        changed = self._observe(content_range.total, head.fields.get("etag"))
        if changed is not None:
            raise changed  # the body is not wanted, so neither is the connection
        if content_range.total == 0:
            return None
        if self._may_verify and content_range.stop - content_range.start == content_range.total:
            self._checksum = checksums.checksum_of_object(head.fields, is_range=head.status == 206)
        if self._destination is None:
            if not callable(self._into):
                raise AssertionError("memory without a destination")
            self._destination = Destination(self._into(content_range))
        self._destination.rewind(begin - self.start)
        try:
            yield from http1.read_body(inbox, head, self._destination, content_range.stop - begin)
        except ProtocolError:
            self._destination.rewind(begin - self.start)  # bytes of a misframed body are not to be trusted
            raise
        if self._checksum is not None:
            self._verify(self._checksum, self._destination)
        return None

    def _verify(self, stored: Checksum, destination: Destination) -> None:
        """Compare what arrived with the checksum that the first answer had; this one may have brought the rest."""
        if not checksums.is_available(stored.algorithm):
            return
        arrived = checksums.compute(stored.algorithm, destination.content())
        if arrived != stored:
            raise damaged(stored, arrived, self._bucket.name, self._key)
        self.is_verified = True

    def recover(self, error: S3Error) -> bool:
        """Ask for the object's size after an answer that does not tell it, or not reliably."""
        if self._is_longer:
            self._is_longer = self._is_whole = False
            return True
        if not self._lacks_size:
            return super().recover(error)
        self._lacks_size = False
        self._method = "HEAD"
        self.attempts -= 1  # the two requests are one attempt
        return True

    def _accept_nothing(self, inbox: Inbox, head: Head) -> Response:
        body = yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        field = head.fields.get("content-range")
        total = http1.parse_content_range(field).total if field else parse_error_document(body).object_size
        if total is None and not self._has_asked_size:
            self._has_asked_size = self._lacks_size = True
        return self._end_at(total, head.fields.get("etag"))

    def _end_at(self, total: int | None, etag: str | None) -> S3Error | None:
        """Take the answer for one of an object that ends before the range."""
        where = f"Bytes {self.start + self.filled}-{self.stop - 1} were asked for, and the server answers that"
        if total is None:
            return ProtocolError(f"{where} there are none, and not how large the object is.")
        if total > self.start and self.total in (None, total):
            return ProtocolError(
                f"{where} its {total} bytes have none of them. The server does not serve ranges properly."
            )
        return self._observe(total, etag)

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
        if self._is_whole and head.status == 200 and begin == 0:
            if length is not None and length > self.stop:
                self._is_longer = True
                raise self._changed(f"it was {self.stop} bytes long, and is {length} now")
            length = self.stop if length is None else length
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


def damaged(stored: Checksum, arrived: Checksum, bucket: str, key: str | None) -> IntegrityError:
    """Return the error of an object whose bytes do not have its checksum."""
    return IntegrityError(
        f"s3://{bucket}/{key} arrived damaged: it is stored with the {stored.algorithm.name} {stored}, and what "
        f"arrived has {arrived}. If that happens again it was damaged where it is stored, or by a proxy before it.",
        bucket=bucket,
        key=key,
    )
