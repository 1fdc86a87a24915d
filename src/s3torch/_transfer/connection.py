"""The seam to the operating system: non-blocking streams, and the selector that tells which of them can move.

Above this module nobody sees a socket, a descriptor, an SSL object or an OSError. A connection goes through CONNECTING
(TCP, each address of the host in turn) and HANDSHAKING (TLS) to OPEN; whatever goes wrong leaves it CLOSED for good.

Closing never says goodbye by TLS: it only closes the descriptor. So a process that inherited connections by ``fork``
can drop its copies without disturbing the owner, as long as it never touches the owner's selector: an epoll instance
is shared by both processes, and removing a descriptor there would deafen the owner. ``Network.close`` therefore closes
the selector's own descriptor and unregisters nothing.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # what looks a name up would import it, where a fork may come between
import errno
import itertools
import os
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from s3torch._forks import NO_FORK
from s3torch._log import LOG
from s3torch._transfer.http1 import Inbox
from s3torch.errors import CertificateError, ConnectionFailedError, S3Error

__all__ = ["PROCESS_ADDRESSES", "AddressBook", "Connection", "ConnectionState", "Network", "Origin"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# How long the addresses of a host are used before its name is looked up again, in seconds: S3 moves traffic by DNS,
# with a time to live of a few seconds; each look-up blocks the loop.
_ADDRESS_LIFETIME = 30.0
# An address that took no connection is tried after all others for so long, in seconds. Not tuned.
_DEAD_LIFETIME = 60.0

# While a body is received its connection is reported only when this much of it has arrived, in bytes: a wake-up costs
# as much as to copy 50 kB. Below the lesser bound it is reported at once. Not tuned.
_MOST_AWAITED = 512 * 1024
_LEAST_AWAITED = 128 * 1024
# Elsewhere a mark above what the kernel's buffer holds would never be reached; Linux knows better.
_CAN_AWAIT = sys.platform == "linux"

# What OpenSSL calls an answer in plain HTTP, depending on its version.
_NOT_TLS = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Origin(NamedTuple):
    """Where connections go: scheme (``http`` or ``https``), host and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class ConnectionState(Enum):
    """The life of a connection; it only moves forwards."""

    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSED = "closed"


Address = tuple[int, Any]  # address family, and what socket.connect takes for it
Resolve = Callable[[str, int], Sequence[Address]]


