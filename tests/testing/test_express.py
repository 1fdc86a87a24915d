"""S3 Express One Zone: everything that reads and writes, on a double of a directory bucket."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.utils.data import DataLoader

from s3torch import (
    S3Checkpoint,
    S3Client,
    S3ClientConfig,
    S3IterableDataset,
    S3MapDataset,
    S3ReaderConfig,
)
from s3torch._aws import express
from s3torch._aws.express import PROCESS_SESSIONS
from s3torch.checkpoint import series
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.errors import (
    ArgumentError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestError,
    S3Error,
    ServerError,
)
from s3torch.testing import ExpressServer
from s3torch.testing.faulty.objects import Answer, error_answer, s3_error
from s3torch.testing.faulty.wire import Request

MiB = 1024 * 1024
CONTENTS = {f"train/{number // 10}/{number:03}": bytes([number]) * (1000 + number) for number in range(60)}


@pytest.fixture
def server() -> Iterator[ExpressServer]:
    """A directory bucket that AWS clients find."""
    PROCESS_SESSIONS.forget_all()
    with ExpressServer(CONTENTS) as running, running.activated():
        yield running
    PROCESS_SESSIONS.forget_all()


@pytest.fixture
def client(server: ExpressServer) -> S3Client:
    """A client of that bucket."""
    return S3Client(s3client_config=server.config)


def uri(server: ExpressServer, key: str) -> str:
    """Return the URI of an object there."""
    return f"s3://{server.bucket}/{key}"


@pytest.mark.parametrize(
    "reader", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()], ids=str
)
def test_readers(server: ExpressServer, client: S3Client, reader: S3ReaderConfig):
    """Each reader reads an object, with one session."""
    server.objects["large"] = content = os.urandom(12 * MiB)
    with client.get_object(server.bucket, "large", reader_config=reader) as file:
        file.seek(5)
        assert file.read(7) == content[5:12]
        file.seek(0)
        assert file.read() == content
    assert len(server.sessions) == 1


def test_map_dataset(server: ExpressServer):
    """A map dataset has the objects in the order of their keys, though the bucket lists them in none."""
    dataset = S3MapDataset.from_prefix(uri(server, "train/"), region="us-west-2", s3client_config=server.config)
    assert [item.key for item in dataset.objects] == sorted(CONTENTS)
    assert [dataset[number].read() for number in range(len(dataset))] == [CONTENTS[key] for key in sorted(CONTENTS)]
    assert len(server.sessions) == 1


def test_prefixes_that_are_no_folders(server: ExpressServer, client: S3Client):
    """A prefix in the middle of a name lists its folder, and keeps what begins with it."""
    expected = sorted(key for key in CONTENTS if key.startswith("train/3/03"))
    dataset = S3MapDataset.from_prefix(uri(server, "train/3/03"), region="us-west-2", s3client_config=server.config)
    assert [item.key for item in dataset.objects] == expected
    found = [info.key for page in client.list_objects(server.bucket, "train/3/03", max_keys=4) for info in page[0]]
    assert sorted(found) == expected
    pages = list(client.list_objects(server.bucket, "tra", "/"))
    assert [prefix for page in pages for prefix in page.common_prefixes] == ["train/"]


def test_other_delimiters(server: ExpressServer, client: S3Client):
    """Only folders can be grouped by."""
    with pytest.raises(ArgumentError, match="grouped by '/' alone"):
        next(client.list_objects(server.bucket, "", "-"))


@pytest.mark.parametrize("workers", [0, 2])
def test_iterable_dataset(server: ExpressServer, workers: int):
    """Ranks and workers that list by themselves share the objects without a gap: the order is the keys'."""
    seen: list[bytes] = []
    for rank in range(2):
        dataset = S3IterableDataset.from_prefix(
            uri(server, "train/"),
            region="us-west-2",
            enable_sharding=True,
            s3client_config=server.config,
            transform=read,
        )
        dataset._rank, dataset._world_size = rank, 2
        seen += DataLoader(dataset, batch_size=None, num_workers=workers)
    assert sorted(seen) == sorted(CONTENTS.values())


def read(reader) -> bytes:
    """Return the content of a sample."""
    return reader.read()


def test_checkpoints(server: ExpressServer, client: S3Client):
    """A checkpoint is saved by a PUT or in parts, loaded, found among others and deleted."""
    small, large = {"a": torch.arange(10)}, {"b": torch.randn(3 * MiB)}
    checkpoint = S3Checkpoint("us-west-2", s3client_config=server.config)
    for name, state in (("step-9", small), ("step-10", large)):
        checkpoint.save(state, uri(server, f"run/{name}"))
        loaded = checkpoint.load(uri(server, f"run/{name}"))
        assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert series.latest(uri(server, "run/"), client=client) == uri(server, "run/step-10")
    assert series.keep_last(uri(server, "run"), 1, client=client) == [uri(server, "run/step-9")]
    assert not server.objects.uploads
    assert len(server.sessions) == 1


