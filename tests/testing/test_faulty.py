"""Tests of the server that fails as it is told to: each fault does on the wire what it says."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3torch import S3Client
from s3torch.errors import CertificateError, ConnectionFailedError
from s3torch.testing import FaultyServer, FaultyServerError, faults

CONTENT = bytes(range(256)) * 8
KEY = "/bucket/key"
_TIMEOUT = 60.0
Answered = tuple[int, dict[str, str], bytes]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A running server with one object."""
    with FaultyServer({"key": CONTENT}, seed=1) as server:
        yield server


def connect(server: FaultyServer) -> socket.socket:
    """Return a connection."""
    port = int(server.endpoint.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)


def ask(server: FaultyServer, path: str = KEY, method: str = "GET", body: bytes = b"", **fields: str) -> Answered:
    """Return status, fields by lower-case name, and body of an answer, by a connection of its own."""
    host = server.endpoint.partition("//")[2]
    with contextlib.closing(http.client.HTTPConnection(host, timeout=_TIMEOUT)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in fields.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def raw(server: FaultyServer, path: str = KEY) -> bytes:
    """Return all that is sent until the connection ends."""
    with connect(server) as sock, sock.makefile("rb") as stream:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        return stream.read()


# The bucket


def test_reads(server: FaultyServer):
    """GET, HEAD, ranges and If-Match are answered as by S3."""
    status, fields, body = ask(server)
    assert (status, body) == (200, CONTENT)
    etag = fields["etag"]
    assert ask(server, method="HEAD")[1]["content-length"] == str(len(CONTENT))
    status, fields, body = ask(server, range="bytes=10-19", if_match=etag)
    assert (status, fields["content-range"], body) == (206, f"bytes 10-19/{len(CONTENT)}", CONTENT[10:20])
    assert ask(server, if_match='"other"')[0] == 412
    assert ask(server, range="bytes=9999-")[0] == 416
    assert ask(server, "/bucket/nothing")[0] == 404
    assert b"NoSuchBucket" in ask(server, "/nothing/key")[2]
    assert ask(server, method="PATCH")[0] == 405


def test_writes(server: FaultyServer):
    """PUT, copies and DELETE change the mapping, whose keys may be any text."""
    assert ask(server, "/bucket/a%20%C3%A4", "PUT", b"new")[0] == 200
    assert server.objects["a ä"] == b"new"
    assert ask(server, "/bucket/copy", "PUT", x_amz_copy_source="/bucket/a%20%C3%A4")[0] == 200
    assert ask(server, "/bucket/a%20%C3%A4", "DELETE")[0] == 204
    assert dict(server.objects) == {"key": CONTENT, "copy": b"new"}
    assert repr(server.objects) == "<Objects of 'bucket': 2 objects, 0 uploads>"


def test_uploads_in_parts(server: FaultyServer):
    """An upload appears when it is completed, of the parts that are named; an aborted one never."""
    for number in (1, 2):
        assert f"upload-{number}".encode() in ask(server, "/bucket/large?uploads", "POST")[2]
    for number in (1, 2, 3):
        where = f"/bucket/large?partNumber={number}&uploadId=upload-1"
        assert ask(server, where, "PUT", b"x" * number)[0] == 200
    assert "large" not in server.objects
    named = b"<Part><PartNumber>1</PartNumber></Part><Part><PartNumber>3</PartNumber></Part>"
    assert ask(server, "/bucket/large?uploadId=upload-1", "POST", named)[0] == 200
    assert server.objects["large"] == b"xxxx"
    assert server.objects.uploads == ["upload-2"]
    assert ask(server, "/bucket/large?uploadId=upload-2", "POST", named)[0] == 400
    assert ask(server, "/bucket/large?uploadId=upload-2", "DELETE")[0] == 204
    assert b"NoSuchUpload" in ask(server, "/bucket/large?uploadId=upload-2", "POST", named)[2]


def test_lists():
    """A listing is sorted and cut into pages, with prefix and delimiter."""
    keys = ["a/1", "a/2", "b/1", "c", "d&<ä", "d\n"]
    with FaultyServer(dict.fromkeys(keys, b"x")) as server:
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        pages = list(client.list_objects("bucket", max_keys=2))
        assert [info.key for page in pages for info in page.object_info] == sorted(keys, key=str.encode)
        assert [len(page.object_info) for page in pages] == [2, 2, 2]
        pages = list(client.list_objects("bucket", delimiter="/", max_keys=1))
        assert [page.common_prefixes for page in pages] == [["a/"], ["b/"], [], [], []]
        [page] = client.list_objects("bucket", prefix="a/")
        assert [info.size for info in page.object_info] == [1, 1]
        client.close()


# Faults


def test_script(server: FaultyServer):
    """Requests meet the faults of a script in order, and then all is well; a new script replaces the old."""
    server.script(faults.status(500), faults.none(), faults.status(503, "SlowDown"))
    assert [ask(server)[0] for _ in range(4)] == [500, 200, 503, 200]
    server.script(faults.status(500), faults.status(500))
    server.script()
    assert ask(server)[0] == 200
    assert server.injected == {"status 500": 1, "none": 1, "status 503 SlowDown": 1}
    assert [request.method for request in server.requests] == ["GET"] * 5
    assert "injected=3" in repr(server)


def test_on(server: FaultyServer):
    """A fault of some operations waits for one of them, in a script; an unknown name is refused."""
    server.script(faults.on("PutObject", fault=faults.status(500)), faults.status(503))
    assert [ask(server)[0], ask(server, method="PUT")[0], ask(server)[0]] == [200, 500, 503]
    server.script(faults.on("HEAD", fault=faults.status(500)))
    assert [ask(server)[0], ask(server, method="HEAD")[0]] == [200, 500]
    with pytest.raises(ValueError, match="GetObjects"):
        faults.on("GetObjects", fault=faults.none())


def test_statuses(server: FaultyServer):
    """A status comes with S3's XML or with nothing, and with its fields."""
    server.script(faults.status(503, "SlowDown", "a < b", fields={"Retry-After": "1"}), faults.status(404))
    status, fields, body = ask(server)
    assert (status, fields["retry-after"]) == (503, "1")
    assert b"<Code>SlowDown</Code><Message>a &lt; b</Message>" in body
    assert ask(server)[::2] == (404, b"")
    server.script(faults.expired_token, faults.wrong_region, faults.clock_skew)
    assert b"ExpiredToken" in ask(server)[2]
    assert ask(server)[1]["x-amz-bucket-region"] == "eu-west-1"
    assert b"RequestTimeTooSkewed" in ask(server)[2]


@pytest.mark.parametrize(
    "fault", [faults.reset_before_head, faults.reset_after_head, faults.reset_mid_body, faults.reset_after(3)]
)
def test_resets(server: FaultyServer, fault: faults.Fault):
    """A connection is reset."""
    server.script(fault)
    with pytest.raises(ConnectionResetError):
        raw(server)


def test_closes(server: FaultyServer):
    """A connection ends before its answer, within it or behind it."""
    server.script(faults.close_before_head)
    assert raw(server) == b""
    server.script(faults.truncate(3))
    assert raw(server).endswith(b"\r\n\r\n" + CONTENT[:3])
    server.script(faults.truncate)
    with pytest.raises(http.client.IncompleteRead):
        ask(server)
    for fault in (faults.close_idle, faults.connection_close, faults.until_close):
        server.script(fault)
        sent = raw(server)
        assert sent.endswith(b"\r\n\r\n" + CONTENT)
        assert (b"Connection: close" in sent) == (fault is not faults.close_idle)
        assert (b"Content-Length" in sent) == (fault is not faults.until_close)


def test_refuses(server: FaultyServer):
    """Connections are refused for a while."""
    server.script(faults.refuse(3.0))
    assert raw(server) == b""
    deadline = time.monotonic() + _TIMEOUT
    refused = 0
    while time.monotonic() < deadline:
        try:
            connect(server).close()
        except ConnectionResetError:
            pass  # it was waiting to be accepted
        except ConnectionRefusedError:
            refused += 1
            time.sleep(0.01)
        else:
            if refused:
                break
    assert refused
    assert ask(server)[0] == 200


def test_answer_lost(server: FaultyServer):
    """What was asked for is done, and not answered."""
    server.script(faults.answer_lost)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/bucket/new", "PUT", b"stored")
    assert server.objects["new"] == b"stored"


def test_slow(server: FaultyServer):
    """Answers begin late, pause in their middle, or come byte by byte, and are right."""
    server.script(faults.late(0.05), faults.stall(0.05), faults.trickle(0))
    for _ in range(3):
        assert ask(server)[2] == CONTENT


@pytest.mark.parametrize(("fault", "count"), [(faults.stall, len(CONTENT) // 2), (faults.stall_before_head, None)])
def test_stalls(server: FaultyServer, fault: Callable[[], faults.Fault], count: int | None):
    """Nothing more comes, until the client leaves."""
    server.script(fault)
    with connect(server) as sock:
        sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
        received = bytearray()
        while count and len(received.partition(b"\r\n\r\n")[2]) < count:
            received += sock.recv(65536)
        sock.settimeout(0.2)
        received += until_silence(sock)
    assert (received.partition(b"\r\n\r\n")[2] == CONTENT[:count]) if count else received == b""


def until_silence(sock: socket.socket) -> bytes:
    """Return what comes until nothing does for as long as the socket waits."""
    received = bytearray()
    with contextlib.suppress(TimeoutError):
        while octets := sock.recv(65536):
            received += octets
        raise AssertionError("the connection was closed")
    return bytes(received)


def test_wrong_heads(server: FaultyServer):
    """Lengths and ranges are told that are not the body's."""
    server.script(faults.wrong_length(5), faults.wrong_length(-5), faults.wrong_content_range(7))
    with connect(server) as sock, contextlib.closing(http.client.HTTPResponse(sock)) as response:
        sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        response.begin()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert ask(server)[2] == CONTENT[:-5]
    status, fields, body = ask(server, range="bytes=10-19")
    assert (status, fields["content-range"], body) == (206, f"bytes 17-26/{len(CONTENT)}", CONTENT[10:20])


def test_wrong_bodies(server: FaultyServer):
    """What comes is another range, the whole object, another version, or one bit that differs."""
    script = (faults.other_range, faults.other_range, faults.ignore_range, faults.other_version, faults.corrupt(3))
    server.script(*script)
    _, fields, body = ask(server, range="bytes=10-19")
    assert (fields["content-range"], body) == (f"bytes 9-18/{len(CONTENT)}", CONTENT[9:19])
    _, fields, body = ask(server, range="bytes=0-9")
    assert (fields["content-range"], body) == (f"bytes 1-9/{len(CONTENT)}", CONTENT[1:10])
    assert ask(server, range="bytes=10-19")[::2] == (200, CONTENT)
    _, fields, body = ask(server, range="bytes=10-19")
    assert (fields["etag"], body) == ('"another"', bytes(octet ^ 255 for octet in CONTENT[10:20]))
    body = ask(server)[2]
    assert [index for index in range(len(CONTENT)) if body[index] != CONTENT[index]] == [3]


def test_wrong_everything(server: FaultyServer):
    """Heads are no HTTP, too long, or never end."""
    server.script(faults.garbage_head)
    assert raw(server) == b"SSH-2.0-OpenSSH_9.7\r\n\r\n"
    server.script(faults.many_fields)
    assert raw_head(server).count(b"X-Filler-") == 10_000
    server.script(faults.endless_head)
    with connect(server) as sock:
        sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
        received = 0
        while received < 2_000_000:
            received += len(sock.recv(65536))


def raw_head(server: FaultyServer) -> bytes:
    """Return the head of an answer."""
    with connect(server) as sock, sock.makefile("rb") as stream:
        sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
        return b"".join(itertools.takewhile(lambda line: line != b"\r\n", stream))


def test_chunks(server: FaultyServer):
    """A body comes in chunks; one of 0 bytes, or of HEAD, does not."""
    server.script(*[faults.chunked(100)] * 3)
    _, fields, body = ask(server)
    assert (fields.get("transfer-encoding"), fields.get("content-length"), body) == ("chunked", None, CONTENT)
    assert ask(server, method="HEAD")[1]["content-length"] == str(len(CONTENT))
    assert ask(server, method="PUT")[0] == 200


def test_objects_that_change(server: FaultyServer):
    """Half of an object is sent when it is replaced or deleted; or it is empty when it is asked for."""
    for fault, left in ((faults.replaced(b"new"), b"new"), (faults.deleted(), None), (faults.emptied(), b"")):
        server.objects["key"] = CONTENT
        server.script(fault)
        if left == b"":
            assert ask(server)[2] == b""
        else:
            assert raw(server).endswith(b"\r\n\r\n" + CONTENT[: len(CONTENT) // 2])
        assert server.objects.get("key") == left


# Chance


def answers_by_chance(seed: int, paths: list[str]) -> list[int]:
    """Return the statuses of answers under two faults that are likely."""
    with FaultyServer(dict.fromkeys(map(str, range(10)), b"x"), seed=seed) as server:
        server.rates({faults.status(500): 0.3, faults.status(503): 0.3})
        return [ask(server, path)[0] for path in paths]


def test_rates_repeat():
    """A seed means the same faults for the same requests, in any order; another seed means others."""
    paths = [f"/bucket/{number % 10}" for number in range(50)]
    once = answers_by_chance(1, paths)
    assert answers_by_chance(1, paths) == once
    assert set(once) == {200, 500, 503}
    assert answers_by_chance(2, paths) != once
    shuffled = sorted(range(50), key=lambda index: paths[index])
    assert answers_by_chance(1, [paths[index] for index in shuffled]) == [once[index] for index in shuffled]


def test_positions_repeat():
    """A seed means the same positions."""
    bodies = []
    for _ in range(2):
        with FaultyServer({"key": CONTENT}, seed=3) as server:
            server.rates({faults.corrupt: 1})
            bodies.append([ask(server)[2] for _ in range(3)])
    assert bodies[0] == bodies[1]
    assert len(set(bodies[0])) == 3


def test_rates_end(server: FaultyServer):
    """No rates mean no faults; those that are more than certain are refused."""
    server.rates({faults.on("PUT", fault=faults.status(500)): 1})
    assert [ask(server)[0], ask(server, method="PUT")[0]] == [200, 500]
    server.rates({})
    assert ask(server, method="PUT")[0] == 200
    for shares in ({faults.late: 0.6, faults.stall: 0.6}, {faults.late: -0.1}):
        with pytest.raises(ValueError, match="rates must be"):
            server.rates(shares)


# The end


def test_everything_is_closed():
    """On exit no thread is left, and connections end, whatever they are in the midst of."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(FaultyServer({"key": CONTENT}))
        endless = (faults.stall(), faults.stall_before_head(), faults.late(60), faults.trickle(60), faults.refuse(60))
        server.script(*endless)
        socks = [stack.enter_context(connect(server)) for _ in endless]
        for number, sock in enumerate(socks, 1):
            sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
            while len(server.requests) < number:
                time.sleep(0.001)
        server.__exit__(None, None, None)
        assert set(threading.enumerate()) == before
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        assert len(server.requests) == len(endless)


def test_close_connections(server: FaultyServer):
    """What is under way ends, and its connection; the server can be used on."""
    server.script(faults.stall_before_head)
    with connect(server) as sock:
        sock.sendall(b"GET /bucket/key HTTP/1.1\r\n\r\n")
        while not server.injected:
            time.sleep(0.001)
        server.close_connections()
        assert sock.recv(1) == b""
    assert ask(server)[0] == 200


def test_not_started():
    """Before its block the server has no endpoint."""
    server = FaultyServer()
    with pytest.raises(FaultyServerError, match="with block"):
        _ = server.endpoint
    assert "not started" in repr(server)


# TLS


def tls_ask(server: FaultyServer, authority: Path | None) -> bytes:
    """Return the object by HTTPS."""
    host = server.endpoint.partition("//")[2]
    context = ssl.create_default_context(cafile=authority)
    with contextlib.closing(http.client.HTTPSConnection(host, timeout=_TIMEOUT, context=context)) as connection:
        connection.request("GET", KEY)
        return connection.getresponse().read()


def test_tls():
    """HTTPS is served to who trusts the authority, whose file is gone afterwards; faults of TLS are met in order."""
    with FaultyServer({"key": CONTENT}, tls=True) as server:
        authority = server.authority
        assert authority is not None
        assert tls_ask(server, authority) == CONTENT
        with pytest.raises(ssl.SSLCertVerificationError):
            tls_ask(server, None)
        server.script(faults.handshake_failure, faults.wrong_host, faults.expired_certificate)
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
            tls_ask(server, authority)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            tls_ask(server, authority)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            tls_ask(server, authority)
        assert tls_ask(server, authority) == CONTENT
        assert server.injected == {"handshake_failure": 1, "wrong_host": 1, "expired_certificate": 1}
    assert not authority.exists()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.handshake_failure, ConnectionFailedError),
        (faults.wrong_host, CertificateError),
        (faults.expired_certificate, CertificateError),
    ],
)
def test_connections_that_fail(fault: Callable[[], faults.ConnectionFault], error: type[Exception]):
    """A script of connections is met by a client that has some open; wrong certificates are not tried again."""
    with FaultyServer({"key": CONTENT}, tls=True) as server:
        config = replace(server.config, max_attempts=1)
        client = S3Client(endpoint=server.endpoint, s3client_config=config)
        assert client.read_range("bucket", "key", 0) == CONTENT
        server.script(fault)
        with pytest.raises(error):
            client.read_range("bucket", "key", 0)
        assert client.read_range("bucket", "key", 0) == CONTENT
        client.close()


def test_tls_without_trustme(monkeypatch: pytest.MonkeyPatch):
    """Without the package an error says what to install; nothing else needs it."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(FaultyServerError, match=r"pip install 's3torch\[faults\]'"):
        FaultyServer(tls=True)
    with FaultyServer({"key": CONTENT}) as server:
        assert ask(server)[2] == CONTENT


# Answers of something else than S3, and of other servers


@pytest.mark.parametrize(
    ("fault", "status", "start"),
    [
        (faults.page_for_people(), 200, b"<!DOCTYPE html>"),
        (faults.silent_success(), 200, b""),
        (faults.silent_success(204), 204, b""),
        (faults.silent_success(206), 206, b""),
        (faults.page_for_people(number=404), 404, b"<!DOCTYPE html>"),
        (faults.page_for_people(b"404 page not found", 404, "text/plain"), 404, b"404 page"),
        (faults.conflict(), 409, b"<?xml"),
        (faults.other_document(), 200, b"<?xml"),
        (faults.error_with_200("SlowDown"), 200, b"<?xml"),
    ],
)
def test_answers_that_store_nothing(server: FaultyServer, fault: faults.Fault, status: int, start: bytes):
    """Whatever the status is, nothing was stored, and there is no ETag."""
    server.script(fault)
    found, fields, body = ask(server, "/bucket/new", "PUT", b"new")
    assert (found, body[: len(start)], "etag" in fields) == (status, start, False)
    assert "new" not in server.objects


def test_answers_of_other_servers(server: FaultyServer):
    """Ranges, empty objects, fields and ETags are answered as servers do that are not Amazon S3."""
    etag = ask(server)[1]["etag"]
    server.objects["empty"] = b""
    server.script(faults.range_as_200())
    status, fields, body = ask(server, range="bytes=10-19")
    assert (status, fields["content-range"], body) == (200, f"bytes 10-19/{len(CONTENT)}", CONTENT[10:20])
    for told in ("bytes 0-0/0", "bytes 0--1/0", None):
        server.script(faults.empty_as_206(told))
        status, fields, body = ask(server, "/bucket/empty", range="bytes=0-9")
        assert (status, fields.get("content-range"), body) == (206, told, b"")
    server.script(faults.without_fields("ETag", "Content-Length"))
    assert not {"etag", "content-length"} & ask(server, method="HEAD")[1].keys()
    for form, written in (("{}", etag.strip('"')), ('W/"{}"', f"W/{etag}")):
        server.script(faults.etag_as(form))
        assert ask(server)[1]["etag"] == written


def test_pages_without_end(server: FaultyServer):
    """A page of a listing names another one: always the same, or always another, and may be empty."""
    for name, tokens in (("t", 1), (None, 3)):
        server.script(*[faults.another_page(name, is_empty=name is None)] * 3)
        pages = [ask(server, "/bucket?list-type=2")[2] for _ in range(3)]
        assert len({page.partition(b"<NextContinuationToken>")[2] for page in pages}) == tokens
        assert all(page.count(b"<IsTruncated>true</IsTruncated>") == 1 for page in pages)
        assert all((b"<Contents>" in page) == (name is not None) for page in pages)


def test_a_wrong_count(server: FaultyServer):
    """A page of a listing tells another number of entries than it has."""
    count = len(server.objects)
    for by, told in ((1, count + 1), (-100, 0)):
        server.script(faults.wrong_count(by))
        assert b"<KeyCount>%d</KeyCount>" % told in ask(server, "/bucket?list-type=2")[2]
    server.script(faults.wrong_count())
    client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
    assert len(next(client.list_objects("bucket")).object_info) == count  # by the next request
    client.close()


@pytest.mark.parametrize("numbers", [(), (100,), (103, 102, 100)])
def test_interim_answers(server: FaultyServer, numbers: tuple[int, ...]):
    """What comes before the answer is none, for any operation."""
    server.rates({faults.interim(*numbers): 1})
    client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
    assert client.read_range("bucket", "key", 0) == CONTENT
    assert client.head_object("bucket", "key").size == len(CONTENT)
    assert sum(len(page.object_info) for page in client.list_objects("bucket")) == len(server.objects)
    with client.put_object("bucket", "new") as writer:
        writer.write(bytes(6 * 1024 * 1024))
    client.copy_object("bucket", "new", "bucket", "copy")
    client.delete_object("bucket", "new")
    assert server.objects["copy"] == bytes(6 * 1024 * 1024)
    client.close()


def test_conflicts_are_tried_again(server: FaultyServer):
    """A write that met another one at the same time succeeds by the next request."""
    client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
    for size in (10, 6 * 1024 * 1024):
        server.script(faults.conflict())
        with client.put_object("bucket", "new") as writer:
            writer.write(bytes(size))
        assert server.objects["new"] == bytes(size)
    server.script(faults.conflict())
    client.delete_object("bucket", "new")
    assert "new" not in server.objects
    client.close()


def test_a_condition_that_is_ignored(server: FaultyServer):
    """What must be new replaces what is there."""
    assert ask(server, KEY, "PUT", b"new", if_none_match="*")[0] == 412
    server.script(faults.ignore_condition())
    assert ask(server, KEY, "PUT", b"new", if_none_match="*")[0] == 200
    assert server.objects["key"] == b"new"


@pytest.mark.parametrize(
    "fault",
    [
        faults.range_as_200(),
        faults.without_fields("ETag"),
        faults.etag_as("{}"),
        faults.etag_as('W/"{}"'),
    ],
)
def test_other_servers_are_read(server: FaultyServer, fault: faults.Fault):
    """A client reads from servers that are always like this."""
    server.rates({faults.on("GetObject", "HeadObject", fault=fault): 1})
    client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
    assert client.get_object("bucket", "key").read() == CONTENT
    assert client.head_object("bucket", "key").size == len(CONTENT)
    client.close()
