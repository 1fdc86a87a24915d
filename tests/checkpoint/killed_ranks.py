"""What each rank does in the tests of ranks that are killed while they write a model together."""

from __future__ import annotations

import itertools
import signal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from s3torch import S3Client, S3ClientConfig
from s3torch.dcp import S3HuggingFaceStorageWriter
from s3torch.safetensors import save_sharded
from tests.checkpoint.group import NEVER

_SHAPES = {"rows": (4096, 1024), "columns": (1024, 3072), "plain": (300, 11)}  # 16 MiB, 12 MiB, and little
_CONFIG = S3ClientConfig(hedging=False, part_size=5 * 1024 * 1024)


def save_until_killed(rank: int, uri: str, kind: str, first: int, victim: int, seconds: float) -> tuple[str, str, int]:
    """Save model after model, each of another number, until one rank has computed for so long, and is killed there.

    How busy the machine is does not matter to that. The first model is saved before: it takes longer than others.

    Args:
        rank: Which one this is.
        uri: Of the model; a folder for ``hugging face``.
        kind: How it is saved: ``one file``, ``files`` or ``hugging face``.
        first: Number of the first model.
        victim: The rank that is killed.
        seconds: Of CPU time.

    Returns:
        Class and text of the error, and the number of the model that was being saved.
    """
    for number in itertools.count(first):
        state = _state(number)
        if number == first + 1 and rank == victim:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if kind == "hugging face":
                writer = S3HuggingFaceStorageWriter(
                    None, uri, None, _CONFIG, max_shard_size=16_000_000, group_timeout=NEVER
                )
                dcp.save(state, storage_writer=writer)
            else:
                save_sharded(
                    state,
                    uri,
                    max_shard_size=16_000_000 if kind == "files" else None,
                    group=dist.group.WORLD,
                    group_timeout=NEVER,
                    client=S3Client(s3client_config=_CONFIG),
                )
        except Exception as error:  # noqa: BLE001  # what it is, is for the test to say
            return type(error).__name__, str(error), number
    raise AssertionError("unreachable")


def _state(number: int) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found: dict[str, torch.Tensor] = {}
    for name, shape in _SHAPES.items():
        dimension = {"rows": 0, "columns": 1}.get(name)
        local = list(shape)
        if dimension is None:
            found[name] = torch.full(local, float(number))
            continue
        local[dimension] //= dist.get_world_size()
        found[name] = DTensor.from_local(torch.full(local, float(number)), mesh, [Shard(dimension)])
    return found


def number_of(loaded: dict[str, torch.Tensor]) -> int:
    """Return the number of a model, which all of its items are."""
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == _SHAPES
    (number,) = {value for tensor in loaded.values() for value in tensor.unique().tolist()}
    return int(number)
