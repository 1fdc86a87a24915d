"""S3LightningCheckpoint: Trainers of both packages keep their checkpoints in S3."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pytorch_lightning")

from s3torch import S3ClientConfig
from s3torch.checkpoint import lightning as ours
from s3torch.errors import (
    AccessDeniedError,
    ArgumentTypeError,
    CheckpointFormatError,
    InvalidURIError,
    ObjectNotFoundError,
    S3Error,
)
from s3torch.lightning import S3LightningCheckpoint
from s3torch.testing import FaultyServer, faults
from tests.support.trainer import FILE_SYSTEMS, file_system_of_s3, new_model, new_trainer, rows

pytestmark = pytest.mark.usefixtures("s3", "file_system")

MiB = 1024 * 1024


@pytest.fixture
def file_system() -> Iterator[None]:
    """What fsspec knows as s3."""
    with file_system_of_s3():
        yield


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request) -> Any:
    """Each of the packages that have a Trainer."""
    return importlib.import_module(request.param)


@pytest.fixture
def folder(bucket, prefix) -> str:
    """A URI that no other test uses, without a slash at its end."""
    return f"s3://{bucket}/{prefix}run"


@pytest.fixture
def keys(client, bucket, prefix):
    """Returns the names of the objects in ``folder``."""

    def keys() -> list[str]:
        start = len(f"{prefix}run/")
        return [info.key[start:] for page in client.list_objects(bucket, prefix) for info in page.object_info]

    return keys


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A server that fails as it is told to."""
    with FaultyServer({}, bucket="bucket") as server:
        yield server


def _plugin(server: FaultyServer) -> S3LightningCheckpoint:
    return S3LightningCheckpoint("us-east-1", server.config, server.endpoint)


# --- With a Trainer --------------------------------------------------------------------------------------------------


def test_top_k(pl, tmp_path, folder, keys):
    """ModelCheckpoint leaves the best two of four in S3, and nothing in the local folder."""
    best = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", monitor="loss", save_top_k=2)
    trainer = new_trainer(pl, tmp_path, 4, S3LightningCheckpoint(), best)
    trainer.fit(new_model(pl, [3.0, 1.0, 4.0, 2.0]), rows())
    assert keys() == ["epoch=1.ckpt", "epoch=3.ckpt"]
    assert best.best_model_path == f"{folder}/epoch=1.ckpt"
    assert list(tmp_path.iterdir()) == []


def test_resume(pl, tmp_path, folder):
    """``ckpt_path`` goes on with the epoch after the saved one, with the same weights and optimizer."""
    every = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    model = new_model(pl, [0.0] * 4)
    new_trainer(pl, tmp_path, 2, S3LightningCheckpoint(), every).fit(model, rows())

    unbroken = new_model(pl, [0.0] * 4)
    unbroken.load_state_dict(S3LightningCheckpoint().load_checkpoint(f"{folder}/epoch=1.ckpt")["state_dict"])
    assert torch.equal(unbroken.layer.weight, model.layer.weight)

    resumed = new_model(pl, [0.0] * 4)
    again = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = new_trainer(pl, tmp_path, 4, S3LightningCheckpoint(), again)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        trainer.fit(resumed, rows(), ckpt_path=f"{folder}/epoch=1.ckpt")
    assert resumed.epochs == [2, 3]
    assert trainer.global_step == 8
    assert [float(each["step"]) for each in trainer.optimizers[0].state.values()] == [8.0, 8.0]


def test_without_a_file_system(pl, tmp_path, folder, monkeypatch):
    """Saving by hand and resuming need no fsspec for S3; ModelCheckpoint does, and says so when it is made."""
    monkeypatch.delitem(FILE_SYSTEMS, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match="s3fs"):
        pl.callbacks.ModelCheckpoint(dirpath=folder)
    path = f"{folder}/model.ckpt"
    trainer = new_trainer(pl, tmp_path, 1, S3LightningCheckpoint())
    trainer.fit(new_model(pl, [0.0] * 2), rows())
    trainer.save_checkpoint(path)
    resumed = new_model(pl, [0.0] * 2)
    new_trainer(pl, tmp_path, 2, S3LightningCheckpoint()).fit(resumed, rows(), ckpt_path=path)
    assert resumed.epochs == [1]


