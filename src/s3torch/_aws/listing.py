"""Pages of ListObjectsV2: from XML to values.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html. Keys are asked for percent-encoded
(``encoding-type=url``), since XML 1.0 cannot hold every character that a key may have.

It is one file of over 450 lines: what a page says, and whether it can be, is read in one place.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import NamedTuple, Protocol
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from s3torch.errors import ProtocolError

__all__ = [
    "KeyPage",
    "KnownObject",
    "ListObjectsResult",
    "ObjectInfo",
    "PageChain",
    "RestoreStatus",
    "folder_of",
    "has_more",
    "list_parameters",
    "only_under",
    "parse_document",
    "parse_keys",
    "parse_page",
    "seconds_of",
]


class RestoreStatus(NamedTuple):
    """How far an archived object is on its way back.

    Attributes:
        in_progress: Whether it is being restored; False once it can be read.
        expiry: Until when it can be read, in seconds since the epoch; None while it is being restored.
    """

    in_progress: bool
    expiry: int | None = None


class ObjectInfo(NamedTuple):
    """One object of a listing.

    Attributes:
        key: Its key.
        etag: Its ETag, with the quotes.
        size: In bytes.
        last_modified: Seconds since the epoch.
        storage_class: Such as ``STANDARD``, or None where the server does not say.
        restore_status: None: a listing does not ask for it; ``head_object`` tells.
    """

    key: str
    etag: str
    size: int
    last_modified: int
    storage_class: str | None = None
    restore_status: RestoreStatus | None = None


class KnownObject(Protocol):
    """What is known of an object before it is read: of a listing, of ``head_object``, or of a program's own."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def etag(self) -> str | None:
        """Its ETag, with the quotes; empty or None if it is not known."""


class ListObjectsResult(NamedTuple):
    """One page of a listing.

    Attributes:
        object_info: The objects, in the order of their keys' UTF-8 bytes; in a directory bucket in no order.
        common_prefixes: What the delimiter grouped.
        continuation_token: Names the next page; None on the last.
    """

    object_info: list[ObjectInfo]
    common_prefixes: list[str]
    continuation_token: str | None


class KeyPage(NamedTuple):
    """One page of a listing, of which only keys, sizes and perhaps ETags are wanted.

    Attributes:
        keys: In UTF-8, in the order in which they came.
        sizes: Of the objects, in bytes.
        continuation_token: Names the next page; None on the last.
        etags: Of the objects, with their quotes, in UTF-8; empty where there is none. None if they were not asked for.
    """

    keys: list[bytes]
    sizes: list[int]
    continuation_token: str | None
    etags: list[bytes] | None = None


# Pages in a row that are empty although more follow. S3 and others send some where a filter or deleted objects left
# nothing of what a page looked at; each looks at 1,000 keys or so. That many are a million keys. Not tuned.
_MOST_EMPTY_PAGES = 1000


class PageChain:
    """The pages of one listing, of which each names the next: that they come to an end is not taken for granted.

    A token that came before would bring the same pages again and again, and so may fresh ones: without a single key, or
    of a server that does not heed them.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._firsts: set[int] = set()
        self._empty = 0

    def check(self, token: object, *, is_empty: bool, first: object = None) -> None:
        """Check a page before it is taken; changes nothing.

        Args:
            token: Names the next page; None on the last.
            is_empty: Whether the page holds nothing.
            first: What the page begins with, which no other page holds; None if that is not known.

        Raises:
            ProtocolError: This page or the next one was there before, or too many pages in a row were empty.
        """
        if first is not None and hash(first) in self._firsts:
            raise ProtocolError(
                f"A page of a listing begins with {str(first)[:100]!r}, as one before it: the server does not go on "
                "where it is told to, and the listing would never end."
            )
        if token is None:
            return
        if hash(token) in self._seen:
            raise ProtocolError(
                f"A page of a listing names {str(token)[:100]!r} as the next, which was named before: the server goes "
                "round in a circle, and the listing would never end."
            )
        if is_empty and self._empty == _MOST_EMPTY_PAGES - 1:
            raise ProtocolError(
                f"{_MOST_EMPTY_PAGES} pages of a listing in a row are empty, and each says that there are more."
            )

    def add(self, token: object, *, is_empty: bool, first: object = None) -> None:
        """Take a page: the next one must be another."""
        if token is not None:
            self._seen.add(hash(token))  # not the token itself, which may be of a kB, once for each 1,000 keys
        if first is not None:
            self._firsts.add(hash(first))
        self._empty = self._empty + 1 if is_empty else 0


def has_more(said: str | None, *, is_told: bool) -> bool:
    """Return whether more follows a page.

    Args:
        said: Its element IsTruncated; None where that is missing, which some servers do with the last page.
        is_told: Whether it names the next page.

    Raises:
        ProtocolError: It says something else, or that there are more and not how to get them.
    """
    if said not in ("true", "false", None):
        raise ProtocolError(f"A page of a listing says {said!r} where it must say whether there are more.")
    if said == "true" and not is_told:
        raise ProtocolError("A page of a listing says that there are more, and not how to get them.")
    return said == "true"


def folder_of(prefix: str) -> str:
    """Return the folder that holds all keys with a prefix: directory buckets list by folders alone."""
    return prefix[: prefix.rfind("/") + 1]


def only_under(page: ListObjectsResult, prefix: str) -> ListObjectsResult:
    """Return a page of a folder's listing without what does not begin with a prefix."""
    return page._replace(
        object_info=[info for info in page.object_info if info.key.startswith(prefix)],
        common_prefixes=[common for common in page.common_prefixes if common.startswith(prefix)],
    )


