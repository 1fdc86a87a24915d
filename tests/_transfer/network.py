r"""A network in virtual time: connections to scripted peers, without sockets and without waiting.

`FakeNetwork` and `FakeConnection` are what `Engine` uses of `Network` and `Connection`; test_connection.py runs the
same checks on both. Each connection gets a script, the far end of it: a generator function of its `Peer`, which yields
the seconds that it lets pass, or None to wait until something arrives::

    def script(peer):
        peer.accept()
        request = yield from peer.request()
        yield 2.5
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

Only `select` and `pass_time` move the clock, and peers act only in them: a test takes no time and always goes the same
way.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

from s3torch._transfer.connection import READ, WRITE, ConnectionState, Origin
from s3torch._transfer.http1 import Inbox
from s3torch.errors import ConnectionFailedError

__all__ = [
    "ORIGIN",
    "Act",
    "FakeConnection",
    "FakeNetwork",
    "Peer",
    "Script",
    "converse",
    "never",
    "refuse",
    "serve",
    "unresolvable",
]

ORIGIN = Origin("http", "bucket.test", 80)

T = TypeVar("T")
Act = Generator["float | None", None, T]

# Bytes that TLS decrypts at once.
_RECORD = 16 * 1024
# An engine that turns this often without any time passing would turn for ever, and one that has waited for so many
# seconds would wait for ever.
_MOST_IDLE_SELECTS = 10_000
_LONGEST_WAIT = 5_000.0


class _ClientLeftError(Exception):
    """Ends a script whose client is gone."""


class Peer:
    """The far end of a connection.

    Attributes:
        number: Of the connection; the first is 1.
        unread: What the client sent and the script did not read yet.
        requests: What `request` returned so far.
        client_left: Whether the client closed the connection.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.unread = bytearray()
        self.requests: list[bytes] = []
        self.client_left = False
        self.state = ConnectionState.CONNECTING
        self.was_reset = False
        self.is_deaf = False
        self.on_its_way = bytearray()

    def accept(self) -> None:
        """Take the connection."""
        self.state = ConnectionState.OPEN

    def refuse(self) -> None:
        """Do not take it."""
        self.state = ConnectionState.CLOSED
        self.was_reset = True

    def send(self, data: bytes) -> None:
        """Send bytes."""
        assert self.state is ConnectionState.OPEN, "a peer that sends on a closed connection"
        self.on_its_way += data

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes of what arrived."""
        data = bytes(self.unread[:count])
        del self.unread[:count]
        return data

    def close(self) -> None:
        """End the stream in the orderly way; what was sent still arrives."""
        self.state = ConnectionState.CLOSED

    def hang_up(self) -> None:
        """End the stream without reading what the client sends, whose sends fail; what was sent still arrives."""
        self.state = ConnectionState.CLOSED
        self.is_deaf = True

    def reset(self) -> None:
        """Break the connection; what was sent and not received is lost."""
        self.state = ConnectionState.CLOSED
        self.was_reset = True
        self.on_its_way.clear()

    def arrived(self, count: int) -> Act[None]:
        """Wait until `count` bytes have arrived that were not read yet."""
        while len(self.unread) < count:
            if self.client_left:
                raise _ClientLeftError
            yield None

    def request(self) -> Act[bytes]:
        """Wait for one request, of a head and as much body as its Content-Length says, and return it."""
        while (end := self.unread.find(b"\r\n\r\n") + 4) < 4:
            yield from self.arrived(len(self.unread) + 1)
        length = re.search(rb"content-length: (\d+)", self.unread[:end])
        size = end + (int(length[1]) if length else 0)
        yield from self.arrived(size)
        self.requests.append(self.read(size))
        return self.requests[-1]


Script = Callable[[Peer], Act[None]]


def converse(peer: Peer, *answers: bytes | Callable[[Peer], None], delay: float = 0.0) -> Act[None]:
    """Take the connection, and read a request and answer it as often as there are answers.

    Args:
        peer: That does it.
        answers: Bytes to send, or what is done instead, such as `Peer.close`.
        delay: Seconds before each answer.
    """
    peer.accept()
    for answer in answers:
        yield from peer.request()
        if delay:
            yield delay
        if callable(answer):
            answer(peer)
        else:
            peer.send(answer)


def serve(*answers: bytes | Callable[[Peer], None], delay: float = 0.0) -> Script:
    """Return the script of a peer that converses, and afterwards takes requests and answers nothing."""

    def script(peer: Peer) -> Act[None]:
        yield from converse(peer, *answers, delay=delay)
        while True:
            yield from peer.request()

    return script


def refuse(peer: Peer) -> Act[None]:
    """Refuse the connection."""
    peer.refuse()
    yield None


def never(peer: Peer) -> Act[None]:
    """Neither take nor refuse the connection."""
    yield None


def unresolvable(peer: Peer) -> Act[None]:
    """Stand for a host without an address; never runs."""
    raise AssertionError("a host that has no address")
    yield None


class FakeConnection:
    """A connection to a `Peer`; made by `FakeNetwork.open`."""

    def __init__(self, network: FakeNetwork, origin: Origin, peer: Peer) -> None:
        self.origin = origin
        self.peer = peer
        self.state = ConnectionState.CONNECTING
        self.inbox = Inbox()
        self.flight: object | None = None
        self.was_used = False
        self.idle_since = 0.0
        self.was_abandoned = False
        self.holds_more = network.is_tls
        self.awaited = 1
        self._network = network
        self._decrypted = bytearray()
        self._wants_writing = True

    def __repr__(self) -> str:
        return f"<FakeConnection {self.peer.number} {self.state.value}>"

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self.state is ConnectionState.OPEN

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what was decrypted."""
        return not self._decrypted

    def note_timeout(self) -> None:
        """Nothing is to be remembered: there are no addresses."""

    def note_used(self) -> None:
        """Note that it has carried an exchange."""
        self.was_used = True

    def expect(self, count: int) -> None:
        """Say how many bytes are wanted."""
        if not self.holds_more:
            self.awaited = min(count, self._network.most_awaited)

    @property
    def events(self) -> int:
        """What select would report; bytes that TLS has decrypted already are not among it."""
        if self.state is ConnectionState.CLOSED:
            return 0
        if self.state is ConnectionState.CONNECTING:
            return 0 if self.peer.state is ConnectionState.CONNECTING else WRITE
        ended = self.peer.state is ConnectionState.CLOSED
        readable = READ if len(self.peer.on_its_way) >= self.awaited or ended else 0
        return readable | (WRITE if self._wants_writing and (self._room or ended) else 0)

    def establish(self) -> bool:
        """Go on with connecting."""
        assert self.state is ConnectionState.CONNECTING
        if self.peer.was_reset:
            raise ConnectionFailedError(f"The connection failed while connecting to {self.origin}: refused.")
        if self.peer.state is not ConnectionState.CONNECTING:
            self.state = ConnectionState.OPEN
        return self.is_open

    def send(self, data: memoryview) -> int:
        """Send as much as the window takes."""
        self._check()
        if self.peer.is_deaf:
            raise ConnectionFailedError(f"The connection failed while sending to {self.origin}: broken pipe.")
        if self.peer.state is ConnectionState.CLOSED:
            return len(data)  # the kernel takes it; only later it learns that nobody wants it
        count = min(len(data), self._room)
        self.peer.unread += data[:count]
        return count

    def recv_into(self, room: memoryview) -> int | None:
        """Receive up to a step of bytes."""
        self._check()
        assert len(room), "receiving into no memory looks like the end of the stream"
        if self.holds_more and not self._decrypted:  # TLS takes a record off the kernel and hands it out in pieces
            self._decrypted += self.peer.on_its_way[:_RECORD]
            del self.peer.on_its_way[:_RECORD]
        source = self._decrypted if self.holds_more else self.peer.on_its_way
        if not source:
            return 0 if self.peer.state is ConnectionState.CLOSED else None
        count = min(len(room), len(source), self._network.step)
        room[:count] = source[:count]
        del source[:count]
        return count

    def watch_writing(self, *, wanted: bool) -> None:
        """Say whether select is to report room for sending."""
        assert self.state is not ConnectionState.CLOSED
        self._wants_writing = wanted

    def close(self) -> None:
        """Close it."""
        self.state = ConnectionState.CLOSED
        self.inbox = Inbox(0)
        self.peer.client_left = True

    def abandon(self) -> None:
        """Close it in a process that does not own it."""
        self.close()
        self.was_abandoned = True

    @property
    def _room(self) -> int:
        return self._network.window - len(self.peer.unread)

    def _check(self) -> None:
        assert self.state is ConnectionState.OPEN, f"{self!r} is used after its end"
        if self.peer.was_reset:
            raise ConnectionFailedError(f"The connection failed while talking to {self.origin}: reset by peer.")


