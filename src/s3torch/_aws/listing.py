"""Pages of ListObjectsV2: from XML to values.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html. Keys are asked for percent-encoded
(``encoding-type=url``), since XML 1.0 cannot hold every character that a key may have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote_plus
from xml.parsers import expat

from s3torch.errors import ProtocolError

__all__ = ["ListObjectsResult", "ObjectInfo", "list_parameters", "parse_page"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
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


@dataclass(frozen=True, slots=True)
class ListObjectsResult:
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
        ProtocolError: It is not well-formed, not a listing, contradicts itself, or declares entities.
    """
    root = _parse(document)
    if root.name != "ListBucketResult":
        raise ProtocolError(f"A listing was asked for, and {root.name!r} was answered.")
    is_encoded = root.text_of("EncodingType") == "url"
    token = root.text_of("NextContinuationToken") or None
    is_truncated = root.text_of("IsTruncated") == "true"
    if is_truncated and token is None:
        raise ProtocolError("A page of a listing says that there are more, and not how to get them.")
    try:
        return ListObjectsResult(
            [_object_info(element, is_encoded=is_encoded) for element in root.all("Contents")],
            [_decode(element.text_of("Prefix"), is_encoded=is_encoded) for element in root.all("CommonPrefixes")],
            token if is_truncated else None,
        )
    except ValueError as error:
        raise ProtocolError(f"A page of a listing holds a malformed value: {error}.") from error


class _Element:
    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: list[_Element] = []
        self.text = ""

    def all(self, name: str) -> Iterator[_Element]:
        return (child for child in self.children if child.name == name)

    def text_of(self, name: str) -> str:
        return next((child.text for child in self.all(name)), "")


def _parse(document: bytes) -> _Element:
    """Return the root; expat's own parser, since entities must be refused before they are expanded."""
    top = _Element("")
    open_elements = [top]

    def start(name: str, _attributes: object) -> None:
        element = _Element(name.rpartition(" ")[2])
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_name: str) -> None:
        open_elements.pop()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def refuse_doctype(*_arguments: object) -> None:
        raise ProtocolError("A listing with a document type was answered; S3 never sends one.")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
        raise ProtocolError(f"A page of a listing is not well-formed XML: {error}.") from error
    return top.children[0]


_SIZE = re.compile(r"[0-9]{1,18}")


def _object_info(element: _Element, *, is_encoded: bool) -> ObjectInfo:
    values = {child.name: child.text for child in element.children}
    key, size = values.get("Key", ""), values.get("Size", "")
    if not key or _SIZE.fullmatch(size) is None:
        raise ValueError(f"key {key!r}, size {size[:40]!r}")
    return ObjectInfo(
        _decode(key, is_encoded=is_encoded),
        values.get("ETag", ""),
        int(size),
        _seconds(values.get("LastModified", "")),
        values.get("StorageClass") or None,
    )


def _decode(text: str, *, is_encoded: bool) -> str:
    return unquote_plus(text, errors="strict") if is_encoded else text


def _seconds(text: str) -> int:
    """Return an ISO 8601 time as seconds since the epoch; 0 where a server leaves it out."""
    if not text:
        return 0
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp())