# Each element costs a hundred bytes of memory, and may be four bytes long. A page of 1,000 objects has some 25,000.
_MAX_TAGS = 400_000


def list_parameters(
    prefix: str, delimiter: str, max_keys: int, continuation_token: str | None, start_after: str = ""
) -> dict[str, str]:
    """Return the query of one page."""
    parameters = {"list-type": "2", "encoding-type": "url", "max-keys": str(max_keys), "prefix": prefix}
    if delimiter:
        parameters["delimiter"] = delimiter
    if continuation_token is not None:
        parameters["continuation-token"] = continuation_token
    if start_after:
        parameters["start-after"] = start_after
    return parameters


def parse_page(document: bytes) -> ListObjectsResult:
    """Return what one page says.

    Raises:
        ProtocolError: It is not well-formed, not a listing, contradicts itself, or has a document type.
    """
    page = _envelope(document)
    try:
        return page.result()
    except ValueError as error:
        raise _malformed(error) from error


def _envelope(document: bytes) -> _Page:
    root = parse_document(document, "ListBucketResult")
    namespace = root.tag.rpartition("}")[0]
    return _Page(root, f"{namespace}}}" if namespace else "")


def _malformed(error: ValueError) -> ProtocolError:
    return ProtocolError(f"A page of a listing holds a malformed value: {error}.")


def parse_keys(document: bytes, *, etags: bool = False) -> KeyPage:
    """Return keys and sizes of one page, at a tenth of the cost of ``parse_page``.

    The objects are found by regular expressions if they follow one another in the plain way in which all servers write
    them, each beginning with its only key and having one size, and one ETag if these are wanted; what stands around
    them is parsed as XML. Any other page is parsed as XML as a whole. Not checked in the first case: that the elements
    that are not wanted are well-formed.

    Args:
        document: Of the answer.
        etags: Whether the ETags are wanted.

    Raises:
        ProtocolError: As ``parse_page``.
    """
    columns = _plain_columns(document, etags=etags)
    if columns is not None:
        page = _envelope(columns.rest)
        if page.objects == 1:
            page.check_count(len(columns.keys))
            try:
                return KeyPage(
                    page.decoded(columns.keys),
                    list(map(int, columns.sizes)),
                    page.continuation_token(),
                    None if columns.etags is None else _unescaped(columns.etags),
                )
            except ValueError as error:
                raise _malformed(error) from error
    whole = parse_page(document)
    return KeyPage(
        [info.key.encode() for info in whole.object_info],
        [info.size for info in whole.object_info],
        whole.continuation_token,
        [info.etag.encode() for info in whole.object_info] if etags else None,
    )


_BEGIN = b"<Contents><Key>"
_END = b"</Contents>"
_KEY_OR_SIZE = re.compile(rb"<(?:Key>([^<&\x00-\x1f]+)</Key|Size>([0-9]{1,18})</Size)>")
_QUOTE = rb"(?:&quot;|&#34;|\")?"
_KEY_SIZE_OR_ETAG = re.compile(
    rb"<(?:Key>([^<&\x00-\x1f]+)</Key|Size>([0-9]{1,18})</Size|ETag>("
    + _QUOTE
    + rb"[!#-%'-;=-~]+"
    + _QUOTE
    + rb")</ETag)>"
)


