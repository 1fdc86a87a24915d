"""Tests of the misbehaving server: each fault is what a client sees it as."""

import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from .server import (
    Request,
    ScriptedServer,
    Wire,
    fail,
    first,
    s3_error,
    serve_object,
    tls_contexts,
)

_CONTENT = bytes(range(10))
_TIMEOUT = 60.0


@contextmanager
def _connection(server: ScriptedServer) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)) as client:
        yield client


def _raw_tcp(server: ScriptedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=_TIMEOUT)


def _drain(sock: socket.socket) -> None:
    sock.settimeout(_TIMEOUT)
    while sock.recv(65536):
        pass


@contextmanager
def _raw(server: ScriptedServer) -> Iterator[socket.socket]:
    """A bare connection that has sent one GET request."""
    with _raw_tcp(server) as sock:
        sock.sendall(b"GET /raw HTTP/1.1\r\nHost: h\r\n\r\n")
        yield sock


@contextmanager
def _tls_raw(server: ScriptedServer, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with _raw_tcp(server) as sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(b"GET /raw HTTP/1.1\r\nHost: h\r\n\r\n")
        yield tls


def _exchange(
    client: http.client.HTTPConnection,
    method: str = "GET",
    path: str = "/b/k",
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    client.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
    response = client.getresponse()
    return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()


def test_records_what_it_received():
    """Requests are kept in order, with their connection; a kept connection is used again."""
    with ScriptedServer(lambda request, wire: wire.respond(200)) as server:
        with _connection(server) as client:
            assert _exchange(client, "PUT", "/b/k?x=1", b"body", X_Name=" v ")[0] == 200
            assert _exchange(client)[2] == b""
        with _connection(server) as client:
            client.request("PUT", "/chunks", iter([b"ab", b"c"]), encode_chunked=True)
            assert client.getresponse().read() == b""
    one, two, three = server.requests
    assert (one.method, one.target, one.path) == ("PUT", "/b/k?x=1", "/b/k")
    assert (one.headers["x-name"], one.body) == ("v", b"body")
    assert (two.method, two.body, three.body) == ("GET", b"", b"abc")
    assert [one.connection, two.connection, three.connection] == [1, 1, 2]
    assert one.time <= two.time <= three.time
    assert server.connections == 2
    assert repr(server) == f"ScriptedServer('{server.endpoint}', connections=2, requests=3)"


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=0-3", 206, "bytes 0-3/10", _CONTENT[:4]),
        ("bytes=4-", 206, "bytes 4-9/10", _CONTENT[4:]),
        ("bytes=8-99", 206, "bytes 8-9/10", _CONTENT[8:]),
        ("bytes=-3", 206, "bytes 7-9/10", _CONTENT[7:]),
        ("bytes=-99", 206, "bytes 0-9/10", _CONTENT),
        ("bytes=10-", 416, "bytes */10", s3_error("InvalidRange")),
        ("bytes=-0", 416, "bytes */10", s3_error("InvalidRange")),
        ("bytes=3-1", 200, None, _CONTENT),
        ("bytes=0-1,3-4", 200, None, _CONTENT),
    ],
)
def test_serves_ranges(asked, status, content_range, body):
    """Each kind of range has the status, the Content-Range and the bytes of RFC 9110."""
    with ScriptedServer(serve_object(_CONTENT)) as server, _connection(server) as client:
        answer, headers, received = _exchange(client, Range=asked)
    assert (answer, headers.get("content-range"), received) == (status, content_range, body)


def test_serves_an_object():
    """GET and HEAD agree; another path, ETag or method is refused; the connection is kept."""
    handler = serve_object(_CONTENT, etag='"v1"', path="/b/k")
    with ScriptedServer(handler) as server, _connection(server) as client:
        status, headers, body = _exchange(client, If_Match='"v1"')
        assert (status, headers["etag"], body) == (200, '"v1"', _CONTENT)
        status, headers, body = _exchange(client, "HEAD")
        assert (status, headers["content-length"], body) == (200, "10", b"")
        status, _, body = _exchange(client, If_Match='"v2"')
        assert (status, body) == (412, s3_error("PreconditionFailed"))
        assert _exchange(client, path="/b/other")[0] == 404
        assert _exchange(client, "DELETE")[0] == 405
    assert server.connections == 1


def test_first_requests_fail():
    """The first n requests get the fault, the later ones the object."""
    slow_down = fail(503, "SlowDown", "a < b", {"Retry-After": "1"})
    handler = first(2, slow_down, serve_object(_CONTENT))
    with ScriptedServer(handler) as server, _connection(server) as client:
        answers = [_exchange(client) for _ in range(3)]
    assert [status for status, _, _ in answers] == [503, 503, 200]
    assert b"<Code>SlowDown</Code><Message>a &lt; b</Message>" in answers[0][2]
    assert answers[0][1]["retry-after"] == "1"


