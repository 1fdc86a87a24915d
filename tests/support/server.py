"""An HTTP/1.1 server on loopback that misbehaves as each test tells it to.

A test gives a handler: a function of the request and of the `Wire`, the way back to the client. It
answers well (`Wire.respond`), byte by byte (`Wire.send`), not at all (`Wire.stall`), or breaks the
connection (`Wire.close`, `Wire.reset`). Handlers are combined by `first`; `serve_object` is the one
that does all right, to be wrapped by a fault.

Each connection has a thread, which reads request after request. On exit all sockets are shut down,
which wakes every thread from whatever it waits for, and the threads are joined: nothing sleeps, and
nothing is left open. An exception in a handler is raised at the end of the `with` block; the
connection errors that a client causes by leaving are not.
"""

import contextlib
import itertools
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

import trustme

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Handler",
    "Request",
    "ScriptedServer",
    "Wire",
    "fail",
    "first",
    "s3_error",
    "serve_object",
    "tls_contexts",
]

# Seconds that a handler has to return once its socket is shut down. Only one that waits for
# something else needs any.
_JOIN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it was received.

    Args:
        method: The method, as `GET`.
        target: Path and query, as they were sent.
        headers: The header fields; names in lower case, of a repeated one the last value.
        body: The whole body.
        connection: The number of the connection it came on; the first is 1.
        time: When its head was complete, in seconds of `time.monotonic`.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    time: float

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path


class Wire:
    """The way back to the client of one connection; made by `ScriptedServer`."""

    def __init__(self, sock: socket.socket, stop_listening: Callable[[], None]) -> None:
        self._sock = sock
        self._reader = sock.makefile("rb")
        self._method = ""
        self._stop_listening = stop_listening
        self.closed = False

    def respond(
        self,
        status: int,
        headers: Mapping[str, str | None] | None = None,
        body: bytes = b"",
        reason: str | None = None,
    ) -> None:
        """Sends a response; to a HEAD request, and with status 204 or 304, without its body.

        Args:
            status: The status code.
            headers: The header fields. `Content-Length` is the body's where it is not given, and
                left out where it is None; a wrong one is sent as it is.
            body: The body.
            reason: The reason phrase; None means the usual one.
        """
        if reason is None:
            reason = responses.get(status, "")
        fields = dict(headers or {})
        names = {name.lower() for name in fields}
        if not names & {"content-length", "transfer-encoding"} and status not in {204, 304}:
            fields["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {status} {reason}"]
        lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
        head = "".join(f"{line}\r\n" for line in [*lines, ""])
        has_body = self._method != "HEAD" and status not in {204, 304}
        self.send(head.encode("latin-1") + (body if has_body else b""))

    def send(self, octets: bytes) -> None:
        """Sends bytes as they are."""
        self._sock.sendall(octets)

    def close(self, *, close_notify: bool = True) -> None:
        """Closes the connection with a FIN.

        Args:
            close_notify: Whether TLS ends in the orderly way before.
        """
        if close_notify and not self.closed and isinstance(self._sock, ssl.SSLSocket):
            # Sends our close_notify; non-blocking, so as not to wait for the client's.
            self._sock.setblocking(False)
            with contextlib.suppress(OSError):
                self._sock.unwrap()
        self._close()

    def reset(self) -> None:
        """Breaks the connection with a RST; what was sent before may be lost with it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def stall(self) -> None:
        """Blocks until the client closes the connection, or the server exits; then closes it."""
        while self._reader.read(65536):
            pass
        self._close()

    def refuse_further(self) -> None:
        """Makes the server refuse all further connections; those that are open stay open."""
        self._stop_listening()

    def shake_hands(self) -> None:
        """Does the TLS handshake, where there is TLS."""
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.do_handshake()

    def shut_down(self) -> None:
        """Wakes the connection's thread from what it does; called from another thread."""
        # Not SSLSocket's own method: it takes the TLS object away under the other thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def read_request(self, connection: int) -> Request | None:
        """Reads the next request; returns None where the client closed the connection."""
        lines: list[str] = []
        while (line := self._reader.readline()) not in {b"\r\n", b""}:
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        if not lines or not line:
            return None
        arrived = time.monotonic()
        method, target, _ = lines[0].split(" ")
        pairs = [line.partition(":") for line in lines[1:]]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._read_chunks()
        else:
            length = int(headers.get("content-length", "0"))
            body = self._reader.read(length)
            if len(body) < length:
                return None
        self._method = method
        return Request(
            method=method,
            target=target,
            headers=headers,
            body=body,
            connection=connection,
            time=arrived,
        )

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self._reader.readline().partition(b";")[0], 16):
            chunks.append(self._reader.read(size))
            self._reader.readline()
        while self._reader.readline() not in {b"\r\n", b""}:
            pass
        return b"".join(chunks)

    def _close(self) -> None:
        self.closed = True
        self._reader.close()
        self._sock.close()