class _PlainColumns(NamedTuple):
    """Keys, sizes and ETags as they are written, and the document without them."""

    keys: list[bytes]
    sizes: list[bytes]
    etags: list[bytes] | None
    rest: bytes


def _plain_columns(document: bytes, *, etags: bool) -> _PlainColumns | None:
    """Return what is wanted of a page; None if it is not written plainly.

    In the rest of the document one empty object stands for all of them, to show that they are where objects belong.
    That the n objects stand in one run, without white space, leaves no place between them for anything else.
    """
    start, stop = document.find(_BEGIN), document.rfind(_END) + len(_END)
    if start < 0 or stop < start:
        return None
    run = document[start:stop]
    if run.count(b"<Contents") != (count := run.count(_END + _BEGIN) + 1):
        return None
    columns = _in_turn(_KEY_SIZE_OR_ETAG.findall(run), 3) if etags else _in_turn(_KEY_OR_SIZE.findall(run), 2)
    if columns is None or len(columns[0]) != count:
        return None
    tags = (b"<Key", b"<Size", b"<ETag") if etags else (b"<Key", b"<Size")
    if any(run.count(tag) != count for tag in tags):  # one inside another
        return None
    # To look for one character first is cheaper; comments and CDATA sections could hide what is not an object.
    if (b"!" in document and b"<!" in document) or (b"?" in run and b"<?" in run):
        return None
    rest = b"".join([document[:start], b"<Contents/>", document[stop:]])
    return _PlainColumns(columns[0], columns[1], columns[2] if etags else None, rest)


def _in_turn(found: list[tuple[bytes, ...]], kinds: int) -> list[list[bytes]] | None:
    """Return the values of each kind, if all objects have one of each, in the same order; else None.

    Args:
        found: What was found one after the other: of each item only the field of its kind is not empty.
        kinds: How many there are.
    """
    if not found or len(found) % kinds:
        return None
    columns: list[list[bytes]] = [[] for _ in range(kinds)]
    for place in range(kinds):
        kind = next(number for number, value in enumerate(found[place]) if value)
        columns[kind] = [item[kind] for item in found[place::kinds]]
    return columns if all(map(all, columns)) and all(columns) else None


def _unescaped(etags: list[bytes]) -> list[bytes]:
    """Return ETags with the quotes that XML writes in other ways."""
    every = b" ".join(etags)
    if b"&" not in every:
        return etags
    return every.replace(b"&quot;", b'"').replace(b"&#34;", b'"').split(b" ")


def parse_document(document: bytes, name: str, ending: str | tuple[str, ...] = "") -> ET.Element:
    """Return the root element of a listing.

    Args:
        document: Of the answer.
        name: That the root must have.
        ending: That is enough of it, where some servers shorten it; empty where none does.

    Raises:
        ProtocolError: It is not well-formed, has a document type or too many tags, or is another document.

    The document is parsed as text, so that no declared encoding can hide a document type from the search for one: S3
    never sends any, and without it there is no entity to expand.
    """
    try:
        text = document.decode("utf-8")
        if "<!DOCTYPE" in text:
            raise ProtocolError("A listing with a document type was answered; S3 never sends one.")
        if text.count("<") > _MAX_TAGS:
            raise ProtocolError(f"A page of a listing has more than {_MAX_TAGS} tags; S3 sends 1,000 objects at most.")
        root = _tree(text)
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A page of a listing is not well-formed XML in UTF-8: {error}.") from error
    found = root.tag.rpartition("}")[2]
    if found != name and not (ending and found.endswith(ending)):
        raise ProtocolError(f"A listing was asked for, and {found!r} was answered.")
    return root


# What a key may hold and XML 1.0 may not (section 2.2), or what its parsers change (a carriage return, section 2.11).
# Servers that do not know encoding-type=url write it as it is, or as a reference.
_NO_XML = re.compile(
    "[\x00-\x08\x0b-\x1f\ufffe\uffff]|&#(?:x0*(?:1?[0-9a-f]|fff[ef])|0*(?:[12]?[0-9]|3[01]|6553[45]));", re.IGNORECASE
)
# The first of 34 characters of private use that stand for these while the page is parsed.
_STANDS_FOR_NUL = (0xE000, 0xF0000, 0x100000)


