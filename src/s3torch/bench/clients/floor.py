"""The floor: what Python and the kernel cost without any client."""

from __future__ import annotations

import selectors
import socket
import ssl
from urllib.parse import urlsplit

from s3torch.bench.clients.work import IN_FLIGHT, each_sample, interpreter, touched
from s3torch.bench.registry import Done, Work, enter
from s3torch.bench.site import Effort, Site

__all__: list[str] = []

_HEAD_ROOM = 4096


@enter("floor", "large")
def large(site: Site, _: Effort) -> Work:
    """One blocking socket, one GET, received into one reused buffer."""
    stream = _open_stream(site)
    size = site.large.size
    view = memoryview(touched(size))
    request = _get_request(site, site.large.key)

    def work() -> Done:
        stream.sendall(request)
        filled = _receive_head(stream, view)
        while filled < size:
            filled += stream.recv_into(view[filled:])
        return Done(items=1, bytes=filled)

    return work


@enter("floor", "small")
def small(site: Site, effort: Effort) -> Work:
    """One selector loop over 32 sockets; each answer, head and all, is received into its socket's reused slab."""
    selector = selectors.DefaultSelector()
    samples = each_sample(site, effort)
    streams = [_SlabStream(site, max(sample.size for sample in samples)) for _ in range(IN_FLIGHT)]
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    requests = [_get_request(site, sample.key) for sample in samples]

    def work() -> Done:
        received = 0
        waiting = iter(requests)
        busy = len(streams)
        for stream in streams:
            stream.send(next(waiting))
        while busy:
            for key, _ in selector.select():
                stream = key.data
                if not stream.receive():
                    continue
                received += stream.body_length
                request = next(waiting, None)
                if request is None:
                    busy -= 1
                else:
                    stream.send(request)
        return Done(items=len(requests), bytes=received)

    return work


@enter("empty program", "import")
def import_nothing(_: Site, __: Effort) -> Work:
    """The interpreter's own start."""
    return interpreter("pass")


@enter("import torch", "import", needs="torch")
def import_torch(_: Site, __: Effort) -> Work:
    """What ``import torch`` adds to a program's start: no client, but most programs do it."""
    return interpreter("import torch")


class _SlabStream:
    """A non-blocking socket and the memory that its answers are received into."""

    def __init__(self, site: Site, size: int) -> None:
        self.socket = _open_stream(site)
        self.socket.setblocking(False)
        self.slab = touched(size + _HEAD_ROOM)
        self.view = memoryview(self.slab)
        self.filled = self.end = self.body_length = 0

    def send(self, request: bytes) -> None:
        self.filled = 0
        self.end = len(self.slab)
        self.socket.send(request)

    def receive(self) -> bool:
        """Receive what there is; returns whether the answer is complete."""
        is_first = not self.filled
        self.filled += self.socket.recv_into(self.view[self.filled :])
        if is_first:
            body = self.slab.find(b"\r\n\r\n", 0, self.filled) + 4
            self.body_length = _content_length(bytes(self.view[:body]))
            self.end = body + self.body_length
        return self.filled == self.end


def _open_stream(site: Site) -> socket.socket:
    url = urlsplit(site.endpoint or "")
    stream = socket.create_connection((url.hostname, url.port or (80 if site.is_plain else 443)))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if site.is_plain:
        return stream
    return ssl.create_default_context(cafile=site.authority).wrap_socket(stream, server_hostname=url.hostname)


def _get_request(site: Site, key: str) -> bytes:
    """Return the head of a GET, as long as a signed one is."""
    return (
        f"GET /{site.bucket}/{key} HTTP/1.1\r\nHost: {urlsplit(site.endpoint or '').netloc}\r\n"
        f"Authorization: AWS4-HMAC-SHA256 Credential={'x' * 48},Signature={'0' * 64}\r\n"
        f"X-Amz-Content-Sha256: {'0' * 64}\r\nX-Amz-Date: 20260101T000000Z\r\n\r\n"
    ).encode()


def _receive_head(stream: socket.socket, view: memoryview) -> int:
    """Receive a head and move what came along of the body to the front of ``view``; returns how much that is."""
    filled = 0
    while (end := bytes(view[:filled]).find(b"\r\n\r\n")) < 0:
        filled += stream.recv_into(view[filled : filled + _HEAD_ROOM])
    body = bytes(view[end + 4 : filled])
    view[: len(body)] = body
    return len(body)


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
