"""Tests of the network that has no sockets, and of clients that use it."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3torch._transfer.connection import READ, WRITE, Origin
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.mock import MockS3Client
from s3torch.errors import BucketNotFoundError, ObjectExistsError, ObjectNotFoundError, S3Error
from s3torch.testing.memory import MemoryConnection, MemoryNetwork, MemoryObjects
from s3torch.writer import S3Writer
from tests.support.collecting import collect_what_others_left

MiB = 1024 * 1024
ORIGIN = Origin("http", "bucket.test", 80)
CONTENT = bytes(range(256)) * 400

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="has no fork")


# Connections


@pytest.fixture
def network() -> MemoryNetwork:
    """A network that leads to one object."""
    return MemoryNetwork(MemoryObjects("bucket", {"key": b"content"}))


@pytest.fixture
def connection(network: MemoryNetwork) -> MemoryConnection:
    """An open connection that has nothing to send."""
    connection = network.open(ORIGIN)
    connection.watch_writing(wanted=False)
    return connection


def _receive(connection: MemoryConnection, size: int = 10_000) -> bytes | None:
    memory = bytearray(size)
    count = connection.recv_into(memoryview(memory))
    return None if count is None else bytes(memory[:count])


GET = b"GET /bucket/key HTTP/1.1\r\nHost: bucket.test\r\n\r\n"
PUT = b"PUT /bucket/new HTTP/1.1\r\nHost: bucket.test\r\nContent-Length: 3\r\n\r\nnew"


def test_connections_are_open(network: MemoryNetwork):
    """A connection is open at once, and reports room for sending until that is not wanted."""
    connection = network.open(ORIGIN)
    assert (connection.is_open, connection.origin, connection.establish()) == (True, ORIGIN, True)
    assert network.select(0.0) == [(connection, WRITE)]
    connection.watch_writing(wanted=False)
    assert network.select(0.0) == []


@pytest.mark.parametrize("request_", [GET, PUT])
def test_answers_come_when_all_was_sent(network: MemoryNetwork, connection: MemoryConnection, request_: bytes):
    """A request that is sent byte by byte is answered after its last one."""
    for index in range(len(request_) - 1):
        assert connection.send(memoryview(request_[index : index + 1])) == 1
        assert network.select(0.0) == []
    connection.send(memoryview(request_[-1:]))
    assert network.select(10.0) == [(connection, READ)]
    assert (_receive(connection) or b"").startswith(b"HTTP/1.1 200 OK\r\n")
    assert _receive(connection) is None
    assert network.select(0.0) == []


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_answers_are_received_in_pieces(network: MemoryNetwork, connection: MemoryConnection, size: int):
    """An answer is reported and handed out until it was received, in pieces of any size."""
    connection.send(memoryview(GET + PUT + GET))
    received = b""
    while network.select(0.0):
        received += _receive(connection, size) or b""
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.endswith(b"\r\n\r\ncontent")


def test_closed_connections_are_not_reported(network: MemoryNetwork, connection: MemoryConnection):
    """Of a connection that was closed nothing is heard, and the others go on."""
    other = network.open(ORIGIN)
    for each in (connection, other):
        each.send(memoryview(GET))
    connection.close()
    other.watch_writing(wanted=False)
    assert network.select(0.0) == [(other, READ)]
    other.abandon()
    assert network.select(0.0) == []


def test_what_will_not_come_takes_its_time(network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch):
    """To wait when nothing can come takes the time that was said: a caller must not turn at full speed."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert network.select(2.5) == []
    assert slept == [2.5]


# Clients


@pytest.fixture
def client() -> MockS3Client:
    """A client of one object."""
    client = MockS3Client("us-east-1", "bucket")
    client.add_object("key", CONTENT)
    return client


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_sockets")
def test_nothing_is_started(client: MockS3Client):
    """All that a client can do is done without a socket, a descriptor or a thread."""
    descriptors = Path("/proc/self/fd")
    collect_what_others_left()  # or it would be closed meanwhile, and its number be used again
    before = set(descriptors.iterdir()) if descriptors.exists() else set()
    threads = set(threading.enumerate())
    assert client.get_object("bucket", "key").read() == CONTENT
    with client.put_object("bucket", "a b%c/ü?&#") as writer:
        writer.write(b"content")
    client.copy_object("bucket", "a%20b%25c/%C3%BC%3F%26%23", "bucket", "copy")
    assert client.read_range("bucket", "copy", 1, 4) == b"ont"
    assert client.read_ranges("bucket", "key", [(0, 3), (5, 7)]) == [CONTENT[:3], CONTENT[5:7]]
    assert client.head_object("bucket", "copy").size == 7
    keys = [info.key for page in client.list_objects("bucket", max_keys=1) for info in page.object_info]
    assert keys == ["a b%c/ü?&#", "copy", "key"]
    client.delete_object("bucket", "copy")
    with pytest.raises(ObjectNotFoundError):
        client.head_object("bucket", "copy")
    assert set(threading.enumerate()) <= threads
    if before:
        assert set(descriptors.iterdir()) <= before


def _interrupt(writer: S3Writer, content: bytes) -> None:
    """Give an upload up when all was written."""
    with contextlib.suppress(KeyError), writer:
        writer.write(content)
        raise KeyError


