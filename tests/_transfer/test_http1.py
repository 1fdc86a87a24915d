"""Tests of HTTP/1.1 as a value: every answer arrives whole however it is cut, and whatever is malformed is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._transfer.http1 import (
    ContentRange,
    Destination,
    Head,
    Inbox,
    build_head,
    format_range,
    parse_content_range,
    parse_head,
    read_body,
    read_head,
    read_small_body,
)
from s3torch.errors import ArgumentError, ConnectionFailedError, ProtocolError, S3Error, TruncatedBodyError

Reader = Generator[memoryview, int, Any]
NewReader = Callable[[Inbox], Reader]

LIMIT = 1 << 20
TRAILING = b"HTTP/1.1 200 OK\r\n"


class Outcome(NamedTuple):
    """What a reader returned, and the bytes that it left to the next one."""

    value: Any
    left: bytes


def _drive(new_reader: NewReader, stream: bytes, *, sizes: Iterable[int], ends: bool) -> Outcome:
    """Run a reader as the engine does, with receives of these sizes at most.

    Args:
        new_reader: Makes the reader of an inbox.
        stream: What the peer sends.
        sizes: Of the receives, at most.
        ends: Whether the peer closes its side then. If not, the reader must not ask for more.
    """
    inbox = Inbox()
    reader = new_reader(inbox)
    sent = 0
    next_size = iter(sizes)
    try:
        room = next(reader)
        while True:
            assert len(room) > 0, "a receive into no memory looks like the end of the stream"
            if sent == len(stream):
                assert ends, "the reader waits for more than was sent"
                reader.send(0)
                raise AssertionError("the reader goes on after the end of the stream")
            size = min(len(room), next(next_size), len(stream) - sent)
            room[:size] = stream[sent : sent + size]
            sent += size
            room = reader.send(size)
    except StopIteration as stop:
        return Outcome(stop.value, bytes(inbox.view[inbox.start : inbox.end]) + stream[sent:])


def _read_whole(inbox: Inbox, length: int) -> Generator[memoryview, int, tuple[Head, bytes]]:
    head = yield from read_head(inbox)
    memory = bytearray(length)
    destination = Destination(memoryview(memory))
    yield from read_body(inbox, head, destination, length)
    assert destination.filled == length
    return head, bytes(memory)


def _read_small(inbox: Inbox, limit: int = LIMIT) -> Generator[memoryview, int, tuple[Head, bytes]]:
    head = yield from read_head(inbox)
    body = yield from read_small_body(inbox, head, limit)
    return head, body


def _whole(length: int) -> NewReader:
    return lambda inbox: _read_whole(inbox, length)


WAYS = {
    "whole": lambda: itertools.repeat(1 << 30),
    "byte by byte": lambda: itertools.repeat(1),
    "in odd pieces": lambda: itertools.cycle((1, 7, 2, 61, 3, 4093)),
}


def _every_way(new_reader: NewReader, stream: bytes, *, until_close: bool = False) -> Any:
    """Return what a reader makes of a stream, having read it whole, byte by byte and with trailing bytes."""
    outcomes = []
    for sizes in WAYS.values():
        if until_close:
            outcomes.append(_drive(new_reader, stream, sizes=sizes(), ends=True))
            continue
        outcomes.append(_drive(new_reader, stream, sizes=sizes(), ends=False))
        value, left = _drive(new_reader, stream + TRAILING, sizes=sizes(), ends=False)
        assert left == TRAILING
        outcomes.append(Outcome(value, b""))
    first, *others = outcomes
    assert first.left == b""
    assert all(outcome == first for outcome in others)
    return first.value


def _every_way_fails(new_reader: NewReader, stream: bytes, error: type[S3Error], match: str) -> None:
    """Assert that a stream is refused with this error, whether it comes whole or byte by byte."""
    for sizes in WAYS.values():
        with pytest.raises(error, match=match) as caught:
            _drive(new_reader, stream, sizes=sizes(), ends=True)
        assert type(caught.value) is error


# --- Heads -----------------------------------------------------------------------------------------------------------

GOOD_HEADS = [
    (b"HTTP/1.1 200 OK\r\n\r\n", Head(200, "OK", {})),
    (b"HTTP/1.1 200 \r\n\r\n", Head(200, "", {})),
    (b"HTTP/1.1 200\r\n\r\n", Head(200, "", {})),
    (b"HTTP/1.0 404 Not Found\r\n\r\n", Head(404, "Not Found", {}, http_1_0=True)),
    (b"HTTP/1.1 599 Caf\xe9\r\n\r\n", Head(599, "Caf\xe9", {})),
    (
        b'HTTP/1.1 206 Partial Content\r\nETag: "a:b"\r\nContent-Range: bytes 0-4/10\r\nContent-Length: 5\r\n\r\n',
        Head(206, "Partial Content", {"etag": '"a:b"', "content-range": "bytes 0-4/10", "content-length": "5"}),
    ),
    (b"HTTP/1.1 200 OK\r\nA:b\r\nC: \t d e \t\r\nEmpty:\r\n\r\n", Head(200, "OK", {"a": "b", "c": "d e", "empty": ""})),
    (b"HTTP/1.1 200 OK\r\nx-amz-meta-n: \xfcn\xefc\r\n\r\n", Head(200, "OK", {"x-amz-meta-n": "\xfcn\xefc"})),
    (b"HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~09: v\r\n\r\n", Head(200, "OK", {"!#$%&'*+-.^_`|~09": "v"})),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n", Head(200, "OK", {"a": "b"})),
    (
        b"HTTP/1.1 100 Continue\r\nA: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        Head(204, "No", {}),
    ),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", Head(200, "OK", {"content-length": "5"})),
]


@pytest.mark.parametrize(("stream", "head"), GOOD_HEADS)
def test_heads(stream: bytes, head: Head):
    """A head is read up to its empty line, after any interim answers; what follows stays in the inbox."""
    assert _every_way(read_head, stream) == head


@pytest.mark.parametrize("stream", [stream for stream, _ in GOOD_HEADS])
def test_heads_cut(stream: bytes):
    """A stream that ends anywhere before the head does is a failed connection that tells how far it came."""
    for cut in range(len(stream)):
        _every_way_fails(read_head, stream[:cut], ConnectionFailedError, r"closed the connection after \d+ bytes")


def test_nothing_at_all():
    """A connection that ends before the first byte says that no byte came: it may have been closed while idle."""
    with pytest.raises(ConnectionFailedError, match="after 0 bytes"):
        _drive(read_head, b"", sizes=(), ends=True)


BAD_HEADS = [
    (b"HTTP/2 200 OK", "does not begin like HTTP/1.1 but with 'HTTP/2 200 OK'"),
    (b"HTTP/1.2 200 OK", "does not begin like"),
    (b"http/1.1 200 OK", "does not begin like"),
    (b"HTTP/1.1 099 Low", "does not begin like"),
    (b"HTTP/1.1 600 High", "does not begin like"),
    (b"HTTP/1.1 20 OK", "does not begin like"),
    (b"HTTP/1.1 2000 OK", "does not begin like"),
    (b"HTTP/1.1 +20 OK", "does not begin like"),
    (b"HTTP/1.1 \xb2\xb2\xb2 OK", "does not begin like"),
    (b"HTTP/1.1 200OK", "does not begin like"),
    (b"HTTP/1.1  200 OK", "does not begin like"),
    (b" HTTP/1.1 200 OK", "does not begin like"),
    (b"\r\nHTTP/1.1 200 OK", "does not begin like"),
    (b"", "does not begin like HTTP/1.1 but with ''"),
    (b"\xef\xbb\xbfHTTP/1.1 200 OK", "does not begin like"),
    (b"HTTP/1.1 200 O\x00K", "does not begin like"),
    (b"HTTP/1.1 200 O\rK", "does not begin like"),
    (b"HTTP/1.1 200 OK\nA: b", "does not begin like"),
    (b"\x15\x03\x01\x00\x02\x02\x28", "does not begin like"),  # a TLS alert
    (b"<html>" + b"x" * 5000, "does not begin like HTTP/1.1 but with '<html>x{74}'"),
    (b"GET / HTTP/1.1\r\nHost: h", "does not begin like"),
    (b"HTTP/1.1 200 OK\r\nno colon", "malformed field: 'no colon'"),
    (b"HTTP/1.1 200 OK\r\n: no name", "malformed field: ': no name'"),
    (b"HTTP/1.1 200 OK\r\nA : b", "malformed field: 'A : b'"),
    (b"HTTP/1.1 200 OK\r\nA\t: b", "malformed field"),
    (b"HTTP/1.1 200 OK\r\n A: b", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n folded", "malformed field: '.* folded'"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n\tc: folded", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA(b): c", "malformed field"),
    (b"HTTP/1.1 200 OK\r\n\xe9: c", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA\x00: b", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\x00", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\rC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\nC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\n", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\r\nC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\n\r\nC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n\nC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\x00\r\nC: d", "malformed field"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\nno colon\r\nC: d", "malformed field: '.*no colon.*"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6", "two different values of content-length"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nA: b\r\nCONTENT-LENGTH: 05", "two different values of content-length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\xa0\r\nContent-Length: 5", "two different values of content-length"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked", "two different values of transfer-"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", "does not begin like HTTP/1.1 but with ''"),
    (b"HTTP/1.1 100 Continue\r\n\r\nnonsense", "does not begin like HTTP/1.1 but with 'nonsense'"),
    (b"HTTP/1.1 100 Continue\r\nno colon\r\n\r\nHTTP/1.1 200 OK", "malformed field"),
]


@pytest.mark.parametrize(("head", "match"), BAD_HEADS)
def test_malformed_heads(head: bytes, match: str):
    """What is not an HTTP/1 head is refused, and the error shows the beginning of what came."""
    _every_way_fails(read_head, head + b"\r\n\r\n", ProtocolError, match)


def test_parse_head_reads_what_read_head_found():
    """``parse_head`` takes a head without its empty line."""
    assert parse_head(b"HTTP/1.1 200 OK\r\nA: b") == Head(200, "OK", {"a": "b"})
    with pytest.raises(ProtocolError, match="but with ''"):
        parse_head(b"")


def _head_of_size(size: int) -> bytes:
    """Return a good head of so many bytes, its empty line included."""
    begin = b"HTTP/1.1 200 OK\r\n"
    lines, rest = divmod(size - len(begin) - 2, 1000)
    fields = [b"f%d: " % number for number in range(lines)]
    text = begin + b"".join(name.ljust(998, b"v") + b"\r\n" for name in fields)
    text += b"last: ".ljust(rest - 2, b"v") + b"\r\n\r\n"
    assert len(text) == size
    return text


def test_the_largest_head():
    """A head of 64 KiB is read; nothing can trail it in the inbox, which is as large."""
    stream = _head_of_size(64 * 1024)
    for sizes in WAYS.values():
        assert len(_drive(read_head, stream, sizes=sizes(), ends=False).value.fields) == 66


@pytest.mark.parametrize("stream", [_head_of_size(64 * 1024 + 1), b"H" * (64 * 1024 + 1), b"\r\n\n" * 30_000])
def test_a_head_without_end(stream: bytes):
    """A head that does not end within 64 KiB is refused."""
    for sizes in (itertools.repeat(1 << 30), itertools.repeat(1), itertools.repeat(1000)):
        with pytest.raises(ProtocolError, match="head is larger than 65536 bytes"):
            _drive(read_head, stream, sizes=sizes, ends=True)


class _CountingMemory(bytearray):
    """Memory that counts how many of its bytes were searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self.searched += (len(self) if end is None else end) - start
        return super().find(sub, start, end)


