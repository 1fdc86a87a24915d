"""What the invariants look at inside s3torch: the only module here, with ``seam``, that knows private names."""

from __future__ import annotations

from typing import Any

from s3torch import S3Client
from s3torch.readers.budget import BUDGET

__all__ = ["ahead", "budget_held", "client_of_dataset", "engines", "in_flight", "memory_in_flight", "records"]


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


def ahead(dataset: Any) -> tuple[int, int]:  # noqa: ANN401  # either dataset
    """Return the bytes that a dataset's look-ahead counts, and those of what it has begun."""
    windows = [kept.window for kept in getattr(dataset, "_windows", None) or ()]
    return sum(window._bytes for window in windows), sum(each.footprint for window in windows for each in window)


def client_of_dataset(dataset: Any) -> S3Client:  # noqa: ANN401  # either dataset
    """Return the client of a dataset."""
    client: S3Client = dataset.client
    return client
