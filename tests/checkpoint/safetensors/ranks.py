"""What each rank of a group of processes does in the tests of models that ranks write together."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from s3torch import S3Client, S3ClientConfig
from s3torch.checkpoint.ranks import _GRACE, _PREFIX
from s3torch.errors import S3Error
from s3torch.safetensors import estimate_sharded, save_sharded
from tests.checkpoint.group import NEVER

TIMEOUT = 60.0
# Seconds that a rank waits while the other, which takes so long for each part, gets on. More than a busy machine takes.
SHORT_TIMEOUT, SLOW_PART = 10.0, 2.0
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


def fail(rank: int, uri: str, how: str, victim: int = 1) -> tuple[str, str]:
    """Save what cannot be saved, for a reason that lies mostly with rank 1; returns the error's class and text."""
    state = {name: tensor for name, tensor in shards().items() if name in ("rows", "columns", "plain")}
    if how == "never comes" and rank == victim:
        return "", ""
    timeout = {"never comes": 2.0, "hangs": 3.0, "killed": NEVER}.get(how, TIMEOUT)
    if rank == victim:
        _damage_upload(how)
        _damage_state(how, state)
        uri += "x" if how == "uri" else ""
    if how == "surrogate":
        state["\ud800"] = torch.zeros(3)
    elif how == "complex128":
        state["z"] = torch.zeros(3, dtype=torch.complex128)
    try:
        save_sharded(state, uri, group=dist.group.WORLD, group_timeout=timeout, s3client_config=_config())
    except S3Error as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def _damage_upload(how: str) -> None:
    """Let this rank fail where it sends its parts."""
    from s3torch._objects import shared_upload

    def refuse(*_: object) -> None:
        raise S3Error("no such luck")

    instead: dict[str, Any] = {"killed": lambda *_: os._exit(9), "denied": refuse, "hangs": _hang}
    if how in instead:
        shared_upload.SharedUpload.send_part = instead[how]  # type: ignore[method-assign]
    elif how == "lost":
        arrived = shared_upload.SharedUpload.arrived
        shared_upload.SharedUpload.arrived = lambda self: dict(list(arrived(self).items())[1:])  # type: ignore[method-assign]


def _damage_state(how: str, state: dict[str, Any]) -> None:
    """Let this rank have something else than the others, or what cannot be saved."""
    if how == "hole":
        del state["rows"]
    elif how == "no tensor":
        state["plain"] = 5
    elif how == "shape":
        state["plain"] = torch.zeros(300, 12)
    elif how == "dtype":
        state["plain"] = torch.zeros(300, 11, dtype=torch.int32)
    elif how == "meta":
        state["plain"] = torch.zeros(300, 11, device="meta")
    elif how == "quantised":
        state["plain"] = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)


def _hang(*_: object) -> None:
    """Do nothing until the other rank has given up, and has looked for those that live."""
    store = distributed_c10d._get_default_store()
    store.wait([f"{_PREFIX}/1/note"], timedelta(seconds=TIMEOUT))
    time.sleep(_GRACE + 1)


def be_slow(rank: int, uri: str) -> int:
    """Save, while rank 1 takes longer for its parts, one after the other, than ranks wait; returns how many it had."""
    from s3torch._objects import shared_upload

    send, sent = shared_upload.SharedUpload.send_part, 0

    def send_slowly(upload: shared_upload.SharedUpload, number: int, pieces: Any) -> None:
        nonlocal sent
        sent += 1
        send(upload, number, pieces)
        upload.arrived()
        time.sleep(SLOW_PART)

    if rank == 1:
        shared_upload.SharedUpload.send_part = send_slowly  # type: ignore[method-assign]
    config = S3ClientConfig(hedging=False, part_size=5 * 1024**2)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {"weight": DTensor.from_local(torch.full((10, 1024, 1024), float(rank)), mesh, [Shard(0)])}  # 40 MiB each
    save_sharded(state, uri, group=dist.group.WORLD, group_timeout=SHORT_TIMEOUT, s3client_config=config)
    return sent
