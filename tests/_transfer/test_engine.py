"""Tests of the engine against scripted peers in virtual time."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Generator, Sequence

import pytest

from s3torch._transfer.connection import Origin
from s3torch._transfer.engine import Engine
from s3torch._transfer.exchange import Exchange
from s3torch._transfer.facts import Facts
from s3torch._transfer.flight import Limits
from s3torch._transfer.http1 import Destination, Inbox, read_body, read_head, read_small_body
from s3torch._transfer.retry import RetryPolicy
from s3torch._transfer.stats import TransferStats
from s3torch.errors import (
    AccessDeniedError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    ProtocolError,
    S3Error,
    ServerError,
    ThrottledError,
    TruncatedBodyError,
)

from .network import (
    ORIGIN,
    Act,
    FakeConnection,
    FakeNetwork,
    Peer,
    Script,
    converse,
    never,
    refuse,
    serve,
    unresolvable,
)

ERRORS = {403: AccessDeniedError, 401: CredentialsError, 500: ServerError, 503: ThrottledError}
POLICY = RetryPolicy(max_attempts=6, base=0.25, cap=1.0)  # pauses that floats hold exactly
LIMITS = Limits(
    connections=8, bytes_in_flight=1 << 20, connect_timeout=10.0, first_byte_timeout=30.0, stall_timeout=20.0
)


class Ask(Exchange):
    """A request by name, whose answer is kept.

    Args:
        name: What is asked for.
        origin: Whom.
        memory: What it counts for.
        payload: Body of the request.
        expected: Receive so many bytes into memory of that size; None takes whatever body comes.
        recover: What `recover` does.
    """

    def __init__(
        self,
        name: str = "a",
        *,
        origin: Origin = ORIGIN,
        memory: int = 0,
        payload: bytes = b"",
        expected: int | None = None,
        recover: Callable[[S3Error], bool] = lambda error: False,
    ) -> None:
        super().__init__(origin, memory)
        self.name = name
        self.body = b""
        self.readers = 0
        self._payload = payload
        self._expected = expected
        self._recover = recover

    def request(self) -> Sequence[memoryview]:
        length = f"content-length: {len(self._payload)}\r\n" if self._payload else ""
        head = f"GET /{self.name} HTTP/1.1\r\n{length}\r\n".encode()
        return [memoryview(head), memoryview(self._payload)] if self._payload else [memoryview(head)]

    def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        self.readers += 1
        try:
            return (yield from self._answer(inbox))
        finally:
            self.readers -= 1

    def _answer(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        self.head = head = yield from read_head(inbox)
        if head.status == 200 and self._expected is not None:
            memory = bytearray(self._expected)
            yield from read_body(inbox, head, Destination(memoryview(memory)), self._expected)
            self.body = bytes(memory)
        else:
            self.body = yield from read_small_body(inbox, head, 1 << 20)
        return None if head.status == 200 else ERRORS[head.status](f"status {head.status}", status=head.status)

    def recover(self, error: S3Error) -> bool:
        return self._recover(error)

    def explain(self, error: S3Error) -> S3Error:
        error.key = self.name
        return error


def answer(status: int = 200, body: bytes = b"", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


def echo(peer: Peer, *, delay: float = 0.0) -> Act[None]:
    """Answer each request with its own target."""
    peer.accept()
    while True:
        request = yield from peer.request()
        if delay:
            yield delay
        peer.send(answer(body=request.split()[1]))


def slow_echo(peer: Peer) -> Act[None]:
    yield from echo(peer, delay=1.0)


def make(network: FakeNetwork, policy: RetryPolicy = POLICY, limits: Limits = LIMITS) -> Engine:
    return Engine(network, policy, limits, jitter=lambda: 1.0)


def targets(network: FakeNetwork) -> list[list[bytes]]:
    """Return what each connection was asked for."""
    return [[request.split()[1] for request in peer.requests] for peer in network.peers]


# How an exchange goes


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("expected", [None, 6250])
def test_exchange(step: int, is_tls: bool, expected: int | None):
    """An exchange is the same whether its answer arrives whole or byte by byte, over TLS or not."""
    content = bytes(range(250)) * 25
    network = FakeNetwork(serve(answer(200, content, "X: y\r\n")), step=step, is_tls=is_tls)
    ask = Ask(expected=expected)
    make(network).run([ask])
    assert (ask.is_done, ask.error, ask.attempts, ask.flight) == (True, None, 1, None)
    assert ask.head is not None
    assert ask.head.fields == {"content-length": "6250", "x": "y"}
    assert ask.body == content
    assert network.peers[0].requests == [b"GET /a HTTP/1.1\r\n\r\n"]
    assert network.now == 1000.0


@pytest.mark.parametrize("window", [1, 1000, 1 << 30])
def test_request_with_body(window: int):
    """A request larger than what the peer takes at a time is sent whole, piece by piece."""
    payload = bytes(range(250)) * 20
    network = FakeNetwork(trickle_reader, window=window)
    ask = Ask(payload=payload)
    make(network).run([ask])
    assert network.peers[0].requests == [b"GET /a HTTP/1.1\r\ncontent-length: 5000\r\n\r\n" + payload]


def trickle_reader(peer: Peer) -> Act[None]:
    """Read a request of 5000 bytes of body as it comes, then answer."""
    peer.accept()
    request = b""
    while len(request) < len(b"GET /a HTTP/1.1\r\ncontent-length: 5000\r\n\r\n") + 5000:
        yield from peer.arrived(1)
        request += peer.read(1 << 20)
    peer.requests.append(request)
    peer.send(answer())


def test_many_at_once():
    """Exchanges on several connections move at the same time, and each gets its own answer."""
    network = FakeNetwork(then=slow_echo)
    asks = [Ask(str(number)) for number in range(8)]
    make(network).run(asks)
    assert [ask.body for ask in asks] == [f"/{number}".encode() for number in range(8)]
    assert network.now == 1001.0


def test_wait_moves_all():
    """Waiting for one exchange moves the others too."""
    network = FakeNetwork(then=slow_echo)
    engine = make(network)
    asks = [Ask("a"), Ask("b")]
    for ask in asks:
        engine.submit(ask)
    engine.wait(asks[:1])
    assert [ask.is_done for ask in asks] == [True, True]
    engine.wait(asks)
    assert network.now == 1001.0


def test_reader_is_gone():
    """Once an exchange is done or cancelled nothing of the engine holds its memory."""
    network = FakeNetwork(serve(answer()), serve())
    engine = make(network)
    done, given_up = Ask("a"), Ask("b")
    engine.run([done])
    engine.submit(given_up)
    engine.turn()
    assert given_up.readers == 1
    engine.cancel([given_up])
    assert (done.readers, given_up.readers) == (0, 0)


def test_interim_answers_are_skipped():
    """1xx answers before the final one are skipped."""
    network = FakeNetwork(
        serve(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + answer(body=b"x"))
    )
    ask = Ask()
    make(network).run([ask])
    assert ask.body == b"x"


# Connections: kept, stale, limited


def test_keep_alive():
    """A connection carries one exchange after another."""
    network = FakeNetwork(echo)
    engine = make(network)
    for name in "abc":
        engine.run([Ask(name)])
    assert targets(network) == [[b"/a", b"/b", b"/c"]]
    assert engine.stats.connections_opened == 1


@pytest.mark.parametrize(
    "last",
    [
        answer(fields="Connection: close\r\n"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nup to the end",
        answer() + b"more",
    ],
)
def test_not_kept(last: bytes):
    """A connection isn't used again if the peer ends it, if it ends the body, or if more came than is due."""

    def script(peer: Peer) -> Act[None]:
        yield from converse(peer, last)
        peer.close()

    network = FakeNetwork(script, echo)
    engine = make(network)
    engine.run([Ask("a")])
    assert network.open_connections == 0
    engine.run([Ask("b")])
    assert targets(network) == [[b"/a"], [b"/b"]]


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("is_queued", [False, True])
def test_bytes_after_a_body(is_queued: bool, is_tls: bool):
    """Bytes behind the end of a body that went straight into its memory are never taken for the next answer."""
    content = bytes(100_000)
    script = serve(answer(body=content) + answer(body=b"evil"), answer(body=b"/b"))
    network = FakeNetwork(script, then=echo, is_tls=is_tls)
    engine = make(network, limits=Limits(connections=1))
    asks = [Ask("a", expected=len(content)), Ask("b")]
    if is_queued:
        engine.run(asks)
    else:
        engine.run(asks[:1])
        engine.run(asks[1:])
    assert [ask.body for ask in asks] == [content, b"/b"]


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("end", [None, Peer.close, Peer.hang_up])
def test_bytes_while_idle(end: Callable[[Peer], None] | None, status: int):
    """What comes on an idle connection while nobody waits is never taken for the answer to what is sent next."""

    def script(peer: Peer) -> Act[None]:
        yield from converse(peer, answer())
        yield 5.0
        peer.send(answer(status, b"evil"))  # some proxies say 408 before they hang up
        if end is not None:
            end(peer)

    network = FakeNetwork(script, echo)
    engine = make(network)
    engine.run([Ask("a")])
    network.pass_time(10.0)
    ask = Ask("b")
    engine.run([ask])
    assert (ask.body, ask.attempts) == (b"/b", 1)


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
def test_stale_connection(end: Callable[[Peer], None]):
    """A kept connection that ends before a byte of the next answer is replaced at once, and that counts no attempt."""
    network = FakeNetwork(serve(answer(), end), echo)
    engine = make(network)
    engine.run([Ask("a")])
    ask = Ask("b")
    engine.run([ask])
    assert (ask.body, ask.attempts) == (b"/b", 1)
    assert targets(network) == [[b"/a", b"/b"], [b"/b"]]
    assert (network.now, engine.stats.retries) == (1000.0, 0)


