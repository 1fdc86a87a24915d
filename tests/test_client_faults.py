"""Tests of S3Client against servers that misbehave, over loopback sockets and TLS."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import logging
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from s3torch import S3ClientConfig, S3ReaderConfig
from s3torch._aws.listing import RestoreStatus
from s3torch._aws.multipart import multipart_etag
from s3torch._aws.operations import GetObject
from s3torch._objects.upload import note_of
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch._transfer.http1 import ContentRange
from s3torch.client import HeadObjectResult, S3Client
from s3torch.datasets.listing import list_table
from s3torch.datasets.objects import ObjectTable
from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    CertificateError,
    ClockSkewError,
    ConfigError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    ObjectChangedError,
    ObjectNotFoundError,
    ProtocolError,
    ProxyError,
    RegionError,
    RequestError,
    S3Error,
    ServerError,
    ThrottledError,
    TransientError,
    TruncatedBodyError,
)
from s3torch.testing.faulty import listener
from s3torch.writer import S3Writer
from tests.support.environment import forget_pauses, know_only
from tests.support.server import (
    Handler,
    Request,
    ScriptedServer,
    Wire,
    fail,
    first,
    s3_error,
    serve_object,
    tls_contexts,
)

MiB = 1024 * 1024
PART = 5 * MiB  # the smallest that S3 takes
PIECE = 4 * MiB  # what a read that is alone is cut into
SMALL = random.Random(1).randbytes(100_000)
LARGE = random.Random(2).randbytes(12 * MiB)  # three parts
NEWER = random.Random(3).randbytes(12 * MiB)

Tls = tuple[ssl.SSLContext, Path]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known credentials, nothing else from this machine, and no pauses between attempts."""
    know_only(monkeypatch, tmp_path, ACCESS_KEY_ID="ACCESS", SECRET_ACCESS_KEY="SECRET")
    forget_pauses(monkeypatch)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A server's TLS context, and the file of the authority that a client has to trust."""
    return tls_contexts(tmp_path_factory.mktemp("tls"))


def list_table_of_bucket(client: S3Client) -> ObjectTable:
    """List a bucket as a map dataset does."""
    return list_table(client, "bucket", "")


@pytest.fixture(params=["http", "https"])
def transport(request: pytest.FixtureRequest, tls: Tls) -> Tls | None:
    """HTTP, and HTTPS."""
    return tls if request.param == "https" else None


@contextlib.contextmanager
def serving(
    handler: Handler, transport: Tls | None = None, *, region: str = "us-east-1", **options: object
) -> Iterator[tuple[ScriptedServer, S3Client]]:
    """A server, and a client that makes three attempts at most."""
    context, authority = transport or (None, True)
    config = S3ClientConfig(**{"max_attempts": 3, "part_size": PART, "verify": authority, **options})
    with ScriptedServer(handler, context) as server:
        client = S3Client(region, endpoint=server.endpoint, s3client_config=config)
        try:
            yield server, client
        finally:
            client.close()


def ranges(server: ScriptedServer) -> list[str]:
    """Return the Range fields that the server was sent, without their unit."""
    return [request.headers["range"].removeprefix("bytes=") for request in server.requests]


def asked(request: Request) -> tuple[int, int]:
    """Return the half-open range that a request asks for."""
    start, last = request.headers["range"].removeprefix("bytes=").split("-")
    return int(start), int(last) + 1


def partial(content: bytes, request: Request, *, etag: str = '"e"', **changes: object) -> tuple[bytes, bytes]:
    """Return head and body of the right answer to a request for an object or a range, but for some header fields.

    Args:
        content: The object's content.
        request: That is answered.
        etag: The object's.
        changes: Header fields, with ``_`` for ``-``; None leaves one out.
    """
    is_range = "range" in request.headers
    start, stop = asked(request) if is_range else (0, len(content))
    stop = min(stop, len(content))
    fields = {
        "content-range": f"bytes {start}-{stop - 1}/{len(content)}" if is_range else None,
        "content-length": str(stop - start),
        "etag": etag,
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    status = "206 Partial Content" if is_range else "200 OK"
    return (f"HTTP/1.1 {status}\r\n" + "".join(lines) + "\r\n").encode(), content[start:stop]


def altered(content: bytes, **changes: object) -> Handler:
    """Return a handler that answers rightly but for some header fields."""

    def handle(request: Request, wire: Wire) -> None:
        wire.send(b"".join(partial(content, request, **changes)))

    return handle


def cut(content: bytes, count: int, end: Callable[[Wire], None] = Wire.close) -> Handler:
    """Return a handler that ends the connection after ``count`` bytes of a body."""

    def handle(request: Request, wire: Wire) -> None:
        head, body = partial(content, request)
        wire.send(head + body[:count])
        end(wire)

    return handle


def where(condition: Callable[[Request], bool], fault: Handler, then: Handler) -> Handler:
    """Return a handler that gives the first request of a kind to ``fault``, and all others to ``then``."""
    faulty = first(1, fault, then)
    return lambda request, wire: (faulty if condition(request) else then)(request, wire)


def by_method(*, get: Handler, head: Handler) -> Handler:
    """Return a handler that gives GET and HEAD to different ones."""
    return lambda request, wire: (head if request.method == "HEAD" else get)(request, wire)


def in_turn(*handlers: Handler) -> Handler:
    """Return a handler that gives each request to the next one of these."""
    remaining = iter(handlers)

    def handle(request: Request, wire: Wire) -> None:
        next(remaining)(request, wire)

    return handle


def then_close(handler: Handler) -> Handler:
    """Return a handler that closes the connection behind its answer."""

    def handle(request: Request, wire: Wire) -> None:
        handler(request, wire)
        wire.close()

    return handle


def raw(data: bytes) -> Handler:
    """Return a handler that sends bytes and closes the connection."""
    return then_close(lambda request, wire: wire.send(data))


def close_roughly(wire: Wire) -> None:
    """Close without TLS's good-bye."""
    wire.close(close_notify=False)


# Bodies that break off


@pytest.mark.parametrize("end", [Wire.close, close_roughly])
@pytest.mark.parametrize("count", [1, 5000, len(SMALL) - 1])
def test_truncated_body(transport: Tls | None, count: int, end: Callable[[Wire], None]):
    """A body that breaks off goes on from the byte that it reached, of the same version only."""
    with serving(first(1, cut(SMALL, count, end), serve_object(SMALL)), transport) as (server, client):
        assert client.read_range("bucket", "key", 0) == SMALL
        assert ranges(server) == [f"0-{PIECE - 1}", f"{count}-{PIECE - 1}"]
        assert [request.headers.get("if-match") for request in server.requests] == [None, '"e"']
        assert client.stats.retries == 1


def test_truncated_before_the_body():
    """A body that breaks off before its first byte is asked for from the start, of the same version only."""
    with serving(first(1, cut(SMALL, 0), serve_object(SMALL))) as (server, client):
        assert client.read_range("bucket", "key", 10, 20) == SMALL[10:20]
        assert ranges(server) == ["10-19", "10-19"]
        assert server.requests[1].headers["if-match"] == '"e"'


def test_truncated_twice():
    """A body may break off again and again, as long as attempts are left."""
    with serving(first(2, cut(SMALL, 1000), serve_object(SMALL))) as (server, client):
        assert client.read_range("bucket", "key", 0, len(SMALL)) == SMALL
        last = len(SMALL) - 1
        assert ranges(server) == [f"0-{last}", f"1000-{last}", f"2000-{last}"]


def test_truncated_part(transport: Tls | None):
    """Of a large object only the part that broke off goes on from where it was."""
    handler = where(lambda request: asked(request)[0] == PIECE, cut(LARGE, 1000), serve_object(LARGE))
    with serving(handler, transport) as (server, client):
        assert client.read_range("bucket", "key", 0) == LARGE
        assert sorted(ranges(server)) == sorted(
            [
                f"0-{PIECE - 1}",
                f"{PIECE}-{2 * PIECE - 1}",
                f"{PIECE + 1000}-{2 * PIECE - 1}",
                f"{2 * PIECE}-{len(LARGE) - 1}",
            ]
        )


@pytest.mark.parametrize("count", [0, 100])
def test_always_truncated(transport: Tls | None, count: int):
    """A body that breaks off each time is an error after all attempts, and the client can be used on."""
    with serving(first(3, cut(SMALL, count), serve_object(SMALL)), transport) as (server, client):
        with pytest.raises(TruncatedBodyError, match=f"after {3 * count} of {len(SMALL)} bytes") as caught:
            client.read_range("bucket", "key", 0)
        assert (caught.value.attempts, caught.value.bucket, caught.value.key) == (3, "bucket", "key")
        assert len(server.requests) == 3
        assert client.read_range("bucket", "key", 0) == SMALL


def test_reset_body(transport: Tls | None):
    """A connection that is reset within a body is made up for, from a byte that was received."""
    handler = where(lambda request: asked(request)[0] == PIECE, cut(LARGE, 1 * MiB, Wire.reset), serve_object(LARGE))
    with serving(handler, transport) as (server, client):
        assert client.read_range("bucket", "key", 0) == LARGE
        assert len(server.requests) == 4
        again = max(asked(request)[0] for request in server.requests if asked(request)[1] == 2 * PIECE)
        assert PIECE <= again <= PIECE + 1 * MiB


def test_always_reset(transport: Tls | None):
    """A connection that is reset each time is an error after all attempts."""
    with serving(first(3, cut(SMALL, 100, Wire.reset), serve_object(SMALL)), transport) as (server, client):
        with pytest.raises((ConnectionFailedError, TruncatedBodyError)) as caught:
            client.read_range("bucket", "key", 0)
        assert (caught.value.attempts, len(server.requests)) == (3, 3)
        assert client.read_range("bucket", "key", 0) == SMALL


def test_stalled_body(transport: Tls | None):
    """A body that stops coming goes on from the byte that it reached, on another connection."""
    handler = first(1, cut(SMALL, 1000, Wire.stall), serve_object(SMALL))
    with serving(handler, transport, stall_timeout=0.2, max_attempts=20) as (server, client):
        assert client.read_range("bucket", "key", 0, 2000) == SMALL[:2000]
        assert ranges(server)[:2] == ["0-1999", "1000-1999"]
        assert server.connections == len(server.requests)  # 2, unless a busy machine lets an answer stop, too


def test_stalled_body_is_asked_for_beside():
    """With what is known of this host, a body that stops goes on elsewhere long before the timeout, of one version."""
    handler = where(lambda request: request.path.endswith("/key"), cut(SMALL, 1000, Wire.stall), serve_object(SMALL))
    with serving(handler, stall_timeout=600, first_byte_timeout=600, call_timeout=30) as (server, client):
        for number in range(64):
            client.read_range("bucket", f"learn/{number}", 0, 10)
        server.requests.clear()
        assert client.read_range("bucket", "key", 0, 2000) == SMALL[:2000]
        begun, *beside = [request for request in server.requests if request.path.endswith("/key")]
        assert (begun.headers["range"], begun.headers.get("if-match")) == ("bytes=0-1999", None)
        # One, unless a busy machine lets it be late, too: then another goes beside both.
        assert {(each.headers["range"], each.headers.get("if-match")) for each in beside} == {
            ("bytes=1000-1999", '"e"')
        }
        assert client.stats.hedges >= 1
        assert client.stats.retries == 0


def test_always_stalled():
    """A body that never comes to its end is an error that names the rate, within twice the timeout."""
    with serving(cut(SMALL, 100, Wire.stall), stall_timeout=0.2, max_attempts=2) as (server, client):
        with pytest.raises(DeadlineError, match=r"Only \d+ bytes moved") as caught:
            client.read_range("bucket", "key", 0)
        assert (caught.value.attempts, caught.value.key, len(server.requests)) == (2, "key", 2)


def test_no_answer():
    """A server that does not answer is an error that says how long it was waited for."""
    handler = first(2, lambda request, wire: wire.stall(), serve_object(SMALL))
    with serving(handler, first_byte_timeout=0.2, max_attempts=2) as (server, client):
        with pytest.raises(DeadlineError, match=r"within 0\.2 s") as caught:
            client.read_range("bucket", "key", 0)
        assert (caught.value.attempts, len(server.requests)) == (2, 2)
        for _ in range(20):  # a busy machine may be too late for this timeout
            with contextlib.suppress(DeadlineError):
                assert client.read_range("bucket", "key", 0) == SMALL
                break
        else:
            pytest.fail("no read ended")


@pytest.mark.skipif(sys.platform != "linux", reason="fills a backlog as Linux counts it")
def test_no_connection():
    """A server that does not take connections is an error that says how long it was waited for."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # fill the backlog, so that the kernel takes no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        config = S3ClientConfig(connect_timeout=0.2, max_attempts=1)
        client = S3Client("us-east-1", endpoint=f"http://127.0.0.1:{address[1]}", s3client_config=config)
        with pytest.raises(DeadlineError, match=r"No connection to http://127\.0\.0\.1:\d+ within 0\.2 s"):
            client.read_range("bucket", "key", 0)


# Bodies of every kind


@pytest.mark.parametrize(("exempted", "is_said"), [("", True), ("127.0.0.1", False)])
def test_no_connection_beside_a_proxy(monkeypatch: pytest.MonkeyPatch, exempted: str, is_said: bool):
    """Where the environment names a proxy that is down the error is the proxy's, unless NO_PROXY passes it by."""
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", exempted)
    with serving(lambda request, wire: wire.reset()) as (_, client), pytest.raises(ConnectionFailedError) as caught:
        client.read_range("bucket", "key", 0)
    assert ("The proxy http://127.0.0.1:1 cannot be used" in str(caught.value)) == is_said
    assert isinstance(caught.value, ProxyError) == is_said
    assert "secret" not in str(caught.value)


def chunked(content: bytes, size: int, *, extension: bytes = b"", end: bytes = b"0\r\n\r\n") -> Handler:
    """Return a handler that answers in chunks."""

    def handle(request: Request, wire: Wire) -> None:
        head, body = partial(content, request, content_length=None, transfer_encoding="chunked")
        pieces = [body[left : left + size] for left in range(0, len(body), size)]
        wire.send(head + b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces) + end)

    return handle


