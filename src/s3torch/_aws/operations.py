"""The requests to S3 as exchanges; those that send an object are in ``sending``, those of uploads in ``multipart``.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html.

It is one file of over 450 lines: what all requests have in common reads best beside those that read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

from s3torch._aws import checksums, etags, sigv4
from s3torch._aws.answers import ErrorDocument, Subject, error_from_answer, has_marks, parse_error_document
from s3torch._aws.bucket import Bucket
from s3torch._aws.checksums import Checksum
from s3torch._aws.endpoint import Endpoint
from s3torch._aws.part_checksums import AllParts, Composite, Part, composite_of_object
from s3torch._aws.proof import Shows, must_be_s3, must_be_s3_document, not_s3, root_of
from s3torch._aws.quoting import hide
from s3torch._transfer import http1
from s3torch._transfer.connection import Origin
from s3torch._transfer.exchange import Exchange
from s3torch._transfer.http1 import ContentRange, Destination, Head, Inbox
from s3torch.errors import (
    BucketNotFoundError,
    CertificateError,
    ConnectionFailedError,
    IntegrityError,
    ObjectChangedError,
    ObjectNotFoundError,
    ProtocolError,
    RegionError,
    RequestError,
    S3Error,
    TransientError,
    TruncatedBodyError,
)

__all__ = [
    "DeleteObject",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "Operation",
    "PlaceRange",
    "Response",
    "damaged",
    "unproven",
    "with_version",
]

_MAX_ERROR_BODY = 1024 * 1024
_NOTHING: Mapping[str, str] = {}
_IF_MATCH = "if-match"  # signed where something is to be replaced or deleted, and not where it is read
# That a request is corrected with, one after the other. Not tuned.
_MOST_KEYS = 5
# What a server answers that takes the first segment of a key for the bucket.
_WITHOUT_BUCKET = {"InvalidBucketName", "MethodNotAllowed"}
# A page of a listing is below 4 MiB: 1,000 keys of 1,024 bytes, each percent-encoded as three.
_MAX_PAGE = 16 * 1024 * 1024

Response = Generator[memoryview, int, S3Error | None]
_Page = TypeVar("_Page")


class Operation(Exchange):
    """A request to S3 about one bucket, signed for each attempt.

    A success must show that it is S3's: see ``proof.must_be_s3``. An operation says by ``shows`` what it has, and
    takes it by ``take``; one that says nothing takes an answer without a body only. ``accept`` is for those whose body
    is an object.

    Attributes:
        shows: What shows that a success is S3's answer.
        most: Bytes of a success's body at most.
        takes_customer_key: Whether it carries the key of SSE-C, where one is used: it is about an object's bytes.

    Args:
        name: The S3 API's name of the operation.
        method: The HTTP method.
        bucket: Makes and corrects the requests.
        key: The object's key, or None.
        query: Parameters.
        signed_fields: Header fields that are signed: ``x-amz-*``.
        memory: Bytes that the answer fills.

    Attributes:
        sent: How often it was sent, also over connections that were found closed: each may have been carried out.
    """

    shows: ClassVar[Shows] = Shows()
    most: ClassVar[int] = _MAX_ERROR_BODY
    takes_customer_key: ClassVar[bool] = False

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
        self._place = self._answered = bucket.place
        self._mute: S3Error | None = None
        self.sent = 0

    def __repr__(self) -> str:
        state = "done" if self.is_done else "pending"
        return f"<{self.name} {self.subject} {state}, {self.attempts} attempts>"

    @property
    def label(self) -> str:
        """What the log calls it: operation, method, object and range."""
        method = self._method if self._mute is None else "GET"
        extent = self._fields.get("range", "")
        return f"{self.name} {method} {self.subject}{' ' if extent else ''}{extent}"

    @property
    def subject(self) -> Subject:
        """What the request is about."""
        is_pinned = _IF_MATCH in self._signed_fields
        return Subject(self.name, self._bucket.name, self._key, str(self.origin), is_pinned)

    def aim(self) -> None:
        """Go where the bucket answers now: endpoint, region and signature of an attempt are of one place."""
        place = self._bucket.place
        if place is not self._place:
            self._place = place
            self.origin = place.endpoint.origin

    def request(self) -> Sequence[memoryview]:
        """Return the signed head; there is no body."""
        return [memoryview(self._sign(sigv4.EMPTY_SHA256))]

    def response(self, inbox: Inbox) -> Response:
        """Read the answer: a success by ``accept``, anything else as an error."""
        place = self._place  # of this attempt; another one may be under way beside it
        self.head = head = yield from http1.read_head(inbox)
        self._answered = place
        if self._mute is not None:
            return (yield from self._explained(self._mute, inbox, head))
        if self.is_success(head):
            if doubt := self.doubt(head):
                raise not_s3(self.subject, head.status, head.fields, doubt)
            return (yield from self.accept(inbox, head))
        return (yield from self._refusal(inbox, head))

    def is_success(self, head: Head) -> bool:
        """Whether ``accept`` is to read the answer."""
        return 200 <= head.status < 300

    def doubt(self, head: Head) -> str:
        """Return why the head of a success cannot be that of S3's answer; empty if it can."""
        return must_be_s3(head, self.shows)

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the body of a success, and take it if it is S3's. Some failures are told after a status of 200."""
        body = yield from http1.read_small_body(inbox, head, self.most)
        if root_of(body) == "Error":
            return error_from_answer(self.subject, head.status, head.fields, self._document(body))
        if doubt := must_be_s3_document(head, self.shows, body):
            raise not_s3(self.subject, head.status, head.fields, doubt)
        return self.take(head, body)

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember what a success says; returns an error if that is not enough."""
        del head, body
        return None

    def recover(self, error: S3Error) -> bool:
        """Let the bucket correct region, clock or credentials, once for each key unless another fault came between.

        That is five keys at most: where each look brings another one (a session, what a process hands out), and the
        server refuses them all, it would never end.

        The answer to a HEAD has no body, so it does not say what is wrong. Then a GET of one byte is sent, once before
        each correction: its answer says it. So it does of a 404 that nothing shows to be S3's.
        """
        fields = self.head.fields if self.head is not None else _NOTHING
        if self._mute is None and self._method == "HEAD" and _is_mute(error, fields):
            self._mute = error
            self.attempts -= 1  # the two requests are one attempt
            return True
        correction = type(error), self._access_key
        if correction in self._corrected or sum(kind is type(error) for kind, _ in self._corrected) == _MOST_KEYS:
            return False
        if self.head is None or not self._bucket.correct(error, self.head.fields, self._answered.corrections):
            self._corrected.clear()  # after an outage another key may have been withdrawn; attempts are bounded
            return False
        self._corrected.add(correction)
        self._mute = None
        self.aim()
        return True

    def explain(self, error: S3Error) -> S3Error:
        """Name the operation and the object in errors that know neither, and what has probably led to the error."""
        if self._mute is not None and self._mute.status != 404 and isinstance(error, TransientError):
            return self._mute  # nobody has answered why; that nothing is there has to be S3's word
        if error.bucket is None:
            error.bucket, error.key = self._bucket.name, self._key
            hint = ""
            if self.head is None:
                hint = self._bucket.region_hint
                if self.sent and _may_want_tls(error, self.origin):
                    hint = " If that port speaks TLS, write https:// in the endpoint."
            error.args = (f"{self.name} on {self.subject} failed: {error.args[0]}{hint}",)
        fields = self.head.fields if self.head is not None else _NOTHING
        remedy = _style_remedy(error, self._answered.endpoint, self._bucket.name) or _coding_remedy(error, fields)
        if remedy:
            error.args = (f"{error.args[0]} {remedy}",)
        return error

    def _sign(self, payload_sha256: str) -> bytes:
        place = self._bucket.place
        if place is not self._place and place.endpoint.origin == self.origin:
            self._place = place  # another region, clock or key at the same address; the connection leads there
        method, fields = self._method, self._fields
        if self._mute is not None:
            method, fields = "GET", {**fields, "range": http1.format_range(0, 1)}
        head = self._bucket.request_head(
            method, self._key, self._query, fields, self._signed_fields, payload_sha256, place=self._place
        )
        self._access_key = self._bucket.access_key
        self.sent += 1
        return head

    def _refusal(self, inbox: Inbox, head: Head) -> Response:
        if head.status < 300:
            raise not_s3(self.subject, head.status, head.fields, f"with status {head.status}")
        document = ErrorDocument()
        if self._method != "HEAD" or self._mute is not None:
            document = self._document((yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)))
        # S3 gives its refusals an id, at least. Some proxies ask for a password by 401 (tinyproxy).
        if head.status == 407 or (head.status in (401, 403) and not document.code):
            proxy = self._bucket.proxy
            if proxy is not None and "x-amz-request-id" not in head.fields:
                return proxy.refusal(str(self.origin), head.status)
        error = error_from_answer(
            self.subject, head.status, head.fields, document, signed_region=self._answered.signing_region
        )
        if self._has_checksum_fields and _names_checksums(error, document):
            remedy = 'use S3ClientConfig(checksums="off").'
            error.args = (f"{error.args[0]} It may not know the header fields of checksums: {remedy}",)
        return error

    def _document(self, body: bytes) -> ErrorDocument:
        """Return what the body of an error says, without the secrets that requests carry."""
        document, secrets = parse_error_document(body), self._bucket.secrets
        code, message, text = (hide(each, secrets) for each in (document.code, document.message, document.text))
        return replace(document, code=code, message=message, text=text)

    @property
    def _has_checksum_fields(self) -> bool:
        return any(name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")) for name in self._signed_fields)

    def _explained(self, refusal: S3Error, inbox: Inbox, head: Head) -> Response:
        """Read the answer to the GET that asks why a HEAD was refused; if there is no reason, the refusal stays."""
        if head.status >= 300 and head.status != 416:
            return (yield from self._refusal(inbox, head))
        if refusal.status == 404:  # whoever believes it takes the object for missing, and writes it anew
            self._mute = None  # it may have been written meanwhile: HEAD is asked again
            raise not_s3(self.subject, 404, head.fields, "with status 404 to a HEAD, and with another one to a GET")
        if head.content_length is None or head.content_length > _MAX_ERROR_BODY:
            raise refusal  # nobody wants the body, so the connection is closed
        yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        return refusal


def _may_want_tls(error: S3Error, origin: Origin) -> bool:
    """Whether a server that never answered may have hung up because it was spoken to without TLS."""
    return isinstance(error, ConnectionFailedError) and origin.scheme == "http"


def _names_checksums(error: S3Error, document: ErrorDocument) -> bool:
    """Whether a server has refused a request for what it does not know of, such as the header fields of checksums."""
    if type(error) is not RequestError:
        return False
    said = f"{document.message} {document.text}".lower()
    return error.status == 501 or document.code == "NotImplemented" or "checksum" in said or "x-amz-" in said


def _style_remedy(error: S3Error, endpoint: Endpoint, bucket: str) -> str:
    """Return what helps where a server has no host name for each bucket; empty if the error is another one."""
    if isinstance(error, CertificateError):
        reason = f"there is no certificate for {endpoint.host!r}"
    elif isinstance(error, BucketNotFoundError) or error.code in _WITHOUT_BUCKET or error.status == 405:
        reason = f"the server does not know {endpoint.host!r}"
    else:
        return ""
    if endpoint.is_amazons or not endpoint.host.startswith(f"{bucket}."):
        return ""
    return (
        f"The bucket's name stands in front of the host name: if {reason}, use S3ClientConfig(force_path_style=True)."
    )


def _coding_remedy(error: S3Error, fields: Mapping[str, str]) -> str:
    """Return what helps where a gateway changes the coding of objects; empty if the error is another one."""
    if not isinstance(error, (IntegrityError, ObjectChangedError, ProtocolError, TruncatedBodyError)):
        return ""
    coding, warning = fields.get("content-encoding", "identity"), fields.get("warning", "")
    if coding == "identity" and not warning.startswith("214"):  # "transformation applied" (RFC 7234 5.5.6)
        return ""
    what = f"Content-Encoding {coding!r}" if coding != "identity" else f"the warning {warning[:80]!r}"
    return (
        f"The answer has {what}. If the object is not stored so, a gateway compresses or expands what it passes on: "
        "turn that off for S3."
    )


def _is_mute(error: S3Error, fields: Mapping[str, str]) -> bool:
    """Whether the answer to a HEAD may stand for an error that can be corrected, and does not say which.

    Nor does a 404 without a field of S3's say that it is no answer of a router, a portal or another web server.
    """
    if isinstance(error, ObjectNotFoundError):
        return not has_marks(fields)
    is_told = isinstance(error, RegionError) and error.region is not None
    return error.code is None and error.status in (301, 307, 400, 403) and not is_told


class HeadObject(Operation):
    """HeadObject: ``head`` is the answer.

    With ``is_lenient`` an object that is not there is no failure: ``is_missing`` says it.

    Some servers and proxies leave the Content-Length out. Then the size is asked for by a GET of the first byte, whose
    answer tells it beside the range, and ``head`` is the head of that answer. If the server sends the whole object
    instead, its length is the size, and the body is not received.

    Args:
        bucket: Of the object.
        key: Of the object.
        version_id: The version, or None for the newest.
        etag: What the object's ETag must be, or None for any.
        asks_checksum: Whether the answer is to tell the object's checksum.
        is_lenient: Whether to take it for a success that there is no such object.

    Attributes:
        size: The object's, in bytes, once the exchange has succeeded.
        is_missing: Whether there is no such object.
    """

    is_read = True
    shows = Shows(is_object=True)
    takes_customer_key = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        version_id: str | None = None,
        *,
        etag: str | None = None,
        asks_checksum: bool = False,
        is_lenient: bool = False,
    ) -> None:
        fields = checksums.MODE_FIELDS if asks_checksum else None
        super().__init__("HeadObject", "HEAD", bucket, key, query=with_version(version_id), signed_fields=fields)
        self.size = 0
        self.is_missing = False
        self._is_lenient = is_lenient
        self._etag = etag
        self._lacks_size = False
        if (pinned := etags.for_if_match(etag)) is not None:
            self._fields["if-match"] = pinned

    def request(self) -> Sequence[memoryview]:
        """Return the signed head."""
        if self._method == "GET":
            self._fields["range"] = http1.format_range(0, 1)
        return super().request()

    def response(self, inbox: Inbox) -> Response:
        """Read the answer."""
        error = yield from super().response(inbox)
        self.is_missing = self._is_lenient and isinstance(error, ObjectNotFoundError)
        return None if self.is_missing else error

    def is_success(self, head: Head) -> bool:
        """Whether it is about an object, be it an empty one."""
        return head.status in (200, 206) or (head.status == 416 and self._method == "GET")

    def doubt(self, head: Head) -> str:
        """Return why the head cannot be that of an object; empty if it can, or says that there is nothing in it."""
        return "" if head.status == 416 else must_be_s3(head, self.shows, self._etag)

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Learn the size."""
        if self._method == "GET":
            return (yield from self._accept_first_byte(inbox, head))
        # There is no body, whatever length is told (RFC 9110 9.3.2).
        is_part = head.status == 206 or "content-range" in head.fields
        self._lacks_size = head.content_length is None or is_part
        if head.content_length is None or is_part:
            return ProtocolError("The answer to a HEAD has no Content-Length, or that of a part.")
        self.size = head.content_length
        return None

    def recover(self, error: S3Error) -> bool:
        """Ask for the first byte after an answer that does not tell the size."""
        if not self._lacks_size:
            return super().recover(error)
        self._lacks_size = False
        self._method = "GET"
        self.attempts -= 1  # the two requests are one attempt
        return True

    def _accept_first_byte(self, inbox: Inbox, head: Head) -> Response:
        is_whole = head.status == 200 and "content-range" not in head.fields
        if is_whole and head.content_length is not None:
            self.size = head.content_length
            head.keeps_alive = head.keeps_alive and not self.size  # nobody wants the body
            return None
        if is_whole and not head.is_chunked:
            raise ProtocolError(
                "The answer to a HEAD has no Content-Length. That to a GET of one byte has none, either, and is no "
                "range: only the end of the connection would end it, so nothing tells the object's size."
            )
        try:
            body = yield from http1.read_small_body(inbox, head, self.most)
        except ProtocolError as error:
            raise ProtocolError(
                "The answer to a HEAD has no Content-Length. What was answered to a GET of one byte does not tell the "
                f"object's size, either: {error.args[0]} The server does not serve ranges."
            ) from error
        size = _told_size(head, body)
        if size is None:
            return ProtocolError("Neither the answer to a HEAD nor that to a GET of one byte tells the object's size.")
        self.size = size
        return None


