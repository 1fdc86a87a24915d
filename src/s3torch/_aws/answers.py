"""Which error an answer stands for: status and S3 error code to our classes, with a sentence and a remedy.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from s3torch._aws.quoting import is_page, quote
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
    TransientError,
)

__all__ = [
    "ErrorDocument",
    "Subject",
    "element_text",
    "error_from_answer",
    "has_marks",
    "not_s3_sentence",
    "parse_error_document",
    "parse_http_date",
]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request was about, for the sentence of an error.

    Attributes:
        operation: The S3 API's name, such as ``GetObject``.
        bucket: Name of the bucket.
        key: The object's key, or None if the request is about the bucket.
        where: The endpoint's origin.
        is_pinned: Whether it is to replace or delete one version only (If-Match).
    """

    operation: str
    bucket: str
    key: str | None
    where: str
    is_pinned: bool = False

    def __str__(self) -> str:
        return f"s3://{self.bucket}" if self.key is None else f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """What the body of an error says; empty strings for what it does not.

    Attributes:
        object_size: Of the object whose range was asked for, in bytes; None if it does not say.
        text: What a body says that is no error of S3's, in a few words.
        is_page: Whether that is a web page.
    """

    code: str = ""
    message: str = ""
    request_id: str = ""
    region: str = ""
    object_size: int | None = None
    text: str = ""
    is_page: bool = False


