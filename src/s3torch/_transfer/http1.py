"""HTTP/1.1 as a value: request heads to bytes, and answers read by generators (RFC 9110, RFC 9112).

Theory of operation. A reader of an answer is a generator that yields the memory it wants filled and is sent the number
of bytes that arrived there; 0 means that the peer closed its side::

    want = next(response)
    while True:
        want = response.send(socket.recv_into(want))

The position in the code is the state of the parser, and this module never sees a socket: a test can feed it byte by
byte. The body goes straight from the kernel into the destination. Only a head must be searched for its end, so it is
received into the connection's inbox, a small buffer; the first bytes of the body that come along with it are the only
ones that are copied.

We gave up on pipelining, trailers (they are skipped) and header folding (refused, as RFC 9112 5.2 lets us). Whatever
is malformed or beyond a bound raises ProtocolError; the connection that it came from must not be used again.

It is one file of over 450 lines: the grammar of HTTP/1.1 reads best in one place, as its parts check each other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s3torch.errors import ArgumentError, ConnectionFailedError, ProtocolError, TruncatedBodyError

__all__ = [
    "ContentRange",
    "Destination",
    "Head",
    "Inbox",
    "build_head",
    "format_fields",
    "format_range",
    "parse_content_range",
    "parse_head",
    "read_body",
    "read_head",
    "read_small_body",
]

Response = Generator[memoryview, int, None]

# Heads of S3 are below 2 KiB. The bound is what nginx and Apache together would ever send by default; not tuned.
_MAX_HEAD = 64 * 1024
_MAX_FIELDS = 256
_MAX_INTERIM_HEADS = 16
# Room of one receive while a head is read: all of a usual head, and little of the body, which has to be copied out.
_HEAD_ROOM = 4096
_MAX_CHUNK_LINE = 256
_LINE_END = "\r\n"
# How an alert and a handshake begin (RFC 8446 5.1).
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
# RFC 9112 6.3: these have no body, whatever their fields say.
_WITHOUT_BODY = (204, 304)


class Inbox:
    """Bytes of one connection that arrived and were not read yet; grows up to the size of the largest head.

    Args:
        size: To begin with, in bytes.
    """

    __slots__ = ("end", "memory", "start", "view")

    def __init__(self, size: int = 2 * _HEAD_ROOM) -> None:
        self.memory = bytearray(size)
        self.view = memoryview(self.memory)
        self.start = 0
        self.end = 0

    def __len__(self) -> int:
        return self.end - self.start

    def room(self) -> memoryview:
        """Return memory for the next receive; empty when the inbox is full."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.end == len(self.memory):
            unread = self.memory[self.start : self.end]
            size = min(2 * len(unread), _MAX_HEAD) if len(unread) == len(self.memory) else len(self.memory)
            self.memory = unread.ljust(size, b"\0")
            self.view = memoryview(self.memory)
            self.start, self.end = 0, len(unread)
        return self.view[self.end : self.end + _HEAD_ROOM]

    def take_into(self, room: memoryview) -> int:
        """Move as much as fits into ``room`` and return how many bytes that was."""
        taken = min(len(self), len(room))
        room[:taken] = self.view[self.start : self.start + taken]
        self.start += taken
        return taken


class Destination:
    """Memory that a body fills from the front.

    Args:
        pieces: Writable memory, one byte an item, of exactly the size that is expected in all; one piece is filled
            after the other.

    Attributes:
        filled: Bytes that arrived, over all pieces.
    """

    __slots__ = ("_offset", "_pieces", "_place", "filled")

    def __init__(self, *pieces: memoryview) -> None:
        self.filled = 0
        self._pieces = pieces
        self._place = 0
        self._offset = 0

    @property
    def pieces(self) -> Sequence[memoryview]:
        """The memory, filled or not."""
        return self._pieces

    def room(self, stop: int) -> memoryview:
        """Return where the next bytes go, up to the ``stop``-th of all."""
        piece = self._pieces[self._place]
        while self._offset == len(piece):
            self._place += 1
            self._offset = 0
            piece = self._pieces[self._place]
        return piece[self._offset : self._offset + stop - self.filled]

    def advance(self, count: int) -> None:
        """Note that so many bytes arrived in the room."""
        self._offset += count
        self.filled += count

    def content(self) -> Iterator[memoryview]:
        """Yield what is filled, piece by piece."""
        left = self.filled
        for piece in self._pieces:
            yield piece[:left]
            left -= min(left, len(piece))

    def rewind(self, filled: int) -> None:
        """Go back to where so many bytes had arrived."""
        self.filled = self._offset = 0
        self._place = 0
        while self.filled < filled:
            room = self.room(filled)
            self.advance(len(room))