def test_distributed_checkpoint(server: ExpressServer):
    """torch.distributed.checkpoint saves and loads."""
    state = {"weight": torch.randn(300, 700), "step": 7}
    place = uri(server, "dcp/step-1")
    writer = S3StorageWriter("us-west-2", place, s3client_config=server.config)
    dcp.save(state, storage_writer=writer, no_dist=True)
    loaded = {"weight": torch.zeros(300, 700), "step": 0}
    dcp.load(loaded, storage_reader=S3StorageReader("us-west-2", place, s3client_config=server.config), no_dist=True)
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["step"] == 7
    assert len(server.sessions) == 1


def test_one_session_for_all_threads_and_clients(server: ExpressServer):
    """Threads that begin at the same time, with clients of their own, wait for one session."""
    barrier = threading.Barrier(32)
    contents: list[bytes] = []

    def work() -> None:
        own = S3Client(s3client_config=server.config)
        barrier.wait()
        contents.append(own.read_range(server.bucket, "train/0/001", 0))
        own.close()

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [CONTENTS["train/0/001"]] * 32
    assert len(server.sessions) == 1


def test_many_connections_at_the_start(server: ExpressServer, client: S3Client):
    """A read over many connections begins with one session, not with one for each."""
    server.objects["large"] = content = os.urandom(64 * MiB)
    assert client.read_range(server.bucket, "large", 0) == content
    assert client.stats.connections_opened > 8
    assert len(server.sessions) == 1


def _read_in_child(connection, config: S3ClientConfig, bucket: str) -> None:
    connection.send(S3Client(s3client_config=config).read_range(bucket, "train/0/002", 0))


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_forked_children_begin_with_the_session(server: ExpressServer, client: S3Client):
    """A forked worker signs with its parent's session."""
    client.read_range(server.bucket, "train/0/001", 0)
    client.close()
    fork = multiprocessing.get_context("fork")
    for _ in range(3):
        ours, theirs = fork.Pipe()
        child = fork.Process(target=_read_in_child, args=(theirs, server.config, server.bucket))
        child.start()
        assert ours.recv() == CONTENTS["train/0/002"]
        child.join()
    assert len(server.sessions) == 1


def test_sessions_that_end_early(server: ExpressServer, client: S3Client):
    """A session that the service has ended is replaced, in the middle of reads, by one request."""
    for number in range(3):
        data = client.read_ranges(server.bucket, "train/1/010", [(place, place + 10) for place in range(0, 1000, 100)])
        assert b"".join(data) == bytes([10]) * 100
        assert len(server.sessions) == number + 1
        server.expire_sessions()


@pytest.mark.parametrize(
    ("status", "code", "error"), [(500, "InternalError", ServerError), (403, "AccessDenied", S3Error)]
)
def test_sessions_that_cannot_be_had(
    server: ExpressServer, client: S3Client, monkeypatch: pytest.MonkeyPatch, status: int, code: str, error: type
):
    """A session is asked for as often as any request, whatever the number of requests that want it; then they fail."""
    handle, asked = server._server._handler, []

    def refuse(request, wire) -> None:
        if "session" in request.target:
            asked.append(request)
            wire.respond(status, {}, s3_error(code))
        else:
            handle(request, wire)

    client = S3Client(s3client_config=replace(server.config, max_attempts=3))
    with monkeypatch.context() as patch:
        patch.setattr(server._server, "_handler", refuse)
        with pytest.raises(error, match="CreateSession on s3://bucket--usw2-az1--x-s3"):
            client.read_ranges(server.bucket, "train/0/001", [(place, place + 1) for place in range(500)], max_gap=0)
        assert len(asked) == (3 if status == 500 else 1)


def test_a_connection_that_breaks_off_for_sessions(
    server: ExpressServer, client: S3Client, monkeypatch: pytest.MonkeyPatch
):
    """Where connections break off when a session is asked for, the request that wants it is not sent again as well."""
    client = S3Client(s3client_config=replace(server.config, max_attempts=3))
    client.read_range(server.bucket, "train/0/001", 0)
    handle, asked = server._server._handler, []

    def refuse(request, wire) -> None:
        if "session" in request.target:
            asked.append(request)
            wire.reset()
        else:
            handle(request, wire)

    PROCESS_SESSIONS.forget_all()
    client._access.bucket(server.bucket)._common = None
    monkeypatch.setattr(express, "_SHARED_FOR", 0.0)
    monkeypatch.setattr(server._server, "_handler", refuse)
    with pytest.raises(ConnectionFailedError):
        client.read_range(server.bucket, "train/0/001", 0)
    assert len(asked) == 3