def until_the_end(content: bytes, version: bytes) -> Handler:
    """Return a handler that ends the body by closing the connection."""

    def handle(request: Request, wire: Wire) -> None:
        head, body = partial(content, request, content_length=None)
        wire.send(head.replace(b"HTTP/1.1", version) + body)
        wire.close()

    return handle


@pytest.mark.parametrize(
    "handler",
    [
        chunked(SMALL, 7),
        chunked(SMALL, 100_000, extension=b";name=value", end=b"0;last\r\nTrailer: 1\r\nOther: 2\r\n\r\n"),
        until_the_end(SMALL, b"HTTP/1.1"),
        until_the_end(SMALL, b"HTTP/1.0"),
        altered(SMALL, connection="close"),
        altered(SMALL, etag=None),
        lambda request, wire: wire.respond(200, {"ETag": '"e"'}, SMALL),
    ],
    ids=["chunks", "chunks with trailers", "to the end", "HTTP/1.0", "close", "no ETag", "whole object"],
)
def test_framings(transport: Tls | None, handler: Handler):
    """However a body is delimited, its bytes are the same, and no attempt is wasted."""
    with serving(handler, transport) as (server, client):
        for _ in range(2):
            assert client.read_range("bucket", "key", 0) == SMALL
        assert (len(server.requests), client.stats.retries) == (2, 0)


@pytest.mark.parametrize("stop", [1000, None], ids=["range", "whole object"])
@pytest.mark.parametrize("end", [Wire.close, Wire.reset, Wire.stall])
def test_body_that_only_lacks_its_end(end: Callable[[Wire], None], stop: int | None):
    """If a body breaks off behind its last byte, within the chunks' end mark, the object is still read."""

    def handle(request: Request, wire: Wire) -> None:
        chunked(SMALL, 50_000, end=b"")(request, wire)
        end(wire)

    # A busy machine may let further answers stop, too.
    with serving(first(1, handle, serve_object(SMALL)), stall_timeout=0.2, max_attempts=20) as (_, client):
        assert client.read_range("bucket", "key", 0, stop) == SMALL[:stop]


def beyond_the_end(size: int, *, size_is_told: bool) -> Handler:
    """Return a handler to which all ranges lie beyond the end of an object; HEAD tells its size, 416 if it is told."""
    refusal = fail(416, "InvalidRange", headers={"Content-Range": f"bytes */{size}"} if size_is_told else None)
    return by_method(get=refusal, head=serve_object(bytes(size)))


@pytest.mark.parametrize("size_is_told", [True, False])
@pytest.mark.parametrize("reader_config", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based()])
def test_empty_object(reader_config: S3ReaderConfig, size_is_told: bool):
    """An empty object, for whose ranges servers answer 416, reads as nothing."""
    with serving(beyond_the_end(0, size_is_told=size_is_told)) as (_, client):
        assert client.read_range("bucket", "key", 0) == b""
        assert client.read_range("bucket", "key", 0, 10) == b""
        reader = client.get_object("bucket", "key", reader_config=reader_config)
        assert (reader.read(), reader.read(5), reader.readinto(bytearray(5))) == (b"", b"", 0)


def test_range_beyond_the_end():
    """A range that begins beyond the end of an object reads as nothing."""
    with serving(serve_object(SMALL)) as (_, client):
        assert client.read_range("bucket", "key", len(SMALL), len(SMALL) + 5) == b""
        assert client.read_range("bucket", "key", len(SMALL) + PART) == b""
        assert client.read_range("bucket", "key", 5, len(SMALL) + 5) == SMALL[5:]


@pytest.mark.parametrize("size_is_told", [True, False])
def test_ranges_beyond_the_end(size_is_told: bool):
    """Of several ranges none may lie beyond the end, whether the server says where that is or not."""
    with serving(beyond_the_end(100, size_is_told=size_is_told)) as (_, client):
        memory = [bytearray(5), bytearray(7)]
        for into in (None, memory):
            with pytest.raises(ArgumentError, match="reaches beyond the"):
                client.read_ranges("bucket", "key", [(200, 205), (300, 307)], into)


@pytest.mark.parametrize("start", [0, 5])
def test_range_without_an_end(start: int):
    """Of several ranges each must have an end."""
    with serving(serve_object(SMALL)) as (server, client):
        with pytest.raises(ArgumentTypeError, match="stop"):
            client.read_ranges("bucket", "key", [(start, None)])  # type: ignore[list-item]
        assert server.requests == []


def test_416_for_what_is_there():
    """A server that refuses the first byte of an object that it says has some is an error in plain words."""
    with serving(fail(416, "InvalidRange", headers={"Content-Range": "bytes */100"})) as (_, client):
        with pytest.raises(S3Error) as caught:
            client.read_range("bucket", "key", 0, 10)
        assert "None" not in str(caught.value)


BARE = fail(416, "InvalidRange")


def with_size(request: Request, wire: Wire) -> None:
    """Refuse a range as S3 does, that tells the size in the error."""
    body = s3_error("InvalidRange").replace(b"</Error>", b"<ActualObjectSize>0</ActualObjectSize></Error>")
    wire.respond(416, {}, body)


@pytest.mark.parametrize("start", [0, 10])
def test_416_that_tells_no_size(transport: Tls | None, start: int):
    """A 416 without a size is not taken for the end of the object: its size is asked for, and then the range again."""
    with serving(first(1, BARE, serve_object(LARGE)), transport) as (server, client):
        assert client.read_range("bucket", "key", start) == LARGE[start:]
        assert [request.method for request in server.requests[:3]] == ["GET", "HEAD", "GET"]
        assert "range" not in server.requests[1].headers
    with serving(by_method(get=BARE, head=serve_object(SMALL)), max_attempts=10) as (server, client):
        with pytest.raises(ProtocolError, match="not how large the object is"):
            client.read_range("bucket", "key", start)
        assert [request.method for request in server.requests] == ["GET", "HEAD", "GET", "GET"]
    with serving(by_method(get=BARE, head=serve_object(b""))) as (server, client):
        assert client.read_range("bucket", "key", start) == b""
        assert [request.method for request in server.requests] == ["GET", "HEAD"]


def test_416_that_tells_the_size_in_its_document():
    """The size in the document of the error is as good as a Content-Range."""
    with serving(with_size) as (server, client):
        assert client.read_range("bucket", "key", 0) == b""
        assert len(server.requests) == 1


def test_416_within_a_body():
    """A 416 without a size to the rest of a body is no end, either: the rest is asked for again."""
    with serving(in_turn(cut(SMALL, 1000), BARE, *[serve_object(SMALL)] * 2), max_attempts=10) as (server, client):
        assert client.read_range("bucket", "key", 0) == SMALL
        assert [request.method for request in server.requests] == ["GET", "GET", "HEAD", "GET"]
    shorter = in_turn(cut(SMALL, 1000), BARE, serve_object(SMALL[:500]))
    with serving(shorter) as (_, client), pytest.raises(ObjectChangedError):
        client.read_range("bucket", "key", 0)