def test_async(pl, tmp_path, folder, keys):
    """Wrapped in AsyncCheckpointIO, checkpoints are saved by another thread, and are all there when fit returns."""
    threads: set[int] = set()

    class Seen(S3LightningCheckpoint):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            threads.add(threading.get_ident())
            super().save_checkpoint(*args, **kwargs)

    plugins = importlib.import_module(f"{pl.__name__}.plugins.io")
    every = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = new_trainer(pl, tmp_path, 3, plugins.AsyncCheckpointIO(Seen()), every)
    trainer.fit(new_model(pl, [0.0] * 4), rows())
    assert keys() == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert S3LightningCheckpoint().load_checkpoint(f"{folder}/epoch=2.ckpt")["epoch"] == 2


def test_async_failure(pl, tmp_path, folder, faulty):
    """What fails in the thread of AsyncCheckpointIO is raised by fit, as the error that it was."""
    faulty.rates({faults.status(403, "AccessDenied"): 1.0})
    plugins = importlib.import_module(f"{pl.__name__}.plugins.io")
    every = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = new_trainer(pl, tmp_path, 2, plugins.AsyncCheckpointIO(_plugin(faulty)), every)
    with pytest.raises(AccessDeniedError, match="is forbidden"):
        trainer.fit(new_model(pl, [0.0] * 2), rows())


@pytest.mark.skipif(max(ours._INSTALLED.values()) < (2, 6), reason="fit has no weights_only before Lightning 2.6")
def test_weights_only_of_fit(pl, tmp_path, folder):
    """``fit(weights_only=False)`` resumes from a checkpoint that holds more than weights, which is refused unasked."""
    path = f"{folder}/model.ckpt"
    first = new_model(pl, [0.0] * 2)
    first.on_save_checkpoint = lambda checkpoint: checkpoint.update(code=_Code())
    trainer = new_trainer(pl, tmp_path, 1, S3LightningCheckpoint())
    trainer.fit(first, rows())
    trainer.save_checkpoint(path)
    resumed = new_model(pl, [0.0] * 2)
    with pytest.raises(pickle.UnpicklingError, match="_Code"):
        new_trainer(pl, tmp_path, 2, S3LightningCheckpoint()).fit(resumed, rows(), ckpt_path=path)
    new_trainer(pl, tmp_path, 2, S3LightningCheckpoint()).fit(resumed, rows(), ckpt_path=path, weights_only=False)
    assert resumed.epochs == [1]


def test_tuner(pl, tmp_path, keys):
    """The state that a Tuner restores stays on the local disk, and is gone when it is done."""
    model = new_model(pl, [0.0] * 9)
    model.lr = 1e-3
    before = model.layer.weight.detach().clone()
    tuner = importlib.import_module(f"{pl.__name__}.tuner").Tuner(new_trainer(pl, tmp_path, 1, S3LightningCheckpoint()))
    tuner.lr_find(model, rows(), num_training=3, update_attr=False)
    assert torch.equal(model.layer.weight, before)
    assert keys() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_fabric(package, folder):
    """Fabric saves and loads by it as well."""
    fabric = importlib.import_module(package).Fabric(accelerator="cpu", plugins=S3LightningCheckpoint())
    saved, loaded = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    fabric.save(f"{folder}/fabric.ckpt", {"model": saved, "step": 3})
    state = {"model": loaded, "step": 0}
    fabric.load(f"{folder}/fabric.ckpt", state)
    assert state["step"] == 3
    assert torch.equal(loaded.weight, saved.weight)


# --- By itself -------------------------------------------------------------------------------------------------------


def test_of_both_packages():
    """It is a CheckpointIO of each package, as each Trainer looks for its own."""
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        base = importlib.import_module(f"{package}.plugins").CheckpointIO
        assert isinstance(S3LightningCheckpoint(), base)