def test_a_long_head_is_not_searched_anew_with_each_byte():
    """Of 64 KiB that come byte by byte each byte is looked at a few times only."""
    memory = _CountingMemory(64 * 1024)

    def read(inbox: Inbox) -> Reader:
        inbox.memory = memory
        inbox.view = memoryview(memory)
        return read_head(inbox)

    _drive(read, _head_of_size(64 * 1024), sizes=itertools.repeat(1), ends=False)
    assert 64 * 1024 <= memory.searched <= 5 * 64 * 1024


@pytest.mark.parametrize(("count", "is_fine"), [(256, True), (257, False), (10_000, False)])
def test_many_fields(count: int, is_fine: bool):
    """A head has 256 fields at most; the error tells how many came."""
    stream = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * count + b"\r\n"
    if is_fine:
        assert _every_way(read_head, stream).fields == {"a": "b"}
    else:
        _every_way_fails(read_head, stream, ProtocolError, f"has {count} fields; more than 256 are refused")


@pytest.mark.parametrize(("count", "is_fine"), [(15, True), (16, False), (1000, False)])
def test_many_interim_answers(count: int, is_fine: bool):
    """Up to 15 interim answers may come before the answer."""
    stream = b"HTTP/1.1 102 Processing\r\n\r\n" * count + b"HTTP/1.1 200 OK\r\n\r\n"
    if is_fine:
        assert _every_way(read_head, stream) == Head(200, "OK", {})
    else:
        _every_way_fails(read_head, stream, ProtocolError, "interim answers came before the answer")


