"""Tests of clients, readers and writers across threads and processes.

What forks or exits is a script in a process of its own, which has no threads but its own; its server runs here. A
script passes if it ends well and says nothing, in development mode and with all warnings as errors.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import re
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.credentials
import pytest
from botocore.session import Session

from s3torch._forks import NO_FORK
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.testing import FaultyServer, faults
from tests.support.server import Request, ScriptedServer, Wire, fail, serve_object

PATIENCE = 300.0  # seconds that a script has
THREADS = 16
FORKS = 50
MANY_FORKS = int(os.environ.get("S3TORCH_TEST_FORKS", "400"))

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "ACCESS", "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_SESSION_TOKEN": "TOKEN"}

PRELUDE = """\
import gc, multiprocessing, os, sys, threading
from s3torch._aws.operations import GetObject
from s3torch.client import S3Client

def content(key):  # the same as in the test
    return key.encode() * 10_000

def check(key):
    assert client.read_range("bucket", key, 0) == content(key)

def sockets():
    return sum(link.startswith("socket:") for link in links())

def links():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass

def in_child(act):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return child

def join(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

client = S3Client("us-east-1", endpoint=sys.argv[1], user_agent_comments=[f"pid/{os.getpid()}"])
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")


def content(key: str) -> bytes:
    """Return what an object holds: each of them something else."""
    return key.encode() * 10_000


def serve(request: Request, wire: Wire) -> None:
    """Serve any object."""
    key = request.path.rpartition("/")[2]
    serve_object(content(key), etag=f'"{key}"')(request, wire)


def environment(directory: Path) -> dict[str, str]:
    """Return this process's environment with known credentials, and nothing else for AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    files = {"AWS_CONFIG_FILE": str(directory / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(directory / "none")}
    return {**kept, **CREDENTIALS, **files, "AWS_EC2_METADATA_DISABLED": "true"}


def run(directory: Path, server: ScriptedServer, script: str, *arguments: str, patience: float = PATIENCE) -> None:
    """Run a script, which must end well and say nothing."""
    path = directory / "script.py"
    path.write_text(PRELUDE + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(path), server.endpoint, *arguments],
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def connections(server: ScriptedServer) -> dict[str, set[int]]:
    """Return on which connections each key was asked for."""
    found: dict[str, set[int]] = {}
    for request in server.requests:
        found.setdefault(request.path.rpartition("/")[2], set()).add(request.connection)
    return found


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scripts' environment for this process."""
    wanted = environment(tmp_path)
    for name in set(os.environ) - set(wanted):
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


# Threads


def in_threads(act: Callable[[int], None]) -> list[BaseException]:
    """Run a function of the thread's number in all threads at once; returns what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run_one(number: int) -> None:
        try:
            barrier.wait(PATIENCE)
            act(number)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    threads = [threading.Thread(target=run_one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return raised


@pytest.mark.usefixtures("credentials")
def test_threads():
    """Threads that share a client read the right bytes, each over connections of its own."""
    with ScriptedServer(serve) as server:
        config = S3ClientConfig(hedging=False)  # requests are counted, and a busy machine is late
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        client._access.bucket("bucket")

        def read(number: int) -> None:
            for turn in range(5):
                assert client.read_range("bucket", f"key{number}", turn, 50_000) == content(f"key{number}")[turn:50_000]
            client.close()

        assert in_threads(read) == []
        used = connections(server)
        assert client.stats.requests == len(server.requests) == 5 * THREADS
    assert len(used) == THREADS
    assert len(set().union(*used.values())) == sum(len(numbers) for numbers in used.values()) == THREADS


@pytest.mark.usefixtures("credentials")
def test_threads_at_everything():
    """Threads that share a client, and do all that it can at the same time, get the right bytes under faults.

    What they share they have to make at the same moment: there is nothing yet when they begin. Without a GIL they
    really run at once; with it they take turns as often as it lets them.
    """
    objects = {f"key{number}": content(f"key{number}") for number in range(8)}
    interval = sys.getswitchinterval()
    with FaultyServer(objects) as server:
        server.rates({faults.status(503, "SlowDown"): 0.02, faults.reset_mid_body: 0.02, faults.close_idle: 0.05})
        waits = dict.fromkeys(["connect_timeout", "first_byte_timeout", "stall_timeout"], PATIENCE)
        config = replace(server.config, unsigned=False, max_attempts=10, **waits)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        buckets = set()

        def use(number: int) -> None:
            name = f"key{number % 8}"
            buckets.add(client._access.bucket("bucket"))
            for turn in range(5):
                assert client.read_range("bucket", name, turn, 40_000) == objects[name][turn:40_000]
                with client.get_object("bucket", name, reader_config=S3ReaderConfig.adaptive()) as reader:
                    reader.seek(turn)
                    assert reader.read(1000) + reader.read() == objects[name][turn:]
                assert client.read_ranges("bucket", name, [(0, 9), (5, 20)]) == [objects[name][:9], objects[name][5:20]]
                with client.put_object("bucket", f"new{number}") as writer:
                    writer.write(objects[name])
                assert server.objects[f"new{number}"] == objects[name]
                assert pickle.loads(pickle.dumps(client)).s3client_config == client.s3client_config
                assert client.stats.requests > 0
            keys = {info.key for page in client.list_objects("bucket", "key") for info in page.object_info}
            assert keys == set(objects)
            client.close()

        sys.setswitchinterval(1e-5)
        try:
            assert in_threads(use) == []
        finally:
            sys.setswitchinterval(interval)
        assert len(buckets) == 1


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    "config", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based(1000), S3ReaderConfig.adaptive()]
)
@pytest.mark.parametrize("is_closed", [False, True])
def test_reader_of_another_thread(config: S3ReaderConfig, is_closed: bool):
    """A reader that was made and read in one thread reads on in another, and back, whether its connections live on."""
    with ScriptedServer(serve) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        reader = client.get_object("bucket", "key", reader_config=config)
        got = [reader.read(10)]

        def read_there() -> None:
            got.append(reader.read(5000))
            if is_closed:
                client.close()

        if is_closed:
            client.close()
        thread = threading.Thread(target=read_there)
        thread.start()
        thread.join(PATIENCE)
        got.append(reader.read())
        assert b"".join(got) == content("key")
        reader.close()
        client.close()


@pytest.mark.usefixtures("credentials")
def test_threads_learn_the_region():
    """Threads whose first requests all went to the wrong region all succeed."""
    everybody = threading.Barrier(THREADS)
    numbers = itertools.count()
    somebody_knows = threading.Event()
    refuse = fail(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})

    def handle(request: Request, wire: Wire) -> None:
        if "/eu-west-1/" in request.headers["authorization"]:
            somebody_knows.set()
            return serve(request, wire)
        everybody.wait(PATIENCE)
        if next(numbers):  # all but one
            somebody_knows.wait(PATIENCE)
        return refuse(request, wire)

    with ScriptedServer(handle) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        client._access.bucket("bucket")

        def read(number: int) -> None:
            assert client.read_range("bucket", "key", 0) == content("key")
            client.close()

        assert in_threads(read) == []


@needs_proc
def test_thread_that_ends(tmp_path: Path):
    """The connections of a thread are closed when it ends, without its closing them."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            before = sockets()
            threads = [threading.Thread(target=check, args=(f"key{number}",)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()
            assert sockets() == before, list(links())
            check("main")
            assert client.stats.requests == 5
            client.close()
            assert sockets() == before, list(links())
            """,
        )


# Fork


@needs_fork
@needs_proc
def test_fork(tmp_path: Path):
    """Each process of a chain of forks reads over one connection of its own, and lets go of those of its ancestors."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            def use(key):
                check(key)
                assert sockets() == 1, list(links())

            def child():
                use("child1")
                join(in_child(lambda: use("grandchild1")))
                use("child2")
                join(in_child(lambda: join(in_child(lambda: use("grandchild2")))))
                use("child3")
                assert client.stats.requests == 3

            use("parent1")
            join(in_child(child))
            use("parent2")
            assert client.stats.requests == 2
            """,
        )
        assert connections(server) == {
            "parent1": {1},
            "child1": {2},
            "grandchild1": {3},
            "child2": {2},
            "grandchild2": {4},
            "child3": {2},
            "parent2": {1},
        }


@needs_fork
def test_fork_that_exits(tmp_path: Path):
    """A forked child that ends in the ordinary way, all its objects collected, leaves the parent's connection alone."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            check("parent1")
            child = os.fork()
            if child == 0:
                sys.exit()
            join(child)
            child = os.fork()
            if child == 0:
                check("child")
                sys.exit()
            join(child)
            check("parent2")
            """,
        )
        assert connections(server) == {"parent1": {1}, "child": {2}, "parent2": {1}}


@needs_fork
def test_fork_during_a_transfer(tmp_path: Path):
    """A transfer that is in flight at a fork goes on in the parent, whatever the child does meanwhile."""
    child_is_served = threading.Event()

    def handle(request: Request, wire: Wire) -> None:
        if request.path.endswith("parent"):
            child_is_served.wait(PATIENCE)
        serve(request, wire)
        if request.path.endswith("child"):
            child_is_served.set()

    with ScriptedServer(handle) as server:
        run(
            tmp_path,
            server,
            """
            memory = bytearray(len(content("parent")))
            get = GetObject(client._access.bucket("bucket"), "parent", 0, len(memory), memoryview(memory))
            engine = client._access.engine()
            engine.submit(get)
            while not engine.stats.requests:
                engine.turn()
            join(in_child(lambda: check("child")))
            assert not get.is_done
            engine.wait([get])
            assert memory == content("parent")
            assert get.attempts == 1
            check("parent")
            """,
        )
        assert connections(server) == {"parent": {1}, "child": {2}}


@needs_fork
def test_fork_with_readers(tmp_path: Path):
    """A reader that was opened before a fork reads on in both processes, from the position that it had."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            from s3torch.config import S3ReaderConfig

            for config in (S3ReaderConfig.sequential(), S3ReaderConfig.range_based(), S3ReaderConfig.range_based(1000)):
                reader = client.get_object("bucket", "key", reader_config=config)
                assert reader.read(10) == content("key")[:10]

                def read_on():
                    assert (reader.tell(), reader.read()) == (10, content("key")[10:])

                join(in_child(read_on))
                read_on()
            """,
        )


@needs_fork
@pytest.mark.parametrize("drop", ["del writer", "writer.__exit__(SystemExit, SystemExit(), None)"])
def test_fork_with_a_writer(tmp_path: Path, drop: str):
    """A forked child that drops a writer it inherited, or leaves its block, leaves the parent's upload alone."""
    log: list[str] = []

    def handle(request: Request, wire: Wire) -> None:
        is_begin = "?uploads" in request.target
        log.append({"POST": "Create" if is_begin else "Complete", "DELETE": "Abort"}.get(request.method, "Part"))
        begun = b"<InitiateMultipartUploadResult><UploadId>ID</UploadId></InitiateMultipartUploadResult>"
        done = b"<CompleteMultipartUploadResult/>" if request.method == "POST" else b""
        wire.respond(200, {"ETag": '"e"'}, begun if is_begin else done)

    with ScriptedServer(handle) as server:
        run(
            tmp_path,
            server,
            f"""
            writer = client.put_object("bucket", "key")
            writer.write(bytes(client.s3client_config.part_size + 1))

            def child():
                global writer
                {drop}
                gc.collect()

            join(in_child(child))
            writer.close()
            """,
        )
    assert log == ["Create", "Part", "Part", "Complete"]


@needs_fork
def test_a_fork_waits_for_other_threads(tmp_path: Path):
    """A child never inherits a half-finished import or set-up of another thread; it can do the same itself."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            import time, warnings
            from s3torch._forks import NO_FORK

            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
            begun, is_whole = threading.Event(), False

            def work():
                global is_whole
                with NO_FORK:
                    begun.set()
                    time.sleep(0.3)
                    is_whole = True

            thread = threading.Thread(target=work)
            thread.start()
            begun.wait()

            def child():
                assert is_whole
                other = threading.Thread(target=lambda: NO_FORK.acquire())
                other.start()
                other.join()

            join(in_child(child))
            thread.join()
            """,
        )


def test_a_fork_waits_for_imports(tmp_path: Path):
    """Nothing is imported while another thread could fork: the child would wait for the module's lock for ever."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "GET" and "list-type" in request.target:
            wire.respond(200, {}, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        elif request.method in ("GET", "HEAD"):
            serve(request, wire)
        else:
            wire.respond(200, {"ETag": '"e"'})

    with ScriptedServer(handle) as server:
        run(
            tmp_path,
            server,
            """
            from concurrent.futures import ThreadPoolExecutor
            from s3torch._forks import NO_FORK

            class Watch:
                unguarded = []

                def find_spec(self, name, path=None, target=None):
                    if pool.submit(NO_FORK.acquire, blocking=False).result():
                        pool.submit(NO_FORK.release).result()
                        self.unguarded.append(name)

            with ThreadPoolExecutor(1) as pool:
                sys.meta_path.insert(0, Watch())
                check("key")
                client.head_object("bucket", "key")
                list(client.list_objects("bucket"))
                client.get_object("bucket", "key").read()
                with client.put_object("bucket", "key") as writer:
                    writer.write(b"bytes")
                client.delete_object("bucket", "key")
                sys.meta_path.pop(0)
            assert "botocore.session" in sys.modules
            assert not Watch.unguarded, Watch.unguarded
            """,
        )


def test_a_fork_waits_for_tls(monkeypatch: pytest.MonkeyPatch, credentials: None):
    """OpenSSL's locks are held while a context is made, or hands are shaken, or botocore makes a client."""
    seen: dict[str, bool] = {}

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> object:
            is_server = "server_side" in keywords or getattr(arguments[0] if arguments else None, "server_side", False)
            if not is_server:
                acquired = pool.submit(NO_FORK.acquire, blocking=False).result()
                if acquired:
                    pool.submit(NO_FORK.release).result()
                seen[name] = seen.get(name, True) and not acquired
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, watched)

    with FaultyServer({"key": b"bytes"}, tls=True) as server, ThreadPoolExecutor(1) as pool:
        watch(Session, "create_client")
        watch(botocore.credentials.Credentials, "get_frozen_credentials")
        watch(ssl, "create_default_context")
        watch(ssl.SSLContext, "wrap_socket")
        watch(ssl.SSLSocket, "do_handshake")
        config = S3ClientConfig(verify=server.authority)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        assert client.read_range("bucket", "key", 0) == b"bytes"
    held = ("create_client", "get_frozen_credentials", "create_default_context", "wrap_socket", "do_handshake")
    assert {name: seen[name] for name in held} == dict.fromkeys(held, True)


def test_exit_with_an_open_writer(tmp_path: Path):
    """The end of the interpreter gives an upload up, whatever still refers to its writer, and warns."""
    log: list[str] = []

    def handle(request: Request, wire: Wire) -> None:
        is_begin = "?uploads" in request.target
        log.append({"POST": "Create" if is_begin else "Complete", "DELETE": "Abort"}.get(request.method, "Part"))
        begun = b"<InitiateMultipartUploadResult><UploadId>ID</UploadId></InitiateMultipartUploadResult>"
        done = b"<CompleteMultipartUploadResult/>" if request.method == "POST" else b""
        wire.respond(200, {"ETag": '"e"'}, begun if is_begin else done)

    with ScriptedServer(handle) as server:
        run(
            tmp_path,
            server,
            """
            import warnings

            warnings.showwarning = lambda message, category, *_: shown.append(category)
            warnings.simplefilter("always")
            shown = []
            writer = client.put_object("bucket", "key")
            writer.itself = writer  # a cycle, which is never collected
            gc.disable()
            writer.write(bytes(2 * client.s3client_config.part_size))
            import atexit
            atexit.register(lambda: None)
            """,
        )
    assert log[0] == "Create"
    assert log[-1] == "Abort"
    assert "Complete" not in log


# The lock that each object has without a GIL may be held by another thread at the fork, and is held in the child for
# ever: seen of a dict that threads share, in 1 of 3 runs with 3.13.5.
beside_threads = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL Python does not fork safely beside threads",
)


