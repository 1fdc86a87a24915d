"""Tests of connections over real loopback sockets and TLS, and of the fake network that the engine's tests use."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

from s3torch._transfer.connection import READ, WRITE, Address, AddressBook, Connection, ConnectionState, Network, Origin
from s3torch._transfer.engine import Engine
from s3torch._transfer.exchange import Exchange
from s3torch._transfer.http1 import Inbox, read_head, read_small_body
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import CertificateError, ConnectionFailedError, S3Error
from tests.support.collecting import collect_what_others_left
from tests.support.server import Request, ScriptedServer, Wire

from .network import ORIGIN, FakeConnection, FakeNetwork, Peer, never, refuse

PATIENCE = 60.0  # seconds that something is waited for that is about to happen

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")


# One suite for the fake network and the real one


class FakeLab:
    """The fake network, with peers that a test moves by hand."""

    def __init__(self) -> None:
        self.network = FakeNetwork(then=never, window=1000)
        self.origin = ORIGIN

    def accept(self) -> Peer:
        peer = self.network.peers[-1]
        peer.accept()
        return peer

    def refusing(self) -> tuple[FakeNetwork, Origin]:
        return FakeNetwork(refuse), ORIGIN

    def close(self) -> None:
        self.network.close()


class SocketPeer:
    """The far end of a real connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.settimeout(PATIENCE)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._sock.recv(count - len(data))
        return data

    def close(self) -> None:
        self._sock.close()

    def reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


class SocketLab:
    """The real network, on loopback."""

    def __init__(self) -> None:
        self.network = Network()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self._peers: list[SocketPeer] = []
        self.origin = Origin("http", "127.0.0.1", self._listener.getsockname()[1])

    def accept(self) -> SocketPeer:
        self._peers.append(SocketPeer(self._listener.accept()[0]))
        return self._peers[-1]

    def refusing(self) -> tuple[Network, Origin]:
        self._listener.close()
        return self.network, self.origin

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._listener.close()
        self.network.close()


Lab = FakeLab | SocketLab


@pytest.fixture(params=[FakeLab, SocketLab])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with contextlib.closing(request.param()) as lab:
        yield lab


@contextlib.contextmanager
def opened(lab: Lab) -> Iterator[tuple[Connection | FakeConnection, Peer | SocketPeer]]:
    """An open connection that waits for nothing to send, and its far end."""
    connection = lab.network.open(lab.origin)
    peer = lab.accept()
    drive(lab.network, connection)
    connection.watch_writing(wanted=False)
    try:
        yield connection, peer
    finally:
        connection.close()


def drive(network: Network | FakeNetwork, connection: Connection | FakeConnection) -> None:
    """Go on with connecting until the connection is open."""
    while not connection.is_open:
        ready = network.select(PATIENCE)
        assert [moved for moved, _ in ready] == [connection]
        connection.establish()


def receive(connection: Connection | FakeConnection, size: int = 100) -> bytes | None:
    memory = bytearray(size)
    count = connection.recv_into(memoryview(memory))
    return None if count is None else bytes(memory[:count])


def test_opens(lab: Lab):
    """A connection is open once select has reported it and it was established."""
    connection = lab.network.open(lab.origin)
    assert (connection.is_open, connection.origin, connection.flight) == (False, lab.origin, None)
    lab.accept()
    [(ready, events)] = lab.network.select(PATIENCE)
    assert (ready, events) == (connection, WRITE)
    assert connection.establish()
    assert (connection.is_open, connection.state, connection.holds_more) == (True, ConnectionState.OPEN, False)
    assert (len(connection.inbox), connection.was_used) == (0, False)
    connection.close()


def test_both_ways(lab: Lab):
    """What is sent arrives, and what arrives is reported until it was received."""
    with opened(lab) as (connection, peer):
        assert connection.send(memoryview(b"ping")) == 4
        assert peer.read(4) == b"ping"
        assert receive(connection) is None
        assert lab.network.select(0.0) == []
        peer.send(b"pong")
        for piece in (b"po", b"ng"):
            assert lab.network.select(PATIENCE) == [(connection, READ)]
            assert receive(connection, 2) == piece
        assert receive(connection) is None
        assert lab.network.select(0.0) == []