def test_heads_one_after_the_other():
    """Answers that came together are read one by one from the same inbox."""
    inbox = Inbox()
    stream = b"HTTP/1.1 201 A\r\n\r\nHTTP/1.1 202 B\r\n\r\nHTTP/1.1 203"
    inbox.room()[: len(stream)] = stream
    inbox.end = len(stream)
    for status in (201, 202):
        with pytest.raises(StopIteration) as stop:
            next(read_head(inbox))
        assert stop.value.value.status == status
    assert len(inbox) == len(b"HTTP/1.1 203")


@pytest.mark.parametrize(
    ("fields", "http_1_0", "keeps_alive"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"connection": "close"}, False, False),
        ({"connection": "Close"}, False, False),
        ({"connection": "foo, CLOSE"}, False, False),
        ({"connection": "keep-alive"}, False, True),
        ({"connection": "Keep-Alive"}, True, True),
        ({"connection": "close"}, True, False),
    ],
)
def test_keeps_alive(fields: dict[str, str], http_1_0: bool, keeps_alive: bool):
    """HTTP/1.1 goes on unless ``close`` is said, HTTP/1.0 ends unless ``keep-alive`` is."""
    assert Head(200, "", fields, http_1_0=http_1_0).keeps_alive is keeps_alive


@pytest.mark.parametrize(
    "text", ["", "-1", "+5", "5.0", "5, 5", "5,5", "0x5", "1_0", "five", "\u0665", "\xb2", "5 5", "1" * 20]
)
def test_bad_content_length(text: str):
    """A Content-Length that is no plain number of at most 19 digits is refused, and the error shows it."""
    with pytest.raises(ProtocolError, match=r"Content-Length is .*, which is not a length") as caught:
        Head(200, "", {"content-length": text})
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "length"), [("0", 0), ("007", 7), ("9" * 19, 10**19 - 1)])
def test_content_length(text: str, length: int):
    """A Content-Length is its digits."""
    assert Head(200, "", {"content-length": text}).content_length == length


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked", "identity", "", "chunked;q=1"])
def test_unknown_transfer_encoding(coding: str):
    """A Transfer-Encoding other than chunked is refused, and the error shows it."""
    with pytest.raises(ProtocolError, match=f"Transfer-Encoding is {coding!r}; only 'chunked'"):
        Head(200, "", {"transfer-encoding": coding})