class FakeNetwork:
    """Opens connections to scripted peers, and lets virtual time pass.

    Args:
        scripts: Of the connections, in the order in which they are opened.
        then: Of those after them; None means that there must be none.
        step: Bytes of one receive at most.
        window: Bytes that a peer takes without reading them.
        is_tls: Whether connections hand out what they have received in pieces that select does not see.
        most_awaited: Bytes that must have arrived before select reports a connection on which as many are expected.

    Attributes:
        connections: All that were opened.
        peak: How many were open at the same time, at most.
        on_select: Called at the beginning of each select; to look around, or to raise.
    """

    def __init__(
        self,
        *scripts: Script,
        then: Script | None = None,
        step: int = 1 << 20,
        window: int = 1 << 30,
        is_tls: bool = False,
        most_awaited: int = 1,
    ) -> None:
        self.step = step
        self.window = window
        self.is_tls = is_tls
        self.most_awaited = most_awaited
        self.now = 1000.0
        self.connections: list[FakeConnection] = []
        self.peak = 0
        self.is_closed = False
        self.on_select: Callable[[], None] = lambda: None
        self._scripts = deque(scripts)
        self._then = then
        self._actors: list[_Actor] = []
        self._idle_selects = 0
        self._waited = 0.0

    @property
    def open_connections(self) -> int:
        """How many connections the client holds now."""
        return sum(connection.state is not ConnectionState.CLOSED for connection in self.connections)

    @property
    def peers(self) -> list[Peer]:
        """The far ends of all connections."""
        return [connection.peer for connection in self.connections]

    def clock(self) -> float:
        """Return the virtual time."""
        return self.now

    def open(self, origin: Origin) -> FakeConnection:
        """Begin a connection."""
        script = self._scripts.popleft() if self._scripts else self._then
        assert script is not None, "a connection that no script is for"
        if script is unresolvable:
            raise ConnectionFailedError(f"The host name {origin.host!r} of the endpoint could not be resolved.")
        peer = Peer(len(self.connections) + 1)
        self.connections.append(FakeConnection(self, origin, peer))
        self._actors.append(_Actor(peer, script))
        self.peak = max(self.peak, self.open_connections)
        return self.connections[-1]

    def select(self, timeout: float) -> list[tuple[FakeConnection, int]]:
        """Return what can move; if nothing can, let time pass until something does, `timeout` seconds at most."""
        self.on_select()
        began = self.now
        deadline = self.now + timeout
        self._act()
        while not (ready := self._ready()) and self.now < deadline:
            self.now = min([deadline, *self._alarms()])
            self._act()
        self._idle_selects = self._idle_selects + 1 if self.now == began else 0
        self._waited += self.now - began
        assert self._idle_selects < _MOST_IDLE_SELECTS, "the engine turns without end"
        assert self._waited < _LONGEST_WAIT, "the engine waits without end"
        return ready

    def pass_time(self, seconds: float) -> None:
        """Let time pass while nobody selects, as when the caller computes."""
        deadline = self.now + seconds
        self._act()
        while self.now < deadline:
            self.now = min([deadline, *self._alarms()])
            self._act()

    def close(self) -> None:
        """Close it."""
        self.is_closed = True

    def _ready(self) -> list[tuple[FakeConnection, int]]:
        return [(connection, connection.events) for connection in self.connections if connection.events]

    def _alarms(self) -> list[float]:
        return [actor.alarm for actor in self._actors if actor.alarm is not None and actor.alarm > self.now]

    def _act(self) -> None:
        while any(actor.act(self.now) for actor in self._actors):
            pass


class _Actor:
    """Runs the script of one peer."""

    def __init__(self, peer: Peer, script: Script) -> None:
        self.alarm: float | None = 0.0
        self._peer = peer
        self._script = script(peer)
        self._seen = self._visible()

    def act(self, now: float) -> bool:
        """Run the script up to its next pause; returns whether it did anything."""
        if self.alarm is not None and self.alarm > now:
            return False
        if self.alarm is None and self._seen == self._visible():
            return False
        try:
            pause = next(self._script)
        except (StopIteration, _ClientLeftError):
            self.alarm = math.inf
        else:
            self.alarm = None if pause is None else now + pause
        self._seen = self._visible()
        return True

    def _visible(self) -> tuple[int, bool]:
        return len(self._peer.unread), self._peer.client_left