def test_all_stale():
    """Any number of stale connections is tried before a new one is opened."""
    network = FakeNetwork(*[serve(answer(), Peer.close, delay=1.0)] * 3, echo)
    engine = make(network)
    engine.run([Ask(name) for name in "abc"])
    ask = Ask("d")
    engine.run([ask])
    assert (ask.body, ask.attempts) == (b"/d", 1)
    assert engine.stats.connections_opened == 4


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
def test_closed_while_idle(end: Callable[[Peer], None]):
    """A connection that ends while it is idle is dropped as soon as somebody waits for another."""

    def script(peer: Peer) -> Act[None]:
        yield from converse(peer, answer())
        yield 0.5
        end(peer)

    network = FakeNetwork(script, slow_echo)
    engine = make(network)
    asks = [Ask("a"), Ask("b")]
    engine.run(asks)
    assert network.open_connections == 1
    assert repr(engine) == "<Engine 0 in flight, 0 queued, 1 connections, 2 requests>"


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
def test_new_connection_that_ends_is_an_attempt(end: Callable[[Peer], None]):
    """A connection that ends on its first exchange was not stale: that counts, and there is a pause."""
    network = FakeNetwork(serve(end), echo)
    ask = Ask()
    engine = make(network)
    engine.run([ask])
    assert (ask.attempts, network.now, engine.stats.retries) == (2, 1000.25, 1)


def test_kept_connection_that_ends_in_a_head_is_an_attempt():
    """A kept connection that ends after the first byte of an answer was not stale."""

    def half(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200")
        peer.close()

    network = FakeNetwork(serve(answer(), half), echo)
    ask = Ask("b")
    engine = make(network)
    engine.run([Ask("a")])
    engine.run([ask])
    assert (ask.attempts, network.now) == (2, 1000.0)


def test_reuse_is_last_in_first_out():
    """The connection that became idle last is used first, so that the others can age and go."""
    network = FakeNetwork(serve(*[answer()] * 3, delay=1.0), serve(*[answer()] * 3, delay=2.0))
    engine = make(network)
    engine.run([Ask("a"), Ask("b")])
    engine.run([Ask("c")])
    assert targets(network) == [[b"/a"], [b"/b", b"/c"]]


@pytest.mark.parametrize(("seconds", "connections"), [(14.9, 1), (15.0, 2)])
def test_idle_lifetime(seconds: float, connections: int):
    """A connection that was idle for 15 seconds is closed instead of used."""
    network = FakeNetwork(then=echo)
    engine = make(network)
    engine.run([Ask("a")])
    network.pass_time(seconds)
    engine.run([Ask("b")])
    assert len(network.connections) == connections
    assert network.open_connections == 1


def test_connection_limit():
    """There are never more connections than allowed, and all of them are used."""
    network = FakeNetwork(then=slow_echo)
    asks = [Ask(str(number)) for number in range(10)]
    make(network, limits=Limits(connections=3)).run(asks)
    assert [ask.body for ask in asks] == [f"/{number}".encode() for number in range(10)]
    assert network.peak == len(network.connections) == 3
    assert network.now == 1004.0  # ten requests of a second, three at a time


def test_connection_limit_over_origins():
    """At the limit an idle connection to one server makes room for one to another."""
    network = FakeNetwork(then=echo)
    engine = make(network, limits=Limits(connections=2))
    other = Origin("http", "other.test", 80)
    engine.run([Ask("a"), Ask("b")])
    engine.run([Ask("c", origin=other)])
    engine.run([Ask("d")])
    assert network.peak == 2
    assert [connection.origin for connection in network.connections] == [ORIGIN, ORIGIN, other]


def test_connection_limit_under_failures():
    """Connections that failed don't count against the limit."""
    network = FakeNetwork(serve(b"garbage\r\n\r\n"), refuse, serve(Peer.close), echo)
    ask = Ask()
    make(network, limits=Limits(connections=1)).run([ask])
    assert (network.peak, ask.attempts) == (1, 4)


def test_bytes_in_flight_limit():
    """The bytes that exchanges in flight wait for never exceed the limit; a larger one goes alone."""
    network = FakeNetwork(then=slow_echo)
    sizes = [40, 40, 40, 500, 0, 60, 41, 100]
    asks = [Ask(str(number), memory=size) for number, size in enumerate(sizes)]
    seen = set()

    def look() -> None:
        in_flight = [ask.memory for ask in asks if ask.flight is not None]
        assert sum(in_flight) <= 100 or len(in_flight) == 1
        seen.add(tuple(in_flight))

    network.on_select = look
    make(network, limits=Limits(bytes_in_flight=100)).run(asks)
    assert all(ask.error is None for ask in asks)
    assert {(40, 40), (500,), (0, 60), (41,), (100,)} <= seen


def test_what_was_cancelled_holds_nothing_up():
    """A large exchange that was cancelled while it was queued keeps no memory from smaller ones."""
    network = FakeNetwork(serve(answer(), delay=5.0), then=echo)
    engine = make(network, limits=Limits(bytes_in_flight=100))
    slow, large, small = Ask("slow", memory=60), Ask("large", memory=100), Ask("small", memory=40)
    for ask in (slow, large, small):
        engine.submit(ask)
    engine.nudge()
    engine.cancel([large])
    engine.wait([small])
    assert not slow.is_done
    engine.wait([slow])
    assert targets(network) == [[b"/slow"], [b"/small"]]


def test_bytes_in_flight_after_failures():
    """Failed, cancelled and stale exchanges give their share of the limit back."""
    network = FakeNetwork(serve(answer(), Peer.close), serve(answer(500)), refuse, serve(), echo, then=echo)
    engine = make(network, limits=Limits(bytes_in_flight=100))
    engine.run([Ask("a", memory=100)])
    engine.run([Ask("b", memory=100)])
    given_up = Ask("c", memory=100)
    engine.submit(given_up)
    network.connections[-1].peer.close()  # so that c gets a connection that answers nothing
    engine.turn()
    engine.cancel([given_up])
    asks = [Ask(memory=50) for _ in range(2)]
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, sum(ask.flight is not None for ask in asks))

    network.on_select = look
    engine.run(asks)
    assert most == 2


def test_queue_order():
    """Exchanges are sent in the order in which they were submitted; one that is retried goes before those that wait."""
    network = FakeNetwork(serve(answer(503), *[answer()] * 9, delay=0.125))
    asks = [Ask(name) for name in "abcde"]
    make(network, limits=Limits(connections=1)).run(asks)
    assert targets(network) == [[b"/a", b"/b", b"/c", b"/a", b"/d", b"/e"]]


# Retries


def test_pauses():
    """Each pause is twice as long as the one before, up to the cap, and nothing else takes time."""
    network = FakeNetwork(serve(*[answer(503)] * 5, answer()))
    moments: list[float] = []

    def look() -> None:
        if ask.attempts > len(moments):
            moments.append(network.now)

    ask = Ask()
    network.on_select = look
    engine = make(network)
    engine.run([ask])
    assert [moment - 1000.0 for moment in moments] == [0.0, 0.25, 0.75, 1.75, 2.75, 3.75]
    assert (ask.attempts, engine.stats.retries, engine.stats.requests) == (6, 5, 6)


def test_jitter():
    """A pause is the jitter's share of the longest one."""
    network = FakeNetwork(serve(answer(503), answer(503), answer()))
    shares = iter([0.5, 0.125])
    Engine(network, POLICY, LIMITS, jitter=lambda: next(shares)).run([Ask()])
    assert network.now == 1000.0 + 0.5 * 0.25 + 0.125 * 0.5


def test_an_outage_is_not_amplified():
    """Once a hundred retries were in vain the others wait for the longest pause instead of a short one."""
    network = FakeNetwork(then=serve(*[answer(500)] * 1000))
    engine = make(network, RetryPolicy(max_attempts=2, base=2.5, cap=8.0), Limits(connections=1))
    for number in range(100):
        with pytest.raises(ServerError):
            engine.run([Ask()])
        assert network.now == 1000.0 + 0.5 * (number + 1)
    with pytest.raises(ServerError):
        engine.run([Ask()])
    assert network.now == 1000.0 + 50.0 + 8.0


