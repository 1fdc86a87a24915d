"""Handlers for `ScriptedServer`, an HTTP/1.1 server on loopback that misbehaves as each test tells it to.

A test gives a handler: a function of the request and of the `Wire`, the way back to the client. It
answers well (`Wire.respond`), byte by byte (`Wire.send`), not at all (`Wire.stall`), or breaks the
connection (`Wire.close`, `Wire.reset`). Handlers are combined by `first`; `serve_object` is the one
that does all right, to be wrapped by a fault.
"""

import itertools
import ssl
from collections.abc import Mapping
from pathlib import Path

from s3torch.testing.faulty.authority import Authority
from s3torch.testing.faulty.listener import Handler, ScriptedServer
from s3torch.testing.faulty.objects import parse_range, s3_error
from s3torch.testing.faulty.wire import Request, Wire

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


def first(count: int, fault: Handler, then: Handler) -> Handler:
    """Returns a handler that gives the first `count` requests to `fault`, the others to `then`."""
    numbers = itertools.count()

    def handle(request: Request, wire: Wire) -> None:
        handler = fault if next(numbers) < count else then
        handler(request, wire)

    return handle


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
        extent = parse_range(request.headers.get("range", ""), size)
        if extent is None:
            return wire.respond(200, fields, content)
        start, stop = extent
        if start >= stop:
            beyond = {"Content-Range": f"bytes */{size}"}
            return fail(416, "InvalidRange", headers=beyond)(request, wire)
        fields["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return wire.respond(206, fields, content[start:stop])

    return handle


def tls_contexts(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Makes a certificate authority and a server certificate for localhost and 127.0.0.1.

    Args:
        directory: Where the authority's certificate is written, as pytest's `tmp_path`.

    Returns:
        The server's context, and the path of the PEM file that a client has to trust.
    """
    authority = Authority(directory)
    return authority.context(), authority.path
