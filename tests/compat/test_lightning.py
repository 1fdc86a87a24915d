"""Lightning's Trainer in programs of s3torchconnector: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO

from tests.compat.connector import importable
from tests.support.trainer import file_system_of_s3, new_model, new_trainer, rows

with importable():
    from s3torchconnector import S3Checkpoint, S3Exception
    from s3torchconnector.lightning import S3LightningCheckpoint

pytestmark = pytest.mark.usefixtures("found", "file_system")

REGION = "us-east-1"


@pytest.fixture
def file_system() -> Iterator[None]:
    """What fsspec knows as s3, which ModelCheckpoint asks what is there."""
    with file_system_of_s3():
        yield


@pytest.fixture
def folder(bucket, prefix) -> str:
    """A URI under which no other test saves."""
    return f"s3://{bucket}/{prefix}run"


@pytest.fixture
def names(client, bucket, prefix) -> Callable[[], list[str]]:
    """Returns the names of the objects in that folder."""

    def names() -> list[str]:
        pages = client.list_objects(bucket, prefix)
        return sorted(info.key.removeprefix(f"{prefix}run/") for page in pages for info in page.object_info)

    return names


def _plugin(is_async: bool) -> CheckpointIO:
    plugin = S3LightningCheckpoint(region=REGION)
    return AsyncCheckpointIO(plugin) if is_async else plugin


@pytest.mark.parametrize("is_async", [False, True])
def test_top_k(tmp_path: Path, folder, names, is_async: bool):
    """ModelCheckpoint leaves the best two of four and the last in S3, and deletes the others."""
    best = ModelCheckpoint(dirpath=folder, filename="{epoch}", monitor="loss", save_top_k=2, save_last=True)
    trainer = new_trainer(pl, tmp_path, 4, _plugin(is_async), best)
    trainer.fit(new_model(pl, [3.0, 1.0, 4.0, 2.0]), rows())
    assert names() == ["epoch=1.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert best.best_model_path == f"{folder}/epoch=1.ckpt"


@pytest.mark.parametrize("is_async", [False, True])
def test_resume(tmp_path: Path, folder, is_async: bool):
    """A Trainer goes on where another has saved, with its weights and its optimizer."""
    path = f"{folder}/model.ckpt"
    model = new_model(pl, [0.0] * 4)
    trainer = new_trainer(pl, tmp_path, 2, _plugin(is_async))
    trainer.fit(model, rows())
    trainer.save_checkpoint(path)
    trainer.strategy.teardown()  # waits for what is saved in the background
    resumed = new_model(pl, [0.0] * 4)
    trainer = new_trainer(pl, tmp_path, 4, _plugin(is_async))
    trainer.fit(resumed, rows(), ckpt_path=path)
    assert resumed.epochs == [2, 3]
    assert trainer.global_step == 8
    with S3Checkpoint(region=REGION).reader(path) as reader:
        assert torch.equal(torch.load(reader)["state_dict"]["layer.weight"], model.layer.weight.detach())


def test_example(folder, names):
    """Saved and loaded by hand, with and without a device, and removed, twice."""
    plugin = S3LightningCheckpoint(region=REGION)
    assert isinstance(plugin, CheckpointIO)
    path = f"{folder}/model.ckpt"
    plugin.save_checkpoint({"weight": torch.arange(1000.0), "step": 7}, path, storage_options={"any": "thing"})
    for where in ({}, {"map_location": "cpu"}, {"weights_only": True}):
        loaded = plugin.load_checkpoint(path, **where)
        assert torch.equal(loaded["weight"], torch.arange(1000.0))
        assert loaded["step"] == 7
    assert plugin.load_checkpoint(path, map_location="meta")["weight"].is_meta
    for _ in range(2):
        plugin.remove_checkpoint(path)
        assert names() == []
    plugin.teardown()


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda plugin: plugin.load_checkpoint("s3://tests/no"), S3Exception, "Service error: The key does not exist"),
        (lambda plugin: plugin.load_checkpoint("tests/no"), ValueError, "Only s3:// URIs are supported"),
        (lambda plugin: plugin.save_checkpoint({}, "tests/no"), ValueError, "Only s3:// URIs are supported"),
        (lambda plugin: plugin.remove_checkpoint("s3:///no"), ValueError, "Bucket name must be non-empty"),
        *[
            (
                lambda plugin, name=name: getattr(plugin, name)(
                    *([{}] if name == "save_checkpoint" else []), Path("a")
                ),
                TypeError,
                "'PosixPath' is not a supported type for 'path'. Must be a string formatted as an S3 uri.",
            )
            for name in ("load_checkpoint", "save_checkpoint", "remove_checkpoint")
        ],
    ],
)
def test_bad_paths(act: Callable[[Any], object], error: type[Exception], message: str):
    """What is missing or no URI is refused by the same types and texts."""
    with pytest.raises(error, match=f"^{message}"):
        act(S3LightningCheckpoint(region=REGION))