def limited(clock: Callable[[], float], admits: Callable[[float], bool], seen: list[float]) -> Script:
    """Return the script of a server that answers after 30 ms what is admitted, and refuses the rest after 10 ms."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            target = (yield from peer.request()).split()[1]
            seen.append(clock())
            is_admitted = admits(clock())
            yield 0.03 if is_admitted else 0.01
            peer.send(answer(body=target) if is_admitted else answer(503))

    return script


def test_a_limit_is_used():
    """Batches one after the other, at a service that takes fewer requests than there could be, come nearly as fast."""
    per_second, tokens, filled_at = 50.0, 5.0, 1000.0

    def admits(now: float) -> bool:
        nonlocal tokens, filled_at
        tokens, filled_at = min(5.0, tokens + (now - filled_at) * per_second), now
        tokens -= (is_admitted := tokens >= 1.0)
        return is_admitted

    seen, facts = list[float](), Facts()
    network = FakeNetwork(then=limited(lambda: network.now, admits, seen))
    engine = Engine(network, RetryPolicy(), LIMITS, facts=facts, jitter=random.Random(1).random)
    for batch in range(100):
        asks = [Ask(f"{batch}.{number}") for number in range(16)]
        engine.run(asks)
        assert [ask.body for ask in asks] == [f"/{ask.name}".encode() for ask in asks]
    assert network.now - 1000.0 < 1600 / per_second / 0.8
    assert len(seen) < 1600 * 1.3
    assert facts.of(ORIGIN).retry_budget.has_tokens


def test_a_service_that_refuses_all_is_left_alone():
    """While all is refused a request goes out in two seconds or so; then all are answered, and none is given up."""
    up_at, seen = 1060.0, list[float]()
    network = FakeNetwork(then=limited(lambda: network.now, lambda now: now == 1000.0 or now >= up_at, seen))
    engine = Engine(network, RetryPolicy(), LIMITS, jitter=random.Random(1).random)
    engine.run([Ask()])
    engine.run([Ask(str(number)) for number in range(64)])
    assert sum(1020.0 <= moment < up_at for moment in seen) < 40
    assert network.now < up_at + 8.0
    assert max(sum(second <= moment < second + 1.0 for moment in seen) for second in range(1060, 1070)) <= 8 / 0.03


def test_a_server_that_is_left_alone_holds_up_no_other():
    """While nothing is sent to one server, what goes to another is sent at once, though it was submitted later."""
    other = Origin("http", "other.test", 80)
    network = FakeNetwork(then=echo)
    facts = Facts()
    engine = Engine(network, RetryPolicy(), LIMITS, facts=facts, jitter=lambda: 0.5)
    window = facts.of(ORIGIN).window(LIMITS.connections)
    for began in range(20):
        window.note_throttled(began, began + 0.5)
    first, *waiting = [Ask(str(number)) for number in range(6)]
    engine.run([first, Ask(origin=other)])
    began = network.now
    for ask in waiting:
        engine.submit(ask)
    engine.run([Ask(str(number), origin=other) for number in range(20)])
    assert network.now == began
    engine.wait(waiting)
    assert network.now > began
    assert [ask.body for ask in waiting] == [f"/{number}".encode() for number in range(1, 6)]


def test_what_was_refused_goes_first():
    """What was sent before goes before what was not, and first what was sent most often: others wait for it."""
    network = FakeNetwork(then=echo)
    engine = make(network, limits=Limits(connections=1))
    asks = {name: Ask(name) for name in "abcde"}
    for ask in asks.values():
        engine.submit(ask)
    for name, attempts in (("b", 2), ("c", 1), ("e", 2)):
        asks[name].attempts = attempts
        engine._loop._queue.remove(asks[name])
    engine._loop._queue_again([asks["c"], asks["b"]])
    engine._loop._queue_again([asks["e"]])
    engine.wait(list(asks.values()))
    assert targets(network) == [[b"/b", b"/e", b"/c", b"/a", b"/d"]]


def test_called_back_after_an_outage():
    """What waits for a server that was down is sent again soon after it has answered the first of them."""
    up_at = 1030.0

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            yield from peer.request()
            is_down = 1000.0 < network.now < up_at
            yield 1.0
            if is_down:
                peer.reset()
                return
            peer.send(answer())

    network = FakeNetwork(then=script)
    shares = random.Random(1).random
    engine = Engine(network, RetryPolicy(max_attempts=100, base=0.05, cap=20.0), Limits(connections=64), jitter=shares)
    engine.run([Ask()])
    engine.run([Ask(str(number)) for number in range(64)])
    assert up_at <= network.now < up_at + 6.0  # without that, one of them waits for some 19 seconds


def test_who_is_not_called_back():
    """That a connection could be made again says nothing of a server that was too busy."""
    refusals = {b"busy": [answer(500)], b"cut": [b""]}

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            target = (yield from peer.request()).split()[1].strip(b"/")
            yield 0.1
            left = refusals.get(target)
            if not left:
                peer.send(answer())
            elif not peer.send(left.pop()) and target == b"cut":
                peer.reset()
                return

    network = FakeNetwork(then=script)
    engine = Engine(network, RetryPolicy(base=40.0, cap=40.0), Limits(connections=3), jitter=lambda: 0.5)
    engine.run([Ask("first")])
    engine.run([Ask("busy"), Ask("cut"), Ask("other")])
    assert network.now >= 1004.0


def test_throttled():
    """When the service asks for fewer requests, half as many are in flight, and more again as they succeed."""
    refusals = iter([True] * 8)
    together: list[tuple[float, int]] = []

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            yield from peer.request()
            yield 0.1
            peer.send(answer(503) if next(refusals, False) else answer())

    network = FakeNetwork(then=script)
    engine = make(network, limits=Limits(connections=8))
    asks = [Ask(str(number)) for number in range(200)]
    network.on_select = lambda: together.append((network.now, sum(ask.flight is not None for ask in asks)))
    engine.run(asks)
    assert max(count for now, count in together if now < 1000.1) == 8
    assert max(count for now, count in together if 1000.15 < now < 1000.25) == 4
    assert max(count for now, count in together if now > 1002.0) == 8
    assert engine.stats.retries == 8


def slow_on(slow: dict[bytes, list[float]], usual: float = 0.02) -> Script:
    """Return a script that answers each request with its target: after the next of its seconds, or the usual ones."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            target = (yield from peer.request()).split()[1]
            seconds = slow.get(target)
            yield seconds.pop(0) if seconds else usual
            peer.send(answer(body=target))

    return script


class Look(Ask):
    """A request that may be sent a second time beside the first."""

    is_read = True


def learnt(network: FakeNetwork, **limits: object) -> Engine:
    """Return an engine that knows what the first byte of this network takes."""
    engine = make(network, limits=Limits(**limits))
    engine.run([Look(str(number)) for number in range(64)])
    assert engine.stats.hedges == 0
    return engine


def test_late_first_byte_is_asked_for_again():
    """A read whose first byte is late is sent on a new connection, and the first answer counts."""
    network = FakeNetwork(then=slow_on({b"/late": [1.0]}))
    engine = learnt(network, connections=8)
    began, known = network.now, len(network.connections)
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/late", 1, 1)
    assert network.now - began == pytest.approx(0.04 + 0.02)
    assert len(network.connections) == known + 1
    asked = [peer for peer in network.peers if b"/late" in peer.requests[-1]]
    assert [peer.client_left for peer in asked] == [True, False]
    assert ask.flight is None
    assert ask.rival is None
    assert engine.pending == 0


