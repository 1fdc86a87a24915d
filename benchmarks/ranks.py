"""Ranks: processes that work on one checkpoint together, as those of a training job do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.processes import started

__all__ = ["RANKS", "join", "started_ranks"]

RANKS = 2
_JOIN_SECONDS = 60.0
_STREAMS: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
}


@contextmanager
def started_ranks(
    command: Sequence[str | Path],
    count: int,
    folder: str,
    *,
    env: Mapping[str, str],
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run a process for each rank until the block ends.

    Args:
        command: And its arguments.
        count: Ranks.
        folder: For their temporary files; an empty one, in which they find each other.
        env: Their variables, but for those that make them ranks.

    Returns:
        The processes, whose output and errors are pipes.
    """
    with ExitStack() as stack:
        common = {**env, "TMPDIR": folder, "WORLD_SIZE": str(count)}
        each = [{**common, "RANK": str(rank)} for rank in range(count)]
        yield [stack.enter_context(started(command, env=variables, **_STREAMS)) for variables in each]


def join() -> None:
    """Make this process one of the ranks, once all are there. They meet in a file, and talk over the loopback.

    Raises:
        RuntimeError: They were not there within a minute.
    """
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{tempfile.gettempdir()}/ranks",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=_JOIN_SECONDS),
    )