def test_end_of_stream(lab: Lab):
    """What the peer sent before it closed arrives, and then the end, as often as one asks."""
    with opened(lab) as (connection, peer):
        peer.send(b"bye")
        peer.close()
        assert lab.network.select(PATIENCE) == [(connection, READ)]
        assert receive(connection) == b"bye"
        for _ in range(2):
            assert lab.network.select(PATIENCE) == [(connection, READ)]
            assert receive(connection) == b""


def test_reset(lab: Lab):
    """A connection that the peer breaks is reported, and raises when it is used."""
    with opened(lab) as (connection, peer):
        peer.reset()
        [(ready, events)] = lab.network.select(PATIENCE)
        assert ready is connection
        assert events & READ
        with pytest.raises(ConnectionFailedError):
            receive(connection)


def test_full(lab: Lab):
    """A peer that does not read takes no more after a while, and room is reported once it reads."""
    with opened(lab) as (connection, peer):
        sent = 0
        while count := connection.send(memoryview(bytes(1 << 20))):
            sent += count
        assert lab.network.select(0.0) == []
        connection.watch_writing(wanted=True)
        assert lab.network.select(0.0) == []
        assert peer.read(sent) == bytes(sent)
        assert lab.network.select(PATIENCE) == [(connection, WRITE)]
        assert connection.send(memoryview(b"more")) == 4
        connection.watch_writing(wanted=False)
        assert lab.network.select(0.0) == []


