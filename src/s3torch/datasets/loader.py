"""S3DataLoader: batches in an order that is arithmetic, which a job resumes exactly where its training loop was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from s3torch.datasets.batch_sampler import Running, S3BatchSampler, no_sampler
from s3torch.datasets.by_index import by_index, go_on, order_of_stream
from s3torch.datasets.cursor import Even
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.errors import ArgumentError, LoaderStateError

__all__ = ["S3DataLoader"]

T_co = TypeVar("T_co", covariant=True)


class _Received(Iterator[Any]):
    """The batches that a training loop receives.

    Args:
        start: Returns a DataLoader's iterator.
        sampler: Whose state it keeps.
        has_workers: Whether there are batches that were yielded and not received.
    """

    def __init__(self, start: Callable[[], Iterator[Any]], sampler: S3BatchSampler, *, has_workers: bool) -> None:
        self._start = start
        self._sampler = sampler
        self._has_workers = has_workers
        self._batches: Iterator[Any] | None = None
        self._running: Running | None = None
        self._received = 0

    def __next__(self) -> Any:  # noqa: ANN401  # whatever collate_fn makes
        # Started here, as an iteration begins with its first batch: what was said since ``iter()`` is heard.
        if self._batches is None:
            self._sampler._is_loaders = True
            try:
                self._batches = self._start()
            except BaseException:
                self._sampler._is_loaders = False
                raise
        try:
            batch = next(self._batches)
        except StopIteration:
            if running := self._newest():
                running.end()
            raise
        except Exception:  # a batch that failed is over as well: the next call is for the one behind it
            self._count()
            raise
        self._count()
        return batch

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the iterator of torch has
        if name.startswith("__") or name == "_batches" or self._batches is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._batches, name)

    def _newest(self) -> Running | None:
        """Return the iteration of the sampler that this one has begun."""
        if self._running is None:
            self._running = self._sampler._running
        return self._running

    def _count(self) -> None:
        if running := self._newest():
            # Without workers an interrupted call may have taken a batch that nobody gets. It is over, too.
            self._received = self._received + 1 if self._has_workers else running.yielded
            running.note(self._received)


class S3DataLoader(DataLoader[T_co]):
    """A DataLoader that resumes exactly: shuffled by arithmetic, divided among ranks, with the next batches in flight.

    Example::

        dataset = S3MapDataset.from_prefix("s3://bucket/train/", transform=decode)
        loader = S3DataLoader(dataset, batch_size=64, shuffle=True, num_workers=4)
        for epoch in range(90):
            for batch in loader:
                train(batch)
                checkpoint = {"model": model.state_dict(), "loader": loader.state_dict()}

        loader.load_state_dict(checkpoint["loader"])  # in the next job: its first batch is the one that was next

    **The state** is below 1 kB, is the same on all ranks, and says what the training loop has received, not what was
    read ahead. Any number of ranks, with any number of workers and batches of any size, goes on with exactly the
    samples that are left.

    **Epochs** advance by themselves, each with another order. To leave an epoch by ``break`` is to be done with it: the
    next ``for`` begins the next epoch. ``set_epoch`` chooses one.

    **Ranks** are those of the process group, or torchrun's, when an iteration begins. Each sample comes to one of them.
    Their numbers of samples may differ by one, and so may the numbers of batches: where a rank that has one more
    would wait for the others for ever (DistributedDataParallel), say how to make them equal by ``even``.

    The batches are made as ``torch.utils.data.DataLoader`` makes them. There is no ``sampler``: who has one of their
    own uses that class.

    **Hugging Face accelerate** leaves it as it is in ``prepare``, and saves and loads its state.

    Args:
        dataset: With ``len()`` and ``[index]``, such as S3MapDataset; or an S3IterableDataset, whose objects are listed
            once and then read by index, in its order if it shuffles, and divided among ranks and workers.
        batch_size: Samples of a batch of one rank.
        shuffle: Each epoch in another order; else in the order in which the samples lie.
        seed: Of the orders: any integer, the same on all ranks.
        drop_last: Leave out the samples that do not fill a batch on all ranks.
        even: ``"drop"`` leaves out what cannot be divided evenly among the ranks, at most one sample less than there
            are ranks. ``"pad"`` gives the epoch's last sample once more to the ranks that would have one less,
            ``"wrap"`` the epoch's first ones. None: ranks may differ by one sample.
        num_workers: Processes that make samples; 0 makes them here.
        batches_ahead: How many batches each process has in flight behind the one that it makes; None fills the
            client's ``max_objects_ahead``.
        rank: Of this process; None finds it.
        world_size: Number of ranks; None finds it.
        options: All others of ``torch.utils.data.DataLoader``, such as ``collate_fn``, ``pin_memory``,
            ``persistent_workers``; but for ``in_order=False``, whose batches no state could count.

    Raises:
        ArgumentError: A number is out of range, or an option is one that this class decides itself.
        ArgumentTypeError: An argument has the wrong type.
    """

    # By these marks accelerate does not divide once more what is divided here, and carries the state.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int = 1,
        shuffle: bool = False,  # noqa: FBT001, FBT002  # the place it has in torch
        *,
        seed: int = 0,
        drop_last: bool = False,
        even: Even | None = None,
        num_workers: int = 0,
        batches_ahead: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,  # noqa: ANN401  # of DataLoader, which checks them
    ) -> None:
        if taken := sorted({"sampler", "batch_sampler"} & options.keys()):
            raise no_sampler(f"no {' and no '.join(taken)}")
        if not options.get("in_order", True):
            raise ArgumentError(
                "S3DataLoader(in_order=False) cannot say where a job is: batches would come in another order than that "
                "of its state, and a resumed job would lose some and repeat others. Leave it out, or use "
                "torch.utils.data.DataLoader."
            )
        stream = dataset if isinstance(dataset, S3IterableDataset) else None
        if stream is not None:
            shuffle, seed = order_of_stream(stream, shuffle=shuffle, seed=seed)
            dataset = by_index(stream)
        sampler = S3BatchSampler(
            dataset,  # type: ignore[arg-type]  # whether it has a length is checked
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            even=even,
            num_workers=num_workers,
            batches_ahead=batches_ahead,
            rank=rank,
            world_size=world_size,
        )
        if stream is not None:
            go_on(sampler, stream)
        super().__init__(dataset, batch_sampler=sampler, num_workers=num_workers, **options)
        # torch leaves these to those who have no batch sampler. Programs look at them.
        self.__dict__.update(batch_size=sampler.batch_size, drop_last=drop_last)
        self.__dict__.update(sampler=sampler)  # whose set_epoch frameworks call before each epoch
        self._batches = sampler

    def __iter__(self) -> Any:  # noqa: ANN401  # DataLoader's has a private type
        """Yield the batches from where the job is to the end of the epoch."""
        return _Received(super().__iter__, self._batches, has_workers=self.num_workers > 0)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of."""
        return self._batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with an epoch; see S3BatchSampler."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the training loop is, as plain values that JSON can hold.

        It lists the objects, if nothing did so before.

        Raises:
            LoaderStateError: Another loader, made of this one's batch sampler, receives the batches.
            S3Error: The objects could not be listed.
        """
        running = self._batches._running
        if running is not None and not running.is_loaders:
            raise LoaderStateError(
                "Another DataLoader, made of this one's batch_sampler, receives the batches, and this S3DataLoader "
                "does not know how many. Iterate over this one; batch_sampler.state_dict() says what was yielded."
            )
        return self._batches.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Begin the next iteration where the training loop was that saved a state.

        Raises:
            LoaderStateError: The state is of other data or another order, is damaged, or of a newer version.
            S3Error: The objects could not be listed.
        """
        self._batches.load_state_dict(state_dict)

    def __repr__(self) -> str:
        now = self._batches._now
        order = f"shuffled by seed {self._batches._seed}" if self._batches._shuffle else "in order"
        return (
            f"<{type(self).__name__} of {self.dataset!r}, {order}, batches of {self.batch_size}, "
            f"{self.num_workers} workers, epoch {now.epoch}, {now.consumed} samples consumed>"
        )
