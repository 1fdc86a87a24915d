"""What other systems do otherwise, as far as it can be had here: their selectors, their limits, what they lack."""

from __future__ import annotations

import contextlib
import errno
import mmap
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from s3torch._transfer import selecting
from s3torch._transfer.connection import Network
from s3torch._transfer.selecting import new_selector
from s3torch.errors import ConnectionFailedError

from . import test_addresses, test_connection
from .test_connection import (
    SocketLab,
    authority,
    dead_address,
    opened,
    test_an_address_that_is_refused_at_once,
    test_both_ways,
    test_broken_handshake,
    test_certificate,
    test_end_of_stream,
    test_full,
    test_next_address,
    test_opens,
    test_reset,
    test_select_takes_its_time,
    test_tls,
)

hole, server = test_addresses.hole, test_addresses.server
test_batches_beside_a_dead_address = test_addresses.test_batches_beside_a_dead_address
test_the_next_address = test_addresses.test_the_next_address_after_a_quarter_of_a_second

# The suite of connections, over each selector: these are collected here a second time.
__all__ = [
    "authority",
    "dead_address",
    "hole",
    "server",
    "test_an_address_that_is_refused_at_once",
    "test_batches_beside_a_dead_address",
    "test_both_ways",
    "test_broken_handshake",
    "test_certificate",
    "test_end_of_stream",
    "test_full",
    "test_next_address",
    "test_opens",
    "test_reset",
    "test_select_takes_its_time",
    "test_the_next_address",
    "test_tls",
]


class Split(selectors.SelectSelector):
    """Reports reading and writing apart, as kqueue does."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self.get_map():
            time.sleep(timeout or 0.0)
            return []
        return [
            (key, event)
            for key, events in super().select(timeout)
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE)
            if events & event
        ]


class KqueueLike:
    """Stands for a system's best selector."""

    def __new__(cls) -> Split:
        return Split()


def refuses_nothing(read: list[int], write: list[int], _: list[int], timeout: float | None = None) -> object:
    """Select as Windows does, which refuses to wait for nothing, and tells failed connections apart."""
    import select

    if not read and not write:
        raise OSError(10022, "An invalid argument was supplied")
    read, write, failed = select.select(read, write, write, timeout)
    return read, write + failed, []