def test_late_first_byte_comes_first_after_all():
    """The first request wins if its answer comes before that to the second."""
    network = FakeNetwork(then=slow_on({b"/late": [0.06, 1.0]}))
    engine = learnt(network, connections=8)
    began = network.now
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/late", 1, 1)
    assert network.now - began == pytest.approx(0.06)
    again = Look("again")
    engine.run([again])
    assert again.body == b"/again"


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
def test_rival_that_breaks(end: Callable[[Peer], None]):
    """A second request that breaks takes nothing from the first, and the other way round."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            target = (yield from peer.request()).split()[1]
            if target != b"/late":
                yield 0.02
            elif not seen:
                seen.append(peer)
                yield 0.3
            elif len(seen) == 1:
                seen.append(peer)
                yield 0.01
                end(peer)
                return
            peer.send(answer(body=target))

    seen: list[Peer] = []
    network = FakeNetwork(then=script)
    engine = learnt(network, connections=8)
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, len(seen)) == (b"/late", 1, 2)
    assert (engine.stats.retries, engine.pending) == (0, 0)


def test_both_break():
    """If both requests break the read is sent again as usual: its kept connection may have been closed meanwhile."""
    breaks = iter([0.1, 0.01])

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            target = (yield from peer.request()).split()[1]
            pause = next(breaks, None) if target == b"/late" else None
            yield pause or 0.02
            if pause:
                peer.close()
                return
            peer.send(answer(body=target))

    network = FakeNetwork(then=script)
    engine = learnt(network, connections=8)
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/late", 1, 1)
    assert sum(b"/late" in peer.requests[-1] for peer in network.peers) == 3


def test_second_request_is_late_as_well():
    """If the second request is late, too, a third one is sent, and the first one is given up."""
    network = FakeNetwork(then=slow_on({b"/late": [1.0, 1.0]}))
    engine = learnt(network, connections=8)
    began = network.now
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/late", 1, 2)
    assert network.now - began == pytest.approx(0.04 + 0.04 + 0.02)
    asked = [peer for peer in network.peers if b"/late" in peer.requests[-1]]
    assert [peer.client_left for peer in asked] == [True, True, False]


@pytest.mark.parametrize("hedging", [True, False])
def test_what_is_not_asked_for_again(hedging: bool):
    """What is no read is never sent a second time beside the first, and no read is if that is not wanted."""
    network = FakeNetwork(then=slow_on({b"/late": [1.0]}))
    engine = learnt(network, connections=8, hedging=hedging)
    began = network.now
    engine.run([(Ask if hedging else Look)("late")])
    assert engine.stats.hedges == 0
    assert network.now - began == pytest.approx(1.0)


def test_cancel_with_a_rival():
    """Cancelling a read closes the connections of both its requests."""
    network = FakeNetwork(then=slow_on({b"/late": [100.0, 100.0]}))
    engine = learnt(network, connections=8)
    ask = Look("late")
    engine.submit(ask)
    while ask.rival is None:
        engine.turn()
    before = network.open_connections
    engine.cancel([ask])
    assert network.open_connections == before - 2
    assert (engine.pending, ask.flight, ask.rival) == (0, None, None)
    engine.run([Look("next")])


def test_reset_with_a_rival():
    """A reset ends both requests of a read, and the read is sent again when somebody waits for it."""
    network = FakeNetwork(then=slow_on({b"/late": [100.0, 100.0]}))
    engine = learnt(network, connections=8)
    ask = Look("late")
    engine.submit(ask)
    while ask.rival is None:
        engine.turn()
    engine.reset()
    assert (ask.is_done, ask.flight, ask.rival, network.open_connections) == (False, None, None, 0)
    engine.run([Look("next")])
    engine.wait([ask])
    assert ask.body == b"/late"


def stops_on(target: bytes, pauses: list[float]) -> Script:
    """Return a script that sends half of its answer to a target, and the rest after the next of the seconds."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            asked = (yield from peer.request()).split()[1]
            yield 0.02
            whole = answer(body=asked)
            if asked == target and pauses:
                peer.send(whole[:-2])
                yield pauses.pop(0)
                peer.send(whole[-2:])
            else:
                peer.send(whole)

    return script


def test_body_that_stops_is_asked_for_again():
    """A read whose body brings nothing for a while is sent on a new connection, and goes on there."""
    network = FakeNetwork(then=stops_on(b"/stops", [100.0]))
    engine = learnt(network, connections=8)
    began = network.now
    ask = Look("stops")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/stops", 1, 1)
    assert network.now - began == pytest.approx(0.02 + 0.1 + 0.02)
    asked = [peer for peer in network.peers if b"/stops" in peer.requests[-1]]
    assert [peer.client_left for peer in asked] == [True, False]
    assert (ask.flight, ask.rival, ask.readers, engine.pending) == (None, None, 0, 0)


def test_body_that_stops_in_steps_that_select_does_not_report():
    """What lies below the mark that select waits for is received first: that is no silence."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            asked = (yield from peer.request()).split()[1]
            yield 0.02
            peer.send(answer(body=bytes(400_000))[:-400_000] if asked == b"/slow" else answer())
            for _ in range(4 if asked == b"/slow" else 0):
                yield 0.08
                peer.send(bytes(100_000))

    network = FakeNetwork(then=script, most_awaited=512 * 1024)
    engine = learnt(network, connections=8)
    ask = Look("slow", expected=400_000)
    engine.run([ask])
    assert (len(ask.body), engine.stats.hedges) == (400_000, 0)


def test_body_goes_on_after_all():
    """If a body that stopped goes on before the second answer comes, that is given up; if it stops again, not."""
    network = FakeNetwork(then=stops_on(b"/stops", [0.11, 100.0]))
    engine = learnt(network, connections=8)
    began = network.now
    ask = Look("stops")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/stops", 1, 1)
    assert network.now - began == pytest.approx(0.02 + 0.11)
    assert (ask.flight, ask.rival, ask.readers, engine.pending) == (None, None, 0, 0)


def test_bodies_stop_for_all():
    """If the second body stops as well, a third one is asked for."""
    network = FakeNetwork(then=stops_on(b"/stops", [100.0, 100.0]))
    engine = learnt(network, connections=8)
    ask = Look("stops")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/stops", 1, 2)
    asked = [peer for peer in network.peers if b"/stops" in peer.requests[-1]]
    assert [peer.client_left for peer in asked] == [True, True, False]


def test_no_connection_for_a_second_request(monkeypatch):
    """If no second connection can be begun, the first answer is waited for."""
    network = FakeNetwork(then=slow_on({b"/late": [1.0]}))
    engine = learnt(network, connections=8)

    def refuse_all(origin: Origin) -> None:
        raise ConnectionFailedError("No address.")

    monkeypatch.setattr(network, "open", refuse_all)
    ask = Look("late")
    engine.run([ask])
    assert (ask.body, ask.attempts, engine.stats.hedges) == (b"/late", 1, 0)


def test_hedging_is_bounded():
    """If all of a sudden every answer is late, only few requests are sent a second time."""
    seconds = 0.02

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            yield from peer.request()
            yield seconds
            peer.send(answer(body=b"x"))

    network = FakeNetwork(then=script)
    engine = learnt(network, connections=256)
    engine.run([Look(str(number)) for number in range(1000)])
    before = engine.stats.hedges
    seconds = 1.0
    engine.run([Look(str(number)) for number in range(64)])
    assert 0 < engine.stats.hedges - before <= 20


def test_hedging_pays():
    """With one request in a hundred a second late, batches of 64 end three times sooner at the 99th percentile."""
    times = {hedging: _batch_times(hedging=hedging) for hedging in (False, True)}
    (without, _), (with_it, extra) = times[False], times[True]
    assert sorted(without)[98] >= 3 * sorted(with_it)[98]
    assert extra < 0.03


def _batch_times(*, hedging: bool) -> tuple[list[float], float]:
    """Return the seconds of 100 batches, and the share of second requests."""
    chance = random.Random(1)

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        while True:
            yield from peer.request()
            yield 1.0 if chance.random() < 0.01 else 0.02 + 0.01 * chance.random()
            peer.send(answer(body=b"x"))

    network = FakeNetwork(then=script)
    engine = make(network, limits=Limits(connections=128, hedging=hedging))
    engine.run([Look(str(number)) for number in range(64)])
    seconds = []
    for _ in range(100):
        began = network.now
        engine.run([Look(str(number)) for number in range(64)])
        seconds.append(network.now - began)
    return seconds, engine.stats.hedges / engine.stats.requests


def test_call_timeout():
    """A call that takes longer than it may is given up, retries included; time in which nobody waits is free."""
    network = FakeNetwork(then=serve(answer(), *[answer(500)] * 100, delay=1.0))
    engine = make(network, RetryPolicy(max_attempts=100, base=0.25, cap=1.0), Limits(call_timeout=10.0))
    engine.run([Ask()])
    ask = Ask()
    engine.submit(ask)
    engine.nudge()
    network.pass_time(1000.0)
    began = network.now
    with pytest.raises(DeadlineError, match="not done within 10 s"):
        engine.wait([ask])
    assert 10.0 <= network.now - began <= 11.5
    assert ask.is_done
    assert engine.pending == 0


def test_a_call_whose_time_is_up():
    """A call whose deadline is this very moment does not turn the loop once more."""
    network = FakeNetwork(serve(answer()))
    engine = make(network)
    engine.run([Ask()])
    ask = Ask()
    engine.submit(ask)
    with pytest.raises(DeadlineError, match="not done within its time"):
        engine.turn(network.now)
    assert not ask.is_done
    engine.cancel([ask])


def test_others_move_during_a_pause():
    """While one exchange pauses the others go on."""
    network = FakeNetwork(serve(answer(503)), then=echo)
    engine = make(network)
    paused, other = Ask("a"), Ask("b")
    engine.submit(paused)
    engine.run([other])
    engine.wait([paused])
    assert network.now == 1000.25


def test_gives_up():
    """After the last permitted attempt its error is raised, which says how many there were."""
    network = FakeNetwork(serve(*[answer(500)] * 5, answer(503)))
    ask = Ask("k")
    with pytest.raises(ThrottledError) as caught:
        make(network).run([ask])
    assert (caught.value.attempts, caught.value.key, ask.attempts) == (6, "k", 6)
    assert type(ask.error) is ThrottledError
    assert network.now == 1000.0 + 0.05 + 0.5 + 1 + 1 + 1


@pytest.mark.parametrize("script", [refuse, unresolvable, serve(Peer.close)])
def test_never_reached(script: Script):
    """An endpoint that never answered is given up after four attempts, which takes the pauses between them."""
    network = FakeNetwork(then=script)
    with pytest.raises(ConnectionFailedError) as caught:
        make(network).run([Ask()])
    assert caught.value.attempts == 4
    assert network.now == 1000.0 + 0.25 + 0.5 + 1


@pytest.mark.parametrize("script", [never, serve()])
def test_never_reached_in_time(script: Script):
    """An endpoint that never answered within a deadline is given up after four attempts, too."""
    network = FakeNetwork(then=script)
    with pytest.raises(DeadlineError) as caught:
        make(network).run([Ask()])
    assert caught.value.attempts == 4


def test_reached_before():
    """An endpoint that has answered once gets all permitted attempts, when it can't be reached any more."""
    network = FakeNetwork(serve(answer(), Peer.close), then=refuse)
    engine = make(network)
    engine.run([Ask()])
    with pytest.raises(ConnectionFailedError) as caught:
        engine.run([Ask()])
    assert caught.value.attempts == 6


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-OpenSSH_9.7\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"H" * 70_000]
)
def test_nonsense(nonsense: bytes):
    """A server that does not speak HTTP gets three attempts, each on a connection of its own."""
    network = FakeNetwork(then=serve(nonsense))
    with pytest.raises(ProtocolError) as caught:
        make(network).run([Ask()])
    assert caught.value.attempts == 3
    assert (len(network.connections), network.open_connections) == (3, 0)