def test_refused(lab: Lab):
    """A refused connection raises while it is opened or established."""
    network, origin = lab.refusing()
    with pytest.raises(ConnectionFailedError, match="failed while connecting to"):
        drive(network, network.open(origin))


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_closed(lab: Lab, end: str):
    """A connection that was closed or abandoned is not reported any more; to end it again does nothing."""
    with opened(lab) as (connection, peer):
        getattr(connection, end)()
        getattr(connection, end)()
        assert connection.state is ConnectionState.CLOSED
        peer.close()
        assert lab.network.select(0.0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every byte is reported")
def test_expecting_much():
    """Of a long body select reports much at once; what lies below that can be received, and the end is reported."""
    with contextlib.closing(SocketLab()) as lab, opened(lab) as (connection, peer):
        room = memoryview(bytearray(1 << 20))
        connection.expect(100)  # so little is always reported
        assert connection.awaited == 1
        connection.expect(300_000)
        peer.send(bytes(100_000))
        assert lab.network.select(0.05) == []
        assert receive_all(connection, room, 100_000) == 100_000
        connection.expect(200_000)
        peer.send(bytes(200_000))
        assert lab.network.select(PATIENCE) == [(connection, READ)]
        assert receive_all(connection, room, 200_000) == 200_000
        connection.expect(1)
        peer.send(b"x")
        assert lab.network.select(PATIENCE) == [(connection, READ)]
        assert connection.recv_into(room) == 1
        connection.expect(300_000)
        peer.close()
        assert lab.network.select(PATIENCE) == [(connection, READ)]
        assert connection.recv_into(room) == 0


def test_options_of_a_socket():
    """Requests are sent at once, and a peer that has vanished is noticed by the kernel."""
    with contextlib.closing(SocketLab()) as lab, opened(lab) as (connection, _):
        assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every byte is reported")
def test_a_system_that_cannot_wait_for_much():
    """Where the kernel refuses to gather bytes, it is asked once, and all is reported as it comes."""
    refused: list[int] = []

    class Sandboxed(socket.socket):
        def setsockopt(self, *option: int) -> None:
            refused.append(option[1])
            raise OSError(errno.ENOPROTOOPT, "not known here")

    with contextlib.closing(SocketLab()) as lab, opened(lab) as (connection, peer):
        system = connection._socket
        with Sandboxed(fileno=os.dup(system.fileno())) as connection._socket:
            connection.expect(300_000)
            connection.expect(300_000)
        connection._socket = system
        assert (refused, connection.awaited) == ([socket.SO_RCVLOWAT], 1)
        peer.send(b"x")
        assert lab.network.select(PATIENCE) == [(connection, READ)]


def receive_all(connection: Connection | FakeConnection, room: memoryview, count: int) -> int:
    """Receive so many bytes, which are there or about to come."""
    received = 0
    deadline = time.monotonic() + PATIENCE
    while received < count and time.monotonic() < deadline:
        received += connection.recv_into(room) or 0
    return received


def test_select_takes_its_time(lab: Lab):
    """If nothing can move, select returns nothing after the time that it was given."""
    began = lab.network.clock()
    assert lab.network.select(0.01) == []
    assert began + 0.01 <= lab.network.clock()


# Addresses


class Ask(Exchange):
    """A GET whose body is kept."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin, 0)
        self.body = b""

    def request(self) -> Sequence[memoryview]:
        return [memoryview(b"GET / HTTP/1.1\r\n\r\n")]

    def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        self.head = yield from read_head(inbox)
        self.body = yield from read_small_body(inbox, self.head, 1 << 30)
        return None


def greet(request: Request, wire: Wire) -> None:
    wire.respond(200, body=b"hello")


@contextlib.contextmanager
def engine_of(network: Network, *, max_attempts: int = 3) -> Iterator[Engine]:
    with contextlib.closing(Engine(network, RetryPolicy(max_attempts=max_attempts, base=0.0))) as engine:
        yield engine


@pytest.fixture
def dead_address() -> Iterator[Address]:
    """An address that refuses connections, and that nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield socket.AF_INET, bound.getsockname()


@pytest.mark.parametrize("place", range(3))
def test_next_address(dead_address: Address, place: int):
    """If an address of a host refuses, the next one is tried, in the same attempt."""
    with ScriptedServer(greet) as server:
        addresses = [dead_address] * 3
        addresses[place] = (socket.AF_INET, ("127.0.0.1", server.port))
        with engine_of(Network(lookup=lambda host, port: addresses)) as engine:
            ask = Ask(Origin("http", "many.test", server.port))
            engine.run([ask])
    assert (ask.body, ask.attempts) == (b"hello", 1)


def test_the_order_of_addresses():
    """Those that took no connection within a minute come last, each time another of the others first."""
    origin = Origin("http", "many.test", 80)
    one, two, three = ((socket.AF_INET, (f"10.0.0.{number}", 80)) for number in (1, 2, 3))
    book = AddressBook()
    book.note_dead(one, 100.0)
    book.note_dead(two, 101.0)
    for now, first in ((102.0, {three}), (159.9, {three}), (160.0, {one, three}), (161.0, {one, two, three})):
        book.note(origin, [one, two, three], now)
        assert {book.find(origin, now)[0] for _ in range(3)} == first, now


def test_an_address_that_refuses_is_remembered(dead_address: Address):
    """The next connection begins with an address that does not refuse."""
    with ScriptedServer(greet) as server:
        addresses = [dead_address, (socket.AF_INET, ("127.0.0.1", server.port))]
        book = AddressBook()
        network = Network(lookup=lambda host, port: addresses, clock=lambda: 100.0, addresses=book)
        with engine_of(network) as engine:
            ask = Ask(Origin("http", "many.test", server.port))
            engine.run([ask])
    assert {book.find(ask.origin, 100.0)[0] for _ in range(4)} == {addresses[1]}


def test_a_peer_that_is_gone_before_tls():
    """That TLS cannot even begin is a failed connection, as any other."""

    class Gone(ssl.SSLContext):
        def wrap_socket(self, *_: object, **__: object) -> ssl.SSLSocket:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    tls = Gone(ssl.PROTOCOL_TLS_CLIENT)
    with (
        ScriptedServer(greet) as server,
        engine_of(Network(tls=lambda: tls), max_attempts=1) as engine,
        pytest.raises(ConnectionFailedError, match="Transport endpoint is not connected"),
    ):
        engine.run([Ask(Origin("https", "127.0.0.1", server.port))])


def test_no_address_left(dead_address: Address):
    """If all addresses refuse, the error says where to and why."""
    with engine_of(Network(lookup=lambda host, port: [dead_address] * 2), max_attempts=1) as engine:
        with pytest.raises(ConnectionFailedError, match=r"connecting to http://many\.test:80: Connection refused\."):
            engine.run([Ask(Origin("http", "many.test", 80))])
        assert repr(engine) == "<Engine 0 in flight, 0 queued, 0 connections, 0 requests>"


def test_family_without_support(dead_address: Address):
    """An address of a family that this machine does not have is passed over."""
    with ScriptedServer(greet) as server:
        unknown = (socket.AF_APPLETALK, ("127.0.0.1", 1))
        addresses = [(socket.AF_INET, ("127.0.0.1", server.port)), unknown]
        with engine_of(Network(lookup=lambda host, port: addresses)) as engine:
            ask = Ask(Origin("http", "many.test", 80))
            engine.run([ask])
    assert ask.body == b"hello"


def test_an_address_that_is_refused_at_once():
    """An address that the kernel refuses before it sends anything, as that of a broadcast, is passed over."""
    with ScriptedServer(greet) as server:
        broadcast = (socket.AF_INET, ("255.255.255.255", server.port))
        addresses = [broadcast, (socket.AF_INET, ("127.0.0.1", server.port))]
        with engine_of(Network(lookup=lambda host, port: addresses)) as engine:
            ask = Ask(Origin("http", "many.test", server.port))
            engine.run([ask])
    assert (ask.body, ask.attempts) == (b"hello", 1)


def test_addresses_take_turns():
    """Connections to a host begin with one of its addresses after the other."""
    with ScriptedServer(greet) as one, ScriptedServer(greet) as other:
        addresses = [(socket.AF_INET, ("127.0.0.1", server.port)) for server in (one, other)]
        with engine_of(Network(lookup=lambda host, port: addresses)) as engine:
            for _ in range(4):
                engine.run([Ask(Origin("http", "many.test", 80))])
                engine.reset()
        assert (one.connections, other.connections) == (2, 2)


@pytest.mark.parametrize(("seconds", "lookups"), [(29.0, 1), (30.0, 2)])
def test_addresses_are_kept(dead_address: Address, seconds: float, lookups: int):
    """A host's addresses are used for 30 seconds before they are looked up again."""
    now = 0.0
    asked: list[tuple[str, int]] = []

    def lookup(host: str, port: int) -> list[Address]:
        asked.append((host, port))
        return [dead_address]

    network = Network(lookup=lookup, clock=lambda: now)
    with contextlib.closing(network):
        for now in (0.0, seconds):  # noqa: B007 - read by the clock
            with contextlib.suppress(ConnectionFailedError):
                network.open(Origin("http", "many.test", 81)).close()
    assert asked == [("many.test", 81)] * lookups


def test_unknown_host():
    """A host that has no address is an error that names it and says what to check; the next attempt asks again."""
    asked = 0

    def lookup(host: str, port: int) -> list[Address]:
        nonlocal asked
        asked += 1
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with engine_of(Network(lookup=lookup)) as engine, pytest.raises(ConnectionFailedError) as caught:
        engine.run([Ask(Origin("http", "nonexistent.invalid", 80))])
    sentence = str(caught.value)
    assert "'nonexistent.invalid'" in sentence
    assert "Name or service not known" in sentence
    assert "Check the endpoint and region" in sentence
    assert (asked, caught.value.attempts) == (3, 3)


def test_host_with_an_empty_list():
    """A lookup that finds nothing is the documented error, too."""
    with contextlib.closing(Network(lookup=lambda host, port: [])) as network, pytest.raises(ConnectionFailedError):
        network.open(Origin("http", "many.test", 80))


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin("https", "bucket.test", 443), "https://bucket.test:443"),
        (Origin("http", "::1", 9000), "http://[::1]:9000"),
    ],
)
def test_origin(origin: Origin, text: str):
    """An origin reads as a URL."""
    assert str(origin) == text


