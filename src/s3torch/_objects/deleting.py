"""Objects that are deleted only if they are what they were when they were listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from s3torch._aws import etags
from s3torch._aws.answers import parse_http_date
from s3torch._aws.operations import DeleteObject, HeadObject
from s3torch._objects.novelty import check_is_same
from s3torch.errors import ObjectNotFoundError

if TYPE_CHECKING:
    from s3torch._access import Access
    from s3torch._transfer.http1 import Head

__all__ = ["Known", "delete", "delete_unchanged"]

# Objects at a time: what is asked for ahead is known while it is deleted. Not tuned.
_BATCH = 256
# Where the time is that of a listing, which some servers round otherwise than Last-Modified, in seconds.
_TOLERANCE = 1


class Known(NamedTuple):
    """An object as it was listed.

    Attributes:
        key: Its key.
        etag: Its ETag; empty if the server has none.
        modified: When it was stored, in seconds since the epoch.
    """

    key: str
    etag: str
    modified: int


def delete(access: Access, bucket_name: str, key: str, etag: str | None) -> None:
    """Delete an object; see ``S3Client.delete_object``."""
    if etag is not None:
        etags.check_condition(etag)
        etag = etags.quoted(etag)
        try:
            check_is_same(access, bucket_name, key, etag)
        except ObjectNotFoundError:
            return  # as without a condition
    access.run([DeleteObject(access.bucket(bucket_name), key, etag)])


def delete_unchanged(access: Access, bucket_name: str, objects: Sequence[Known]) -> list[str]:
    """Delete objects, many at a time, but for those that were replaced since they were listed.

    Amazon S3 compares the ETag when it deletes. Not every other server does, so those are asked for the object just
    before; that also notices a replacement of the same bytes, by its time. That one is not there any more is no error.

    Args:
        access: Sends the requests.
        bucket_name: Of the objects.
        objects: To delete.

    Returns:
        The keys of those that were replaced, and are left alone.

    Raises:
        S3Error: One could not be deleted; others may have been.
    """
    bucket = access.bucket(bucket_name)
    kept: list[str] = []
    for begin in range(0, len(objects), _BATCH):
        chosen = list(objects[begin : begin + _BATCH])
        if not bucket.endpoint.is_amazons:
            heads = [HeadObject(bucket, known.key, is_lenient=True) for known in chosen]
            access.run(heads)
            there = [(known, head) for known, head in zip(chosen, heads, strict=True) if not head.is_missing]
            chosen = [known for known, head in there if _is_same(known, head.head)]
            kept += [known.key for known, head in there if not _is_same(known, head.head)]
        deletes = [DeleteObject(bucket, known.key, known.etag or None, is_lenient=True) for known in chosen]
        access.run(deletes)
        kept += [known.key for known, request in zip(chosen, deletes, strict=True) if request.is_kept]
    return kept


def _is_same(known: Known, head: Head | None) -> bool:
    """Whether the head of an object is that of the version that was listed."""
    if head is None:
        raise AssertionError("a HEAD that succeeded without an answer")
    etag, modified = head.fields.get("etag", ""), parse_http_date(head.fields.get("last-modified", ""))
    if etags.opaque(known.etag) and etags.opaque(etag) and not etags.are_same(known.etag, etag):
        return False
    return modified is None or abs(modified - known.modified) <= _TOLERANCE