@needs_fork
@needs_proc
@pytest.mark.parametrize(
    "from_threads", [False, pytest.param(True, marks=beside_threads)], ids=["main thread", "threads"]
)
@pytest.mark.parametrize("forks", [FORKS, pytest.param(MANY_FORKS, marks=pytest.mark.soak)], ids=["some", "many"])
def test_many_forks(tmp_path: Path, forks: int, from_threads: bool):
    """Forks at any moment, nested and from threads, neither hang nor share a connection nor leak a descriptor."""
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            """
            import random, warnings

            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
            THREADS, FORKS = int(sys.argv[2]), int(sys.argv[3])

            def child(name, chance, depth):
                check(f"{name}.a")
                # What another thread was just opening belongs to nobody yet, and lasts as long as the child.
                assert sockets() == 1 or THREADS > 1, list(links())
                assert len(client._access.engine()._loop.pool._connections) == 1
                if depth and chance.random() < 0.3:
                    fork_once(name, chance, depth - 1)
                    check(f"{name}.b")

            def fork_once(name, chance, depth):
                keys = [f"{name}.{number}" for number in range(3)]
                memories = [bytearray(len(content(key))) for key in keys]
                gets = [
                    GetObject(client._access.bucket("bucket"), key, 0, len(memory), memoryview(memory))
                    for key, memory in zip(keys, memories)
                ]
                engine = client._access.engine()
                for get in gets:
                    engine.submit(get)
                for _ in range(chance.randrange(8)):
                    if engine.pending:
                        engine.turn()
                pid = in_child(lambda: child(f"{name}~", chance, depth))
                if chance.random() < 0.5:
                    join(pid)
                    pid = None
                engine.wait(gets)
                assert [bytes(memory) for memory in memories] == [content(key) for key in keys]
                if pid is not None:
                    join(pid)
                if chance.random() < 0.1:  # others fork while this is set up
                    fresh = S3Client("us-east-1", endpoint=sys.argv[1])
                    assert fresh.read_range("bucket", "fresh", 0) == content("fresh")
                    fresh.close()

            def work(number):
                try:
                    chance = random.Random(number)
                    for turn in range(FORKS // THREADS):
                        fork_once(f"t{number}x{turn}", chance, 2)
                    client.close()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)

            before = len(os.listdir("/proc/self/fd"))
            client._access.bucket("bucket")
            if THREADS == 1:
                work(0)
            else:
                threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            gc.collect()
            assert sockets() == 0, list(links())
            assert len(os.listdir("/proc/self/fd")) <= before + 1, list(links())  # the selector of this thread's engine
            """,
            "4" if from_threads else "1",
            str(forks),
            patience=PATIENCE + forks / 2,
        )
        users: dict[int, set[str]] = {}
        for request in server.requests:
            process = re.sub(r"x\d+$", "", request.path.rpartition("/")[2].partition(".")[0])
            users.setdefault(request.connection, set()).add(process)
    assert max(len(names) for names in users.values()) == 1
    assert len(server.requests) >= 4 * forks


