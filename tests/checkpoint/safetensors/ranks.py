"""What each rank of a group of processes does in the tests of models that ranks write together."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from s3torch import S3Client, S3ClientConfig
from s3torch.errors import S3Error
from s3torch.safetensors import estimate_sharded, save_sharded

TIMEOUT = 20.0
Layout = dict[str, tuple[int, ...] | None]


def whole() -> dict[str, torch.Tensor]:
    """Return the tensors that are saved: large and small ones, of shapes that no number of ranks divides."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "rows": random(4099, 1500),
        "columns": random(700, 3001),
        "both": random(1003, 1001).bfloat16(),
        "deep": random(3, 70, 5000),
        "wide": random(2, 600_000),
        "small.rows": random(7, 3),
        "few": random(1, 9),  # fewer rows than ranks
        "plain": random(300, 11),
        "scalar": torch.tensor(4.5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "a/b \u00e9": torch.arange(1000),
        "float8": random(64, 5).to(torch.float8_e4m3fn),
        "conjugated": torch.view_as_complex(random(30, 2)).conj(),
    }


def shards() -> dict[str, torch.Tensor]:
    """Return what this rank has of them."""
    size = dist.get_world_size()
    line = init_device_mesh("cpu", (size,))
    placements: dict[str, Any] = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "deep": (line, [Shard(1)]),
        "wide": (line, [Shard(1)]),
        "small.rows": (line, [Shard(0)]),
        "few": (line, [Shard(0)]),
        "both": (line, [Shard(1)]),
    }
    if size == 4:
        square = init_device_mesh("cpu", (2, 2))
        placements["both"] = square, [Shard(0), Shard(1)]
        placements["small.rows"] = square, [Replicate(), Shard(0)]
    found: dict[str, torch.Tensor] = {}
    for name, tensor in whole().items():
        found[name] = distribute_tensor(tensor, *placements[name]) if name in placements else tensor
    return found


def _config() -> S3ClientConfig:
    return S3ClientConfig(hedging=False)


def save(rank: int, uri: str, **options: Any) -> int:
    """Save; returns how many bytes this rank has sent."""
    client = S3Client(s3client_config=_config())
    state = shards()
    before = {name: _local(tensor).clone() for name, tensor in state.items()}
    save_sharded(state, uri, client=client, group=dist.group.WORLD, group_timeout=TIMEOUT, **options)
    for name, tensor in state.items():
        assert _bits(_local(tensor)) == _bits(before[name]), name
    return client.stats.bytes_sent


def save_and_tell(rank: int, uri: str, **options: Any) -> tuple[list[tuple[int, int]], tuple[int, int, int], int]:
    """Save; returns size and requests of what this rank was told, the estimate, and the requests of this rank."""
    client = S3Client(s3client_config=_config())
    client.delete_object("tests", "nothing")  # finds the bucket
    state, told = shards(), []
    group = dist.group.WORLD
    estimate = estimate_sharded(state, group=group, group_timeout=TIMEOUT, s3client_config=_config(), **options)
    before = client.stats.requests
    save_sharded(
        state, uri, client=client, group=group, group_timeout=TIMEOUT, on_upload=told.append, progress=True, **options
    )
    requests = client.stats.requests - before
    found = [(each.size, each.requests) for each in told]
    return found, (estimate.size, estimate.objects, estimate.requests), requests


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy())


def fail(rank: int, uri: str, how: str) -> tuple[str, str]:
    """Save what cannot be saved, for a reason that lies with rank 1; returns the error's class and text."""
    state = {name: tensor for name, tensor in shards().items() if name in ("rows", "columns", "plain")}
    timeout = TIMEOUT
    if how == "never comes":
        if rank == 1:
            return "", ""
        timeout = 2.0
    elif how == "killed" and rank == 1:
        from s3torch._objects import shared_upload

        shared_upload.SharedUpload.send_part = lambda *_: os._exit(9)  # type: ignore[method-assign]
    elif how == "denied" and rank == 1:
        from s3torch._objects import shared_upload

        def refuse(*_: object) -> None:
            raise S3Error("no such luck")

        shared_upload.SharedUpload.send_part = refuse  # type: ignore[method-assign]
    elif how == "lost" and rank == 1:
        from s3torch._objects import shared_upload

        arrived = shared_upload.SharedUpload.arrived
        shared_upload.SharedUpload.arrived = lambda self: dict(list(arrived(self).items())[1:])  # type: ignore[method-assign]
    elif how == "shape" and rank == 1:
        state["plain"] = torch.zeros(300, 12)
    elif how == "dtype" and rank == 1:
        state["plain"] = torch.zeros(300, 11, dtype=torch.int32)
    elif how == "hole" and rank == 1:
        del state["rows"]
    elif how == "meta" and rank == 1:
        state["plain"] = torch.zeros(300, 11, device="meta")
    elif how == "quantised" and rank == 1:
        state["plain"] = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    elif how == "surrogate":
        state["\ud800"] = torch.zeros(3)
    elif how == "complex128":
        state["z"] = torch.zeros(3, dtype=torch.complex128)
    elif how == "no tensor" and rank == 1:
        state["plain"] = 5  # type: ignore[assignment]
    elif how == "uri" and rank == 1:
        uri += "x"
    try:
        save_sharded(state, uri, group=dist.group.WORLD, group_timeout=timeout, s3client_config=_config())
    except S3Error as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"
