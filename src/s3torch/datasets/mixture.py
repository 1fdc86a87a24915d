"""S3Mixture: several datasets as one, in exact proportions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, Literal, SupportsIndex, TypeVar

from torch.utils.data import Dataset, IterableDataset

from s3torch._buffer import as_index
from s3torch.datasets.course import course_of
from s3torch.datasets.map import S3MapDataset
from s3torch.datasets.order import MOST, InOrder, Shuffled
from s3torch.datasets.proportions import Proportions, Turn, whole_weights
from s3torch.datasets.sampling import Batch
from s3torch.errors import ArgumentError, ArgumentTypeError, EmptyDatasetError

__all__ = ["MixedOrder", "S3Mixture"]

T_co = TypeVar("T_co", covariant=True)

Stop = Literal["first", "longest", "never"]
_STOPS = ("first", "longest", "never")


class S3Mixture(Dataset[T_co], Generic[T_co]):
    """Samples of several datasets in exact proportions: of any n first samples, n times the share of each.

    Example::

        mixture = S3Mixture([(images, 0.7), (sketches, 0.3)], stop="longest", seed=1)
        loader = S3DataLoader(mixture, batch_size=64, num_workers=4)

    That holds to less than one sample. Which dataset a sample comes of, and which sample of it, is arithmetic on its
    place, so S3DataLoader divides a mixture among ranks and workers, and resumes it, as any other dataset.

    Each dataset is read in its own shuffled order. Once it is through it begins anew, in another order. An epoch goes
    on where the one before has stopped in each dataset, so that all samples come equally often in the long run.

    ``mixture[k]`` is the k-th sample of the mix. Indices behind ``len(mixture)`` are those of the epochs that follow;
    an iteration ends with the first epoch.

    Args:
        datasets: Each with its weight: map-style datasets with ``len()``, such as S3MapDataset. Weights count relative
            to their sum; see ``whole_weights`` for what becomes of such as 1 / 7. One of weight 0 does not come.
        stop: When an epoch ends: ``"first"``, when the first dataset is through once; ``"longest"``, when all are;
            ``"never"``, when ``samples`` have come.
        seed: Of the orders: any integer, the same on all ranks.
        shuffle: False reads each dataset in the order in which it lies.
        samples: Of an epoch, with ``stop="never"``; None: as many as all datasets have together.

    Raises:
        ArgumentError: A weight is negative or not finite, all are 0, or there is no dataset; an option is unknown, or
            does not fit to another one.
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        datasets: Iterable[tuple[Dataset[T_co], float]],
        *,
        stop: Stop = "first",
        seed: int = 0,
        shuffle: bool = True,
        samples: int | None = None,
    ) -> None:
        parts = _checked(datasets)
        if stop not in _STOPS:
            raise ArgumentError(f"stop must be one of {', '.join(map(repr, _STOPS))}, got {stop!r}.")
        if not isinstance(shuffle, bool):
            raise ArgumentTypeError(f"shuffle must be a bool, got {shuffle!r}.")
        if samples is not None and (stop != "never" or not 1 <= as_index("samples", samples) <= MOST):
            raise ArgumentError(
                f"samples={samples} and stop={stop!r} do not fit: samples is at least 1, and goes with stop='never'."
            )
        self._datasets = [dataset for dataset, _ in parts]
        self._weights = whole_weights([weight for _, weight in parts])
        self._proportions = Proportions(self._weights)
        self._stop = stop
        self._seed = as_index("seed", seed)
        self._shuffle = shuffle
        self._samples = samples
        self._known: tuple[list[int], int, list[int]] | None = None

    def __repr__(self) -> str:
        parts = zip(self._weights, self._datasets, strict=True)
        shares = ", ".join(f"{weight} of {dataset!r}" for weight, dataset in parts)
        return f"<{type(self).__name__} {shares}; stop {self._stop}>"

    @property
    def digest(self) -> str:
        """What tells this mixture from any other: of datasets, weights and options, in hexadecimal."""
        parts = [[weight, *_identity(each)] for weight, each in zip(self._weights, self._datasets, strict=True)]
        options = [self._stop, self._seed, self._shuffle, len(self)]
        return hashlib.blake2b(json.dumps([1, parts, options]).encode(), digest_size=16).hexdigest()

    def order(self, epoch: int) -> MixedOrder:
        """Return the indices of an epoch; S3DataLoader asks for it."""
        return MixedOrder(len(self), epoch)

    def __len__(self) -> int:
        """Return the number of samples of an epoch; lists the datasets if that was not done before.

        Raises:
            EmptyDatasetError: One whose weight is above 0 has no sample.
        """
        return self._extent()[1]

    def __iter__(self) -> Iterator[T_co]:
        """Yield the samples of the first epoch."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> T_co:
        """Return a sample of the mix; negative indices count from the end of the first epoch.

        Raises:
            IndexError: It lies before the first.
            Exception: Whatever the dataset raises.
        """
        number, inner = self.locate([as_index("index", index)])[0]
        found: T_co = self._datasets[number][inner]
        return found

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[T_co]:
        """Return the samples of a batch: those of each dataset are fetched concurrently, and those of its next begun.

        If a dataset skips samples, the batch is shorter.

        Raises:
            IndexError: An index lies before the first.
            Exception: Whatever a dataset raises.
        """
        wanted = [as_index("index", index) for index in indices]
        located = self.locate([*wanted, *getattr(indices, "upcoming", ())])
        places: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(located[: len(wanted)]):
            places.setdefault(number, []).append(place)
        found: dict[int, T_co] = {}
        for number, own in places.items():
            batch = Batch(located[place][1] for place in own)
            batch.upcoming = [inner for other, inner in located[len(wanted) :] if other == number]
            # A dataset that has skipped samples does not say which. The order within a batch means nothing.
            found.update(zip(own, _samples(self._datasets[number], batch), strict=False))
        return [found[place] for place in sorted(found)]

    def locate(self, indices: Sequence[int]) -> list[Turn]:
        """Return which samples of which datasets come at indices: each as (number of the dataset, index in it).

        Raises:
            IndexError: An index lies before the first.
        """
        lengths, count, of_epoch = self._extent()
        turns = []
        for index in indices:
            if index < -count:
                raise IndexError(f"list index out of range: there are {count} samples in an epoch")
            epoch, place = divmod(index + count if index < 0 else index, count)
            source, number = self._proportions[place]
            turns.append(Turn(source, epoch * of_epoch[source] + number))
        if not self._shuffle:
            return [Turn(source, number % lengths[source]) for source, number in turns]
        together: dict[tuple[int, int], list[int]] = {}
        for at, (source, number) in enumerate(turns):
            together.setdefault((source, number // lengths[source]), []).append(at)
        for (source, passes), ats in together.items():
            order = Shuffled(lengths[source], self._seed, passes, source)
            places = [turns[at].number % lengths[source] for at in ats]
            inner = order.at_any(places) if len(places) > 1 else [order[places[0]]]
            for at, each in zip(ats, inner, strict=True):
                turns[at] = Turn(source, each)
        return turns

    def _extent(self) -> tuple[list[int], int, list[int]]:
        """Return the lengths of the datasets, the samples of an epoch, and those of each dataset in it."""
        if self._known is None:
            lengths = [len(each) for each in self._datasets]
            for number, (length, weight) in enumerate(zip(lengths, self._weights, strict=True)):
                if weight and not length:
                    raise EmptyDatasetError(
                        f"Dataset {number} of the mixture has no sample, and weight {weight} of {sum(self._weights)}."
                    )
            count = self._count(lengths)
            if count > MOST:
                raise ArgumentError(f"An epoch of this mixture would have {count} samples: at most {MOST} can be.")
            self._known = lengths, count, self._proportions.counts(count)
        return self._known

    def _count(self, lengths: Sequence[int]) -> int:
        if self._stop == "never":
            return sum(lengths) if self._samples is None else self._samples
        ends = [
            self._proportions.place_of(Turn(number, length - 1)) + 1
            for number, (length, weight) in enumerate(zip(lengths, self._weights, strict=True))
            if weight
        ]
        return min(ends) if self._stop == "first" else max(ends)


class MixedOrder(InOrder):
    """The indices of an epoch of a mixture, one after the other, behind those of the epochs before.

    Args:
        count: Samples of an epoch.
        epoch: From 0.
    """

    def __init__(self, count: int, epoch: int) -> None:
        super().__init__(count)
        self._first = count * epoch

    def __getitem__(self, place: int) -> int:
        return self._first + super().__getitem__(place)

    def at(self, places: range) -> list[int]:
        """Return the indices of many samples; see Order."""
        return [self._first + each for each in super().at(places)]


def _checked(datasets: object) -> list[tuple[Any, float]]:
    parts = list(datasets) if isinstance(datasets, Iterable) else None
    if parts is None or not all(isinstance(each, (tuple, list)) and len(each) == 2 for each in parts):
        raise ArgumentTypeError(f"datasets must be pairs (dataset, weight), got {datasets!r}.")
    if not parts:
        raise ArgumentError("A mixture must have at least 1 dataset, got 0.")
    for dataset, _ in parts:
        if (
            isinstance(dataset, IterableDataset)
            or not isinstance(dataset, Sized)
            or not hasattr(dataset, "__getitem__")
        ):
            raise ArgumentTypeError(
                f"A mixture is of datasets with len() and [index], such as S3MapDataset, got {dataset!r}."
            )
    return [(dataset, weight) for dataset, weight in parts]


def _samples(dataset: Any, batch: Batch) -> Sequence[Any]:  # noqa: ANN401  # any dataset
    fetch: Callable[[Batch], Sequence[Any]] | None = getattr(dataset, "__getitems__", None)
    return [dataset[index] for index in batch] if fetch is None else fetch(batch)


def _identity(dataset: Any) -> list[object]:  # noqa: ANN401  # any dataset
    """Return what tells a dataset from others: its length alone, if it is none of ours."""
    if isinstance(dataset, S3Mixture):
        return [dataset.digest]
    if isinstance(dataset, S3MapDataset):
        course = course_of(len(dataset), dataset._items, dataset._selection, shuffle=False, seed=0)
        return [course.samples, course.digest, course.filter, course.grouping, course.labels]
    return [len(dataset)]