def test_truncates():
    """A FIN within the body is an incomplete read."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(200, {"Content-Length": "10"}, b"abc")
        wire.close()

    with ScriptedServer(handle) as server, _connection(server) as client:
        with pytest.raises(http.client.IncompleteRead) as caught:
            _exchange(client)
        assert caught.value.partial == b"abc"


def test_sends_what_it_is_told():
    """The length can be left out, the reason phrase chosen, and anything sent raw."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(599, {"Content-Length": None}, b"body", "Odd")
        wire.send(b"\x00junk")
        wire.close()

    with ScriptedServer(handle) as server, _raw(server) as sock, sock.makefile("rb") as stream:
        assert stream.read() == b"HTTP/1.1 599 Odd\r\n\r\nbody\x00junk"


def test_resets():
    """A RST is a connection reset."""
    with (
        ScriptedServer(lambda request, wire: wire.reset()) as server,
        _raw(server) as sock,
        pytest.raises(ConnectionResetError),
    ):
        sock.recv(1)


def test_refuses_further_connections():
    """After it, a new connection is refused, and the old one is served."""

    def handle(request: Request, wire: Wire) -> None:
        wire.refuse_further()
        wire.respond(200)

    with ScriptedServer(handle) as server, _connection(server) as client:
        assert _exchange(client)[0] == 200
        with pytest.raises(ConnectionRefusedError), _raw(server):
            pass
        assert _exchange(client)[0] == 200


def test_stalls_until_the_client_leaves():
    """A stalled client hears nothing; when it closes, the handler returns."""
    returned = threading.Event()

    def handle(request: Request, wire: Wire) -> None:
        wire.send(b"H")
        wire.stall()
        returned.set()

    with ScriptedServer(handle) as server:
        with _raw(server) as sock:
            assert sock.recv(2) == b"H"
            assert not returned.is_set()
        assert returned.wait(_TIMEOUT)


def test_exit_ends_a_stall():
    """The end of the block closes a stalled connection, and one that never asked."""
    stalled = threading.Event()

    def handle(request: Request, wire: Wire) -> None:
        stalled.set()
        wire.stall()

    server = ScriptedServer(handle)
    with server, _raw_tcp(server) as idle, _raw(server) as sock:
        assert stalled.wait(_TIMEOUT)
        server.__exit__(None, None, None)
        assert sock.recv(1) == b""
        assert idle.recv(1) == b""


def test_raises_what_the_handler_raised():
    """A failed assertion in a handler fails the test."""

    def handle(request: Request, wire: Wire) -> None:
        raise AssertionError("in the handler")

    with (
        pytest.raises(AssertionError, match="in the handler"),
        ScriptedServer(handle) as server,
        _raw(server) as sock,
    ):
        assert sock.recv(1) == b""


def test_answers_expect():
    """A client that asks whether to send its body is told to."""
    with (
        ScriptedServer(lambda request, wire: wire.respond(200)) as server,
        _raw_tcp(server) as sock,
    ):
        sock.sendall(b"PUT /k HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ab")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.requests[0].body == b"ab"


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that trusts it."""
    server_context, authority = tls_contexts(tmp_path_factory.mktemp("tls"))
    return server_context, ssl.create_default_context(cafile=authority)


def test_serves_tls(tls):
    """A client that trusts the authority reads the object; an idle handshake does not block exit."""
    with ScriptedServer(serve_object(_CONTENT), tls=tls[0]) as server:
        assert server.endpoint == f"https://localhost:{server.port}"
        client = http.client.HTTPSConnection("localhost", server.port, timeout=_TIMEOUT, context=tls[1])
        with closing(client), _raw_tcp(server):
            assert _exchange(client, Range="bytes=2-3")[2] == _CONTENT[2:4]
            assert _exchange(client)[2] == _CONTENT


def test_a_tls_client_may_refuse(tls):
    """A client that does not trust the authority is no error of the server."""
    with (
        ScriptedServer(serve_object(_CONTENT), tls=tls[0]) as server,
        pytest.raises(ssl.SSLCertVerificationError),
        _tls_raw(server, ssl.create_default_context()),
    ):
        pass
    assert server.connections == 1
    assert server.requests == []


@pytest.mark.parametrize("close_notify", [True, False])
def test_closes_tls(tls, close_notify):
    """With a close_notify the end is orderly; without, it is an error of TLS."""
    handler = ScriptedServer(lambda _, wire: wire.close(close_notify=close_notify), tls=tls[0])
    with handler as server, _tls_raw(server, tls[1]) as sock:
        sock.suppress_ragged_eofs = False
        if close_notify:
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ssl.SSLEOFError):
                sock.recv(1)


def test_resets_tls(tls):
    """A RST is one under TLS too."""
    with (
        ScriptedServer(lambda _, wire: wire.reset(), tls=tls[0]) as server,
        _tls_raw(server, tls[1]) as sock,
        # Below TLS, for the ssl module reports a reset as an end of file.
        socket.socket(fileno=os.dup(sock.fileno())) as tcp,
        pytest.raises(ConnectionResetError),
    ):
        _drain(tcp)


def test_exit_ends_a_tls_stall(tls):
    """The end of the block wakes a stalled TLS connection."""
    stalled = threading.Event()

    def handle(request: Request, wire: Wire) -> None:
        stalled.set()
        wire.stall()

    with ScriptedServer(handle, tls=tls[0]) as server, _tls_raw(server, tls[1]) as sock:
        assert stalled.wait(_TIMEOUT)
        server.__exit__(None, None, None)
        assert sock.recv(1) == b""
