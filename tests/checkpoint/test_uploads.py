"""What a save tells of itself, whichever way it is made: statistics of each object, a bar, and before, an estimate."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch_checkpointing import CheckpointManager, SyncCheckpointSaverConfig

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.checkpoint import UploadEstimate, UploadStats
from s3torch.checkpoint.uploads import estimate_upload
from s3torch.dcp import S3HuggingFaceStorageWriter, S3StorageReader, S3StorageWriter
from s3torch.errors import AccessDeniedError, ArgumentTypeError
from s3torch.lightning import S3LightningCheckpoint
from s3torch.safetensors import estimate_file, estimate_sharded, load_file, save_file, save_sharded
from s3torch.testing import FaultyServer, faults
from s3torch.torch_checkpointing import S3StorageConfig
from s3torch.torch_checkpointing import estimate as estimate_of_manager
from s3torch.uri import parse_s3_uri

pytestmark = [
    pytest.mark.usefixtures("s3"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]

MiB = 1024 * 1024
CONFIG = S3ClientConfig(part_size=5 * MiB, hedging=False)
SMALL = {"a": torch.arange(100.0), "step": 3}
LARGE = {"a": torch.arange(13 * MiB // 4, dtype=torch.int32), "b": torch.ones(300), "step": 3}
STATES = pytest.mark.parametrize("state", [SMALL, LARGE], ids=["one request", "parts"])


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


@pytest.fixture
def told() -> list[UploadStats]:
    """What ``told.append`` was told."""
    return []


def _requests(client: S3Client) -> int:
    return client.stats.requests


def _known(client: S3Client, bucket: str) -> S3Client:
    """Let a client find a bucket, so that only a save's requests are counted."""
    client.delete_object(bucket, "nothing")
    return client


def _check(
    told: list[UploadStats], estimate: UploadEstimate, client: S3Client, requests: int, *, of_none: int = 0
) -> None:
    """Compare what was estimated, told, stored and sent, by so many requests, of which some stored nothing."""
    assert sum(each.size for each in told) == estimate.size
    assert [client.head_object(each.bucket, each.key).size for each in told] == [each.size for each in told]
    assert sum(each.requests for each in told) + of_none == estimate.requests == requests
    assert len(told) == estimate.objects
    assert {each.retries for each in told} == {0}
    assert all(each.seconds > 0 for each in told)


@STATES
@pytest.mark.parametrize("is_async", [False, True])
def test_of_a_checkpoint(bucket, uri, told, state, is_async):
    """S3Checkpoint tells what it has sent, and has known it before."""
    checkpoint = S3Checkpoint(s3client_config=CONFIG)
    client = _known(checkpoint._client, bucket)
    before = _requests(client)
    estimate = checkpoint.estimate(state)
    assert _requests(client) == before
    if is_async:
        checkpoint.save_async(state, uri, on_upload=told.append).result(60)
    else:
        checkpoint.save(state, uri, on_upload=told.append)
    _check(told, estimate, client, _requests(client) - before)
    assert [f"s3://{each.bucket}/{each.key}" for each in told] == [uri]


def test_without_an_outline(bucket, uri, told, monkeypatch):
    """Where torch has no outlines it holds as well."""
    monkeypatch.delattr(torch.serialization, "skip_data", raising=False)
    test_of_a_checkpoint(bucket, uri, told, LARGE, is_async=False)


@STATES
def test_of_a_trainer(bucket, uri, told, state):
    """The plugin of Lightning tells the same."""
    plugin = S3LightningCheckpoint(s3client_config=CONFIG, on_upload=told.append)
    client = _known(plugin._client, bucket)
    before = _requests(client)
    estimate = plugin.estimate(state)
    assert _requests(client) == before
    plugin.save_checkpoint(state, uri)
    _check(told, estimate, client, _requests(client) - before)
    assert torch.equal(plugin.load_checkpoint(uri)["a"], state["a"])