def test_framing():
    """A body is chunked, of an announced length, or ends with the connection."""
    chunked = Head(200, "", {"transfer-encoding": "Chunked"})
    counted = Head(200, "", {"content-length": "5"})
    open_end = Head(200, "", {})
    assert [head.is_chunked for head in (chunked, counted, open_end)] == [True, False, False]
    assert [head.content_length for head in (chunked, counted, open_end)] == [None, 5, None]
    assert [head.ends_with_connection for head in (chunked, counted, open_end)] == [False, False, True]


# --- Bodies ----------------------------------------------------------------------------------------------------------

COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN_END = b"HTTP/1.1 200 OK\r\n\r\n"
BODY = b"0123\r\n\r\n89"

# Head, body as sent, body, whether the end of the connection ends it.
ANSWERS = {
    "length": (COUNTED, BODY, BODY, False),
    "nothing": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", b"", False),
    "after an interim answer": (b"HTTP/1.1 100 Continue\r\n\r\n" + COUNTED, BODY, BODY, False),
    "one chunk": (CHUNKED, b"a\r\n" + BODY + b"\r\n0\r\n\r\n", BODY, False),
    "chunks": (CHUNKED, b"4\r\n0123\r\n1\r\n\r\r\n005\r\n\n\r\n89\r\n000\r\n\r\n", BODY, False),
    "extensions": (CHUNKED, b'A;a;b="c d"\r\n' + BODY + b"\r\n0;last\r\n\r\n", BODY, False),
    "space before an extension": (CHUNKED, b"A \t;a\r\n" + BODY + b"\r\n0 \r\n\r\n", BODY, False),
    "trailers": (CHUNKED, b"a\r\n" + BODY + b"\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n", BODY, False),
    "no chunk": (CHUNKED, b"0\r\n\r\n", b"", False),
    "no chunk, trailers": (CHUNKED, b"00;x=y\r\nX-A: 1\r\n\r\n", b"", False),
    "end of the connection": (OPEN_END, BODY, BODY, True),
    "nothing, end of the connection": (OPEN_END, b"", b"", True),
}

each_answer = pytest.mark.parametrize(("head", "sent", "body", "until_close"), ANSWERS.values(), ids=ANSWERS.keys())


@each_answer
def test_bodies(head: bytes, sent: bytes, body: bytes, until_close: bool):
    """A body of a length that is due fills its memory exactly; what follows it stays in the inbox."""
    found = _every_way(_whole(len(body)), head + sent, until_close=until_close)
    assert (found[0].status, found[1]) == (200, body)


@each_answer
def test_small_bodies(head: bytes, sent: bytes, body: bytes, until_close: bool):
    """A body of unknown length comes whole; what follows it stays in the inbox."""
    found = _every_way(_read_small, head + sent, until_close=until_close)
    assert (found[0].status, found[1]) == (200, body)


@each_answer
def test_bodies_cut(head: bytes, sent: bytes, body: bytes, until_close: bool):
    """A stream that ends within the body is a truncated body, at whichever byte, and in however small pieces."""
    for cut in range(len(sent)):
        _every_way_fails(_whole(len(body)), head + sent[:cut], TruncatedBodyError, "The connection ended")


@each_answer
def test_small_bodies_cut(head: bytes, sent: bytes, body: bytes, until_close: bool):
    """A stream that ends within a small body is a truncated body too, unless just that ends the body."""
    for cut in range(len(sent)):
        if until_close:
            assert _every_way(_read_small, head + sent[:cut], until_close=True)[1] == sent[:cut]
        else:
            _every_way_fails(_read_small, head + sent[:cut], TruncatedBodyError, "The connection ended")


