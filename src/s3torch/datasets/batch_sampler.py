"""S3BatchSampler: batches of indices in an order that is arithmetic, of which each rank has its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import IterableDataset, Sampler

from s3torch._buffer import as_index
from s3torch.datasets.course import course_of
from s3torch.datasets.cursor import Course, Cursor, Even, Share, cursor_of, share_of, state_of
from s3torch.datasets.divided import check_divided_once
from s3torch.datasets.here import rank_and_world_size
from s3torch.datasets.map import S3MapDataset
from s3torch.datasets.mixture import S3Mixture
from s3torch.datasets.order import AT_ONCE, InOrder, Order, Shuffled
from s3torch.datasets.sampling import Batch, LookAheadBatchSampler
from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["Running", "S3BatchSampler", "no_sampler"]

_EVEN = ("drop", "pad", "wrap")


class S3BatchSampler(Sampler[list[int]]):
    """Yields the batches of this rank, each a list of indices, in an order that is arithmetic.

    It is what S3DataLoader takes its batches from, for those who make a ``DataLoader`` themselves. Its state is a few
    numbers, the same on all ranks, and any number of ranks with batches of any size resumes it::

        sampler = S3BatchSampler(dataset, batch_size=64, shuffle=True, num_workers=4)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)

    **With workers, a plain DataLoader asks for batches before the training loop receives them**, so the state is ahead
    by ``num_workers * prefetch_factor`` batches. S3DataLoader counts what the loop receives; torchdata's
    StatefulDataLoader keeps the state that belongs to each batch.

    Args: see S3DataLoader.

    Raises:
        ArgumentError: A number is out of range.
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        even: Even | None = None,
        num_workers: int = 0,
        batches_ahead: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        _check(dataset, shuffle=shuffle, drop_last=drop_last, even=even)
        self.batch_size = as_index("batch_size", batch_size)
        self.drop_last = drop_last
        self._dataset = dataset
        self._shuffle = shuffle
        self._seed = as_index("seed", seed)
        self._even = even
        self._num_workers = as_index("num_workers", num_workers)
        if self.batch_size < 1 or self._num_workers < 0:
            raise ArgumentError(
                f"batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}."
            )
        self._batches_ahead = _batches_ahead(dataset, self.batch_size, batches_ahead)
        self._ranks = _given_ranks(rank, world_size)
        self._due = Cursor()  # where the next iteration begins
        self._now = Cursor()  # where the newest one is
        self._running: Running | None = None
        self._is_loaders = False  # whether an S3DataLoader begins the next iteration, and counts what is received

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of."""
        return self._due.epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with an epoch, at its start. The epoch that is due anyway is not begun anew.

        Frameworks call this before each epoch. Epochs advance by themselves without it.

        Raises:
            ArgumentError: It is negative.
        """
        if as_index("epoch", epoch) < 0:
            raise ArgumentError(f"An epoch is at least 0, got {epoch}.")
        if epoch != self._due.epoch:
            self._due = self._now = Cursor(epoch)
            self._running = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iteration is, as plain values that are equal on all ranks."""
        return state_of(self._course(), self._now)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Begin the next iteration where another one was.

        Raises:
            LoaderStateError: The state is of other data or another order, is damaged, or of a newer version.
        """
        self._due = self._now = cursor_of(self._course(), state_dict)
        self._running = None

    def __len__(self) -> int:
        """Return the number of this rank's batches in a whole epoch."""
        return len(self._share(Cursor()))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from where the job is to the end of the epoch. The next iteration is of the next epoch.

        An iteration begins when its first batch is asked for: Lightning calls ``iter()`` to see whether that works, and
        a DataLoader with workers calls it twice.
        """
        running = self._begin()
        ahead = LookAheadBatchSampler(
            running.batches(), num_workers=self._num_workers, batches_ahead=self._batches_ahead
        )
        for batch in ahead:
            running.yielded += 1
            if not running.is_loaders:
                running.note(running.yielded)
            yield batch
        if not running.is_loaders:
            running.end()

    def _begin(self) -> Running:
        begin = self._due
        running = Running(self, self._share(begin), self._order(begin.epoch), is_loaders=self._is_loaders)
        self._is_loaders = False
        self._due, self._now, self._running = Cursor(begin.epoch + 1), begin, running
        return running

    def _course(self) -> Course:
        dataset, samples = self._dataset, len(self._dataset)
        if isinstance(dataset, S3MapDataset):
            return course_of(samples, dataset._items, dataset._selection, shuffle=self._shuffle, seed=self._seed)
        digest = dataset.digest if isinstance(dataset, S3Mixture) else None
        return Course(samples, digest, None, None, None, self._shuffle, self._seed)

    def _order(self, epoch: int) -> Order:
        if isinstance(self._dataset, S3Mixture):
            return self._dataset.order(epoch)
        samples = len(self._dataset)
        return Shuffled(samples, self._seed, epoch) if self._shuffle else InOrder(samples)

    def _share(self, begin: Cursor) -> Share:
        rank, world_size = self._ranks or rank_and_world_size()
        check_divided_once(world_size, "S3BatchSampler", "rank=0, world_size=1")
        return share_of(
            begin,
            len(self._dataset),
            rank=rank,
            world_size=world_size,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            even=self._even,
        )


class Running:
    """One iteration over the rest of an epoch.

    Args:
        sampler: Whose state it keeps while it is the newest.
        share: What is read.
        order: Of the epoch.
        is_loaders: Whether an S3DataLoader counts what is received.
    """

    def __init__(self, sampler: S3BatchSampler, share: Share, order: Order, *, is_loaders: bool) -> None:
        self.is_loaders = is_loaders
        self._sampler = sampler
        self._share = share
        self._order = order
        self.yielded = 0

    def batches(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        share = self._share
        left: list[int] = []
        for first in range(0, len(share.places), AT_ONCE):
            left += self._order.at(share.places[first : first + AT_ONCE])
            while len(left) > share.batch_size:  # what may be the last one waits for the extra sample
                yield left[: share.batch_size]
                del left[: share.batch_size]
        if share.extra is not None:
            left.append(self._order[share.extra])
        for first in range(0, len(left), share.batch_size):
            yield left[first : first + share.batch_size]

    def note(self, batches: int) -> None:
        """Note how many batches were received."""
        if self._sampler._running is self:
            self._sampler._now = self._share.after(batches)

    def end(self) -> None:
        """Note that the epoch is over."""
        if self._sampler._running is self:
            self._sampler._now = self._sampler._due


def no_sampler(what: str) -> ArgumentError:
    """Return the error for who gives a sampler to what is one."""
    return ArgumentError(
        f"S3DataLoader decides itself which samples come to which rank, and takes {what}. Use "
        "torch.utils.data.DataLoader with one of your own. With Lightning on several ranks, set "
        "Trainer(use_distributed_sampler=False)."
    )


def _check(dataset: object, *, shuffle: object, drop_last: object, even: object) -> None:
    if isinstance(dataset, Sampler):  # as Lightning makes a batch sampler anew
        raise no_sampler(f"no sampler, got {dataset!r}")
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ArgumentTypeError(
            f"S3DataLoader needs a dataset with len() and [index], such as S3MapDataset, got {dataset!r}."
        )
    for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
        if not isinstance(value, bool):
            raise ArgumentTypeError(f"{name} must be a bool, got {value!r}.")
    if shuffle and isinstance(dataset, S3Mixture):
        raise ArgumentError(
            "An S3Mixture has an order of its own, which keeps its proportions: leave out shuffle=True here, and say "
            "S3Mixture(..., shuffle=True, seed=...)."
        )
    if even is not None and even not in _EVEN:
        raise ArgumentError(f"even must be one of {', '.join(map(repr, _EVEN))}, or None, got {even!r}.")


def _batches_ahead(dataset: object, batch_size: int, given: int | None) -> int:
    if given is not None:
        if as_index("batches_ahead", given) < 1:
            raise ArgumentError(f"batches_ahead must be at least 1, or None, got {given}.")
        return given
    if not isinstance(dataset, S3MapDataset):
        return 1
    return max(1, -(-dataset.client.s3client_config.max_objects_ahead // batch_size))


def _given_ranks(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None or not 0 <= as_index("rank", rank) < as_index("world_size", world_size):
        raise ArgumentError(
            f"rank={rank} and world_size={world_size} do not fit: give both, with 0 <= rank < world_size, or neither."
        )
    return rank, world_size
