"""Which error an answer stands for: status and S3 error code to our classes, with a sentence and a remedy.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from s3torch._aws import etags
from s3torch._transfer.http1 import Head
from s3torch.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ClockSkewError,
    CredentialsError,
    IntegrityError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    ProtocolError,
    RegionError,
    RequestError,
    S3Error,
    ServerError,
    ThrottledError,
)

__all__ = [
    "ErrorDocument",
    "Shows",
    "Subject",
    "describe_root",
    "element_text",
    "error_from_answer",
    "must_be_s3",
    "must_be_s3_document",
    "not_s3",
    "parse_error_document",
    "parse_http_date",
    "root_of",
]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request was about, for the sentence of an error.

    Attributes:
        operation: The S3 API's name, such as ``GetObject``.
        bucket: Name of the bucket.
        key: The object's key, or None if the request is about the bucket.
        where: The endpoint's origin.
    """

    operation: str
    bucket: str
    key: str | None
    where: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}" if self.key is None else f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shows:
    """What shows that a success answers the operation; see ``must_be_s3``. By default: nothing but an empty body.

    Attributes:
        root: The root element of the document, such as ``ListBucketResult``; empty where S3 sends none.
        stores: Whether the operation stores bytes: then the head has their ETag.
        is_object: Whether the answer is a stored object, or the head of one.
    """

    root: str = ""
    stores: bool = False
    is_object: bool = False


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """What the XML of an error says; empty strings for what it does not.

    Attributes:
        object_size: Of the object whose range was asked for, in bytes; None if it does not say.
    """

    code: str = ""
    message: str = ""
    request_id: str = ""
    region: str = ""
    object_size: int | None = None


_CREDENTIALS_CODES = {
    "InvalidAccessKeyId": "the access key is unknown there",
    "SignatureDoesNotMatch": "the secret key does not fit the access key, or a proxy changes requests on their way",
    "ExpiredToken": "they have expired",
    "TokenRefreshRequired": "they have expired",
    "InvalidToken": "the session token is not valid for them",
    "InvalidSecurity": "they are not valid",
}
# A server that takes the first segment of a key for a bucket has made it already, at an attempt before.
_OF_NEW_BUCKETS = {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}
_THROTTLING_CODES = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests"}
_DIGEST_CODES = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
# S3 may answer with status 200, and find out then that it fails.
_SERVER_CODES = {"InternalError", "RequestTimeout", "ServiceUnavailable"}
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MD5_ETAG = re.compile(r'"?[0-9a-f]{32}(?:-[0-9]{1,5})?"?')
# What may stand before the root element, in the first bytes of a document.
_ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?[^>]*>\s*|<!--.*?-->\s*)*<(?:!DOCTYPE\s+)?(?:[\w.-]+:)?([\w.-]+)",
    re.DOTALL | re.IGNORECASE,
)
_MOST_BEFORE_ROOT = 4096


def must_be_s3(head: Head, shows: Shows, etag: str | None = None) -> str:
    """Return why the head of a success cannot be that of S3's answer to the operation; empty if it can.

    A success is not believed for its status. Something else may answer in S3's place: a captive portal or a proxy with
    a page for people, a web server, or S3 itself where it does not find the bucket's name in the host, so that
    ``PUT /key`` makes a bucket, and ``GET /key`` lists one. The rule:

    - What stores bytes has answered with their ETag.
    - An object has an ETag, a Last-Modified or a Content-Range; some servers have no ETags.
    - An object may be a page of HTML, and so may what a portal answers. So HTML is believed if the head shows S3: by a
      field ``x-amz-*`` (or ``x-goog-*``), by an ETag that is an MD5, or by the ETag that was asked for.
    - What S3 answers by a document has the document's root element, and what it answers by nothing has no body: that
      is ``must_be_s3_document``. Neither is a part of something.

    What remains is an answer to DELETE that is a status alone: nothing tells S3's from another one.

    Args:
        head: Of the answer.
        shows: What shows that it is S3's.
        etag: What the object's ETag must be, or None for any.
    """
    fields = head.fields
    found = fields.get("etag")
    if not shows.is_object:
        if head.status == 206 or "content-range" in fields:
            return "with a part of something"
        return "without the ETag of what was to be stored" if shows.stores and not etags.opaque(found) else ""
    if not (fields.get("content-range") or fields.get("last-modified") or etags.opaque(found)):
        return "without ETag, Last-Modified and Content-Range, of which an object has one at least"
    if not _is_html_type(head) or _shows_s3(head) or (etag and found and etags.are_same(etag, found)):
        return ""
    return "by a page of HTML, which nothing shows to be an object"