_CREDENTIALS_CODES = {
    "InvalidAccessKeyId": "the access key is unknown there",
    "InvalidClientTokenId": "the access key is unknown there",
    "UnrecognizedClientException": "the access key is unknown there",
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
# "Try again", says S3: another request about the same key was under way.
_CONFLICT_CODES = {"ConditionalRequestConflict", "OperationAborted"}
# Servers that take a bucket in front of the host only.
_WRONG_STYLE_CODES = {"PathStyleDomainForbidden", "SecondLevelDomainForbidden"}
_REDIRECTS = (301, 302, 307, 308)
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


def not_s3_sentence(subject: Subject, how: str) -> str:
    """Return what to say of an answer that is none of S3's.

    Args:
        subject: What was asked.
        how: It was answered.
    """
    return (
        f"{subject.operation} on {subject} was answered {how}: that is no answer of S3 to it. Check the endpoint "
        f"({subject.where}). If that server does not know buckets by host name, pass "
        "S3ClientConfig(force_path_style=True). A proxy or a captive portal on the way may answer like this, too."
    )


def parse_error_document(body: bytes) -> ErrorDocument:
    """Return what can be found in an error's body; of anything else than S3's XML, the text."""
    code, message, request_id, region, size, endpoint = (
        element_text(body, name) for name in ("Code", "Message", "RequestId", "Region", "ActualObjectSize", "Endpoint")
    )
    object_size = int(size) if re.fullmatch(r"[0-9]{1,19}", size) else None
    region = region or _region_of_host(endpoint) or _region_in_message(code, message)
    if code or message:
        return ErrorDocument(code, message, request_id, region, object_size)
    return ErrorDocument("", "", request_id, region, object_size, text=quote(body), is_page=is_page(body))


# Such as bucket.s3.eu-west-1.amazonaws.com, bucket.s3-eu-west-1.amazonaws.com, s3.dualstack.eu-west-1.amazonaws.com.
_REGIONAL_HOST = re.compile(
    r"(?:.*\.)?s3(?:-fips)?[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]{1,20}){1,3}-[0-9]{1,2})\.amazonaws\.com(?:\.cn)?"
)
_GLOBAL_HOST = re.compile(r"(?:.*\.)?s3\.amazonaws\.com")
_REGION_IN_MESSAGE = {
    "AuthorizationHeaderMalformed": re.compile(r"expecting '([a-z0-9-]{1,63})'"),
    "IllegalLocationConstraintException": re.compile(r"The ([a-z0-9-]{1,63}) location constraint"),
}


def _region_of_host(host: str) -> str:
    """Return the region of a host of Amazon S3; empty if it is none."""
    match = _REGIONAL_HOST.fullmatch(host)
    if match is not None:
        return match[1]
    return "us-east-1" if _GLOBAL_HOST.fullmatch(host) else ""


def _region_in_message(code: str, message: str) -> str:
    """Return the region that the message of such an error names; empty if it names none."""
    pattern = _REGION_IN_MESSAGE.get(code)
    match = pattern.search(message) if pattern is not None else None
    if match is None:
        return ""
    return "us-east-1" if match[1] == "unspecified" else match[1]


def element_text(body: bytes, name: str) -> str:
    """Return the text of the first element of this name in a small document; empty if there is none."""
    match = re.search(rf"<{name}>([^<]{{0,2000}})</{name}>", body.decode("utf-8", "replace"))
    return html.unescape(match.group(1)).strip() if match else ""


def error_from_answer(
    subject: Subject,
    status: int,
    fields: Mapping[str, str],
    document: ErrorDocument,
    *,
    signed_region: str | None = None,
) -> S3Error:
    """Return the error of an answer whose status is not a success.

    Args:
        subject: What was asked.
        status: HTTP status.
        fields: Header fields of the answer, by lower-case name.
        document: Its parsed body.
        signed_region: The region that the request was signed for: an answer that names it names no other one.
    """
    region = fields.get("x-amz-bucket-region") or document.region or _region_of_host(_host(fields)) or None
    other_region = region if region != signed_region else None
    kind, sentence = _classify(subject, status, document, region, other_region)
    if status == 404 and document.text and not has_marks(fields):
        # Whoever takes it for an object that is not there begins anew, and replaces it.
        kind, sentence = ProtocolError, not_s3_sentence(subject, "with status 404 and a body that is not S3's")
    if document.code in _OF_NEW_BUCKETS and subject.key is not None:
        sentence = not_s3_sentence(subject, "as if it were to make a bucket")
    return kind(
        f"{sentence}{_remarks(subject, status, document)}",
        bucket=subject.bucket,
        key=subject.key,
        status=status,
        code=document.code or None,
        request_id=document.request_id or fields.get("x-amz-request-id"),
        region=region,
        retry_after=_retry_after(fields),
    )


def has_marks(fields: Mapping[str, str]) -> bool:
    """Whether a head has fields that S3 and the servers like it have; CloudFront has ``x-amz-cf-*`` of its own."""
    marks = ("x-amz-", "x-goog-")
    return any(name.startswith(marks) and not name.startswith("x-amz-cf-") for name in fields)


def _host(fields: Mapping[str, str]) -> str:
    """Return the host that a Location field names; empty if there is none. Nothing is ever sent there."""
    match = re.match(r"https?://([^/:?#]{1,255})", fields.get("location", ""))
    return match[1] if match is not None else ""


def _remarks(subject: Subject, status: int, document: ErrorDocument) -> str:
    """Return what the body of an answer says that is not S3's, and what that suggests."""
    if not document.text:
        return ""
    said = f" It says {document.text!r}."
    if status == 400 and subject.where.startswith("http://") and "https" in document.text.lower():
        return f"{said} That port speaks TLS: write https:// in the endpoint."
    if document.is_page and status < 500:
        return (
            f"{said} That is a web page, and no answer of S3: check whether the endpoint is the port of a console, or "
            "whether a proxy or portal answers in its place."
        )
    return said


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


def _classify(
    subject: Subject, status: int, document: ErrorDocument, region: str | None, other_region: str | None
) -> tuple[type[S3Error], str]:
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
    # The answer to HEAD has no body. A redirect to the region that has signed leads nowhere else: it is waited out.
    is_hint = (status in _REDIRECTS or (status == 400 and not code)) and other_region is not None
    if code in _REGION_CODES or status == 301 or is_hint:
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
    if (known := _of_code(subject, code)) is not None:
        return known
    if status == 412 and (unfulfilled := _of_condition(subject)) is not None:
        return unfulfilled
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


def _of_condition(subject: Subject) -> tuple[type[S3Error], str] | None:
    """Return what an unfulfilled condition stands for; None for operations that are sent without one."""
    if subject.is_pinned:
        return ObjectChangedError, (
            f"{subject} is not the version any more that was to be replaced or deleted: its ETag is another one. "
            "Nothing was changed. Read the new version and decide anew."
        )
    if subject.operation in (  # sent with If-None-Match
        "PutObject",
        "CompleteMultipartUpload",
        "RenameObject",
    ):
        return ObjectExistsError, f"{subject} is there already, and was not to be replaced."
    if subject.operation in ("GetObject", "HeadObject"):  # only these are sent with If-Match
        return ObjectChangedError, (
            f"{subject} was replaced while it was read: its ETag is no longer the one that reading began with. "
            "Open it again to read the new version."
        )
    return None


def _of_code(subject: Subject, code: str) -> tuple[type[S3Error], str] | None:
    """Return what a code stands for that says it alone; None if there is more to it."""
    if code == "InvalidObjectState":
        return RequestError, f"{subject} is archived and must be restored before it can be read (RestoreObject)."
    if code in _CONFLICT_CODES:
        return TransientError, (
            f"Another request about {subject} was under way, and {subject.where} did not carry {subject.operation} out."
        )
    if code in _WRONG_STYLE_CODES:
        return RequestError, (
            f"{subject.where} takes requests for {subject} only with the bucket in front of its host name. Set "
            "addressing_style = virtual in the section s3 of the profile, and not force_path_style=True."
        )
    return None


_PERMISSIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "UploadPart": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CopyObject": "s3:GetObject and s3:PutObject",
    "CreateSession": "s3express:CreateSession",
    "RenameObject": "s3express:CreateSession",
}


def _permission(operation: str) -> str:
    return _PERMISSIONS.get(operation, f"s3:{operation}")