# Answers that make no sense


def endless_head(request: Request, wire: Wire) -> None:
    """Send header fields until the client has enough."""
    wire.send(b"HTTP/1.1 206 Partial Content\r\n")
    for number in range(10_000):
        wire.send(b"X-Filler-%d: %b\r\n" % (number, b"x" * 100))


def endless_line(request: Request, wire: Wire) -> None:
    """Send one line until the client has enough."""
    for _ in range(10_000):
        wire.send(b"x" * 1000)


def endless_interim_answers(request: Request, wire: Wire) -> None:
    """Say that there will be an answer, more often than a client should listen to."""
    for _ in range(200):
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
    wire.close()


noise = functools.partial(altered, SMALL, etag="x")

NONSENSE: Mapping[str, Handler] = {
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"),
    "HTTP/2": raw(b"HTTP/2 200\r\n\r\n"),
    "a page instead of a head": raw(b"<html>\r\n<p>Please log in.</p>\r\n\r\n"),
    "head without end": endless_head,
    "line without end": endless_line,
    "interim answers without end": endless_interim_answers,
    "many fields": noise(**{f"x-{number}": "1" for number in range(300)}),
    "field without colon": raw(b"HTTP/1.1 206 Partial Content\r\nnonsense\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "no number as length": noise(content_length="many"),
    "negative length": noise(content_length="-1"),
    "longer than the range": noise(content_length="1001"),
    "shorter than the range": noise(content_length="999"),
    "length and chunks": noise(transfer_encoding="chunked"),
    "unknown coding": noise(transfer_encoding="gzip"),
    "206 without range": noise(content_range=None),
    "another range": noise(content_range=f"bytes 501-1500/{len(SMALL)}"),
    "a longer range": noise(content_range=f"bytes 500-2000/{len(SMALL)}"),
    "a shorter range": noise(content_range=f"bytes 500-900/{len(SMALL)}"),
    "range of no size": noise(content_range="bytes 500-1499/*"),
    "range beyond its size": noise(content_range="bytes 500-1499/1000"),
    "range of nothing": noise(content_range="bytes */1000"),
    "range backwards": noise(content_range="bytes 1499-500/100000"),
    "range of another unit": noise(content_range="lines 500-1499/100000"),
    "several ranges": noise(content_range=None, content_type="multipart/byteranges; boundary=x"),
    "whole object instead": lambda request, wire: wire.respond(200, {"ETag": "x"}, SMALL),
    "too few bytes in chunks": raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-1499/100000\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + SMALL[500:600] + b"\r\n0\r\n\r\n"
    ),
    "chunk of no size": raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-1499/100000\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"
    ),
    "more bytes in chunks": raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-1499/100000\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + bytes(2000) + b"\r\n0\r\n\r\n"
    ),
    "more bytes to the end": raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-1499/100000\r\n\r\n" + bytes(2000)
    ),
    "wrong chunk end": raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-1499/100000\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + bytes(101) + b"\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("handler", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense(handler: Handler):
    """What does not answer the request leaves no trace in what is read, and is an error if it comes three times."""
    good = serve_object(SMALL, etag="x")
    with serving(in_turn(handler, good, handler, handler, handler, good), max_attempts=5) as (server, client):
        into = bytearray(1000)
        assert client.read_range("bucket", "key", 500, 1500, into) == 1000
        assert into == SMALL[500:1500]
        with pytest.raises(ProtocolError) as caught:
            client.read_range("bucket", "key", 500, 1500)
        assert (caught.value.attempts, caught.value.bucket, caught.value.key) == (3, "bucket", "key")
        assert (len(server.requests), server.connections) == (5, 4)
        assert client.read_range("bucket", "key", 500, 1500) == SMALL[500:1500]


def test_misframed_chunk():
    """Bytes of a chunk that does not end where it says are not trusted when the read goes on."""

    def handle(request: Request, wire: Wire) -> None:
        head, body = partial(SMALL, request, content_length=None, transfer_encoding="chunked")
        wire.send(head + b"64\r\n" + body[:50] + b"#" * 50 + b"#" * 10)  # noise, and no CRLF
        wire.close()

    with serving(first(1, handle, serve_object(SMALL))) as (_, client):
        assert client.read_range("bucket", "key", 500, 1500) == SMALL[500:1500]


# What the service refuses


TRANSIENT: Mapping[str, tuple[Handler, type[TransientError]]] = {
    "500": (fail(500, "InternalError", "We encountered an internal error."), ServerError),
    "500 in HTML": (lambda request, wire: wire.respond(500, {}, b"<html>oops</html>"), ServerError),
    "502": (lambda request, wire: wire.respond(502), ServerError),
    "503 SlowDown": (fail(503, "SlowDown", "Please reduce your request rate."), ThrottledError),
    "503": (lambda request, wire: wire.respond(503), ThrottledError),
    "503 to the end": (raw(b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + s3_error("SlowDown")), ThrottledError),
    "504": (lambda request, wire: wire.respond(504), ServerError),
    "429": (lambda request, wire: wire.respond(429), ThrottledError),
    "400 RequestTimeout": (fail(400, "RequestTimeout", "Idle too long."), ServerError),
    "307": (fail(307, "TemporaryRedirect", headers={"Location": "http://evil.invalid/"}), ServerError),
    "closed": (lambda request, wire: wire.close(), ConnectionFailedError),
    "reset": (lambda request, wire: wire.reset(), ConnectionFailedError),
    "half a head": (raw(b"HTTP/1.1 206 Partial Content\r\nContent-"), ConnectionFailedError),
}


@pytest.mark.parametrize(("handler", "error"), TRANSIENT.values(), ids=TRANSIENT.keys())
def test_transient_fault(handler: Handler, error: type[TransientError]):
    """A fault that may pass is tried again; if it stays it is its error after all attempts, and the client works on."""
    with serving(first(4, handler, serve_object(SMALL))) as (server, client):
        with pytest.raises(error) as caught:
            client.read_range("bucket", "key", 0)
        assert type(caught.value) is error
        assert (caught.value.attempts, caught.value.bucket, caught.value.key) == (3, "bucket", "key")
        assert len(server.requests) == 3
        assert client.read_range("bucket", "key", 0) == SMALL
        assert len(server.requests) == 5


@pytest.mark.parametrize("name", ["500", "503 SlowDown", "closed", "reset"])
def test_transient_fault_over_tls(tls: Tls, name: str):
    """Over TLS a fault that may pass is tried again, too."""
    with serving(first(2, TRANSIENT[name][0], serve_object(SMALL)), tls) as (server, client):
        assert client.read_range("bucket", "key", 0) == SMALL
        assert len(server.requests) == 3


def test_a_share_is_refused():
    """Where a service refuses three requests of ten, all is read right, and no retry budget is spent on it."""
    chance, lock, refused = random.Random(1), threading.Lock(), 0
    serve, refuse = serve_object(SMALL), fail(503, "SlowDown", "Please reduce your request rate.")

    def handle(request: Request, wire: Wire) -> None:
        nonlocal refused
        with lock:
            is_refused = chance.random() < 0.3
            refused += is_refused
        (refuse if is_refused else serve)(request, wire)

    with serving(handle, max_attempts=20, hedging=False) as (server, client):
        for first_byte in range(10):
            ranges = [(start, start + 1000) for start in range(first_byte, len(SMALL) - 1000, 5000)]
            bodies = client.read_ranges("bucket", "key", ranges, max_gap=0)
            assert bodies == [SMALL[start:stop] for start, stop in ranges]
        assert len(server.requests) == 10 * len(ranges) + refused
        assert client.stats.retries == refused > 40
        assert [facts.retry_budget._tokens for facts in PROCESS_FACTS._origins.values()] == [100.0]


FINAL: Mapping[str, tuple[Handler, type[S3Error]]] = {
    "403": (fail(403, "AccessDenied", "Access Denied"), AccessDeniedError),
    "403 without body": (lambda request, wire: wire.respond(403), AccessDeniedError),
    "401": (lambda request, wire: wire.respond(401), AccessDeniedError),
    "404 NoSuchKey": (fail(404, "NoSuchKey"), ObjectNotFoundError),
    "404 NoSuchVersion": (fail(404, "NoSuchVersion"), ObjectNotFoundError),
    "404 NoSuchBucket": (fail(404, "NoSuchBucket"), BucketNotFoundError),
    "404 without body": (lambda request, wire: wire.respond(404), ObjectNotFoundError),
    "SignatureDoesNotMatch": (fail(403, "SignatureDoesNotMatch"), CredentialsError),
    "400": (fail(400, "InvalidRequest", "No."), RequestError),
    "400 without body": (lambda request, wire: wire.respond(400), RequestError),
    "405": (fail(405, "MethodNotAllowed"), RequestError),
    "412": (fail(412, "PreconditionFailed"), ObjectChangedError),
    "archived": (fail(403, "InvalidObjectState"), RequestError),
    "301 without region": (fail(301, "PermanentRedirect"), RegionError),
    "304": (lambda request, wire: wire.respond(304), RequestError),
    "body to the end": (raw(b"HTTP/1.1 403 Forbidden\r\n\r\n" + s3_error("AccessDenied")), AccessDeniedError),
    "body in chunks": (
        raw(
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n<Error>\r\n"
            b"16\r\n<Code>NoSuchKey</Code>\r\n8\r\n</Error>\r\n0\r\n\r\n"
        ),
        ObjectNotFoundError,
    ),
}


@pytest.mark.parametrize(("handler", "error"), FINAL.values(), ids=FINAL.keys())
def test_final_fault(handler: Handler, error: type[S3Error]):
    """What the service would refuse again is its error after one attempt, and the client can be used on."""
    with serving(first(1, handler, serve_object(SMALL))) as (server, client):
        with pytest.raises(error) as caught:
            client.read_range("bucket", "key", 0)
        assert type(caught.value) is error
        assert (caught.value.attempts, caught.value.bucket, caught.value.key) == (1, "bucket", "key")
        assert len(server.requests) == 1
        assert client.read_range("bucket", "key", 0) == SMALL


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, AccessDeniedError),
        (404, ObjectNotFoundError),
        (400, RequestError),
        (500, ServerError),
        (503, ThrottledError),
    ],
)
def test_fault_of_head(status: int, error: type[S3Error]):
    """An error of HEAD has no body whatever its head says, and the client can be used on."""
    lengths = iter(["0", "300", None])

    def handle(request: Request, wire: Wire) -> None:
        length = "0" if request.method == "GET" else next(lengths)  # a GET asks why HEAD was refused
        wire.respond(status, {"Content-Length": length, "x-amz-request-id": "REQUEST"})

    requests = 6 if status in (400, 403) else 3
    with serving(first(requests, handle, serve_object(SMALL)), max_attempts=1) as (server, client):
        for connections in (1, 1, 1 if requests == 3 else 2):  # without a length the end of the connection ends it
            with pytest.raises(error) as caught:
                client.head_object("bucket", "key")
            assert (caught.value.status, caught.value.request_id) == (status, "REQUEST")
            assert server.connections == connections
        assert client.head_object("bucket", "key").size == len(SMALL)


