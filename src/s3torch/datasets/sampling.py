"""Batches that tell what comes after them, so that a map dataset can begin with it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar, cast

from torch.utils.data import BatchSampler, Sampler

from s3torch._buffer import as_index
from s3torch.errors import ArgumentError, ArgumentTypeError

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
    ``batches_ahead`` batches. Its attributes (``sampler``, ``batch_size``, ``set_epoch``, ...) are those of this one,
    to be read and to be set, so that Lightning finds the DistributedSampler in it, and tells it each epoch.

    Lightning may make a batch sampler anew, of another sampler: to predict, and to divide samples among ranks unless
    ``Trainer(use_distributed_sampler=False)`` is set. It does not know ``num_workers``, so nothing is begun ahead then,
    and a warning says so.

    Args:
        batch_sampler: Yields lists of indices.
        num_workers: That of the DataLoader, which deals batches to its workers in turn.
        batches_ahead: How many batches ahead each worker begins with, within the client's bound of memory.
        batch_size: Not None: ``batch_sampler`` yields single indices, of which batches of that size are made, as
            ``torch.utils.data.BatchSampler`` does.
        drop_last: As that of ``BatchSampler``; only together with ``batch_size``.

    Raises:
        ArgumentError: A number is out of range.
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        batch_sampler: Iterable[list[int]] | Iterable[int],
        *,
        num_workers: int | None = None,
        batches_ahead: int = 1,
        batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if not isinstance(batch_sampler, Iterable):
            raise ArgumentTypeError(f"batch_sampler must yield lists of indices, got {batch_sampler!r}.")
        workers = as_index("num_workers", 0 if num_workers is None else num_workers)
        if workers < 0 or as_index("batches_ahead", batches_ahead) < 1:
            raise ArgumentError(
                f"LookAheadBatchSampler(num_workers={num_workers}, batches_ahead={batches_ahead}) cannot work: "
                "num_workers must be at least 0 and batches_ahead at least 1."
            )
        if batch_size is not None:
            batch_sampler = BatchSampler(cast("Iterable[int]", batch_sampler), batch_size, drop_last)
            if num_workers is None:
                batches_ahead = 0
                warnings.warn(
                    "LookAheadBatchSampler was made of a sampler and a batch size, without num_workers, as Lightning "
                    "does: nothing is begun ahead. Where that is to divide samples among ranks, pass a batch sampler "
                    "over a DistributedSampler, and set Trainer(use_distributed_sampler=False).",
                    stacklevel=2,
                )
        self._batch_sampler = cast("Iterable[list[int]]", batch_sampler)
        self._stride = max(1, workers)
        self._batches_ahead = batches_ahead

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the wrapped sampler has
        if name.startswith("_"):  # what frameworks note about an object is not about this one
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._batch_sampler, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:  # such as another sampler, which would have no effect here
            setattr(self._batch_sampler, name, value)

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
