"""What each rank of a group of processes does in the tests of loads by a group."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.checkpoint.processes import has_ended
from s3torch.checkpoint.ranks import _LOOK, _PREFIX, Ranks
from s3torch.errors import S3Error
from s3torch.safetensors import load_file

TIMEOUT = 60.0  # seconds that ranks wait for each other; more than a busy machine takes
SHORT_TIMEOUT = 5.0  # where it is waited for
_GROUP_TIMEOUT = timedelta(minutes=30)  # as torch has it: what waits for it hangs, and is found
_MOST = 300.0  # seconds in which a rank ends, or is ended: whatever it waits for
NEVER = 4 * _MOST  # seconds: who waits for so long is ended before


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


def be_late(rank: int, uri: str, late: int) -> tuple[str, str]:
    """Load while one of three ranks never comes; returns the error's class and text.

    The other two are there before the deadline of one of them begins: how long a busy machine takes to start them is
    no part of it. The late one leaves when all are in the group: gloo would wait for it for ever while it makes one.
    """
    store = distributed_c10d._get_default_store()
    one, other = (each for each in range(3) if each != late)
    store.set(f"in the group/{rank}", "")
    if rank == late:
        store.wait([f"in the group/{one}", f"in the group/{other}"], timedelta(seconds=_MOST))
        return "", ""
    if rank == one:
        store.wait([f"{_PREFIX}/1/{other}"], timedelta(seconds=TIMEOUT))
    # If the first rank is there, all are told when its time is over; without it each looks at its own.
    return fail(rank, [uri] * 3, timeout=1.0 if rank == one else TIMEOUT if late else 10.0)


def fail(
    rank: int, uris: list[str], *, kind: str = "model", timeout: float = TIMEOUT, **options: Any
) -> tuple[str, str]:
    """Load what cannot be loaded; returns the error's class and text."""
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


def be_killed(rank: int, uri: str) -> tuple[str, str]:
    """Load while rank 1 is killed in the middle; returns the error."""
    if rank == 1:
        from s3torch.checkpoint import together

        together._Reading._gather = lambda *_: os._exit(9)  # type: ignore[method-assign]
    return fail(rank, [uri] * dist.get_world_size(), timeout=NEVER)


def be_killed_between(rank: int, uri: str) -> tuple[str, str]:
    """Load, and load again while rank 1 has ended; returns the error."""
    load_file(uri, s3client_config=_config(), group=dist.group.WORLD, group_timeout=NEVER)
    if rank == 1:
        os._exit(9)
    return fail(rank, [uri] * dist.get_world_size(), timeout=NEVER)


def be_killed_while_sending(rank: int, ranks: int, seconds: float) -> tuple[str, str]:
    """Send much from all to all until rank 1 has computed for so long, and is killed; returns the error."""
    if rank == 1:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
    content = [torch.zeros(8 * 1024**2, dtype=torch.uint8) for _ in range(2 * ranks)]
    try:
        with Ranks(dist.group.WORLD, NEVER, "test") as these:
            these.meet(lambda: ({}, None))
            while True:
                works = [these.broadcast(each, source % ranks) for source, each in enumerate(content)]
                for work in works:
                    these.wait(work)
    except S3Error as error:
        return type(error).__name__, str(error)


def end_early(rank: int) -> bool:
    """Let rank 1 end as soon as it has come to the end of the call; returns whether others wait on after that."""
    with Ranks(dist.group.WORLD, NEVER, "test") as these:
        these.meet(lambda: ({}, None))
        if rank != 1:
            neighbour = these._loaded(f"{_PREFIX}/machine/{these._process.machine}")[1]  # type: ignore[union-attr]
            these.until(lambda: has_ended(neighbour))
            begun = time.monotonic()
            these.until(lambda: time.monotonic() > begun + 4 * _LOOK)
    if rank == 1:
        os._exit(0)
    return True


def be_interrupted(rank: int, uri: str) -> tuple[str, str]:
    """Load while rank 1 gets Ctrl-C."""
    if rank == 1:
        from s3torch.checkpoint import together

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt("by hand")

        together._Reading._gather = interrupt  # type: ignore[method-assign]
    try:
        return fail(rank, [uri] * dist.get_world_size(), timeout=SHORT_TIMEOUT)
    except KeyboardInterrupt:
        return "KeyboardInterrupt", ""


def be_rank(
    rank: int,
    ranks: int,
    meeting: str,
    act: Callable[..., Any],
    arguments: Any,
    options: Any,
    *,
    has_server: bool = False,
) -> Any:
    """Be one rank, and return what it returns. A rank that hangs is ended, and its stacks are in a file.

    Args:
        rank: Which one.
        ranks: How many there are.
        meeting: A path that no other group has.
        act: What to do.
        arguments: Of ``act``, behind the rank.
        options: Of ``act``.
        has_server: Whether the store is a server in the first rank, and not a file.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # here, as the forkserver's environment is not the test's
    torch.set_num_threads(1)
    with stacks_of(meeting, rank).open("w") as file:
        faulthandler.dump_traceback_later(_MOST, exit=True, file=file)
        store = _served(rank, ranks, meeting) if has_server else dist.FileStore(meeting, ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_GROUP_TIMEOUT)
        try:
            return act(rank, *arguments, **options)
        finally:
            dist.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()


def _served(rank: int, ranks: int, meeting: str) -> dist.Store:
    """Return the store that the first rank serves, at a port that the system chooses; the others find it in a file."""
    path = Path(f"{meeting}.port")
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, ranks, is_master=True, timeout=_GROUP_TIMEOUT, wait_for_workers=False)
        Path(f"{meeting}.written").write_text(str(store.port))
        Path(f"{meeting}.written").rename(path)
        return store
    while not path.exists():  # be_rank ends whoever waits in vain
        time.sleep(0.01)
    return dist.TCPStore("127.0.0.1", int(path.read_text()), ranks, is_master=False, timeout=_GROUP_TIMEOUT)


def stacks_of(meeting: str, rank: int) -> Path:
    """Return the file that says where a rank hung, if it did."""
    return Path(f"{meeting}.{rank}.stacks")