@pytest.mark.parametrize(
    ("stream", "match"),
    [
        (COUNTED.replace(b"10", b"9") + BODY, "announces a body of 9 bytes where 10 are due"),
        (COUNTED.replace(b"10", b"11") + BODY, "announces a body of 11 bytes where 10 are due"),
        (COUNTED.replace(b"10", b"0") + BODY, "announces a body of 0 bytes where 10 are due"),
        (COUNTED.replace(b"10", b"ten") + BODY, "Content-Length is 'ten'"),
        (COUNTED.replace(b"10", b"-10") + BODY, "Content-Length is '-10'"),
        (OPEN_END + BODY + b"x", "is longer than the 10 bytes that are due"),
        (OPEN_END + BODY + BODY * 1000, "is longer than the 10 bytes that are due"),
        (CHUNKED + b"9\r\n012345678\r\n0\r\n\r\n", "chunks hold 9 bytes where 10 are due"),
        (CHUNKED + b"0\r\n\r\n", "chunks hold 0 bytes where 10 are due"),
        (CHUNKED + b"b\r\n0123456789a\r\n0\r\n\r\n", "chunks hold more than the 10 bytes that are due"),
        (CHUNKED + b"a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", "chunks hold more than the 10 bytes that are due"),
        (CHUNKED + b"fffffffffffffff\r\n", "chunks hold more than the 10 bytes that are due"),
    ],
)
def test_bodies_of_another_length(stream: bytes, match: str):
    """A body that by its own framing is longer or shorter than what is due is refused with both numbers."""
    _every_way_fails(_whole(10), stream, ProtocolError, match)


BAD_CHUNKS = [
    (b"\r\n", "size b'', which is not a number"),
    (b";x\r\n", "size b'', which is not a number"),
    (b"x\r\n", "size b'x', which is not a number"),
    (b"-1\r\n", "size b'-1'"),
    (b"+1\r\n", r"size b'\+1'"),
    (b"0x1\r\n", "size b'0x1'"),
    (b"1_0\r\n", "size b'1_0'"),
    (b"1 0\r\n", "size b'1 0'"),
    (b"1.0\r\n", "size b'1.0'"),
    (b"\xd9\xa1\r\n", "not a number"),
    (b"1\nx\r\n", "not a number"),
    (b"\n1\r\nx\r\n0\r\n\r\n", "not a number"),
    (b"1\x0b\r\nx\r\n0\r\n\r\n", "not a number"),
    (b"0" * 16 + b"\r\n", "not a number"),
    (b"f" * 200 + b"\r\n", "size b'f{40}', which"),
    (b"1;" + b"x" * 600 + b"\r\nx\r\n0\r\n\r\n", "line between the chunks .* is too long"),
    (b"0" * 100_000, "line between the chunks .* is too long"),
    (b"1\r\nxy\r\n0\r\n\r\n", "does not end where it says"),
    (b"2\r\nx\r\n0\r\n\r\n", "does not end where it says|not a number"),
    (b"1\r\nx" + b"y" * 600, "does not end where it says"),
    (b"0\r\n" + b"a: b\r\n" * 256 + b"\r\n", "followed by more than 256 trailers"),
    (b"0\r\n" + b"a: b\r\n" * 100_000, "followed by more than 256 trailers"),
    (b"0\r\na: " + b"x" * 600 + b"\r\n\r\n", "line between the chunks .* is too long"),
]


@pytest.mark.parametrize(("sent", "match"), BAD_CHUNKS)
@pytest.mark.parametrize("new_reader", [_whole(10), _read_small], ids=["body", "small body"])
def test_malformed_chunks(new_reader: NewReader, sent: bytes, match: str):
    """Chunks with bad sizes, ends, lines or trailers are refused."""
    _every_way_fails(new_reader, CHUNKED + sent, ProtocolError, match)


@pytest.mark.parametrize("new_reader", [_whole(10), _read_small], ids=["body", "small body"])
def test_both_framings(new_reader: NewReader):
    """An answer with a Transfer-Encoding and a Content-Length is refused: the two may be read differently."""
    stream = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 10\r\n\r\n") + b"a\r\n" + BODY + b"\r\n0\r\n\r\n"
    _every_way_fails(new_reader, stream, ProtocolError, "both a Transfer-Encoding and a Content-Length")


@pytest.mark.parametrize("new_reader", [_whole(10), _read_small], ids=["body", "small body"])
def test_unknown_coding_of_a_body(new_reader: NewReader):
    """A body in a coding that we cannot undo is refused."""
    stream = CHUNKED.replace(b"chunked", b"gzip, chunked") + b"a\r\n" + BODY + b"\r\n0\r\n\r\n"
    _every_way_fails(new_reader, stream, ProtocolError, "only 'chunked' is understood")