def test_fields_of_an_error():
    """An error carries what the answer said: status, code, request id, and the reason in its sentence."""
    with serving(fail(403, "AccessDenied", "Nobody may.")) as (_, client), pytest.raises(AccessDeniedError) as caught:
        client.read_range("bucket", "key", 0)
    error = caught.value
    assert (error.status, error.code, error.request_id) == (403, "AccessDenied", "REQUEST")
    assert "GetObject on s3://bucket/key is forbidden (Nobody may.)" in str(error)


def test_fault_of_a_listing():
    """A listing of a bucket that is not there says so; a page that failed can be asked for again."""
    page = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    handler = first(1, fail(404, "NoSuchBucket"), lambda request, wire: wire.respond(200, {}, page))
    with serving(handler) as (_, client):
        pages = client.list_objects("bucket")
        with pytest.raises(BucketNotFoundError):
            next(pages)
        assert [page.object_info for page in pages] == [[]]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"]
)
def test_nonsense_instead_of_a_listing(body: bytes):
    """A page that is no listing, or that has no next one where it says so, is an error."""
    with serving(lambda request, wire: wire.respond(200, {}, body)) as (_, client), pytest.raises(ProtocolError):
        next(client.list_objects("bucket"))


@pytest.mark.parametrize(
    "damage", [lambda page: page[: len(page) // 2], lambda page: page.replace(b"<Key>", b"<K\0y>"), lambda page: b"?"]
)
@pytest.mark.parametrize("lists", [lambda client: list(client.list_objects("bucket")), list_table_of_bucket])
def test_damaged_page(damage: Callable[[bytes], bytes], lists: Callable[[S3Client], object]):
    """A page that is damaged, whose length is right, is asked for again; three times, and then that is the error."""
    page = b"<ListBucketResult><Contents><Key>k</Key><Size>5</Size></Contents></ListBucketResult>"
    damaged = lambda request, wire: wire.respond(200, {}, damage(page))  # noqa: E731  # as short as its neighbours
    with serving(first(2, damaged, lambda request, wire: wire.respond(200, {}, page))) as (server, client):
        assert lists(client)
        assert (len(server.requests), client.stats.retries) == (3, 2)
    with serving(damaged, max_attempts=10) as (server, client):
        with pytest.raises(ProtocolError) as caught:
            lists(client)
        assert (caught.value.bucket, caught.value.attempts, len(server.requests)) == ("bucket", 3, 3)


# Objects that change


def by_part(handlers: Mapping[int, Handler]) -> Handler:
    """Return a handler that chooses by the number of the part that is asked for."""
    return lambda request, wire: handlers[asked(request)[0] // PIECE](request, wire)


@pytest.mark.parametrize(
    "later",
    [
        serve_object(NEWER, etag='"new"'),  # says 412, as If-Match is sent
        altered(NEWER, etag='"new"'),
        altered(NEWER + b"x"),
        altered(NEWER[:-1]),
    ],
    ids=["412", "another ETag", "longer", "shorter"],
)
def test_replaced_between_parts(transport: Tls | None, later: Handler):
    """If an object is replaced while its parts are read that is an error, and never a mixture."""
    old = serve_object(LARGE)
    with serving(by_part({0: old, 1: old, 2: later}), transport) as (_, client):
        with pytest.raises(ObjectChangedError):
            client.read_range("bucket", "key", 0)
        with pytest.raises(ObjectChangedError):
            client.get_object("bucket", "key").read()


@pytest.mark.parametrize(
    "later",
    [
        serve_object(NEWER[: len(SMALL)], etag='"new"'),
        altered(NEWER[: len(SMALL)], etag='"new"'),
        altered(SMALL + b"x"),
        lambda request, wire: wire.respond(200, {"ETag": '"new"'}, NEWER[: len(SMALL)]),
        fail(416, "InvalidRange", headers={"Content-Range": "bytes */10"}),
    ],
    ids=["412", "another ETag", "another size", "whole object", "shorter"],
)
def test_replaced_in_a_body(later: Handler):
    """If an object is replaced while a body of it has broken off, the rest is not taken from the new version."""
    with serving(first(1, cut(SMALL, 1000), later)) as (server, client):
        with pytest.raises((ObjectChangedError, ProtocolError)):
            client.read_range("bucket", "key", 0)
        assert server.requests[1].headers["if-match"] == '"e"'


@pytest.mark.parametrize("handler", [serve_object(SMALL), altered(SMALL)], ids=["412", "If-Match ignored"])
@pytest.mark.parametrize(
    "info", [HeadObjectResult('"old"', len(SMALL), 0), HeadObjectResult("", len(SMALL) + 1, 0)], ids=["ETag", "size"]
)
@pytest.mark.parametrize("reader_config", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based()])
def test_replaced_since_it_was_listed(info: HeadObjectResult, handler: Handler, reader_config: S3ReaderConfig):
    """An object that is not the one that was listed is an error."""
    with serving(handler) as (_, client):
        reader = client.get_object("bucket", "key", object_info=info, reader_config=reader_config)
        with pytest.raises(ObjectChangedError):
            reader.read()


def test_replaced_between_reads():
    """A reader reads one version only; opened again the object is read in its new one."""
    handler = first(1, serve_object(SMALL), serve_object(NEWER, etag='"new"'))
    with serving(handler) as (_, client):
        reader = client.get_object("bucket", "key", reader_config=S3ReaderConfig.range_based())
        assert reader.read(10) == SMALL[:10]
        with pytest.raises(ObjectChangedError):
            reader.read(10)
        assert reader.tell() == 10
        assert client.get_object("bucket", "key").read() == NEWER


@pytest.mark.parametrize("size", [20, 1000, 5000])
def test_replaced_after_a_failure(size: int):
    """A read that failed leaves nothing behind: an object of another size is read as it is then."""
    content = SMALL[:size]

    def handle(request: Request, wire: Wire) -> None:
        if request.path == "/bucket/other":
            time.sleep(0.1)
            serve_object(SMALL)(request, wire)
        elif len(server.requests) <= 2:
            head, body = partial(SMALL[:1000], request, etag='"old"')
            wire.send(head + body[:10])
            wire.close()
        else:
            serve_object(content, etag='"new"')(request, wire)

    with serving(handle, max_attempts=1) as (server, client):
        reader = client.get_object("bucket", "key")
        reader.prefetch()
        client.read_range("bucket", "other", 0)  # meanwhile the prefetch fails
        with pytest.raises(TruncatedBodyError):
            reader.read()
        assert reader.read() == content


def test_deleted_between_parts():
    """If an object is deleted while its parts are read, that is what the error says."""
    old = serve_object(LARGE)
    handler = by_part({0: old, 1: old, 2: fail(404, "NoSuchKey")})
    with serving(handler) as (_, client), pytest.raises(ObjectNotFoundError):
        client.read_range("bucket", "key", 0)


def test_failed_part_stops_the_others():
    """If one part fails nothing of the others is written any more, and the client reads on with fresh connections."""

    def stall(request: Request, wire: Wire) -> None:
        head, body = partial(LARGE, request)
        wire.send(head + body[:100])
        wire.stall()

    old = serve_object(LARGE)
    with serving(by_part({0: old, 1: stall, 2: fail(403, "AccessDenied")})) as (_, client):
        into = bytearray(len(LARGE))
        with pytest.raises(AccessDeniedError):
            client.read_range("bucket", "key", 0, None, into)
        left = bytes(into)
        assert client.read_range("bucket", "key", 0, PIECE) == LARGE[:PIECE]
        assert into == left
        assert re.fullmatch(
            r"<Engine 0 in flight, 0 queued, [1-3] connections, 4 requests>", repr(client._access.engine())
        )


# Region, clock and credentials


def scope(request: Request) -> str:
    """Return what a request was signed with: access key, and the region of its scope."""
    match = re.search(r"Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request", request.headers["authorization"])
    assert match is not None
    return f"{match[1]} {match[2]}"


def in_region(region: str, refuse: Handler, then: Handler) -> Handler:
    """Return a handler that refuses what is signed for another region."""
    return lambda request, wire: (then if scope(request).endswith(f" {region}") else refuse)(request, wire)


def says_region_in_body(request: Request, wire: Wire) -> None:
    """Refuse as S3 does where it was signed for the wrong region."""
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    wire.respond(400, {}, body)


says_region_in_head = fail(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})


@pytest.mark.parametrize("refuse", [says_region_in_head, says_region_in_body], ids=["head", "body"])
def test_region_is_corrected(transport: Tls | None, refuse: Handler):
    """A bucket of another region is signed for with that, from the first answer on."""
    with serving(in_region("eu-west-1", refuse, serve_object(SMALL)), transport) as (server, client):
        for _ in range(2):
            assert client.read_range("bucket", "key", 0) == SMALL
        assert [scope(request) for request in server.requests] == [
            "ACCESS us-east-1",
            "ACCESS eu-west-1",
            "ACCESS eu-west-1",
        ]


@pytest.mark.parametrize("status", [301, 400])
def test_region_of_head_is_corrected(status: int):
    """HEAD learns the bucket's region from the header alone, whether S3 answers it with 301 or with 400."""

    def refuse(request: Request, wire: Wire) -> None:
        wire.respond(status, {"x-amz-bucket-region": "eu-west-1"})

    with serving(in_region("eu-west-1", refuse, serve_object(SMALL))) as (server, client):
        assert client.head_object("bucket", "key").size == len(SMALL)
        assert len(server.requests) == 2


def test_region_is_corrected_for_all_parts():
    """Requests that were under way for the wrong region are all sent again for the right one."""
    with serving(in_region("eu-west-1", says_region_in_head, serve_object(LARGE))) as (server, client):
        info = HeadObjectResult('"e"', len(LARGE), 0)
        assert client.get_object("bucket", "key", object_info=info).read() == LARGE
        assert len(server.requests) <= 6


@pytest.mark.parametrize("region", ["eu-west-1", "us-east-1"], ids=["another", "the same"])
def test_region_that_does_not_help(region: str):
    """A redirect that correcting the region does not end is an error that names the region."""
    with serving(fail(301, "PermanentRedirect", headers={"x-amz-bucket-region": region})) as (server, client):
        with pytest.raises(RegionError, match=f"region={region!r}") as caught:
            client.read_range("bucket", "key", 0)
        assert caught.value.region == region
        assert len(server.requests) <= 2


def test_region_that_is_not_told():
    """A redirect that does not tell the region is an error at once."""
    with serving(fail(301, "PermanentRedirect")) as (server, client):
        with pytest.raises(RegionError, match="another region"):
            client.read_range("bucket", "key", 0)
        assert len(server.requests) == 1


@pytest.mark.parametrize("region", ["no such thing", "evil.test/", "a@evil.test", "x" * 100])
def test_region_that_is_none(region: str):
    """What cannot be a region is not taken for one, and disturbs no other transfer."""
    refuse = fail(301, "PermanentRedirect", headers={"x-amz-bucket-region": region})
    with serving(first(1, refuse, serve_object(SMALL))) as (server, client):
        with pytest.raises(RegionError):
            client.read_range("bucket", "key", 0)
        assert client.read_range("bucket", "key", 0) == SMALL
        assert [scope(request) for request in server.requests] == ["ACCESS us-east-1"] * 2


def ahead(request: Request, wire: Wire) -> None:
    """Refuse a request as signed too early, at a service whose clock is right: 1 January 2040, noon."""
    fail(403, "RequestTimeTooSkewed", headers={"Date": "Sun, 01 Jan 2040 12:00:00 GMT"})(request, wire)


def signed_in_2040(then: Handler) -> Handler:
    """Return a handler that refuses what is signed at another time."""

    def handle(request: Request, wire: Wire) -> None:
        (then if request.headers["x-amz-date"].startswith("20400101T12") else ahead)(request, wire)

    return handle


def test_clock_is_corrected():
    """A clock that is off is corrected by the service's, from the first answer on."""
    with serving(signed_in_2040(serve_object(SMALL))) as (server, client):
        for _ in range(2):
            assert client.read_range("bucket", "key", 0) == SMALL
        assert len(server.requests) == 3


def test_clock_is_corrected_for_all_parts():
    """Requests that were under way with the wrong time are all sent again with the right one."""
    with serving(signed_in_2040(serve_object(LARGE))) as (server, client):
        info = HeadObjectResult('"e"', len(LARGE), 0)
        assert client.get_object("bucket", "key", object_info=info).read() == LARGE
        assert len(server.requests) <= 6


def test_rare_calls_are_corrected():
    """What begins and ends an upload, and what deletes, is corrected as reads are: region, clock and credentials."""
    uploads = Uploads()
    refuse = fail(400, "AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-west-1"})
    with serving(in_region("eu-west-1", refuse, signed_in_2040(uploads))) as (server, client):
        client.delete_object("bucket", "key")
        with client.put_object("bucket", "key") as writer:
            writer.write(LARGE)
        assert (uploads.log[:2], uploads.log[-1]) == (["Abort", "Create"], "Complete")
        assert sorted(uploads.log[2:-1]) == ["Part 1", "Part 2", "Part 3"]
        assert len(server.requests) == 8
    for call in (lambda client: client.delete_object("bucket", "key"), write_large):
        uploads = Uploads()
        with serving(first(1, fail(400, "ExpiredToken"), uploads), max_attempts=1) as (_, client):
            call(client)
            assert uploads.log