@pytest.mark.usefixtures("no_sockets")
def test_multipart_uploads(client: MockS3Client):
    """A large object is uploaded and read in parts; an upload that was given up leaves none."""
    content = CONTENT * 200
    with client.put_object("bucket", "large") as writer:
        writer.write(content)
    assert client.get_object("bucket", "large").read() == content
    assert client.head_object("bucket", "large").etag.endswith('-3"')
    _interrupt(client.put_object("bucket", "large"), content)
    assert client.list_multipart_uploads("bucket") == []
    assert client.head_object("bucket", "large").size == len(content)


@pytest.mark.usefixtures("no_sockets")
def test_resumed_uploads(client: MockS3Client):
    """An upload that was interrupted is listed, gone on with, and aborted."""
    content = CONTENT * 200
    for _ in range(2):
        _interrupt(client.put_object("bucket", "large", resume=True), content)
        [upload] = client.list_multipart_uploads("bucket", "la")
        assert upload.key == "large"
    assert client.list_multipart_uploads("bucket", "x") == []
    before = client.stats.bytes_sent
    with client.put_object("bucket", "large", resume=True) as writer:
        writer.write(content)
    assert client.stats.bytes_sent - before < len(content) // 2
    assert client.get_object("bucket", "large").read() == content
    client.abort_multipart_upload("bucket", "large", upload.upload_id)


@pytest.mark.parametrize(
    "act",
    [
        lambda client: client.get_object("other", "key").read(),
        lambda client: client.put_object("other", "key").close(),
        lambda client: client.copy_object("bucket", "key", "other", "key"),
        lambda client: client.list_multipart_uploads("other"),
        lambda client: next(client.list_objects("other")),
    ],
)
def test_other_buckets(client: MockS3Client, act):
    """There is one bucket and no other."""
    with pytest.raises(BucketNotFoundError):
        act(client)


def test_missing_sources(client: MockS3Client):
    """What is not there cannot be copied, and what is there is not touched."""
    with pytest.raises(S3Error, match="The object was not found"):
        client.copy_object("bucket", "no", "bucket", "key")
    assert client.get_object("bucket", "key").read() == CONTENT


def test_clients_have_buckets_of_their_own():
    """Two clients of equal names share nothing."""
    first, second = (MockS3Client("us-east-1", "bucket") for _ in range(2))
    first.add_object("key", b"1")
    with pytest.raises(ObjectNotFoundError):
        second.head_object("bucket", "key")


def test_threads_share_the_bucket(client: MockS3Client):
    """Threads write and read one bucket."""

    def work(number: int) -> bytes:
        with client.put_object("bucket", f"{number}") as writer:
            writer.write(bytes([number]) * 1000)
        return bytes(client.get_object("bucket", f"{number}").read())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(50))) == [bytes([number]) * 1000 for number in range(50)]
    client.remove_object("7")
    client.remove_object("7")
    keys = [info.key for page in client.list_objects("bucket") for info in page.object_info]
    assert len(keys) == 50


def _read_and_write(client: MockS3Client, connection) -> None:
    """Run in another process."""
    read = client.get_object("bucket", "key").read()
    client.add_object("of the child", b"")
    connection.send((bytes(read), [info.key for page in client.list_objects("bucket") for info in page.object_info]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_have_copies(client: MockS3Client, method: str):
    """A process that was forked, or that the client was pickled to, has a copy of the bucket."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    assert client.get_object("bucket", "key").read() == CONTENT
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=_read_and_write, args=(client, there))
    child.start()
    assert here.recv() == (CONTENT, ["key", "of the child"])
    child.join()
    assert [info.key for page in client.list_objects("bucket") for info in page.object_info] == ["key"]


@needs_fork
def test_forks_beside_threads(client: MockS3Client):
    """A fork while another thread is at work in the bucket gives a child that can use it."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_read_and_write, args=(client, there))
    is_at_work = threading.Event()

    def work() -> None:
        with client._objects._lock:
            is_at_work.set()
            time.sleep(0.3)  # a fork in this time must wait for the end of it

    thread = threading.Thread(target=work)
    thread.start()
    is_at_work.wait()
    child.start()
    try:
        assert here.poll(20), "the child waits for ever"
        assert here.recv()[0] == CONTENT
    finally:
        child.kill()
        child.join()
        thread.join()


def test_pickles_keep_etags(client: MockS3Client):
    """What was pinned by its ETag before a client was pickled is the same object afterwards."""
    with client.put_object("bucket", "large") as writer:
        writer.write(CONTENT * 100)
    known = client.head_object("bucket", "large")
    again = pickle.loads(pickle.dumps(client))
    assert again.get_object("bucket", "large", object_info=known).read() == CONTENT * 100
    again.add_object("key", b"other")
    assert client.get_object("bucket", "key").read() == CONTENT


def test_configurations_count():
    """Parts have the configured size, and nothing is signed."""
    config = S3ClientConfig(part_size=5 * MiB, checksums="strict")
    client = MockS3Client("us-east-1", "bucket", s3client_config=config)
    with client.put_object("bucket", "key") as writer:
        writer.write(bytes(11 * MiB))
    assert client.head_object("bucket", "key").etag.endswith('-3"')
    assert client.get_object("bucket", "key").read() == bytes(11 * MiB)
    assert client.s3client_config.unsigned


def test_refused_writes(client: MockS3Client):
    """An object that is there already is not replaced by a writer that must not."""
    writer = client.put_object("bucket", "key", if_none_match=True)
    writer.write(b"other")
    with pytest.raises(ObjectExistsError):
        writer.close()
