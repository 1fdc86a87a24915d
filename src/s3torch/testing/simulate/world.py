"""A world of virtual time: connections, what goes wrong on them, and the server at their far end.

Time passes only while somebody selects, and goes from event to event: a program of many virtual minutes takes
milliseconds. Everything that is left to chance comes from one generator, so that the same seed goes the same way.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from s3torch._transfer.connection import READ, WRITE, ConnectionState, Origin
from s3torch._transfer.http1 import Inbox
from s3torch.errors import ConnectionFailedError
from s3torch.testing.simulate.server import Answer, Request, Server, failure, parse_request

if TYPE_CHECKING:
    from s3torch.testing.simulate.scheduler import Scheduler

__all__ = ["FAULTS", "EndlessError", "SimulatedConnection", "SimulatedNetwork", "World"]

# What may go wrong with the n-th request. Of "lost" and "cut" the request was carried out; of "reset" it was not.
FAULTS = (
    *("reset", "lost", "cut", "truncated", "stalled", "late", "slow down", "internal error", "hang up", "interim"),
    *("conflict", "not of S3", "no content", "miscounted", "silence"),
)

# A loop that turns so often without any time passing turns for ever.
_MOST_IDLE_SELECTS = 5_000
_RECORD = 16 * 1024
_CONNECTING = ConnectionState.CONNECTING


class EndlessError(BaseException):
    """A call that does not end; no handler of errors is to swallow it."""


class World:
    """Virtual time, one server, and all connections to it.

    Args:
        server: Answers.
        seed: Of all that is left to chance.
        faults: What happens to which request, counted from 1.
        is_tls: Whether connections hand out what they have received in pieces that select does not see.
        longest_call: Virtual seconds after which a call is taken for one that waits for ever.

    Attributes:
        now: Seconds.
        selects: How often somebody selected.
        empty_turns: How often nothing could move when somebody had selected.
        on_select: Called whenever somebody does; to interrupt it.
        scheduler: Says which thread runs; None while there is one only.
        is_kind: Whether faults are over.
        is_silent: Whether the server answers nothing more.
        requests: Requests that the server has received.
        log: Those requests, with their times and faults.
        faults_met: What went wrong.
        generation: How many processes were forked, one by the other, up to this one.
        trespasses: What was done to connections of the processes before, or to what selects them.
        open_connections: Those that the client has not closed.
    """

    def __init__(
        self,
        server: Server,
        seed: int,
        faults: Mapping[int, str] | None = None,
        *,
        is_tls: bool = False,
        longest_call: float = 500.0,
    ) -> None:
        self.server = server
        self.chance = random.Random(seed)
        self.faults = dict(faults or {})
        self.is_tls = is_tls
        self.now = 1000.0
        self.selects = 0
        self.on_select: Callable[[], None] = lambda: None
        self.scheduler: Scheduler | None = None
        self.is_kind = False
        self.is_silent = False
        self.empty_turns = 0
        self.requests = 0
        self.requests_begun = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.connections_opened = 0
        self.open_connections: set[SimulatedConnection] = set()
        self.log: list[str] = []
        self.faults_met: set[str] = set()
        self.trespasses: list[str] = []
        self.generation = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._idle_selects = 0
        self._longest_call = longest_call
        self.begin_call()

    def clock(self) -> float:
        """Return the virtual time."""
        return self.now

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def settle(self) -> None:
        """Do all that is due."""
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()

    def step(self, until: float) -> None:
        """Let time pass up to the next event, or ``until``."""
        self.now = max(self.now, min(until, self._events[0][0]) if self._events else until)
        if self.now > self._latest:
            self.begin_call()  # whoever cleans up may take its time, too
            raise EndlessError("The call waits for ever.")
        self.settle()

    def begin_call(self) -> None:
        """Take down that a call begins, which may take its time."""
        self._latest = self.now + self._longest_call

    def count_select(self, *, has_waited: bool) -> None:
        """Notice a loop that turns without end."""
        self._idle_selects = 0 if has_waited else self._idle_selects + 1
        if self._idle_selects > _MOST_IDLE_SELECTS:
            self._idle_selects = 0
            raise EndlessError("The loop turns for ever without any time passing.")

    def heal(self) -> None:
        """End all faults: what comes now is answered."""
        self.is_kind = True
        self.is_silent = False

    def begin_in_child(self) -> None:
        """Go on in a child that was forked: what is open is its parent's, and nothing was counted yet."""
        self.generation += 1
        self.scheduler = None
        self.on_select = lambda: None
        self.requests_begun = self.bytes_sent = self.bytes_received = self.connections_opened = 0

    def network(self) -> SimulatedNetwork:
        """Return a network for one engine."""
        return SimulatedNetwork(self)