def test_truncated_body():
    """A body that breaks off is asked for again."""

    def cut(peer: Peer) -> None:
        peer.send(answer(body=b"12345678")[:-4])
        peer.close()

    network = FakeNetwork(serve(cut), echo)
    ask = Ask()
    make(network).run([ask])
    assert (ask.attempts, ask.body) == (2, b"/a")
    network = FakeNetwork(then=serve(cut))
    with pytest.raises(TruncatedBodyError) as caught:
        make(network).run([Ask()])
    assert caught.value.attempts == 6


def test_final_error():
    """An error that another attempt would meet again is raised after one, and its connection is kept."""
    network = FakeNetwork(serve(answer(403), answer()))
    engine = make(network)
    with pytest.raises(AccessDeniedError) as caught:
        engine.run([Ask()])
    assert (caught.value.attempts, network.now) == (1, 1000.0)
    engine.run([Ask()])
    assert len(network.connections) == 1


def test_recover():
    """An error that the exchange corrects is followed by another attempt at once."""
    network = FakeNetwork(serve(answer(401), answer()))
    ask = Ask(recover=lambda error: isinstance(error, CredentialsError))
    engine = make(network)
    engine.run([ask])
    assert (ask.attempts, network.now, engine.stats.retries) == (2, 1000.0, 1)


def test_recover_in_vain():
    """What the exchange does not correct a second time is raised."""
    corrections = iter([True, False])
    network = FakeNetwork(serve(answer(401), answer(401)))
    with pytest.raises(CredentialsError) as caught:
        make(network).run([Ask(recover=lambda error: next(corrections))])
    assert caught.value.attempts == 2


def test_recover_that_fails():
    """If correcting an error fails, its exchange fails with that, and the others go on."""

    def fail(error: S3Error) -> bool:
        raise CredentialsError("there are none")

    network = FakeNetwork(slow_echo, serve(answer(401)))
    engine = make(network)
    unlucky, lucky = Ask("a", recover=fail), Ask("b")
    engine.submit(lucky)
    with pytest.raises(CredentialsError, match="there are none"):
        engine.run([unlucky])
    engine.wait([lucky])
    assert lucky.error is None


# Deadlines


def test_connect_deadline():
    """A connection that is not made in time fails, is closed, and another is tried."""
    network = FakeNetwork(never, echo)
    ask = Ask()
    engine = make(network)
    engine.run([ask])
    assert ask.attempts == 2
    assert 1010.25 <= network.now <= 1010.75
    assert network.open_connections == 1


@pytest.mark.parametrize("before", [0, 1])
def test_first_byte_deadline(before: int):
    """A server that takes the request and says nothing is given up in time, on a new and on a kept connection."""
    network = FakeNetwork(serve(*[answer()] * before))
    engine = make(network, RetryPolicy(max_attempts=1))
    engine.run([Ask() for _ in range(before)])
    with pytest.raises(DeadlineError, match=r"No answer from http://bucket\.test:80 within 30 s\."):
        engine.run([Ask()])
    assert 1030.0 <= network.now <= 1030.5
    assert network.open_connections == 0


def drip(rate: float, seconds: int, *, first: float = 0.0) -> Script:
    """Return the script of a peer that sends the body of an answer at a rate in bytes per second."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        yield from peer.request()
        total = int(rate) * seconds
        yield first
        peer.send(answer(body=bytes(total))[:-total])
        for _ in range(seconds):
            yield 1.0
            peer.send(bytes(int(rate)))

    return script


@pytest.mark.parametrize("rate", [0, 1, 900])
def test_stall(rate: int):
    """A body that comes with less than 1 KiB per second is given up, within two stall timeouts."""
    network = FakeNetwork(drip(rate, 1000) if rate else serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))
    with pytest.raises(DeadlineError, match=r"Only \d+ bytes moved to or from http://bucket\.test:80 in 20 s\."):
        make(network, RetryPolicy(max_attempts=1)).run([Ask()])
    assert 1020.0 <= network.now <= 1041.0


def test_slow_but_steady():
    """A body that comes with a little more than 1 KiB per second is received, however long it takes."""
    network = FakeNetwork(drip(1100, 500))
    ask = Ask()
    make(network).run([ask])
    assert (ask.attempts, len(ask.body)) == (1, 550_000)
    assert network.now == 1500.0


@pytest.mark.parametrize("rate", [1100, 50_000, 1_000_000])
def test_slower_than_select_reports(rate: int):
    """Bytes below the mark at which select reports a connection count as progress, and arrive."""
    network = FakeNetwork(drip(rate, 60), most_awaited=1 << 19)
    ask = Ask(expected=60 * rate)
    make(network).run([ask])
    assert (ask.attempts, len(ask.body)) == (1, 60 * rate)
    assert network.now <= 1060.5


def test_end_below_the_mark():
    """A body that breaks off where select would not have reported it is tried again."""
    network = FakeNetwork(
        serve(answer(body=bytes(300_000))[:200_000], Peer.close),
        then=serve(answer(body=b"x" * 300_000)),
        most_awaited=1 << 18,
    )
    ask = Ask(expected=300_000)
    make(network).run([ask])
    assert (ask.attempts, ask.body) == (2, b"x" * 300_000)


def test_mark_is_taken_back():
    """After a long body a connection reports the next answer, however short."""
    network = FakeNetwork(serve(answer(body=bytes(300_000)), answer(body=b"ok")), most_awaited=1 << 18)
    engine = make(network)
    engine.run([Ask(expected=300_000)])
    ask = Ask()
    engine.run([ask])
    assert ask.body == b"ok"
    assert len(network.connections) == 1


def test_fast_connection_shares():
    """Over TLS a connection that brings more than it is asked for at once lets the others move."""
    network = FakeNetwork(serve(answer(body=bytes(5_000_000))), serve(answer(body=b"short")), is_tls=True)
    engine = make(network)
    long, short = Ask("long", expected=5_000_000), Ask("short")
    engine.submit(long)
    engine.submit(short)
    engine.wait([short])
    assert short.body == b"short"
    assert not long.is_done
    engine.wait([long])
    assert len(long.body) == 5_000_000


def test_nudge():
    """A nudge sends what is queued without waiting, unless the loop was turned within the interval."""
    network = FakeNetwork(then=echo)
    engine = make(network)
    ask = Ask()
    engine.submit(ask)
    for _ in range(3):
        engine.nudge()
    assert targets(network) == [[b"/a"]]
    engine.submit(Ask("b"))
    engine.nudge(1.0)
    assert len(network.connections) == 1
    network.pass_time(1.0)
    engine.nudge(1.0)
    assert len(network.connections) == 1  # the first one has its answer
    engine.wait([ask])
    assert network.now == 1001.0


@pytest.mark.parametrize(("seconds", "is_sent"), [(0.5, False), (1.0, True)])
def test_a_nudge_after_its_interval(seconds: float, is_sent: bool):
    """A nudge does something again once its interval has passed."""
    network = FakeNetwork(then=echo)
    engine = make(network)
    engine.run([Ask()])
    ask = Ask("b", origin=Origin("http", "other.test", 80))
    engine.submit(ask)
    network.pass_time(seconds)
    engine.nudge(1.0)
    assert len(network.connections) == 1 + is_sent
    engine.wait([ask])


def test_a_nudge_waits_for_nothing():
    """However long an answer takes, a nudge takes no time."""
    network = FakeNetwork(serve(answer(), delay=5.0))
    engine = make(network)
    ask = Ask()
    engine.submit(ask)
    began = network.now
    for _ in range(10):
        engine.nudge()
    assert (network.now, ask.is_done) == (began, False)
    engine.wait([ask])
    assert network.now >= began + 5.0


def test_a_process_that_is_stopped_while_it_waits(monkeypatch):
    """The time for which a process was stopped counts for no deadline, and what comes after it counts as ever."""
    network = FakeNetwork(serve(answer(), delay=1000.0))
    engine = make(network, RetryPolicy(max_attempts=1), Limits(first_byte_timeout=30.0))
    select, stops = network.select, [0.0, 0.0, 100.0]

    def stopped(timeout: float) -> list[tuple[FakeConnection, int]]:
        ready = select(timeout)
        if stops:
            network.pass_time(stops.pop(0))
        return ready

    monkeypatch.setattr(network, "select", stopped)
    began = network.now
    with pytest.raises(DeadlineError, match="No answer"):
        engine.run([Ask()])
    assert 130.0 <= network.now - began <= 140.0


def test_a_turn_that_takes_long():
    """Time that a turn spends elsewhere, as a process that was stopped does, counts for no deadline of a later wait."""
    network = FakeNetwork(serve(answer(body=b"late"), delay=110.0), serve(answer(), delay=1.0))

    class Busy(Ask):
        def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
            answer_of = super().response(inbox)
            network.pass_time(100.0)
            return answer_of

    engine = make(network, limits=Limits(first_byte_timeout=30.0))
    late = Ask("late")
    engine.submit(late)
    engine.nudge()
    engine.run([Busy()])
    engine.wait([late])
    assert (late.body, late.attempts) == (b"late", 1)


def test_signing_that_takes_long():
    """While a request waits for what signs it nothing moves: that counts for the call, and for no other deadline."""
    network = FakeNetwork(serve(answer(body=b"late"), delay=110.0), serve(answer(), delay=1.0))
    left: list[float | None] = []

    class Signed(Ask):
        def request(self) -> Sequence[memoryview]:
            left.append(engine.time_left())
            network.pass_time(100.0)
            left.append(engine.time_left())
            return super().request()

    engine = make(network, limits=Limits(first_byte_timeout=30.0, call_timeout=90.0))
    late, signed = Ask("late"), Signed()
    engine.submit(late)
    engine.nudge()
    with pytest.raises(DeadlineError, match="not done within 90 s"):
        engine.run([signed])
    assert left == [90.0, 0.0]
    assert late.attempts == 1
    engine.wait([late])
    assert (late.body, late.attempts) == (b"late", 1)


def test_a_call_without_time_for_what_signs():
    """A request that cannot be signed within a call's time goes on in the next call, as if it had not been begun."""
    network = FakeNetwork(then=serve(answer(body=b"x")))
    ready: list[None] = []

    class Signed(Ask):
        def request(self) -> Sequence[memoryview]:
            if not ready:
                network.pass_time(engine.time_left() or 0.0)
                raise DeadlineError("Time is up.")
            return super().request()

    engine = make(network, RetryPolicy(max_attempts=1), Limits(call_timeout=10.0))
    ask = Signed()
    engine.submit(ask)
    with pytest.raises(DeadlineError, match="not done within 10 s"):
        engine.run([Signed()])
    assert not ask.is_done
    ready.append(None)
    engine.wait([ask])
    assert (ask.body, ask.attempts) == (b"x", 1)