def test_round_trip(folder):
    """What was saved is loaded, and replaced by what is saved next."""
    plugin = S3LightningCheckpoint()
    for number in range(2):
        plugin.save_checkpoint({"number": number, "weight": torch.arange(1000.0)}, f"{folder}/model.ckpt")
    loaded = plugin.load_checkpoint(f"{folder}/model.ckpt", map_location="cpu")
    assert loaded["number"] == 1
    assert torch.equal(loaded["weight"], torch.arange(1000.0))
    meta = plugin.load_checkpoint(f"{folder}/model.ckpt", map_location=torch.device("meta"))
    assert meta["weight"].is_meta


def test_remove(folder, keys):
    """A removed checkpoint is gone; one that is not there, or is no more, is no error."""
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint({}, f"{folder}/model.ckpt")
    plugin.save_checkpoint({}, f"{folder}/model.ckpt2")
    for _ in range(2):
        plugin.remove_checkpoint(f"{folder}/model.ckpt")
        assert keys() == ["model.ckpt2"]
    with pytest.raises(ObjectNotFoundError, match=r"model\.ckpt does not exist"):
        plugin.load_checkpoint(f"{folder}/model.ckpt")


def test_remove_leaves_a_folder(folder, keys):
    """Removing a checkpoint deletes one object, whatever lies in a folder of its name."""
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint({}, f"{folder}/model.ckpt/rank-0")
    plugin.remove_checkpoint(f"{folder}/model.ckpt")
    assert keys() == ["model.ckpt/rank-0"]


def test_loads_to_the_cpu(monkeypatch, folder):
    """Tensors of a GPU are loaded to the CPU, as the Trainer expects; None asks for the device that they were on."""
    plugin = S3LightningCheckpoint()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    plugin.save_checkpoint({"weight": torch.arange(3.0)}, f"{folder}/model.ckpt")
    loaded = plugin.load_checkpoint(f"{folder}/model.ckpt")["weight"]
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded, torch.arange(3.0))
    with pytest.raises(RuntimeError, match="CUDA"):
        plugin.load_checkpoint(f"{folder}/model.ckpt", map_location=None)


@pytest.mark.parametrize("name", [".temp.ckpt", ".lr_find_1-2.ckpt", ".scale_batch_size_1-2.ckpt"])
def test_short_lived_files(tmp_path, name):
    """What Lightning itself hands from one process or moment to another is a local file, not a checkpoint in S3."""
    plugin = S3LightningCheckpoint()
    path = tmp_path / "new" / name
    plugin.save_checkpoint({"weight": torch.ones(3)}, str(path))
    assert torch.equal(plugin.load_checkpoint(str(path))["weight"], torch.ones(3))
    for _ in range(2):
        plugin.remove_checkpoint(str(path))
        assert not path.exists()


def test_teardown(folder):
    """After teardown it can be used again, as a Trainer does that fits twice."""
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint({"number": 1}, f"{folder}/model.ckpt")
    plugin.teardown()
    assert plugin.load_checkpoint(f"{folder}/model.ckpt") == {"number": 1}


class _Code:
    """Stands for whatever weights_only refuses."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code)

    __hash__ = None


@pytest.mark.parametrize(
    ("versions", "weights_only", "is_loaded"),
    [
        ({"lightning": (2, 5)}, None, True),
        ({"lightning": (2, 6)}, None, False),
        ({"lightning": (3, 0)}, None, False),
        ({"lightning": (2, 5), "lightning_fabric": (2, 6)}, None, False),
        ({"lightning": (2, 5)}, True, False),
        ({"lightning": (2, 6)}, False, True),
    ],
)
def test_weights_only(monkeypatch, folder, versions, weights_only, is_loaded):
    """Not said, it is False before Lightning 2.6, and what torch makes of it since: True."""
    monkeypatch.setattr(ours, "_INSTALLED", versions)
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint({"code": _Code()}, f"{folder}/model.ckpt")
    if is_loaded:
        assert plugin.load_checkpoint(f"{folder}/model.ckpt", weights_only=weights_only) == {"code": _Code()}
    else:
        with pytest.raises(pickle.UnpicklingError, match="_Code"):
            plugin.load_checkpoint(f"{folder}/model.ckpt", weights_only=weights_only)


def test_torch_is_asked(monkeypatch, folder):
    """Since Lightning 2.6 torch's own variables say what is loaded where nobody said it."""
    monkeypatch.setattr(ours, "_INSTALLED", {"lightning": (2, 6)})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    plugin = S3LightningCheckpoint()
    plugin.save_checkpoint({"code": _Code()}, f"{folder}/model.ckpt")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        assert plugin.load_checkpoint(f"{folder}/model.ckpt") == {"code": _Code()}


