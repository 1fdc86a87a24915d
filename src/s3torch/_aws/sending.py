"""The requests that send an object or a part of one.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html and API_UploadPart.html.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from s3torch._aws import checksums, sigv4
from s3torch._aws.bucket import Bucket
from s3torch._aws.checksums import Checksum
from s3torch._aws.operations import Operation
from s3torch._aws.proof import Shows
from s3torch._transfer.http1 import Head
from s3torch.errors import S3Error

__all__ = ["PutObject", "Send", "UploadPart"]


class Send(Operation):
    """A request with a body that is at hand.

    Over TLS the body is signed as ``UNSIGNED-PAYLOAD``; over plain HTTP its SHA-256 is signed, which lets the server
    verify it.

    Args:
        name: The S3 API's name of the operation.
        method: The HTTP method.
        bucket: Of the object.
        key: Of the object.
        body: In one or several pieces, none of them empty; must not change until the exchange is done.
        query: Parameters.
        signed_fields: More header fields, such as ``x-amz-storage-class``.
        is_verified: Whether the server is known to verify the body by one of these fields: then it is never hashed.
    """

    def __init__(
        self,
        name: str,
        method: str,
        bucket: Bucket,
        key: str,
        body: Sequence[memoryview],
        *,
        query: Mapping[str, str] | None = None,
        signed_fields: Mapping[str, str] | None = None,
        is_verified: bool = False,
    ) -> None:
        length = sum(map(len, body))
        super().__init__(name, method, bucket, key, query=query, signed_fields=signed_fields, memory=length)
        self._body = body
        self._fields["content-length"] = str(length)
        is_safe = is_verified or bucket.endpoint.origin.scheme == "https"
        self._payload_sha256 = sigv4.UNSIGNED_PAYLOAD if is_safe else _sha256(body)

    def release(self) -> None:
        """Drop the body, which is the caller's memory."""
        self._body = ()

    def request(self) -> Sequence[memoryview]:
        """Return the signed head and the body."""
        return [memoryview(self._sign(self._payload_sha256)), *self._body]


def _sha256(pieces: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class PutObject(Send):
    """PutObject; also UploadPart, which differs by its query.

    The CRC32 of the body, if it is given, is sent and signed. Over plain HTTP its SHA-256 is signed as well, which
    takes three times as long, unless the server is known to verify the CRC32: there are servers that look at one of
    them only.

    Args:
        bucket: Of the object.
        key: Of the object.
        body: In one or several pieces, none of them empty; must not change until the exchange is done.
        crc32: Of the body; None sends none.
        signed_fields: More header fields, such as ``x-amz-storage-class``.
        verifies_checksum: Whether the server is known to verify the CRC32.

    Attributes:
        etag: What the server answered.
        checksum: What the body is sent with.
    """

    shows = Shows(stores=True)
    takes_customer_key = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        body: Sequence[memoryview],
        crc32: Checksum | None,
        *,
        signed_fields: Mapping[str, str] | None = None,
        verifies_checksum: bool = False,
        name: str = "PutObject",
        query: Mapping[str, str] | None = None,
    ) -> None:
        self.checksum = crc32
        self.etag = ""
        fields = dict(signed_fields or {})
        if self.checksum is not None:
            fields |= checksums.upload_fields(self.checksum)
        is_verified = verifies_checksum and self.checksum is not None
        super().__init__(name, "PUT", bucket, key, body, query=query, signed_fields=fields, is_verified=is_verified)

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember the ETag."""
        del body
        self.etag = head.fields["etag"]
        return None


class UploadPart(PutObject):
    """UploadPart of a multipart upload.

    Args:
        upload_id: From CreateMultipartUpload.
        part_number: From 1.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        body: Sequence[memoryview],
        crc32: Checksum | None,
        *,
        upload_id: str,
        part_number: int,
        verifies_checksum: bool = False,
    ) -> None:
        query = {"partNumber": str(part_number), "uploadId": upload_id}
        super().__init__(bucket, key, body, crc32, name="UploadPart", query=query, verifies_checksum=verifies_checksum)
        self.part_number = part_number