def test_first_of_the_queue():
    """What comes first is sent before all that is queued."""
    network = FakeNetwork(serve(answer(), answer(), answer()))
    engine = make(network, limits=Limits(connections=1))
    for name in "ab":
        engine.submit(Ask(name))
    first = Ask("first")
    engine.submit(first, is_first=True)
    engine.wait([first])
    assert targets(network)[0][0] == b"/first"


def test_late_first_byte():
    """A stall is counted from the first byte on: an answer that begins late has all its time to go on."""
    network = FakeNetwork(drip(100, 3, first=29.0))
    ask = Ask()
    make(network).run([ask])
    assert ask.attempts == 1
    assert network.now == 1032.0


def test_stall_of_a_request():
    """A server that does not read the body of a request is given up."""
    network = FakeNetwork(serve(), window=1000)
    with pytest.raises(DeadlineError, match="Only 1000 bytes moved"):
        make(network, RetryPolicy(max_attempts=1)).run([Ask(payload=bytes(5000))])
    assert 1020.0 <= network.now <= 1020.5


def test_server_that_thinks_after_a_large_body():
    """The time in which a large body is sent counts for neither the first byte nor a stall."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        for _ in range(50):
            yield 1.0
            peer.read(1100)
        yield 25.0
        peer.read(1 << 20)
        peer.send(answer())

    network = FakeNetwork(script, window=1100)
    ask = Ask(payload=bytes(52_000))
    make(network).run([ask])
    assert ask.attempts == 1


def test_absence_does_not_count():
    """Time in which nobody waits runs no transfer into a deadline, whatever it is doing."""
    network = FakeNetwork(never, serve(), drip(2000, 30), serve(), window=100)
    engine = make(network)
    asks = [Ask("connecting"), Ask("asked"), Ask("receiving"), Ask("sending", payload=bytes(1000))]
    for ask in asks:
        engine.submit(ask)
    for _ in range(5):
        network.pass_time(1000.0)
        engine.turn()
    assert [ask.attempts for ask in asks] == [1, 1, 1, 1]
    assert all(ask.flight is not None for ask in (asks[0], asks[1], asks[3]))


def test_absence_does_not_shorten_deadlines():
    """After an absence a transfer has the rest of its time, and no more."""
    network = FakeNetwork(serve())
    engine = make(network, RetryPolicy(max_attempts=1))
    ask = Ask()
    engine.submit(ask)
    while network.now < 1020.0:
        engine.turn()
    network.pass_time(500.0)
    with pytest.raises(DeadlineError):
        engine.wait([ask])
    assert 1530.0 <= network.now <= 1530.75


def test_absence_in_a_pause():
    """A pause before a retry counts only while somebody waits, too."""
    network = FakeNetwork(serve(answer(503)), echo)
    engine = make(network, RetryPolicy(base=8.0))
    ask = Ask()
    engine.submit(ask)
    while not engine.stats.retries:
        engine.turn()
    network.pass_time(100.0)
    engine.wait([ask])
    assert network.now == 1101.0


class LaboriousAsk(Ask):
    """Whose request takes a second to make."""

    def __init__(self, network: FakeNetwork) -> None:
        super().__init__()
        self._network = network

    def request(self) -> Sequence[memoryview]:
        self._network.now += 1.0
        return super().request()


def test_work_in_the_loop_counts():
    """Time that the loop itself needs counts: a busy one notices deadlines, and ends pauses."""
    network = FakeNetwork(serve(), serve(answer(503), answer()), then=echo)
    engine = make(network, RetryPolicy(max_attempts=2, base=4.0, cap=4.0))
    stuck, paused = Ask("stuck"), Ask("paused")
    engine.submit(stuck)
    engine.submit(paused)
    while stuck.attempts < 2:
        engine.run([LaboriousAsk(network)])
        assert paused.is_done == (network.now >= 1003.0)
    assert 1034.0 <= network.now <= 1035.0


# Giving up


def test_cancel():
    """Cancelling closes the connections of what is in flight, and what is queued is never sent."""
    network = FakeNetwork(serve(), then=echo)
    engine = make(network, limits=Limits(connections=1))
    asks = [Ask("a"), Ask("b")]
    for ask in asks:
        engine.submit(ask)
    for _ in range(3):
        engine.turn()
    assert targets(network) == [[b"/a"]]
    engine.cancel(asks)
    assert [(ask.is_done, type(ask.error)) for ask in asks] == [(True, ConnectionFailedError)] * 2
    assert network.open_connections == 0
    engine.run([Ask("c")])
    assert targets(network) == [[b"/a"], [b"/c"]]


def test_cancel_what_is_done():
    """Cancelling what is done, or was cancelled, changes nothing."""
    network = FakeNetwork(echo)
    engine = make(network)
    ask = Ask()
    engine.run([ask])
    engine.cancel([ask])
    assert (ask.error, network.open_connections) == (None, 1)
    other = Ask()
    engine.cancel([other])
    error = other.error
    engine.cancel([other])
    assert other.error is error


def test_cancel_in_a_pause():
    """An exchange that is cancelled while it pauses is not sent again."""
    network = FakeNetwork(serve(answer(500), answer()))
    engine = make(network)
    ask = Ask("a")
    engine.submit(ask)
    while not engine.stats.retries:
        engine.turn()
    engine.cancel([ask])
    network.pass_time(1.0)
    engine.run([Ask("b")])
    assert targets(network) == [[b"/a", b"/b"]]


@pytest.mark.parametrize("place", ["queue", "pause"])
def test_what_was_cancelled_is_let_go(place: str):
    """An engine keeps nothing of what was cancelled, whether it is used again or not: its memory is its owner's."""
    network = FakeNetwork(serve(answer(500)))
    engine = make(network)
    ask = Ask("a")
    engine.submit(ask)
    while place == "pause" and not engine.stats.retries:
        engine.turn()
    assert engine.pending == 1
    engine.cancel([ask])
    assert engine.pending == 0
    kept = weakref.ref(ask)
    del ask
    assert kept() is None


