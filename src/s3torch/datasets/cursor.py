"""Where a job is in its data: a few numbers that are the same on all ranks, and who reads what from there.

All of it is arithmetic: nothing here knows a dataset, a process group or a DataLoader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from s3torch.errors import ArgumentError, LoaderStateError

__all__ = ["Course", "Cursor", "Even", "Share", "cursor_of", "share_of", "state_of"]

Even = Literal["drop", "pad", "wrap"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Course:
    """What the order of all epochs is made of.

    Attributes:
        samples: Number of them.
        digest: Of the table of objects; None if the dataset has none.
        filter: What chose them, as text; None if nothing did.
        grouping: What made samples of several of them, as text; None if nothing did.
        labels: What tells the classes of the samples from others; None if they have none.
        shuffle: Whether epochs are shuffled.
        seed: Of the shuffled orders.
    """

    samples: int
    digest: str | None
    filter: str | None
    grouping: str | None
    labels: str | None
    shuffle: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a job is.

    Attributes:
        epoch: From 0.
        consumed: How many samples of the epoch all ranks together have received.
    """

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank reads of the rest of an epoch.

    Attributes:
        places: In the epoch's order.
        extra: A place that is read once more behind them, so that all ranks have as many; or None.
        batch_size: Samples of a batch; the last one may be shorter.
        begin: Where the job was.
        step: Samples that all ranks together receive with one batch each.
        stop: The place behind the last one of all ranks.
    """

    places: range
    extra: int | None
    batch_size: int
    begin: Cursor
    step: int
    stop: int

    def __len__(self) -> int:
        """Return the number of batches."""
        return (len(self.places) + (self.extra is not None) + self.batch_size - 1) // self.batch_size

    def after(self, batches: int) -> Cursor:
        """Return where the job is when this rank has received so many batches, as all others have."""
        return replace(self.begin, consumed=min(self.begin.consumed + batches * self.step, self.stop))


def share_of(
    begin: Cursor,
    samples: int,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    drop_last: bool = False,
    even: Even | None = None,
) -> Share:
    """Return what a rank reads from where the job is to the end of the epoch.

    The samples that are left go to the ranks in turn. Over all ranks each of them comes exactly once, but for those
    that are dropped, and those that come once more.

    Args:
        begin: Where the job is.
        samples: Of the epoch.
        rank: From 0.
        world_size: Number of ranks.
        batch_size: Of a rank.
        drop_last: Leave out what does not fill a batch on all ranks.
        even: What makes the ranks equal: ``"drop"`` leaves out what cannot be divided, ``"pad"`` gives the epoch's last
            sample once more to those who would have one less, ``"wrap"`` the epoch's first ones. None: they may differ
            by one sample.

    Raises:
        ArgumentError: There are fewer samples than ranks, which cannot be made even.
    """
    if even is not None and samples < world_size:
        raise ArgumentError(
            f"even={even!r} cannot make {world_size} ranks equal with {samples} samples: there must be at least one "
            "for each."
        )
    step = world_size * batch_size
    left = samples - begin.consumed
    if drop_last:
        left -= left % step
    elif even == "drop":
        left -= left % world_size
    stop = begin.consumed + left
    odd = left % world_size
    extra = None
    if odd and rank >= odd and even is not None:
        extra = samples - 1 if even == "pad" else rank - odd
    return Share(range(begin.consumed + rank, stop, world_size), extra, batch_size, begin, step, stop)


def state_of(course: Course, cursor: Cursor) -> dict[str, object]:
    """Return course and cursor as plain values, which JSON can hold: below 1 kB, and equal on all ranks."""
    return {"version": _VERSION, **asdict(course), **asdict(cursor)}


def cursor_of(course: Course, state: object) -> Cursor:
    """Return where the job was that saved a state.

    Raises:
        LoaderStateError: It is no such state, or of another course: what differs is named, with both values.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("version"), int):
        raise LoaderStateError(f"This is no state of an S3DataLoader: it has no version. It is {_short(state)}.")
    version: int = state["version"]
    if version > _VERSION:
        raise LoaderStateError(
            f"The state has version {version}, and this s3torch reads up to {_VERSION}. Update s3torch to resume it."
        )
    due = state_of(course, Cursor())
    if missing := [name for name in due if name not in state]:
        raise LoaderStateError(f"The state is damaged: it has no {', no '.join(missing)}.")
    different = [
        f"{name} {_short(state[name])} (here {_short(value)})"
        for name, value in asdict(course).items()
        if state[name] != value or type(state[name]) is not type(value)
    ]
    if different:
        raise LoaderStateError(
            f"The state is of other data, or of another order: it was saved with {', '.join(different)}. Make the "
            "loader as it was then, or begin anew without the state."
        )
    epoch, consumed = state["epoch"], state["consumed"]
    if not _is_count(epoch) or not _is_count(consumed) or consumed > course.samples:
        raise LoaderStateError(
            f"The state is damaged: epoch {_short(epoch)}, consumed {_short(consumed)} of {course.samples} samples."
        )
    return Cursor(epoch, consumed)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
