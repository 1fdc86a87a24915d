"""A Trainer with next to nothing to train, and fsspec's view of S3 without s3fs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from s3torch import S3Client

__all__ = ["FILE_SYSTEMS", "file_system_of_s3", "new_model", "new_trainer", "rows"]

FILE_SYSTEMS = importlib.import_module("fsspec.registry")._registry


class _Listing(fsspec.AbstractFileSystem):
    """As much of s3fs as ModelCheckpoint asks for: what is there. s3fs itself would hold botocore back."""

    protocol = "s3"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._client = S3Client()

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        found: dict[str, dict[str, Any]] = {}
        for page in self._client.list_objects(bucket, key):
            for each in page.object_info:
                below = each.key[len(key) :].lstrip("/")
                if each.key == key or not key or each.key.startswith(f"{key}/"):
                    name = f"{bucket}/{each.key[: len(each.key) - len(below)]}{below.partition('/')[0]}"
                    kind = "directory" if "/" in below else "file"
                    found[name] = {"name": name, "size": each.size, "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values() if detail else found)


@contextmanager
def file_system_of_s3() -> Iterator[None]:
    """What fsspec knows as s3: s3fs if it is installed."""
    if find_spec("s3fs") is not None:
        yield
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FILE_SYSTEMS, "s3", _Listing)
        yield


def new_model(pl: Any, losses: list[float]) -> Any:
    """Return a model whose loss is said to be ``losses[epoch]``."""

    class Model(pl.LightningModule):
        """Learns nothing much; says that its loss is ``losses[epoch]``."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.epochs: list[int] = []

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            return self.layer(batch).square().mean()

        def on_train_epoch_end(self) -> None:
            self.epochs.append(self.current_epoch)
            self.log("loss", losses[self.current_epoch])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    return Model()


def new_trainer(pl: Any, tmp_path: Path, epochs: int, plugin: Any, *callbacks: Any) -> Any:
    """Return a Trainer that says nothing."""
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=epochs,
        plugins=[plugin],
    )


def rows() -> DataLoader:
    """Return two batches of four rows."""
    return DataLoader(torch.arange(32.0).reshape(8, 4), batch_size=4)
