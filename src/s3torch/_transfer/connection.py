"""The seam to the operating system: non-blocking streams, and the selector that tells which of them can move.

Above this module nobody sees a socket, a descriptor, an SSL object or an OSError. A connection goes through CONNECTING
(TCP), TUNNELLING (where a proxy leads to a TLS server) and HANDSHAKING (TLS) to OPEN; whatever goes wrong leaves it
CLOSED for good.

The addresses of a host race (see ``racing``). ``select`` begins the next attempt itself: nothing else may happen.

Closing never says goodbye by TLS: it only closes the descriptor. So a process that inherited connections by ``fork``
can drop its copies without disturbing the owner, as long as it never touches the owner's selector: both processes share
an epoll instance, so removing a descriptor there would deafen the owner. ``Network.close`` unregisters nothing.

It is one file of over 450 lines: how a connection comes about, carries bytes and fails are states of one machine.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from s3torch._forks import NO_FORK
from s3torch._transfer.addresses import PROCESS_ADDRESSES, Address, AddressBook, Origin, Resolve, resolve
from s3torch._transfer.http1 import Inbox
from s3torch._transfer.open_sockets import OpenSockets
from s3torch._transfer.proxy import Proxy
from s3torch._transfer.racing import Race
from s3torch._transfer.selecting import new_selector
from s3torch._transfer.tls_sessions import WANTS_OUR_CERTIFICATE, sessions_of
from s3torch.errors import CertificateError, ConnectionFailedError, S3Error

__all__ = ["PROCESS_ADDRESSES", "Address", "AddressBook", "Connection", "ConnectionState", "Network", "Origin"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# What the kernel, or TLS, may refuse to take or fill at once on some systems is halved until it is no more than this.
_MOST_AT_ONCE = 1 << 30

# While a body is received its connection is reported only when this much of it has arrived, in bytes: a wake-up costs
# as much as to copy 50 kB. Below the lesser bound it is reported at once. Not tuned.
_MOST_AWAITED = 512 * 1024
_LEAST_AWAITED = 128 * 1024
# Elsewhere a mark above what the kernel's buffer holds would never be reached; Linux knows better.
_CAN_AWAIT = sys.platform == "linux" and hasattr(socket, "SO_RCVLOWAT")

_ROOM_FOR_PROXY = 16 * 1024  # the head of its answer; a server by TLS says nothing before we do

# What OpenSSL calls an answer in plain HTTP, depending on its version.
_NOT_TLS = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ConnectionState(Enum):
    """The life of a connection; it only moves forwards."""

    CONNECTING = "connecting"
    TUNNELLING = "tunnelling"
    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSED = "closed"


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
        book: AddressBook,
        clock: Callable[[], float],
        proxy: Proxy | None,
        sockets: OpenSockets,
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
        self._address: Address | None = None
        self._book = book
        self._clock = clock
        self._proxy = proxy
        self._selector = selector
        self._sockets = sockets
        self._tls = tls
        self._session: ssl.SSLSession | None = None
        self._socket: socket.socket | None = None
        self._events = 0
        self._to_proxy = b""
        self._from_proxy = b""
        leads_to = origin if proxy is None else Origin("http", proxy.host, proxy.port)
        self._race = Race(leads_to, addresses, selector, self, book, clock, sockets)
        self.try_next_address()

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
            ProxyError: The proxy cannot be reached, or failed.
            ProxyRefusedError: The proxy refuses to lead to the origin.
            CertificateError: The server's certificate is not to be trusted, or it asks for one of ours.
        """
        if self.state is ConnectionState.CONNECTING:
            if not self._has_won():
                return False
            if self._proxy is not None and self._tls is not None:
                self._to_proxy = self._proxy.tunnel_request(self.origin.host, self.origin.port)
                self.state = ConnectionState.TUNNELLING
            else:
                with NO_FORK:
                    self._begin_tls()
        if self.state is ConnectionState.TUNNELLING and self._has_tunnel():
            with NO_FORK:
                self._begin_tls()
        if self.state is ConnectionState.HANDSHAKING:
            with NO_FORK:
                self._shake_hands()
        return self.is_open

    @property
    def next_attempt(self) -> float | None:
        """When the next address is to be tried beside those that connect, by the clock; None if there is none."""
        return self._race.next_attempt if self.state is ConnectionState.CONNECTING else None

    def try_next_address(self) -> None:
        """Try the next address beside those that connect.

        Raises:
            ConnectionFailedError: There is none, and none is being tried.
        """
        try:
            self._race.try_next()
        except OSError as error:
            self.close()
            raise self._failure("connecting to", error) from error

    def send(self, data: memoryview) -> int:
        """Send some of ``data``; returns how many bytes the kernel took, 0 when it takes none now."""
        try:
            return (self._socket or self._opened_socket).send(data)
        except _WOULD_BLOCK:
            return 0
        except (OSError, OverflowError) as error:
            if len(data) > _MOST_AT_ONCE:
                return self.send(data[:_MOST_AT_ONCE])
            raise self._failure("sending to", error) from error

    def recv_into(self, room: memoryview) -> int | None:
        """Receive into ``room``; returns the count, 0 at the end of the stream, None when nothing is there."""
        try:
            return (self._socket or self._opened_socket).recv_into(room)
        except _WOULD_BLOCK:
            return None
        except ssl.SSLEOFError:
            return 0
        except (OSError, OverflowError) as error:
            if len(room) > _MOST_AT_ONCE:
                return self.recv_into(room[:_MOST_AT_ONCE])
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

    def note_timeout(self) -> S3Error | None:
        """Note that something has taken too long: if that was to connect, the addresses may be dead.

        Returns:
            The proxy's error, if the connection did not come about and a proxy was to lead there.
        """
        if self.is_open:
            return None
        if self._address is None:
            self._race.note_dead()
        else:
            self._book.note_dead(self._address, self._clock())
        return None if self._proxy is None else self._proxy.failure(str(self.origin), "it does not answer in time")

    def note_used(self) -> None:
        """Note that it has carried an exchange: TLS can begin the next connection by what this one has agreed on."""
        self.was_used = True
        if isinstance(self._socket, ssl.SSLSocket) and self._tls is not None:
            with NO_FORK:
                sessions_of(self._tls).note(self.origin, self._socket, self._clock())

    def watch_writing(self, *, wanted: bool) -> None:
        """Say whether the selector is to report room for sending; incoming bytes are always reported."""
        events = READ | WRITE if wanted else READ
        if events != self._events:
            self._watch(events)

    def close(self) -> None:
        """Close the descriptor; nothing is said to the peer."""
        self.state = ConnectionState.CLOSED
        self.inbox = Inbox(0)
        self._race.close(unregister=True)
        if self._socket is not None:
            try:
                self._selector.unregister(self._socket)
            except (KeyError, ValueError):
                pass  # never registered, or the selector was closed before
        self._drop_socket()

    def abandon(self) -> None:
        """Close the descriptor without touching the selector, which may be another process's."""
        self.state = ConnectionState.CLOSED
        self._race.close(unregister=False)
        self._drop_socket()

    @property
    def _opened_socket(self) -> socket.socket:
        if self._socket is None:
            raise AssertionError(f"{self!r} is used after its end")
        return self._socket

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._sockets.close(self._socket)
            self._socket = None

    def _has_won(self) -> bool:
        """Whether an address has taken the connection."""
        try:
            won = self._race.winner()
        except OSError as error:
            self.close()
            raise self._failure("connecting to", error) from error
        if won is None:
            return False
        self._socket, self._address = won  # the race closes it as well, should an interrupt come between
        self._events = READ | WRITE
        return True

    def _has_tunnel(self) -> bool:
        """Ask the proxy to lead to the origin; returns whether it does now."""
        proxy, sock = self._proxy, self._opened_socket
        assert proxy is not None
        try:
            if self._to_proxy:
                self._to_proxy = self._to_proxy[sock.send(self._to_proxy) :]
                self.watch_writing(wanted=bool(self._to_proxy))
            arrived = sock.recv(_ROOM_FOR_PROXY)
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            raise proxy.failure(str(self.origin), error.strerror or str(error)) from error
        self._from_proxy += arrived
        return proxy.leads(self._from_proxy, str(self.origin), has_ended=not arrived)

    def _begin_tls(self) -> None:
        if self._tls is None:
            self.state = ConnectionState.OPEN
            return
        plain = self._opened_socket
        self._selector.unregister(plain)
        self._session = sessions_of(self._tls).find(self.origin)
        try:
            self._socket = self._tls.wrap_socket(
                plain, server_hostname=self.origin.host, do_handshake_on_connect=False, session=self._session
            )
        except OSError as error:  # the peer is gone already
            raise self._failure("connecting to", error) from error
        self._sockets.add(self._socket)
        self._sockets.close(plain)  # it has no descriptor any more
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
            if self._session is not None and self._tls is not None:
                sessions_of(self._tls).refuse(self.origin)
            raise self._failure("agreeing on TLS with", error) from error
        else:
            self._session = None
            self.state = ConnectionState.OPEN

    def _watch(self, events: int) -> None:
        self._events = events
        self._selector.modify(self._opened_socket, events, self)

    def _failure(self, doing: str, error: OSError | OverflowError | None) -> S3Error:
        reason = (getattr(error, "strerror", None) or str(error)) if error is not None else "no address"
        if isinstance(error, ssl.SSLCertVerificationError):
            return CertificateError(
                f"The certificate of {self.origin} is not valid for it: {error.verify_message}. If the server's "
                "authority is your own, name its PEM file in AWS_CA_BUNDLE or S3ClientConfig(verify=...)."
            )
        if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
            reason += ". That port does not speak TLS: write http:// in the endpoint, or name the port that does"
        if isinstance(error, ssl.SSLError) and error.reason in WANTS_OUR_CERTIFICATE:
            return CertificateError(
                f"{self.origin} does not accept this client's certificate, or that it has none: {reason}. "
                "Name the PEM file of one in S3ClientConfig(client_cert=...)."
            )
        if isinstance(error, ssl.SSLError) and error.reason == "SSLV3_ALERT_HANDSHAKE_FAILURE":
            reason += ". The server may ask for a certificate of this client: S3ClientConfig(client_cert=...)"
        if self._proxy is None:
            return ConnectionFailedError(f"The connection failed while {doing} {self.origin}: {reason}.")
        if self.state is ConnectionState.OPEN or self._socket is not None:
            return ConnectionFailedError(
                f"The connection failed while {doing} {self.origin} by the proxy {self._proxy}: {reason}."
            )
        return self._proxy.failure(str(self.origin), reason)