@pytest.mark.parametrize(
    "stream",
    [
        COUNTED + BODY,
        CHUNKED + b"a\r\n" + BODY + b"\r\n0\r\n\r\n",
        CHUNKED + b"5\r\n" + BODY[:5] + b"\r\n5\r\n" + BODY[5:] + b"\r\n0\r\n\r\n",
        OPEN_END + BODY,
        # More than any machine has.
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n\r\n",
        CHUNKED + b"fffffffffffffff\r\n",
    ],
)
def test_small_bodies_have_a_limit(stream: bytes):
    """A small body larger than its limit is refused, and before its memory is taken if its length is announced."""
    _every_way_fails(lambda inbox: _read_small(inbox, 9), stream, ProtocolError, "body is larger than")


@pytest.mark.parametrize("name", ["length", "one chunk", "chunks", "end of the connection"])
def test_small_bodies_of_just_the_limit(name: str):
    """A small body may be as large as its limit."""
    head, sent, body, until_close = ANSWERS[name]
    found = _every_way(lambda inbox: _read_small(inbox, len(body)), head + sent, until_close=until_close)
    assert found[1] == body


def _refill(head: bytes, memory: bytearray, filled: int) -> NewReader:
    """Return a reader that fills memory from a place on, and keeps account of it."""

    def read(inbox: Inbox) -> Generator[memoryview, int, int]:
        answer = yield from read_head(inbox)
        destination = Destination(memoryview(memory))
        destination.advance(filled)
        yield from read_body(inbox, answer, destination, len(memory) - filled)
        return destination.filled

    return read


@each_answer
def test_bodies_go_on_from_where_memory_was_filled_to(head: bytes, sent: bytes, body: bytes, until_close: bool):
    """The rest of a body that broke off comes behind what was there, which is not touched."""
    for sizes in WAYS.values():
        memory = bytearray(b"before" + bytes(len(body)))
        outcome = _drive(_refill(head, memory, 6), head + sent, sizes=sizes(), ends=until_close)
        assert outcome == (6 + len(body), b"")
        assert memory == b"before" + body


def test_memory_beyond_the_body_is_not_touched():
    """Nothing is written behind the bytes that are due, whatever trails the body."""
    memory = bytearray(b"." * 20)

    def read(inbox: Inbox) -> Generator[memoryview, int, None]:
        head = yield from read_head(inbox)
        yield from read_body(inbox, head, Destination(memoryview(memory)), 10)

    for sizes in WAYS.values():
        assert _drive(read, COUNTED + BODY + TRAILING, sizes=sizes(), ends=False).left == TRAILING
        assert memory == BODY + b"." * 10


@pytest.mark.parametrize("cut", range(len(BODY)))
def test_filled_says_how_far_a_truncated_body_came(cut: int):
    """After a truncated body ``filled`` is the number of bytes that arrived, and they are in place."""
    for head, sent in ((COUNTED, BODY[:cut]), (OPEN_END, BODY[:cut]), (CHUNKED, b"a\r\n" + BODY[:cut])):
        memory = bytearray(10)
        destination = Destination(memoryview(memory))

        def read(inbox: Inbox, into: Destination = destination) -> Reader:
            answer = yield from read_head(inbox)
            yield from read_body(inbox, answer, into, 10)

        with pytest.raises(TruncatedBodyError):
            _drive(read, head + sent, sizes=itertools.repeat(1 << 30), ends=True)
        assert (destination.filled, bytes(memory[:cut])) == (cut, BODY[:cut])


def test_a_truncated_body_tells_both_numbers():
    """The error of a truncated body says how many bytes came, of how many."""
    with pytest.raises(TruncatedBodyError) as caught:
        _drive(_whole(10), COUNTED + BODY[:7], sizes=itertools.repeat(3), ends=True)
    assert str(caught.value) == "The connection ended after 7 of 10 bytes of the answer's body."


def test_a_body_is_received_in_place():
    """Beyond what came along with the head, a body is received straight into its memory, in one piece."""
    inbox = Inbox()
    memory = bytearray(100_000)
    view = memoryview(memory)
    reader = read_body(inbox, Head(200, "OK", {"content-length": "100000"}), Destination(view), 100_000)
    inbox.room()[:3] = b"abc"
    inbox.end = 3
    room = next(reader)
    assert bytes(memory[:3]) == b"abc"
    assert len(room) == 100_000 - 3
    room[0] = 7
    assert memory[3] == 7
    assert len(inbox) == 0


