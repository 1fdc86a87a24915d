"""The uploads of a bucket that were begun and neither completed nor aborted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch._aws.listing import folder_of
from s3torch._aws.multipart import AbortMultipartUpload
from s3torch._aws.upload_listing import ListMultipartUploads
from s3torch.errors import S3Error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch._access import Access

__all__ = ["MultipartUploadInfo", "abort_multipart_upload", "list_multipart_uploads"]


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
    markers: list[Mapping[str, str]] = [{}]
    while True:
        request = ListMultipartUploads(where, listed, markers[-1])
        access.run([request])
        page = request.page
        found += [MultipartUploadInfo(*upload) for upload in page.uploads if upload.key.startswith(prefix)]
        following = page.following
        if following is not None and is_directory:
            following = {name: value for name, value in following.items() if name == "key-marker"}
        if not following or following in markers:
            return sorted(found, key=lambda upload: (upload.key, upload.initiated))
        markers.append(following)


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
