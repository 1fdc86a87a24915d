"""What each client does in each case: one function for both, which gets ready and returns the work to be measured.

Getting ready means: import, make the client, allocate and touch what a real program would reuse. The function that is
returned does one round of the case. Nobody's time is spent on checking what arrived beyond its length.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import socket
import ssl
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from server import BUCKET, LARGE_KEY, LARGE_SIZE, MIB, SMALL_KEYS, SMALL_SIZE, Address

if TYPE_CHECKING:
    from s3torch import S3Client
    from s3torch._aws.operations import Place
    from s3torch._transfer.http1 import ContentRange

__all__ = ["CLIENTS", "IN_FLIGHT", "Client", "Received", "Work"]

REGION = "us-east-1"
IN_FLIGHT = 32
# The keys of one round of small GETs, 2,048 of them.
SMALL_GETS = SMALL_KEYS * 32
# Enough that all connections stay busy while the oldest request is waited for.
WINDOW = 2 * IN_FLIGHT


class Received(NamedTuple):
    """What one round of work received."""

    bytes: int
    requests: int


Work = Callable[[], Received]


@dataclass(frozen=True)
class Client:
    """One contestant of one case.

    Attributes:
        name: In the table.
        needs: The module without which it cannot run, or None.
        prepare: Gets ready and returns the work.
    """

    name: str
    needs: str | None
    prepare: Callable[[Address], Work]


CLIENTS: dict[str, dict[str, Client]] = {}


def client(name: str, *cases: str, needs: str | None = None) -> Callable[..., Callable[[Address], Work]]:
    """Enter a function into the list of clients of these cases."""

    def enter(prepare: Callable[[Address], Work]) -> Callable[[Address], Work]:
        for case in cases:
            CLIENTS.setdefault(case, {})[name] = Client(name, needs, prepare)
        return prepare

    return enter


# --- The floor: what Python and the kernel cost without any client ----------------------------------------------------


@client("floor", "large", "large-tls")
def floor_large(address: Address) -> Work:
    """One blocking socket, one GET, received into one reused buffer."""
    stream = _open_stream(address)
    view = memoryview(_touched(LARGE_SIZE))
    request = _get_request(address, LARGE_KEY)

    def work() -> Received:
        stream.sendall(request)
        filled = _receive_head(stream, view)
        while filled < LARGE_SIZE:
            filled += stream.recv_into(view[filled:])
        return Received(filled, 1)

    return work


@client("floor", "small")
def floor_small(address: Address) -> Work:
    """One selector loop over 32 sockets; each answer, head and all, is received into its socket's reused slab."""
    selector = selectors.DefaultSelector()
    streams = [_SlabStream(address) for _ in range(IN_FLIGHT)]
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    requests = [_get_request(address, key) for key in SMALL_GETS]

    def work() -> Received:
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
        return Received(received, len(requests))

    return work


class _SlabStream:
    """A non-blocking socket and the memory that its answers are received into."""

    def __init__(self, address: Address) -> None:
        self.socket = _open_stream(address)
        self.socket.setblocking(False)
        self.slab = _touched(SMALL_SIZE + 4096)
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


@client("empty program", "import")
def import_nothing(_: Address) -> Work:
    """The interpreter's own start."""
    return _interpreter("pass")