def test_a_trainer_says_the_size(uri, monkeypatch):
    """The writer of the plugin knows how much will come, and is given copies: AsyncCheckpointIO may train on."""
    from s3torch.writer import S3Writer

    expected: list[int] = []
    lent: list[object] = []
    expect = S3Writer.expect
    monkeypatch.setattr(S3Writer, "expect", lambda self, size: expected.append(size) or expect(self, size))
    monkeypatch.setattr(S3Writer, "write_lasting", lambda self, data: lent.append(data))
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint(LARGE, uri)
    with S3Checkpoint().reader(uri) as reader:
        content = reader.read()
    assert expected == [len(content)]
    assert not lent
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


@STATES
@pytest.mark.parametrize("thread_count", [1, 2])
def test_of_a_distributed_checkpoint(bucket, uri, told, state, thread_count):
    """The writer of distributed checkpoints tells of each file, and of .metadata, which is no part of its estimate."""
    writer = S3StorageWriter(None, uri, CONFIG, thread_count=thread_count, on_upload=told.append)
    client = _known(writer.fs.client, bucket)
    before = _requests(client)
    estimate = writer.estimate(state)
    assert _requests(client) == before
    dcp.save(state, storage_writer=writer, no_dist=True)
    files = [each for each in told if not each.key.endswith("/.metadata")]
    assert len(files) == len(told) - 1 == thread_count
    assert 0 <= _requests(client) - before - sum(each.requests for each in told) <= 1  # is there a checkpoint?
    _check(files, estimate, client, sum(each.requests for each in files))
    loaded = {"a": torch.zeros_like(state["a"]), "step": 0}
    dcp.load(loaded, storage_reader=S3StorageReader(None, uri), no_dist=True)
    assert torch.equal(loaded["a"], state["a"])