def _tree(text: str) -> ET.Element:
    """Return the root element of a page, which may hold characters that XML does not know."""
    if _NO_XML.search(text) is None:
        return ET.fromstring(text)  # noqa: S314  # its caller has refused entities
    first = next((each for each in _STANDS_FOR_NUL if not _has_any(text, each)), None)
    if first is None:
        raise ProtocolError("A page of a listing holds control characters and characters of all private use areas.")
    root = ET.fromstring(_NO_XML.sub(lambda match: chr(first + _place_of(match[0])), text))  # noqa: S314  # as above
    back = {first + place: code for place, code in enumerate((*range(32), 0xFFFE, 0xFFFF))}
    for element in root.iter():
        for outside in (element.tail, element.text if element is root else None):
            if outside and outside != outside.translate(back):
                raise ProtocolError(
                    "A page of a listing is not well-formed XML: control characters stand outside values."
                )
        element.text = element.text and element.text.translate(back)
    return root


def _has_any(text: str, first: int) -> bool:
    return any(chr(code) in text for code in range(first, first + 34))


def _place_of(written: str) -> int:
    """Return the place of a character, or of a reference to one, among those that XML does not know."""
    number = written[2:-1].lower()
    code = ord(written) if len(written) == 1 else int(number[1:], 16) if number.startswith("x") else int(number)
    return code if code < 32 else 32 + (code & 1)


_SIZE = re.compile(r"[0-9]{1,18}")


class _Page:
    """One page; its elements are looked up by names with their namespace."""

    def __init__(self, root: ET.Element, namespace: str) -> None:
        self._root = root
        self._names = {name: namespace + name for name in _NAMES}
        self._is_encoded = self._text(root, "EncodingType") == "url"

    @property
    def objects(self) -> int:
        """The number of objects."""
        return len(self._root.findall(self._names["Contents"]))

    def result(self) -> ListObjectsResult:
        """Return what the page says.

        Raises:
            ValueError: A value is malformed.
        """
        self.check_count(self.objects)
        return ListObjectsResult(
            [self._object_info(element) for element in self._root.iterfind(self._names["Contents"])],
            [self._prefix(element) for element in self._root.iterfind(self._names["CommonPrefixes"])],
            self.continuation_token(),
        )

    def check_count(self, objects: int) -> None:
        """Check that the page has all that it says it has.

        Fewer may be told: some servers do not count common prefixes.

        Args:
            objects: How many it has.

        Raises:
            ProtocolError: There were more: the page is cut short.
        """
        told = self._text(self._root, "KeyCount")
        found = objects + len(self._root.findall(self._names["CommonPrefixes"]))
        if _SIZE.fullmatch(told) and int(told) > found:
            raise ProtocolError(
                f"A page of a listing says that it has {told} entries, and has {found}: it is cut short."
            )

    def continuation_token(self) -> str | None:
        """Return what names the next page; None if this is the last."""
        token = self._text(self._root, "NextContinuationToken") or None
        said = self._root.findtext(self._names["IsTruncated"])
        if said is None and token is not None:
            raise ProtocolError("A page of a listing names a next one, and does not say whether there is more.")
        return token if has_more(said, is_told=token is not None) else None

    def decoded(self, keys: list[bytes]) -> list[bytes]:
        """Return keys in UTF-8.

        Raises:
            ValueError: One is not UTF-8.
        """
        every = b" ".join(keys)
        if self._is_encoded and (b"%" in every or b"+" in every):
            return [self._decode(key.decode()).encode() if b"%" in key or b"+" in key else key for key in keys]
        every.decode()  # refuses what is no UTF-8
        return keys

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
            seconds_of(value(names["LastModified"], "")),
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
    "KeyCount",
    "LastModified",
    "NextContinuationToken",
    "Prefix",
    "Size",
    "StorageClass",
)


_DECIMALS = re.compile(r"(?<=:[0-9]{2})[.,][0-9]*")
_ZONE = re.compile(r"([+-][0-9]{2})([0-9]{2})$")


def seconds_of(text: str) -> int:
    """Return an ISO 8601 time as seconds since the epoch; 0 where a server leaves it out.

    Before Python 3.11 ``fromisoformat`` knows 3 and 6 decimals, no Z, and no zone without a colon.
    """
    if not text:
        return 0
    plain = _ZONE.sub(r"\1:\2", _DECIMALS.sub("", text).replace("Z", "+00:00"))
    time = datetime.fromisoformat(plain)
    return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp())
