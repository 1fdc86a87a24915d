"""A TCP relay on loopback between client and server, whose connections can be reset in the middle of a transfer."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Relay"]

# Below the ports that outgoing connections get: a client that tries a port of that range again and again while nobody
# listens there can be connected to itself.
_PORTS = range(23_000, 32_000)
_CHUNK = 256 * 1024
# A reset comes when up to so many more bytes have passed: inside a head, or in a body.
_MOST_BEFORE_RESET = 256 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s


class _End:
    """One end of a relayed connection; ``unsent`` is what it has not taken yet."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.name = name  # of what is received here: requests or answers
        self.other: _End = self
        self.unsent = b""
        self.reset_after: int | None = None
        self.is_last = False  # whether nothing follows what is unsent


class Relay(threading.Thread):
    """Relays connections from one port to another on 127.0.0.1; a thread of its own.

    Args:
        seed: Chooses whom a reset meets, and when.

    Attributes:
        port: Where clients connect to.
        resets: When a connection was reset (``time.monotonic``), and what was on its way: requests or answers.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(name="relay", daemon=True)
        self.resets: list[tuple[float, str]] = []
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._ends: dict[_End, None] = {}
        self._target = 0
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._is_stopped = False
        self._listener: socket.socket | None = None
        self.port = self._free_port()

    def __enter__(self) -> Self:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._order(self._stop)
        self.join()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def open(self, target: int) -> None:
        """Relay new connections to this port; returns when that is so."""
        self._order(lambda: self._open(target))

    def shut(self) -> None:
        """Refuse new connections; returns when that is so."""
        self._order(self._shut)

    def reset_one(self) -> None:
        """Reset a connection as soon as some more bytes have passed in a direction, both chosen at random."""
        self._order(self._doom)

    def run(self) -> None:
        """Relay until stopped."""
        while not self._is_stopped:
            for key, events in self._selector.select():
                if key.fileobj is self._woken:
                    self._obey()
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._ends:
                    self._move(key.data, events)

    def _order(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.append((what, done))
        self._wake.send(b"!")
        done.wait()

    def _obey(self) -> None:
        self._woken.recv(1000)
        while self._orders:
            what, done = self._orders.popleft()
            what()
            done.set()

    def _free_port(self) -> int:
        while True:
            port = random.SystemRandom().choice(_PORTS)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port

    def _open(self, target: int) -> None:
        self._shut()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _shut(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _stop(self) -> None:
        self._shut()
        for end in list(self._ends):
            self._close(end)
        self._is_stopped = True

    def _doom(self) -> None:
        if self._ends:
            self._random.choice(list(self._ends)).reset_after = int(
                _MOST_BEFORE_RESET ** self._random.random()  # heads are as likely as bodies
            )

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            client = _End(self._listener.accept()[0], "requests")
            try:
                server = _End(socket.create_connection(("127.0.0.1", self._target), timeout=1), "answers")
            except OSError:
                self._reset(client.sock)
                return
            client.other, server.other = server, client
            for end in (client, server):
                self._ends[end] = None
                self._selector.register(end.sock, selectors.EVENT_READ, end)

    def _move(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(end)
            elif not end.other.unsent:
                self._receive(end)
        except BlockingIOError:
            pass
        except OSError:
            self._close(end, reset=True)

    def _receive(self, end: _End) -> None:
        received = end.sock.recv(_CHUNK if end.reset_after is None else max(1, min(_CHUNK, end.reset_after)))
        if end.reset_after is not None:
            end.reset_after -= len(received)
            if received and end.reset_after <= 0:
                with contextlib.suppress(OSError):
                    end.other.sock.send(received)
                self.resets.append((time.monotonic(), end.name))
                self._close(end, reset=True)
                return
        end.other.unsent = received
        end.other.is_last = not received
        self._send(end.other)

    def _send(self, end: _End) -> None:
        """Send what is unsent; until that is done nothing more is received for it."""
        if end.unsent:
            try:
                end.unsent = end.unsent[end.sock.send(end.unsent) :]
            except BlockingIOError:
                pass
        if end.is_last and not end.unsent:
            self._close(end)
            return
        is_full = bool(end.unsent)
        self._watch(end, (0 if end.other.unsent else selectors.EVENT_READ) | (selectors.EVENT_WRITE if is_full else 0))
        self._watch(
            end.other, (0 if is_full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if end.other.unsent else 0)
        )

    def _watch(self, end: _End, events: int) -> None:
        known = self._selector.get_map().get(end.sock)
        if known is None:
            if events:
                self._selector.register(end.sock, events, end)
        elif not events:
            self._selector.unregister(end.sock)
        elif known.events != events:
            self._selector.modify(end.sock, events, end)

    def _close(self, end: _End, *, reset: bool = False) -> None:
        for each in (end, end.other):
            self._ends.pop(each, None)
            self._watch(each, 0)
            if reset:
                self._reset(each.sock)
            else:
                each.sock.close()

    def _reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.close()
