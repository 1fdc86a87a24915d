"""An object copied within the service: by one request, or in parts that are under way side by side.

CopyObject takes 5 GiB at most. That an object is larger is told by its refusal, so that a copy of any other object is
one request. What CopyObject keeps of an object beside its bytes has to be said when an upload begins; its tags, which
take other permissions, are not kept then.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from s3torch._aws import etags, multipart
from s3torch._aws.copying import CopyObject, CopySource, UploadPartCopy
from s3torch._aws.multipart import CreateMultipartUpload, UploadedPart
from s3torch._aws.operations import HeadObject, unproven
from s3torch._objects.uploads import abort_multipart_upload
from s3torch._transfer import plan
from s3torch.errors import ObjectChangedError, ObjectNotFoundError, RequestError, S3Error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch._access import Access
    from s3torch._transfer.http1 import Head

__all__ = ["copy"]

_log = logging.getLogger(__name__)

# CopyObject's limit (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
_MOST_OF_ONE_REQUEST = 5 * 1024**3
# Of a part, unless 10,000 of them are too few. Nothing passes through here, so large parts cost no memory. Not tuned.
_PART_SIZE = 256 * 1024**2
# By which servers say that an object is too large for one request.
_TOO_LARGE = {"InvalidRequest", "EntityTooLarge", "InvalidArgument"}
# What CopyObject keeps, beside x-amz-meta-*.
_KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")
# Seconds that it may take to abort what failed.
_ABORT_WITHIN = 10.0


def copy(access: Access, source: CopySource, bucket: str, key: str) -> None:
    """Copy an object; see ``S3Client.copy_object``."""
    try:
        _copy(access, source, bucket, key)
    except ObjectNotFoundError as error:
        error.key, error.bucket = source.key, source.bucket
        error.args = (f"s3://{source.bucket}/{source.key}, which was to be copied, does not exist.",)
        raise


def _copy(access: Access, source: CopySource, bucket: str, key: str) -> None:
    try:
        access.run([CopyObject(access.bucket(bucket), key, source)])
    except RequestError as error:
        if error.status != 400 or error.code not in _TOO_LARGE:
            raise
        head, size = _ask(access, source)
        if size <= _MOST_OF_ONE_REQUEST:
            raise
        _copy_in_parts(access, source, head, size, bucket, key)


def _ask(access: Access, source: CopySource) -> tuple[Head, int]:
    """Return the head of what is copied, and its size."""
    stored = HeadObject(access.bucket(source.bucket), source.key, source.version_id)
    access.run([stored])
    if stored.head is None:
        raise AssertionError("a HEAD that succeeded without an answer")
    return stored.head, stored.size


def _copy_in_parts(access: Access, source: CopySource, head: Head, size: int, bucket: str, key: str) -> None:
    where = access.bucket(bucket)
    # All parts are of one version.
    pinned = CopySource(source.bucket, source.key, source.version_id, head.fields.get("etag") or None)
    creation = CreateMultipartUpload(where, key, _kept(head.fields))
    try:
        access.run([creation])
        ranges = plan.split(0, size, plan.known_upload_part_size(size, _PART_SIZE))
        parts = [
            UploadPartCopy(where, key, pinned, start, stop, upload_id=creation.upload_id, part_number=number)
            for number, (start, stop) in enumerate(ranges, 1)
        ]
        access.run(parts)
        if source.version_id is None and not (where.endpoint.is_amazons and etags.for_if_match(pinned.etag)):
            _check_is_same(access, source, head, size)
        uploaded = {number: UploadedPart(part.etag, part.length) for number, part in enumerate(parts, 1)}
        multipart.complete(access.engine(), where, key, creation.upload_id, uploaded, creation.began)
    except BaseException as error:
        _abort(access, bucket, key, creation.upload_id)
        if isinstance(error, S3Error) and error.status == 412:
            raise _replaced(source) from error
        raise


def _check_is_same(access: Access, source: CopySource, head: Head, size: int) -> None:
    """Check, once all parts are copied, that no other version has taken the place of what is copied.

    The answer to the copy of a part does not tell of which version it was. Not every server heeds the condition, and
    some write ETags that cannot stand in one.
    """
    now, size_now = _ask(access, source)
    etag, modified = head.fields.get("etag"), head.fields.get("last-modified")
    versions = etag, now.fields.get("etag"), modified, now.fields.get("last-modified")
    if size_now != size or etags.other_version(*versions) is not None:
        raise _replaced(source)
    if missing := etags.lacks_proof(*versions, is_first=False):
        raise unproven(missing)


def _replaced(source: CopySource) -> ObjectChangedError:
    return ObjectChangedError(
        f"s3://{source.bucket}/{source.key} was replaced while it was copied. Copy it again.",
        bucket=source.bucket,
        key=source.key,
    )


def _kept(fields: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in fields.items() if name in _KEPT or name.startswith("x-amz-meta-")}


def _abort(access: Access, bucket: str, key: str, upload_id: str) -> None:
    if not upload_id:
        return
    try:
        abort_multipart_upload(access, bucket, key, upload_id, _ABORT_WITHIN)
    except S3Error as error:
        _log.warning("Upload %s of s3://%s/%s could not be aborted: %s", upload_id, bucket, key, error)