class Holding:
    """Holds requests for sessions back until they are let go."""

    def __init__(self, server: ExpressServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Semaphore(0)
        self.is_let_go = threading.Event()
        self._handle = server._server._handler
        monkeypatch.setattr(server._server, "_handler", self)

    def __call__(self, request, wire) -> None:
        if "session" in request.target:
            self.asked.release()
            assert self.is_let_go.wait(60)
        self._handle(request, wire)


def test_a_call_waits_for_no_session_beyond_its_end(server: ExpressServer, monkeypatch: pytest.MonkeyPatch):
    """A session that another thread is asking for, or the call itself, is waited for as long as the call may take."""
    holding = Holding(server, monkeypatch)
    patient, hasty = (
        S3Client(s3client_config=replace(server.config, call_timeout=timeout, first_byte_timeout=60.0))
        for timeout in (None, 0.2)
    )
    outcomes: dict[str, object] = {}

    def read(name: str, client: S3Client) -> None:
        try:
            outcomes[name] = client.read_range(server.bucket, "train/0/001", 0)
        except S3Error as error:
            outcomes[name] = error
        finally:
            client.close()

    for first, second in (("alone", ""), ("patient", "hasty")):
        threads = [
            threading.Thread(target=read, args=(name, patient if name == "patient" else hasty))
            for name in (first, second)
            if name
        ]
        threads[0].start()
        assert holding.asked.acquire(timeout=30)
        for thread in threads[1:]:
            thread.start()
        threads[-1].join(30)
        assert not threads[-1].is_alive()
    assert not holding.asked.acquire(blocking=False)
    holding.is_let_go.set()
    threads[0].join(30)
    assert outcomes.pop("patient") == CONTENTS["train/0/001"]
    assert {name: type(error) for name, error in outcomes.items()} == {"alone": DeadlineError, "hasty": DeadlineError}
    assert all("call_timeout" in str(error) for error in outcomes.values())


def test_reads_go_on_while_a_session_is_replaced(
    server: ExpressServer, client: S3Client, monkeypatch: pytest.MonkeyPatch
):
    """A session that is due serves until the next one is there, which nobody waits for."""
    monkeypatch.setattr(express, "_REPLACED_FROM", 0.0)
    monkeypatch.setattr(express, "_REPLACED_UNTIL", 0.0)
    client.read_range(server.bucket, "train/0/001", 0)
    holding = Holding(server, monkeypatch)
    client._access.bucket(server.bucket)._common = None  # another second
    for number in range(10):
        assert client.read_range(server.bucket, f"train/0/00{number}", 0) == CONTENTS[f"train/0/00{number}"]
    assert len(server.sessions) == 1
    holding.is_let_go.set()
    assert holding.asked.acquire(timeout=30)
    while len(server.sessions) < 2 or _session_in_use() != server.sessions[-1].credentials.access_key:
        client.read_range(server.bucket, "train/0/001", 0)
    assert len(server.sessions) == 2
    assert client._access.engine().pending == 0


def _session_in_use() -> str:
    (record,) = PROCESS_SESSIONS._records.values()
    return record.session.credentials.access_key


def test_secrets_are_no_part_of_a_pickle(server: ExpressServer, client: S3Client):
    """A client that has a session pickles without it."""
    client.read_range(server.bucket, "train/0/001", 0)
    pickled = pickle.dumps(client)
    (session,) = server.sessions
    assert session.credentials.secret_key.encode() not in pickled
    assert pickle.loads(pickled).read_range(server.bucket, "train/0/001", 0) == CONTENTS["train/0/001"]


def test_copies_are_signed_by_the_user(server: ExpressServer, client: S3Client):
    """An object is copied with the user's own keys, as botocore's model of S3 wants it."""
    client.copy_object(server.bucket, "train/0/001", server.bucket, "copy of/one")
    assert server.objects["copy of/one"] == CONTENTS["train/0/001"]
    assert server.sessions == []


def test_renaming(server: ExpressServer, client: S3Client):
    """An object gets another key; one that is in the way is replaced, or not."""
    client.rename_object(server.bucket, "train/0/001", "other name?/ü", if_none_match=True)
    assert server.objects["other name?/ü"] == CONTENTS["train/0/001"]
    assert "train/0/001" not in server.objects
    with pytest.raises(ObjectExistsError):
        client.rename_object(server.bucket, "train/0/002", "train/0/003", if_none_match=True)
    client.rename_object(server.bucket, "train/0/002", "train/0/003")
    assert server.objects["train/0/003"] == CONTENTS["train/0/002"]
    with pytest.raises(ObjectNotFoundError, match="train/0/002, which was to be renamed") as caught:
        client.rename_object(server.bucket, "train/0/002", "x")
    assert caught.value.key == "train/0/002"


def test_renaming_where_the_condition_is_ignored(
    server: ExpressServer, client: S3Client, monkeypatch: pytest.MonkeyPatch
):
    """A server that is not known to heed the condition is asked for the object first."""
    monkeypatch.setattr(server.objects, "_is_refused", lambda request, target: False)
    with pytest.raises(ObjectExistsError, match="train/0/003 is there already"):
        client.rename_object(server.bucket, "train/0/002", "train/0/003", if_none_match=True)
    assert server.objects["train/0/003"] == CONTENTS["train/0/003"]
    assert server.objects["train/0/002"] == CONTENTS["train/0/002"]
    client.rename_object(server.bucket, "train/0/002", "new", if_none_match=True)
    assert server.objects["new"] == CONTENTS["train/0/002"]


def test_appending(server: ExpressServer, client: S3Client):
    """Bytes are appended where the object ends, and nowhere else."""
    client.append_object(server.bucket, "log", b"one", offset=0)
    client.append_object(server.bucket, "log", b" two", offset=3)
    assert server.objects["log"] == b"one two"
    with pytest.raises(RequestError, match="is not 3 bytes long"):
        client.append_object(server.bucket, "log", b"three", offset=3)
    assert server.objects["log"] == b"one two"


def test_appending_whose_answer_is_lost(server: ExpressServer, client: S3Client, monkeypatch: pytest.MonkeyPatch):
    """What was appended before the answer was lost is not appended again, and is no failure."""
    handle, lost = server._server._handler, []

    def lose(request, wire) -> None:
        if "x-amz-write-offset-bytes" in request.headers and not lost:
            lost.append(server.objects.answer(request).status)
            wire.reset()
        else:
            handle(request, wire)

    monkeypatch.setattr(server._server, "_handler", lose)
    client.append_object(server.bucket, "log", b"one", offset=0)
    assert (lost, server.objects["log"]) == ([200], b"one")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.rename_object("usual", "a", "b"),
        lambda client: client.append_object("usual", "a", b"b", offset=0),
    ],
)
def test_usual_buckets_cannot(server: ExpressServer, client: S3Client, call):
    """Renaming and appending is refused for a bucket that is no directory bucket."""
    with pytest.raises(ArgumentError, match="'usual' is none"):
        call(client)


