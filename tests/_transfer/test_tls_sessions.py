"""Tests of new TLS connections that go on from what an earlier one has agreed on."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from s3torch._transfer import tls_sessions
from s3torch._transfer.connection import Network
from s3torch._transfer.tls_sessions import TlsSessions, sessions_of
from s3torch.errors import ConnectionFailedError
from tests.support.server import Request, ScriptedServer, Wire

from .network import ORIGIN
from .test_connection import Ask, Authority, at, engine_of, greet


class Handshakes:
    """Wraps the sockets of a server, and knows which of them went on from a session."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.resumed: list[bool | None] = []
        self._sockets: list[ssl.SSLSocket] = []

    def __call__(self, sock: socket.socket, _number: int) -> socket.socket:
        self._sockets.append(self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False))
        return self._sockets[-1]

    def greet(self, request: Request, wire: Wire) -> None:
        self.resumed.append(self._sockets[request.connection - 1].session_reused)
        greet(request, wire)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[tuple[ScriptedServer, Handshakes]]:
    handshakes = Handshakes(context)
    with ScriptedServer(handshakes.greet, context, welcome=handshakes) as server:
        yield server, handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_connections_go_on_from_a_session(authority: Authority, version: ssl.TLSVersion):
    """Once a connection has carried an answer, the next ones need no whole handshake, in other engines either."""
    context, ours = authority.server("localhost"), authority.client()
    context.maximum_version = version
    with serving(context) as (server, handshakes):
        for _ in range(2):
            with engine_of(Network(lambda: ours)) as engine:
                for _ in range(2):
                    ask = Ask(at(server))
                    engine.run([ask])
                    assert ask.body == b"hello"
                    engine.reset()
        assert handshakes.resumed == [False, True, True, True]


def test_another_context_has_no_session(authority: Authority):
    """A session is used with the context that has verified its server, and for the same host and port."""
    with serving(authority.server("localhost")) as (server, handshakes):
        for _ in range(2):
            ours = authority.client()
            with engine_of(Network(lambda ours=ours: ours)) as engine:
                engine.run([Ask(at(server))])
        assert handshakes.resumed == [False, False]


def test_a_server_that_has_forgotten(authority: Authority):
    """A server that does not know the session any more has a whole handshake, and nobody notices."""
    ours = authority.client()
    with serving(authority.server("localhost")) as (server, handshakes), engine_of(Network(lambda: ours)) as engine:
        engine.run([Ask(at(server))])
        engine.reset()
        handshakes.context = authority.server("localhost")  # its keys for tickets are others
        ask = Ask(at(server))
        engine.run([ask])
        assert (ask.body, ask.attempts) == (b"hello", 1)
        assert handshakes.resumed == [False, False]


def test_a_server_that_fails_with_sessions(authority: Authority):
    """After a handshake that went on from a session and failed, no session of that server is used again."""
    ours = authority.client()
    with (
        serving(authority.server("localhost")) as (server, handshakes),
        engine_of(Network(lambda: ours), max_attempts=3) as engine,
    ):
        origin, good = at(server), handshakes.context
        engine.run([Ask(origin)])
        engine.reset()
        assert sessions_of(ours).find(origin) is not None
        handshakes.context = broken = authority.server("localhost")
        broken.maximum_version = ssl.TLSVersion.TLSv1_2
        broken.set_ciphers("PSK")  # which nobody can agree on
        with pytest.raises(ConnectionFailedError):
            engine.run([Ask(origin)])
        assert sessions_of(ours).find(origin) is None
        handshakes.context = good
        for _ in range(2):
            engine.run([Ask(origin)])
            engine.reset()
        assert handshakes.resumed == [False] * 3


class Socket:
    """A TLS socket that counts how often its session is taken."""

    has_ticket = True
    id = b"x"

    def __init__(self, *, has_session: bool = True) -> None:
        self.taken = 0
        self._session = self if has_session else None

    @property
    def session(self) -> Any:
        self.taken += 1
        return self._session


def test_a_session_is_taken_once_a_minute():
    """To take a session costs a copy: one is used for a minute by all connections."""
    sessions, sock, other = TlsSessions(), Socket(), Socket()
    sessions.note(ORIGIN, sock, 0.0)
    for _ in range(3):
        sessions.note(ORIGIN, other, 59.0)
    assert (sock.taken, other.taken, sessions.find(ORIGIN)) == (1, 0, sock)
    sessions.note(ORIGIN, other, 60.0)
    assert sessions.find(ORIGIN) is other
    assert sessions.find(ORIGIN._replace(port=81)) is None


def test_a_server_without_sessions():
    """A server that gives none is asked again, and nothing is used."""
    sessions = TlsSessions()
    sessions.note(ORIGIN, Socket(has_session=False), 0.0)
    assert sessions.find(ORIGIN) is None
    sessions.refuse(ORIGIN)
    sessions.note(ORIGIN, Socket(), 0.0)
    assert sessions.find(ORIGIN) is None


def test_sessions_end_with_their_context():
    """A context that is gone leaves no session behind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert sessions_of(context) is sessions_of(context)
    count = len(tls_sessions._of_contexts)
    del context
    gc.collect()
    assert len(tls_sessions._of_contexts) < count
