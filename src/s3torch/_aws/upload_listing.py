"""Pages of ListMultipartUploads and ListParts: from XML to values, and the requests for them.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html and API_ListParts.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from s3torch._aws.bucket import Bucket
from s3torch._aws.listing import has_more, parse_document, seconds_of
from s3torch._aws.operations import Operation
from s3torch._aws.proof import Shows
from s3torch._transfer.http1 import Head
from s3torch.errors import ProtocolError, S3Error

__all__ = [
    "ListMultipartUploads",
    "ListParts",
    "OpenUpload",
    "PartsPage",
    "StoredPart",
    "UploadsPage",
    "parse_parts",
    "parse_uploads",
]

# A page has 1,000 uploads or parts: keys of 1,024 bytes, each percent-encoded as three.
_MAX_PAGE = 16 * 1024 * 1024
# Some servers shorten the names of the root elements.
_UPLOADS = Shows(root="ListMultipartUploadsResult", ending="UploadsResult")
_PARTS = Shows(root="ListPartsResult", ending=("PartsResult", "PartsResponse"))

_Page = TypeVar("_Page")


class OpenUpload(NamedTuple):
    """An upload that was begun; see ``MultipartUploadInfo`` for the attributes."""

    key: str
    upload_id: str
    initiated: int
    storage_class: str | None


class UploadsPage(NamedTuple):
    """One page of ListMultipartUploads.

    Attributes:
        uploads: That were begun.
        following: Parameters that name the next page; None on the last.
    """

    uploads: list[OpenUpload]
    following: Mapping[str, str] | None


class StoredPart(NamedTuple):
    """A part that the service has.

    Attributes:
        number: From 1.
        etag: With its quotes.
        size: In bytes.
    """

    number: int
    etag: str
    size: int


class PartsPage(NamedTuple):
    """One page of ListParts.

    Attributes:
        parts: In order.
        checksum_algorithm: Of the upload; None if it has none.
        checksum_type: ``FULL_OBJECT`` or ``COMPOSITE``; None if it has none.
        following: The part behind which the next page begins; None on the last.
    """

    parts: list[StoredPart]
    checksum_algorithm: str | None
    checksum_type: str | None
    following: int | None


def parse_uploads(document: bytes) -> UploadsPage:
    """Return what a page of ListMultipartUploads says.

    Raises:
        ProtocolError: It is none, holds a malformed value, or says that there are more and not where.
    """
    root = parse_document(document, _UPLOADS.root, _UPLOADS.ending)
    is_encoded = _text(root, "EncodingType") == "url"

    def decode(text: str) -> str:
        return unquote_plus(text, errors="strict") if is_encoded else text

    with _explained("ListMultipartUploads"):
        uploads = [
            OpenUpload(
                decode(_required(upload, "Key")),
                _required(upload, "UploadId"),
                seconds_of(_text(upload, "Initiated")),
                _text(upload, "StorageClass") or None,
            )
            for upload in root.iterfind("{*}Upload")
        ]
        markers = {
            "key-marker": decode(_text(root, "NextKeyMarker")),
            "upload-id-marker": _text(root, "NextUploadIdMarker"),
        }
    following = {name: value for name, value in markers.items() if value}
    return UploadsPage(uploads, following if _has_more(root, is_told=bool(following)) else None)


def parse_parts(document: bytes) -> PartsPage:
    """Return what a page of ListParts says.

    Raises:
        ProtocolError: It is none, holds a malformed value, or says that there are more and not where.
    """
    root = parse_document(document, _PARTS.root, _PARTS.ending)
    with _explained("ListParts"):
        parts = [
            StoredPart(int(_required(part, "PartNumber")), _required(part, "ETag"), int(_required(part, "Size")))
            for part in root.iterfind("{*}Part")
        ]
        following = int(_text(root, "NextPartNumberMarker") or 0)
    return PartsPage(
        parts,
        _text(root, "ChecksumAlgorithm") or None,
        _text(root, "ChecksumType") or None,
        following if _has_more(root, is_told=following > 0) else None,
    )


def _has_more(root: ET.Element, *, is_told: bool) -> bool:
    return has_more(root.findtext("{*}IsTruncated"), is_told=is_told)


@contextlib.contextmanager
def _explained(operation: str) -> Iterator[None]:
    """Say of a ValueError inside the block which answer is malformed."""
    try:
        yield
    except ValueError as error:
        raise ProtocolError(f"A page of {operation} holds a malformed value: {error}.") from error


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}", "") or ""


def _required(element: ET.Element, name: str) -> str:
    found = _text(element, name)
    if not found:
        raise ValueError(f"no {name}")
    return found


class _ListPages(Operation, Generic[_Page]):
    """A page of a listing that is not of objects.

    Attributes:
        page: What ``parse`` returned, once the exchange has succeeded.
    """

    is_read = True
    most = _MAX_PAGE
    page: _Page

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        key: str | None,
        query: Mapping[str, str],
        parse: Callable[[bytes], _Page],
    ) -> None:
        super().__init__(name, "GET", bucket, key, query=query)
        self._parse = parse

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Parse the page."""
        del head
        self.page = self._parse(body)
        return None


class ListMultipartUploads(_ListPages[UploadsPage]):
    """A page of ListMultipartUploads.

    Args:
        bucket: To list.
        prefix: Of the keys.
        marker: ``following`` of the page before; empty for the first.
    """

    shows = _UPLOADS

    def __init__(self, bucket: Bucket, prefix: str, marker: Mapping[str, str]) -> None:
        query = {"uploads": "", "encoding-type": "url", "prefix": prefix, **marker}
        super().__init__("ListMultipartUploads", bucket, None, query, parse_uploads)


class ListParts(_ListPages[PartsPage]):
    """A page of ListParts.

    Args:
        bucket: Of the upload.
        key: Of the object.
        upload_id: Which upload of that key.
        after: The part behind which it begins; 0 for the first.
    """

    shows = _PARTS
    takes_customer_key = True

    def __init__(self, bucket: Bucket, key: str, upload_id: str, after: int) -> None:
        query = {"uploadId": upload_id}
        if after:
            query["part-number-marker"] = str(after)
        super().__init__("ListParts", bucket, key, query, parse_parts)