@pytest.mark.parametrize(("version", "release"), [("2.6.6", (2, 6)), ("2.10.0", (2, 10)), ("2.6.0rc1", (2, 6))])
def test_versions(version, release):
    """Versions are compared by their numbers."""
    assert ours._release(version) == release


# --- What is refused -------------------------------------------------------------------------------------------------


def _calls(plugin: S3LightningCheckpoint, path: object) -> list[Any]:
    return [
        lambda: plugin.save_checkpoint({}, path),
        lambda: plugin.load_checkpoint(path),
        lambda: plugin.remove_checkpoint(path),
    ]


@pytest.mark.parametrize(
    ("path", "name"), [(Path("/tmp/model.ckpt"), type(Path()).__name__), (None, "NoneType"), (b"s3://b/k", "bytes")]
)
def test_no_str(path, name):
    """A path that is no str is a TypeError, in the words of the other connector."""
    text = f"'{name}' is not a supported type for 'path'. Must be a string formatted as an S3 uri."
    for call in _calls(S3LightningCheckpoint(), path):
        with pytest.raises(TypeError, match=f"^{re.escape(text)}$") as caught:
            call()
        assert isinstance(caught.value, ArgumentTypeError)


@pytest.mark.parametrize(
    "path",
    [
        "model.ckpt",
        "/tmp/model.ckpt",
        "/tmp/.ckpt",
        "gs://bucket/.temp.ckpt",
        "s3:/bucket/model.ckpt",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/folder/",
    ],
)
def test_no_uri(path):
    """A path that lies elsewhere, or names no object, is refused with what was given."""
    for call in _calls(S3LightningCheckpoint(), path):
        with pytest.raises(InvalidURIError, match=f"got {path!r}"):
            call()


def test_storage_options(folder, keys):
    """Options that would be ignored are refused, and nothing is stored."""
    with pytest.raises(ArgumentTypeError, match=r"has no storage_options, got \{'acl': 'private'\}"):
        S3LightningCheckpoint().save_checkpoint({}, f"{folder}/model.ckpt", storage_options={"acl": "private"})
    assert keys() == []


@pytest.mark.parametrize("name", ["s3client_config", "region"])
def test_wrong_types(name):
    """An argument of a wrong type is refused by name."""
    with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
        S3LightningCheckpoint(**{name: 5})


def test_pickled(folder):
    """A plugin goes to another process as its configuration, after it was used, too."""
    plugin = S3LightningCheckpoint(s3client_config=S3ClientConfig(part_size=5 * MiB))
    plugin.save_checkpoint({"number": 1}, f"{folder}/model.ckpt")
    assert pickle.loads(pickle.dumps(plugin)).load_checkpoint(f"{folder}/model.ckpt") == {"number": 1}


def test_repr():
    """The repr shows where it saves; the attributes too."""
    plugin = S3LightningCheckpoint("eu-west-1", endpoint="http://host:9")
    assert repr(plugin) == "S3LightningCheckpoint(region='eu-west-1', endpoint='http://host:9')"
    assert (plugin.region, plugin.endpoint) == ("eu-west-1", "http://host:9")


_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
find = sys.meta_path[-1].find_spec
class Hides:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name in {hidden!r} else find(name, path, target)
for name in {hidden!r}:
    del sys.modules[name]
