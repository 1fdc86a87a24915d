"""What a server tells of the parts of an object: GetObjectAttributes, and HeadObject of one part.

GetObjectAttributes takes a permission of its own (``s3:GetObjectAttributes``), and not all servers know it. HeadObject
with a part number takes none, but a request for each part.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html and API_HeadObject.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from s3torch._aws import checksums, etags
from s3torch._aws.bucket import Bucket
from s3torch._aws.checksums import ALGORITHMS, OF_OBJECT, Algorithm, Checksum
from s3torch._aws.listing import has_more, parse_document
from s3torch._aws.operations import Operation, Response, with_version
from s3torch._aws.part_checksums import Composite, ListedPart
from s3torch._aws.proof import Shows, must_be_s3
from s3torch._transfer import http1
from s3torch._transfer.http1 import Head, Inbox
from s3torch.errors import ProtocolError, RequestError, S3Error

__all__ = ["AttributesPage", "GetObjectAttributes", "HeadPart", "parse_attributes"]

# A page has 1,000 parts of a few hundred bytes.
_MAX_PAGE = 4 * 1024 * 1024
_MOST_PARTS = 1000
# Of the number of parts, 10,000 at most.
_DIGITS = 5
_ATTRIBUTES = Shows(root="GetObjectAttributesResponse", ending=("AttributesResponse", "AttributesOutput"))


class AttributesPage(NamedTuple):
    """One page of GetObjectAttributes.

    Attributes:
        etag: Of the object; None if it is not told. S3 writes it without quotes here.
        size: Of the object, in bytes; None if it is not told.
        stored: The object's checksum; None if it has none that is known here.
        parts: Of the object, in order; none if it was not uploaded in parts, or they have no checksums.
        following: The part behind which the next page begins; None on the last.
    """

    etag: str | None
    size: int | None
    stored: Checksum | Composite | None
    parts: list[ListedPart]
    following: int | None


def parse_attributes(document: bytes) -> AttributesPage:
    """Return what a page of GetObjectAttributes says.

    Raises:
        ProtocolError: It is none, holds a malformed value, or says that there are more parts and not where.
    """
    root = parse_document(document, _ATTRIBUTES.root, _ATTRIBUTES.ending)
    told = root.find("{*}ObjectParts")
    try:
        size = root.findtext("{*}ObjectSize")
        count = None if told is None else told.findtext("{*}PartsCount") or told.findtext("{*}TotalPartsCount")
        parts = [
            ListedPart(int(part.findtext("{*}Size") or ""), _values(part))
            for part in root.iterfind("{*}ObjectParts/{*}Part")
        ]
        following = int((told.findtext("{*}NextPartNumberMarker") if told is not None else "") or 0)
        found = _stored(root, int(count) if count else None)
        known_size = int(size) if size else None
    except ValueError as error:
        raise ProtocolError(f"A page of GetObjectAttributes holds a malformed value: {error}.") from error
    is_truncated = told.findtext("{*}IsTruncated") if told is not None else "false"
    is_last = not has_more(is_truncated or "false", is_told=following > 0)
    return AttributesPage(root.findtext("{*}ETag") or None, known_size, found, parts, None if is_last else following)


def _stored(root: ET.Element, count: int | None) -> Checksum | Composite | None:
    element = root.find("{*}Checksum")
    if element is None:
        return None
    checksum = checksums.cheapest(_values(element))
    kind = element.findtext("{*}ChecksumType")
    if checksum is None or kind == OF_OBJECT or (kind is None and count is None):
        return checksum
    return Composite(checksum, count)


def _values(element: ET.Element) -> dict[Algorithm, bytes | None]:
    """Return the checksums that an element has; a composite one may have its ``-N``."""
    told = {each: element.findtext(f"{{*}}Checksum{each.name}") for each in ALGORITHMS}
    return {each: checksums.decoded(text.partition("-")[0], each) for each, text in told.items() if text}


class GetObjectAttributes(Operation):
    """A page of GetObjectAttributes: checksum, size, and the parts.

    Args:
        bucket: Of the object.
        key: Of the object.
        version_id: The version, or None for the newest.
        after: The part behind which the page begins; 0 for the first.

    Attributes:
        page: What the answer says, once the exchange has succeeded.
    """

    is_read = True
    takes_customer_key = True
    shows = _ATTRIBUTES
    most = _MAX_PAGE
    page: AttributesPage

    def __init__(self, bucket: Bucket, key: str, version_id: str | None, after: int = 0) -> None:
        fields = {
            "x-amz-object-attributes": "ETag,Checksum,ObjectParts,ObjectSize",
            "x-amz-max-parts": str(_MOST_PARTS),
        }
        if after:
            fields["x-amz-part-number-marker"] = str(after)
        query = {"attributes": "", **with_version(version_id)}
        super().__init__("GetObjectAttributes", "GET", bucket, key, query=query, signed_fields=fields)

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Read the document. A server that does not know the operation answers with the object, which nobody wants."""
        if "etag" in head.fields and "xml" not in head.fields.get("content-type", "").lower():
            raise RequestError("The server does not know GetObjectAttributes: it answered with the object.")
        return (yield from super().accept(inbox, head))

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Parse the page."""
        del head
        self.page = parse_attributes(body)
        return None


class HeadPart(Operation):
    """HeadObject of one part.

    Args:
        bucket: Of the object.
        key: Of the object.
        version_id: The version, or None for the newest.
        part_number: From 1.
        etag: What the object's ETag must be, or None for any.

    Attributes:
        part: What the server tells of the part, once the exchange has succeeded.
        count: Of all parts; None if it is not told.
    """

    is_read = True
    takes_customer_key = True
    shows = Shows(is_object=True)
    part: ListedPart
    count: int | None

    def __init__(
        self, bucket: Bucket, key: str, version_id: str | None, part_number: int, *, etag: str | None = None
    ) -> None:
        self._of_version = with_version(version_id)
        self._of_part = {"partNumber": str(part_number), **self._of_version}
        super().__init__("HeadObject", "HEAD", bucket, key, query=self._of_part, signed_fields=checksums.MODE_FIELDS)
        self._etag = etag
        if (pinned := etags.for_if_match(etag)) is not None:
            self._fields["if-match"] = pinned

    def doubt(self, head: Head) -> str:
        """Return why the head cannot be that of an object; empty if it can."""
        return must_be_s3(head, self.shows, self._etag)

    def accept(self, inbox: Inbox, head: Head) -> Response:
        """Learn size and checksums. There is no body, whatever length is told (RFC 9110 9.3.2)."""
        del inbox
        yield from ()
        field = head.fields.get("content-range")
        if field is not None:
            answered = http1.parse_content_range(field)
            size = answered.stop - answered.start
        elif head.content_length is not None:
            size = head.content_length
        else:
            return ProtocolError("The answer to a HEAD has no Content-Length.")
        count = head.fields.get("x-amz-mp-parts-count", "")
        self.count = int(count) if count.isdecimal() and len(count) <= _DIGITS else None
        told = {each: head.fields[each.field] for each in ALGORITHMS if each.field in head.fields}
        self.part = ListedPart(size, {each: checksums.decoded(text, each) for each, text in told.items()})
        return None

    def request(self) -> Sequence[memoryview]:
        """Return the signed head; what asks why it was refused is of a range, which a part number excludes."""
        self._query = self._of_part if self._mute is None else self._of_version
        return super().request()
