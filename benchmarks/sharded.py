"""The state dict of ``state``, sharded: each rank has a run of the rows of every tensor, as FSDP leaves them.

``python -m benchmarks.sharded FOLDER TENSORS SIZE`` is a rank that saves it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import INTERRUPTS
from benchmarks.ranks import RANKS, join, started_ranks
from benchmarks.site import KIB
from benchmarks.state import WARM_UP

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor

    Shards = dict[str, DTensor]

__all__ = ["SHARDED", "WARM_UP_LAYERS", "WARM_UP_SIZE", "check_shards", "make_shards", "rows", "write_sharded"]

SHARDED = "sharded"  # the checkpoint
WARM_UP_LAYERS = range(2)
WARM_UP_SIZE = 32 * KIB  # of each
_COLUMNS = 1024
_ROW = 4 * _COLUMNS  # bytes; they are float32
_WRITE_SECONDS = 300.0


def rows(rank: int, ranks: int, count: int) -> tuple[int, int]:
    """Return a rank's first row and the one after its last, as ``Shard(0)`` cuts them."""
    share = -(-count // ranks)
    return min(rank * share, count), min((rank + 1) * share, count)


def make_shards(layers: Iterable[int], size: int, *, is_blank: bool = False) -> Shards:
    """Return what this rank has of some tensors, in memory whose pages are all there.

    Args:
        layers: Their numbers.
        size: Of each whole tensor, in bytes, a multiple of 4 KiB; up to 64 MiB, as float32 counts no further.
        is_blank: Whether they are to be loaded into, and hold what no tensor holds.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    start, stop = rows(mesh.get_rank(), mesh.size(), size // _ROW)
    shape, stride = torch.Size((size // _ROW, _COLUMNS)), (_COLUMNS, 1)
    shards = {}
    for number in layers:
        local = torch.arange(start * _COLUMNS, stop * _COLUMNS, dtype=torch.float32) + number
        if is_blank:
            local.fill_(-1)
        local = local.view(-1, _COLUMNS)
        shards[_name(number)] = DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=stride)
    return shards


def check_shards(loaded: Mapping[str, DTensor], layers: Iterable[int], size: int) -> int:
    """Look at both ends of what this rank has of each tensor; returns how many bytes it has.

    Raises:
        AssertionError: What was loaded is not what ``make_shards`` makes.
    """
    import torch.distributed as dist

    start, stop = rows(dist.get_rank(), dist.get_world_size(), size // _ROW)
    received = 0
    for number in layers:
        local: torch.Tensor = loaded[_name(number)].to_local()
        found = *local.shape, float(local[0, 0]), float(local[-1, -1])
        if found != (stop - start, _COLUMNS, number + start * _COLUMNS, number + stop * _COLUMNS - 1):
            raise AssertionError(f"tensor {number} is not what was saved: shape, first and last are {found}")
        received += local.nbytes
    return received


def write_sharded(folder: Path, tensors: int, size: int) -> None:
    """Let as many ranks as load it write the checkpoint, and a small one to warm up.

    Raises:
        RuntimeError: A rank failed; what it said last.
    """
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.sharded", folder, str(tensors), str(size)]
    with (
        tempfile.TemporaryDirectory(prefix="s3torch-bench-") as scratch,
        started_ranks(command, RANKS, scratch, env=os.environ) as ranks,
    ):
        for rank in ranks:
            _, errors = rank.communicate(timeout=_WRITE_SECONDS)
            if rank.returncode:
                raise RuntimeError(f"the checkpoint could not be written: {errors.strip()[-300:]}")


def _name(number: int) -> str:
    return f"layer{number}.weight"


def _write(folder: Path, tensors: int, size: int) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    join()
    for name, layers, each in ((SHARDED, range(tensors), size), (f"{WARM_UP}{SHARDED}", WARM_UP_LAYERS, WARM_UP_SIZE)):
        save(make_shards(layers, each), storage_writer=FileSystemWriter(folder / name, sync_files=False))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    _write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # threads of the process group may abort while the interpreter ends
