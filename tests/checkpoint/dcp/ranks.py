"""What each rank of a group of processes does in test_ranks.py."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from s3torch.dcp import BinaryPrefixStrategy, S3StorageReader, S3StorageWriter

ROWS = 1030  # not a multiple of 2 or 3: the last rank has fewer


def expected() -> dict[str, torch.Tensor]:
    """Return the whole tensors that are saved."""
    generator = torch.Generator().manual_seed(1)
    return {
        "rows": torch.randn(ROWS, 600, generator=generator),
        "columns": torch.randn(40, 50, generator=generator),
        "bias": torch.randn(5, generator=generator),
    }


def _model(*, blank: bool) -> DistributedDataParallel:
    torch.manual_seed(0 if blank else 7)
    return DistributedDataParallel(nn.Linear(9, 4))


def _state(*, blank: bool) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = {name: torch.zeros_like(each) if blank else each for name, each in expected().items()}
    return {
        "rows": distribute_tensor(whole["rows"], mesh, [Shard(0)]),
        "columns": distribute_tensor(whole["columns"], mesh, [Shard(1)]),
        "bias": whole["bias"],
        "ddp": _model(blank=blank).state_dict(),
        "step": 0 if blank else 5,
    }


def save(path: str) -> None:
    """Save what ``load`` expects, and once more in the background."""
    options = {"prefix_strategy": BinaryPrefixStrategy(epoch_num=1), "thread_count": 2}
    dcp.save(_state(blank=False), storage_writer=S3StorageWriter(None, path, **options))
    dcp.async_save(_state(blank=False), storage_writer=S3StorageWriter(None, f"{path}-async", **options)).result()


def load(path: str) -> int:
    """Load into zeros, and compare with what was saved; returns how many bytes were received."""
    state = _state(blank=True)
    reader = S3StorageReader(None, path)
    dcp.load(state, storage_reader=reader)
    for name, whole in expected().items():
        loaded = state[name]
        assert torch.equal(loaded.full_tensor() if isinstance(loaded, DTensor) else loaded, whole), name
    for name, each in _model(blank=False).state_dict().items():
        assert torch.equal(state["ddp"][name], each), name
    assert state["step"] == 5
    return reader.fs.client.stats.bytes_received


def be_rank(rank: int, ranks: int, meeting: str, action: str, path: str) -> list[int]:
    """Be one rank, which saves or loads; returns how many bytes each load has received."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # here, as the forkserver's environment is not the test's
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        if action == "load":
            return [load(path), load(f"{path}-async")]
        save(path)
        return []
    finally:
        dist.destroy_process_group()
