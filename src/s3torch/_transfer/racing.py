"""The addresses of a host race for a connection, as in RFC 8305 ("happy eyeballs").

When an address has not taken the connection after its head start, the next is tried beside it, and the first that
answers has it. One that refuses is not waited for.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Callable, Sequence

from s3torch._transfer.addresses import Address, AddressBook, Origin
from s3torch._transfer.open_sockets import OpenSockets

__all__ = ["Race"]


class Race:
    """The sockets of one connection that connect, each to another address.

    Args:
        origin: Whose addresses they are.
        addresses: In the order in which to try them.
        selector: Is to watch the sockets.
        owner: Whom the selector reports.
        book: Is told which addresses are dead.
        clock: In seconds.
        opened: Closes the sockets.
    """

    def __init__(
        self,
        origin: Origin,
        addresses: Sequence[Address],
        selector: selectors.BaseSelector,
        owner: object,
        book: AddressBook,
        clock: Callable[[], float],
        opened: OpenSockets,
    ) -> None:
        self._origin = origin
        self._addresses = list(addresses)
        self._selector = selector
        self._owner = owner
        self._book = book
        self._clock = clock
        self._opened = opened
        self._sockets: dict[socket.socket, tuple[Address, float]] = {}  # and when each began

    @property
    def next_attempt(self) -> float | None:
        """When the next address is to be tried beside the others, by the clock; None if there is none."""
        if not self._addresses:
            return None
        latest = max((since for _, since in self._sockets.values()), default=0.0)
        return latest + self._book.head_start(self._origin)

    def try_next(self, failure: OSError | None = None) -> None:
        """Try the next address that can be tried.

        Args:
            failure: What became of the one before.

        Raises:
            OSError: There is none, and none is being tried.
        """
        while self._addresses:
            address = self._addresses.pop(0)
            try:
                self._begin(socket.socket(address[0], socket.SOCK_STREAM), address)
            except OSError as error:
                failure = error
            else:
                return
        if not self._sockets:
            raise failure or OSError("no address")

    def winner(self) -> tuple[socket.socket, Address] | None:
        """Return the first socket that has connected, and end the race; None if none has.

        Those that have failed are dropped, and the next address is tried. One that was overtaken counts as dead.

        Raises:
            OSError: All have failed.
        """
        failure: OSError | None = None
        for sock, (address, since) in list(self._sockets.items()):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                failure = OSError(code, os.strerror(code))
                self._book.note_dead(address, self._clock())
                self._drop(sock)
            elif _is_connected(sock):
                self._end(sock, since)
                return sock, address
        if failure is not None:
            self.try_next(failure)
        return None

    def note_dead(self) -> None:
        """Note that the addresses that are being tried have taken too long."""
        for address, _ in self._sockets.values():
            self._book.note_dead(address, self._clock())

    def close(self, *, unregister: bool) -> None:
        """Close all sockets.

        Args:
            unregister: Whether the selector is this process's.
        """
        for sock in list(self._sockets):
            if unregister:
                try:
                    self._selector.unregister(sock)
                except (KeyError, ValueError):
                    pass  # never registered, or the selector was closed before
            self._opened.close(sock)
        self._sockets.clear()
        self._addresses.clear()

    def _begin(self, sock: socket.socket, address: Address) -> None:
        self._sockets[sock] = address, self._clock()  # first of all: what ends the connection closes it
        self._opened.add(sock)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            code = sock.connect_ex(address[1])
            if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
                raise OSError(code, os.strerror(code))
            self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._owner)
        except OSError:
            del self._sockets[sock]
            self._opened.close(sock)
            raise

    def _end(self, winner: socket.socket, since: float) -> None:
        now = self._clock()
        for sock, (address, began) in list(self._sockets.items()):
            if sock is winner:
                self._book.note_alive(self._origin, address, now - since)
            else:
                if began < since:
                    self._book.note_dead(address, now)
                self._drop(sock)
        self._addresses.clear()

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._opened.close(sock)
        del self._sockets[sock]


def _is_connected(sock: socket.socket) -> bool:
    """Whether a socket without an error has connected; one that was closed again has, too."""
    try:
        sock.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True
