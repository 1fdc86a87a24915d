"""Large reads that are spread over threads: what they bring, and that nothing is left of them, however they end."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._access.access import Access
from s3torch._objects import spread
from s3torch._transfer import pages, plan
from s3torch._transfer.engine import Engine
from s3torch.errors import AccessDeniedError, DeadlineError, ObjectChangedError
from tests.support.networks import ScriptedProxy
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, serve_object, tls_contexts

KiB = 1024
SIZE = 2_000_000
CONTENT = random.Random(1).randbytes(SIZE)
# The caller sends the parts with an even number, its one thread the others.
PART = 100_000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a large read here is one of 200 kB, in parts of 100 kB; there are two cores."""
    monkeypatch.setattr(plan, "LEAST_TO_SPREAD", 2 * PART)
    monkeypatch.setattr(plan, "SMALLEST_PART", PART)
    monkeypatch.setattr(plan, "part_size_for", lambda *_: PART)
    monkeypatch.setattr(spread, "_free_cores", lambda: 2)
    monkeypatch.setattr(pages, "are_new", lambda _: True)


class Started:
    """Counts the threads that reads have started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        start = threading.Thread.start

        def counted(thread: threading.Thread) -> None:
            self.count += thread.name == spread._NAME
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", counted)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The count of threads."""
    return Started(monkeypatch)


def helpers() -> list[threading.Thread]:
    """The threads of reads that run."""
    return [thread for thread in threading.enumerate() if thread.name == spread._NAME]


@contextlib.contextmanager
def open_client(server: ScriptedServer, **options: object) -> Iterator[S3Client]:
    config = S3ClientConfig(unsigned=True, hedging=False, **options)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    yield client
    client.close()


@pytest.fixture
def client() -> Iterator[S3Client]:
    """A client of a server with one object."""
    with ScriptedServer(serve_object(CONTENT)) as server, open_client(server) as client:
        yield client


def check_nothing_left(client: S3Client) -> None:
    """No thread runs, and no engine has anything under way."""
    deadline = time.monotonic() + 30  # a thread has told that it is over before it is
    while helpers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not helpers()
    assert [engine.pending for engine in client._access.engines] == [0] * len(client._access.engines)


def _read(client: S3Client) -> bytes:
    with client.get_object("b", "k") as reader:
        return reader.read()


def _read_range(client: S3Client) -> bytes:
    return client.read_range("b", "k", 0, SIZE)


def _read_of_known_size(client: S3Client) -> bytes:
    with client.get_object("b", "k", object_info=client.head_object("b", "k")) as reader:
        return reader.read()


def _read_into(client: S3Client) -> bytes:
    memory = bytearray(SIZE)
    assert client.read_range("b", "k", 0, into=memory) == SIZE
    return bytes(memory)


def _read_ranges(client: S3Client) -> bytes:
    cuts = [0, 1, 50_000, 700_000, 700_001, 1_999_999, SIZE]
    found = client.read_ranges("b", "k", list(itertools.pairwise(cuts)), max_gap=0)
    assert found is not None
    return b"".join(found)


WAYS = [_read, _read_range, _read_of_known_size, _read_into, _read_ranges]
each_way = pytest.mark.parametrize("read", WAYS, ids=lambda way: way.__name__.strip("_"))


@each_way
def test_a_spread_read(client: S3Client, read: Callable[[S3Client], bytes], started: Started):
    """All bytes are there, a thread has fetched some, and the next read uses its connections again."""
    for _ in range(3):
        assert read(client) == CONTENT
        check_nothing_left(client)
    assert started.count == 3
    assert len(client._access.engines) == 2
    client.close()
    assert not any(len(engine._loop.pool) for engine in client._access.engines)


@pytest.mark.parametrize("read", WAYS[:-1], ids=lambda way: way.__name__.strip("_"))  # of parts there is no checksum
def test_strict(read: Callable[[S3Client], bytes], started: Started):
    """What is verified is what all threads have brought."""
    import base64
    import zlib

    stored = base64.b64encode(zlib.crc32(CONTENT).to_bytes(4, "big")).decode()
    damaged = [True]
    good = serve_object(CONTENT, headers={"x-amz-checksum-crc32": stored, "x-amz-checksum-type": "FULL_OBJECT"})
    flipped = bytearray(CONTENT)
    flipped[150_000] ^= 1
    bad = serve_object(bytes(flipped))

    def handle(request: Request, wire: Wire) -> None:
        if damaged and request.headers.get("range", "").startswith("bytes=100000-"):
            damaged.clear()
            return bad(request, wire)
        return good(request, wire)

    with ScriptedServer(handle) as server, open_client(server, checksums="strict") as client:
        assert read(client) == CONTENT
        check_nothing_left(client)
    assert started.count
    assert not damaged


