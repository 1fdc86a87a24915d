"""The requests that begin and end a multipart upload, and whether an upload was completed when no answer tells.

CreateMultipartUpload is retried like any request, although that may begin two uploads: the bucket's lifecycle rule for
incomplete uploads clears the one that nobody knows of. CompleteMultipartUpload that is retried finds its upload gone if
it was carried out before and only its answer was lost; so ``complete`` looks at the
object then. The ETag of an object of several parts is the MD5 of its parts' MD5s, and the number of parts; where the
ETags of parts are no MD5s, the size and the time of the last change have to tell.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from s3torch._aws import etags
from s3torch._aws.answers import element_text, parse_http_date
from s3torch._aws.bucket import Bucket
from s3torch._aws.checksums import Checksum
from s3torch._aws.operations import HeadObject, Operation
from s3torch._aws.proof import Shows, not_s3
from s3torch._aws.sending import Send
from s3torch.errors import ObjectNotFoundError, ProtocolError, S3Error

if TYPE_CHECKING:
    from collections.abc import Generator

    from s3torch._transfer.engine import Engine
    from s3torch._transfer.http1 import Head, Inbox

__all__ = [
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CreateMultipartUpload",
    "UploadedPart",
    "complete",
    "multipart_etag",
]

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part that the service has.

    Args:
        etag: From the answer.
        length: In bytes.
        checksum: To tell when the upload is completed; None if the service verifies none.
    """

    etag: str
    length: int
    checksum: Checksum | None = None

    def element(self, number: int) -> str:
        """Return how CompleteMultipartUpload names it."""
        told = f"<ChecksumCRC32>{self.checksum}</ChecksumCRC32>" if self.checksum is not None else ""
        return f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(self.etag)}</ETag>{told}</Part>"


class CreateMultipartUpload(Send):
    """CreateMultipartUpload.

    Args:
        bucket: Of the object.
        key: Of the object.
        signed_fields: More header fields, such as ``x-amz-storage-class``.

    Attributes:
        upload_id: What the upload is called; empty until the exchange has succeeded.
        began: By the server's clock, in seconds since the epoch; None if it does not tell.
        checksum_algorithm: Of the checksums that the server verifies; None if it verifies none.
        checksum_type: ``FULL_OBJECT`` or ``COMPOSITE``.
    """

    shows = Shows(root="InitiateMultipartUploadResult")
    takes_customer_key = True

    def __init__(self, bucket: Bucket, key: str, signed_fields: Mapping[str, str] | None = None) -> None:
        super().__init__(
            "CreateMultipartUpload",
            "POST",
            bucket,
            key,
            [],
            query={"uploads": ""},
            signed_fields=signed_fields,
        )
        self.upload_id = ""
        self.began: float | None = None
        self.checksum_algorithm: str | None = None
        self.checksum_type: str | None = None

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember the upload's id."""
        self.upload_id = element_text(body, "UploadId")
        self.began = parse_http_date(head.fields.get("date", ""))
        self.checksum_algorithm = head.fields.get("x-amz-checksum-algorithm")
        self.checksum_type = head.fields.get("x-amz-checksum-type")
        return None if self.upload_id else not_s3(self.subject, head.status, head.fields, "without the UploadId")


class AbortMultipartUpload(Operation):
    """AbortMultipartUpload: deletes the parts of an upload."""

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        super().__init__("AbortMultipartUpload", "DELETE", bucket, key, query={"uploadId": upload_id})


class CompleteMultipartUpload(Send):
    """CompleteMultipartUpload, which may take minutes, and fail after it has answered with status 200.

    Args:
        bucket: Of the object.
        key: Of the object.
        upload_id: From CreateMultipartUpload.
        parts: By number, in order.
        signed_fields: More header fields, such as ``if-none-match``.

    Attributes:
        may_be_done: Whether it may have been carried out although the exchange has failed.
        etag: Of the object, once the exchange has succeeded; empty if the server does not tell.
    """

    is_slow = True
    shows = Shows(root="CompleteMultipartUploadResult")
    takes_customer_key = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        upload_id: str,
        parts: Mapping[int, UploadedPart],
        signed_fields: Mapping[str, str] | None = None,
    ) -> None:
        elements = "".join(part.element(number) for number, part in parts.items())
        document = (
            '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"{elements}</CompleteMultipartUpload>"
        )
        super().__init__(
            "CompleteMultipartUpload",
            "POST",
            bucket,
            key,
            [memoryview(document.encode())],
            query={"uploadId": upload_id},
            signed_fields=signed_fields,
        )
        self.etag = ""
        self._refused = 0

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember the ETag."""
        del head
        self.etag = element_text(body, "ETag")
        return None

    @property
    def may_be_done(self) -> bool:
        """Whether one of the requests has met no answer that says for certain that it was refused."""
        return self.sent > self._refused

    def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        """Read the answer. One of a gateway (5xx) does not say what became of the request."""
        error = yield from super().response(inbox)
        if error is not None and not isinstance(error, ProtocolError) and error.status and error.status < 500:
            self._refused += 1
        return error


def complete(
    engine: Engine,
    bucket: Bucket,
    key: str,
    upload_id: str,
    parts: Mapping[int, UploadedPart],
    began: float | None,
    signed_fields: Mapping[str, str] | None = None,
) -> str:
    """Make the object of an upload appear; returns its ETag, empty if that was not told.

    Args:
        engine: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        upload_id: From CreateMultipartUpload.
        parts: By number, in order.
        began: When the upload was begun by the server's clock, in seconds since the epoch; None if it did not tell.
        signed_fields: More header fields of the request.

    Raises:
        S3Error: It could not be completed. If the object may have appeared nevertheless, the message says so.
    """
    request = CompleteMultipartUpload(bucket, key, upload_id, parts, signed_fields)
    try:
        engine.run([request])
        return request.etag
    except S3Error as error:
        if not request.may_be_done:
            raise
        stored = HeadObject(bucket, key)
        try:
            engine.run([stored])
        except ObjectNotFoundError:
            raise error from None  # nothing is there: what failed has failed
        except S3Error as failure:
            _add(error, f"Whether the object was stored is not known, as asking for it failed, too: {failure}")
            raise error from failure
        if stored.head is None:
            raise AssertionError("a HEAD that succeeded without an answer") from error
        etag = multipart_etag([part.etag for part in parts.values()]) if bucket.has_md5_etags else None
        size = sum(part.length for part in parts.values())
        if stored.size != size or not _is_upload(stored.head, etag, began):
            _add(error, "The object that is there now has another size, ETag or time.")
            raise
        return stored.head.fields.get("etag", "")


def _is_upload(head: Head, etag: str | None, began: float | None) -> bool:
    """Return whether an object of the right size is the one that was uploaded.

    Args:
        head: The answer to HeadObject.
        etag: What its ETag must be; None if that cannot be told, and size and time must do.
        began: When that was begun, in seconds since the epoch; None if that is not known.
    """
    if etag is not None:
        return etags.are_same(head.fields.get("etag", ""), etag)
    modified = parse_http_date(head.fields.get("last-modified", ""))
    return modified is not None and began is not None and modified >= began


def multipart_etag(etags: Sequence[str]) -> str | None:
    """Return the ETag of an object of these parts; None if theirs are no MD5s."""
    matches = [_MD5.fullmatch(etag) for etag in etags]
    digests = [bytes.fromhex(match[1]) for match in matches if match is not None]
    if len(digests) != len(etags):
        return None
    return f'"{hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"'


def _add(error: S3Error, sentence: str) -> None:
    error.args = (f"{error.args[0]} {sentence}",)