def write_large(client: S3Client) -> None:
    """Write an object of several parts."""
    with client.put_object("bucket", "key") as writer:
        writer.write(LARGE)


@pytest.mark.parametrize("date", [None, "yesterday", "now"])
def test_clock_that_cannot_be_corrected(date: str | None):
    """If the service does not tell its time, or that is ours, the error says that the clock is to be set."""
    if date == "now":
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    with serving(fail(403, "RequestTimeTooSkewed", headers={"Date": date})) as (server, client):
        with pytest.raises(ClockSkewError, match="clock is too far"):
            client.read_range("bucket", "key", 0)
        assert len(server.requests) <= 2


def with_key(access_key: str, refuse: Handler, then: Handler) -> Handler:
    """Return a handler that refuses what is signed by another key."""
    return lambda request, wire: (then if scope(request).startswith(f"{access_key} ") else refuse)(request, wire)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "TokenRefreshRequired", "InvalidToken"])
def test_credentials_are_refreshed(monkeypatch: pytest.MonkeyPatch, code: str):
    """Credentials that have expired are looked for anew, once, and all further requests use what was found."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old-token")

    def refuse(request: Request, wire: Wire) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fresh")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "fresh-token")
        fail(400, code)(request, wire)

    with serving(with_key("FRESH", refuse, serve_object(SMALL))) as (server, client):
        for _ in range(2):
            assert client.read_range("bucket", "key", 0) == SMALL
        assert [request.headers["x-amz-security-token"] for request in server.requests] == [
            "old-token",
            "fresh-token",
            "fresh-token",
        ]


def test_credentials_are_refreshed_for_all_parts(monkeypatch: pytest.MonkeyPatch):
    """Requests that were under way with expired credentials are all sent again with the new ones."""

    def refuse(request: Request, wire: Wire) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fresh")
        fail(400, "ExpiredToken")(request, wire)

    with serving(with_key("FRESH", refuse, serve_object(LARGE))) as (_, client):
        info = HeadObjectResult('"e"', len(LARGE), 0)
        assert client.get_object("bucket", "key", object_info=info).read() == LARGE


def test_credentials_with_the_same_secret(monkeypatch: pytest.MonkeyPatch):
    """New credentials are used even if only their access key differs."""

    def refuse(request: Request, wire: Wire) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
        fail(403, "InvalidAccessKeyId")(request, wire)

    with serving(with_key("FRESH", refuse, serve_object(SMALL))) as (_, client):
        assert client.read_range("bucket", "key", 0) == SMALL


def test_keys_that_are_withdrawn_in_a_row(monkeypatch: pytest.MonkeyPatch):
    """A request whose new key is withdrawn as well looks for the next; one that finds the same key again is refused."""
    keys = {"ACCESS": "SECOND", "SECOND": "THIRD", "THIRD": "THIRD"}

    def handle(request: Request, wire: Wire) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[scope(request).partition(" ")[0]])
        fail(403, "InvalidAccessKeyId")(request, wire)

    with serving(handle) as (server, client):
        with pytest.raises(CredentialsError):
            client.read_range("bucket", "key", 0)
        signed = [scope(request).partition(" ")[0] for request in server.requests]
        assert signed == ["ACCESS", "SECOND", "THIRD", "THIRD"]


@pytest.mark.parametrize(
    "act", [lambda client: client.read_range("bucket", "key", 0), lambda client: client.head_object("bucket", "key")]
)
def test_keys_that_are_all_refused(monkeypatch: pytest.MonkeyPatch, act: Callable[[S3Client], object]):
    """Where each look brings another key and the server refuses all of them, a request comes to an end."""
    numbers = itertools.count(1)
    left = 50  # more than any request is sent

    def handle(request: Request, wire: Wire) -> None:
        nonlocal left
        left -= 1
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"KEY{next(numbers)}")
        (fail(403, "InvalidAccessKeyId") if left else fail(404, "NoSuchKey"))(request, wire)

    with serving(handle) as (server, client):
        with pytest.raises(CredentialsError, match="unknown"):
            act(client)
        assert len(server.requests) <= 12


def test_credentials_are_refreshed_after_each_outage(monkeypatch: pytest.MonkeyPatch):
    """Keys that are rotated once more while a request is retried are found anew once more."""
    rotations = {"ACCESS": "SECOND", "SECOND": "THIRD"}
    outages = {"SECOND"}

    def handle(request: Request, wire: Wire) -> None:
        key = scope(request).partition(" ")[0]
        if key in outages:
            outages.remove(key)
            fail(500, "InternalError")(request, wire)
        elif key in rotations:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", rotations[key])
            fail(403, "InvalidAccessKeyId")(request, wire)
        else:
            serve_object(SMALL)(request, wire)

    with serving(handle) as (server, client):
        assert client.read_range("bucket", "key", 0) == SMALL
        assert len(server.requests) == 4


def test_credentials_that_are_refused_between_outages():
    """A server that goes on refusing credentials between its outages is given up after the attempts of a request."""
    answers = itertools.cycle([fail(400, "ExpiredToken"), fail(500, "InternalError")])

    def handle(request: Request, wire: Wire) -> None:
        next(answers)(request, wire)

    with serving(handle) as (server, client):
        with pytest.raises(ServerError):
            client.read_range("bucket", "key", 0)
        assert len(server.requests) == 4


def test_credentials_are_refreshed_for_rare_calls(monkeypatch: pytest.MonkeyPatch):
    """Rare calls find rotated credentials anew, too; those that stay refused are an error."""

    def refuse(request: Request, wire: Wire) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
        fail(403, "InvalidAccessKeyId")(request, wire)

    def copied(_: Request, wire: Wire) -> None:
        wire.respond(200, {}, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")

    with serving(with_key("FRESH", refuse, copied)) as (server, client):
        client.copy_object("bucket", "key", "bucket", "copy")
        assert len(server.requests) == 2
    with serving(fail(403, "InvalidAccessKeyId")) as (server, client):
        with pytest.raises(CredentialsError, match="unknown"):
            client.copy_object("bucket", "key", "bucket", "copy")
        assert len(server.requests) == 2


def test_credentials_that_stay_expired():
    """Credentials that have expired and are found again just so are an error after the second attempt."""
    with serving(fail(400, "ExpiredToken")) as (server, client):
        with pytest.raises(CredentialsError, match="they have expired"):
            client.read_range("bucket", "key", 0)
        assert len(server.requests) == 2


def test_no_credentials(monkeypatch: pytest.MonkeyPatch):
    """Without credentials nothing is sent, and the error says where they are looked for."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with serving(serve_object(SMALL)) as (server, client):
        for call in (lambda: client.read_range("bucket", "key", 0), lambda: client.delete_object("bucket", "key")):
            with pytest.raises(CredentialsError, match=r"No credentials were found.*AWS_ACCESS_KEY_ID"):
                call()
        assert server.requests == []
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "LATE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "late")
        assert client.read_range("bucket", "key", 0) == SMALL