@pytest.mark.parametrize("is_submitted", [False, True])
def test_first_error_cancels_the_rest(is_submitted: bool):
    """When one of the exchanges fails the others are given up: nothing more of them is in flight."""
    network = FakeNetwork(serve(), serve(answer(403), delay=1.0), serve())
    engine = make(network, limits=Limits(connections=3))
    asks = [Ask(name) for name in "abcd"]
    for ask in asks if is_submitted else []:
        engine.submit(ask)
    with pytest.raises(AccessDeniedError) as caught:
        (engine.wait if is_submitted else engine.run)(asks)
    assert caught.value.key == "b"
    assert all(ask.is_done and ask.flight is None for ask in asks)
    assert [type(ask.error) for ask in asks] == [
        ConnectionFailedError,
        AccessDeniedError,
        ConnectionFailedError,
        ConnectionFailedError,
    ]
    assert repr(engine) == "<Engine 0 in flight, 0 queued, 1 connections, 3 requests>"
    assert network.now == 1001.0


def test_errors_of_others():
    """The failure of an exchange shows to who waits for it, and only then."""
    network = FakeNetwork(serve(answer(403)), slow_echo)
    engine = make(network)
    unlucky, lucky = Ask("a"), Ask("b")
    engine.submit(unlucky)
    engine.submit(lucky)
    engine.wait([lucky])
    assert unlucky.is_done
    for _ in range(2):
        with pytest.raises(AccessDeniedError):
            engine.wait([unlucky])


def test_failure_before_a_flight():
    """Waiting for an exchange that fails before anything is in flight raises its error."""
    network = FakeNetwork(unresolvable)
    with pytest.raises(ConnectionFailedError, match="could not be resolved"):
        make(network, RetryPolicy(max_attempts=1)).run([Ask()])


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interrupt(exception: type[BaseException]):
    """An interrupt of a wait surfaces at once. What was waited for is over; what others have begun goes on later."""
    network = FakeNetwork(serve(), serve(answer(500)), then=echo)
    engine = make(network, limits=Limits(connections=2))
    flying, paused, queued = asks = [Ask("a"), Ask("b"), Ask("c", memory=1 << 30)]
    for ask in asks:
        engine.submit(ask)
    while not engine.stats.retries:
        engine.turn()
    assert (flying.flight is not None, paused.flight, queued.flight) == (True, None, None)

    def interrupt() -> None:
        network.on_select = lambda: None
        raise exception

    network.on_select = interrupt
    with pytest.raises(exception):
        engine.wait([flying])
    assert [ask.is_done for ask in asks] == [True, False, False]
    assert network.open_connections == 0
    assert repr(engine) == "<Engine 0 in flight, 2 queued, 0 connections, 2 requests>"
    with pytest.raises(ConnectionFailedError, match="cancelled"):
        engine.wait([flying])
    again = [Ask("d", memory=1 << 30), Ask("e")]
    engine.run(again)
    engine.wait([queued, paused])
    assert [ask.body for ask in (queued, paused, *again)] == [b"/c", b"/b", b"/d", b"/e"]


def once(exception: BaseException) -> Callable[[], None]:
    """Return what raises an exception at its first call."""
    exceptions = [exception]

    def act() -> None:
        if exceptions:
            raise exceptions.pop()

    return act


def test_interrupt_between_queue_and_flight():
    """An exchange that is interrupted while its connection is opened, or its error corrected, is not lost."""
    corrects, opens = once(KeyboardInterrupt()), once(KeyboardInterrupt())

    class InterruptedNetwork(FakeNetwork):
        def open(self, origin: Origin) -> FakeConnection:
            if not self._scripts:
                opens()
            return super().open(origin)

    def recover(error: S3Error) -> bool:
        corrects()
        return False

    network = InterruptedNetwork(serve(answer(500)), then=echo)
    engine = make(network)
    for ask in (Ask("a", recover=recover), Ask("b")):
        other = Ask("other", memory=1 << 30)
        engine.submit(ask)
        engine.submit(other)
        with pytest.raises(KeyboardInterrupt):
            engine.wait([other])
        assert (ask.is_done, other.is_done) == (False, True)
    engine.wait([ask])
    assert ask.body == b"/b"


def test_bug_while_a_connection_is_opened():
    """An exception that is none of ours, while a connection is opened, is its exchange's alone."""

    class BrokenNetwork(FakeNetwork):
        def open(self, origin: Origin) -> FakeConnection:
            breaks()
            return super().open(origin)

    breaks = once(ZeroDivisionError())
    engine = make(BrokenNetwork(then=echo))
    unlucky, lucky = Ask("a"), Ask("b")
    engine.submit(unlucky)
    engine.run([lucky])
    with pytest.raises(ZeroDivisionError):
        engine.wait([unlucky])
    assert lucky.body == b"/b"


def test_cancelled_while_it_is_waited_for():
    """Waiting for what another thread cancels raises that it was cancelled, and harms no other exchange."""
    network = FakeNetwork(then=serve())
    engine = make(network)
    ask = Ask()
    engine.submit(ask)
    network.on_select = lambda: engine.cancel([ask])
    with pytest.raises(ConnectionFailedError, match="cancelled"):
        engine.wait([ask])


def test_bug_in_an_exchange():
    """An exception that is none of ours leaves an engine that works again."""

    class BrokenAsk(Ask):
        def request(self) -> Sequence[memoryview]:
            raise ZeroDivisionError

    network = FakeNetwork(then=echo)
    engine = make(network)
    with pytest.raises(ZeroDivisionError):
        engine.run([BrokenAsk()])
    engine.run([Ask()])
    assert network.open_connections == 1


def test_request_that_cannot_be_made():
    """An exchange whose request cannot be built fails with that error, and nothing of it is sent."""

    class UnsignedAsk(Ask):
        def request(self) -> Sequence[memoryview]:
            raise CredentialsError("there are none")

    network = FakeNetwork(then=echo)
    ask = UnsignedAsk()
    with pytest.raises(CredentialsError) as caught:
        make(network).run([ask])
    assert caught.value.attempts == 1
    assert network.peers[0].unread == b""


def test_waiting_for_what_was_never_submitted():
    """Waiting for an exchange that nobody submitted raises instead of hanging."""
    network = FakeNetwork(then=echo)
    engine = make(network)
    with pytest.raises(AssertionError, match="never submitted"):
        engine.wait([Ask()])
    engine.run([Ask()])
    with pytest.raises(AssertionError, match="never submitted"):
        engine.wait([Ask()])


def test_waiting_for_nothing():
    """Waiting for no exchange returns."""
    make(FakeNetwork()).wait([])


# Answers that come early


@pytest.mark.parametrize("end", [None, Peer.close])
def test_early_answer(end: Callable[[Peer], None] | None):
    """An answer that comes while the body is still being sent is understood, and its connection is not used again."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        yield from peer.arrived(1)
        peer.send(answer(403))
        if end is not None:
            end(peer)

    network = FakeNetwork(script, echo, window=1000)
    engine = make(network)
    with pytest.raises(AccessDeniedError):
        engine.run([Ask("a", payload=bytes(100_000))])
    assert network.open_connections == 0
    engine.run([Ask("b")])
    assert targets(network) == [[], [b"/b"]]


def test_early_success():
    """Who has not received everything cannot have stored it, whatever the answer says."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        yield from peer.arrived(1)
        peer.send(answer(200))

    network = FakeNetwork(then=script, window=1000)
    with pytest.raises(ProtocolError, match="before everything was sent"):
        make(network).run([Ask("a", payload=bytes(100_000))])
    assert len(network.connections) == 3


