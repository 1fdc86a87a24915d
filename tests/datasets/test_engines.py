"""Training engines that others wrote, with an S3DataLoader in them."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from s3torch import S3DataLoader


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
    loader = S3DataLoader(list(range(40)), batch_size=4, shuffle=True)  # type: ignore[arg-type]
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