def must_be_s3_document(head: Head, shows: Shows, body: bytes) -> str:
    """Return why the body of a success, which is no object, cannot be S3's; empty if it can. See ``must_be_s3``."""
    root = root_of(body)
    if root.lower() == "html" or (body.strip() and not shows.root and _is_html_type(head)):
        return "by a page of HTML"
    if shows.root and root != shows.root:
        return f"by {describe_root(body)} where <{shows.root}> is due"
    if not shows.root and not shows.stores and body.strip():
        return "with a body where none is due"
    return ""


def not_s3(subject: Subject, status: int, fields: Mapping[str, str], how: str) -> ProtocolError:
    """Return the error of a success that is not S3's answer.

    Args:
        subject: What was asked.
        status: Of the answer.
        fields: Header fields of the answer, by lower-case name.
        how: It was answered.
    """
    return ProtocolError(
        _not_s3(subject, how),
        bucket=subject.bucket,
        key=subject.key,
        status=status,
        request_id=fields.get("x-amz-request-id"),
    )


def _not_s3(subject: Subject, how: str) -> str:
    return (
        f"{subject.operation} on {subject} was answered {how}: that is no answer of S3 to it. Check the endpoint "
        f"({subject.where}). If that server does not know buckets by host name, pass "
        "S3ClientConfig(force_path_style=True). A proxy or a captive portal on the way may answer like this, too."
    )


def _is_html_type(head: Head) -> bool:
    return "content-type" in head.fields and head.fields["content-type"].lower().startswith(_HTML_TYPES)


def _shows_s3(head: Head) -> bool:
    """Whether a head has what S3 and the servers like it have; CloudFront puts ``x-amz-cf-*`` on pages of its own."""
    marks = ("x-amz-", "x-goog-")
    if any(name.startswith(marks) and not name.startswith("x-amz-cf-") for name in head.fields):
        return True
    return _MD5_ETAG.fullmatch(head.fields.get("etag", "")) is not None


def root_of(body: bytes) -> str:
    """Return the name of a document's root element; empty if it is no document.

    White space may stand before it: S3 sends some while it is at work.
    """
    match = _ROOT.match(body.lstrip()[:_MOST_BEFORE_ROOT])
    return "" if match is None else match[1].decode("latin-1")


def describe_root(body: bytes) -> str:
    """Return what a document is, by its root element, for a sentence."""
    root = root_of(body)
    if root.lower() == "html":
        return "a page of HTML"
    return f"<{root[:80]}>" if root else "no XML"


def parse_error_document(body: bytes) -> ErrorDocument:
    """Return what can be found in an error's body; anything else than S3's XML gives empty fields."""
    code, message, request_id, region, size = (
        element_text(body, name) for name in ("Code", "Message", "RequestId", "Region", "ActualObjectSize")
    )
    object_size = int(size) if re.fullmatch(r"[0-9]{1,19}", size) else None
    return ErrorDocument(code, message, request_id, region, object_size)


def element_text(body: bytes, name: str) -> str:
    """Return the text of the first element of this name in a small document; empty if there is none."""
    match = re.search(rf"<{name}>([^<]{{0,2000}})</{name}>", body.decode("utf-8", "replace"))
    return html.unescape(match.group(1)).strip() if match else ""


def error_from_answer(subject: Subject, status: int, fields: Mapping[str, str], document: ErrorDocument) -> S3Error:
    """Return the error of an answer whose status is not a success.

    Args:
        subject: What was asked.
        status: HTTP status.
        fields: Header fields of the answer, by lower-case name.
        document: Its parsed body.
    """
    region = fields.get("x-amz-bucket-region") or document.region or None
    kind, sentence = _classify(subject, status, document, region)
    if document.code in _OF_NEW_BUCKETS and subject.key is not None:
        sentence = _not_s3(subject, "as if it were to make a bucket")
    return kind(
        sentence,
        bucket=subject.bucket,
        key=subject.key,
        status=status,
        code=document.code or None,
        request_id=document.request_id or fields.get("x-amz-request-id"),
        region=region,
        retry_after=_retry_after(fields),
    )