def _of_thread(request: Request) -> bool:
    """Whether a request is one of the thread's, of a read of all of the object, whose size is known before."""
    start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    return bool(start // PART % 2)


def _faulty(fault: Handler, *, of_thread: bool) -> Handler:
    good = serve_object(CONTENT)

    def handle(request: Request, wire: Wire) -> None:
        (fault if _of_thread(request) == of_thread else good)(request, wire)

    return handle


@pytest.mark.parametrize("of_thread", [True, False], ids=["the thread's", "the caller's"])
def test_an_error_ends_all(of_thread: bool, started: Started):
    """Whoever meets the error, it is the call's, and nobody writes into the caller's memory afterwards."""
    with (
        ScriptedServer(_faulty(fail(403, "AccessDenied"), of_thread=of_thread)) as server,
        open_client(server) as client,
    ):
        memory = bytearray(SIZE)
        with pytest.raises(AccessDeniedError):
            client.read_ranges("b", "k", [(0, SIZE)], into=[memory])
        found = bytes(memory)
        check_nothing_left(client)
        time.sleep(0.05)
        assert memory == found
    assert started.count == 1


def test_another_version_in_a_thread():
    """Parts of two versions are an error, whichever thread they came to."""
    with (
        ScriptedServer(_faulty(serve_object(CONTENT, etag='"other"'), of_thread=True)) as server,
        open_client(server) as client,
    ):
        with pytest.raises(ObjectChangedError):
            client.read_ranges("b", "k", [(0, SIZE)])
        check_nothing_left(client)


def test_a_deadline_of_a_thread(started: Started):
    """The call's time is its threads' time."""

    def stall(_: Request, wire: Wire) -> None:
        wire.stall()

    with ScriptedServer(_faulty(stall, of_thread=True)) as server, open_client(server, call_timeout=1.0) as client:
        with pytest.raises(DeadlineError):
            client.read_ranges("b", "k", [(0, SIZE)])
        check_nothing_left(client)
    assert started.count == 1


@each_way
def test_no_thread_can_be_started(client: S3Client, read: Callable[[S3Client], bytes], monkeypatch: pytest.MonkeyPatch):
    """Where there are too many threads, the caller reads all."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == spread._NAME:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert read(client) == CONTENT
    check_nothing_left(client)


def test_progress(client: S3Client, started: Started):
    """All bytes are told, the threads' as well."""
    told: list[int] = []
    remote = client.get_object("b", "k")._remote
    memory = bytearray(SIZE)
    remote.read_ranges([(0, SIZE)], [memoryview(memory)], 0, told.append)
    assert sum(told) == SIZE
    assert len(told) > 5
    assert memory == CONTENT
    assert started.count == 1


class _Interruptions:
    """Interrupts the calling thread at its n-th line of some files."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame, _event, _argument):
        code = frame.f_code
        is_ours = code.co_filename.endswith(("/spread.py", "/fetch.py"))
        return (
            self._count if is_ours and code.co_name != "<lambda>" else None
        )  # from a weak reference nothing is raised

    def _count(self, _frame, event, _argument):
        if event == "line":
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._count


@pytest.mark.parametrize("read", [_read_into, _read_ranges], ids=["one", "ranges"])
def test_interrupts_at_each_line(client: S3Client, read: Callable[[S3Client], bytes]):
    """Ctrl-C may come anywhere: nothing is under way when it leaves the call, and the next read is right."""
    for nth in itertools.count(1):
        try:
            with _Interruptions(nth):
                read(client)
        except KeyboardInterrupt:
            check_nothing_left(client)
        else:
            break
        if not nth % 10:
            assert read(client) == CONTENT
    assert nth > 60


def test_an_interrupt_while_a_thread_waits():
    """Ctrl-C comes out when the thread has ended, though its server says nothing."""
    caught = threading.Event()

    def stall(_: Request, wire: Wire) -> None:
        caught.set()
        wire.stall()

    with ScriptedServer(_faulty(stall, of_thread=True)) as server, open_client(server) as client:
        remote = client.get_object("b", "k")._remote

        def interrupt(_: int) -> None:
            assert caught.wait(30)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            remote.read_ranges([(0, SIZE)], [memoryview(bytearray(SIZE))], 0, interrupt)
        check_nothing_left(client)


def test_one_thread_is_enough(client: S3Client, started: Started, monkeypatch: pytest.MonkeyPatch):
    """No thread is started for memory that is there already, for small reads, or where ``max_threads`` forbids it."""
    with monkeypatch.context() as patch:
        patch.setattr(pages, "are_new", lambda _: False)
        assert _read_into(client) == CONTENT
    client.read_range("b", "k", 0, 2 * PART - 1)
    config = S3ClientConfig(unsigned=True, max_threads=1)
    single = S3Client("us-east-1", endpoint=client._access.endpoint, s3client_config=config)
    assert _read_into(single) == CONTENT
    single.close()
    assert not started.count


# --- How many threads ------------------------------------------------------------------------------------------------


MiB = 1024 * KiB


def test_threads_for(monkeypatch: pytest.MonkeyPatch):
    """Each thread gets 32 MiB at least, and only what takes CPU time without the interpreter is spread."""
    monkeypatch.setattr(plan, "LEAST_TO_SPREAD", 64 * MiB)

    def count(length: int, most: int, *, is_tls: bool = True, is_new: bool = True) -> int:
        return plan.threads_for(length, most, is_tls=is_tls, is_new=is_new)

    assert [count(size * MiB, 4) for size in (1, 63, 64, 96, 128, 1024)] == [1, 1, 2, 3, 4, 4]
    assert [count(1024 * MiB, most) for most in (-3, 0, 1, 2, 100)] == [1, 1, 1, 2, 32]
    assert count(1024 * MiB, 4, is_tls=False, is_new=False) == 1
    assert count(1024 * MiB, 4, is_new=False) == count(1024 * MiB, 4, is_tls=False) == 4


@pytest.fixture
def free_cores() -> Callable[[], int]:
    """The function itself, on a machine of eight cores."""
    return _FREE_CORES


_FREE_CORES = spread._free_cores


def test_cores_are_shared(client: S3Client, free_cores: Callable[[], int], monkeypatch: pytest.MonkeyPatch):
    """Reads at the same time share the cores, and so do the ranks of a machine; a worker of a DataLoader has one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_cores() == 8
    claims = [spread._Claim(4), spread._Claim(1)]
    assert free_cores() == 3
    claims[0].pid += 1  # a fork has copied it
    assert free_cores() == 7
    del claims
    assert free_cores() == 8
    for ranks, cores in {"": 8, "1": 8, "2": 4, "8": 1, "many": 8, "0": 8}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert free_cores() == cores
    monkeypatch.setattr("torch.utils.data.get_worker_info", object)
    assert free_cores() == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells which pages there are")
def test_new_memory():
    """Memory is new until it is touched, whatever it is divided into."""
    memory = memoryview(mmap.mmap(-1, 8 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    views = [memory[: 2 * MiB], memory[2 * MiB : 2 * MiB], memory[2 * MiB : 2 * MiB + 1], memory[2 * MiB + 1 :]]
    assert _ARE_NEW(views)
    for start in range(0, 3 * MiB, 4 * KiB):
        memory[start] = 1
    assert _ARE_NEW(views)
    for start in range(3 * MiB, 8 * MiB, 4 * KiB):
        memory[start] = 1
    assert not _ARE_NEW(views)
    assert not _ARE_NEW([memoryview(bytearray(b"x" * 10 * MiB))])
    assert not _ARE_NEW([])


_ARE_NEW = pages.are_new

# --- What may come in the middle --------------------------------------------------------------------------------------


class _InterruptedLock:
    """Interrupts the calling thread, while it waits for others, when it has just locked what a condition protects.

    Attributes:
        is_done: Whether it has.
    """

    def __init__(self) -> None:
        self.is_done = threading.Event()

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame, _event, _argument):
        if (frame.f_code.co_filename, frame.f_code.co_name) != (threading.__file__, "__enter__"):
            return None
        stack = [(each.f_code.co_filename, each.f_code.co_name) for each, _ in traceback.walk_stack(frame)]
        is_start = (threading.__file__, "start") in stack  # of a thread: that is Python's own
        return self._interrupt if not is_start and (spread.__file__, "_run") in stack else None

    def _interrupt(self, _frame, event, _argument):
        if event == "return":
            sys.settrace(None)
            self.is_done.set()
            raise KeyboardInterrupt
        return self._interrupt


def test_an_interrupt_that_leaves_a_lock_locked():
    """The caller waits by nothing that Ctrl-C can leave locked, which its threads would wait for for ever."""
    interrupted = _InterruptedLock()
    good = serve_object(CONTENT)

    def late(request: Request, wire: Wire) -> None:
        interrupted.is_done.wait(1)  # the caller has sent its own by then
        good(request, wire)

    with ScriptedServer(_faulty(late, of_thread=True)) as server, open_client(server) as client:
        with contextlib.suppress(KeyboardInterrupt), interrupted:
            _read_ranges(client)
        check_nothing_left(client)
        assert _read_ranges(client) == CONTENT


def test_an_error_that_is_kept_keeps_no_core():
    """Whoever keeps an error keeps frames, and the cores of the call that has failed are free nevertheless."""
    with (
        ScriptedServer(_faulty(fail(403, "AccessDenied"), of_thread=True)) as server,
        open_client(server) as client,
    ):
        kept = []
        for read in (_read_range, _read_ranges, _read_of_known_size):
            with pytest.raises(AccessDeniedError) as caught:
                read(client)
            kept.append(caught)
        assert not [claim for claim in spread._claims.values() if claim() is not None]
        del kept


def test_an_error_while_another_thread_begins(monkeypatch: pytest.MonkeyPatch):
    """A thread that gets its engine after another one's error is ended, too, though its server says nothing."""
    monkeypatch.setattr(spread, "_free_cores", lambda: 3)
    lent, made = Access.lent_engine, spread.Crew.__init__
    crews: list[spread.Crew] = []
    numbers = itertools.count()

    def note(crew: spread.Crew, *arguments: object) -> None:
        made(crew, *arguments)
        crews.append(crew)

    def wait_until(is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so() and time.monotonic() < deadline:
            time.sleep(0.001)

    @contextlib.contextmanager
    def lent_late(access: Access) -> Iterator[Engine]:
        is_first = next(numbers) == 0
        with lent(access) as engine:
            if is_first:
                wait_until(lambda: all(get.is_done for get in crews[0].own))
                raise AccessDeniedError("the other thread's")
            wait_until(lambda: crews[0]._is_over)
            time.sleep(0.05)  # what was to be cancelled is
            yield engine

    good = serve_object(CONTENT)

    def handle(request: Request, wire: Wire) -> None:
        if crews and crews[0]._is_over:
            wire.stall()
        else:
            good(request, wire)

    with (
        ScriptedServer(handle) as server,
        open_client(server, first_byte_timeout=8.0, max_attempts=1) as client,
        client.get_object("b", "k", object_info=client.head_object("b", "k")) as reader,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Access, "lent_engine", lent_late)
            patch.setattr(spread.Crew, "__init__", note)
            with pytest.raises(AccessDeniedError, match="the other thread's"):
                reader.read()
        check_nothing_left(client)
    assert not [get for get in crews[0].others if isinstance(get.error, DeadlineError)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_does_not_wait_for_threads():
    """A signal handler that forks, and leaves the child by an exception, leaves it: threads are not copied."""
    caught = threading.Event()

    def stall(_: Request, wire: Wire) -> None:
        caught.set()
        wire.stall()

    with ScriptedServer(_faulty(stall, of_thread=True)) as server, open_client(server) as client:
        remote = client.get_object("b", "k")._remote
        children = []

        def fork(_: int) -> None:
            assert caught.wait(30)
            children.append(os.fork())
            raise KeyboardInterrupt

        try:
            remote.read_ranges([(0, SIZE)], [memoryview(bytearray(SIZE))], 0, fork)
        except KeyboardInterrupt:
            if children == [0]:
                os._exit(7)
        check_nothing_left(client)
        deadline = time.monotonic() + 30
        found = (0, 0)
        while found == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
            found = os.waitpid(children[0], os.WNOHANG)
        if found == (0, 0):
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)
        assert os.waitstatus_to_exitcode(found[1]) == 7


def test_torch_is_imported_meanwhile(free_cores: Callable[[], int], monkeypatch: pytest.MonkeyPatch):
    """A module of torch that another thread is importing has nothing in it yet."""
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.ModuleType("torch.utils.data"))
    assert free_cores() >= 1


def test_cores_of_a_container(free_cores: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What the machine has is not what a container may use; a part of a core is one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(spread, "_QUOTA", str(file))
    assert free_cores() == 8
    for text, cores in {
        "max 100000": 8,
        "200000 100000": 2,
        "150000 100000": 2,
        "5000 100000": 1,
        "6400000 100000": 8,
        "": 8,
        "1 0": 8,
        "x y": 8,
    }.items():
        file.write_text(text + "\n")
        assert free_cores() == cores, text
    file.write_text("400000 100000\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_cores() == 2


@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "by a proxy"])
def test_over_tls(tmp_path: Path, by_proxy: bool, started: Started, monkeypatch: pytest.MonkeyPatch):
    """What is decrypted by two threads is the object; each has its own connections, through a proxy, too."""
    monkeypatch.setattr(pages, "are_new", lambda _: False)
    context, authority = tls_contexts(tmp_path)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ScriptedServer(serve_object(CONTENT), context))
        proxies = {"https": stack.enter_context(ScriptedProxy()).url} if by_proxy else None
        client = stack.enter_context(open_client(server, verify=str(authority), proxies=proxies))
        for read in WAYS:
            assert read(client) == CONTENT
            check_nothing_left(client)
        assert started.count == len(WAYS)
        assert client._access.engines[0].stats.bytes_received > 0
        assert min(engine.stats.bytes_received for engine in client._access.engines) > SIZE
