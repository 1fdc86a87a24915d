"""What one process takes of its node: the limits that a node's processes share.

A training job has many processes on a node: its ranks, and the DataLoader workers of each. Two ranks with eight workers
that open 128 connections each open 2,048, which a server takes for an attack, and may have 4 GiB in flight. So a limit
that the user has not set is a share of what the node may take: ``share_of`` decides it, ``here`` asks what it needs to
know. A number of the user's is a number a process, and stays.

The rank's own process counts as one that reads only where it has no workers: nobody can tell beforehand whether it will
have some. What it opens beside them, to list or to save a checkpoint, comes on top.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from s3torch.config import MOST_BYTES_IN_FLIGHT, MOST_CONNECTIONS

if TYPE_CHECKING:
    from s3torch.config import S3ClientConfig

__all__ = ["Node", "Share", "here", "local_ranks", "memory_limit", "share_of", "workers"]

MiB = 1024**2

# What all processes of a node take together, unless the floors say otherwise. 256 connections bring 20 GB/s of large
# objects (85 MB/s each), and 12,800 small ones a second where the first byte takes 20 ms.
_CONNECTIONS = 256
_BYTES = 1024 * MiB
# Of the memory that the container may use. The rest is for the samples, and for torch. Not tuned.
_PART_OF_MEMORY = 8
# What a process has at least. At 20 ms, 16 connections bring 800 objects a second: a worker hides the latency if
# its transform takes 1.25 ms or more. Measured: ``python -m benchmarks.node``.
_LEAST_CONNECTIONS = 16
_LEAST_BYTES = 16 * MiB

_PROC = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
# What version 1 says where there is no limit: the largest number of whole pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What decides a process's share.

    Attributes:
        workers: DataLoader workers of this process's rank, if this is one of them; else 0.
        local_ranks: Ranks on this node.
        memory: Bytes that its processes may use together; None if that is not limited.
    """

    workers: int = 0
    local_ranks: int = 1
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one thread of a process may take.

    Attributes:
        connections: That it has open.
        bytes_in_flight: That it waits for.
    """

    connections: int
    bytes_in_flight: int


def share_of(config: S3ClientConfig, node: Node) -> Share:
    """Return what a thread of a process may take: what the user says, else its share of the node.

    Args:
        config: Of the client.
        node: Where the process is.
    """
    processes = node.local_ranks * max(1, node.workers)
    memory = _BYTES if node.memory is None else min(_BYTES, node.memory // _PART_OF_MEMORY)
    connections = max(_LEAST_CONNECTIONS, _CONNECTIONS // processes)
    in_flight = max(_LEAST_BYTES, memory // processes)
    return Share(
        connections=config.connections_of(min(MOST_CONNECTIONS, connections)),
        bytes_in_flight=config.max_bytes_in_flight or min(MOST_BYTES_IN_FLIGHT, in_flight),
    )


def here() -> Node:
    """Return what is known of this process and its node."""
    return Node(workers=workers(), local_ranks=local_ranks(), memory=memory_limit())


def workers() -> int:
    """Return how many DataLoader workers this process is one of; 0 if it is none."""
    # Not there while another thread imports torch.
    worker_info = getattr(sys.modules.get("torch.utils.data"), "get_worker_info", None)
    worker = None if worker_info is None else worker_info()
    return (
        0 if worker is None else max(1, getattr(worker, "num_workers", 1))
    )  # tests of programs patch in what has none


def local_ranks() -> int:
    """Return how many ranks there are on this node: torchrun's ``LOCAL_WORLD_SIZE``.

    ``WORLD_SIZE`` does not count: it is of all nodes, and to divide by it would starve a job of many.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(ranks)) if ranks.isdecimal() else 1


def memory_limit() -> int | None:
    """Return how many bytes of memory the processes of this container may use; None if that is not limited.

    Groups are nested, and the smallest limit counts. Both versions of Linux's control groups are asked
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and cgroup-v1/memory.html).
    """
    limits = [limit for file in _limit_files() if (limit := _number_in(file)) is not None]
    least = min(limits, default=_NO_LIMIT)
    return least if least < _NO_LIMIT else None


def _limit_files() -> Iterator[Path]:
    """Yield the files that may hold a limit: of each group that this process is in."""
    try:
        lines = _PROC.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # another system
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, name = _CGROUP, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUP / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container may see its own group as the root, but be told the path that it has outside.
        group = PurePosixPath(path.lstrip("/"))
        for each in (group, *group.parents):
            if ".." not in each.parts:
                yield root / each / name


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_bytes())  # as text it would import a codec, where a fork may come between
    except (OSError, ValueError):  # there is none, or it says "max"
        return None