def test_repr():
    """A connection shows where it leads, how far it is and whether it is idle."""
    with contextlib.closing(SocketLab()) as lab:
        connection = lab.network.open(lab.origin)
        assert repr(connection) == f"<Connection {lab.origin} connecting idle>"
        lab.accept()
        drive(lab.network, connection)
        connection.flight = object()
        assert repr(connection) == f"<Connection {lab.origin} open>"
        connection.close()
        assert repr(connection) == f"<Connection {lab.origin} closed>"
        with pytest.raises(AssertionError, match="used after its end"):
            connection.send(memoryview(b"x"))


# TLS


class Authority:
    """A certificate authority, with contexts for servers of its own and for clients that trust it."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server(self, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        not_before = not_after and not_after - timedelta(days=1)
        self._ca.issue_cert(*names, not_before=not_before, not_after=not_after).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def at(server: ScriptedServer, host: str = "localhost") -> Origin:
    return Origin("https", host, server.port)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("size", [0, 5, 3_000_000])
def test_tls(authority: Authority, host: str, size: int):
    """An exchange over TLS with a trusted server is like any other, whatever the size of the answer."""
    body = bytes(range(250)) * (size // 250) + bytes(size % 250)
    with ScriptedServer(lambda request, wire: wire.respond(200, body=body), authority.server(host)) as server:
        with engine_of(Network(authority.client)) as engine:
            for _ in range(2):
                ask = Ask(at(server, host))
                engine.run([ask])
                assert ask.body == body
        assert server.connections == 1


def test_tls_context_is_made_once_needed():
    """A network without https never asks for the TLS context."""

    def fail() -> ssl.SSLContext:
        raise AssertionError("nobody needs it")

    with ScriptedServer(greet) as server, engine_of(Network(fail)) as engine:
        engine.run([Ask(Origin("http", "127.0.0.1", server.port))])


def expired(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    return authority.server("localhost", not_after=yesterday), authority.client()


def of_another_host(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return authority.server("other.test"), authority.client()


def of_another_authority(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return Authority().server("localhost"), authority.client()


@pytest.mark.parametrize(
    ("contexts", "reason"),
    [
        (expired, "certificate has expired"),
        (of_another_host, "Hostname mismatch"),
        (of_another_authority, "unable to get local issuer certificate"),
    ],
)
def test_certificate(
    authority: Authority, contexts: Callable[[Authority], tuple[ssl.SSLContext, ssl.SSLContext]], reason: str
):
    """A certificate that is not to be trusted is an error after one attempt, which says why and what to do."""
    theirs, ours = contexts(authority)
    with ScriptedServer(greet, theirs) as server, engine_of(Network(lambda: ours)) as engine:
        with pytest.raises(CertificateError) as caught:
            engine.run([Ask(at(server))])
        assert (server.connections, server.requests, caught.value.attempts) == (1, [], 1)
        assert repr(engine) == "<Engine 0 in flight, 0 queued, 0 connections, 0 requests>"
    sentence = str(caught.value)
    assert f"The certificate of https://localhost:{server.port} is not valid for it" in sentence
    assert reason in sentence
    assert "AWS_CA_BUNDLE or S3ClientConfig(verify=...)" in sentence


@contextlib.contextmanager
def raw_server(act: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[int]]]:
    """A server that acts on each connection in its own way; gives its port, and the connections' numbers so far."""
    numbers: list[int] = []
    stopping = threading.Event()

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                if stopping.is_set():
                    return
                sock.settimeout(PATIENCE)
                numbers.append(len(numbers) + 1)
                with contextlib.suppress(OSError):
                    act(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield port, numbers
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join(PATIENCE)


def close_at_once(sock: socket.socket) -> None:
    pass


def close_after_hello(sock: socket.socket) -> None:
    sock.recv(65536)


def reset_after_hello(sock: socket.socket) -> None:
    sock.recv(65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def speak_http(sock: socket.socket) -> None:
    sock.recv(65536)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("act", [close_at_once, close_after_hello, reset_after_hello, speak_http])
def test_broken_handshake(authority: Authority, act: Callable[[socket.socket], None]):
    """A server that breaks off the TLS handshake is tried again, and the error says where that was."""
    with raw_server(act) as (port, numbers), engine_of(Network(authority.client), max_attempts=2) as engine:
        with pytest.raises(
            ConnectionFailedError, match=rf"(agreeing on TLS with|connecting to) https://localhost:{port}"
        ):
            engine.run([Ask(Origin("https", "localhost", port))])
        assert len(numbers) == 2


# Descriptors and processes


def descriptors() -> set[tuple[str, str]]:
    """Return number and target of each descriptor: a number may be that of another one before."""
    found = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the same for Path, which opens another one
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))  # noqa: PTH115 - as above
    return found


