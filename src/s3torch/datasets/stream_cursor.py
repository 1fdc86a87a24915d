"""Where the iterations over a stream are: the epochs of an S3IterableDataset, and how far the newest one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from s3torch.datasets.course import course_of
from s3torch.datasets.cursor import Course, Cursor, cursor_of, state_of
from s3torch.datasets.members import Items, SampleTable
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import Selection
from s3torch.datasets.order import Order, Shuffled
from s3torch.errors import ArgumentError

__all__ = ["Plan", "Progress", "StreamCursor"]


class Plan(NamedTuple):
    """What one iteration reads.

    Attributes:
        objects: Of all ranks and workers, or what all samples are made of.
        order: In which they come; None is the order in which they lie. Only of a table.
        consumed: How many of them, in that order, all ranks and workers together have read before.
    """

    objects: Iterable[S3BucketKeyData] | SampleTable
    order: Order | None = None
    consumed: int = 0


class Progress(Protocol):
    """How far an iteration is.

    Attributes:
        step: How many samples all ranks and workers together have read when each has read one.
        is_over: Whether the end was told.
    """

    step: int
    is_over: bool

    @property
    def handed_out(self) -> int:
        """How many samples have come, or were skipped and nothing fills in for them."""


class _Newest(NamedTuple):
    table: Items | None  # None: the objects come page by page, and are not kept
    begin: Cursor
    progress: Progress


class StreamCursor:
    """The epochs of a stream.

    Args:
        shuffle: Whether they are shuffled.
        seed: Of the orders.
    """

    def __init__(self, *, shuffle: bool, seed: int) -> None:
        self.shuffle = shuffle
        self.seed = seed
        self.due = Cursor()  # where the next iteration begins
        # The table of a state that was loaded, for the next iteration.
        self._resumed: Items | None = None
        self._newest: _Newest | None = None
        self._is_asked = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_newest": None}  # an iteration does not go on in another process

    @property
    def needs_table(self) -> bool:
        """Whether an iteration has to know all objects when it begins."""
        return self.shuffle or self._is_asked

    @property
    def has_loaded(self) -> bool:
        """Whether the next iteration begins where a state says."""
        return self._newest is None and self._resumed is not None and self.due != Cursor()

    @property
    def has_begun(self) -> bool:
        """Whether an iteration has begun since a state was loaded or an epoch was set."""
        return self._newest is not None

    def begin(self, listing: Callable[[], Iterable[S3BucketKeyData] | SampleTable], progress: Progress) -> Plan:
        """Begin the iteration that is due; the next one is of the next epoch.

        Args:
            listing: Returns the objects.
            progress: Of this iteration.
        """
        newest = self._newest
        if newest is not None and newest.progress is progress and newest.table is not None:
            return self._plan(newest.table, newest.begin)  # again: it was interrupted before it got its plan
        objects = listing() if self._resumed is None else self._resumed
        table = objects if isinstance(objects, (ObjectTable, SampleTable)) else None
        begin = self.due
        plan = Plan(objects) if table is None else self._plan(table, begin)
        self._newest, self._resumed, self.due = _Newest(table, begin, progress), None, Cursor(begin.epoch + 1)
        return plan

    def _plan(self, table: Items, begin: Cursor) -> Plan:
        order = Shuffled(len(table), self.seed, begin.epoch) if self.shuffle else None
        return Plan(table, order, begin.consumed)

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch due, unless it is."""
        if epoch < 0:
            raise ArgumentError(f"An epoch is at least 0, got {epoch}.")
        if epoch != self.due.epoch:
            self.due, self._newest, self._resumed = Cursor(epoch), None, None

    def state(self, list_items: Callable[[], Items], selection: Selection) -> dict[str, Any]:
        """Return where the newest iteration is.

        Args:
            list_items: Returns all objects, or what all samples are made of, if no iteration has them.
            selection: What chose and made them.

        Raises:
            ArgumentError: It reads a listing page by page, so that nobody knows of which objects it is.
        """
        self._is_asked = True
        newest = self._newest
        if newest is None:
            if self._resumed is None:
                self._resumed = list_items()
            return state_of(self._course(self._resumed, selection), self.due)
        if newest.table is None:
            raise ArgumentError(
                "This iteration reads the listing page by page and has no state. Ask for state_dict() once before the "
                "first iteration, or make the dataset with shuffle=True or from_table: then all is listed first."
            )
        if newest.progress.is_over:
            now = Cursor(newest.begin.epoch + 1)
        else:
            consumed = newest.begin.consumed + newest.progress.handed_out * newest.progress.step
            now = Cursor(newest.begin.epoch, min(consumed, len(newest.table)))
        return state_of(self._course(newest.table, selection), now)

    def load(self, state: Mapping[str, Any], table: Items, selection: Selection) -> None:
        """Begin the next iteration where another one was; see ``cursor_of`` for the errors."""
        self.due = cursor_of(self._course(table, selection), state)
        self._newest, self._resumed, self._is_asked = None, table, True

    def _course(self, table: Items, selection: Selection) -> Course:
        return course_of(len(table), table, selection, shuffle=self.shuffle, seed=self.seed)
