"""Tests of hosts with several addresses, some of which swallow packets: who is tried when, and what is remembered."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3torch._transfer.connection import Address, AddressBook, Network, Origin
from s3torch._transfer.engine import Engine
from s3torch._transfer.flight import Limits
from s3torch.errors import ConnectionFailedError, DeadlineError
from tests.support.networks import black_hole
from tests.support.server import ScriptedServer

from .network import FakeNetwork, never, refuse
from .test_connection import PATIENCE, Ask, engine_of, greet
from .test_engine import Ask as Named
from .test_engine import echo, make, slow_echo, targets

MANY = Origin("http", "many.test", 80)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hole() -> Iterator[Address]:
    with black_hole() as address:
        yield address


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(greet) as server:
        yield server


def address_of(server: ScriptedServer) -> Address:
    return socket.AF_INET, ("127.0.0.1", server.port)


@contextlib.contextmanager
def network_of(*addresses: Address, clock: Callable[[], float], book: AddressBook | None = None) -> Iterator[Network]:
    with contextlib.closing(
        Network(lookup=lambda host, port: addresses, clock=clock, addresses=book or AddressBook())
    ) as network:
        yield network


# Who is tried when


def test_the_next_address_after_a_quarter_of_a_second(hole: Address, server: ScriptedServer):
    """An address that says nothing is waited for 250 ms, then the next is tried beside it, and has the connection."""
    clock = Clock()
    with network_of(hole, address_of(server), clock=clock) as network:
        connection = network.open(MANY)
        clock.now += 0.249
        assert network.select(0.0) == []
        assert len(connection._race._sockets) == 1
        clock.now += 0.001
        assert network.select(0.0) == []
        assert len(connection._race._sockets) == 2
        [(found, _)] = network.select(PATIENCE)
        assert found is connection
        assert connection.establish()
        assert network.select(0.0)[0][0] is connection  # one socket is left, and the hole's is none that is watched
        connection.close()


def test_select_returns_in_time_for_the_next_address(hole: Address, server: ScriptedServer):
    """However long select is to wait, it begins the next attempt itself."""
    with network_of(hole, address_of(server), clock=time.monotonic) as network:
        connection = network.open(MANY)
        while not connection.is_open:
            for found, _ in network.select(PATIENCE):
                found.establish()
        assert connection._address == address_of(server)
        connection.close()


def test_a_busy_process_overtakes_nobody(server: ScriptedServer):
    """An address that has answered while nobody looked is not late, however long that was."""
    clock = Clock()
    with ScriptedServer(greet) as other:
        book = AddressBook()
        with network_of(address_of(server), address_of(other), clock=clock, book=book) as network:
            connection = network.open(MANY)
            clock.now += 60.0
            while not connection.is_open:
                for found, _ in network.select(PATIENCE):
                    found.establish()
            assert not book._dead
            assert connection._address == address_of(server)
            connection.close()


def test_an_address_that_refuses_is_not_waited_for(hole: Address, server: ScriptedServer):
    """After a refusal the next address is tried at once, beside one that says nothing."""
    clock = Clock()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = socket.AF_INET, bound.getsockname()
        with network_of(hole, refusing, address_of(server), clock=clock) as network:
            connection = network.open(MANY)
            clock.now += 0.25
            while not connection.is_open:  # no more time passes
                for found, _ in network.select(PATIENCE):
                    found.establish()
            connection.close()


def test_the_last_refusal_waits_for_those_that_say_nothing(hole: Address):
    """If one address refuses and another says nothing, the connection goes on, until its deadline."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = socket.AF_INET, bound.getsockname()
        network = Network(lookup=lambda host, port: [hole, refusing])
        limits = Limits(connect_timeout=0.5)
        with contextlib.closing(Engine(network, limits=limits)) as engine:
            with pytest.raises((DeadlineError, ConnectionFailedError)):
                engine.run([Ask(MANY)])
            assert {hole, refusing} <= set(network._addresses._dead)