class Network:
    """Opens connections and waits for them; belongs to one engine.

    Args:
        tls: Returns the TLS context; called when the first https connection is opened.
        lookup: Looks a host's addresses up.
        clock: Seconds that never go back.
        addresses: What was looked up before; None begins with nothing.
        proxy: Returns the proxy that leads to an origin, or None.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        *,
        lookup: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
        addresses: AddressBook | None = None,
        proxy: Callable[[Origin], Proxy | None] = lambda _: None,
    ) -> None:
        self.clock = clock
        self._tls = tls
        self._lookup = lookup
        self._selector = new_selector()
        self._sockets = OpenSockets(self)
        self._addresses = addresses or AddressBook()
        self._proxy = proxy
        self._racing: dict[Connection, None] = {}

    def open(self, origin: Origin) -> Connection:
        """Begin a connection.

        Raises:
            ConnectionFailedError: The host has no address, or none that can be tried.
            ProxyError: The proxy has none.
        """
        proxy = self._proxy(origin)
        addresses = self._addresses_of(origin if proxy is None else Origin("http", proxy.host, proxy.port), proxy)
        tls = self._tls() if origin.scheme == "https" else None
        connection = Connection(
            origin, addresses, self._selector, tls, self._addresses, self.clock, proxy, self._sockets
        )
        if connection.next_attempt is not None:
            self._racing[connection] = None
        return connection

    def select(self, timeout: float) -> list[tuple[Connection, int]]:
        """Wait until a connection can move, ``timeout`` seconds at most, or less if another address is to be tried."""
        if self._racing:
            return self._select_racing(timeout)
        return [(key.data, events) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        """Close the selector's descriptor, and unregister nothing (see the module's theory of operation)."""
        self._selector.close()

    def _select_racing(self, timeout: float) -> list[tuple[Connection, int]]:
        """Select, and try the next address of connections that nothing has come of."""
        due = self._next_attempts()
        wait = max(0.0, min([timeout, *(moment - self.clock() for moment in due.values())]))
        # A connection of which several sockets are reported is told once.
        found: dict[Connection, int] = {}
        for key, events in self._selector.select(wait):
            found[key.data] = found.get(key.data, 0) | events
        now = self.clock()
        for connection, moment in self._next_attempts().items():
            if connection not in found and moment <= now:  # what has come about meanwhile is not late
                connection.try_next_address()
        return list(found.items())

    def _next_attempts(self) -> dict[Connection, float]:
        """Return when connections are to try their next addresses; those that have none are forgotten."""
        found = {}
        for connection in list(self._racing):
            moment = connection.next_attempt
            if moment is None:
                self._racing.pop(connection, None)
            else:
                found[connection] = moment
        return found

    def _addresses_of(self, origin: Origin, proxy: Proxy | None) -> list[Address]:
        now = self.clock()
        addresses = self._addresses.find(origin, now)
        if not addresses:
            try:
                self._addresses.note(origin, self._lookup(origin.host, origin.port), now)
            except OSError as error:
                reason = error.strerror or str(error)
                if proxy is not None:
                    raise proxy.failure("", f"its host name could not be resolved: {reason}") from error
                raise ConnectionFailedError(
                    f"The host name {origin.host!r} of the endpoint could not be resolved: {reason}. "
                    "Check the endpoint and region; if the server has no name per bucket, "
                    "use S3ClientConfig(force_path_style=True)."
                ) from error
            addresses = self._addresses.find(origin, now)
        return addresses