def _told_size(head: Head, body: bytes) -> int | None:
    """Return the size of the object of which the first byte was asked for; None if the answer does not tell it."""
    field = head.fields.get("content-range")
    if field:
        return _size_of_whole(field)
    if head.status == 416:
        return parse_error_document(body).object_size
    return len(body) if head.status == 200 else None


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
    shows = Shows(root="ListBucketResult")
    most = _MAX_PAGE
    page: _Page

    def __init__(self, bucket: Bucket, query: Mapping[str, str], parse: Callable[[bytes], _Page]) -> None:
        super().__init__("ListObjectsV2", "GET", bucket, None, query=query)
        self._parse = parse

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Parse the page."""
        del head
        self.page = self._parse(body)
        return None


class DeleteObject(Operation):
    """DeleteObject. That there is no such object is no error, as in S3.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html.

    Args:
        bucket: Of the object.
        key: Of the object.
        etag: What its ETag must be; None deletes it whatever it is. Another object fails with ObjectChangedError.
        is_lenient: Whether to take it for a success that the object is another one, and to say so by ``is_kept``.

    Attributes:
        is_kept: Whether the server has answered that the object is another one.
    """

    def __init__(self, bucket: Bucket, key: str, etag: str | None = None, *, is_lenient: bool = False) -> None:
        pinned = etags.for_if_match(etag)
        fields = {_IF_MATCH: pinned} if pinned is not None else None
        super().__init__("DeleteObject", "DELETE", bucket, key, signed_fields=fields)
        self.is_kept = False
        self._is_pinned = pinned is not None
        self._is_lenient = is_lenient

    def response(self, inbox: Inbox) -> Response:
        """Read the answer: what is not there is deleted, also where a condition was sent."""
        error = yield from super().response(inbox)
        if not self._is_pinned or error is None:
            return error
        if isinstance(error, ObjectNotFoundError) and error.code == "NoSuchKey":
            return None
        self.is_kept = isinstance(error, ObjectChangedError)
        return None if self.is_kept and self._is_lenient else error


def with_version(version_id: str | None) -> Mapping[str, str]:
    """Return the parameter that names a version; none for the newest."""
    return _NOTHING if version_id is None else {"versionId": version_id}


PlaceRange = Callable[[ContentRange], memoryview]


class GetObject(Operation):
    """GetObject of a range, received into given memory.

    An answer that broke off goes on from the byte that it reached, with If-Match on the ETag of its first head, so
    that bytes of two versions are never mixed. Where a server has no ETags, Last-Modified and size are compared. An
    answer that cannot be compared with what is known is not believed (``etags.lacks_proof``). Every length and
    Content-Range is checked: an answer with one is that range, whatever its status. If the answer has all bytes of the
    object and their checksum, that is checked, too. A 416 or an empty part that does not tell the object's size is not
    taken for an answer: HeadObject is asked for it, once. Nor is a whole object that is longer than it should be: it
    is asked for as a range, whose answer tells the size apart from the length.

    Args:
        bucket: Of the object.
        key: Of the object.
        start: First byte.
        stop: The byte after the last; the object may end before it.
        into: Memory of ``stop - start`` bytes, in one or several pieces; or what returns memory for the answered range
            once that is known.
        etag: What the object's ETag must be, or None for any.
        modified: What its Last-Modified must be where there is no ETag, or None for any.
        modified_at: The same as the time of a listing, in seconds since the epoch, where ``modified`` is None.
        version_id: The version to read, or None for the newest.
        is_whole: Whether this is the whole object, of ``stop`` bytes: then no range is asked for, since many servers
            tell no checksum with a range, even of all bytes.
        has_gaps: Whether some of the memory is to be thrown away, and used more than once: what arrived cannot be
            compared with a checksum then.

    Attributes:
        total: The object's size in bytes, once known.
        etag: The object's ETag, once known.
        modified: The object's Last-Modified, once known.
        filled: Bytes received.
        is_verified: Whether they were compared with the object's checksum.
        composite: The checksum of the object's parts, where the answer has all bytes and tells it.
    """

    is_read = True
    shows = Shows(is_object=True)
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
        modified: str | None = None,
        modified_at: int | None = None,
        version_id: str | None = None,
        is_whole: bool = False,
        has_gaps: bool = False,
    ) -> None:
        self._may_verify = bucket.has_checksums and not has_gaps
        fields = checksums.MODE_FIELDS if self._may_verify else None
        query = with_version(version_id)
        super().__init__("GetObject", "GET", bucket, key, query=query, signed_fields=fields, memory=stop - start)
        self.start = start
        self.stop = stop
        self.etag = etag
        self.modified = modified
        self._modified_at = modified_at
        self.is_verified = False
        self.composite: Composite | None = None
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
    def views(self) -> Sequence[memoryview]:
        """The memory that it fills, as far as that is known."""
        return self._destination.pieces if self._destination is not None else ()

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
        if self.etag is not None and (pinned := etags.for_if_match(self.etag)) is not None:
            self._fields["if-match"] = pinned
        return super().request()

    def doubt(self, head: Head) -> str:
        """Return why the head cannot be that of an object; empty if it can, or says that it has none of the range."""
        return "" if head.status == 416 else must_be_s3(head, self.shows, self.etag)

    def is_success(self, head: Head) -> bool:
        """Whether this is the range that was asked for, or says that there is nothing in it."""
        return head.status in (200, 206, 416) if self._method == "GET" else head.status == 200

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the body into its memory."""
        if self._method == "HEAD":
            self._method = "GET"
            return self._end_at(None if "content-range" in head.fields else head.content_length, head)
        if head.status == 416 or _has_nothing(head):
            return (yield from self._accept_nothing(inbox, head))
        begin = self._missing_from
        content_range = self._answered_range(head, begin)
        changed = self._observe(content_range.total, head)
        if changed is not None:
            raise changed  # the body is not wanted, so neither is the connection
        if content_range.total == 0:
            return None
        if self._may_verify and content_range.stop - content_range.start == content_range.total:
            is_range = head.status == 206 or "content-range" in head.fields
            self._checksum = checksums.checksum_of_object(head.fields, is_range=is_range)
            self.composite = None if is_range else composite_of_object(head.fields)
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
        """Read an answer without a byte of the object: it is empty, or ends before the range."""
        body = yield from http1.read_small_body(inbox, head, _MAX_ERROR_BODY)
        field = head.fields.get("content-range")
        if field:
            total = _size_of_whole(field)
        elif head.status == 416:
            total = parse_error_document(body).object_size
        else:
            total = None  # a part that does not say which: of an empty object, or cut off by somebody on the way
        if head.status != 416 and body:
            return ProtocolError(f"The answer's Content-Range is {field!r}, and its body has {len(body)} bytes.")
        if total is None and not self._has_asked_size:
            self._has_asked_size = self._lacks_size = True
        return self._end_at(total, head)

    def _end_at(self, total: int | None, head: Head) -> S3Error | None:
        """Take the answer for one of an object that ends before the range."""
        where = f"Bytes {self.start + self.filled}-{self.stop - 1} were asked for, and the server answers that"
        if total is None:
            return ProtocolError(f"{where} there are none, and not how large the object is.")
        if total > self.start and self.total in (None, total):
            return ProtocolError(
                f"{where} its {total} bytes have none of them. The server does not serve ranges properly."
            )
        return self._observe(total, head)

    def _answered_range(self, head: Head, begin: int) -> ContentRange:
        """Return which bytes an answer has: those that its Content-Range tells, whatever its status."""
        field = head.fields.get("content-range")
        if field is None:
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

    def _observe(self, total: int | None, head: Head) -> S3Error | None:
        """Remember what tells the version; a later answer that tells another is of another version."""
        etag, modified = head.fields.get("etag"), head.fields.get("last-modified") if head.status != 416 else None
        if self.total is not None and total is not None and total != self.total:
            return self._changed(f"it was {self.total} bytes long, and is {total} now")
        versions = self.etag, etag, self.modified, modified, self._modified_at
        if (other := etags.other_version(*versions)) is not None:
            return self._changed("its {} was {}, and is {} now".format(*other))
        if head.status != 416 and self._method == "GET":  # else there are no bytes of another version
            # Where all is asked for anew, nothing is left of answers before.
            is_first = self.total is None or self._missing_from == self.start
            if missing := etags.lacks_proof(*versions, is_first=is_first):
                return unproven(missing)
        self.total = total if total is not None else self.total
        self.etag = etags.preferred(self.etag, etag)
        self.modified = self.modified or modified
        return None

    def _changed(self, how: str) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self.subject} was replaced while it was read: {how}. Open it again to read the new version.",
            bucket=self._bucket.name,
            key=self._key,
        )