def _retry_after(fields: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After field (RFC 9110 10.2.3); a date in it is compared with the answer's own."""
    text = fields.get("retry-after", "")
    if not text or (text.isascii() and text.isdigit()):
        return float(text) if text and len(text) < 10 else None
    until, now = parse_http_date(text), parse_http_date(fields.get("date", ""))
    return None if until is None else max(0.0, until - (time.time() if now is None else now))


def parse_http_date(text: str) -> float | None:
    """Return what a date stands for, in any form of RFC 9110 5.6.7, in seconds since the epoch; None if it is none."""
    from datetime import timezone
    from email.utils import parsedate_to_datetime  # takes 16 ms

    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def _classify(subject: Subject, status: int, document: ErrorDocument, region: str | None) -> tuple[type[S3Error], str]:
    code = document.code
    if code in _CREDENTIALS_CODES:
        return CredentialsError, (
            f"{subject.where} does not accept the credentials for {subject}: {_CREDENTIALS_CODES[code]}. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        )
    if code == "RequestTimeTooSkewed":
        return ClockSkewError, (
            f"This machine's clock is too far from that of {subject.where} to sign a request for {subject}. "
            "Set it (NTP)."
        )
    is_bare_hint = status == 400 and not code and region is not None  # the answer to HEAD has no body
    if code in _REGION_CODES or status == 301 or is_bare_hint:
        found, remedy = (
            (f"region {region!r}", f"region={region!r}") if region else ("another region", "the bucket's region=...")
        )
        return RegionError, (
            f"Bucket {subject.bucket!r} of {subject} lies in {found}; the request went to {subject.where}. "
            f"Pass {remedy} or set AWS_REGION."
        )
    if code == "NoSuchBucket" or (status == 404 and subject.key is None):
        return BucketNotFoundError, (
            f"Bucket {subject.bucket!r} of {subject} does not exist at {subject.where}. "
            "Check its name, the endpoint and the account."
        )
    if code == "NoSuchUpload":
        return RequestError, (
            f"The multipart upload to {subject} does not exist any more: it was aborted, by a lifecycle rule or by "
            "somebody else. Write the object again."
        )
    if status == 404:
        return ObjectNotFoundError, (
            f"{subject} does not exist at {subject.where}. "
            "Keys are case-sensitive; list the prefix to see what is there."
        )
    if code in _DIGEST_CODES:
        return IntegrityError, (
            f"What {subject.operation} on {subject} brought to {subject.where} has another checksum than was sent. "
            "It was not stored."
        )
    if code == "InvalidObjectState":
        return RequestError, f"{subject} is archived and must be restored before it can be read (RestoreObject)."
    if status == 412 and subject.operation in ("PutObject", "CompleteMultipartUpload"):  # sent with If-None-Match
        return ObjectExistsError, f"{subject} is there already, and was not to be replaced."
    if status == 412 and subject.operation in ("GetObject", "HeadObject"):  # only these are sent with If-Match
        return ObjectChangedError, (
            f"{subject} was replaced while it was read: its ETag is no longer the one that reading began with. "
            "Open it again to read the new version."
        )
    if status in (401, 403) or code == "AccessDenied":
        reason = f" ({document.message})" if document.message else ""
        return AccessDeniedError, (
            f"{subject.operation} on {subject} is forbidden{reason}. "
            f"Allow {_permission(subject.operation)} to these credentials, or check which credentials are used."
        )
    if code in _THROTTLING_CODES or status in (429, 503):
        return ThrottledError, f"{subject.where} asks for fewer requests ({subject.operation} on {subject})."
    if (status >= 500 and status != 501) or code in _SERVER_CODES or status in (307, 408):
        reason = f": {document.message}" if document.message else ""
        return ServerError, f"{subject.where} failed at {subject.operation} on {subject}{reason}."
    reason = document.message or "no reason given"
    return RequestError, f"{subject.where} refused {subject.operation} on {subject}: {reason}."


_PERMISSIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "UploadPart": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CopyObject": "s3:GetObject and s3:PutObject",
}


def _permission(operation: str) -> str:
    return _PERMISSIONS.get(operation, f"s3:{operation}")