def resolve(host: str, port: int) -> list[Address]:
    """Look a host's addresses up; blocks."""
    return [(family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class AddressBook:
    """The addresses of hosts, and which of them took no connection lately.

    They are facts of servers: one book serves all threads and clients of a process, and a forked child inherits it.
    """

    def __init__(self) -> None:
        self._known: dict[Origin, tuple[float, Sequence[Address]]] = {}
        self._dead: dict[Address, float] = {}
        self._turns = itertools.count()

    def find(self, origin: Origin, now: float) -> list[Address]:
        """Return the addresses of an origin in the order in which to try them: each time another first, dead ones last.

        Returns:
            The addresses; none if they must be looked up.
        """
        looked_up, addresses = self._known.get(origin, (now, ()))
        if not addresses or now - looked_up >= _ADDRESS_LIFETIME:
            return []
        first = next(self._turns) % len(addresses)
        turned = [*addresses[first:], *addresses[:first]]
        if self._dead:
            turned.sort(key=lambda address: now - self._dead.get(address, -_DEAD_LIFETIME) < _DEAD_LIFETIME)
        return turned

    def note(self, origin: Origin, addresses: Sequence[Address], now: float) -> None:
        """Note what a look-up has found."""
        self._known[origin] = (now, tuple(addresses))

    def note_dead(self, address: Address, now: float) -> None:
        """Note that an address took no connection."""
        if now - self._dead.get(address, -_DEAD_LIFETIME) >= _DEAD_LIFETIME:
            LOG.info("The address %s takes no connection: others are tried first for a minute.", address[1])
        self._dead = {each: since for each, since in self._dead.items() if now - since < _DEAD_LIFETIME} | {
            address: now
        }

    def forget(self) -> None:
        """Forget everything, as a test wants it that begins."""
        self._known.clear()
        self._dead.clear()


# One for all clients and threads of the process.
PROCESS_ADDRESSES = AddressBook()


class Connection:
    """One non-blocking byte stream to an origin.

    Attributes:
        origin: Where it leads.
        state: How far it is.
        inbox: Bytes that arrived and were not read yet.
        flight: What the engine is doing with it; None while idle.
        was_used: Whether it has already carried an exchange.
        idle_since: The clock's time when it last became idle.
        holds_more: Whether a short receive may leave bytes behind: TLS hands out one record at a time.
        awaited: How many bytes must have arrived before the selector reports it.
        serial: What the log calls it; they are counted for each engine.
    """

    def __init__(
        self,
        origin: Origin,
        addresses: Sequence[Address],
        selector: selectors.BaseSelector,
        tls: ssl.SSLContext | None,
        note_dead: Callable[[Address], None],
    ) -> None:
        self.origin = origin
        self.state = ConnectionState.CONNECTING
        self.inbox = Inbox()
        self.flight: Any = None
        self.was_used = False
        self.idle_since = 0.0
        self.holds_more = tls is not None
        self.awaited = 1
        self.serial = 0
        self._can_await = _CAN_AWAIT and tls is None
        self._addresses = list(addresses)
        self._address: Address | None = None
        self._note_dead = note_dead
        self._selector = selector
        self._tls = tls
        self._socket: socket.socket | None = None
        self._events = 0
        self._connect_to_next_address(None)

    def __repr__(self) -> str:
        return f"<Connection {self.origin} {self.state.value}{' idle' if self.flight is None else ''}>"

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self.state is ConnectionState.OPEN

    def establish(self) -> bool:
        """Go on with connecting; returns whether the connection is open now.

        Raises:
            ConnectionFailedError: No address took the connection, or TLS could not be agreed on.
            CertificateError: The server's certificate is not to be trusted.
        """
        if self.state is ConnectionState.CONNECTING:
            failure = self._opened_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                self._connect_to_next_address(OSError(failure, os.strerror(failure)))
                return False
            with NO_FORK:
                self._begin_tls()
        if self.state is ConnectionState.HANDSHAKING:
            with NO_FORK:
                self._shake_hands()
        return self.is_open

    def send(self, data: memoryview) -> int:
        """Send some of ``data``; returns how many bytes the kernel took, 0 when it takes none now."""
        try:
            return (self._socket or self._opened_socket).send(data)
        except _WOULD_BLOCK:
            return 0
        except OSError as error:
            raise self._failure("sending to", error) from error

    def recv_into(self, room: memoryview) -> int | None:
        """Receive into ``room``; returns the count, 0 at the end of the stream, None when nothing is there."""
        try:
            return (self._socket or self._opened_socket).recv_into(room)
        except _WOULD_BLOCK:
            return None
        except ssl.SSLEOFError:
            return 0
        except OSError as error:
            raise self._failure("receiving from", error) from error

    @property
    def is_drained(self) -> bool:
        """Whether all that the kernel gave was handed out: of what TLS still holds the selector knows nothing."""
        return not self.holds_more or not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending()

    def expect(self, count: int) -> None:
        """Say how many bytes are wanted: the selector need not report every few of many.

        Fewer than these may arrive and stop there: what has arrived is received all the same by ``recv_into``.
        """
        mark = min(count, _MOST_AWAITED) if count >= _LEAST_AWAITED and self._can_await else 1
        if mark < self.awaited or self.awaited == 1 != mark:
            try:
                self._opened_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
            except OSError:  # a sandbox may not know it; then all is reported at once
                self._can_await = False
            else:
                self.awaited = mark

    def note_timeout(self) -> None:
        """Note that no connection has come about in time: the address may be dead."""
        if self._address is not None and self.state is ConnectionState.CONNECTING:
            self._note_dead(self._address)

    def watch_writing(self, *, wanted: bool) -> None:
        """Say whether the selector is to report room for sending; incoming bytes are always reported."""
        events = READ | WRITE if wanted else READ
        if events != self._events:
            self._watch(events)

    def close(self) -> None:
        """Close the descriptor; nothing is said to the peer."""
        self.state = ConnectionState.CLOSED
        self.inbox = Inbox(0)
        if self._socket is None:
            return
        try:
            self._selector.unregister(self._socket)
        except (KeyError, ValueError):
            pass  # never registered, or the selector was closed before
        self._drop_socket()

    def abandon(self) -> None:
        """Close the descriptor without touching the selector, which may be another process's."""
        self.state = ConnectionState.CLOSED
        self._drop_socket()

    @property
    def _opened_socket(self) -> socket.socket:
        if self._socket is None:
            raise AssertionError(f"{self!r} is used after its end")
        return self._socket

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect_to_next_address(self, failure: OSError | None) -> None:
        if failure is not None and self._address is not None:
            self._note_dead(self._address)
        while self._addresses:
            if self._socket is not None:
                self._selector.unregister(self._socket)
                self._drop_socket()
            self._address = family, address = self._addresses.pop(0)
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM)
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                code = self._socket.connect_ex(address)
                if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
                    raise OSError(code, os.strerror(code))
                self._selector.register(self._socket, READ | WRITE, self)
                self._events = READ | WRITE
            except OSError as error:
                failure = error
                self._drop_socket()
            else:
                return
        self.close()
        raise self._failure("connecting to", failure) from failure

    def _begin_tls(self) -> None:
        if self._tls is None:
            self.state = ConnectionState.OPEN
            return
        plain = self._opened_socket
        self._selector.unregister(plain)
        try:
            self._socket = self._tls.wrap_socket(plain, server_hostname=self.origin.host, do_handshake_on_connect=False)
        except OSError as error:  # the peer is gone already
            raise self._failure("connecting to", error) from error
        self._selector.register(self._socket, READ | WRITE, self)
        self._events = READ | WRITE
        self.state = ConnectionState.HANDSHAKING

    def _shake_hands(self) -> None:
        secured = self._opened_socket
        assert isinstance(secured, ssl.SSLSocket)
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(READ)
        except ssl.SSLWantWriteError:
            self._watch(READ | WRITE)
        except OSError as error:
            raise self._failure("agreeing on TLS with", error) from error
        else:
            self.state = ConnectionState.OPEN

    def _watch(self, events: int) -> None:
        self._events = events
        self._selector.modify(self._opened_socket, events, self)

    def _failure(self, doing: str, error: OSError | None) -> S3Error:
        reason = error.strerror or str(error) if error is not None else "no address"
        if isinstance(error, ssl.SSLCertVerificationError):
            return CertificateError(
                f"The certificate of {self.origin} is not valid for it: {error.verify_message}. If the server's "
                "authority is your own, name its PEM file in AWS_CA_BUNDLE or S3ClientConfig(verify=...)."
            )
        hint = ""
        if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
            hint = " That port does not speak TLS: write http:// in the endpoint, or name the port that does."
        return ConnectionFailedError(f"The connection failed while {doing} {self.origin}: {reason}.{hint}")


class Network:
    """Opens connections and waits for them; belongs to one engine.

    Args:
        tls: Returns the TLS context; called when the first https connection is opened.
        lookup: Looks a host's addresses up.
        clock: Seconds that never go back.
        addresses: What was looked up before; None begins with nothing.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        *,
        lookup: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
        addresses: AddressBook | None = None,
    ) -> None:
        self.clock = clock
        self._tls = tls
        self._lookup = lookup
        self._selector = selectors.DefaultSelector()
        self._addresses = addresses or AddressBook()

    def open(self, origin: Origin) -> Connection:
        """Begin a connection.

        Raises:
            ConnectionFailedError: The host has no address, or none that can be tried.
        """
        addresses = self._addresses_of(origin)
        tls = self._tls() if origin.scheme == "https" else None
        return Connection(origin, addresses, self._selector, tls, self._note_dead)

    def select(self, timeout: float) -> list[tuple[Connection, int]]:
        """Wait until a connection can move, ``timeout`` seconds at most."""
        return [(key.data, events) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        """Close the selector's descriptor, and unregister nothing (see the module's theory of operation)."""
        self._selector.close()

    def _note_dead(self, address: Address) -> None:
        self._addresses.note_dead(address, self.clock())

    def _addresses_of(self, origin: Origin) -> list[Address]:
        now = self.clock()
        addresses = self._addresses.find(origin, now)
        if not addresses:
            try:
                self._addresses.note(origin, self._lookup(origin.host, origin.port), now)
            except OSError as error:
                raise ConnectionFailedError(
                    f"The host name {origin.host!r} of the endpoint could not be resolved: {error.strerror or error}. "
                    "Check the endpoint and region; if the server has no name per bucket, "
                    "use S3ClientConfig(force_path_style=True)."
                ) from error
            addresses = self._addresses.find(origin, now)
        return addresses