def test_families_take_turns():
    """Where a whole family leads nowhere, that costs one attempt: families take turns (RFC 8305 4)."""
    six = [(socket.AF_INET6, (f"2001:db8::{number}", 80, 0, 0)) for number in range(3)]
    four = [(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in range(2)]
    book = AddressBook()
    book.note(MANY, six + four, 0.0)
    assert book.find(MANY, 0.0) == [six[0], four[0], six[1], four[1], six[2]]
    assert book.find(MANY, 0.0) == [six[1], four[0], six[2], four[1], six[0]]
    book.find(MANY, 0.0)
    assert book.find(MANY, 0.0) == [four[0], six[0], four[1], six[1], six[2]]


# What is remembered


def test_who_was_overtaken_is_tried_last(hole: Address, server: ScriptedServer):
    """An address that another one has overtaken is tried last for a minute; then it may be the first again."""
    book, clock = AddressBook(), Clock()
    with network_of(hole, address_of(server), clock=clock, book=book) as network:
        connection = network.open(MANY)
        clock.now += 0.25
        while not connection.is_open:
            for found, _ in network.select(PATIENCE):
                found.establish()
        connection.close()
    good = address_of(server)
    assert [book.find(MANY, clock.now)[0] for _ in range(4)] == [good] * 4
    book.note(MANY, [hole, good], clock.now + 60.0)
    assert {book.find(MANY, clock.now + 60.0)[0] for _ in range(4)} == {hole, good}


def test_the_head_start_is_what_the_host_takes():
    """Once it is known how long connections to a host take, an address is waited for four times as long."""
    book = AddressBook()
    assert book.head_start(MANY) == 0.25
    for seconds, expected in [(0.1, 0.25), (0.05, 0.2), (0.001, 0.02), (10.0, 0.02)]:
        book.note_alive(MANY, (socket.AF_INET, ("192.0.2.1", 80)), seconds)
        assert book.head_start(MANY) == pytest.approx(expected)
    assert book.head_start(Origin("http", "other.test", 80)) == 0.25
    for _ in range(40):  # the network has become slower
        book.note_alive(MANY, (socket.AF_INET, ("192.0.2.1", 80)), 1.0)
    assert book.head_start(MANY) > 0.15


def test_an_address_that_answers_again_is_alive():
    """A dead address that has taken a connection is tried like any other."""
    dead, good = [(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in (1, 2)]
    book = AddressBook()
    book.note(MANY, [dead, good], 0.0)
    book.note_dead(dead, 0.0)
    assert [book.find(MANY, 0.0)[0] for _ in range(2)] == [good, good]
    book.note_alive(MANY, dead, 0.01)
    assert {book.find(MANY, 0.0)[0] for _ in range(2)} == {dead, good}


def test_a_dead_address_is_logged_once(caplog: pytest.LogCaptureFixture):
    """That an address is dead is said once, and not for each connection."""
    book = AddressBook()
    with caplog.at_level("INFO", logger="s3torch"):
        for _ in range(3):
            book.note_dead((socket.AF_INET, ("192.0.2.1", 80)), 0.0)
    assert len(caplog.records) == 1
    assert "192.0.2.1" in caplog.text


@pytest.mark.parametrize("place", range(2))
def test_batches_beside_a_dead_address(hole: Address, place: int):
    """Many requests at once: all are answered by the address that lives, and none waits for its deadline."""
    with ScriptedServer(lambda request, wire: wire.respond(200, body=b"hello")) as server:
        addresses = [address_of(server)]
        addresses.insert(place, hole)
        with engine_of(Network(lookup=lambda host, port: addresses), max_attempts=1) as engine:
            for _ in range(5):
                asks = [Ask(MANY) for _ in range(40)]
                engine.run(asks)
                assert [ask.body for ask in asks] == [b"hello"] * 40
                assert {ask.attempts for ask in asks} == {1}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("end", ["close", "abandon", "won"])
def test_no_descriptor_of_a_race_is_left(hole: Address, server: ScriptedServer, end: str):
    """All sockets of a race are closed, whether it is won, given up or abandoned."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    clock = Clock()
    with network_of(hole, address_of(server), clock=clock) as network:
        connection = network.open(MANY)
        clock.now += 1.0
        network.select(0.0)
        if end == "won":
            network.select(PATIENCE)
            assert connection.establish()
            end = "close"
        getattr(connection, end)()
        assert network.select(0.0) == []
        assert not network._racing
    # The server's end of the connection may not be closed yet.
    assert len(os.listdir("/proc/self/fd")) - before <= 1  # noqa: PTH208


# Requests are not bound to a connection that is not open


def test_a_request_goes_by_what_is_open():
    """A request whose connection does not come about goes by the first that becomes free, in the same attempt."""
    network = FakeNetwork(never, slow_echo)
    asks = [Named("a"), Named("b")]
    make(network).run(asks)
    assert (network.now, targets(network)) == (1002.0, [[], [b"/b", b"/a"]])
    assert [ask.attempts for ask in asks] == [1, 1]


def test_order_is_kept():
    """Of several requests that wait for a connection the first one goes first, and before those that are queued."""
    network = FakeNetwork(never, never, slow_echo, then=never)
    asks = [Named(name) for name in "abcdefghij"]  # two more than connections
    engine = make(network)
    engine.run(asks)
    assert targets(network)[2] == [b"/c", *(f"/{name}".encode() for name in "abdefghij")]
    assert network.peak == 8


def test_a_connection_without_a_request_serves_the_next():
    """A connection that opens after its request has gone elsewhere is kept, and used without another one."""

    def late(peer):
        yield 1.5
        yield from echo(peer)

    network = FakeNetwork(late, slow_echo)
    engine = make(network)
    engine.run([Named("a"), Named("b")])
    engine.run([Named("c"), Named("d")])
    assert len(network.connections) == 2
    assert targets(network) == [[b"/c"], [b"/b", b"/a", b"/d"]] or targets(network) == [[b"/d"], [b"/b", b"/a", b"/c"]]


def test_a_connection_without_a_request_may_fail():
    """That a connection fails whose request has gone elsewhere is nobody's error."""

    def late_refusal(peer):
        yield 1.5
        yield from refuse(peer)

    network = FakeNetwork(late_refusal, slow_echo)
    engine = make(network)
    asks = [Named("a"), Named("b")]
    engine.run(asks)
    engine.run([Named("c")])
    assert [ask.attempts for ask in asks] == [1, 1]
    assert network.open_connections == 1
    assert repr(engine).startswith("<Engine 0 in flight, 0 queued, 1 connections")


def test_a_connection_that_is_coming_is_waited_for_before_another_is_opened():
    """Requests wait for the connections that were begun a moment ago, and open no others beside them."""
    network = FakeNetwork(never, echo)
    engine = make(network)
    for _ in range(3):
        engine.run([Named("a"), Named("b")])
    assert (len(network.connections), network.now) == (2, 1000.0)


def test_a_connection_that_does_not_come_about_keeps_nobody_waiting():
    """Beside a connection that has taken long another one is opened, once."""
    network = FakeNetwork(never, slow_echo, then=slow_echo)
    engine = make(network)
    for _ in range(20):
        engine.run([Named("a"), Named("b")])
    assert network.now == 1021.0  # two seconds for the first two, one for each two after them
    assert len(network.connections) == 3


def test_other_origins_take_nothing():
    """A free connection to one origin serves no request to another one."""
    network = FakeNetwork(never, slow_echo, echo)
    make(network).run([Named("a", origin=Origin("http", "other.test", 80)), Named("b")])
    assert targets(network) == [[], [b"/b"], [b"/a"]]


def test_a_cancelled_request_leaves_its_connection():
    """A request that is cancelled while it waits for its connection closes that, and holds nothing."""
    network = FakeNetwork(never, slow_echo)
    engine = make(network)
    asks = [Named("a"), Named("b")]
    for ask in asks:
        engine.submit(ask)
    engine.nudge()
    engine.cancel([asks[0]])
    assert not [flight for flight in engine._loop._connecting if flight.exchange is asks[0]]
    engine.wait([asks[1]])
    assert asks[1].body == b"/b"
    assert not engine._loop._connecting


def test_reset_while_connections_are_coming():
    """After a reset nothing of the old connections is used."""
    network = FakeNetwork(never, slow_echo, then=echo)
    engine = make(network)
    asks = [Named("a"), Named("b")]
    for ask in asks:
        engine.submit(ask)
    engine.nudge()
    engine.reset()
    engine.wait(asks)
    assert [ask.body for ask in asks] == [b"/a", b"/b"]
    assert not engine._loop._connecting
