"""Tests of proxies: what is asked of them, what their answers mean, and connections through them."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator

import pytest

from s3torch._transfer.connection import Address, Network, Origin
from s3torch._transfer.engine import Engine
from s3torch._transfer.flight import Limits
from s3torch._transfer.proxy import Proxy
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import ConnectionFailedError, ProxyError, ProxyRefusedError
from tests.support.networks import ScriptedProxy, black_hole, lead
from tests.support.server import ScriptedServer

from .test_connection import Ask, Authority, at, greet

PROXY = Proxy("proxy.test", 3128, Proxy.basic("user", "secret"))
WHERE = "https://bucket.test:443"


def test_what_is_asked():
    """CONNECT names host and port, and says who asks."""
    assert PROXY.tunnel_request("bucket.test", 443) == (
        b"CONNECT bucket.test:443 HTTP/1.1\r\nHost: bucket.test:443\r\n"
        b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n"
    )
    assert Proxy("::1", 1).tunnel_request("::1", 9000) == b"CONNECT [::1]:9000 HTTP/1.1\r\nHost: [::1]:9000\r\n\r\n"


def test_it_shows_no_password():
    """Neither the text of a proxy nor that of its errors shows who asks."""
    for text in (repr(PROXY), str(PROXY), str(PROXY.failure(WHERE, "it is ill")), str(PROXY.refusal(WHERE, 407))):
        assert "proxy.test" in text
        assert "secret" not in text
        assert "dXNlcjpzZWNyZXQ=" not in text
    assert str(Proxy("::1", 80)) == "http://[::1]:80"


GOOD = [
    b"HTTP/1.1 200 Connection established\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
    b"HTTP/1.1 204\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nVia: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" * 15 + b"HTTP/1.1 200 OK\r\n\r\n",
]


@pytest.mark.parametrize("answer", GOOD)
def test_it_leads(answer: bytes):
    """Any 2xx is a tunnel once its head is whole, however it is cut (RFC 9110 9.3.6)."""
    for stop in range(len(answer)):
        assert not PROXY.leads(answer[:stop], WHERE, has_ended=False)
        with pytest.raises(ProxyError, match="closed the connection instead of an answer"):
            PROXY.leads(answer[:stop], WHERE, has_ended=True)
    assert PROXY.leads(answer, WHERE, has_ended=False)


@pytest.mark.parametrize(
    ("answer", "kind", "status", "text"),
    [
        (b"HTTP/1.1 407 Who?\r\n", ProxyRefusedError, 407, "wants another user name and password"),
        (b"HTTP/1.1 401 Unauthorized\r\n", ProxyRefusedError, 401, "wants another user name and password"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 99\r\n", ProxyRefusedError, 403, "has a rule against it"),
        (b"HTTP/1.1 405 No\r\n\r\n<html>", ProxyRefusedError, 405, "has a rule against it"),
        (b"HTTP/1.1 502 Bad Gateway\r\n", ProxyError, 502, "could not reach https://bucket.test:443"),
        (b"HTTP/1.1 503\r\n", ProxyError, 503, "could not reach"),
        (b"HTTP/1.1 302 Found\r\n", ProxyError, 302, "could not reach"),
        (b"SSH-2.0-OpenSSH\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/1.1 20 OK\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/2 200\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/1.1 000 Nothing\r\n\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\nSSH\r\n", ProxyError, None, "no HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 Who?\r\n", ProxyRefusedError, 407, "wants another"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 No\r\n", ProxyError, 502, "could not reach"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 16, ProxyError, None, "more than 16 interim answers"),
        (b"HTTP/1.1 100 Continue\r\nX: y" + b"y" * 70_000, ProxyError, None, "more than the head"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", ProxyError, None, "more than the head"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, ProxyError, None, "more than the head"),
    ],
)
def test_it_does_not_lead(answer: bytes, kind: type[Exception], status: int | None, text: str):
    """What is no tunnel is an error that names the proxy and says what to do."""
    with pytest.raises(kind, match=text) as caught:
        PROXY.leads(answer, WHERE, has_ended=False)
    assert caught.value.status == status
    assert "http://proxy.test:3128" in str(caught.value)


def test_what_another_attempt_may_not_meet():
    """A proxy that has failed is tried again; one that refuses is not: it might lock the user out."""
    policy = RetryPolicy()
    assert policy.pause(PROXY.refusal(WHERE, 407), 1, was_reached=True, jitter=0.5) is None
    assert policy.pause(PROXY.refusal(WHERE, 502), 1, was_reached=True, jitter=0.5) is not None
    assert policy.pause(PROXY.failure(WHERE, "it is ill"), 1, was_reached=True, jitter=0.5) is not None


# Connections


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.contextmanager
def engine_by(proxy: Proxy, authority: Authority, *, attempts: int = 1, timeout: float = 10.0) -> Iterator[Engine]:
    network = Network(authority.client, proxy=lambda origin: proxy)
    policy = RetryPolicy(max_attempts=attempts, base=0.0)
    with contextlib.closing(Engine(network, policy, Limits(connect_timeout=timeout))) as engine:
        yield engine


def byte_by_byte(sock: socket.socket, head: bytes) -> None:
    """Lead to the server, with an answer that comes in pieces."""
    for byte in GOOD[0][:-1]:
        sock.sendall(bytes([byte]))
    lead(sock, head, answer=GOOD[0][-1:])


def interim(sock: socket.socket, head: bytes) -> None:
    """Lead to the server, after an interim answer."""
    lead(sock, head, answer=b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD[0])


@pytest.mark.parametrize("act", [lead, byte_by_byte, interim])
def test_tls_through_a_tunnel(authority: Authority, act: Callable[[socket.socket, bytes], None]):
    """TLS goes through the tunnel to the server, which is verified by its own name, and the connection is kept."""
    with ScriptedServer(greet, authority.server("localhost")) as server, ScriptedProxy(act) as proxy:
        with engine_by(Proxy("127.0.0.1", proxy.port, "Basic secret"), authority) as engine:
            for _ in range(3):
                ask = Ask(at(server))
                engine.run([ask])
                assert ask.body == b"hello"
        assert len(proxy.heads) == 1
        assert proxy.heads[0].startswith(f"CONNECT localhost:{server.port} HTTP/1.1\r\n".encode())
        assert all(name.lower() != "proxy-authorization" for request in server.requests for name in request.headers)


def test_plain_http_goes_to_the_proxy():
    """Without TLS the request goes to the proxy as it is: it has the absolute form."""
    with ScriptedServer(greet) as server:
        network = Network(proxy=lambda origin: Proxy("127.0.0.1", server.port))
        with contextlib.closing(Engine(network)) as engine:
            ask = Ask(Origin("http", "nowhere.invalid", 80))
            engine.run([ask])
    assert ask.body == b"hello"


@pytest.mark.parametrize(
    ("act", "kind", "tries"),
    [
        (lambda sock, head: sock.sendall(b"HTTP/1.1 407 Who?\r\n\r\n"), ProxyRefusedError, 1),
        (lambda sock, head: sock.sendall(b"HTTP/1.1 403 No\r\n\r\n"), ProxyRefusedError, 1),
        (lambda sock, head: sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), ProxyError, 3),
        (lambda sock, head: None, ProxyError, 3),
        (functools.partial(lead, answer=GOOD[0] + b"more"), ProxyError, 3),
    ],
)
def test_proxies_that_do_not_lead(
    authority: Authority, act: Callable[[socket.socket, bytes], None], kind: type[Exception], tries: int
):
    """What refuses is asked once, what has failed is asked again."""
    with ScriptedServer(greet, authority.server("localhost")) as server, ScriptedProxy(act) as proxy:
        with engine_by(Proxy("127.0.0.1", proxy.port), authority, attempts=3) as engine:
            with pytest.raises(kind) as caught:
                engine.run([Ask(at(server))])
            assert len(proxy.heads) == tries == caught.value.attempts
            assert repr(engine) == "<Engine 0 in flight, 0 queued, 0 connections, 0 requests>"
        assert server.connections <= tries


def test_a_proxy_that_is_dead(authority: Authority):
    """A proxy that swallows packets, or takes the connection and says nothing, is its own error after the deadline."""
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, black_hole() as hole:
        for _, (_, port) in (hole, (0, silent.getsockname())):
            proxy = Proxy("127.0.0.1", port)
            with (
                engine_by(proxy, authority, timeout=0.3) as engine,
                pytest.raises(ProxyError, match="does not answer in time"),
            ):
                engine.run([Ask(Origin("https", "bucket.test", 443))])


def test_a_proxy_without_an_address(authority: Authority):
    """A proxy whose name is not known is named, and not the endpoint."""

    def lookup(host: str, port: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    network = Network(authority.client, lookup=lookup, proxy=lambda origin: PROXY)
    with contextlib.closing(network), pytest.raises(ProxyError, match=r"http://proxy\.test:3128 .* not be resolved"):
        network.open(Origin("https", "bucket.test", 443))


def test_a_server_that_breaks_off_behind_a_proxy(authority: Authority):
    """What the server does is no fault of the proxy, but the error says that there is one."""

    def accept_and_close(sock: socket.socket, head: bytes) -> None:
        sock.sendall(GOOD[0])
        sock.recv(1)

    with ScriptedProxy(accept_and_close) as proxy, engine_by(Proxy("127.0.0.1", proxy.port), authority) as engine:
        with pytest.raises(ConnectionFailedError, match=rf"by the proxy http://127\.0\.0\.1:{proxy.port}") as caught:
            engine.run([Ask(Origin("https", "bucket.test", 443))])
        assert not isinstance(caught.value, ProxyError)


def test_nothing_is_logged_of_a_password(authority: Authority, caplog: pytest.LogCaptureFixture):
    """Whatever the level, the log shows nothing of who asks."""
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(greet, authority.server("localhost")) as server, ScriptedProxy() as proxy:
        named = Proxy("127.0.0.1", proxy.port, Proxy.basic("user", "secret"))
        with engine_by(named, authority) as engine:
            engine.run([Ask(at(server))])
    assert b"dXNlcjpzZWNyZXQ=" in proxy.heads[0]
    assert "dXNlcjpzZWNyZXQ=" not in caplog.text