@pytest.mark.parametrize("state", ["connecting", "open", "TLS"])
def test_collected_in_a_cycle(authority: Authority, state: str):
    """An engine that the collector finds in a cycle closes its sockets first, in whatever order it has found them."""
    collect_what_others_left()
    gc.disable()
    try:
        with ScriptedServer(greet, authority.server("localhost") if state == "TLS" else None) as server:
            engine = Engine(Network(authority.client))
            get = Ask(at(server) if state == "TLS" else Origin("http", "127.0.0.1", server.port))
            engine.submit(get)
            if state == "connecting":
                engine.turn()
            else:
                engine.wait([get])
            # A collection finds the loop before the engine, and so sorts the socket before it.
            loop, cycle = engine._loop, [[[[[engine]]]]]
            cycle.append(cycle)
            del engine
            gc.collect()
            del loop, cycle, get
            gc.collect()
    finally:
        gc.enable()


@needs_proc
def test_no_descriptor_is_left(authority: Authority, dead_address: Address):
    """Whatever becomes of connections, all descriptors are closed at the end."""
    collect_what_others_left()  # or it would be closed in the middle of this test
    before = descriptors()
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(ScriptedServer(greet))
        good = stack.enter_context(ScriptedServer(greet, authority.server("localhost")))
        untrusted = stack.enter_context(ScriptedServer(greet, Authority().server("localhost")))
        broken, _ = stack.enter_context(raw_server(close_after_hello))
        engine = stack.enter_context(engine_of(Network(authority.client), max_attempts=1))
        engine.run([Ask(Origin("http", "127.0.0.1", plain.port)), Ask(at(good))])
        for origin in (at(untrusted), Origin("https", "localhost", broken), Origin("http", *dead_address[1])):
            with pytest.raises((CertificateError, ConnectionFailedError)):
                engine.run([Ask(origin)])
        engine.submit(Ask(Origin("http", "127.0.0.1", plain.port)))
        engine.turn()
    assert descriptors() == before


@needs_proc
def test_fork():
    """A child that lets go of a connection it inherited disturbs its owner's neither by TCP nor by epoll."""
    collect_what_others_left()  # or it would be closed in the middle of this test
    before = descriptors()
    with contextlib.closing(SocketLab()) as lab, opened(lab) as (connection, peer):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                connection.abandon()
                lab.network.close()
                own = Network()
                mine = own.open(lab.origin)
                drive(own, mine)
                mine.send(memoryview(b"child"))
                mine.close()
                own.close()
                # The listener, and the server's end of the parent's connection. Others may close theirs at a fork, or
                # open a pipe; the package opens none.
                left = {each for each in descriptors() - before if not each[1].startswith("pipe:")}
                code = 0 if len(left) == 2 else 2
                if code:
                    os.write(2, f"left in the child: {sorted(left)}\n".encode())
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lab.accept().read(5) == b"child"
        assert lab.network.select(0.0) == []
        assert connection.send(memoryview(b"parent")) == 6
        assert peer.read(6) == b"parent"
        peer.send(b"still there")
        assert lab.network.select(PATIENCE) == [(connection, READ)]
        assert receive(connection) == b"still there"
    assert descriptors() == before
