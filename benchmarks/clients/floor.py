"""The floor: what Python and the kernel cost without any client."""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients.checkpoints import rest
from benchmarks.clients.work import IN_FLIGHT, each_sample, interpreter, parts, touched
from benchmarks.registry import Done, Work, enter
from benchmarks.site import Effort, Site, Stored
from benchmarks.state import CHECKPOINT, SAFETENSORS, make_state, memory
from s3torch._transfer import http1
from s3torch._transfer.buffers import BytesBuffer

__all__: list[str] = []

_HEAD_ROOM = 4096
_STREAMS = 8  # of what is sent or received in parallel


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


@enter("floor, signed, into bytes", "small")
def small_signed(site: Site, effort: Effort) -> Work:
    """The same loop, but each request is signed, each head is checked, and each body becomes new ``bytes``.

    It is s3torch without what it is for: no retries, no deadlines, no ranges, no readers, no order of the samples.
    """
    from s3torch import S3Client

    bucket = S3Client(site.region, endpoint=site.endpoint)._access.bucket(site.bucket)
    samples = each_sample(site, effort)
    selector = selectors.DefaultSelector()
    streams = [_open_stream(site) for _ in range(IN_FLIGHT)]
    for stream in streams:
        stream.setblocking(False)

    def begin(stream: socket.socket, sample: Stored) -> None:
        stream.send(bucket.request_head("GET", sample.key, {}, {"range": http1.format_range(0, sample.size)}))
        selector.modify(stream, selectors.EVENT_READ, _BytesAnswer(stream))

    def work() -> Done:
        received = 0
        waiting = iter(samples)
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
            begin(stream, next(waiting))
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.receive():
                    continue
                received += len(key.data.content())
                sample = next(waiting, None)
                if sample is None:
                    selector.unregister(key.fileobj)
                else:
                    begin(key.data.stream, sample)
        return Done(items=len(samples), bytes=received)

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


