"""A request as it arrives, and the way back to the client: whatever a server can do on a connection, also the wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from urllib.parse import urlsplit

__all__ = ["Request", "Wire", "encode_response", "parse_head"]


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


def parse_head(lines: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """Returns method, target and header fields of a request, given the lines of its head."""
    method, target, _ = lines[0].split(" ")
    pairs = [line.partition(":") for line in lines[1:]]
    return method, target, {name.lower(): value.strip() for name, _, value in pairs}


def encode_response(
    method: str, status: int, headers: Mapping[str, str | None] | None, body: bytes, reason: str | None = None
) -> tuple[bytes, bytes]:
    """Returns head and body of a response as they are sent; see `Wire.respond`.

    Args:
        method: Of the request.
        status: The status code.
        headers: The header fields.
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
    has_body = method != "HEAD" and status not in {204, 304}
    return head.encode("latin-1"), body if has_body else b""


class Wire:
    """The way back to the client of one connection; made by the server that accepted it."""

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
        self.send(b"".join(self.encode(status, headers, body, reason)))

    def encode(
        self,
        status: int,
        headers: Mapping[str, str | None] | None = None,
        body: bytes = b"",
        reason: str | None = None,
    ) -> tuple[bytes, bytes]:
        """Returns head and body of what `respond` sends."""
        return encode_response(self._method, status, headers, body, reason)

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
        method, target, headers = parse_head(lines)
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
