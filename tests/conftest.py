"""What tests do with the real S3 server of ``../conftest.py``: one bucket, and for each test a prefix of its own."""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.session
import numpy as np
import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._transfer.connection import PROCESS_ADDRESSES
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch.testing import FaultyServer, LocalS3
from tests.support.environment import forget_pauses, know_only

if TYPE_CHECKING:
    from torch.utils.data import DataLoader  # most tests do without torch

pytest.register_assert_rewrite("tests.readers.conformance")

MiB = 1024 * 1024
_BUCKET = "tests"
_numbers = itertools.count()

# The last ones are imported at the first request and by the first process group: each rank would take 0.6 s for them.
_PRELOADED = [
    *("s3torch.datasets", "s3torch.dcp", "s3torch.safetensors", "torch.distributed.tensor"),
    *("botocore.session", "botocore.client", "botocore.httpsession", "botocore.crt.auth", "torch._dynamo"),
]

# Whole runs of the benchmarks that take longest; shorter ones of other cases and tests of their parts stay.
_LONG_BENCHMARKS = {
    "test_a_rank_fails",
    "test_checkpoints",
    "test_other_cases[epoch]",
    "test_other_cases[in-flight]",
    "test_other_cases[integrity]",
    "test_other_cases[listing]",
    "test_other_cases[loader]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves what takes long and finds little to ``make soak``."""
    for item in items:
        if item.path.parent.name == "benchmarks" and item.name in _LONG_BENCHMARKS:
            item.add_marker("soak")


def pytest_collection_finish() -> None:
    """Hides what was imported from the garbage collector, which would make each forked worker copy all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    """No test knows what another one has learned of a server: ports are used again."""
    PROCESS_FACTS.forget()
    PROCESS_ADDRESSES.forget()


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    """What a file of tests leaves in cycles fails it if it is unclosed; the memory goes back to the system.

    Otherwise it would fail the test of another file in which the collector happens to come. The memory is a third of
    what a worker holds, and others need it.
    """
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


class Traffic:
    """What a client has transferred since this was made, or since the last ``restart``."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self.restart()

    def restart(self) -> None:
        self._before = self._client.stats

    @property
    def requests(self) -> int:
        return self._client.stats.requests - self._before.requests

    @property
    def bytes_received(self) -> int:
        return self._client.stats.bytes_received - self._before.bytes_received


@pytest.fixture
def s3(server) -> Iterator[LocalS3]:
    """The server, which all that reads the AWS_* variables finds while the test runs."""
    with server.activated():
        yield server


@pytest.fixture(scope="session")
def boto(server):
    """A client that is not ours, to look at the server with."""
    with server.activated():
        return botocore.session.Session().create_client("s3")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Attempts follow each other at once, and nothing of this machine is seen."""
    know_only(monkeypatch, tmp_path)
    forget_pauses(monkeypatch)


@pytest.fixture(scope="module")
def faulty_server() -> Iterator[FaultyServer]:
    """A server that fails as it is told to, for all tests of a file."""
    with FaultyServer() as server:
        yield server


@pytest.fixture
def faulty(faulty_server: FaultyServer) -> FaultyServer:
    """A server without objects and faults."""
    faulty_server.script()
    faulty_server.rates({})
    faulty_server.close_connections()
    faulty_server.injected.clear()
    faulty_server.requests.clear()
    faulty_server.objects.clear()
    return faulty_server


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """A start method whose server has imported once, for all tests, what a rank or worker uses.

    That server has the environment in which it is first used; who uses it needs ``s3``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@pytest.fixture(scope="session")
def client(server) -> Iterator[S3Client]:
    """A client that all tests share, as looking up its credentials and addresses takes 0.1 s.

    It asks for nothing twice, however late a busy machine makes it: requests are counted.
    """
    with server.activated():
        config = S3ClientConfig(hedging=False)
        client = S3Client(server.region, endpoint=server.endpoint, s3client_config=config)
        client.delete_object(_BUCKET, "nothing")  # looks everything up, for later calls without these variables
    yield client
    client.close()


@pytest.fixture(scope="session")
def small_parts(server) -> Iterator[S3Client]:
    """A client that makes parts of 5 MiB, the least that S3 permits."""
    with server.activated():
        config = S3ClientConfig(part_size=5 * MiB)
        client = S3Client(server.region, endpoint=server.endpoint, s3client_config=config)
        client.delete_object(_BUCKET, "nothing")
    yield client
    client.close()


@pytest.fixture(scope="session")
def large(client) -> tuple[str, bytes]:
    """Key and content of an object of 64 MiB, in which every four bytes are their own number."""
    content = np.arange(16 * MiB, dtype=np.uint32).tobytes()
    with client.put_object(_BUCKET, "large") as writer:
        writer.write(content)
    return "large", content


@pytest.fixture(scope="session")
def bucket() -> str:
    """The one bucket: each would take a volume of the server."""
    return _BUCKET


@pytest.fixture
def prefix() -> str:
    """A prefix of keys that no other test uses."""
    return f"test-{next(_numbers)}/"


@pytest.fixture
def key(prefix) -> str:
    """A key that no other test uses."""
    return f"{prefix}object"


@pytest.fixture
def put(client, bucket):
    """Stores an object: ``put(key, content)``."""

    def put(key: str, content: bytes) -> None:
        with client.put_object(bucket, key) as writer:
            writer.write(content)

    return put


@pytest.fixture
def errors_of():
    """Returns the errors that a DataLoader raises, one for each batch; it must raise nothing else and yield nothing.

    It asks until the loader ends, and then ends its workers: those of a loader that is dropped with its errors, which
    refer to it, are found by the collector, when its queues lead nowhere any more, and waited for in vain, 5 s each.
    """

    def errors_of(loader: DataLoader) -> list[Exception]:
        found: list[Exception] = []
        batches = iter(loader)
        while len(found) < 100:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  # what it is, is for the test to say
                found.append(error)
            else:
                raise AssertionError(f"{batch!r} was yielded")
        if loader.num_workers:
            batches._shutdown_workers()  # the second time does nothing
        return found

    return errors_of


@pytest.fixture
def traffic(client) -> Traffic:
    """What the shared client transfers from here on."""
    return Traffic(client)