@dataclass(slots=True)
class Head:
    """The status line and the fields of an answer, and what they say of its body.

    Args:
        status: Of three digits.
        reason: What stands behind it.
        fields: By lower-case name.
        http_1_0: Whether the peer speaks HTTP/1.0.

    Attributes:
        content_length: The announced length of the body in bytes, or None.
        is_chunked: Whether the body comes in chunks (RFC 9112 7.1).
        keeps_alive: Whether the peer will take another request on this connection.

    Raises:
        ProtocolError: The length is no number, or the body's framing is not understood or contradicts itself.
    """

    status: int
    reason: str
    fields: Mapping[str, str]
    http_1_0: bool = False
    content_length: int | None = field(init=False)
    is_chunked: bool = field(init=False)
    keeps_alive: bool = field(init=False)

    def __post_init__(self) -> None:
        fields = self.fields
        length, coding = fields.get("content-length"), fields.get("transfer-encoding")
        self.content_length = None if length is None else _content_length(length)
        self.is_chunked = coding is not None and _is_chunked(coding)
        if self.is_chunked and self.content_length is not None:
            raise ProtocolError("The answer has both a Transfer-Encoding and a Content-Length (RFC 9112 6.3).")
        option = fields.get("connection", "").lower()
        self.keeps_alive = "keep-alive" in option if self.http_1_0 else "close" not in option

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not self.is_chunked and self.content_length is None and self.status not in _WITHOUT_BODY


def _content_length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ProtocolError(f"The answer's Content-Length is {text!r}, which is not a length.")
    return int(text)


def _is_chunked(coding: str) -> bool:
    if coding.lower() != "chunked":
        raise ProtocolError(f"The answer's Transfer-Encoding is {coding!r}; only 'chunked' is understood.")
    return True


class ContentRange(NamedTuple):
    """A Content-Range field, half-open: bytes ``[start, stop)`` of ``total``; of no byte at all when unsatisfied."""

    start: int
    stop: int
    total: int | None


_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([^\x00\r\n]*))?(?=\r\n|\Z)")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00\r\n]*)")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)")


def build_head(method: str, target: str, fields: Mapping[str, str], more: str = "") -> bytes:
    """Return the bytes of a request's head.

    Args:
        method: ``GET``, ``PUT``, ...
        target: Path and query, percent-encoded.
        fields: Header fields by name.
        more: Lines of ``format_fields``.

    Raises:
        ArgumentError: Something in it is not printable ASCII, a line break above all.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return f"{_checked(lines)}{more}\r\n".encode("ascii")


def format_fields(fields: Mapping[str, str]) -> str:
    """Return the lines of header fields, each with its end.

    Raises:
        ArgumentError: Something in it is not printable ASCII, a line break above all.
    """
    return _checked([f"{name}: {value}" for name, value in fields.items()])


def _checked(lines: list[str]) -> str:
    text = "".join(lines)
    if not (text.isascii() and text.isprintable()):
        bad = next(line for line in lines if not (line.isascii() and line.isprintable()))
        raise ArgumentError(f"A request cannot carry the line {bad!r}: only printable ASCII can be sent.")
    return _LINE_END.join([*lines, ""])


def format_range(start: int, stop: int | None) -> str:
    """Return the Range field for bytes ``[start, stop)``; None means to the end (RFC 9110 14.2)."""
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def parse_content_range(text: str) -> ContentRange:
    """Return what a Content-Range field says (RFC 9110 14.4).

    Raises:
        ProtocolError: It is malformed or contradicts itself.
    """
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise ProtocolError(f"The answer's Content-Range is {text!r}, which is not a range of bytes.")
    first, last, total_text = match.groups()
    total = None if total_text == "*" else int(total_text)
    if first is None:
        if total is None:
            raise ProtocolError(f"The answer's Content-Range is {text!r}, which says nothing (RFC 9110 14.4).")
        return ContentRange(0, 0, total)
    start, stop = int(first), int(last) + 1
    if stop <= start or (total is not None and stop > total):
        raise ProtocolError(f"The answer's Content-Range is {text!r}, which contradicts itself.")
    return ContentRange(start, stop, total)


def parse_head(head: bytes) -> Head:
    """Return the head of an answer, given without the empty line that ends it.

    Raises:
        ProtocolError: It is not an HTTP/1 head, or has more than 256 fields.
    """
    text = head.decode("latin-1")
    match = _STATUS_LINE.match(text)
    if match is None:
        raise ProtocolError(f"The answer does not begin like HTTP/1.1 but with {text.partition(_LINE_END)[0][:80]!r}.")
    lines = text[match.end() :].split(_LINE_END)
    del lines[0]  # what is left of the status line: nothing, as the pattern goes up to its end
    if len(lines) > _MAX_FIELDS:
        raise ProtocolError(f"The answer's head has {len(lines)} fields; more than {_MAX_FIELDS} are refused.")
    fields = dict(map(_parse_field, lines))
    if len(fields) < len(lines):
        _refuse_contradiction(map(_parse_field, lines))
    minor, status, reason = match.groups()
    return Head(int(status), reason or "", fields, http_1_0=minor == "0")


@functools.lru_cache(maxsize=64)  # most lines of a server's answers are the same ones
def _parse_field(line: str) -> tuple[str, str]:
    """Return name, in lower case, and value of a field (RFC 9112 5)."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise ProtocolError(f"The answer's head has a malformed field: {line[:200]!r}.")
    name, value = match.groups()
    return name.lower(), value.strip(" \t")


