"""The requests that copy an object, or a part of one, within the service.

Both are answered with status 200 before they are carried out: what became of them stands in the body. While it waits
the service sends white space. Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html and
API_UploadPartCopy.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from s3torch._aws.answers import element_text, error_from_answer, parse_error_document
from s3torch._aws.bucket import Bucket
from s3torch._aws.customer_key import of_source
from s3torch._aws.operations import Operation, Response
from s3torch._transfer import http1
from s3torch._transfer.http1 import Head, Inbox
from s3torch.errors import ArgumentError, ProtocolError

__all__ = ["CopyObject", "CopySource", "UploadPartCopy"]

_MAX_DOCUMENT = 1024 * 1024
_ARN = "arn:"


@dataclass(frozen=True, slots=True)
class CopySource:
    """What is copied.

    Attributes:
        bucket: Of the object: a name, or the ARN of an access point.
        key: Of the object.
        version_id: The version; None for the newest.
        etag: What the object's ETag must be; None for any.
    """

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None

    def fields(self) -> Mapping[str, str]:
        """Return the header fields that name it.

        Raises:
            ArgumentError: The key is no Unicode text.
        """
        between = "/object/" if self.bucket.startswith(_ARN) else "/"
        try:
            source = quote(f"{self.bucket}{between}{self.key}", safe="/~")
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"The key {self.key!r} cannot be sent: {error.reason}. Keys are Unicode text, encoded as UTF-8.",
                bucket=self.bucket,
            ) from error
        if self.version_id is not None:
            source = f"{source}?versionId={quote(self.version_id, safe='')}"
        fields = {"x-amz-copy-source": source}
        if self.etag is not None:
            fields["x-amz-copy-source-if-match"] = self.etag
        return fields


class _Copy(Operation):
    """A request whose body says whether it succeeded.

    Args:
        name: The S3 API's name of the operation.
        bucket: Of the copy. Copies are signed with the user's credentials, in directory buckets as well.
        key: Of the copy.
        signed_fields: What is copied, and how.
        query: Parameters.

    Attributes:
        document: What was answered.
    """

    is_slow = True
    takes_customer_key = True
    _result = "CopyObjectResult"

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        key: str,
        signed_fields: Mapping[str, str],
        query: Mapping[str, str] | None = None,
    ) -> None:
        fields = {**signed_fields, **of_source(bucket.customer_key)}
        super().__init__(name, "PUT", bucket.plain, key, query=query, signed_fields=fields)
        self._fields["content-length"] = "0"
        self.document = b""

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read whether it succeeded: the status was sent before that was known."""
        self.document = body = yield from http1.read_small_body(inbox, head, _MAX_DOCUMENT)
        if re.search(rb"<%s[\s/>]" % self._result.encode(), body):
            return None
        document = parse_error_document(body)
        if document.code:
            return error_from_answer(self.subject, head.status, head.fields, document)
        return ProtocolError(
            f"The answer has no {self._result}, so nothing says that anything was copied. Perhaps a proxy or another "
            "service than S3 has answered: check the endpoint."
        )


class CopyObject(_Copy):
    """CopyObject, of up to 5 GiB.

    Args:
        bucket: Of the copy.
        key: Of the copy.
        source: What is copied.
        signed_fields: More header fields, such as ``x-amz-storage-class``.
    """

    def __init__(
        self, bucket: Bucket, key: str, source: CopySource, signed_fields: Mapping[str, str] | None = None
    ) -> None:
        super().__init__("CopyObject", bucket, key, {**source.fields(), **(signed_fields or {})})


class UploadPartCopy(_Copy):
    """UploadPartCopy: a range of an object becomes a part of a multipart upload.

    Args:
        bucket: Of the copy.
        key: Of the copy.
        source: What is copied.
        start: First byte of the range.
        stop: The byte after its last.
        upload_id: From CreateMultipartUpload.
        part_number: From 1.
        signed_fields: More header fields.

    Attributes:
        etag: Of the part, once the exchange has succeeded.
        length: Of the part, in bytes.
    """

    _result = "CopyPartResult"

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        source: CopySource,
        start: int,
        stop: int,
        *,
        upload_id: str,
        part_number: int,
        signed_fields: Mapping[str, str] | None = None,
    ) -> None:
        fields = {
            **source.fields(),
            "x-amz-copy-source-range": http1.format_range(start, stop),
            **(signed_fields or {}),
        }
        query = {"partNumber": str(part_number), "uploadId": upload_id}
        super().__init__("UploadPartCopy", bucket, key, fields, query)
        self.length = stop - start

    @property
    def etag(self) -> str:
        """The ETag of the part."""
        return element_text(self.document, "ETag")

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read whether it succeeded, and the part's ETag."""
        error = yield from super().accept(inbox, head)
        if error is None and not self.etag:
            return ProtocolError("The answer has no ETag of the part that was copied.")
        return error
