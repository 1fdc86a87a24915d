"""What each rank of a group of processes does in test_ranks.py and test_killed.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch_checkpointing import (
    AsyncCheckpointSaverConfig,
    CheckpointManager,
    DefaultMetadataManager,
    ItemSpec,
    SyncCheckpointSaverConfig,
    checkpoint_manager,
)
from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
from torch_checkpointing.default_resharder import DefaultResharder

from s3torch.torch_checkpointing import S3StorageConfig

MOST_SECONDS = 120


class _OnCpus(DefaultMetadataManager):
    """Gathers without a GPU; the library's own gathers on one, whatever the process group."""

    def _all_gather_pickled_data(self, data, process_group=None):
        gathered = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(gathered, data, group=process_group)
        return dict(enumerate(gathered))


def whole_tensors() -> dict[str, torch.Tensor]:
    """Return the tensors that are sharded, whole."""
    generator = torch.Generator().manual_seed(1)
    return {
        "rows": torch.randn(1031, 600, generator=generator),
        "columns": torch.randn(40, 53, generator=generator).to(torch.bfloat16),
        "few": torch.arange(3),  # fewer rows than ranks
        "same": torch.randn(5, generator=generator, dtype=torch.float64),
    }


_PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "few": Shard(0), "same": Replicate()}


def _state(*, blank: bool) -> dict[str, dict[str, object]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = {
        name: distribute_tensor(torch.zeros_like(each) if blank else each, mesh, [_PLACEMENTS[name]])
        for name, each in whole_tensors().items()
    }
    return {"model": model}


def new_manager(*, is_async: bool = False) -> CheckpointManager:
    """Return a manager that reshards."""
    checkpoint_manager.DefaultMetadataManager = _OnCpus
    patient = AsyncCheckpointSaverConfig(process_config=CheckpointProcessConfig(MOST_SECONDS))
    config = CheckpointManager.Config(
        items={"model": ItemSpec(resharder=DefaultResharder())},
        save=patient if is_async else SyncCheckpointSaverConfig(),
        storage_config=S3StorageConfig(),
    )
    return CheckpointManager(config)


def save(path: str, *, is_async: bool) -> None:
    """Save what ``load`` expects."""
    manager = new_manager(is_async=is_async)
    done = manager.save(path, _state(blank=False))
    if done is not None:
        done.result(MOST_SECONDS)
    dist.barrier()
    manager.close()


def load(path: str) -> dict[str, torch.Tensor]:
    """Load into zeros, in place; returns the tensors of all ranks, whole."""
    manager = new_manager()
    state = _state(blank=True)
    before = {name: each.to_local().data_ptr() for name, each in state["model"].items()}
    loaded = manager.load(path, into=state)
    found = {}
    for name, each in loaded["model"].items():
        assert isinstance(each, DTensor)
        assert each.to_local().data_ptr() == before[name]
        found[name] = each.full_tensor()
    manager.close()
    return found


def be_rank(rank: int, ranks: int, meeting: str, action: str, path: str) -> dict[str, torch.Tensor]:
    """Be one rank, which saves or loads; returns what was loaded."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # here, as the forkserver's environment is not the test's
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        if action == "load":
            return load(path)
        save(path, is_async=action == "save_async")
        return {}
    finally:
        dist.destroy_process_group()


def state_of(number: int, rank: int, size: int) -> dict[str, object]:
    """Return what a rank saves, of so many bytes; no two steps or ranks have the same."""
    weight = torch.arange(size // 8, dtype=torch.int64).add_(number * 1_000_003 + rank)
    return {"weight": weight, "number": number}


def sync_manager(rank: int = 0, **options: str) -> CheckpointManager:
    """Return a manager of a rank, in a group or alone, which saves at once."""
    manager = CheckpointManager(
        CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=S3StorageConfig(**options))
    )
    if not dist.is_initialized():  # reads what the rank of a group has saved
        manager._rank = manager._reader._rank_info.global_rank = rank
    return manager


def rank_path(folder: str, number: int) -> Path:
    """Return the file that says that a step has been begun."""
    return Path(folder) / str(number)


def save_steps(rank: int, ranks: int, folder: str, run: str, steps: range, size: int) -> None:
    """Save step after step; the file of a step is there when it begins."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    manager = sync_manager()
    for step in steps:
        state = state_of(step, rank, size)
        dist.barrier()
        rank_path(folder, step).touch()
        manager.save(f"{run}/step-{step}", state)
    dist.barrier()
    dist.destroy_process_group()
