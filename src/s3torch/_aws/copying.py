"""The requests that copy an object, or a part of one, within the service.

Both are answered with status 200 before they are carried out: what became of them stands in the body. While it waits
the service sends white space. Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html and
API_UploadPartCopy.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from s3torch._aws import etags
from s3torch._aws.answers import element_text
from s3torch._aws.bucket import Bucket
from s3torch._aws.customer_key import of_source
from s3torch._aws.operations import Operation
from s3torch._aws.proof import Shows, not_s3
from s3torch._transfer import http1
from s3torch._transfer.http1 import Head
from s3torch.errors import ArgumentError, S3Error

__all__ = ["CopyObject", "CopySource", "UploadPartCopy"]

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
        if (etag := etags.for_if_match(self.etag)) is not None:
            fields["x-amz-copy-source-if-match"] = etag
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
        etag: Of the copy, once the exchange has succeeded.
    """

    is_slow = True
    takes_customer_key = True
    shows = Shows(root="CopyObjectResult")

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
        self.etag = ""

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember the ETag, without which nothing says that anything was copied."""
        self.etag = element_text(body, "ETag")
        if not etags.opaque(self.etag):
            raise not_s3(self.subject, head.status, head.fields, "without the ETag of what was to be copied")
        return None


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
        length: Of the part, in bytes.
    """

    shows = Shows(root="CopyPartResult")

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
