"""What the invariants look at inside s3torch: the only module here, with ``seam``, that knows private names."""

from __future__ import annotations

import gc
import sys
from collections import deque
from types import FrameType, MethodType
from typing import Any

from s3torch import S3Checkpoint, S3Client, S3Reader
from s3torch._transfer.engine import Engine
from s3torch._transfer.loop import Loop
from s3torch.readers.budget import BUDGET
from s3torch.readers.window import Block
from s3torch.testing.simulate.coincidences import name_of

__all__ = [
    "ahead",
    "budget_held",
    "cancel_ahead",
    "client_of_checkpoint",
    "client_of_dataset",
    "engines",
    "held_by",
    "in_flight",
    "memory_in_flight",
    "records",
]


def engines(client: S3Client) -> list[Any]:
    """Return the engines of a client in this process that somebody still refers to."""
    return client._access.engines


def in_flight(client: S3Client) -> int:
    """Return how many exchanges of a client are in flight or queued."""
    return sum(engine.pending for engine in engines(client))


def memory_in_flight(client: S3Client) -> int:
    """Return the bytes of memory that a client's engines count as in flight."""
    return sum(engine._loop._memory_in_flight for engine in engines(client))


def records(client: S3Client) -> int:
    """Return how many records of statistics a client keeps beyond those of its engines."""
    return client._access._process().ledger.records - len(engines(client))


def budget_held() -> int:
    """Return the bytes that adaptive readers hold."""
    return BUDGET.held


# What is walked through, beside objects of s3torch; and what is not: a reader keeps what it has read, and is its
# user's; an engine is its thread's.
_CONTAINERS = (list, dict, tuple, deque, MethodType)
_OTHERS = (S3Reader, S3Client, Block, Engine, Loop)
_FILE_MEMORY = "_BytesIOBuffer"  # what a view of io.BytesIO shows; the class has no public name
_LEAST = 1000  # bytes; less is a head or a name


def held_by(error: BaseException, known: dict[int, object]) -> list[str]:
    """Return what memory an error keeps alive by the frames of s3torch that it has passed.

    Args:
        error: That was raised.
        known: The caller's own memory, by identity.
    """
    found: list[str] = []
    seen: set[int] = set(known)
    running = _running()
    left: list[tuple[Any, str]] = []
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += [each.__cause__, each.__context__]
        passed = each.__traceback__
        while passed is not None:
            where = name_of(passed.tb_frame.f_code)
            if where and id(passed.tb_frame) not in running:
                left += [(value, f"{where} {name}") for name, value in passed.tb_frame.f_locals.items()]
            passed = passed.tb_next
    while left:
        value, where = left.pop()
        if isinstance(value, memoryview):
            value = _base(value)
        if id(value) in seen or isinstance(value, _OTHERS):
            continue
        seen.add(id(value))
        if isinstance(value, (bytes, bytearray)) or type(value).__name__ == _FILE_MEMORY:
            if (size := memoryview(value).nbytes) >= _LEAST:
                found.append(f"{size} bytes by {where}")
        elif isinstance(value, _CONTAINERS) or _is_ours(value):
            left += [(each, where) for each in gc.get_referents(value)]
    return found


def _base(view: memoryview) -> object:
    """Return what a view shows the memory of; None if it was released."""
    try:
        return view.obj
    except ValueError:
        return None


def _running() -> set[int]:
    """Return the frames of the calling thread that have not returned, by identity: a set of them would hold itself.

    What they hold is no error's. And to look at ``f_locals`` of one would change what it holds: before Python 3.13 it
    keeps what was seen, until it is looked at again. So the error of an ``except`` would stay behind its block, as a
    cycle with its frame.
    """
    frames = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        frames.add(id(frame))
        frame = frame.f_back
    return frames


def _is_ours(value: object) -> bool:
    module = type(value).__module__
    return module.startswith("s3torch.") and not module.startswith("s3torch.testing") and not isinstance(value, type)


def ahead(dataset: Any) -> tuple[int, int]:  # noqa: ANN401  # either dataset
    """Return the bytes that a dataset's look-ahead counts, and those of what it has begun."""
    windows = [kept.window for kept in getattr(dataset, "_windows", None) or ()]
    return sum(window._bytes for window in windows), sum(each.footprint for window in windows for each in window)


def cancel_ahead(dataset: Any) -> None:  # noqa: ANN401  # either dataset
    """Cancel what a dataset has begun for the next batch of this thread, as its end would; not what is in use."""
    windows: Any = getattr(dataset, "_windows", None) or ()
    for kept in [each for each in windows if each.claimed_by is None]:
        windows._end(kept)


def client_of_checkpoint(checkpoint: S3Checkpoint) -> S3Client:
    """Return the client that saves and loads checkpoints."""
    return checkpoint._client


def client_of_dataset(dataset: Any) -> S3Client:  # noqa: ANN401  # either dataset
    """Return the client of a dataset."""
    client: S3Client = dataset.client
    return client