class SimulatedNetwork:
    """Opens connections to the world's server; stands for ``Network``."""

    def __init__(self, world: World) -> None:
        self.clock = world.clock
        self.world = world
        self.connections: list[SimulatedConnection] = []
        self.is_closed = False
        self._generation = world.generation

    def open(self, origin: Origin) -> SimulatedConnection:
        """Begin a connection."""
        self.note_use("a connection was opened")
        connection = SimulatedConnection(self, origin)
        self.connections.append(connection)
        return connection

    def select(self, timeout: float) -> list[tuple[SimulatedConnection, int]]:
        """Return what can move; if nothing can, let time pass until something does."""
        world = self.world
        self.note_use("it was selected")
        world.selects += 1
        world.on_select()
        # A wait that is too short for the clock's precision still lets some time pass, as in earnest.
        began, deadline = world.now, world.now + (max(timeout, 1e-6) if timeout > 0 else 0.0)
        world.settle()
        ready = self._ready()
        if world.scheduler is not None:
            world.scheduler.block(lambda: bool(self._ready()), deadline)
            ready = self._ready()
        else:
            while not ready and world.now < deadline:
                world.step(deadline)
                ready = self._ready()
        world.empty_turns += not ready
        world.count_select(has_waited=world.now > began)
        return ready

    def close(self) -> None:
        """Close it."""
        self.is_closed = True

    def note_use(self, what: str) -> None:
        """Note that it is used, which nobody may do but the process that has made it."""
        if self._generation != self.world.generation:
            self.world.trespasses.append(what)

    def _ready(self) -> list[tuple[SimulatedConnection, int]]:
        """Return which connections can move; it is asked at each event, so it asks nobody else."""
        ready = []
        for connection in self.connections:
            if connection.state is _CONNECTING:
                events = WRITE if connection._accepted else 0
            else:
                events = READ if connection._has_ended or len(connection._on_its_way) >= connection.awaited else 0
                if connection._wants_writing:
                    events |= WRITE
            if events:
                ready.append((connection, events))
        return ready


def refused(fault: str, request: Request) -> Answer | None:
    """Return what a request is answered that is not carried out; None if it is."""
    if fault == "not of S3":
        return Answer(404, {"content-type": "text/html"}, b"<html><body>404 page not found</body></html>")
    if fault == "no content" and request.method != "DELETE":  # which it would be the right answer to
        return Answer(204, {"x-amz-request-id": "R"})
    known = {
        "slow down": (503, "SlowDown"),
        "internal error": (500, "InternalError"),
        "conflict": (409, "ConditionalRequestConflict"),
    }
    return failure(*known[fault]) if fault in known else None


