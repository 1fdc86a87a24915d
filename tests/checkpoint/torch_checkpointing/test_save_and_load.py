"""Checkpoints of one process: beside those that the library keeps in local folders, on the same states."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import random
import signal
from pathlib import Path

import pytest
import torch
from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointManager, ItemSpec, SyncCheckpointSaverConfig
from torch_checkpointing.checkpoint_layout import (
    JsonSerialization,
    LayoutInfo,
    RawSerialization,
    SafetensorsSerialization,
)
from torch_checkpointing.checkpoint_loader import CheckpointLoader
from torch_checkpointing.checkpoint_manager import _DictCheckpoint
from torch_checkpointing.checkpoint_reader import CheckpointReader
from torch_checkpointing.checkpoint_writer import CallbackArgs, CheckpointWriterConfig
from torch_checkpointing.default_resharder import DefaultResharder
from torch_checkpointing.schema import _CheckpointSchema
from torch_checkpointing.storage.base_storage import ReadArgs
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
from torch_checkpointing.types import RankInfo

from s3torch.checkpoint import clean as clean_uploads
from s3torch.checkpoint import keep_last, latest, mark_complete
from s3torch.errors import ObjectChangedError, ObjectExistsError
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.objects import operation_of
from s3torch.torch_checkpointing import S3StorageConfig, clean, native_fill
from tests.checkpoint.torch_checkpointing.states import blank, random_state, same
from tests.conftest import MiB

pytestmark = pytest.mark.usefixtures("s3")

RANK = RankInfo(global_world_size=1, global_rank=0, role_rank=0, role_world_size=1)


@pytest.fixture
def run(bucket, prefix) -> str:
    """A folder of checkpoints that no other test uses."""
    return f"s3://{bucket}/{prefix}run"


@pytest.fixture
def manage():
    """Makes managers, which are closed: ``manage(storage_config, save=..., ...)``; None keeps local folders."""
    made: list[CheckpointManager] = []

    def manage(storage_config: object = None, **options: object) -> CheckpointManager:
        options.setdefault("save", SyncCheckpointSaverConfig())
        storage_config = storage_config or LocalFileSystemStorageConfig(use_direct_io=False)
        config = CheckpointManager.Config(storage_config=storage_config, **options)
        made.append(CheckpointManager(config))
        return made[-1]

    yield manage
    for manager in made:
        manager.close()


def load_filled(path: str, into: dict[str, object], config: S3StorageConfig) -> object:
    """Load through ``native_fill``, as a program does that wants it."""
    reader = CheckpointReader(RANK, config, mmap_fill_factory=native_fill)
    checkpoint = _DictCheckpoint(_CheckpointSchema().build_items(into, rank=0))
    CheckpointLoader(reader).load(path, checkpoint)
    return checkpoint.result


@pytest.mark.parametrize("seed", range(12))
def test_random_states(manage, run, tmp_path, seed):
    """Whatever the state, it loads as it does from a local folder: as it is, in place, and through the fill."""
    state = random_state(random.Random(seed))
    here, there = manage(), manage(S3StorageConfig())
    here.save(str(tmp_path / "step-1"), copy.deepcopy(state))
    there.save(f"{run}/step-1", copy.deepcopy(state))
    nothing = dict.fromkeys(state)
    expected = here.load(str(tmp_path / "step-1"), into=nothing)
    assert same(there.load(f"{run}/step-1", into=nothing), expected)
    assert same(load_filled(f"{run}/step-1", nothing, S3StorageConfig()), expected)
    expected = here.load(str(tmp_path / "step-1"), into=blank(state))
    into = blank(state)
    assert same(there.load(f"{run}/step-1", into=into), expected)
    tensors = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    assert same({name: into[name] for name in tensors}, {name: expected[name] for name in tensors})
    assert same(load_filled(f"{run}/step-1", blank(state), S3StorageConfig()), expected)


def test_formats(manage, run, tmp_path):
    """Files of all formats, in folders too, come back as from a local folder."""
    items = {
        "model": ItemSpec(layout=LayoutInfo("weights/model.safetensors", SafetensorsSerialization())),
        "config": ItemSpec(layout=LayoutInfo("config.json", JsonSerialization(dict))),
        "raw": ItemSpec(layout=LayoutInfo("raw/{rank}.bin", RawSerialization())),
        "rest": ItemSpec(),
    }
    state = {
        "model": {"weight": torch.arange(100.0).reshape(10, 10), "bias": torch.ones(3, dtype=torch.bfloat16)},
        "config": {"layers": 3, "name": "ä"},
        "raw": bytes(range(256)) * 100,
        "rest": [torch.ones(2), "x"],
    }
    loaded = []
    for manager, path in ((manage(items=items), tmp_path / "s"), (manage(S3StorageConfig(), items=items), f"{run}/s")):
        manager._saver._writer._storage.mkdir(Path(path).parent)
        manager.save(str(path), state)
        storage = manager._reader._storage
        assert storage.exists(Path(path))
        assert sorted(storage.ls(Path(path))) == ["config.json", "raw", "rest_0.pt", "weights"]
        assert storage.ls(Path(path) / "weights") == ["model.safetensors"]
        loaded.append(manager.load(str(path), into=blank(state)))
    assert same(*loaded)
    assert same(loaded[1]["model"], state["model"])


def test_a_path_is_as_good_as_a_uri(manage, run):
    """``Path("s3://bucket/key")``, which has one slash, leads to the same place wherever a path is taken."""
    manager = manage(S3StorageConfig())
    manager.save(Path(f"{run}/step-1"), {"x": torch.ones(3)})
    assert torch.equal(manager.load(Path(f"{run}/step-1"), into={"x": None})["x"], torch.ones(3))
    assert torch.equal(manager.load(f"{run}/step-1", into={"x": None})["x"], torch.ones(3))
    storage = S3StorageConfig().create_storage()
    for path in (Path(f"{run}/step-1"), f"{run}/step-1", f"{run}/step-1/"):
        assert storage.exists(path)
        assert storage.isdir(path)
        assert storage.ls(path) == ["x_0.pt"]
        assert storage.remap_path(path) == f"{run}/step-1"
    assert storage.glob(str(Path(run) / "step-*")) == [str(Path(run) / "step-1")]
    assert storage.glob(f"{run}/step-*") == [f"{run}/step-1"]


def test_requests(manage):
    """A commit is one PUT, on a condition, and nothing is copied; a load asks for the marker and each file, once."""
    with FaultyServer() as server:
        manager = manage(S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config))
        state = {"model": {"w": torch.arange(1000.0)}, "optimizer": [torch.ones(5)], "step": 3}
        manager.save("s3://bucket/run/step-1", state)
        writes = [request for request in server.requests if request.method in ("PUT", "POST", "DELETE")]
        assert [operation_of(request) for request in writes] == ["PutObject"] * 4
        assert [server.objects.key_of(request) for request in writes][-1] == "run/step-1/_COMPLETE"
        assert [request.headers.get("if-none-match") for request in writes] == [None, None, None, "*"]
        assert len(server.objects) == 4
        begin = len(server.requests)
        assert manager.load("s3://bucket/run/step-1", into=blank(state))["step"] == 3
        assert [operation_of(request) for request in server.requests[begin:]] == ["GetObject"] * 4


def test_an_answer_that_is_lost(manage):
    """Where the marker was stored, and the answer lost, the checkpoint is there, and saving it is no error."""
    with FaultyServer() as server:
        manager = manage(S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config))
        server.script(faults.on("PutObject", fault=faults.none()), faults.on("PutObject", fault=faults.answer_lost()))
        manager.save("s3://bucket/run/step-1", {"x": 1})
        assert server.injected["answer_lost"] == 1
        assert manager.load("s3://bucket/run/step-1", into={"x": 0}) == {"x": 1}


def test_one_head_a_file():
    """A file that no marker names is asked for by one HEAD, however the library goes about it."""
    with FaultyServer({"folder/file": b"content"}) as server:
        storage = S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config).create_storage()
        path = Path("s3://bucket/folder/file")
        assert storage.exists(path)
        assert storage.getsize(path) == 7
        assert storage.read(path, ReadArgs(known_size_bytes=7)) == b"content"
        assert bytes(memoryview(storage.mmap_fill(7, path, 1, 1))) == b"content"
        assert [operation_of(request) for request in server.requests].count("HeadObject") == 1
        server.objects["folder/file"] = b"another"
        with pytest.raises(ObjectChangedError):
            storage.read(path)
        storage.write(path, b"a third")
        assert storage.read(path) == b"a third"


def test_a_name_is_not_saved_twice(manage, run, tmp_path):
    """What is complete stays as it is: a second save of its name fails as it does in a local folder."""
    for manager, path in ((manage(), str(tmp_path / "s")), (manage(S3StorageConfig()), f"{run}/s")):
        manager.save(path, {"x": torch.ones(3)})
        with pytest.raises(FileExistsError):
            manager.save(path, {"x": torch.zeros(3), "y": 1})
        assert torch.equal(manager.load(path, into={"x": None})["x"], torch.ones(3))
        storage = manager._reader._storage
        assert storage.ls(Path(path)) == ["x_0.pt"]
        storage.rmdir(Path(path))
        assert not storage.exists(Path(path))
        manager.save(path, {"x": torch.zeros(3)})
        assert torch.equal(manager.load(path, into={"x": None})["x"], torch.zeros(3))


def test_what_is_left_is_cleaned(manage, run, bucket, prefix, client):
    """What never became a checkpoint is seen by nobody; ``clean`` deletes it, and so does the next save of its name."""

    def keys() -> list[str]:
        return [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info]

    manager = manage(S3StorageConfig())
    manager.save(f"{run}/step-1", {"x": 1})
    kept = keys()
    S3StorageConfig().create_storage().write(f"{run}/tmp_step-1/x_0.pt", b"left")
    S3StorageConfig().create_storage().write(f"{run}/tmp_step-2/x_0.pt", b"left")
    assert len(keys()) == 4
    storage = S3StorageConfig().create_storage()
    assert storage.ls(run) == ["step-1"]
    assert not storage.exists(f"{run}/step-2")
    assert not storage.exists(f"{run}/tmp_step-2")
    assert latest(run) == f"{run}/step-1"
    assert clean(run) == []  # younger than a day
    assert len(clean(run, older_than=0, dry_run=True)) == 2
    assert len(keys()) == 4
    manager.save(f"{run}/step-2", {"x": 2})
    assert len(keys()) == 5
    assert len(clean(Path(run), older_than=0)) == 1
    assert clean(run, older_than=0) == []
    assert manager.load(f"{run}/step-1", into={"x": 0}) == {"x": 1}
    assert manager.load(f"{run}/step-2", into={"x": 0}) == {"x": 2}
    assert keep_last(run, 1) == [f"{run}/step-1"]
    assert set(kept).isdisjoint(keys())


def test_parts_of_files_are_cleaned(manage, run, bucket, prefix, client):
    """Uploads of a killed save are aborted by ``clean`` and by the next save of its name, and no others are."""

    def leave(key: str) -> None:
        # One that resumes leaves its parts when it is interrupted, as any does that is killed.
        with contextlib.suppress(KeyboardInterrupt), client.put_object(bucket, key, resume=True) as writer:
            writer.write(bytes(17 * MiB))
            raise KeyboardInterrupt

    def left() -> list[str]:
        return sorted(upload.key for upload in client.list_multipart_uploads(bucket, prefix))

    other = f"{prefix}run/other"
    ours = [f"{prefix}run/step-{number}/.save-{7:016x}/{8:024x}/x_0.pt" for number in (1, 2)]
    for key in (other, *ours):
        leave(key)
    assert left() == sorted([other, *ours])
    assert clean(run) == []
    manage(S3StorageConfig()).save(f"{run}/step-1", {"x": 1})
    assert left() == sorted([other, ours[1]])
    assert clean(run, older_than=0) == [f"s3://{bucket}/{ours[1]}"]
    assert left() == [other]
    clean_uploads(run, older_than=0)
    assert left() == []


def test_in_the_background(manage, run):
    """A background process, which is spawned, makes its client by itself; what changes meanwhile changes nothing."""
    manager = manage(S3StorageConfig(), save=AsyncCheckpointSaverConfig())
    state = {"model": {"w": torch.arange(300_000.0)}, "step": torch.tensor(3)}
    future = manager.save(f"{run}/step-1", state)
    with manager.lock():
        state["model"]["w"].zero_()
    future.result(120)
    into = {"model": {"w": torch.zeros(300_000)}, "step": torch.tensor(0)}
    manager.load(f"{run}/step-1", into=into)
    assert torch.equal(into["model"]["w"], torch.arange(300_000.0))
    assert into["step"] == 3
    with pytest.raises(ObjectExistsError, match="complete checkpoint already"):
        manager.save(f"{run}/step-1", state).result(120)
    manager._write_future = None  # its failure was looked at


def test_a_background_process_that_is_killed(manage, run):
    """Its save fails, and is not there; what was saved before is, and a new process saves under the same name."""
    manager = manage(S3StorageConfig(), save=AsyncCheckpointSaverConfig())
    state = {"weight": torch.ones(4 * MiB)}
    manager.save(f"{run}/step-1", state).result(120)
    process = manager._saver._checkpoint_process.process.processes[0]
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not get through before
    future = manager.save(f"{run}/step-2", state)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises((EOFError, OSError, RuntimeError)):
        future.result(120)
    manager._write_future = None
    manager = manage(S3StorageConfig())
    assert not manager._reader._storage.exists(f"{run}/step-2")
    assert torch.equal(manager.load(f"{run}/step-1", into={"weight": None})["weight"], state["weight"])
    manager.save(f"{run}/step-2", state)
    assert torch.equal(manager.load(f"{run}/step-2", into={"weight": None})["weight"], state["weight"])
    assert clean(run, older_than=0) == []


def test_resharding_by_one_rank(manage, run, tmp_path):
    """Slices are read from a stored file as from a local one, and without asking for its size."""
    items = {"model": ItemSpec(resharder=DefaultResharder())}
    state = {"model": {"w": torch.arange(3_000_000.0).reshape(3000, 1000), "b": torch.ones(7, dtype=torch.int16)}}
    for manager, path in (
        (manage(items=items), str(tmp_path / "s")),
        (manage(S3StorageConfig(), items=items), f"{run}/s"),
    ):
        manager.save(path, state)
        loaded = manager.load(path, into=blank(state))
        assert same(loaded, state)
        assert "metadata.pkl" in manager._reader._storage.ls(path)


def test_without_a_temporary_folder(manage, run):
    """Where the library renames nothing, the files are plain objects, and ``latest`` knows them when that is said."""
    marked = []

    def mark(arguments: CallbackArgs) -> None:
        mark_complete(arguments.storage.remap_path(arguments.path))
        marked.append(arguments.path)

    save = SyncCheckpointSaverConfig(writer_config=CheckpointWriterConfig(write_to_temp_dir=False))
    manager = manage(S3StorageConfig(), save=save)
    manager.save(f"{run}/step-1", {"x": torch.ones(3)})
    assert torch.equal(manager.load(f"{run}/step-1", into={"x": None})["x"], torch.ones(3))
    assert latest(run) is None
    manager = manage(S3StorageConfig(), save=save, finalize_callback=mark)
    manager.save(f"{run}/step-2", {"x": torch.ones(3)})
    manager.save(f"{run}/step-2", {"x": torch.zeros(3)})
    assert len(marked) == 2
    assert torch.equal(manager.load(f"{run}/step-2", into={"x": None})["x"], torch.zeros(3))
    assert latest(run) == f"{run}/step-2"


def test_configuration_pickles(run):
    """A configuration that was pickled names the same save, as the process that gets it writes for this one."""
    config = S3StorageConfig(region="us-east-1", progress=False)
    copied = pickle.loads(pickle.dumps(config))
    assert copied == config
    copied.create_storage().write(f"{run}/tmp_s/x", b"abc")
    assert config.create_storage().exists(f"{run}/tmp_s")
    assert not S3StorageConfig().create_storage().exists(f"{run}/tmp_s")
