"""What a network has open, closed before the garbage collector asks whether it was.

A client that nobody closed may be part of a reference cycle: an error that was kept refers to the frames that it has
passed, and one of them to the client. The collector runs the finalisers of all that hangs together in an order of its
own. A socket whose finaliser came before that of its engine warned that nobody had closed it, now and then, though the
engine was about to. Callbacks of weak references come before all finalisers, so each network has one, which closes
what it had open.

This module holds the callbacks, or they would be collected, too. So nothing that they refer to is ever collected: they
refer to sockets alone, never to a connection, whose exchange may lead back to the network.
"""

from __future__ import annotations

import socket
import weakref

__all__ = ["OpenSockets"]

_callbacks: set[weakref.ref[object]] = set()


class OpenSockets:
    """The sockets that a network has open.

    Args:
        network: Whose they are: when it is gone, they are closed.
    """

    def __init__(self, network: object) -> None:
        self._sockets = sockets = set[socket.socket]()

        def close(gone: weakref.ref[object]) -> None:
            _callbacks.discard(gone)
            for sock in sockets:
                sock.close()
            sockets.clear()

        _callbacks.add(weakref.ref(network, close))

    def add(self, sock: socket.socket) -> None:
        """Note a socket that was opened."""
        self._sockets.add(sock)

    def close(self, sock: socket.socket) -> None:
        """Close the descriptor; nothing is said to the peer."""
        sock.close()
        self._sockets.discard(sock)