def _in_chunks(body: bytes, sizes: Iterable[int], extension: bytes, trailer: bytes) -> bytes:
    text, position = bytearray(), 0
    for size in sizes:
        piece = body[position : position + size]
        position += size
        if piece:
            text += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    if position < len(body):
        rest = body[position:]
        text += b"%X\r\n%b\r\n" % (len(rest), rest)
    return bytes(text) + b"0\r\n" + trailer + b"\r\n"


# --- The inbox -------------------------------------------------------------------------------------------------------


def test_an_empty_inbox():
    """An inbox begins empty and offers room."""
    inbox = Inbox()
    assert len(inbox) == 0
    assert 0 < len(inbox.room()) < len(inbox.memory)


def test_an_inbox_makes_room():
    """An inbox that is filled to its end moves the unread bytes to its front, or grows if all of it is unread."""
    inbox = Inbox(8)
    inbox.room()[:8] = b"abcdefgh"
    inbox.end = 8
    first = bytearray(6)
    assert inbox.take_into(memoryview(first)) == 6
    assert first == b"abcdef"
    room = inbox.room()
    assert len(room) == 6
    room[:] = b"ijklmn"
    inbox.end += 6
    room = inbox.room()
    assert len(room) == 8
    room[:] = b"opqrstuv"
    inbox.end += 8
    rest = bytearray(20)
    assert inbox.take_into(memoryview(rest)) == 16
    assert rest[:16] == b"ghijklmnopqrstuv"
    assert len(inbox.room()) == 16


def test_an_inbox_does_not_grow_without_end():
    """An inbox of the size of the largest head has no room once all of it is unread."""
    inbox = Inbox()
    filled = 0
    while room := inbox.room():
        inbox.end += len(room)
        filled += len(room)
    assert filled == len(inbox) == 64 * 1024


@pytest.mark.parametrize("sizes", [(4096,), (1, 4095), (997,), (5, 6, 7, 1 << 20), (1,)])
@pytest.mark.parametrize("new_reader", [_whole(20_000), _read_small], ids=["body", "small body"])
def test_thousands_of_tiny_chunks(new_reader: NewReader, sizes: tuple[int, ...]):
    """A body of thousands of tiny chunks arrives whole through an inbox that is much smaller, in whatever pieces."""
    body = bytes(itertools.islice(itertools.cycle(range(256)), 20_000))
    chunks = itertools.islice(itertools.cycle((1, 2, 3, 4, 5)), 10_000)
    stream = CHUNKED + _in_chunks(body, chunks, b";a=b", b"") + TRAILING
    outcome = _drive(new_reader, stream, sizes=itertools.cycle(sizes), ends=False)
    assert outcome.value[1] == body
    assert outcome.left == TRAILING


# --- Requests --------------------------------------------------------------------------------------------------------


def test_build_head():
    """A request's head is its line, its fields in their order, and an empty line."""
    assert build_head("GET", "/b/k?a=1", {"host": "h:80", "Range": "bytes=0-", "empty": ""}) == (
        b"GET /b/k?a=1 HTTP/1.1\r\nhost: h:80\r\nRange: bytes=0-\r\nempty: \r\n\r\n"
    )
    assert build_head("PUT", "/", {}) == b"PUT / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("bad", ["\r", "\n", "\r\n", "\0", "\t", "\x1b", "\x7f", "\x85", "é", "\u2028", "\udc80", "🦜"])
@pytest.mark.parametrize("place", ["method", "target", "name", "value"])
def test_build_head_refuses(bad: str, place: str):
    """What is not printable ASCII cannot be sent, a line break above all; the error shows the line."""
    text = f"a{bad}b"
    method, target, fields = "GET", "/", {"host": "h"}
    if place == "method":
        method = text
    elif place == "target":
        target = f"/{text}"
    elif place == "name":
        fields[text] = "v"
    else:
        fields["x-amz-meta-n"] = text
    with pytest.raises(ArgumentError, match="only printable ASCII can be sent") as caught:
        build_head(method, target, fields)
    assert repr(text)[1:-1] in str(caught.value)


@given(st.dictionaries(st.from_regex(r"[a-z-]{1,10}", fullmatch=True), st.text(max_size=20), max_size=5))
def test_a_request_is_lines(fields: dict[str, str]):
    """Whatever the values, a head is refused or has exactly one line for each field."""
    try:
        head = build_head("GET", "/", fields)
    except ArgumentError:
        return
    request_line, *lines, end, nothing = head.decode("ascii").split("\r\n")
    assert request_line == "GET / HTTP/1.1"
    assert lines == [f"{name}: {value}" for name, value in fields.items()]
    assert end == nothing == ""


# --- Ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "text"), [(0, 1, "bytes=0-0"), (5, 10, "bytes=5-9"), (0, None, "bytes=0-"), (7, None, "bytes=7-")]
)
def test_format_range(start: int, stop: int | None, text: str):
    """A half-open range is written with its last byte, or open."""
    assert format_range(start, stop) == text


