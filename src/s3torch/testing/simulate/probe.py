"""What the invariants look at inside s3torch: the only module here, with ``seam``, that knows private names."""

from __future__ import annotations

import os
from typing import Any

from s3torch import S3Client
from s3torch.readers.budget import BUDGET

__all__ = ["ahead", "budget_held", "client_of_dataset", "engines", "in_flight", "memory_in_flight", "records"]


def engines(client: S3Client) -> list[Any]:
    """Return the engines of a client in this process that somebody still refers to."""
    state = client._states.get(os.getpid())
    return [] if state is None else list(state.engines)


def in_flight(client: S3Client) -> int:
    """Return how many exchanges of a client are in flight or queued."""
    return sum(engine.pending for engine in engines(client))


def memory_in_flight(client: S3Client) -> int:
    """Return the bytes of memory that a client's engines count as in flight."""
    return sum(getattr(engine, "_memory_in_flight", 0) for engine in engines(client))


def records(client: S3Client) -> int:
    """Return how many records of statistics a client keeps beyond those of its engines."""
    state = client._states.get(os.getpid())
    return 0 if state is None else len(state.stats) - len(state.engines)


def budget_held() -> int:
    """Return the bytes that adaptive readers hold."""
    return BUDGET.held


def ahead(dataset: Any) -> tuple[int, int]:  # noqa: ANN401  # either dataset
    """Return the bytes that a dataset's look-ahead counts, and those of what it has begun."""
    window = getattr(dataset, "_ahead", None)
    if window is None:
        return 0, 0
    return window._bytes, sum(started.footprint for started in window._started)


def client_of_dataset(dataset: Any) -> S3Client:  # noqa: ANN401  # either dataset
    """Return the client of a dataset."""
    client: S3Client = dataset.client
    return client
