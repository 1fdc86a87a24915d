"""An HTTP/1.1 server on loopback that does with each request what its handler says.

Each connection has a thread, which reads request after request. On exit all sockets are shut down, which wakes every
thread from whatever it waits for, and the threads are joined: nothing sleeps, and nothing is left open. An exception in
a handler is raised at the end of the `with` block; the connection errors that a client causes by leaving are not.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from s3torch.testing.faulty.wire import Request, Wire

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Handler", "ScriptedServer", "Welcome"]

# Seconds that a handler has to return once its socket is shut down, which wakes it: more than a busy machine takes to
# run its thread. Only one that waits for something else takes them all.
_JOIN_TIMEOUT = 120.0
_BACKLOG = 128

Handler = Callable[[Request, Wire], None]
Welcome = Callable[[socket.socket, int], "socket.socket | None"]


class ScriptedServer:
    """A loopback HTTP server that calls `handler` for each request.

    Args:
        handler: Answers one request; called from the thread of the request's connection. The
            connection is kept for the next request unless the handler closes it.
        tls: The context of an HTTPS server; None means HTTP.
        welcome: Is given each accepted socket and its number, and returns the one to serve; or None, having closed it.
            None (the default) wraps it by `tls`.

    Attributes:
        requests: All requests so far, in the order in which they arrived.
        connections: The number of connections accepted so far.
    """

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None, *, welcome: Welcome | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._handler = handler
        self._tls = tls
        self._welcome = welcome or self._wrap
        self._exiting = threading.Event()
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._listening = True
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="acceptor", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]

    def __repr__(self) -> str:
        return f"ScriptedServer({self.endpoint!r}, connections={self.connections}, requests={len(self.requests)})"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exiting.set()
        self.stop_listening()
        for wire in self._wires:
            wire.shut_down()
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT)
            assert not thread.is_alive(), f"the handler of {thread.name} does not return"
        if self._errors and exc is None:
            raise self._errors[0]

    @property
    def endpoint(self) -> str:
        """The server's URL: `http://127.0.0.1:PORT`, or with TLS `https://localhost:PORT`."""
        return f"https://localhost:{self.port}" if self._tls else f"http://127.0.0.1:{self.port}"

    def stop_listening(self) -> None:
        """Closes the listener; on return connections are refused, and no thread is added."""
        with self._lock:
            was_listening, self._listening = self._listening, False
        if was_listening:
            # Closing a listener does not wake the thread that accepts from it; a connection does.
            with contextlib.suppress(OSError):  # one that came before has woken it already
                socket.create_connection(("127.0.0.1", self.port)).close()
        self._acceptor.join(_JOIN_TIMEOUT)

    def listen_again(self) -> None:
        """Takes connections at the same port again after `stop_listening`; does nothing once the server exits.

        Raises:
            OSError: If another process has taken the port meanwhile.
        """
        with self._lock:
            if self._listening or self._exiting.is_set():
                return
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=_BACKLOG)
            self._acceptor = threading.Thread(target=self._accept, name="acceptor", daemon=True)
            self._listening = True
            self._acceptor.start()

    def refuse_for(self, seconds: float) -> None:
        """Refuses connections for some seconds; those that are open stay open."""
        self.stop_listening()
        self.pause(seconds)
        self.listen_again()

    def pause(self, seconds: float) -> None:
        """Blocks for some seconds, or until the server exits."""
        self._exiting.wait(seconds)

    def close_connections(self) -> None:
        """Shuts all connections down, and waits until their handlers have returned; for between two requests."""
        self.stop_listening()  # what waits to be accepted is refused
        wires, self._wires = self._wires, []
        threads, self._threads = self._threads, []
        for wire in wires:
            wire.shut_down()
        for thread in threads:
            thread.join(_JOIN_TIMEOUT)
        self.listen_again()

    def _wrap(self, sock: socket.socket, _number: int) -> socket.socket:
        if self._tls is None:
            return sock
        return self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def _accept(self) -> None:
        with self._listener:
            while True:
                sock, _ = self._listener.accept()
                with self._lock:
                    if not self._listening:
                        sock.close()
                        return
                self._open(sock)

    def _open(self, sock: socket.socket) -> None:
        self.connections += 1
        # Without it a response sent in pieces waits 40 ms for the client's delayed acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = self.connections
        welcomed = self._welcome(sock, number)
        if welcomed is None:
            return
        wire = Wire(welcomed, self.stop_listening)
        self._wires.append(wire)
        name = f"connection {number}"
        thread = threading.Thread(target=self._serve, args=(wire, number), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, wire: Wire, connection: int) -> None:
        try:
            self._answer(wire, connection)
        except OSError:
            pass  # the client left, did not trust us, or the server exits
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it in the test's thread
            self._errors.append(error)
        finally:
            wire.close()

    def _answer(self, wire: Wire, connection: int) -> None:
        wire.shake_hands()
        while not wire.closed and (request := wire.read_request(connection)):
            self.requests.append(request)
            self._handler(request, wire)
