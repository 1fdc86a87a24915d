"""The uploads of a bucket that were begun and neither completed nor aborted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch._aws.listing import PageChain, folder_of
from s3torch._aws.multipart import AbortMultipartUpload
from s3torch._aws.upload_listing import ListMultipartUploads
from s3torch.errors import ProtocolError, S3Error

if TYPE_CHECKING:
    from s3torch._access import Access

__all__ = ["MultipartUploadInfo", "abort_multipart_upload", "follow", "list_multipart_uploads"]


@dataclass(frozen=True, slots=True)
class MultipartUploadInfo:
    """An upload that was begun and neither completed nor aborted.

    Attributes:
        key: Of the object that it would become.
        upload_id: Names it.
        initiated: Seconds since the epoch.
        storage_class: Of the object.
    """

    key: str
    upload_id: str
    initiated: int
    storage_class: str | None = None


def list_multipart_uploads(access: Access, bucket: str, prefix: str) -> list[MultipartUploadInfo]:
    """Return the uploads under a prefix; see ``S3Client.list_multipart_uploads``."""
    where = access.bucket(bucket)
    is_directory = where.endpoint.is_directory  # lists by folders alone, and knows no upload-id-marker
    listed = folder_of(prefix) if is_directory else prefix
    found: list[MultipartUploadInfo] = []
    marker: Mapping[str, str] = {}
    chain = PageChain()
    while True:
        request = ListMultipartUploads(where, listed, marker)
        access.run([request])
        page = request.page
        found += [MultipartUploadInfo(*upload) for upload in page.uploads if upload.key.startswith(prefix)]
        if page.following is None:
            # Once each: a server that does not know the markers sends the same again.
            return sorted(dict.fromkeys(found), key=lambda upload: (upload.key, upload.initiated))
        marker = {name: value for name, value in page.following.items() if name == "key-marker" or not is_directory}
        follow(chain, marker, is_empty=not page.uploads, bucket=bucket, key=None)


def follow(chain: PageChain, marker: Mapping[str, object], *, is_empty: bool, bucket: str, key: str | None) -> None:
    """Go on to the page that a page of uploads, or of parts, names as the next.

    Args:
        chain: Of the pages so far.
        marker: What the page says of the next one.
        is_empty: Whether the page holds nothing.
        bucket: For the error.
        key: For the error.

    Raises:
        ProtocolError: The page says that there are more, and not where, or leads back: those that are missing would
            pass for not being there.
    """
    names = tuple(sorted(marker.items()))
    try:
        if not names:
            raise ProtocolError("A page of a listing says that there are more, and not how to get them.")
        chain.check(names, is_empty=is_empty)
    except ProtocolError as error:
        error.bucket, error.key = bucket, key
        raise
    chain.add(names, is_empty=is_empty)


def abort_multipart_upload(access: Access, bucket: str, key: str, upload_id: str, within: float | None = None) -> None:
    """Delete the parts of an upload; that there is none is no error.

    Args:
        access: Sends the request.
        bucket: Of the object.
        key: Of the object.
        upload_id: Which upload of that key.
        within: Seconds that it may take at most; None: as long as the configuration allows.
    """
    try:
        access.run([AbortMultipartUpload(access.bucket(bucket), key, upload_id)], within)
    except S3Error as error:
        if error.code != "NoSuchUpload":
            raise
