"""Batches that tell what comes after them, so that a map dataset can begin with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from torch.utils.data import Sampler

from s3torch.errors import ArgumentError

__all__ = ["Batch", "LookAheadBatchSampler"]

T = TypeVar("T")


class Batch(list[int]):
    """The indices of one batch.

    Attributes:
        upcoming: The indices of the next batches that the same worker will get.
    """

    upcoming: list[int]


class LookAheadBatchSampler(Sampler[list[int]]):
    """Wraps a batch sampler so that S3MapDataset has the next batch in flight while this one is used.

    Example::

        sampler = BatchSampler(RandomSampler(dataset), batch_size=64, drop_last=False)
        loader = DataLoader(dataset, batch_sampler=LookAheadBatchSampler(sampler, num_workers=4), num_workers=4)

    The batches and their order are those of the wrapped sampler. It is read ahead by ``num_workers`` times
    ``batches_ahead`` batches.

    Args:
        batch_sampler: Yields lists of indices.
        num_workers: That of the DataLoader, which deals batches to its workers in turn.
        batches_ahead: How many batches ahead each worker begins with, within the client's bound of memory.

    Raises:
        ArgumentError: A number is out of range.
    """

    def __init__(self, batch_sampler: Iterable[list[int]], *, num_workers: int = 0, batches_ahead: int = 1) -> None:
        if num_workers < 0 or batches_ahead < 1:
            raise ArgumentError(
                f"LookAheadBatchSampler(num_workers={num_workers}, batches_ahead={batches_ahead}) cannot work: "
                "num_workers must be at least 0 and batches_ahead at least 1."
            )
        self._batch_sampler = batch_sampler
        self._stride = max(1, num_workers)
        self._batches_ahead = batches_ahead

    def __len__(self) -> int:
        if not isinstance(self._batch_sampler, Sized):
            raise TypeError(f"{self._batch_sampler!r} has no length")
        return len(self._batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, each with what its worker gets next."""
        window: deque[Batch] = deque()
        for indices in self._batch_sampler:
            window.append(Batch(indices))
            if len(window) > self._stride * self._batches_ahead:
                yield self._first_of(window)
        while window:
            yield self._first_of(window)

    def _first_of(self, window: deque[Batch]) -> Batch:
        first = window[0]
        ahead = [window[place] for place in range(self._stride, len(window), self._stride)]
        first.upcoming = [index for batch in ahead for index in batch]
        return window.popleft()