@pytest.mark.parametrize(("data", "offset"), [(b"", 0), (b"x", -1)])
def test_nothing_to_append(server: ExpressServer, client: S3Client, data: bytes, offset: int):
    """Nothing cannot be appended, nor anything before the beginning."""
    with pytest.raises(ArgumentError):
        client.append_object(server.bucket, "log", data, offset=offset)


def test_uploads_in_parts(server: ExpressServer, client: S3Client):
    """A writer sends parts. ETags are no MD5s here: nothing can be gone on with, so nothing is left for that."""
    content = os.urandom(12 * MiB)
    with contextlib.suppress(KeyboardInterrupt), client.put_object(server.bucket, "up/large", resume=True) as writer:
        writer.write(content[: 11 * MiB])
        (open_one,) = client.list_multipart_uploads(server.bucket, "up/la")
        raise KeyboardInterrupt
    assert open_one.key == "up/large"
    assert client.list_multipart_uploads(server.bucket, "up/") == []
    with client.put_object(server.bucket, "up/large", resume=True) as writer:
        writer.write(content)
    assert server.objects["up/large"] == content
    assert not server.objects.uploads
    assert len(server.sessions) == 1


def test_it_says_what_it_is(server: ExpressServer):
    """The double tells address, bucket and sessions."""
    assert repr(server) == f"ExpressServer({server.endpoint!r}, bucket='bucket--usw2-az1--x-s3', sessions=0)"


def test_sessions_that_are_all_refused(server: ExpressServer, client: S3Client):
    """Where each session is given and then refused, a request comes to an end."""
    rightly, left = server.objects.answer, 50  # more than any request is sent

    def answer(request: Request) -> Answer:
        nonlocal left
        left -= 1
        server.expire_sessions()
        return rightly(request) if left else error_answer(404, "NoSuchKey")

    server.objects.answer = answer  # type: ignore[method-assign]
    with pytest.raises(CredentialsError):
        client.read_range(server.bucket, "train/0/000", 0)
    assert len(server.sessions) <= 6
