"""Pages of ListObjectsV2: from XML to values.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html. Keys are asked for percent-encoded
(``encoding-type=url``), since XML 1.0 cannot hold every character that a key may have.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from s3torch.errors import ProtocolError

__all__ = ["ListObjectsResult", "ObjectInfo", "list_parameters", "parse_page"]


class ObjectInfo(NamedTuple):
    """One object of a listing.

    Attributes:
        key: Its key.
        etag: Its ETag, with the quotes.
        size: In bytes.
        last_modified: Seconds since the epoch.
        storage_class: Such as ``STANDARD``, or None where the server does not say.
    """

    key: str
    etag: str
    size: int
    last_modified: int
    storage_class: str | None = None


class ListObjectsResult(NamedTuple):
    """One page of a listing.

    Attributes:
        object_info: The objects, in the order of their keys' UTF-8 bytes.
        common_prefixes: What the delimiter grouped.
        continuation_token: Names the next page; None on the last.
    """

    object_info: list[ObjectInfo]
    common_prefixes: list[str]
    continuation_token: str | None


def list_parameters(prefix: str, delimiter: str, max_keys: int, continuation_token: str | None) -> dict[str, str]:
    """Return the query of one page."""
    parameters = {"list-type": "2", "encoding-type": "url", "max-keys": str(max_keys), "prefix": prefix}
    if delimiter:
        parameters["delimiter"] = delimiter
    if continuation_token is not None:
        parameters["continuation-token"] = continuation_token
    return parameters


def parse_page(document: bytes) -> ListObjectsResult:
    """Return what one page says.

    Raises:
        ProtocolError: It is not well-formed, not a listing, contradicts itself, or has a document type.
    """
    root = _parse(document)
    namespace, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise ProtocolError(f"A listing was asked for, and {name!r} was answered.")
    page = _Page(root, f"{namespace}}}" if namespace else "")
    try:
        return page.result()
    except ValueError as error:
        raise ProtocolError(f"A page of a listing holds a malformed value: {error}.") from error


def _parse(document: bytes) -> ET.Element:
    """Return the root element.

    The document is parsed as text, so that no declared encoding can hide a document type from the search for one: S3
    never sends any, and without it there is no entity to expand.
    """
    try:
        text = document.decode("utf-8")
        if "<!DOCTYPE" in text:
            raise ProtocolError("A listing with a document type was answered; S3 never sends one.")
        return ET.fromstring(text)  # noqa: S314  # entities were refused just above
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A page of a listing is not well-formed XML in UTF-8: {error}.") from error


_SIZE = re.compile(r"[0-9]{1,18}")


class _Page:
    """One page; its elements are looked up by names with their namespace."""

    def __init__(self, root: ET.Element, namespace: str) -> None:
        self._root = root
        self._names = {name: namespace + name for name in _NAMES}
        self._is_encoded = self._text(root, "EncodingType") == "url"

    def result(self) -> ListObjectsResult:
        """Return what the page says.

        Raises:
            ValueError: A value is malformed.
        """
        token = self._text(self._root, "NextContinuationToken") or None
        is_truncated = self._text(self._root, "IsTruncated") == "true"
        if is_truncated and token is None:
            raise ProtocolError("A page of a listing says that there are more, and not how to get them.")
        return ListObjectsResult(
            [self._object_info(element) for element in self._root.iterfind(self._names["Contents"])],
            [self._prefix(element) for element in self._root.iterfind(self._names["CommonPrefixes"])],
            token if is_truncated else None,
        )

    def _object_info(self, element: ET.Element) -> ObjectInfo:
        names = self._names
        value = {child.tag: child.text or "" for child in element}.get
        key, size = value(names["Key"], ""), value(names["Size"], "")
        if not key or _SIZE.fullmatch(size) is None:
            raise ValueError(f"key {key!r}, size {size[:40]!r}")
        return ObjectInfo(
            self._decode(key),
            value(names["ETag"], ""),
            int(size),
            _seconds(value(names["LastModified"], "")),
            value(names["StorageClass"]) or None,
        )

    def _prefix(self, element: ET.Element) -> str:
        return self._decode(self._text(element, "Prefix"))

    def _text(self, element: ET.Element, name: str) -> str:
        return element.findtext(self._names[name], "")

    def _decode(self, text: str) -> str:
        return unquote_plus(text, errors="strict") if self._is_encoded else text


_NAMES = (
    "CommonPrefixes",
    "Contents",
    "ETag",
    "EncodingType",
    "IsTruncated",
    "Key",
    "LastModified",
    "NextContinuationToken",
    "Prefix",
    "Size",
    "StorageClass",
)


def _seconds(text: str) -> int:
    """Return an ISO 8601 time as seconds since the epoch; 0 where a server leaves it out."""
    if not text:
        return 0
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp())
