"""What a process finds before it forks, so that its children need not: DataLoaders start new workers each epoch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch import S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Reader
from s3torch._aws.configuration import Configuration
from s3torch._aws.session import AwsSession
from s3torch.errors import CredentialsError
from tests.support.environment import know_only
from tests.support.server import Request, ScriptedServer, Wire, serve_object

CONTENT = b"content"
_OBJECTS = [f"s3://bucket/{number}" for number in range(8)]

each_kind = pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is configured; the folder of the files that may be."""
    know_only(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server with one object by every name."""
    with ScriptedServer(serve_object(CONTENT)) as running:
        yield running


def keys(seconds: float = 3600) -> str:
    """Return credentials that end after some seconds, as processes and agents give them out."""
    end = (datetime.now(timezone.utc) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    named = {"Version": 1, "AccessKeyId": "ACCESS", "SecretAccessKey": "HIDDEN", "SessionToken": "T", "Token": "T"}
    return json.dumps({**named, "Expiration": end})


def process(home: Path, *, seconds: float = 3600, fails: bool = False) -> Path:
    """Have a process give out credentials; returns the file in which it notes each time that it ran."""
    script, runs = home / "script.py", home / "runs"
    runs.touch()
    script.write_text(f"open({str(runs)!r}, 'a').write('.')\nprint({keys(seconds)!r})\nraise SystemExit({int(fails)})")
    (home / "config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    return runs


def length(reader: S3Reader) -> int:
    """Return how long an object is."""
    return len(reader.read())


def dataset_of(kind: Any, server: ScriptedServer, **options: Any) -> Any:
    """Return a dataset of the objects."""
    if kind is S3IterableDataset:
        options["enable_sharding"] = True
    return kind.from_objects(_OBJECTS, region="us-east-1", endpoint=server.endpoint, transform=length, **options)


def an_epoch(dataset: Any) -> int:
    """Read all objects by new workers; returns how many there are."""
    batches = iter(DataLoader(dataset, 2, num_workers=2, multiprocessing_context="fork"))
    try:
        return sum(len(batch) for batch in batches)
    finally:
        batches._shutdown_workers()  # the collector, to which an error would leave them, waits for each for 5 s


def in_child(act: Any) -> Any:
    """Return what a forked child returns."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=lambda: there.send(act()))
    child.start()
    answer = here.recv() if here.poll(60) else None
    child.join()
    return answer


# --- One search a job -------------------------------------------------------------------------------------------------


@each_kind
def test_one_process_that_gives_out_credentials(home: Path, server: ScriptedServer, kind: type):
    """All workers of all epochs sign with what their parent has found once, though it never sends a request itself."""
    runs = process(home)
    dataset = dataset_of(kind, server)
    assert runs.read_text() == ""  # nothing is asked when a dataset is made
    assert [an_epoch(dataset) for _ in range(3)] == [len(_OBJECTS)] * 3
    assert runs.read_text() == "."


@each_kind
def test_one_request_to_an_agent(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, kind: type):
    """An agent of credentials is asked once, however many workers there are."""

    def serve_keys(_: Request, wire: Wire) -> None:
        wire.respond(200, {}, keys().encode())

    with ScriptedServer(serve_keys) as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.endpoint}/keys")
        dataset = dataset_of(kind, server)
        assert agent.requests == []
        assert [an_epoch(dataset) for _ in range(2)] == [len(_OBJECTS)] * 2
        assert len(agent.requests) == 1


def test_a_dataset_inside_of_another(home: Path, server: ScriptedServer):
    """What a DataLoader is given need not be a dataset of ours."""
    runs = process(home)
    dataset = torch.utils.data.ConcatDataset([dataset_of(S3MapDataset, server), dataset_of(S3MapDataset, server)])
    assert an_epoch(dataset) == 2 * len(_OBJECTS)
    assert runs.read_text() == ".."  # one of each client


def look_at_what_is_there(worker: int) -> None:
    """Raise unless this worker knows where the bucket is, before it has used it."""
    del worker
    info = torch.utils.data.get_worker_info()
    assert list(info.dataset.client._access._buckets) == ["bucket"]


@each_kind
def test_addresses_are_known(home: Path, server: ScriptedServer, kind: type):
    """A worker does not have botocore read its model of S3: its parent has found where the bucket answers."""
    process(home)
    loader = DataLoader(
        dataset_of(kind, server), 2, num_workers=2, worker_init_fn=look_at_what_is_there, multiprocessing_context="fork"
    )
    assert sum(len(batch) for batch in loader) == len(_OBJECTS)


def test_a_source_without_a_known_bucket(monkeypatch: pytest.MonkeyPatch, home: Path, server: ScriptedServer):
    """Where no bucket is known, as a function finds the objects, credentials are found all the same."""
    runs = process(home)
    dataset = S3MapDataset("us-east-1", lambda _: [], server.endpoint)
    asked = []
    monkeypatch.setattr(AwsSession, "endpoint", lambda _, bucket, region: asked.append((bucket, region)))
    assert in_child(lambda: 1) == 1
    assert runs.read_text() == "."
    assert asked == [("bucket", "us-east-1")]
    assert dataset.client._access._buckets == {}


