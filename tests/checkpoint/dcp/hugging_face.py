"""What each rank does in the tests of Hugging Face checkpoints."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from s3torch.dcp import S3HuggingFaceStorageReader, S3HuggingFaceStorageWriter
from s3torch.errors import S3Error
from tests.checkpoint.group import NEVER

TIMEOUT = 60.0  # seconds that ranks wait for each other; more than a busy machine takes
ROWS = 4099  # times 600 floats: 9.8 MB


def whole() -> dict[str, torch.Tensor]:
    """Return the tensors that are saved."""
    generator = torch.Generator().manual_seed(5)
    return {
        "layers.0/rows": torch.randn(ROWS, 600, generator=generator),
        "columns": torch.randn(40, 5000, generator=generator),
        "half": torch.randn(77, 3, generator=generator).bfloat16(),
        "bias": torch.randn(5, generator=generator),
        "scalar": torch.tensor(1.5),
    }


def state(*, blank: bool) -> dict[str, torch.Tensor]:
    """Return what this rank has of them, or zeros."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensors = {name: torch.zeros_like(each) if blank else each for name, each in whole().items()}
    shards = {"layers.0/rows": Shard(0), "columns": Shard(1), "half": Shard(0)}
    return {
        name: distribute_tensor(each, mesh, [shards[name]]) if name in shards else each
        for name, each in tensors.items()
    }


def check(loaded: dict[str, torch.Tensor]) -> None:
    """Compare with what was saved."""
    for name, found in loaded.items():
        tensor = whole()[name]
        assert torch.equal(found.full_tensor() if isinstance(found, DTensor) else found, tensor), name


def save(rank: int, path: str, **options: Any) -> int:
    """Save with our writer; returns how many bytes were sent."""
    writer = S3HuggingFaceStorageWriter(None, path, group_timeout=TIMEOUT, **options)
    dcp.save(state(blank=False), storage_writer=writer)
    return writer.client.stats.bytes_sent


def save_async(rank: int, path: str) -> None:
    """Save in the background."""
    writer = S3HuggingFaceStorageWriter(None, path, group_timeout=TIMEOUT)
    dcp.async_save(state(blank=False), storage_writer=writer).result()


def load(rank: int, path: str, without: tuple[str, ...] = ()) -> int:
    """Load with our reader; returns how many bytes were received."""
    reader = S3HuggingFaceStorageReader(None, path)
    loaded = {name: each for name, each in state(blank=True).items() if name not in without}
    dcp.load(loaded, storage_reader=reader)
    check(loaded)
    return reader.client.stats.bytes_received


def load_rows(rank: int, path: str) -> int:
    """Load what is sharded by rows alone."""
    reader = S3HuggingFaceStorageReader(None, path)
    loaded = {name: each for name, each in state(blank=True).items() if name == "layers.0/rows"}
    dcp.load(loaded, storage_reader=reader)
    assert torch.equal(loaded["layers.0/rows"].full_tensor(), whole()["layers.0/rows"])
    return reader.client.stats.bytes_received


def save_with_torch(rank: int, folder: str) -> None:
    """Save to a folder, by torch's own writer, which consolidates."""
    writer = HuggingFaceStorageWriter(folder, save_distributed=True, enable_consolidation=True)
    dcp.save(state(blank=False), storage_writer=writer)


def load_with_torch(rank: int, folder: str) -> None:
    """Load from a folder, by torch's own reader."""
    loaded = state(blank=True)
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(folder))
    check(loaded)


def fail(rank: int, path: str, how: str, victim: int = 1) -> str:
    """Save what cannot be saved; returns what is said."""
    saved = state(blank=False)
    if how == "no tensor":
        saved["step"] = 5  # type: ignore[assignment]
    elif how == "meta":
        saved["bias"] = torch.zeros(5, device="meta")
    elif how == "unknown":
        saved["z"] = torch.zeros(5, dtype=torch.complex128)
    elif how == "refused" and rank == 1:
        from s3torch._objects import shared_upload

        def refuse(*_: object) -> None:
            raise OSError("no such luck")

        shared_upload.SharedUpload.send_part = refuse  # type: ignore[method-assign]
    elif how == "mapping":
        return _said(saved, S3HuggingFaceStorageWriter(None, path, {"bias": 1}, group_timeout=TIMEOUT))
    elif how == "killed" and rank == victim:
        from s3torch._objects import shared_upload

        shared_upload.SharedUpload.send_part = lambda *_: os._exit(9)  # type: ignore[method-assign]
    elif how == "hangs" and rank == victim:
        from s3torch._objects import shared_upload

        shared_upload.SharedUpload.send_part = _hang  # type: ignore[method-assign]
    timeout = {"hangs": 3.0, "killed": NEVER}.get(how, TIMEOUT)
    return _said(saved, S3HuggingFaceStorageWriter(None, path, group_timeout=timeout))


def _hang(*_: object) -> None:
    """Do nothing until the others have given up, and the test has ended; torch would wait for this rank till then."""
    store = distributed_c10d._get_default_store()
    store.wait(["given up"], timedelta(seconds=TIMEOUT))
    os._exit(9)


def _said(saved: dict[str, torch.Tensor], writer: S3HuggingFaceStorageWriter) -> str:
    try:
        dcp.save(saved, storage_writer=writer)
    except S3Error as error:  # of a rank that is gone
        distributed_c10d._get_default_store().set("given up", "1")
        return f"{type(error).__name__}: {error}"
    except CheckpointException as error:
        return str({rank: failure[0] for rank, failure in error.failures.items()})
    except RuntimeError as error:  # torch itself finds that a rank is gone
        return f"RuntimeError {error}"
    return "nothing was raised"