@pytest.mark.parametrize("max_shard_size", [None, 6 * MiB])
def test_of_a_file(bucket, uri, told, max_shard_size):
    """save_file tells of each file of tensors; the estimate counts all else that is asked of Amazon S3."""
    tensors = {name: torch.arange(5 * MiB // 4 + 100, dtype=torch.int32) for name in "abc"}
    client = _known(S3Client(s3client_config=CONFIG), bucket)
    before = _requests(client)
    save_file(tensors, uri, None, max_shard_size, client=client, on_upload=told.append)
    sent = _requests(client) - before
    estimate = estimate_file(tensors, None, max_shard_size, s3client_config=CONFIG)
    if max_shard_size is None:
        _check(told, estimate, client, sent, of_none=1)
    else:
        assert len(told) == 3 == estimate.objects - 1
        assert estimate.requests == sent - 1  # what a server that is not Amazon S3 is asked before the index
        _, key = uri.removeprefix("s3://").split("/", 1)
        index = client.head_object(bucket, f"{key}.index.json").size
        names = 3 * (len(key.rpartition("/")[2]) - len("model.safetensors"))
        assert abs(estimate.size + names - index - sum(each.size for each in told)) <= 3 * len(".safetensors")
    assert torch.equal(load_file(uri if max_shard_size is None else f"{uri}.index.json")["b"], tensors["b"])


@pytest.mark.parametrize("max_shard_size", [None, 6 * MiB])
def test_of_a_sharded_file(bucket, uri, told, max_shard_size):
    """save_sharded tells of each file of tensors, as save_file does."""
    tensors = {name: torch.arange(5 * MiB // 4 + 100, dtype=torch.int32) for name in "abc"}
    client = _known(S3Client(s3client_config=CONFIG), bucket)
    before = _requests(client)
    save_sharded(tensors, uri, None, max_shard_size, client=client, on_upload=told.append)
    sent = _requests(client) - before
    estimate = estimate_sharded(tensors, None, max_shard_size, s3client_config=CONFIG)
    _check_sharded(told, estimate, client, sent, uri.removeprefix(f"s3://{bucket}/"), max_shard_size is not None)


def _check_sharded(
    told: list[UploadStats], estimate: UploadEstimate, client: S3Client, sent: int, key: str, has_index: bool
) -> None:
    files = estimate.objects - has_index
    assert len(told) == files
    assert [client.head_object(each.bucket, each.key).size for each in told] == [each.size for each in told]
    # Beside the files and the index; and what a server that is not Amazon S3 is asked before the index.
    others = 5 if has_index else 1
    assert sum(each.requests for each in told) == estimate.requests - others
    assert sent == estimate.requests + has_index
    size = estimate.size - sum(each.size for each in told)
    if has_index:
        index = client.head_object(told[0].bucket, f"{key}.index.json").size
        names = files * (len(key.rpartition("/")[2]) - len("model.safetensors"))
        size += names - index
    assert abs(size) <= files * len(".safetensors")
    assert {each.retries for each in told} == {0}
    assert all(each.seconds > 0 for each in told)


@pytest.mark.parametrize("max_shard_size", [None, 6 * MiB])
def test_of_a_hugging_face_model(bucket, uri, told, max_shard_size):
    """The writer of Hugging Face models tells of each file, too, and its estimate is of all ranks."""
    tensors = {name: torch.arange(5 * MiB // 4 + 100, dtype=torch.int32) for name in "abc"}
    writer = S3HuggingFaceStorageWriter(None, uri, None, CONFIG, max_shard_size=max_shard_size, on_upload=told.append)
    client = _known(writer.client, bucket)
    before = _requests(client)
    estimate = writer.estimate(tensors, no_dist=True)
    assert _requests(client) == before
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    sent = _requests(client) - before
    key = uri.removeprefix(f"s3://{bucket}/")
    _check_sharded(told, estimate, client, sent, f"{key}/model.safetensors", has_index=True)
    assert torch.equal(load_file(f"{uri}/")["b"], tensors["b"])


@STATES
@pytest.mark.parametrize("has_bar", [False, True])
def test_of_torch_checkpointing(bucket, uri, told, state, has_bar):
    """The storage of torch_checkpointing tells of each file that the library writes."""
    storage_config = S3StorageConfig(s3client_config=CONFIG, on_upload=told.append, progress=has_bar)
    config = CheckpointManager.Config(storage_config=storage_config, save=SyncCheckpointSaverConfig())
    items = {"model": {"a": state["a"]}, "step": state["step"]}
    estimate = estimate_of_manager(config, items)
    assert told == []
    manager = CheckpointManager(config)
    manager.save(uri, items)
    client = S3Client(s3client_config=CONFIG)
    _check(told, estimate, client, sum(each.requests for each in told))
    assert len(told) == 2
    into = {"model": {"a": torch.zeros_like(state["a"])}, "step": 0}
    assert torch.equal(manager.load(uri, into=into)["model"]["a"], state["a"])
    manager.close()


def test_a_file_of_torch_checkpointing(uri, told):
    """A file is told once it is closed, and not at all if it is not stored."""
    storage = S3StorageConfig(s3client_config=CONFIG, on_upload=told.append).create_storage()
    with storage.stream_write(f"{uri}/file") as file:
        file.write(b"abc")
        assert told == []
    file.close()
    assert [(each.size, each.requests) for each in told] == [(3, 1)]
    with contextlib.suppress(ZeroDivisionError), storage.stream_write(f"{uri}/other") as file:
        file.write(b"abc")
        raise ZeroDivisionError
    assert not storage.exists(f"{uri}/other")
    assert len(told) == 1
    with pytest.raises(ArgumentTypeError, match="on_upload"):
        S3StorageConfig(on_upload=5)
    with pytest.raises(ArgumentTypeError, match="storage_config"):
        estimate_of_manager(CheckpointManager.Config(), {})


def test_retries_of_parts_are_told(told):
    """Parts that ranks had to send again are among the requests, and told apart."""
    with FaultyServer() as server:
        server.script(faults.on("UploadPart", fault=faults.status(503, "SlowDown")))
        config = replace(server.config, part_size=5 * MiB)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        save_sharded(
            {"a": torch.zeros(6 * MiB, dtype=torch.uint8)}, "s3://bucket/key", client=client, on_upload=told.append
        )
    assert [(each.requests, each.retries) for each in told] == [(4, 1)]


def test_retries_are_told(told):
    """What had to be sent again is among the requests, and told apart."""
    with FaultyServer() as server:
        server.script(faults.status(503, "SlowDown"))
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        checkpoint.save({"a": 1}, "s3://bucket/key", on_upload=told.append)
    assert [(each.requests, each.retries) for each in told] == [(2, 1)]


def test_what_is_not_stored_is_not_told(told):
    """A save that fails tells nothing."""
    with FaultyServer() as server:
        server.script(faults.status(403, "AccessDenied"))
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        with pytest.raises(AccessDeniedError):
            checkpoint.save({"a": 1}, "s3://bucket/key", on_upload=told.append)
    assert told == []


def _fail(stats: UploadStats) -> None:
    raise ValueError(f"no note of {stats.key}")


def test_a_listener_that_fails(uri, caplog):
    """What on_upload raises is logged; the checkpoint is there, also where several objects are one."""
    S3Checkpoint().save(SMALL, uri, on_upload=_fail)
    dcp.save(SMALL, storage_writer=S3StorageWriter(None, f"{uri}-dcp", on_upload=_fail), no_dist=True)
    save_file({"a": SMALL["a"], "b": torch.ones(9)}, f"{uri}-shards", max_shard_size=9, on_upload=_fail)
    assert caplog.text.count("on_upload failed for") == 5
    assert torch.equal(S3Checkpoint().load(uri)["a"], SMALL["a"])
    assert torch.equal(load_file(f"{uri}-shards.index.json")["a"], SMALL["a"])


def test_bars(uri, capsys):
    """Who asks for a bar gets one, of all that is written; nobody else does."""

    class Bar:
        def __init__(self) -> None:
            self.total: int | None = None
            self.n = 0

        def update(self, count: int) -> None:
            self.n += count

    bars: dict[bool | None, Bar] = {}

    def new(what: str, total: int | None, *, is_wanted: bool | None) -> Any:
        return contextlib.nullcontext(bars.setdefault(is_wanted, Bar()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3torch.checkpoint.saving.new_byte_bar", new)
        patch.setattr("s3torch.checkpoint.dcp.writer.new_byte_bar", new)
        S3LightningCheckpoint(progress=True).save_checkpoint(LARGE, uri)
        assert bars[True].n == bars[True].total == S3Checkpoint().estimate(LARGE).size
        bars.clear()
        S3LightningCheckpoint().save_checkpoint(LARGE, uri)
        assert list(bars) == [False]
        bars.clear()
        writer = S3StorageWriter(None, f"{uri}-dcp", thread_count=2, progress=True)
        dcp.save(LARGE, storage_writer=writer, no_dist=True)
        assert bars[True].n == writer.estimate(LARGE).size
        bars.clear()
        dcp.save(LARGE, storage_writer=S3StorageWriter(None, f"{uri}-dcp2"), no_dist=True)
        assert bars[False].n == 0
        for module in ("safetensors.save_sharded", "dcp.hugging_face", "torch_checkpointing.watched"):
            patch.setattr(importlib.import_module(f"s3torch.checkpoint.{module}"), "new_byte_bar", new)
        tensors = {"a": LARGE["a"], "b": LARGE["b"]}
        bars.clear()
        save_sharded(tensors, f"{uri}-shards", progress=True)
        assert bars[True].n == estimate_sharded(tensors).size
        bars.clear()
        writer = S3HuggingFaceStorageWriter(None, f"{uri}-hf", progress=True)
        dcp.save(tensors, storage_writer=writer, no_dist=True)
        index = S3Client().head_object(*parse_s3_uri(f"{uri}-hf/model.safetensors.index.json")).size
        assert bars[True].n == writer.estimate(tensors, no_dist=True).size - index
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "is_known", "requests"),
    [
        (0, True, 1),
        (5, True, 1),
        (6, True, 4),
        (15, True, 5),
        (0, False, 1),
        (5, False, 1),
        (6, False, 4),
        (5 * 300 + 10, False, 303),
        (5 * 300 + 11, False, 304),
    ],
)
def test_arithmetic(size, is_known, requests):
    """One request for what fits into a part; else its parts, which grow if the size is not known, and two more."""
    assert estimate_upload(size, 5, is_known=is_known) == UploadEstimate(size=size, objects=1, requests=requests)


def test_a_thread_counts_its_own(bucket, uri, told):
    """Requests of other threads, through the same client, are not counted."""
    checkpoint = S3Checkpoint(s3client_config=CONFIG)
    _known(checkpoint._client, bucket)
    threads = [
        threading.Thread(target=checkpoint.save, args=(LARGE, f"{uri}-{number}"), kwargs={"on_upload": told.append})
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.requests for each in told] == [checkpoint.estimate(LARGE).requests] * 2
