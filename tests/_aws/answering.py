"""Answers to one exchange, without an engine and without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from s3torch._aws.bucket import Bucket
from s3torch._aws.endpoint import Endpoint
from s3torch._aws.operations import Operation
from s3torch._transfer.connection import Origin
from s3torch._transfer.http1 import Inbox
from s3torch.errors import S3Error

__all__ = ["answer", "bucket"]

_ORIGIN = Origin("http", "bucket.test", 80)


def bucket(origin: Origin = _ORIGIN, *, has_checksums: bool = False) -> Bucket:
    """Return a bucket whose requests are not signed."""
    endpoint = Endpoint(origin, origin.host, "")
    session: Any = SimpleNamespace(
        region=lambda: "here", endpoint=lambda *_: endpoint, credentials=lambda: None, proxy=lambda _: None
    )
    return Bucket("bucket", lambda: session, "test", has_checksums=has_checksums)


def answer(operation: Operation, status: int, body: bytes = b"", **fields: object) -> S3Error | None:
    """Send the request to nowhere, and let the operation read an answer; returns the error that it makes of that.

    Args:
        operation: Whose turn it is.
        status: Of the answer.
        body: Of the answer; may be shorter than ``content_length`` says.
        fields: Of its head, with ``_`` for ``-``; None leaves one out.
    """
    operation.request()
    told = {"content_length": len(body), **fields}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items() if value is not None]
    stream = memoryview(f"HTTP/1.1 {status} -\r\n{''.join(lines)}\r\n".encode() + body)
    reading = operation.response(Inbox())
    room = next(reading)
    while True:
        count = min(len(room), len(stream))
        room[:count], stream = stream[:count], stream[count:]
        try:
            room = reading.send(count)
        except StopIteration as end:
            return end.value