class SimulatedConnection:
    """A connection to the world's server; stands for ``Connection``."""

    def __init__(self, network: SimulatedNetwork, origin: Origin) -> None:
        world = network.world
        world.connections_opened += 1
        self.number = world.connections_opened
        self.origin = origin
        self.state = ConnectionState.CONNECTING
        self.inbox = Inbox()
        self.flight: object | None = None
        self.was_used = False
        self.idle_since = 0.0
        self.holds_more = world.is_tls
        self.awaited = 1
        self._network = network
        self._world = world
        self._decrypted = bytearray()
        self._wants_writing = True
        self._accepted = self._has_ended = self._was_reset = False
        self._arrived = bytearray()  # at the server
        self._on_its_way = bytearray()  # to the client
        self._is_between_requests = True
        self._step = world.chance.choice((1 << 20, 1 << 20, 16 * 1024, 3_000))
        world.open_connections.add(self)
        self._at(world.chance.uniform(0.0002, 0.002), SimulatedConnection._accept)

    def __hash__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<SimulatedConnection {self.number} {self.state.value}>"

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self.state is ConnectionState.OPEN

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what was decrypted."""
        return not self._decrypted

    def expect(self, count: int) -> None:
        """Say how many bytes are wanted."""
        if not self.holds_more:
            self.awaited = min(count, 4096)

    def establish(self) -> bool:
        """Go on with connecting."""
        self._network.note_use(f"{self!r} went on with connecting")
        assert self.state is ConnectionState.CONNECTING, f"{self!r} is used after its end"
        if self._accepted:
            self.state = ConnectionState.OPEN
        return self.is_open

    def send(self, data: memoryview) -> int:
        """Send as much as is taken at once."""
        self._check()
        if self._is_between_requests:
            self._world.requests_begun += 1
            self._is_between_requests = False
        if self._has_ended:
            return len(data)  # the kernel takes it; only later it learns that nobody wants it
        count = min(len(data), max(self._step, 4096))
        self._world.bytes_sent += count
        self._arrived += data[:count]
        self._take_requests()
        return count

    def recv_into(self, room: memoryview) -> int | None:
        """Receive what has arrived."""
        self._check()
        assert len(room), "receiving into no memory looks like the end of the stream"
        if self.holds_more and not self._decrypted:
            self._decrypted += self._on_its_way[:_RECORD]
            del self._on_its_way[:_RECORD]
        source = self._decrypted if self.holds_more else self._on_its_way
        if not source:
            return 0 if self._has_ended else None
        count = min(len(room), len(source), self._step)
        room[:count] = source[:count]
        del source[:count]
        self._world.bytes_received += count
        return count

    def note_timeout(self) -> None:
        """Nothing is to be remembered: there is one address."""

    def note_used(self) -> None:
        """Note that it has carried an exchange."""
        self.was_used = True

    def watch_writing(self, *, wanted: bool) -> None:
        """Say whether select is to report room for sending."""
        self._network.note_use(f"{self!r} was registered anew")
        self._wants_writing = wanted

    def close(self) -> None:
        """Close it, which takes it from what selects it."""
        self._network.note_use(f"{self!r} was closed")
        self.abandon()

    def abandon(self) -> None:
        """Close it without a word, in this process."""
        self.state = ConnectionState.CLOSED
        self.inbox = Inbox(0)
        self._world.open_connections.discard(self)
        if self in self._network.connections:
            self._network.connections.remove(self)

    def _check(self) -> None:
        self._network.note_use(f"{self!r} was used")
        assert self.state is ConnectionState.OPEN, f"{self!r} is used after its end"
        if self._was_reset:
            raise ConnectionFailedError(f"The connection failed while talking to {self.origin}: reset by peer.")

    def _at(self, delay: float, action: Callable[[SimulatedConnection], None]) -> None:
        """Let something happen later, unless the connection is gone by then."""
        reference = weakref.ref(self)

        def act() -> None:
            connection = reference()
            if connection is not None:
                action(connection)

        self._world.at(delay, act)

    def _accept(self) -> None:
        self._accepted = True

    def _take_requests(self) -> None:
        """Carry out each request that is complete."""
        while (end := self._arrived.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._arrived[:end])
            lowered = head.lower()
            mark = lowered.find(b"content-length: ")
            length = int(lowered[mark + 16 :].split(b"\r\n")[0]) if mark >= 0 else 0
            stop = end + 4 + length
            if len(self._arrived) < stop:
                return
            body = bytes(self._arrived[end + 4 : stop])
            del self._arrived[:stop]
            self._is_between_requests = True
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        world = self._world
        world.requests += 1
        number = world.requests
        request = parse_request(head, body)
        fault = "" if world.is_kind else world.faults.get(number, "")
        world.log.append(f"{world.now:.4f} {request.name} {request.key} {request.fields.get('range', '')} {fault}")
        if fault:
            world.faults_met.add(fault)
        if fault == "silence":
            world.is_silent = True
        if world.is_silent:
            return
        latency = world.chance.uniform(0.001, 0.03)
        if fault == "reset":
            self._at(latency, SimulatedConnection._break)
            return
        refusal = refused(fault, request)
        if refusal is not None:
            self._deliver(refusal.encode(request.method), latency)
            return
        answer = world.server.answer(request)
        if fault == "miscounted":
            answer.body = answer.body.replace(b"<KeyCount>", b"<KeyCount>9")
        data = answer.encode(request.method)
        if fault == "interim":
            data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + data
        if fault == "lost":
            self._at(latency, SimulatedConnection._break)
            return
        if fault in ("cut", "truncated", "stalled"):
            data = data[: max(1, len(data) * 2 // 3)]
        end = self._deliver(data, 1.0 if fault == "late" else latency)
        if fault == "cut":
            self._at(end, SimulatedConnection._break)
        elif fault in ("truncated", "hang up"):
            self._at(end, SimulatedConnection._end)

    def _deliver(self, data: bytes, delay: float) -> float:
        """Let bytes arrive in pieces; returns when the last one does."""
        chance = self._world.chance
        pieces = chance.choice((1, 1, 2, 4))
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            self._at(delay, functools.partial(SimulatedConnection._arrive, piece=data[start : start + size]))
            delay += chance.uniform(0.0001, 0.01)
        return delay

    def _arrive(self, piece: bytes) -> None:
        if not self._has_ended:
            self._on_its_way += piece

    def _end(self) -> None:
        self._has_ended = True

    def _break(self) -> None:
        self._has_ended = self._was_reset = True
        self._on_its_way.clear()