@pytest.fixture(params=["poll", "select of Windows", "kqueue"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with the selector of each other system."""
    if request.param == "poll":
        if not hasattr(selectors, "PollSelector"):
            pytest.skip("there is no poll here")
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    elif request.param == "kqueue":
        monkeypatch.setattr(selecting, "new_selector", KqueueLike)
        monkeypatch.setattr("s3torch._transfer.connection.new_selector", KqueueLike)
    else:
        monkeypatch.setattr(selectors.SelectSelector, "_select", staticmethod(refuses_nothing))
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    return str(request.param)


@pytest.fixture
def lab() -> Iterator[SocketLab]:
    with contextlib.closing(SocketLab()) as lab:
        yield lab


def test_the_selector(system: str):
    """The tests of this file run with the selector that they say."""
    with contextlib.closing(Network()) as network:
        kind = type(network._selector).__name__
    assert kind == {"poll": "PollSelector", "kqueue": "Split"}.get(system, "_PatientSelector")


def test_nothing_to_wait_for(system: str):
    """With nothing registered the time is slept away, on systems that refuse to select nothing, too."""
    with contextlib.closing(new_selector()) as selector:
        began = time.monotonic()
        assert selector.select(0.01) == []
        assert time.monotonic() - began >= 0.009


class Limited(socket.socket):
    """Refuses more than 2 GiB at once, as systems and TLS do in their ways."""

    refuse: Callable[[], None]

    def send(self, content: memoryview, *_: int) -> int:  # type: ignore[override]
        if len(content) >= 1 << 31:
            self.refuse()
        return min(len(content), 1000)

    def recv_into(self, room: memoryview, *_: int) -> int:  # type: ignore[override]
        if len(room) >= 1 << 31:
            self.refuse()
        return min(len(room), 1000)


def invalid() -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def too_long() -> None:
    raise OverflowError("string longer than 2147483647 bytes")


@pytest.mark.parametrize("refuse", [invalid, too_long])
def test_more_than_two_gibibytes(lab: SocketLab, refuse: Callable[[], None]):
    """Parts of up to 5 GiB are sent and received on systems that refuse 2 GiB at once."""
    with mmap.mmap(-1, (1 << 31) + 10) as memory, memoryview(memory) as view, opened(lab) as (connection, _):
        real, connection._socket = connection._socket, Limited()
        connection._socket.refuse = refuse
        try:
            assert connection.send(view) == 1000
            assert connection.recv_into(view) == 1000
        finally:
            connection._socket.close()
            connection._socket = real


def test_an_error_of_a_large_part(lab: SocketLab):
    """A connection that fails while much is sent fails, whatever its size."""

    def fail() -> None:
        raise OSError(errno.EPIPE, "Broken pipe")

    class Broken(Limited):
        def send(self, content: memoryview, *_: int) -> int:  # type: ignore[override]
            fail()
            return 0

    with mmap.mmap(-1, (1 << 31) + 10) as memory, memoryview(memory) as view, opened(lab) as (connection, _):
        real, connection._socket = connection._socket, Broken()
        try:
            with pytest.raises(ConnectionFailedError, match="Broken pipe"):
                connection.send(view)
        finally:
            connection._socket.close()
            connection._socket = real


# What Windows lacks, beside forks: https://docs.python.org/3/library/os.html and socket.html say so of each.
_WITHOUT = """
import os, select, selectors, signal, socket, sys
import torch.distributed, torch.utils.data  # know by themselves where they run
for module, names in [
    (os, "fork register_at_fork sched_getaffinity getuid geteuid getgid O_CLOEXEC sysconf killpg setsid waitstatus"),
    (select, "epoll poll"),
    (selectors, "EpollSelector PollSelector"),
    (socket, "SO_RCVLOWAT SO_REUSEPORT AF_UNIX MSG_DONTWAIT MSG_NOSIGNAL TCP_USER_TIMEOUT"),
    (signal, "SIGALRM SIGKILL SIGHUP setitimer pthread_sigmask pthread_kill"),
]:
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
selectors.DefaultSelector = selectors.SelectSelector
for name in ("fcntl", "resource"):
    sys.modules[name] = None
from s3torch import S3Client, S3IterableDataset, S3MapDataset
from s3torch.testing import FaultyServer

with FaultyServer({f"a/{number}": bytes([number]) * 1_000_000 for number in range(20)}) as server:
    options = {"endpoint": server.endpoint, "s3client_config": server.config}
    client = S3Client(**options)
    assert client.read_range("bucket", "a/3", 0) == bytes([3]) * 1_000_000
    with client.put_object("bucket", "new") as writer:
        writer.write(b"content")
    assert server.objects["new"] == b"content"
    assert len([info for page in client.list_objects("bucket", "a/") for info in page.object_info]) == 20
    dataset = S3MapDataset.from_prefix("s3://bucket/a/", transform=lambda reader: len(reader.read()), **options)
    assert dataset.__getitems__(list(range(20))) == [1_000_000] * 20
    stream = S3IterableDataset.from_prefix("s3://bucket/a/", transform=lambda reader: len(reader.read()), **options)
    assert list(stream) == [1_000_000] * 20
    client.close()
    dataset._client.close()
    stream._client.close()
print("all is well")
"""


def test_a_system_without_forks(system: str):
    """Reading, writing, listing and datasets need nothing that Windows lacks."""
    if system != "select of Windows":
        pytest.skip("once is enough")
    done = subprocess.run([sys.executable, "-c", _WITHOUT], check=False, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "all is well", done.stderr


assert test_connection.PATIENCE  # of the tests above