def test_answer_behind_a_failed_send():
    """If sending fails, what the server said before it hung up is understood."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        peer.send(answer(403))
        peer.hang_up()
        yield None

    network = FakeNetwork(script)
    ask = Ask(payload=bytes(5000))
    with pytest.raises(AccessDeniedError):
        make(network).run([ask])
    assert ask.attempts == 1


def test_half_an_answer_behind_a_failed_send():
    """If sending fails and the server did not say all of why, the exchange is tried again."""

    def script(peer: Peer) -> Act[None]:
        peer.accept()
        peer.send(answer(403)[:10])
        peer.hang_up()
        yield None

    ask = Ask(payload=bytes(5000))
    make(FakeNetwork(script, echo)).run([ask])
    assert (ask.attempts, ask.body) == (2, b"/a")


# What can be seen


def test_repr():
    """The engine shows what is in flight, what waits, its connections, and what it has sent."""
    network = FakeNetwork(serve(answer(500)), serve())
    engine = make(network, limits=Limits(connections=2))
    assert repr(engine) == "<Engine 0 in flight, 0 queued, 0 connections, 0 requests>"
    asks = [Ask(str(number)) for number in range(4)]
    for ask in asks:
        engine.submit(ask)
    assert repr(engine) == "<Engine 0 in flight, 4 queued, 0 connections, 0 requests>"
    engine.turn()
    engine.turn()
    assert repr(engine) == "<Engine 2 in flight, 2 queued, 2 connections, 2 requests>"
    engine.turn()
    assert repr(engine) == "<Engine 1 in flight, 3 queued, 2 connections, 2 requests>"
    engine.reset()
    assert repr(engine) == "<Engine 0 in flight, 4 queued, 0 connections, 2 requests>"
    engine.cancel(asks)
    assert repr(engine) == "<Engine 0 in flight, 0 queued, 0 connections, 2 requests>"


@pytest.mark.parametrize("is_tls", [False, True])
def test_stats(is_tls: bool):
    """Requests, retries, connections and every byte of them are counted, those of failed attempts too."""

    def half(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345")
        peer.close()

    payload = bytes(1000)
    network = FakeNetwork(serve(answer(500), half), serve(answer(body=b"0123456789"), Peer.close), echo, is_tls=is_tls)
    engine = make(network)
    engine.run([Ask("a", payload=payload)])
    engine.run([Ask("b")])
    assert engine.stats == TransferStats(
        requests=5,  # a three times; b on a connection that turned out stale, and again
        retries=2,
        bytes_received=len(answer(500))
        + len(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345")
        + len(answer(body=b"0123456789"))
        + len(answer(body=b"/b")),
        bytes_sent=3 * len(b"GET /a HTTP/1.1\r\ncontent-length: 1000\r\n\r\n" + payload)
        + 2 * len(b"GET /b HTTP/1.1\r\n\r\n"),
        connections_opened=3,
    )


def test_close():
    """Closing an engine closes its connections and its network."""
    network = FakeNetwork(echo)
    engine = make(network)
    engine.run([Ask()])
    engine.close()
    assert (network.open_connections, network.is_closed) == (0, True)


def test_reset_keeps_the_network():
    """A reset engine opens new connections when it is used again."""
    network = FakeNetwork(then=echo)
    engine = make(network)
    engine.run([Ask()])
    engine.reset()
    assert network.open_connections == 0
    engine.run([Ask()])
    assert len(network.connections) == 2


def test_abandon():
    """An engine that is abandoned, or collected, lets go of its connections without closing them for their owner."""
    network = FakeNetwork(echo)
    engine = make(network)
    engine.run([Ask()])
    del engine
    gc.collect()
    assert network.is_closed
    assert [connection.was_abandoned for connection in network.connections] == [True]


def test_a_throttled_server_holds_up_no_other():
    """What one server says of too many requests holds for it alone: others get as many as there are connections."""
    other = Origin("http", "other.test", 80)
    network = FakeNetwork(serve(*[answer(503)] * 5, answer()), then=slow_echo)
    engine = make(network)
    engine.run([Ask()])
    asks = [Ask(str(number), origin=other) for number in range(LIMITS.connections)]
    engine.run(asks)
    assert [ask.body for ask in asks] == [f"/{number}".encode() for number in range(LIMITS.connections)]
    assert len(network.connections) - 1 == LIMITS.connections


def test_whatever_is_ended_is_ended_in_a_turn():
    """While exchanges are cancelled, which may run code of their owners, nobody else can enter the engine."""

    class Watching(Ask):
        def release(self) -> None:
            entered.append(engine.is_entered)
            super().release()

    entered: list[bool] = []
    engine = make(FakeNetwork(then=never))
    ask = Watching()
    engine.submit(ask)
    engine.nudge()
    engine.cancel([ask])
    assert entered == [True]
    assert not engine.is_entered


def test_the_order_after_an_interrupt():
    """After an interrupt all that is not done is sent again, once each, in the order in which it was submitted."""

    def interrupt() -> None:
        network.on_select = lambda: None
        raise KeyboardInterrupt

    network = FakeNetwork(never, then=echo)
    engine = make(network, limits=Limits(connections=1))
    asks = [Ask("a"), Ask("b")]
    for ask in asks:
        engine.submit(ask)
    engine.turn()
    network.on_select = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.turn()
    engine.wait(asks)
    assert targets(network)[1:] == [[b"/a", b"/b"]]


# Where an exchange goes


OTHER = Origin("http", "other.test", 80)


class Aimed(Ask):
    """An exchange that goes where all of its kind go now, as requests for a bucket do.

    Args:
        name: What is asked for.
        places: The last one is where they go.
    """

    def __init__(self, name: str, places: list[Origin], **options: object) -> None:
        super().__init__(name, origin=places[-1], **options)
        self._places = places
        self.aims: list[Origin] = []

    def aim(self) -> None:
        self.origin = self._places[-1]

    def recover(self, error: S3Error) -> bool:
        is_corrected = super().recover(error)
        if is_corrected:
            self.aim()
        return is_corrected

    def request(self) -> Sequence[memoryview]:
        self.aims.append(self.origin)
        return super().request()


def test_what_is_queued_goes_where_it_is_to_go_then():
    """Exchanges that are queued when others learn that they go elsewhere are sent there only."""
    places = [ORIGIN]

    def move(_: S3Error) -> bool:
        places.append(OTHER)
        return True

    network = FakeNetwork(serve(answer(500)), then=echo)
    engine = make(network, limits=Limits(connections=1))
    first, *rest = asked = [Aimed("a", places, recover=move), *(Aimed(name, places) for name in "bcde")]
    engine.run(asked)
    assert [connection.origin for connection in network.connections] == [ORIGIN, OTHER]
    assert targets(network) == [[b"/a"], [b"/a", b"/b", b"/c", b"/d", b"/e"]]
    assert (first.attempts, {each.attempts for each in rest}) == (2, {1})
    assert all(each.aims == [OTHER] for each in rest)
    engine.close()


def test_what_is_connecting_goes_where_it_is_to_go_then():
    """A connection that opens where nothing is to go any more carries no request, and is kept; that is no attempt."""
    places = [ORIGIN]

    def late(peer: Peer) -> Act[None]:
        yield 5.0
        yield from echo(peer)

    network = FakeNetwork(late, then=echo)
    engine = make(network)
    asked = Aimed("a", places)
    network.on_select = lambda: places.append(OTHER) if network.now > 1002.0 else None
    engine.run([asked])
    assert targets(network) == [[], [b"/a"]]
    assert (asked.attempts, asked.aims, asked.body) == (1, [OTHER], b"/a")
    assert network.open_connections == 2
    engine.close()


def test_a_second_request_that_is_to_go_elsewhere():
    """The second request beside a late one is not sent where nothing is to go any more; the first one goes on."""
    places = [ORIGIN]
    network = FakeNetwork(then=echo)
    engine = make(network)
    for _ in range(40):  # how long first bytes take is learned
        read = Aimed("usual", places)
        read.is_read = True
        engine.run([read])

    def silent(peer: Peer) -> Act[None]:
        peer.accept()
        yield from peer.request()
        yield 3.0
        peer.send(answer(body=b"first"))

    def late(peer: Peer) -> Act[None]:
        yield 1.0
        yield from echo(peer)

    engine.reset()
    network._scripts.extend([silent, late])
    asked = Aimed("a", places)
    asked.is_read = True
    network.on_select = lambda: places.append(OTHER) if len(network.connections) == 3 else None
    engine.run([asked])
    assert (asked.body, asked.attempts, asked.aims) == (b"first", 1, [ORIGIN])
    assert [peer.requests for peer in network.peers[2:]] == [[]]
    engine.close()


def test_what_pauses_goes_where_it_is_to_go_then():
    """An exchange that pauses while others learn that they go elsewhere is sent there."""
    places = [ORIGIN]
    network = FakeNetwork(serve(answer(500)), then=echo)
    engine = make(network)
    asked = Aimed("a", places)
    network.on_select = lambda: places.append(OTHER) if network.peers and network.peers[0].requests else None
    engine.run([asked])
    assert asked.aims == [ORIGIN, OTHER]
    assert [connection.origin for connection in network.connections] == [ORIGIN, OTHER]
    engine.close()