@pytest.mark.parametrize("region", [None, "us-east-1"])
@pytest.mark.parametrize("from_environment", [False, True])
def test_unknown_profile(monkeypatch: pytest.MonkeyPatch, region: str | None, from_environment: bool):
    """A profile that does not exist is an error of the configuration that names it."""
    if from_environment:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
    config = S3ClientConfig(profile=None if from_environment else "nobody")
    client = S3Client(region, endpoint="http://127.0.0.1:9", s3client_config=config)
    with pytest.raises(ConfigError, match="no profile 'nobody'"):
        client.read_range("bucket", "key", 0)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:9000", "http://"])
def test_bad_endpoint_in_the_environment(monkeypatch: pytest.MonkeyPatch, url: str):
    """An endpoint in the environment that is no URL is an error of the configuration."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(ConfigError):
        S3Client("us-east-1").read_range("bucket", "key", 0)


# What is sent


def test_signed():
    """A request is signed with the key, region, time and payload hash that it says."""
    with serving(serve_object(SMALL), region="eu-central-1") as (server, client):
        client.read_range("bucket", "key", 0)
    [request] = server.requests
    assert scope(request) == "ACCESS eu-central-1"
    assert request.target == "/bucket/key"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert {"x-amz-date", "x-amz-content-sha256"} <= request.headers.keys()
    assert "x-amz-security-token" not in request.headers
    assert "SECRET" not in str(request.headers)


def test_unsigned(monkeypatch: pytest.MonkeyPatch):
    """An unsigned client sends nothing of any credentials, though there are some."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    with serving(serve_object(SMALL), unsigned=True) as (server, client):
        client.read_range("bucket", "key", 0)
        client.head_object("bucket", "key")
        with contextlib.suppress(S3Error):
            client.delete_object("bucket", "key")
    assert len(server.requests) == 3
    for request in server.requests:
        assert not {"authorization", "x-amz-security-token"} & request.headers.keys()
        assert "ACCESS" not in str(request.headers) + request.target


def test_session_token(monkeypatch: pytest.MonkeyPatch):
    """The token of temporary credentials is sent and signed."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    with serving(serve_object(SMALL)) as (server, client):
        client.read_range("bucket", "key", 0)
    headers = server.requests[0].headers
    assert headers["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in headers["authorization"].partition("SignedHeaders=")[2]


def test_requester_pays():
    """A client that agrees to pay says so in every request."""
    with serving(serve_object(SMALL), requester_pays=True) as (server, client):
        client.read_range("bucket", "key", 0)
        client.head_object("bucket", "key")
        with contextlib.suppress(S3Error):
            client.delete_object("bucket", "key")
    assert [request.headers["x-amz-request-payer"] for request in server.requests] == ["requester"] * 3


def test_user_agent():
    """Requests say which versions they come from, and what uses the client."""
    with ScriptedServer(serve_object(SMALL)) as server:
        comments = ["md/dataset#map", "", "md/reader_type#sequential"]
        client = S3Client("us-east-1", endpoint=server.endpoint, user_agent_comments=comments)
        client.read_range("bucket", "key", 0)
        client.close()
    sent = server.requests[0].headers["user-agent"]
    assert sent == client.user_agent
    assert re.fullmatch(
        r"s3torch/\S+ ua/2\.1 os/\S+#\S+ lang/python#3\.\S+ md/arch#\S+ md/pytorch#\S+ "
        r"\(md/dataset#map; md/reader_type#sequential\)",
        sent,
    )


KEYS = [
    "a\r\nX-Evil: 1",
    "a HTTP/1.1\r\nHost: evil\r\n\r\nGET /b",
    "a\nb",
    "a\rb",
    "a\0b",
    "a\x85b\u2028c",
    " a ",
    "a?b=c&d#e",
    "a%0d%0ab",
    "../../a//./b/",
    "über/日本/🙂",
    "/",
]


def test_keys_are_encoded():
    """Whatever a key holds, it reaches the server as the path of one request, and no line break of it does."""
    with serving(serve_object(SMALL)) as (server, client):
        for key in KEYS:
            client.read_range("bucket", key, 0)
            client.head_object("bucket", key)
            with contextlib.suppress(S3Error), client.put_object("bucket", key) as writer:
                writer.write(b"x")
            with contextlib.suppress(S3Error):
                client.delete_object("bucket", key)
    for number, request in enumerate(server.requests):
        assert request.method == ["GET", "HEAD", "PUT", "DELETE"][number % 4]
        assert unquote(request.target) == f"/bucket/{KEYS[number // 4]}"
        assert not re.search(r"[^!-~]|[?#]", request.target)
        assert "x-evil" not in request.headers
    assert len(server.requests) == 4 * len(KEYS)


def test_parameters_are_encoded():
    """Line breaks in what becomes a parameter of a request do not reach the server."""
    evil = "x\r\nX-Evil: 1\r\n\r\n"
    with serving(serve_object(SMALL)) as (server, client):
        client.head_object("bucket", "key", version_id=evil)
        with pytest.raises(ProtocolError):
            next(client.list_objects("bucket", prefix=evil, delimiter=evil))
    assert len(server.requests) == 4  # the page, which is none, three times
    for request in server.requests:
        assert [evil] in parse_qs(urlsplit(request.target).query).values()
        assert not re.search(r"[^!-~]", request.target)
        assert "x-evil" not in request.headers


@pytest.mark.parametrize("evil", ["x\r\nX-Evil: 1", "x\n", "x\0"])
def test_header_fields_are_checked(evil: str):
    """Line breaks in what becomes a header field are an error of the argument, and nothing is sent."""
    with serving(serve_object(SMALL)) as (server, client):
        with pytest.raises(ArgumentError, match="cannot carry"), client.put_object("bucket", "key", evil) as writer:
            writer.write(b"x")
        with pytest.raises(ArgumentError):
            S3Client("us-east-1", endpoint=server.endpoint, user_agent_comments=[evil]).head_object("bucket", "key")
        assert server.requests == []


@pytest.mark.parametrize("bucket", ["b\r\nX-Evil: 1", "b\n", "b/c", "b?c"])
def test_bucket_names_are_checked(bucket: str):
    """What can be no bucket is an error of the argument, or at least sent encoded."""
    with serving(serve_object(SMALL)) as (server, client), contextlib.suppress(ArgumentError):
        client.head_object(bucket, "key")
    for request in server.requests:
        assert unquote(request.target) == f"/{bucket}/key"
        assert not re.search(r"[^!-~]|[?#]", request.target)


def test_key_that_is_no_text():
    """A key that cannot be encoded is an error of the argument, and nothing is sent."""
    with serving(serve_object(SMALL)) as (server, client):
        with pytest.raises(ArgumentError, match="cannot be sent"):
            client.read_range("bucket", "a\ud800b", 0)
        assert server.requests == []
        assert client.read_range("bucket", "key", 0) == SMALL


# Servers that are not there


def test_refused():
    """A port where nobody listens is an error after four attempts, which names it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        client = S3Client("us-east-1", endpoint=f"http://127.0.0.1:{port}")
        with pytest.raises(ConnectionFailedError, match=rf"http://127\.0\.0\.1:{port}: Connection refused") as caught:
            client.read_range("bucket", "key", 0)
        assert caught.value.attempts == 4


def test_unresolvable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A host that has no address is an error after four attempts, which says what to check."""
    asked_for: list[str] = []

    def getaddrinfo(host: str, *arguments: object, **options: object) -> list[object]:
        asked_for.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    client = S3Client("us-east-1", endpoint="http://nonexistent.invalid")
    with pytest.raises(ConnectionFailedError, match=r"'bucket\.nonexistent\.invalid'.*force_path_style") as caught:
        client.read_range("bucket", "key", 0)
    assert caught.value.attempts == 4
    assert asked_for == ["bucket.nonexistent.invalid"] * 4


def test_server_that_goes_away():
    """If a server stops for good that is an error after all attempts; kept connections show it, too."""

    def last(request: Request, wire: Wire) -> None:
        wire.refuse_further()
        serve_object(SMALL)(request, wire)
        wire.close()

    with serving(last) as (_, client):
        assert client.read_range("bucket", "key", 0) == SMALL
        for _ in range(2):
            with pytest.raises(ConnectionFailedError) as caught:
                client.read_range("bucket", "key", 0)
            assert caught.value.attempts == 3


def test_stale_connection(transport: Tls | None):
    """A kept connection that the server closed is replaced without an attempt being counted."""
    good = serve_object(SMALL)

    def close_afterwards(request: Request, wire: Wire) -> None:
        good(request, wire)
        wire.close()

    with serving(close_afterwards, transport, max_attempts=1) as (server, client):
        for _ in range(5):
            assert client.read_range("bucket", "key", 0) == SMALL
        assert (len(server.requests), server.connections, client.stats.retries) == (5, 5, 0)


# Copying


def copy(request: Request, wire: Wire) -> None:
    """Answer a CopyObject."""
    wire.respond(200, {}, b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>')


def test_copy_to_a_server_that_is_not_trusted(tls: Tls):
    """A copy meets a certificate that is not trusted as reads do: an error at once, which says so."""
    with serving(copy, (tls[0], True), max_attempts=10) as (server, client):
        with pytest.raises(CertificateError, match=r"CopyObject on s3://bucket/b failed: The certificate"):
            client.copy_object("bucket", "a", "bucket", "b")
        assert server.connections <= 1


def test_copies_are_corrected():
    """The credentials of a copy are looked for anew when they have expired; its region is corrected."""
    refuse = fail(400, "AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-west-1"})
    with serving(in_region("eu-west-1", refuse, copy)) as (server, client):
        client.copy_object("bucket", "a", "bucket", "b")
        assert [scope(request) for request in server.requests][-1] == "ACCESS eu-west-1"
    with serving(first(1, fail(400, "ExpiredToken"), copy), max_attempts=1) as (server, client):
        client.copy_object("bucket", "a", "bucket", "b")
        assert len(server.requests) == 2
    with serving(fail(400, "ExpiredToken"), max_attempts=1) as (server, client):
        with pytest.raises(CredentialsError):
            client.copy_object("bucket", "a", "bucket", "b")
        assert len(server.requests) == 2


def test_close_closes_the_connections_of_copies():
    """After ``close`` a client holds no connection of a copy any more, and can copy again."""
    with serving(copy) as (server, client):
        client.copy_object("bucket", "a", "bucket", "b")
        before = open_sockets()
        client.close()
        assert open_sockets() == before - 1
        client.copy_object("bucket", "a", "bucket", "b")
        assert server.connections == 2


def open_sockets() -> int:
    """Return how many connected sockets of clients this process has, but for the servers of tests."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) is socket.socket and each.fileno() >= 0]
    return sum(each.gettimeout() == 0.0 for each in found)  # ours alone do not block