def _refuse_contradiction(fields: Iterable[tuple[str, str]]) -> None:
    pairs = list(fields)
    for framing in ("content-length", "transfer-encoding"):
        if len({value for name, value in pairs if name == framing}) > 1:
            raise ProtocolError(f"The answer's head has two different values of {framing}.")


def read_head(inbox: Inbox) -> Generator[memoryview, int, Head]:
    """Read one head and skip interim (1xx) answers before it.

    Raises:
        ConnectionFailedError: The connection ended before the head did.
        ProtocolError: What came is not a head, or is larger than 64 KiB.
    """
    searched = interim = 0
    while True:
        end = inbox.memory.find(b"\r\n\r\n", inbox.start + searched, inbox.end)
        if end >= 0:
            head = parse_head(bytes(inbox.view[inbox.start : end]))
            inbox.start = end + 4
            if head.status >= 200:
                return head
            searched = 0
            interim += 1
            if interim == _MAX_INTERIM_HEADS:
                raise ProtocolError(f"More than {_MAX_INTERIM_HEADS} interim answers came before the answer.")
            continue
        if len(inbox) > 1 and bytes(inbox.view[inbox.start : inbox.start + 2]) in _TLS_RECORDS:
            raise ProtocolError("The answer does not begin like HTTP/1.1, but is TLS: write https:// in the endpoint.")
        searched = max(0, len(inbox) - 3)
        room = inbox.room()
        if not room:
            raise ProtocolError(f"The answer's head is larger than {_MAX_HEAD} bytes.")
        count = yield room
        if not count:
            raise ConnectionFailedError(
                f"The server closed the connection after {len(inbox)} bytes, before its answer's head was complete."
            )
        inbox.end += count


def read_body(inbox: Inbox, head: Head, destination: Destination, length: int) -> Response:
    """Return what reads the body, of exactly ``length`` bytes, into the destination from where it was filled to.

    Raises:
        TruncatedBodyError: The connection ended first; ``destination.filled`` says how far the body came.
        ProtocolError: The body is longer or shorter than ``length`` by its own framing.
    """
    stop = destination.filled + length
    if head.is_chunked:
        return _read_chunks(inbox, destination, stop)
    if head.content_length is None:
        return _read_to_end(inbox, destination, stop)
    if head.content_length != length:
        raise ProtocolError(f"The answer announces a body of {head.content_length} bytes where {length} are due.")
    return _fill(inbox, destination, stop)


def _fill(inbox: Inbox, destination: Destination, stop: int) -> Response:
    while inbox.start < inbox.end and destination.filled < stop:
        destination.advance(inbox.take_into(destination.room(stop)))
    while destination.filled < stop:
        count = yield destination.room(stop)
        if not count:
            raise TruncatedBodyError(
                f"The connection ended after {destination.filled} of {stop} bytes of the answer's body."
            )
        destination.advance(count)