@pytest.mark.usefixtures("credentials")
def test_threads_of_a_child_drop_what_it_inherited():
    """If another thread has dropped what a child inherited just before, that is fine."""

    class States(dict[int, object]):
        def __iter__(self) -> Iterator[int]:
            found = list(super().__iter__())
            for other in found:
                if other != os.getpid():
                    super().pop(other)
            return iter(found)

    with ScriptedServer(serve) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        client._access._states = States({os.getpid() + 1: client._access._process()})
        assert client.read_range("bucket", "key", 0) == content("key")
        client.close()


# Other processes


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pickled(tmp_path: Path, method: str):
    """A client and its readers work in a process that is started afresh; a reader goes on from its position."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method}")
    with ScriptedServer(serve) as server:
        run(
            tmp_path,
            server,
            f"""
            from s3torch.config import S3ReaderConfig

            def work(theirs, readers):
                assert theirs.read_range("bucket", "child", 0) == content("child")
                assert theirs.stats.requests == 1
                for reader in readers:
                    assert (reader.tell(), reader.read()) == (10, content("key")[10:])

            if __name__ == "__main__":
                check("parent")
                configs = (None, S3ReaderConfig.range_based(), S3ReaderConfig.range_based(1000))
                readers = [client.get_object("bucket", "key", reader_config=config) for config in configs]
                for reader in readers:
                    reader.read(10)
                process = multiprocessing.get_context({method!r}).Process(target=work, args=(client, readers))
                process.start()
                process.join()
                assert process.exitcode == 0
                check("parent")
            """,
        )
        assert {"parent", "child"} < connections(server).keys()


@pytest.mark.usefixtures("credentials")
def test_pickle_holds_no_secret():
    """Neither the pickle nor the repr of a client or reader that was used holds anything of the credentials."""
    with ScriptedServer(serve) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        readers = [
            client.get_object("bucket", "key", reader_config=config)
            for config in (S3ReaderConfig.sequential(), S3ReaderConfig.range_based(1000))
        ]
        for reader in readers:
            assert reader.read(5) == content("key")[:5]
        for thing in (client, *readers):
            shown = pickle.dumps(thing) + repr(thing).encode()
            for secret in CREDENTIALS.values():
                assert secret.encode() not in shown
        for thing in (
            client._access.bucket("bucket"),
            client._access.engine(),
            client._access._process().session.credentials(),
        ):
            for secret in ("SECRET", "TOKEN"):
                assert secret not in repr(thing)
        client.close()


@pytest.mark.usefixtures("credentials")
def test_pickled_client_is_the_same():
    """A pickled client has the configuration that it had, and none of its connections."""
    with ScriptedServer(serve) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, user_agent_comments=["md/x#y"])
        client.read_range("bucket", "key", 0)
        other = pickle.loads(pickle.dumps(client))
        assert repr(other) == repr(client)
        assert other.user_agent == client.user_agent
        assert (other.stats.requests, client.stats.requests) == (0, 1)
        other.read_range("bucket", "key", 0)
        assert server.connections == 2
        client.close()
        other.close()


# The end of a process


@pytest.mark.parametrize(
    "script",
    [
        """
        unread = client.get_object("bucket", "key")
        begun = client.get_object("bucket", "key")
        begun.read(10)
        in_a_cycle = []
        in_a_cycle.append((in_a_cycle, client.get_object("bucket", "key")))
        in_a_cycle[0][1].readline(10)
        aborted = client.put_object("bucket", "key")
        aborted.write(b"x")
        aborted.abort()
        thread = threading.Thread(target=check, args=("key",))
        thread.start()
        thread.join()
        """,
        """
        get = GetObject(client._access.bucket("bucket"), "stall", 0, 10, memoryview(bytearray(10)))
        client._access.engine().submit(get)
        while not client._access.engine().stats.requests:
            client._access.engine().turn()
        """,
        """
        import atexit

        client._access.bucket("bucket")
        begun = threading.Barrier(9)

        def read(key):
            begun.wait()
            while True:
                client.read_range("bucket", key, 0)

        for number in range(8):
            threading.Thread(target=read, args=("stall" if number % 2 else "key",), daemon=True).start()
        atexit.register(check, "key")
        begun.wait()
        check("key")
        """,
        """
        import atexit

        reader = client.get_object("bucket", "key")
        writer = client.put_object("bucket", "key")
        atexit.register(writer.abort)
        atexit.register(lambda: check("key"))
        atexit.register(lambda: reader.read())
        atexit.register(client.close)
        """,
        """
        get = GetObject(client._access.bucket("bucket"), "stall", 0, 10, memoryview(bytearray(10)))
        engine = client._access.engine()
        engine.submit(get)
        engine.turn()
        cycle = [engine, get, client]
        cycle.append(cycle)
        del engine, get, client, cycle
        gc.collect()
        """,
    ],
    ids=["idle", "in flight", "daemon threads", "atexit", "in flight in a cycle"],
)
def test_silent_exit(tmp_path: Path, script: str):
    """A process may end whatever its client is doing, without closing anything and without a word."""

    def handle(request: Request, wire: Wire) -> None:
        if request.path.endswith("stall"):
            wire.stall()
        else:
            serve(request, wire)

    with ScriptedServer(handle) as server:
        run(tmp_path, server, script)


def test_failed_read(tmp_path: Path):
    """What a failed read leaves behind is collected without a word."""
    with ScriptedServer(fail(403, "AccessDenied")) as server:
        run(
            tmp_path,
            server,
            """
            from s3torch.client import HeadObjectResult
            from s3torch.errors import AccessDeniedError

            info = HeadObjectResult('"e"', 100, 0)  # so that there is memory before there is an answer
            try:
                client.get_object("bucket", "key", object_info=info).read()
            except AccessDeniedError as error:
                cycle = [error]  # with its traceback, whose frames hold the memory
                cycle.append(cycle)
            del cycle
            gc.collect()
            """,
        )


def test_interrupt(tmp_path: Path):
    """Ctrl-C ends a read that waits at once, and the client can be used on."""

    def handle(request: Request, wire: Wire) -> None:
        if not request.path.endswith("stall"):
            return serve(request, wire)
        match = re.search(r"pid/(\d+)", request.headers["user-agent"])
        assert match is not None
        os.kill(int(match[1]), signal.SIGINT)
        return wire.stall()

    with ScriptedServer(handle) as server:
        run(
            tmp_path,
            server,
            """
            import signal
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have the tests ignore it
            try:
                client.read_range("bucket", "stall", 0)
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("not interrupted")
            check("key")
            assert repr(client._access.engine()) == "<Engine 0 in flight, 0 queued, 1 connections, 2 requests>"
            """,
        )
        assert connections(server) == {"stall": {1}, "key": {2}}


class Interrupting:
    """Interrupts the n-th select of an engine, before or after the selector was asked."""

    def __init__(self, client: S3Client, nth: int, *, is_after: bool) -> None:
        self.network = client._access.engine()._network
        self.select = self.network.select
        self.nth = nth
        self.is_after = is_after
        self.calls = 0

    def __call__(self, timeout: float) -> object:
        self.calls += 1
        events = self.select(timeout) if self.is_after or self.calls != self.nth else []
        if self.calls == self.nth:
            raise KeyboardInterrupt
        return events


def read_many(client: S3Client) -> None:
    """Read ranges concurrently, in small pieces and as a file."""
    got = client.read_ranges("bucket", "key", [(start, start + 100) for start in range(0, 20_000, 2_000)], max_gap=0)
    assert got == [content("key")[start : start + 100] for start in range(0, 20_000, 2_000)]
    with client.get_object("bucket", "other") as reader:
        assert reader.read() == content("other")
    assert client.head_object("bucket", "key").size == len(content("key"))


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_interrupt_anywhere(monkeypatch: pytest.MonkeyPatch, is_after: bool):
    """Ctrl-C at any wait leaves a client that has nothing under way and can be used on."""
    with ScriptedServer(serve) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        for nth in itertools.count(1):
            select = Interrupting(client, nth, is_after=is_after)
            with monkeypatch.context() as patch:
                patch.setattr(select.network, "select", select)
                try:
                    read_many(client)
                except KeyboardInterrupt:
                    assert repr(client._access.engine()).startswith("<Engine 0 in flight, 0 queued, 0 connections")
                else:
                    break
            read_many(client)
        client.close()
    assert 5 < nth < 500
    assert client.stats.requests >= nth * 12