# Writing


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (None, None),
        ('ongoing-request="true"', RestoreStatus(in_progress=True, expiry=None)),
        (
            'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"',
            RestoreStatus(in_progress=False, expiry=1356048000),
        ),
        ('ongoing-request="false", expiry-date="soon"', RestoreStatus(in_progress=False, expiry=None)),
        ("nothing that is known", None),
    ],
)
def test_restore_status(field: str | None, status: RestoreStatus | None):
    """A HEAD tells how far an archived object is on its way back; what is no such field tells nothing."""

    def handler(_: Request, wire: Wire) -> None:
        wire.respond(200, {"ETag": '"e"', "Content-Length": "5", **({"x-amz-restore": field} if field else {})})

    with serving(handler) as (_, client):
        assert client.head_object("bucket", "key").restore_status == status


class Uploads:
    """A handler that takes uploads as S3 does, but for faults.

    Args:
        times: How often each fault happens; 0 means always.
        faults: What is done instead, by operation: ``Create``, ``Part1``, ..., ``Complete``, ``Abort``, ``Put``.

    Attributes:
        log: The operations, in order; of an upload's parts with their numbers.
        objects: What was stored, by path.
        head: The fields of an answer to HeadObject.
        tags: A format of the parts' ETags.
    """

    def __init__(self, *, times: int = 0, **faults: Handler) -> None:
        self.log: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.tags = '"part {}"'
        self.head: dict[str, str | None] = {"ETag": '"another"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        self._parts: dict[int, bytes] = {}
        self._faults = {name: itertools.repeat(fault, times or 1000) for name, fault in faults.items()}

    def __call__(self, request: Request, wire: Wire) -> None:
        query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
        number = int(query["partNumber"][0]) if "partNumber" in query else 0
        name = self._operation(request.method, query)
        self.log.append(f"{name} {number}" if number else name)
        fault = next(self._faults.get(f"{name}{number}" if number else name, iter(())), None)
        if fault is not None:
            return fault(request, wire)
        return self._succeed(name, number, request, wire)

    def _operation(self, method: str, query: Mapping[str, list[str]]) -> str:
        if method == "POST":
            return "Create" if "uploads" in query else "Complete"
        if method in {"DELETE", "HEAD"}:
            return "Abort" if method == "DELETE" else "Head"
        if method == "GET":
            return "Get"
        return "Part" if "partNumber" in query else "Put"

    def _succeed(self, name: str, number: int, request: Request, wire: Wire) -> None:
        body = b""
        fields: dict[str, str | None] = {"ETag": self.tags.format(number), "Date": "Sun, 01 Feb 2026 00:00:00 GMT"}
        if name == "Create":
            body = b"<InitiateMultipartUploadResult><UploadId>UPLOAD</UploadId></InitiateMultipartUploadResult>"
        elif name == "Part":
            self._parts[number] = request.body
        elif name == "Put":
            self.objects[request.path] = request.body
        elif name == "Head":
            if request.path not in self.objects:
                return wire.respond(404)
            return wire.respond(200, self.head, self.objects[request.path])
        elif name == "Complete":
            self.objects[request.path] = b"".join(self._parts[number] for number in sorted(self._parts))
            body = b'<CompleteMultipartUploadResult><ETag>"done"</ETag></CompleteMultipartUploadResult>'
        return wire.respond(204 if name == "Abort" else 200, fields, body)


class Interrupted(Uploads):
    """A server that has uploads without parts but for the note, three of them of the same key.

    Args:
        told: What it says of the upload's checksums.
    """

    def __init__(self, told: bytes) -> None:
        super().__init__()
        note = note_of({"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"})
        etag = hashlib.md5(note, usedforsecurity=False).hexdigest().encode()
        part = b"<Part><PartNumber>10000</PartNumber><ETag>%b</ETag><Size>%d</Size></Part>"
        self._told = told + part % (etag, len(note))

    def __call__(self, request: Request, wire: Wire) -> None:
        if request.method != "GET":
            return super().__call__(request, wire)
        uploads = b"".join(
            b"<Upload><Key>%b</Key><UploadId>%b</UploadId><Initiated>2026-01-%bT00:00:00Z</Initiated></Upload>" % each
            for each in (
                (b"key", b"FIRST", b"01"),
                (b"key", b"LAST", b"03"),
                (b"key", b"SECOND", b"02"),
                (b"keys", b"X", b"04"),
            )
        )
        is_of_uploads = "uploads" in parse_qs(urlsplit(request.target).query, keep_blank_values=True)
        name, content = (b"MultipartUploads", uploads) if is_of_uploads else (b"Parts", self._told)
        body = b"<Result><IsTruncated>false</IsTruncated>" + content + b"</Result>"
        return wire.respond(200, {}, body.replace(b"Result", b"List%bResult" % name))


@pytest.mark.parametrize(
    ("told", "is_sent"),
    [
        (b"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>", True),
        (b"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>COMPOSITE</ChecksumType>", False),
        (b"", False),
    ],
)
def test_checksum_of_a_resumed_upload(told: bytes, is_sent: bool):
    """The newest upload of a key goes on; it is completed with the object's checksum, if it was begun with one."""
    uploads = Interrupted(told)
    with serving(uploads) as (server, client):
        with client.put_object("bucket", "key", resume=True) as writer:
            writer.write(LARGE[: PART + 1])
        assert "Create" not in uploads.log
        assert uploads.log[-2:] == ["Part 10000", "Complete"]  # in place of the note
        assert ("x-amz-checksum-crc32" in server.requests[-1].headers) is is_sent
        assert "uploadId=LAST" in server.requests[-1].target


@pytest.mark.parametrize("size", [0, 1, 1000, PART])
def test_small_upload(transport: Tls | None, size: int):
    """An object of up to one part is exactly one PUT, sent when the writer is closed."""
    uploads = Uploads()
    with serving(uploads, transport) as (server, client):
        with client.put_object("bucket", "key", "STANDARD_IA") as writer:
            writer.write(LARGE[:size])
            assert uploads.log == []
        assert uploads.log == ["Put"]
        assert uploads.objects == {"/bucket/key": LARGE[:size]}
        assert server.requests[0].headers["content-length"] == str(size)
        assert server.requests[0].headers["x-amz-storage-class"] == "STANDARD_IA"


def test_large_upload(transport: Tls | None):
    """A larger object is sent in parts while it is written, and appears when the writer is closed."""
    uploads = Uploads()
    with serving(uploads, transport) as (_, client):
        with client.put_object("bucket", "key") as writer:
            for left in range(0, len(LARGE), 100_000):
                writer.write(LARGE[left : left + 100_000])
            assert uploads.log[0] == "Create"
            assert set(uploads.log[1:]) <= {"Part 1", "Part 2"}
            assert uploads.objects == {}
        assert (uploads.log[0], uploads.log[-1]) == ("Create", "Complete")
        assert sorted(uploads.log[1:-1]) == ["Part 1", "Part 2", "Part 3"]
        assert uploads.objects == {"/bucket/key": LARGE}


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_upload_after_a_fault(content: bytes):
    """A request of an upload that failed in passing is sent again with the same body."""
    fault = fail(500, "InternalError")
    uploads = Uploads(times=1, Put=fault, Part1=fault, Part2=lambda request, wire: wire.reset())
    with serving(uploads) as (_, client):
        with client.put_object("bucket", "key") as writer:
            writer.write(content)
        assert uploads.objects == {"/bucket/key": content}


@pytest.mark.parametrize(
    ("written", "log"),
    [
        (0, []),
        (1000, []),
        (PART + 1, ["Create", "Part 1", "Abort"]),
        (2 * PART + 1, ["Create", "Part 1", "Part 2", "Abort"]),
    ],
)
@pytest.mark.parametrize("exception", [ZeroDivisionError, KeyboardInterrupt])
def test_exception_while_writing(written: int, log: list[str], exception: type[BaseException]):
    """An exception inside ``with`` leaves no object and no parts behind, and goes on to the caller."""
    uploads = Uploads()
    with serving(uploads) as (_, client):
        writer = client.put_object("bucket", "key")
        with pytest.raises(exception), writer:
            write_and_raise(writer, LARGE[:written], exception)
        assert writer.closed
        writer.close()
        assert uploads.objects == {}
    # Parts that were under way may have arrived or not.
    assert {"Create", "Abort"} & set(log) <= set(uploads.log) <= set(log)


def write_and_raise(writer: S3Writer, content: bytes, exception: type[BaseException]) -> None:
    """Write something, and then fail."""
    writer.write(content)
    raise exception


@pytest.mark.parametrize(
    ("fault", "log"),
    [
        ("Create", ["Create"]),
        ("Part1", ["Create", "Part 1", "Abort"]),
        ("Part2", ["Create", "Part 1", "Part 2", "Abort"]),
        ("Part3", ["Create", "Part 1", "Part 2", "Part 3", "Abort"]),
        ("Complete", ["Create", "Part 1", "Part 2", "Part 3", "Complete", "Abort"]),
    ],
)
def test_failing_upload(fault: str, log: list[str]):
    """A request that fails for good gives the whole upload up; the writer is closed then and its error is raised."""
    uploads = Uploads(**{fault: fail(403, "AccessDenied")})
    with serving(uploads) as (_, client):
        writer = client.put_object("bucket", "key")
        with pytest.raises(AccessDeniedError), writer:
            writer.write(LARGE)
        with pytest.raises(ArgumentError, match="aborted"):
            writer.write(b"more")
        writer.close()
        assert uploads.objects == {}
    parts = {"Part 1", "Part 2", "Part 3"}  # those beside the one that failed may have arrived or not
    assert set(log) - parts <= set(uploads.log) <= set(log) | parts
    assert fault == "Create" or re.sub(r"([0-9])", r" \1", fault) in uploads.log
    assert ("Complete" in uploads.log) == (fault == "Complete")


def test_failing_put():
    """A small object whose PUT fails is not there, and the writer is closed."""
    uploads = Uploads(Put=fail(403, "AccessDenied"))
    with serving(uploads) as (_, client):
        writer = client.put_object("bucket", "key")
        writer.write(b"x")
        with pytest.raises(AccessDeniedError) as caught:
            writer.close()
        assert "s3:PutObject" in str(caught.value)
        assert (uploads.log, writer.closed) == (["Put"], True)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (s3_error("InternalError", "Try again."), ServerError),
        (s3_error("AccessDenied"), S3Error),
    ],
)
def test_complete_that_fails_with_200(body: bytes, error: type[S3Error]):
    """CompleteMultipartUpload may say 200 and fail nevertheless: that is an error, and the upload is given up."""
    uploads = Uploads(Complete=lambda request, wire: wire.respond(200, {}, body))
    with serving(uploads, max_attempts=1) as (_, client):
        with pytest.raises(error), client.put_object("bucket", "key") as writer:
            writer.write(LARGE[: PART + 1])
        assert (uploads.log[0], uploads.log[3:]) == ("Create", ["Complete", "Abort"])
        assert sorted(uploads.log[1:3]) == ["Part 1", "Part 2"]