def _read_to_end(inbox: Inbox, destination: Destination, stop: int) -> Response:
    length = stop - destination.filled
    yield from _fill(inbox, destination, stop)
    if not len(inbox):
        count = yield inbox.room()  # room() may move the end: it must not be read before
        inbox.end += count
    if len(inbox):
        raise ProtocolError(f"The answer's body is longer than the {length} bytes that are due.")


def _read_chunks(inbox: Inbox, destination: Destination, stop: int) -> Response:
    while True:
        size = yield from _read_chunk_size(inbox)
        if size == 0:
            break
        if destination.filled + size > stop:
            raise ProtocolError(f"The answer's chunks hold more than the {stop} bytes that are due.")
        yield from _fill(inbox, destination, destination.filled + size)
        yield from _expect_chunk_end(inbox)
    yield from _skip_trailers(inbox)
    if destination.filled < stop:
        raise ProtocolError(f"The answer's chunks hold {destination.filled} bytes where {stop} are due.")


def _read_chunk_size(inbox: Inbox) -> Generator[memoryview, int, int]:
    line = yield from _read_line(inbox)
    text = line.partition(b";")[0].rstrip(b" \t")
    if re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text) is None:
        raise ProtocolError(f"A chunk of the answer's body has the size {text[:40]!r}, which is not a number.")
    return int(text, 16)


def _expect_chunk_end(inbox: Inbox) -> Response:
    while True:
        arrived = bytes(inbox.view[inbox.start : inbox.end][:2])
        if not b"\r\n".startswith(arrived):
            raise ProtocolError("A chunk of the answer's body does not end where it says.")
        if len(arrived) == 2:
            inbox.start += 2
            return
        count = yield inbox.room()[:_MAX_CHUNK_LINE]
        if not count:
            raise TruncatedBodyError("The connection ended between two chunks of the answer's body.")
        inbox.end += count


def _skip_trailers(inbox: Inbox) -> Response:
    for _ in range(_MAX_FIELDS):
        if not (yield from _read_line(inbox)):
            return
    raise ProtocolError(f"The answer's body is followed by more than {_MAX_FIELDS} trailers.")


def _read_line(inbox: Inbox) -> Generator[memoryview, int, bytes]:
    """Read up to the next CRLF; returns the line without it."""
    while True:
        end = inbox.memory.find(b"\r\n", inbox.start, inbox.end)
        if (end if end >= 0 else inbox.end - 1) - inbox.start > _MAX_CHUNK_LINE:
            raise ProtocolError("A line between the chunks of the answer's body is too long.")
        if end >= 0:
            line = bytes(inbox.view[inbox.start : end])
            inbox.start = end + 2
            return line
        count = yield inbox.room()[:_MAX_CHUNK_LINE]
        if not count:
            raise TruncatedBodyError("The connection ended between two chunks of the answer's body.")
        inbox.end += count


def read_small_body(inbox: Inbox, head: Head, limit: int) -> Generator[memoryview, int, bytes]:
    """Read a body of unknown length, such as an error document or a page of a listing.

    Raises:
        TruncatedBodyError: The connection ended before the body did.
        ProtocolError: The body is larger than ``limit`` bytes.
    """
    if head.status in _WITHOUT_BODY:
        return b""
    body = bytearray()
    if head.is_chunked:
        while size := (yield from _read_chunk_size(inbox)):
            body += yield from _read_piece(inbox, size, limit - len(body))
            yield from _expect_chunk_end(inbox)
        yield from _skip_trailers(inbox)
        return bytes(body)
    length = head.content_length
    if length is not None:
        return bytes((yield from _read_piece(inbox, length, limit)))
    while True:
        body += inbox.view[inbox.start : inbox.end]
        inbox.start = inbox.end
        if len(body) > limit:
            raise ProtocolError(f"The answer's body is larger than {limit} bytes.")
        count = yield inbox.room()
        if not count:
            return bytes(body)
        inbox.end += count


def _read_piece(inbox: Inbox, size: int, limit: int) -> Generator[memoryview, int, bytearray]:
    if size > limit:
        raise ProtocolError(f"The answer's body is larger than it may be, by {size - limit} bytes.")
    piece = bytearray(size)
    yield from _fill(inbox, Destination(memoryview(piece)), size)
    return piece