# What servers write for a range of an empty object, instead of 416; RFC 9110 14.4 has no way to say it.
_OF_NOTHING = re.compile(r"bytes [0-9]{1,19}-(?:-1|[0-9]{1,19})/0")


def _has_nothing(head: Head) -> bool:
    """Whether an answer that is no refusal has no byte of the object."""
    if head.fields.get("content-range", "").endswith("/0"):
        return True
    return head.status == 206 and head.content_length == 0


def _size_of_whole(content_range: str) -> int | None:
    """Return the size of the object that a Content-Range tells; None if it tells none.

    Raises:
        ProtocolError: It is malformed or contradicts itself.
    """
    return 0 if _OF_NOTHING.fullmatch(content_range) else http1.parse_content_range(content_range).total


def unproven(missing: str) -> ProtocolError:
    """Return the error of an answer that does not show of which version it is.

    Args:
        missing: What ``etags.lacks_proof`` returned.
    """
    return ProtocolError(
        f"Nothing shows that the answer is of the version that was asked for: it {missing}. The server, or a cache or "
        "proxy before it, leaves out of some answers what tells the version."
    )


def damaged(
    stored: Checksum, arrived: Checksum, bucket: str, key: str | None, part: Part | AllParts | None = None
) -> IntegrityError:
    """Return the error of an object, or of parts of it, whose bytes do not have their checksum."""
    what, kind = f"s3://{bucket}/{key}", stored.algorithm.name
    if isinstance(part, Part) and part.parts > 1:
        what = f"Part {part.number} of {part.parts} of {what}, bytes {part.start}-{part.stop - 1},"
    elif isinstance(part, AllParts):
        kind = f"{kind} of its {len(part.places)} parts"
    return IntegrityError(
        f"{what} arrived damaged: it is stored with the {kind} {stored}, and what arrived has {arrived}. If that "
        "happens again it was damaged where it is stored, or by a proxy before it.",
        bucket=bucket,
        key=key,
    )