class Lost:
    """A handler of CompleteMultipartUpload that carries it out, and whose answers are lost.

    Args:
        content: What is stored by that.
        then: What answers when it is sent again; None loses this answer, too.
    """

    def __init__(self, content: bytes, then: Handler | None) -> None:
        self.uploads: Uploads | None = None
        self._content = content
        self._then = then

    def __call__(self, request: Request, wire: Wire) -> None:
        if self.uploads is None:
            raise AssertionError("no uploads to store in")
        if self._then is not None and request.path in self.uploads.objects:
            return self._then(request, wire)
        self.uploads.objects[request.path] = self._content
        return wire.close()


TWO_PARTS = LARGE[: PART + 1]
GONE = fail(404, "NoSuchUpload")
PARTS_ETAG = multipart_etag([f'"{name:032x}"' for name in (1, 2)])


@contextlib.contextmanager
def losing(then: Handler | None, content: bytes = TWO_PARTS, **faults: Handler) -> Iterator[tuple[Uploads, S3Writer]]:
    """Two parts of an upload whose completion goes unanswered; the ETags of the parts are MD5s."""
    lost = Lost(content, then)
    uploads = lost.uploads = Uploads(Complete=lost, **faults)
    uploads.tags = '"{:032x}"'
    with serving(uploads, max_attempts=2) as (_, client):
        writer = client.put_object("bucket", "key")
        writer.write(TWO_PARTS)
        yield uploads, writer
        assert writer.closed


@pytest.mark.parametrize("then", [GONE, None], ids=["then gone", "lost twice"])
def test_complete_whose_answer_is_lost(then: Handler | None):
    """If the answer that the upload is complete gets lost, the object's ETag tells that it is stored."""
    with losing(then) as (uploads, writer):
        uploads.head["ETag"] = PARTS_ETAG
        writer.close()
        assert repr(writer).endswith(f"committed position={len(TWO_PARTS)} parts=2>")
        assert uploads.log[-3:] == ["Complete", "Complete", "Head"]


@pytest.mark.parametrize("then", [GONE, None], ids=["then gone", "lost twice"])
@pytest.mark.parametrize("is_asked_for", [True, False])
def test_complete_that_may_be_done(then: Handler | None, is_asked_for: bool):
    """If another object is there, or it cannot be asked for, the error says what is known of it."""
    faults = {} if is_asked_for else {"Head": fail(403, "AccessDenied")}
    with losing(then, **faults) as (uploads, writer):
        expected = "has another size, ETag or time" if is_asked_for else "is not known, as asking for it failed, too"
        with pytest.raises(RequestError if then else ConnectionFailedError, match=expected):
            writer.close()
        asked = ["Head"] if is_asked_for else ["Head", "Get"]  # a GET asks why HEAD was refused
        assert uploads.log[-3 - len(asked) :] == ["Complete", "Complete", *asked, "Abort"]


@pytest.mark.parametrize(
    ("size", "modified", "is_ours"),
    [
        (len(TWO_PARTS), "Sun, 01 Feb 2026 00:00:05 GMT", True),
        (len(TWO_PARTS), "Sat, 31 Jan 2026 23:59:59 GMT", False),
        (len(TWO_PARTS), None, False),
        (len(TWO_PARTS) - 1, "Sun, 01 Feb 2026 00:00:05 GMT", False),
    ],
)
def test_complete_without_md5s(size: int, modified: str | None, is_ours: bool):
    """Where ETags of parts are no MD5s, an object of the size that is as new as the upload is what was uploaded."""
    with losing(GONE, LARGE[:size]) as (uploads, writer):
        uploads.tags = '"part-{}"'
        uploads.head["Last-Modified"] = modified
        with contextlib.nullcontext() if is_ours else pytest.raises(RequestError, match="another size, ETag or time"):
            writer.close()


def test_complete_that_nobody_has_carried_out():
    """An upload that is gone at the first try was not completed by us: the object is not so much as looked at."""
    uploads = Uploads(Complete=GONE)
    with serving(uploads) as (_, client):
        with pytest.raises(RequestError, match="does not exist any more"), client.put_object("bucket", "key") as writer:
            writer.write(TWO_PARTS)
        assert uploads.log[-2:] == ["Complete", "Abort"]


def test_complete_that_takes_its_time():
    """White space that comes while S3 is at work is progress, however slowly it comes."""

    def handle(request: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            time.sleep(0.1)
            wire.send(b"1\r\n \r\n")
        wire.send(b"20\r\n<CompleteMultipartUploadResult/>\r\n0\r\n\r\n")

    uploads = Uploads(Complete=handle)
    with serving(uploads, max_attempts=1, stall_timeout=1.2, first_byte_timeout=1.3) as (_, client):
        with client.put_object("bucket", "key") as writer:
            writer.write(TWO_PARTS)
        assert uploads.log[-1] == "Complete"


@pytest.mark.parametrize("operation", ["Create", "Complete", "Abort"])
@pytest.mark.parametrize(
    "fault",
    [
        raw(b"SSH-2.0\r\n\r\n"),
        lambda request, wire: wire.respond(200, {}, b"<html>"),
        lambda request, wire: wire.respond(200, {}, b"<html></html>"),
        lambda request, wire: wire.respond(200),
        lambda request, wire: wire.respond(500, {}, b"<html>"),
        lambda request, wire: wire.reset(),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<html>"),
    ],
    ids=["not HTTP", "no XML", "other XML", "nothing", "500", "reset", "truncated"],
)
def test_nonsense_in_an_upload(operation: str, fault: Handler):
    """Whatever the rare requests are answered with, only our own errors come out."""
    uploads = Uploads(**{operation: fault})
    with serving(uploads, max_attempts=1) as (_, client):
        writer = client.put_object("bucket", "key")
        with contextlib.suppress(S3Error):
            writer.write(LARGE[: PART + 1])
            if operation == "Abort":
                writer.abort()
            else:
                writer.close()
        assert writer.closed


def test_failing_abort(caplog: pytest.LogCaptureFixture):
    """If giving up fails that is logged with the upload's id, and the exception that led to it is the one raised."""
    uploads = Uploads(Abort=fail(403, "AccessDenied"))
    with serving(uploads) as (_, client), caplog.at_level(logging.WARNING, "s3torch"):
        with pytest.raises(ZeroDivisionError), client.put_object("bucket", "key") as writer:
            write_and_raise(writer, LARGE, ZeroDivisionError)
        assert uploads.log.count("Abort") == 1  # a part that was under way may be answered later
    [record] = [record for record in caplog.records if record.name.startswith("s3torch")]
    assert "Upload UPLOAD of s3://bucket/key could not be aborted" in record.getMessage()


def test_abort_of_what_is_gone(caplog: pytest.LogCaptureFixture):
    """If the upload to give up is gone already, nothing is logged."""
    with serving(Uploads(Abort=GONE)) as (_, client), caplog.at_level(logging.WARNING, "s3torch"):
        writer = client.put_object("bucket", "key")
        writer.write(LARGE)
        writer.abort()
    assert not [record for record in caplog.records if record.name.startswith("s3torch")]


@pytest.mark.parametrize(("written", "log"), [(1000, []), (PART + 1, ["Create", "Part 1", "Abort"])])
def test_forgotten_writer(written: int, log: list[str]):
    """A writer that is collected open warns, sends nothing, and has its upload aborted by the next call that does."""
    uploads = Uploads()
    with serving(uploads) as (_, client):
        with pytest.warns(ResourceWarning, match=rf"s3://bucket/key open position={written} .*never closed"):
            client.put_object("bucket", "key").write(LARGE[:written])
        assert "Abort" not in uploads.log
        client._access.engine()
        assert uploads.objects == {}
    assert set(log) - {"Part 1"} <= set(uploads.log) <= set(log)  # it was under way


def test_writer_collected_in_the_middle_of_a_turn():
    """A writer that the collector finds while the engine turns sends nothing; the next call aborts its upload."""
    uploads = Uploads()
    with serving(where(lambda request: request.method == "GET", serve_object(SMALL), uploads)) as (_, client):
        writers = [client.put_object("bucket", "key")]
        writers[0].write(TWO_PARTS)
        engine = client._access.engine()
        while engine.pending:
            engine.turn()
        turns = []

        def place(content_range: ContentRange) -> memoryview:
            writers.clear()
            turns.append(repr(engine))
            return memoryview(bytearray(content_range.stop))

        with pytest.warns(ResourceWarning, match="never closed"):
            engine.run([GetObject(client._access.bucket("bucket"), "key", 0, len(SMALL), place)])
        assert turns == ["<Engine 1 in flight, 0 queued, 1 connections, 3 requests>"]
        assert "Abort" not in uploads.log
        client._access.engine()
        assert uploads.log == ["Create", "Part 1", "Abort"]


def test_early_refusal_of_an_upload(monkeypatch: pytest.MonkeyPatch, transport: Tls | None):
    """A server that refuses a body before it has read it is understood, and its connection not used again."""
    is_understood = threading.Event()

    class HastyWire(Wire):
        """Answers as soon as a request begins, and reads no more of it."""

        def read_request(self, connection: int) -> Request | None:
            self._sock.recv(100)
            self.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            is_understood.wait(10.0)

    monkeypatch.setattr(listener, "Wire", HastyWire)
    with serving(Uploads(), transport, part_size=64 * MiB) as (server, client):
        writer = client.put_object("bucket", "key")
        writer.write(bytes(64 * MiB))  # more than the kernel's buffers take
        with pytest.raises(AccessDeniedError) as caught:
            writer.close()
        is_understood.set()
        assert (caught.value.attempts, server.connections) == (1, 1)
        assert repr(client._access.engine()) == "<Engine 0 in flight, 0 queued, 0 connections, 1 requests>"
