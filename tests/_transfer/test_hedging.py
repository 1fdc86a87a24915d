"""Second requests beside first ones, of real reads over a network that pauses, cuts and closes where it likes.

Whatever becomes of them: nobody but the one flight that goes on writes into the memory of a read, and what is left over
is closed.
"""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any

import pytest

from s3torch._aws.bucket import Bucket
from s3torch._aws.operations import GetObject
from s3torch._transfer.connection import ConnectionState, Origin
from s3torch._transfer.engine import Engine
from s3torch._transfer.flight import Limits
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import ProtocolError, S3Error

from .network import Act, FakeNetwork, Peer

ORIGIN = Origin("http", "bucket.test", 80)
OBJECT = random.Random(5).randbytes(300_000)
# Seconds that a server lets pass somewhere: below and above what is late, and far beyond it.
PAUSES = (0.0, 0.01, 0.05, 0.11, 0.3, 5.0)
FRAMINGS = ("length", "chunks", "close")


def bucket() -> Bucket:
    """Return a bucket whose requests are not signed."""
    endpoint = SimpleNamespace(origin=ORIGIN, host=ORIGIN.host, base_path="")
    session: Any = SimpleNamespace(
        region=lambda: "here", endpoint=lambda *_: endpoint, credentials=lambda: None, proxy=lambda _: None
    )
    return Bucket("bucket", lambda: session, "test")


def answer_to(request: bytes, framing: str) -> list[bytes]:
    """Return the head of an answer, pieces of its body, and what ends it."""
    asked = re.search(rb"range: bytes=(\d+)-(\d+)", request)
    start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(OBJECT))) if asked else (0, len(OBJECT))
    body = OBJECT[start:stop]
    status = f"206 -\r\nContent-Range: bytes {start}-{stop - 1}/{len(OBJECT)}" if asked else "200 OK"
    framed = {"length": f"Content-Length: {len(body)}", "chunks": "Transfer-Encoding: chunked"}.get(framing, "X-A: b")
    pieces = [body[index : index + 1 + len(body) // 3] for index in range(0, len(body), 1 + len(body) // 3)]
    if framing == "chunks":
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    end = b"0\r\n\r\n" if framing == "chunks" else b""
    return [f'HTTP/1.1 {status}\r\nETag: "e"\r\n{framed}\r\n\r\n'.encode(), *pieces, end]


class Read(GetObject):
    """A read that knows what it met.

    Attributes:
        met: The errors.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.met: list[S3Error] = []

    def recover(self, error: S3Error) -> bool:
        self.met.append(error)
        return super().recover(error)


class Moods:
    """Serves ranges of the object, and now and then pauses, breaks off or cuts.

    Args:
        chance: Decides.

    Attributes:
        worst: How likely each of these is.
    """

    def __init__(self, chance: random.Random) -> None:
        self.worst = 0.0
        self._chance = chance

    def __call__(self, peer: Peer) -> Act[None]:
        """Be the far end of a connection."""
        chance = self._chance
        peer.accept()
        while True:
            request = yield from peer.request()
            yield 0.01
            framing = chance.choice(FRAMINGS) if self.worst else "length"
            for piece in answer_to(request, framing):
                if chance.random() < self.worst:
                    yield chance.choice(PAUSES)
                if chance.random() < self.worst / 4:
                    peer.send(piece[: chance.randrange(len(piece) + 1)])
                    yield chance.choice(PAUSES)
                    chance.choice([Peer.close, Peer.reset])(peer)
                    return
                peer.send(piece)
            if framing == "close":
                yield chance.choice(PAUSES)
                peer.close()
                return


def check(engine: Engine, network: FakeNetwork) -> None:
    """Check that flights, connections and memory are those of the exchanges in flight, each of them there once."""
    loop = engine._loop
    flights = loop.flights
    exchanges = {flight.exchange for flight in flights}
    assert not any(exchange.is_done for exchange in exchanges)
    assert flights == {each for exchange in exchanges for each in (exchange.flight, exchange.rival) if each is not None}
    assert loop._memory_in_flight == sum(exchange.memory for exchange in exchanges)
    opened = {each for each in network.connections if each.state is not ConnectionState.CLOSED}
    assert loop.pool._connections == opened
    assert {flight.connection for flight in flights} == {each for each in opened if each.flight is not None}
    assert all(connection.flight in flights for connection in opened if connection.flight is not None)
    waiting = [*loop._queue, *loop._pauses]
    assert not exchanges & set(waiting)
    assert len(set(waiting)) == len(waiting)


def learnt(network: FakeNetwork, connections: int = 16) -> Engine:
    """Return an engine that knows what the first byte takes here, and may send a few second requests."""
    limits = Limits(connections=connections, first_byte_timeout=2.0, stall_timeout=2.0)
    engine = Engine(network, RetryPolicy(max_attempts=50, base=0.01, cap=0.1), limits, jitter=lambda: 1.0)
    engine.run([GetObject(bucket(), "key", 0, 1, memoryview(bytearray(1))) for _ in range(500)])
    return engine


@pytest.mark.parametrize("framing", ["chunks", "close"])
@pytest.mark.parametrize("connections", [2, 16])
def test_only_the_end_is_late(framing: str, connections: int):
    """If all of a body is there, but not what ends it, a second request takes nothing back; the end ends both."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            request = yield from peer.request()
            is_late = b"/late " in request
            yield 0.02
            *pieces, end = answer_to(request, framing if is_late else "length")
            peer.send(b"".join(pieces))
            if is_late:
                asked.append(request)
                yield 0.11
                peer.send(end)
                peer.close()

    asked: list[bytes] = []
    network = FakeNetwork(then=script)
    engine = learnt(network, connections)
    memory = bytearray(500)
    read = Read(bucket(), "late", 100, 600, memoryview(memory))
    engine.submit(read)
    while not read.is_done:
        engine.turn()
        check(engine, network)
    assert (memory, read.filled) == (OBJECT[100:600], 500)
    assert (read.error, read.met, read.attempts, engine.stats.hedges) == (None, [], 1, 1)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens(seed: int):
    """Each read gets its bytes, once, and whoever has got them can use the memory for something else at once."""
    chance = random.Random(seed)
    serve = Moods(chance)
    network = FakeNetwork(
        then=serve,
        step=chance.choice([1 << 20, 5000, 200]),
        is_tls=chance.random() < 0.3,
        most_awaited=chance.choice([1, 100_000]),
    )
    engine, where = learnt(network), bucket()
    network.on_select = lambda: check(engine, network)
    used: list[bytearray] = []
    for worst in (0.1, 0.3, 0.6, 0.1):
        serve.worst = worst
        reads = []
        for _ in range(8):
            start = chance.randrange(len(OBJECT))
            memory = bytearray(min(len(OBJECT) - start, chance.choice([1, 500, 40_000])))
            reads.append((Read(where, "key", start, start + len(memory), memoryview(memory)), memory))
            engine.submit(reads[-1][0])
        for get, memory in reads:
            if chance.random() < 0.1:
                engine.cancel([get])
            else:
                engine.wait([get])
                assert get.filled == len(memory)
                assert memory == OBJECT[get.start : get.stop]
            assert not any(isinstance(error, ProtocolError) for error in get.met), "all answers were well-formed"
            memory[:] = bytes(len(memory))
            used.append(memory)
    assert engine.stats.hedges
    assert engine.pending == 0
    check(engine, network)
    engine.reset()
    assert network.open_connections == 0
    assert not any(any(memory) for memory in used)