def _open_stream(address: Address) -> socket.socket:
    stream = socket.create_connection((address.host, address.port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.authority is None:
        return stream
    return ssl.create_default_context(cafile=address.authority).wrap_socket(stream, server_hostname=address.host)


def _get_request(address: Address, key: str) -> bytes:
    """Return the head of a GET, as long as a signed one is."""
    return (
        f"GET /{BUCKET}/{key} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        f"Authorization: AWS4-HMAC-SHA256 Credential={'x' * 48},Signature={'0' * 64}\r\n"
        f"X-Amz-Content-Sha256: {'0' * 64}\r\nX-Amz-Date: 20260101T000000Z\r\n\r\n"
    ).encode()


def _receive_head(stream: socket.socket, view: memoryview) -> int:
    """Receive a head and move what came along of the body to the front of ``view``; returns how much that is."""
    filled = 0
    while (end := bytes(view[:filled]).find(b"\r\n\r\n")) < 0:
        filled += stream.recv_into(view[filled : filled + 4096])
    body = bytes(view[end + 4 : filled])
    view[: len(body)] = body
    return len(body)


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def _touched(size: int) -> bytearray:
    """Return memory whose pages are all there."""
    return bytearray(b"\xff") * size


# --- s3torch ----------------------------------------------------------------------------------------------------------


@client("s3torch, 1 connection", "large", "large-tls")
def s3torch_one_connection(address: Address) -> Work:
    """``read_range`` into a reused buffer: parts of 8 MiB, one after the other."""
    return _s3torch_read_range(_s3torch(address, connections=1))


@client("s3torch, 32 connections", "large", "large-tls")
def s3torch_many_connections(address: Address) -> Work:
    """``read_range`` into a reused buffer: 32 parts of 8 MiB at once."""
    return _s3torch_read_range(_s3torch(address))


@client("s3torch engine, recycled memory", "small")
def s3torch_recycled(address: Address) -> Work:
    """The engine, as a dataset drives it: a window of GetObjects, received into memory that is used again."""
    slabs = [_Slab() for _ in range(WINDOW)]
    return _s3torch_window(_s3torch(address), itertools.cycle(slabs))


@client("s3torch engine, fresh bytes", "small")
def s3torch_fresh(address: Address) -> Work:
    """The same, but each object becomes a new ``bytes`` whose size the answer tells, as the sequential reader does."""
    return _s3torch_window(_s3torch(address), (_FreshBytes() for _ in itertools.repeat(None)))


@client("s3torch get_object, 32 threads", "small")
def s3torch_threads(address: Address) -> Work:
    """The public API in threads, as the other clients are used: each thread has a connection of its own."""
    s3 = _s3torch(address)
    return _in_threads(lambda key: len(s3.get_object(BUCKET, key).read()))


@client("s3torch get_object", "memory")
def s3torch_memory(address: Address) -> Work:
    """The sequential reader's ``read()`` of everything."""
    s3 = _s3torch(address)
    return _read_once(lambda key: len(s3.get_object(BUCKET, key).read()))


@client("import s3torch", "import")
def s3torch_import(_: Address) -> Work:
    """What ``import s3torch`` adds to a program's start."""
    return _interpreter("import s3torch")


def _s3torch(address: Address, connections: int = IN_FLIGHT) -> S3Client:
    from s3torch import S3Client, S3ClientConfig

    verify = True if address.authority is None else address.authority
    config = S3ClientConfig(max_connections=connections, verify=verify)
    return S3Client(REGION, endpoint=address.url, s3client_config=config)


def _s3torch_read_range(s3: S3Client) -> Work:
    buffer = _touched(LARGE_SIZE)

    def work() -> Received:
        before = s3.stats.requests
        count = s3.read_range(BUCKET, LARGE_KEY, 0, LARGE_SIZE, into=buffer)
        return Received(count, s3.stats.requests - before)

    return work


class _Target(Protocol):
    """Where one small object is received.

    Attributes:
        into: What GetObject takes.
        reach: How many bytes GetObject is to ask for.
    """

    into: memoryview | Place
    reach: int

    def collect(self) -> int:
        """Take what was received; returns its size."""


class _Slab:
    """Memory that is used again and again, for objects of known size."""

    reach = SMALL_SIZE

    def __init__(self) -> None:
        self.into = memoryview(_touched(SMALL_SIZE))

    def collect(self) -> int:
        return len(self.into)


class _FreshBytes:
    """Memory that is allocated when the answer tells the size, and becomes ``bytes``."""

    reach = 8 * MIB

    def into(self, content_range: ContentRange) -> memoryview:
        from s3torch._transfer.buffers import BytesBuffer

        self._buffer = BytesBuffer(content_range.stop - content_range.start)
        return self._buffer.view

    def collect(self) -> int:
        return len(self._buffer.to_bytes())


def _s3torch_window(s3: S3Client, targets: Iterable[_Target]) -> Work:
    """Keep a window of requests submitted and wait for the oldest of them.

    Targets that repeat after WINDOW steps are free again by then.
    """
    from s3torch._aws.operations import GetObject

    engine, bucket = s3.engine(), s3.bucket(BUCKET)
    waiting: deque[tuple[GetObject, _Target]] = deque()

    def finish_oldest() -> int:
        get, target = waiting.popleft()
        engine.wait([get])
        return target.collect()

    def work() -> Received:
        received = 0
        for key, target in zip(SMALL_GETS, targets, strict=False):
            if len(waiting) == WINDOW - 1:
                received += finish_oldest()
            get = GetObject(bucket, key, 0, target.reach, target.into)
            engine.submit(get)
            waiting.append((get, target))
        while waiting:
            received += finish_oldest()
        return Received(received, len(SMALL_GETS))

    return work


# --- s3torchconnector -------------------------------------------------------------------------------------------------

_CONNECTOR = "s3torchconnector"


@client("s3torchconnector, sequential read()", "large", "large-tls", needs=_CONNECTOR)
def connector_sequential(address: Address) -> Work:
    """The sequential reader's ``read()``; it has no way into the caller's memory that is cheaper."""
    s3 = _connector(address)
    return lambda: Received(len(s3.get_object(BUCKET, LARGE_KEY).read()), 1)


@client("s3torchconnector, range-based readinto()", "large", "large-tls", needs=_CONNECTOR)
def connector_ranged(address: Address) -> Work:
    """The range-based reader without its own buffer: its best way into the caller's memory."""
    from s3torchconnector import S3ReaderConstructor

    s3 = _connector(address)
    constructor = S3ReaderConstructor.range_based(buffer_size=0)
    buffer = _touched(LARGE_SIZE)
    return lambda: Received(
        s3.get_object(BUCKET, LARGE_KEY, reader_constructor=constructor).readinto(buffer),
        1,
    )


@client("s3torchconnector, 32 threads", "small", needs=_CONNECTOR)
def connector_small(address: Address) -> Work:
    """``get_object().read()`` in threads."""
    s3 = _connector(address)
    return _in_threads(lambda key: len(s3.get_object(BUCKET, key).read()))


@client("s3torchconnector get_object", "memory", needs=_CONNECTOR)
def connector_memory(address: Address) -> Work:
    """The sequential reader's ``read()`` of everything."""
    s3 = _connector(address)
    return _read_once(lambda key: len(s3.get_object(BUCKET, key).read()))


@client("import s3torchconnector", "import", needs=_CONNECTOR)
def connector_import(_: Address) -> Work:
    """What ``import s3torchconnector`` adds to a program's start; it imports torch."""
    return _interpreter("import s3torchconnector")


@client("import torch", "import", needs="torch")
def torch_import(_: Address) -> Work:
    """What ``import torch`` adds to a program's start: no client, but most programs do it."""
    return _interpreter("import torch")


def _connector(address: Address) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    return S3Client(REGION, endpoint=address.url, s3client_config=S3ClientConfig(force_path_style=True))


# --- obstore ----------------------------------------------------------------------------------------------------------


@client("obstore, get().bytes()", "large", "large-tls", needs="obstore")
def obstore_get(address: Address) -> Work:
    """One GET into memory of obstore's own."""
    store = _obstore(address)
    return lambda: Received(len(store.get(LARGE_KEY).bytes()), 1)


@client("obstore, get().stream()", "large", "large-tls", needs="obstore")
def obstore_stream(address: Address) -> Work:
    """One GET, its chunks copied into a reused buffer."""
    store = _obstore(address)
    view = memoryview(_touched(LARGE_SIZE))

    def work() -> Received:
        filled = 0
        for chunk in store.get(LARGE_KEY).stream(min_chunk_size=MIB):
            stop = filled + len(chunk)
            view[filled:stop] = memoryview(chunk)
            filled = stop
        return Received(filled, 1)

    return work


@client("obstore, 32 threads", "small", needs="obstore")
def obstore_small(address: Address) -> Work:
    """``get().bytes()`` in threads."""
    store = _obstore(address)
    return _in_threads(lambda key: len(store.get(key).bytes()))


@client("obstore, asyncio", "small", needs="obstore")
def obstore_async(address: Address) -> Work:
    """``get_async`` in 32 tasks."""
    store = _obstore(address)
    loop = asyncio.new_event_loop()

    async def read_all(keys: Iterable[str]) -> int:
        received = 0
        for key in keys:
            answer = await store.get_async(key)
            received += len(await answer.bytes_async())
        return received

    async def run() -> int:
        keys = iter(SMALL_GETS)  # shared: each task takes the next one
        return sum(await asyncio.gather(*[read_all(keys) for _ in range(IN_FLIGHT)]))

    return lambda: Received(loop.run_until_complete(run()), len(SMALL_GETS))


@client("obstore get().bytes()", "memory", needs="obstore")
def obstore_memory(address: Address) -> Work:
    """One GET into memory of obstore's own."""
    store = _obstore(address)
    return _read_once(lambda key: len(store.get(key).bytes()))


def _obstore(address: Address) -> Any:  # noqa: ANN401 - as above
    from obstore.store import S3Store

    options = {"allow_http": address.authority is None}
    return S3Store(BUCKET, endpoint=address.url, region=REGION, client_options=options)


# --- boto3 ------------------------------------------------------------------------------------------------------------


@client("boto3, readinto()", "large", "large-tls", needs="boto3")
def boto3_large(address: Address) -> Work:
    """One GET, its body read into a reused buffer."""
    s3 = _boto3(address)
    view = memoryview(_touched(LARGE_SIZE))

    def work() -> Received:
        body = s3.get_object(Bucket=BUCKET, Key=LARGE_KEY)["Body"]
        filled = 0
        while count := body.readinto(view[filled:]):
            filled += count
        return Received(filled, 1)

    return work


@client("boto3, 32 threads", "small", needs="boto3")
def boto3_small(address: Address) -> Work:
    """``get_object`` and ``read()`` in threads."""
    s3 = _boto3(address)
    return _in_threads(lambda key: len(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()))


@client("boto3 get_object", "memory", needs="boto3")
def boto3_memory(address: Address) -> Work:
    """``read()`` of everything."""
    s3 = _boto3(address)
    return _read_once(lambda key: len(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()))


def _boto3(address: Address) -> Any:  # noqa: ANN401 - as above
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=IN_FLIGHT, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=address.url, region_name=REGION, verify=address.authority, config=config)


# --- What several clients share ---------------------------------------------------------------------------------------


def _in_threads(fetch: Callable[[str], int]) -> Work:
    """Return work that fetches all small objects in 32 threads."""
    pool = ThreadPoolExecutor(IN_FLIGHT)
    return lambda: Received(sum(pool.map(fetch, SMALL_GETS)), len(SMALL_GETS))


def _read_once(fetch: Callable[[str], int]) -> Work:
    """Return work that fetches the large object; a small one is fetched first, so that all modules are loaded."""
    fetch(SMALL_KEYS[0])
    return lambda: Received(fetch(LARGE_KEY), 1)


def _interpreter(program: str) -> Work:
    """Return work that runs a program in a new interpreter."""

    def work() -> Received:
        subprocess.run([sys.executable, "-c", program], check=True)
        return Received(0, 1)

    return work