def test_connections_in_use_stay(home: Path):
    """A fork in the middle of an iteration disturbs none of its transfers: none is sent again."""
    process(home)
    has_forked = threading.Event()
    serve = serve_object(CONTENT)

    def serve_late(request: Request, wire: Wire) -> None:
        if not request.path.endswith("/0"):
            assert has_forked.wait(60)
        serve(request, wire)

    with ScriptedServer(serve_late) as server:
        dataset = dataset_of(S3IterableDataset, server)
        samples = iter(dataset)
        assert next(samples) == len(CONTENT)
        assert in_child(lambda: 1) == 1
        assert sum(engine.pending for engine in dataset.client._access.engines) == len(_OBJECTS) - 1
        has_forked.set()
        assert list(samples) == [len(CONTENT)] * (len(_OBJECTS) - 1)
        assert len(server.requests) == len(_OBJECTS)


# --- What is not to happen --------------------------------------------------------------------------------------------


def test_forks_of_others_do_not_wait(home: Path, server: ScriptedServer):
    """Only who has a dataset looks for credentials at a fork, and only in the process that has made it."""
    runs = process(home)
    client = S3Client("us-east-1", endpoint=server.endpoint)
    assert in_child(lambda: 1) == 1
    assert runs.read_text() == ""
    del client
    dataset = dataset_of(S3MapDataset, server, s3client_config=S3ClientConfig(unsigned=True))
    assert in_child(lambda: 1) == 1
    assert runs.read_text() == ""
    dataset = dataset_of(S3MapDataset, server)
    dataset.client._access._for_children = (os.getpid() + 1, ())  # as in a child
    assert in_child(lambda: 1) == 1
    assert runs.read_text() == ""
    del dataset
    assert in_child(lambda: 1) == 1
    assert runs.read_text() == ""


@each_kind
def test_a_search_that_fails(home: Path, server: ScriptedServer, kind: type):
    """A fork goes on without credentials, and does not look again for a while; who needs some has a clear error."""
    runs = process(home, fails=True)
    dataset = dataset_of(kind, server)
    assert [in_child(lambda: 1) for _ in range(5)] == [1] * 5
    assert runs.read_text() == "."
    with pytest.raises(CredentialsError, match="could not be loaded"):
        an_epoch(dataset)
    process(home)
    assert an_epoch(dataset) == len(_OBJECTS)


def test_a_bucket_that_cannot_be(server: ScriptedServer):
    """A name that no bucket can have does not disturb a fork: who reads says what is wrong."""
    dataset = S3MapDataset.from_objects(["s3://a b/key"], region="us-east-1", endpoint=server.endpoint)
    assert in_child(lambda: 1) == 1
    del dataset


def test_a_fork_in_the_middle_of_a_search(monkeypatch: pytest.MonkeyPatch, home: Path, server: ScriptedServer):
    """A signal handler that forks in the middle of a search does not search: botocore's lock is held by its thread."""
    runs = process(home)
    dataset = dataset_of(S3MapDataset, server)
    find = Configuration.find_credentials

    def interrupted(*arguments: Any) -> Any:
        assert in_child(lambda: 1) == 1
        return find(*arguments)

    monkeypatch.setattr(Configuration, "find_credentials", interrupted)
    assert dataset[0] == len(CONTENT)
    assert runs.read_text() == "."


def test_a_fork_beside_a_search(monkeypatch: pytest.MonkeyPatch, home: Path, server: ScriptedServer):
    """A fork waits for another thread that is looking, and has what that finds."""
    runs = process(home)
    dataset = dataset_of(S3MapDataset, server)
    find = Configuration.find_credentials
    is_looking = threading.Event()

    def late(*arguments: Any) -> Any:
        is_looking.set()
        return find(*arguments)

    monkeypatch.setattr(Configuration, "find_credentials", late)
    thread = threading.Thread(target=lambda: dataset[0])
    thread.start()
    assert is_looking.wait(60)
    assert in_child(lambda: dataset[1]) == len(CONTENT)
    thread.join()
    assert runs.read_text() == "."


# --- Credentials that end ---------------------------------------------------------------------------------------------


class _Source:
    """What refreshes credentials, as botocore's object does.

    Attributes:
        seconds: How long they last.
        asked: How often they were asked for.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    def refresh_needed(self, seconds: float) -> bool:
        """Whether they end within so many seconds."""
        return self.seconds < seconds

    def get_frozen_credentials(self) -> Any:
        """Return credentials."""
        self.asked += 1
        return SimpleNamespace(access_key="ACCESS", secret_key="HIDDEN", token=None)


def test_credentials_that_end_soon_are_looked_for_anew(monkeypatch: pytest.MonkeyPatch):
    """The parent renews what its children could not use any more, and not at each fork."""
    now, source = 0.0, _Source(3600)
    monkeypatch.setattr(Configuration, "find_credentials", lambda *_: source)
    session = AwsSession(S3ClientConfig(), "us-east-1", None, clock=lambda: now)
    for _ in range(5):
        session.look_ahead_of_children()
    assert source.asked == 1
    source.seconds = 1000  # long enough for a child
    now = 2600.0
    session.look_ahead_of_children()
    assert source.asked == 1
    for asked in (2, 3):
        source.seconds = 5
        for _ in range(5):
            session.look_ahead_of_children()
        assert source.asked == asked
        now += 100
    unsigned = AwsSession(S3ClientConfig(unsigned=True), "us-east-1", None)
    unsigned.look_ahead_of_children()
    assert source.asked == 3
