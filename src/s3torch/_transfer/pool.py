"""The connections of one engine: those in use, and those that wait for their next request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.errors import S3Error

if TYPE_CHECKING:
    from s3torch._transfer.connection import Connection, Network, Origin
    from s3torch._transfer.stats import TransferStats

__all__ = ["ConnectionPool"]

# Idle connections are dropped before servers do it (S3 after 5-20 s, nginx after 75 s): a reuse that fails costs a
# round trip. Not tuned.
_IDLE_LIFETIME = 15.0
# A connection whose request has found another one, and that is not open after so many seconds, may never be. Not tuned.
_COMING_LIFETIME = 0.25


class ConnectionPool:
    """Opens, keeps and closes connections.

    Args:
        network: Opens them.
        most: How many there may be.
        stats: Counts those that are opened.

    Attributes:
        seconds: How long it took to open connections: looking names up blocks. Whoever has counted them sets it to 0.
    """

    def __init__(self, network: Network, most: int, stats: TransferStats) -> None:
        self._network = network
        self._most = most
        self._stats = stats
        self.seconds = 0.0
        self._connections: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def take(self, origin: Origin, clock: float) -> Connection:
        """Return an idle connection, of which select has just told that nothing has come there, or a new one.

        One that is open comes before one that was begun for another request and is not open yet. If that has taken long
        another is opened beside it: the first that is open has the request (see ``Loop``).

        Args:
            origin: Where it leads.
            clock: The time in seconds.

        Raises:
            ConnectionFailedError: The host has no address, or none that can be tried.
        """
        idle = self._idle.get(origin)
        while idle:
            connection = idle[-1]
            waited = clock - connection.idle_since
            if waited < (_IDLE_LIFETIME if connection.is_open else _COMING_LIFETIME):
                return idle.pop()
            if not connection.is_open and waited < _IDLE_LIFETIME:
                break  # all that are open stand behind it: there is none
            self.discard(connection)
        return self.open(origin)

    def open(self, origin: Origin) -> Connection:
        """Begin a new connection; see ``take``."""
        if len(self._connections) >= self._most:
            self._close_one_idle()
        began = self._network.clock()
        try:
            connection = self._network.open(origin)
        finally:
            self.seconds += self._network.clock() - began
        self._connections.add(connection)
        self._stats.connections_opened += 1
        connection.serial = self._stats.connections_opened
        return connection

    def keep(self, connection: Connection, clock: float) -> None:
        """Keep a connection for its next request, if nothing is left over on it; close it otherwise."""
        if len(connection.inbox) or not connection.is_drained:
            self.discard(connection)
            return
        if not connection.was_used:
            connection.note_used()
        connection.idle_since = clock
        if connection.awaited > 1:
            connection.expect(1)
        self._idle.setdefault(connection.origin, []).append(connection)

    def keep_coming(self, connection: Connection, clock: float) -> None:
        """Keep a connection that is not open yet, and whose request has found another one."""
        connection.idle_since = clock
        self._idle.setdefault(connection.origin, []).insert(0, connection)  # behind all that are open

    def take_open(self, origin: Origin) -> Connection | None:
        """Return an idle connection that is open, or None."""
        idle = self._idle.get(origin)
        return idle.pop() if idle and idle[-1].is_open else None

    def discard(self, connection: Connection) -> None:
        """Close a connection."""
        connection.close()
        self._connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def drop_unless_quiet(self, connection: Connection) -> None:
        """Close an idle connection on which its end came, or bytes that would pass for the next answer.

        One that is not open yet goes on with connecting.
        """
        if connection not in self._connections:  # an interrupt came before it was taken in
            connection.close()
            return
        try:
            if not connection.is_open:
                if connection.establish():
                    self._open_idle(connection)
                return
            is_quiet = connection.recv_into(connection.inbox.view[:1]) is None
        except S3Error:
            is_quiet = False
        if not is_quiet:
            self.discard(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            connection.flight = None
            self.discard(connection)
        self._idle.clear()

    def abandon(self) -> None:
        """Close this process's descriptors, whichever process the connections belong to."""
        for connection in self._connections:
            connection.flight = None
            connection.abandon()
        self._connections.clear()
        self._idle.clear()

    def _open_idle(self, connection: Connection) -> None:
        """Put an idle connection that has just opened to those that are open."""
        connection.watch_writing(wanted=False)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
            idle.append(connection)

    def _close_one_idle(self) -> None:
        for connections in self._idle.values():
            if connections:
                self.discard(connections.pop(0))
                return