Handler = Callable[[Request, Wire], None]


class ScriptedServer:
    """A loopback HTTP server that calls `handler` for each request.

    Args:
        handler: Answers one request; called from the thread of the request's connection. The
            connection is kept for the next request unless the handler closes it.
        tls: The context of an HTTPS server; None means HTTP.

    Attributes:
        requests: All requests so far, in the order in which they arrived.
        connections: The number of connections accepted so far.
    """

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._handler = handler
        self._tls = tls
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._listening = True
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="acceptor", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __repr__(self) -> str:
        return f"ScriptedServer({self.endpoint!r}, connections={self.connections}, requests={len(self.requests)})"

    def __enter__(self) -> "Self":
        self._acceptor.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_listening()
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

    def _stop_listening(self) -> None:
        """Closes the listener; on return connections are refused, and no thread is added."""
        with self._lock:
            was_listening, self._listening = self._listening, False
        if was_listening:
            # Closing a listener does not wake the thread that accepts from it; a connection does.
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._acceptor.join(_JOIN_TIMEOUT)

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
        if self._tls:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        wire = Wire(sock, self._stop_listening)
        self._wires.append(wire)
        number = self.connections
        name = f"connection {number}"
        thread = threading.Thread(target=self._serve, args=(wire, number), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, wire: Wire, connection: int) -> None:
        try:
            wire.shake_hands()
            while not wire.closed and (request := wire.read_request(connection)):
                self.requests.append(request)
                self._handler(request, wire)
        except OSError:
            pass  # the client left, did not trust us, or the server exits
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it in the test's thread
            self._errors.append(error)
        finally:
            wire.close()


def first(count: int, fault: Handler, then: Handler) -> Handler:
    """Returns a handler that gives the first `count` requests to `fault`, the others to `then`."""
    numbers = itertools.count()

    def handle(request: Request, wire: Wire) -> None:
        handler = fault if next(numbers) < count else then
        handler(request, wire)

    return handle


def s3_error(code: str, message: str = "") -> bytes:
    """Returns the XML body of an S3 error response, as `SlowDown`.

    https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        "<RequestId>REQUEST</RequestId><HostId>HOST</HostId></Error>"
    ).encode()


def fail(status: int, code: str, message: str = "", headers: Mapping[str, str | None] | None = None) -> Handler:
    """Returns a handler that answers every request with an S3 error.

    Args:
        status: The status code, as 503.
        code: S3's error code, as `SlowDown`.
        message: The message for people.
        headers: Header fields beside the usual ones, as `Retry-After`.
    """
    fields = {"Content-Type": "application/xml", "x-amz-request-id": "REQUEST", **(headers or {})}

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(status, fields, s3_error(code, message))

    return handle


def serve_object(
    content: bytes,
    *,
    etag: str = '"e"',
    path: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Handler:
    """Returns a handler that serves one object as S3 does: GET, HEAD, Range, If-Match.

    One byte range is served as 206, or as 416 where it starts past the end; what is no single byte
    range is ignored (RFC 9110, section 14.2).

    Args:
        content: The object's content.
        etag: Its ETag, with the quotes.
        path: The only path that exists, as `/bucket/key`; None means that each path is the object.
        headers: Header fields beside the usual ones, in a response with content.
    """
    size = len(content)

    def handle(request: Request, wire: Wire) -> None:
        fields = {"ETag": etag, "Accept-Ranges": "bytes", "x-amz-request-id": "REQUEST"}
        fields |= {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **(headers or {})}
        if request.method not in {"GET", "HEAD"}:
            return fail(405, "MethodNotAllowed")(request, wire)
        if path is not None and request.path != path:
            return fail(404, "NoSuchKey")(request, wire)
        if request.headers.get("if-match", etag) not in {etag, "*"}:
            return fail(412, "PreconditionFailed")(request, wire)
        extent = _parse_range(request.headers.get("range", ""), size)
        if extent is None:
            return wire.respond(200, fields, content)
        start, stop = extent
        if start >= stop:
            beyond = {"Content-Range": f"bytes */{size}"}
            return fail(416, "InvalidRange", headers=beyond)(request, wire)
        fields["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return wire.respond(206, fields, content[start:stop])

    return handle


def _parse_range(value: str, size: int) -> tuple[int, int] | None:
    """Returns the half-open range that a Range header asks for, empty if unsatisfiable, or None."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", value)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    start = int(match[1])
    if not match[2]:
        return start, size
    last = int(match[2])
    return None if last < start else (start, min(last + 1, size))


def tls_contexts(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Makes a certificate authority and a server certificate for localhost and 127.0.0.1.

    Args:
        directory: Where the authority's certificate is written, as pytest's `tmp_path`.

    Returns:
        The server's context, and the path of the PEM file that a client has to trust.
    """
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return context, path
