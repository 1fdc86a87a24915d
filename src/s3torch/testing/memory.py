"""A network without sockets, whose only peer is a bucket in memory: for clients of tests.

`MemoryNetwork` and `MemoryConnection` are what `Engine` uses of `Network` and `Connection`. A request is answered when
its last byte is sent, by the thread that sends it. So nothing is ever waited for but the pause before another attempt,
no thread is started and no descriptor opened; whoever forks has a copy of the bucket, and goes on with that.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager

from s3torch._forks import NO_FORK
from s3torch._transfer.connection import READ, WRITE, Origin
from s3torch._transfer.http1 import Inbox
from s3torch.testing.faulty.objects import Objects
from s3torch.testing.faulty.wire import Request, encode_response, parse_head

__all__ = ["MemoryConnection", "MemoryNetwork", "MemoryObjects"]

_END_OF_HEAD = b"\r\n\r\n"


class MemoryObjects(Objects):
    """The objects of a bucket, which a fork finds whole: it waits for a thread that is at work here."""

    def _new_lock(self) -> AbstractContextManager[object]:
        return NO_FORK

    def discard(self, key: str) -> None:
        """Takes an object out, if it is there."""
        with self._lock:
            self.pop(key, None)


class MemoryConnection:
    """A connection to a bucket in memory; made by `MemoryNetwork.open`. It is open from the beginning.

    Attributes:
        origin: Where a client thinks that it leads.
        inbox: As of `Connection`; so are the others.
    """

    holds_more = False
    is_drained = True
    awaited = 1

    def __init__(self, origin: Origin, number: int, objects: Objects) -> None:
        self.origin = origin
        self.is_open = True
        self.inbox = Inbox()
        self.flight: object | None = None
        self.was_used = False
        self.idle_since = 0.0
        self._number = number
        self._objects = objects
        self._arrived = bytearray()
        self._answered: deque[memoryview] = deque()
        self._wants_writing = True

    def __repr__(self) -> str:
        return f"<MemoryConnection {self._number} {'open' if self.is_open else 'closed'}>"

    @property
    def events(self) -> int:
        """What select reports of it."""
        return (READ if self._answered else 0) | (WRITE if self._wants_writing else 0)

    def establish(self) -> bool:
        """Returns that it is open."""
        return self.is_open

    def expect(self, count: int) -> None:
        """Does nothing: an answer is there as a whole."""

    def send(self, data: memoryview) -> int:
        """Takes all of it, and answers what is complete."""
        self._arrived += data
        while (request := self._next_request()) is not None:
            answer = self._objects.answer(request)
            pieces = encode_response(request.method, answer.status, answer.fields, answer.body)
            self._answered += [memoryview(piece) for piece in pieces if piece]
        return len(data)

    def recv_into(self, room: memoryview) -> int | None:
        """Receives into `room`; returns the count, None when nothing is there."""
        count = 0
        while self._answered and count < len(room):
            piece = self._answered[0][: len(room) - count]
            room[count : count + len(piece)] = piece
            count += len(piece)
            rest = self._answered.popleft()[len(piece) :]
            if rest:
                self._answered.appendleft(rest)
        return count or None

    def note_timeout(self) -> None:
        """Does nothing: there are no addresses."""

    def note_used(self) -> None:
        """Notes that it has carried an exchange."""
        self.was_used = True

    def watch_writing(self, *, wanted: bool) -> None:
        """Says whether select is to report room for sending."""
        self._wants_writing = wanted

    def close(self) -> None:
        """Closes it; what was not received is lost."""
        self.is_open = False
        self.inbox = Inbox(0)
        self._answered.clear()
        self._arrived.clear()

    abandon = close

    def _next_request(self) -> Request | None:
        """Takes a request off what has arrived; returns None if there is no whole one."""
        end = self._arrived.find(_END_OF_HEAD)
        if end < 0:
            return None
        method, target, headers = parse_head(self._arrived[:end].decode("latin-1").split("\r\n"))
        start = end + len(_END_OF_HEAD)
        stop = start + int(headers.get("content-length", "0"))
        if len(self._arrived) < stop:
            return None
        body = bytes(self._arrived[start:stop])
        del self._arrived[:stop]
        return Request(
            method=method, target=target, headers=headers, body=body, connection=self._number, time=time.monotonic()
        )


class MemoryNetwork:
    """Opens connections to a bucket in memory, wherever they are to lead; belongs to one engine.

    Args:
        objects: The bucket.
    """

    def __init__(self, objects: Objects) -> None:
        self.clock = time.monotonic
        self._objects = objects
        self._opened = 0
        self._connections: list[MemoryConnection] = []

    def open(self, origin: Origin) -> MemoryConnection:
        """Opens a connection."""
        self._opened += 1
        connection = MemoryConnection(origin, self._opened, self._objects)
        self._connections.append(connection)
        return connection

    def select(self, timeout: float) -> list[tuple[MemoryConnection, int]]:
        """Returns the connections that can move; if none can, nothing will come, and the time is slept away."""
        self._connections = [connection for connection in self._connections if connection.is_open]
        ready = [(connection, connection.events) for connection in self._connections if connection.events]
        if not ready and timeout > 0:
            time.sleep(timeout)
        return ready

    def close(self) -> None:
        """Forgets the connections."""
        self._connections.clear()
