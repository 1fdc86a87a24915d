"""Training engines that others wrote, with an S3DataLoader in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch import S3BatchSampler, S3DataLoader
from s3torch.errors import ArgumentError

_DATA: Dataset[int] = range(40)  # type: ignore[assignment]


class Noting(lightning.LightningModule):
    """Notes the samples of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """Note a batch."""
        self.seen.append((self.current_epoch, batch.flatten().tolist()))
        return self.layer(batch.float().view(-1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one that is quick."""
        return torch.optim.SGD(self.parameters(), 0.001)


def fit(folder: Path, resumed: int | None = None) -> list[tuple[int, list[int]]]:
    """Train three epochs of ten steps, or the rest of them from the checkpoint of a step; returns what was seen."""
    module = Noting()
    keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=resumed is None,
        callbacks=[] if resumed else [keep],
        default_root_dir=folder,
    )
    loader = S3DataLoader(_DATA, batch_size=4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=str(folder / f"step={resumed}.ckpt") if resumed else None, weights_only=False)
    return module.seen


@pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and where checkpoints lie
def test_lightning_resumes_by_its_own_checkpoints(tmp_path):
    """In the middle of an epoch, at its end, and behind it: the very next batch is next, with its epoch's number."""
    seen = fit(tmp_path)
    assert len(seen) == 30
    for epoch in range(3):
        assert sorted(sample for each, batch in seen if each == epoch for sample in batch) == list(range(40))
    for step in (4, 10, 11, 20, 29):
        assert fit(tmp_path, step) == seen[step:], step


@pytest.mark.filterwarnings("ignore")
def test_lightning_on_several_ranks_is_told_what_to_set(tmp_path):
    """Lightning would put its own sampler in: the error says how to keep it from that."""
    loader = S3DataLoader(_DATA, batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_notebook", logger=False, default_root_dir=tmp_path
    )
    with pytest.raises(ArgumentError, match=r"Trainer\(use_distributed_sampler=False\)"):
        trainer._data_connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING)


def stateful(batch_size: int = 4) -> StatefulDataLoader[torch.Tensor]:
    """Return torchdata's loader with our batches."""
    sampler = S3BatchSampler(_DATA, batch_size, shuffle=True, num_workers=2)
    return StatefulDataLoader(_DATA, batch_sampler=sampler, num_workers=2)


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")  # of torch, about torchdata
@pytest.mark.parametrize("batches", [0, 3, 9, 10])
def test_stateful_dataloader_carries_the_state(batches: int):
    """Its state is that of the batches that were received, though its workers read ahead."""
    loader = stateful()
    iterator = iter(loader)
    seen = [next(iterator).tolist() for _ in range(batches)]
    state = loader.state_dict()
    rest = [batch.tolist() for batch in iterator]
    assert sorted(sample for batch in seen + rest for sample in batch) == list(range(40))
    later = stateful()
    later.load_state_dict(state)
    assert [batch.tolist() for batch in later] == rest
    assert [batch.tolist() for batch in later] == [batch.tolist() for batch in loader]


class BaseDataLoader(Stateful, ABC):
    """What torchtitan asks of a loader: it goes on by its own state, and yields batches."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield batches."""


class OfTorchtitan(S3DataLoader[int], BaseDataLoader):
    """As a program of torchtitan makes one."""


@pytest.mark.filterwarnings("ignore")  # of torch, that nothing is distributed
def test_a_loader_of_torchtitan(tmp_path):
    """It is one by inheritance, and torch's distributed checkpoints carry its state as that of any Stateful."""
    loader = OfTorchtitan(_DATA, 4, shuffle=True)
    assert isinstance(loader, BaseDataLoader)
    assert isinstance(S3DataLoader(_DATA), Stateful)
    iterator = iter(loader)
    seen = [next(iterator).tolist() for _ in range(3)]
    dcp.save({"dataloader": loader}, checkpoint_id=tmp_path, no_dist=True)
    later = OfTorchtitan(_DATA, 5, shuffle=True)
    dcp.load({"dataloader": later}, checkpoint_id=tmp_path, no_dist=True)
    rest = [batch.tolist() for batch in later]
    assert sorted(sample for batch in seen + rest for sample in batch) == list(range(40))
    assert len(rest[0]) == 5
