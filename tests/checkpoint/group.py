"""What each rank of a group of processes does in the tests of loads by a group."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.errors import S3Error
from s3torch.safetensors import load_file

TIMEOUT = 20.0  # seconds; more than a busy machine takes


def _config(**options: Any) -> S3ClientConfig:
    return S3ClientConfig(hedging=False, **options)


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return alike and bytes(left.contiguous().view(-1).view(torch.uint8).numpy()) == bytes(
            right.contiguous().view(-1).view(torch.uint8).numpy()
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(_same(left[name], right[name]) for name in left)
    return left == right


def load_model(rank: int, uri: str, keys: Any = None, **options: Any) -> tuple[bool, int]:
    """Load a model by the group; returns whether it is what one rank loads alone, and how many bytes came."""
    client = S3Client(s3client_config=_config(**options))
    loaded = load_file(uri, keys=keys, client=client, group=dist.group.WORLD, group_timeout=TIMEOUT)
    received = client.stats.bytes_received
    return _same(loaded, load_file(uri, keys=keys, client=client)), received


def load_checkpoint(rank: int, uri: str, **options: Any) -> tuple[bool, int]:
    """Load a file of torch.save by the group; returns as ``load_model``."""
    checkpoint = S3Checkpoint(s3client_config=_config(**options))
    loaded = checkpoint.load(uri, group=dist.group.WORLD, group_timeout=TIMEOUT)
    received = checkpoint._client.stats.bytes_received
    return _same(loaded, S3Checkpoint(s3client_config=_config()).load(uri)), received


def load_shared(rank: int, uri: str) -> bool:
    """Load two names of one memory, which must stay one."""
    loaded = S3Checkpoint().load(uri, group=dist.group.WORLD, group_timeout=TIMEOUT)
    loaded["one"].zero_()
    return bool((loaded["other"] == 0).all())


def fail(rank: int, uris: list[str], *, late: int = -1, kind: str = "model", **options: Any) -> tuple[str, str]:
    """Load what cannot be loaded; returns the error's class and text."""
    if rank == late:
        return "", ""
    timeout = 2.0 if late >= 0 else TIMEOUT
    config = _config(**options)
    try:
        if kind == "model":
            load_file(uris[rank], s3client_config=config, group=dist.group.WORLD, group_timeout=timeout)
        else:
            S3Checkpoint(s3client_config=config).load(uris[rank], group=dist.group.WORLD, group_timeout=timeout)
    except S3Error as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def fail_and_go_on(rank: int, uris: list[str], good: str) -> tuple[str, bool]:
    """Fail, and load something else by the same group."""
    name, _ = fail(rank, uris)
    return name, load_model(rank, good)[0]


def be_denied(rank: int, uri: str) -> tuple[str, str]:
    """Load with keys that are wrong on rank 1."""
    if rank == 1:
        os.environ["AWS_SECRET_ACCESS_KEY"] = "wrong"
    return fail(rank, [uri] * dist.get_world_size())


def be_killed(rank: int, uri: str) -> tuple[str, str, float]:
    """Load while rank 1 is killed in the middle; returns the error, and how long that took."""
    if rank == 1:
        from s3torch.checkpoint import together

        together._Reading._gather = lambda *_: os._exit(9)  # type: ignore[method-assign]
    began = time.monotonic()
    name, text = fail(rank, [uri] * dist.get_world_size())
    return name, text, time.monotonic() - began


def be_interrupted(rank: int, uri: str) -> tuple[str, str]:
    """Load while rank 1 gets Ctrl-C."""
    if rank == 1:
        from s3torch.checkpoint import together

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt("by hand")

        together._Reading._gather = interrupt  # type: ignore[method-assign]
    try:
        return fail(rank, [uri] * dist.get_world_size())
    except KeyboardInterrupt:
        return "KeyboardInterrupt", ""


def be_rank(rank: int, ranks: int, meeting: str, act: Callable[..., Any], arguments: Any, options: Any) -> Any:
    """Be one rank, and return what it returns."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # here, as the forkserver's environment is not the test's
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    try:
        return act(rank, *arguments, **options)
    finally:
        dist.destroy_process_group()