sys.meta_path[-1] = Hides
from s3torch.lightning import S3LightningCheckpoint
print([base.__module__ for base in S3LightningCheckpoint.__bases__])
"""


@pytest.mark.parametrize(
    ("hidden", "bases"),
    [
        pytest.param(
            *(["lightning_fabric", "pytorch_lightning"], "['lightning.fabric.plugins.io.checkpoint_io']"),
            marks=pytest.mark.soak,  # as where both are
        ),
        (["lightning"], "['lightning_fabric.plugins.io.checkpoint_io']"),
    ],
)
def test_one_package(hidden, bases):
    """Each of the packages is enough."""
    answer = _run_without(hidden)
    assert answer.stdout.strip() == bases, answer.stderr


def test_neither_package():
    """Without both the import says what to install."""
    answer = _run_without(["lightning", "lightning_fabric", "pytorch_lightning"])
    assert answer.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: s3torch.lightning needs lightning or pytorch_lightning, and neither is installed: "
        "pip install 's3torch[lightning]'"
    )


def _run_without(hidden: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(hidden=hidden)],
        env={"PYTHONPATH": str(Path(ours.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_faults_that_pass(faulty):
    """Errors of the server, resets and cut bodies are retried; every byte is the one that was saved."""
    weight = torch.arange(3 * MiB, dtype=torch.float32)
    plugin = _plugin(faulty)
    faulty.script(faults.status(500), faults.status(503), faults.reset_before_head)
    plugin.save_checkpoint({"weight": weight}, "s3://bucket/model.ckpt")
    faulty.script(faults.status(500), faults.truncate, faults.reset_mid_body)
    assert torch.equal(plugin.load_checkpoint("s3://bucket/model.ckpt")["weight"], weight)
    assert sum(faulty.injected.values()) >= 6
    faulty.script(faults.status(500))
    plugin.remove_checkpoint("s3://bucket/model.ckpt")
    assert faulty.objects == {}


@pytest.mark.parametrize("weights_only", [None, True])
def test_damage(monkeypatch, faulty, weights_only):
    """A damaged checkpoint is named, whoever decides what may be loaded."""
    monkeypatch.setattr(ours, "_INSTALLED", {"lightning": (2, 6)})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}")
        archive.writestr("model/version", b"3\n")
    faulty.objects["model.ckpt"] = content.getvalue()
    with pytest.raises(CheckpointFormatError, match=r"s3://bucket/model\.ckpt is no checkpoint"):
        _plugin(faulty).load_checkpoint("s3://bucket/model.ckpt", weights_only=weights_only)


def test_an_exception_leaves_the_previous(faulty):
    """What fails in the middle of a checkpoint leaves the one before, and no open upload."""
    plugin = _plugin(faulty)
    plugin.save_checkpoint({"number": 1}, "s3://bucket/model.ckpt")
    large = torch.zeros(12 * MiB, dtype=torch.uint8)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        plugin.save_checkpoint({"large": large, "function": lambda: None}, "s3://bucket/model.ckpt")
    assert plugin.load_checkpoint("s3://bucket/model.ckpt") == {"number": 1}
    assert faulty.objects.uploads == []


def test_an_outage_leaves_the_previous(faulty):
    """A server that goes on failing is an S3Error, and the checkpoint before it is still there."""
    config = dataclasses.replace(faulty.config, max_attempts=2)
    plugin = S3LightningCheckpoint("us-east-1", config, faulty.endpoint)
    plugin.save_checkpoint({"number": 1}, "s3://bucket/model.ckpt")
    faulty.rates({faults.on("UploadPart", "PutObject", fault=faults.status(500)): 1.0})
    with pytest.raises(S3Error):
        plugin.save_checkpoint({"large": torch.zeros(12 * MiB, dtype=torch.uint8)}, "s3://bucket/model.ckpt")
    faulty.rates({})
    assert plugin.load_checkpoint("s3://bucket/model.ckpt") == {"number": 1}


def test_user_agent(faulty):
    """The service is told that Lightning asks, and of which version."""
    _plugin(faulty).save_checkpoint({}, "s3://bucket/model.ckpt")
    major, minor = max(ours._INSTALLED.values())
    assert {request.headers["user-agent"].partition(" (")[2] for request in faulty.requests} == {
        f"lightning; {major}.{minor})"
    }
