"""Bytes appended to an object of a directory bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._aws import checksums
from s3torch._aws.express import AppendObject
from s3torch._objects.remote import RemoteObject
from s3torch.errors import ArgumentError, S3Error

if TYPE_CHECKING:
    from s3torch._access import Access
    from s3torch._aws.bucket import Bucket

__all__ = ["append"]


def append(access: Access, bucket: Bucket, key: str, data: memoryview, offset: int) -> None:
    """Write bytes behind those of an object; see ``S3Client.append_object``."""
    if not len(data):
        raise ArgumentError(f"There is nothing to append to s3://{bucket.name}/{key}.", bucket=bucket.name, key=key)
    crc32 = checksums.compute(checksums.CRC32, [data]) if bucket.sends_checksums else None
    request = AppendObject(bucket, key, [data], crc32, offset=offset)
    try:
        access.run([request])
    except S3Error as error:
        # The offset of a request that is sent again is wrong if the first was carried out and its answer was lost.
        if request.sent > 1 and _is_there(access, bucket, key, data, offset):
            return
        if error.code == "InvalidWriteOffset":
            sentence = f"s3://{bucket.name}/{key} is not {offset} bytes long, so nothing was appended at {offset}. "
            error.args = (f"{sentence}Ask head_object for its size: somebody else may have written to it.",)
        raise


def _is_there(access: Access, bucket: Bucket, key: str, data: memoryview, offset: int) -> bool:
    """Whether an object ends with these bytes at this place; False if that cannot be told."""
    try:
        return RemoteObject(access, bucket.name, key).read(offset, offset + len(data)) == data
    except S3Error:
        return False