class _BytesAnswer:
    """An answer that is received into a new ``bytes`` of the size that its head tells."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.buffer: BytesBuffer | None = None
        self.filled = 0

    def receive(self) -> bool:
        """Receive what there is; returns whether the answer is complete."""
        if self.buffer is None:
            start = bytearray(_HEAD_ROOM)
            count = self.stream.recv_into(start)
            end = start.index(b"\r\n\r\n", 0, count)
            self.buffer = BytesBuffer(http1.parse_head(bytes(start[:end])).content_length or 0)
            self.filled = count - end - 4
            self.buffer.view[: self.filled] = start[end + 4 : count]
        with suppress(BlockingIOError):  # the rest of the body has not come yet
            self.filled += self.stream.recv_into(self.buffer.view[self.filled :])
        return self.filled == len(self.buffer.view)

    def content(self) -> bytes:
        assert self.buffer is not None
        return self.buffer.to_bytes()


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
    """Receive a head and move what came along of the body to the front of ``view``; returns how much that is.

    Raises:
        ConnectionError: The server refuses, or closed the connection.
    """
    filled = 0
    while (end := bytes(view[:filled]).find(b"\r\n\r\n")) < 0:
        count = stream.recv_into(view[filled : filled + _HEAD_ROOM])
        if not count:
            raise ConnectionError("the server closed the connection")
        filled += count
    _check_status(bytes(view[:end]))
    body = bytes(view[end + 4 : filled])
    view[: len(body)] = body
    return len(body)


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


# --- Checkpoints ------------------------------------------------------------------------------------------------------


@enter("floor", "save")
def save(site: Site, _: Effort) -> Work:
    """``torch.save`` to a file that drops all, then the tensors by one PUT over one blocking socket, unsigned."""
    import torch

    state = make_state(site.tensors, site.tensor)
    request = _request("PUT", f"/{site.bucket}/saved.pt", site, f"Content-Length: {site.state_bytes}\r\n")
    nowhere: Any = _Nowhere()

    def work() -> Done:
        torch.save(state, nowhere)
        with _open_stream(site) as stream:
            stream.sendall(request)
            for tensor in state.values():
                stream.sendall(memory(tensor))
            _expect_success(stream)
        return Done(items=1, bytes=site.state_bytes)

    return work


@enter("floor, parallel upload", "save")
def save_parallel(site: Site, _: Effort) -> Work:
    """The same bytes from memory in objects of 8 MiB, by presigned PUTs over 8 blocking sockets in threads."""
    content = memoryview(touched(site.state_bytes))
    pool = ThreadPoolExecutor(_STREAMS)
    heads = [
        (_request("PUT", _presigned(site, "put_object", f"part-{start}"), site, f"Content-Length: {stop - start}\r\n"),
         content[start:stop])
        for start, stop in parts(site.state_bytes)
    ]  # fmt: skip

    def send(number: int) -> None:
        with _open_stream(site) as stream:
            for head, body in heads[number::_STREAMS]:
                stream.sendall(head)
                stream.sendall(body)
                _expect_success(stream)

    def work() -> Done:
        list(pool.map(send, range(_STREAMS)))
        return Done(items=1, bytes=site.state_bytes)

    return work


@enter("floor", "async-save")
def copy(site: Site, _: Effort) -> Work:
    """The tensors are copied into others that are used again, as torch copies them."""
    import torch

    state = make_state(site.tensors, site.tensor)
    staged = {name: torch.zeros_like(tensor) for name, tensor in state.items()}

    def work() -> Done:
        rest()
        start = time.perf_counter()
        for name, tensor in state.items():
            staged[name].copy_(tensor)
        return Done(items=1, bytes=site.state_bytes, seconds=time.perf_counter() - start)

    return work


@enter("floor", "load")
def load(site: Site, _: Effort) -> Work:
    """One blocking socket, one GET, received into as many fresh tensors; nothing is parsed."""
    import torch

    head = _request("GET", _presigned(site, "get_object", CHECKPOINT), site)

    def work() -> Done:
        tensors = [torch.empty(site.tensor, dtype=torch.uint8) for _ in range(site.tensors)]
        with _open_stream(site) as stream:
            stream.sendall(head)
            first = memory(tensors[0])
            filled = _receive_head(stream, first)
            for tensor in tensors:
                _fill(stream, memory(tensor)[filled:])
                filled = 0
        return Done(items=1, bytes=site.state_bytes)

    return work


@enter("floor, parallel GET", "safetensors")
def safetensors(site: Site, _: Effort) -> Work:
    """8 blocking sockets in threads, each receives its share into memory that is used again; nothing is parsed."""
    buffer = memoryview(touched(site.state_bytes))
    return _parallel_get(site, lambda: buffer)


@enter("floor, parallel GET into new memory", "safetensors")
def safetensors_fresh(site: Site, _: Effort) -> Work:
    """The same into memory that is new each time, as that of a model that is loaded: the kernel makes its pages."""
    import torch

    return _parallel_get(site, lambda: memory(torch.empty(site.state_bytes, dtype=torch.uint8)))


def _parallel_get(site: Site, allocate: Callable[[], memoryview]) -> Work:
    pool = ThreadPoolExecutor(_STREAMS)
    share = -(-site.state_bytes // _STREAMS)

    def receive(view: memoryview, start: int) -> None:
        wanted = f"Range: bytes={start}-{start + len(view) - 1}\r\n"
        with _open_stream(site) as stream:
            stream.sendall(_request("GET", f"/{site.bucket}/{SAFETENSORS}", site, wanted))
            _fill(stream, view[_receive_head(stream, view) :])

    def work() -> Done:
        buffer = allocate()
        starts = range(0, site.state_bytes, share)
        list(pool.map(receive, [buffer[start : start + share] for start in starts], starts))
        return Done(items=1, bytes=site.state_bytes)

    return work


class _Nowhere:
    """A file that drops what is written."""

    def write(self, content: Sized) -> int:
        return len(content)

    def flush(self) -> None:
        pass


def _presigned(site: Site, operation: str, key: str) -> str:
    """Return path and query of a request that needs no header to be signed."""
    from botocore.config import Config
    from botocore.session import get_session

    config: Any = {"signature_version": "s3v4", "s3": {"addressing_style": "path" if site.path_style else "auto"}}
    s3: Any = get_session().create_client("s3", site.region, endpoint_url=site.endpoint, config=Config(**config))
    url = urlsplit(s3.generate_presigned_url(operation, Params={"Bucket": site.bucket, "Key": key}))
    return f"{url.path}?{url.query}"


def _request(method: str, target: str, site: Site, fields: str = "") -> bytes:
    host = urlsplit(site.endpoint or "").netloc
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode()


def _fill(stream: socket.socket, view: memoryview) -> None:
    while view:
        count = stream.recv_into(view)
        if not count:
            raise ConnectionError("the server closed the connection")
        view = view[count:]


def _expect_success(stream: socket.socket) -> None:
    """Receive an answer without a body.

    Raises:
        ConnectionError: The server refuses, or closed the connection.
    """
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = stream.recv(_HEAD_ROOM)
        if not part:
            raise ConnectionError("the server closed the connection")
        answer += part
    _check_status(answer)


def _check_status(head: bytes) -> None:
    if head.split(b" ", 2)[1:2] not in ([b"200"], [b"206"]):
        raise ConnectionError(f"the server answers {head[:200]!r}")