@given(st.integers(0, 10**18), st.integers(1, 10**18), st.integers(0, 10**18) | st.none())
def test_content_range_round_trip(start: int, length: int, beyond: int | None):
    """A range that is written as RFC 9110 says is read as the half-open range that it is."""
    stop = start + length
    total = None if beyond is None else stop + beyond
    text = f"bytes {start}-{stop - 1}/{'*' if total is None else total}"
    assert parse_content_range(text) == ContentRange(start, stop, total)


@pytest.mark.parametrize(("text", "total"), [("bytes */10", 10), ("bytes */0", 0)])
def test_unsatisfied_content_range(text: str, total: int):
    """An unsatisfied range has no byte, and the total."""
    assert parse_content_range(text) == ContentRange(0, 0, total)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes 0-4",
        "bytes 0-4/",
        "bytes 0-/10",
        "bytes -4/10",
        "bytes=0-4/10",
        "bytes 0-4/10 ",
        " bytes 0-4/10",
        "bytes  0-4/10",
        "bytes 0 - 4/10",
        "bytes 0-4/10\n",
        "bytes 0-4, 6-7/10",
        "bytes +0-4/10",
        "bytes 0-4/-10",
        "bytes 0x0-4/10",
        "bytes \u0660-4/10",
        "bytes 1_0-20/30",
        "bytes " + "1" * 20 + "-4/10",
        "items 0-4/10",
        "none",
    ],
)
def test_malformed_content_range(text: str):
    """A Content-Range that is not one is refused, and the error shows it."""
    with pytest.raises(ProtocolError, match="which is not a range of bytes") as caught:
        parse_content_range(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["bytes 4-3/10", "bytes 9-0/10", "bytes 0-10/10", "bytes 10-10/10", "bytes 0-0/0"])
def test_contradictory_content_range(text: str):
    """A Content-Range that ends before it begins or beyond the total is refused, and the error shows it."""
    with pytest.raises(ProtocolError, match=f"Content-Range is '{text}', which contradicts itself"):
        parse_content_range(text)


# --- Anything at all -------------------------------------------------------------------------------------------------

_PIECES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 206 \r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"A: b\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"5\r\n01234\r\n",
    b"0\r\n\r\n",
    b"ffff\r\n",
    b"\n",
    b"\0",
]
anything = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(_PIECES) | st.binary(max_size=4), max_size=12).map(b"".join),
    st.tuples(st.sampled_from([COUNTED, CHUNKED, OPEN_END]), st.binary(max_size=60)).map(b"".join),
)
receives = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(itertools.cycle)


@pytest.mark.parametrize("new_reader", [read_head, _whole(5), _read_small], ids=["head", "body", "small body"])
@given(stream=anything, sizes=receives)
def test_anything_ends_or_is_refused(new_reader: NewReader, stream: bytes, sizes: Iterable[int]):
    """Whatever a peer sends, a reader returns or raises an S3Error, at the latest at the end of the stream."""
    try:
        # _drive sees to the end: each step takes a byte at least, and after the last one the reader must stop.
        _drive(new_reader, stream, sizes=sizes, ends=True)
    except S3Error as error:
        assert type(error) in (ProtocolError, ConnectionFailedError, TruncatedBodyError)  # noqa: PT017


@given(
    body=st.binary(max_size=2000),
    chunks=st.lists(st.integers(1, 300), max_size=40),
    extension=st.sampled_from([b"", b";a=b", b" ; a"]),
    trailer=st.sampled_from([b"", b"x-amz-checksum-crc32: AAAA\r\n"]),
    sizes=receives,
    is_small=st.booleans(),
)
@example(bytes(5000), [1] * 2000, b"", b"", itertools.cycle([4096]), False)
def test_any_body_in_any_chunks(
    body: bytes, chunks: list[int], extension: bytes, trailer: bytes, sizes: Iterable[int], is_small: bool
):
    """Any body, in any chunks, received in any pieces, arrives equal; what follows stays in the inbox."""
    stream = CHUNKED + _in_chunks(body, chunks, extension, trailer) + TRAILING
    new_reader = _read_small if is_small else _whole(len(body))
    (_, found), left = _drive(new_reader, stream, sizes=sizes, ends=False)
    assert found == body
    assert left == TRAILING


@given(body=st.binary(max_size=2000), sizes=receives, is_small=st.booleans(), is_counted=st.booleans())
def test_any_body_in_any_pieces(body: bytes, sizes: Iterable[int], is_small: bool, is_counted: bool):
    """Any body, of announced length or until the end of the connection, received in any pieces, arrives equal."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) if is_counted else OPEN_END
    new_reader = _read_small if is_small else _whole(len(body))
    (_, found), left = _drive(new_reader, head + body, sizes=sizes, ends=not is_counted)
    assert (found, left) == (body, b"")
