"""What a dataset does with a sample that cannot be made: raise, skip it, or ask the program.

An error is of a sample if another sample would not meet it: the transform failed, or the object is missing, was
replaced, or is damaged. A server that is down, a permission that is missing or credentials that have expired concern
all objects, and are always raised: who skips those reads nothing and learns nothing. So is an error of a transform that
was raised because of such a one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import torch.utils.data

from s3torch._buffer import as_index
from s3torch._forks import NO_FORK
from s3torch._log import LOG, printable
from s3torch.datasets.members import Item, SampleData
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    BadSamplesError,
    ConfigError,
    IntegrityError,
    ObjectChangedError,
    ObjectNotFoundError,
    S3Error,
    TruncatedBodyError,
    UnverifiedError,
)

__all__ = ["RAISE", "SKIP", "BadSamples", "OnError", "Skip", "check_on_error", "said"]


class _Answer(Enum):
    """What may become of a sample that cannot be made, other than a replacement."""

    SKIP = "skip"
    RAISE = "raise"


SKIP: Final = _Answer.SKIP
RAISE: Final = _Answer.RAISE

# What ``"skip"`` permits: enough for the few damaged files of a large collection, and below what bends a training.
_SHARE = 0.01
# A share counts of so many samples at least. Else the first bad one would be a share of 1.
_LEAST_READ = 1000
# Python 3.10 can keep notes, and does not print them.
_SHOWS_NOTES = sys.version_info >= (3, 11)
# These are of the object. All others of ours are of the service, the network, or the program.
_OF_OBJECT = (
    ArgumentError,  # such as a position that a transform has read from a damaged header
    IntegrityError,
    ObjectChangedError,
    ObjectNotFoundError,
    TruncatedBodyError,
    UnverifiedError,
)


@dataclass(frozen=True)
class Skip:
    """Samples that cannot be made are left out, until there are too many of them.

    A sample that is skipped in each epoch counts once. Each process counts for itself: DataLoader workers, too. A
    forked one goes on from the count of its parent.

    Args:
        at_most: How many samples may be skipped; None: the share decides.
        share: Which part of the samples that were read may be skipped, from 0.0 to 1.0, counted as if at least 1,000
            were read. None: no share counts, or 0.01 if ``at_most`` is None, too.
        fill: Another sample takes the place of each that is skipped, so that batches and streams keep their lengths. In
            a map dataset that is the next good one by index, in a stream a good one beside it. It comes twice then. Who
            puts ``dataset[i]`` together with something else of index i gets a wrong pair.

    Raises:
        ArgumentError: A number is out of range.
        ArgumentTypeError: An argument has the wrong type.
    """

    at_most: int | None = None
    share: float | None = None
    fill: bool = False

    def __post_init__(self) -> None:
        if self.at_most is not None and as_index("at_most", self.at_most) < 0:
            raise ArgumentError(f"at_most must be at least 0, or None, got {self.at_most}.")
        if self.share is not None and not isinstance(self.share, (int, float)):
            raise ArgumentTypeError(f"share must be a number from 0.0 to 1.0, or None, got {self.share!r}.")
        if self.share is not None and not 0 <= self.share <= 1:  # nan is refused as well
            raise ArgumentError(f"share must be from 0.0 to 1.0, or None, got {self.share}.")
        if not isinstance(self.fill, bool):
            raise ArgumentTypeError(f"fill must be a bool, got {self.fill!r}.")

    def most(self, read: int) -> int:
        """Return how many samples may be skipped of so many that were read."""
        share = _SHARE if self.share is None and self.at_most is None else self.share
        limits = [] if share is None else [int(share * max(read, _LEAST_READ))]
        return min(limits if self.at_most is None else [*limits, self.at_most])


OnError = Literal["raise", "skip"] | Skip | Callable[..., object]


def check_on_error(on_error: object) -> None:
    """Check the option.

    Raises:
        ArgumentError: It is an unknown word.
        ArgumentTypeError: It is something else than a word, a Skip or a callable.
    """
    if isinstance(on_error, str):
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"on_error must be 'raise', 'skip', a Skip or a callable, got {on_error!r}.")
    elif isinstance(on_error, type) or not (isinstance(on_error, Skip) or callable(on_error)):
        raise ArgumentTypeError(f"on_error must be 'raise', 'skip', a Skip(...) or a callable, got {on_error!r}.")


class _Note(str):  # noqa: SLOT000  # there are few
    """The note in an error that says of which sample it is.

    Attributes:
        answer: What a ``__getitem__`` of ours has decided, for the batch that has called it by that of a subclass.
        is_shown: Whether Python prints it with the error.
    """

    answer: _Answer | None = None
    is_shown = True

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # in another process it says the same and decides nothing


class BadSamples:
    """What a dataset does with samples that cannot be made, and how many of them there were in this process.

    Args:
        on_error: The option.

    Attributes:
        fills: Whether another sample takes the place of one that is skipped.
        read: How many samples were begun to be made.
        skipped: How often one was skipped.
    """

    def __init__(self, on_error: OnError) -> None:
        self._skip = Skip() if on_error == "skip" else on_error if isinstance(on_error, Skip) else None
        self._ask = on_error if callable(on_error) else None
        self.fills = self._skip is not None and self._skip.fill
        self.read = 0
        self.skipped = 0
        self._bad: set[int] = set()  # which, as the same ones come again in each epoch

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "read": 0, "skipped": 0, "_bad": set()}  # of this process

    def answer(
        self, error: Exception, item: Item | None, index: int, *, is_alone: bool = False, fills: bool = True
    ) -> object:
        """Return what takes the place of a sample that could not be made: SKIP, a replacement, or RAISE.

        The error gets a note that names the sample.

        Args:
            error: Why. With RAISE the caller raises it, so that no frame of this is in it.
            item: What the sample is made of; None if that is not known.
            index: Of the sample.
            is_alone: There is no batch that could be shorter: without another sample to fill in, it is raised.
            fills: Whether another may fill in where there is no batch.

        Raises:
            BadSamplesError: Too many were skipped.
            Exception: The program's ``on_error`` raised it.
        """
        note = _noted(error, item, index)
        found = self._decided(error, item, index)
        if found is SKIP and not (is_alone and not (self.fills and fills)):
            self._count(error, note, index)
        elif is_alone and isinstance(found, _Answer):
            note.answer, found = found, RAISE
        if found is RAISE and note.answer is not SKIP and not note.is_shown:
            LOG.error("%s cannot be made: %s", note, said(error))
        return found

    def answer_again(self, error: Exception, item: Item | None, index: int) -> object:
        """As ``answer``, of an error that may have come from a ``__getitem__`` of ours, which had an answer then."""
        note = _note_of(error)
        if note is None or note.answer is None:
            return self.answer(error, item, index)
        if note.answer is SKIP:
            self._count(error, note, index)
        return note.answer

    def _decided(self, error: Exception, item: Item | None, index: int) -> object:
        if self._ask is None:
            return SKIP if self._skip is not None and _is_of_sample(error) else RAISE
        traceback = error.__traceback__
        if isinstance(item, SampleData):
            item = item.objects[0]  # a program always gets the same kind of thing
        try:
            return self._ask(error, item, index)
        except Exception as raised:
            if raised is error:
                error.__traceback__ = traceback  # with the frame that has raised it again it would hold itself
                return RAISE
            _noted(raised, item, index).answer = RAISE
            raise

    def _count(self, error: Exception, note: str, index: int) -> None:
        with NO_FORK:  # a lock of all threads as well: they may share a dataset
            self.skipped += 1
            if self._skip is not None:  # a callable has no limit but its own
                self._bad.add(index)
            skipped, bad, read = self.skipped, len(self._bad), max(self.read, self.skipped)
        if self._skip is not None and bad > (most := self._skip.most(read)):
            raise BadSamplesError(
                f"{bad} of {read} samples that this process has read cannot be made, and {most} may be skipped. "
                f"The last one: {note}: {said(error)}. Mend the data or the transform, or permit more: on_error=Skip()."
            ) from error
        LOG.warning("%s was skipped (%d of %d that this process has read): %s", note, skipped, read, said(error))


def _is_of_sample(error: Exception) -> bool:
    """Whether an error, and each that it was raised because of, is of one sample alone."""
    seen: set[int] = set()
    due: list[BaseException | None] = [error]
    while due:
        each = due.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, ConfigError) or (isinstance(each, S3Error) and not isinstance(each, _OF_OBJECT)):
            return False
        due += [each.__cause__, each.__context__]
    return True


def said(error: BaseException) -> str:
    """Return the name of an error and what it says, on one line."""
    return printable(f"{type(error).__name__}: {error}")


def _notes_of(error: BaseException) -> list[object]:
    notes = getattr(error, "__notes__", None)
    return list(notes) if isinstance(notes, (list, tuple)) else []


def _note_of(error: BaseException) -> _Note | None:
    """Return our note in an error."""
    return next((note for note in _notes_of(error) if isinstance(note, _Note)), None)


def _noted(error: Exception, item: Item | None, index: int) -> _Note:
    """Name the sample in an error, by a note (PEP 678), and return that."""
    worker = torch.utils.data.get_worker_info()
    where = "" if worker is None else f" in DataLoader worker {worker.id}"
    what = "" if item is None else f", {printable(f's3://{item.bucket}/{item.key}')},"
    note = _Note(f"Sample {index}{what}{where}".rstrip(","))
    try:
        # One that a program keeps, and raises again and again, has the note of the last time.
        error.__notes__ = [  # type: ignore[attr-defined]  # typeshed knows it from Python 3.11 on
            *(each for each in _notes_of(error) if not isinstance(each, _Note)),
            note,
        ]
        note.is_shown = _SHOWS_NOTES
    except Exception:  # noqa: BLE001  # a class may forbid it, such as a frozen dataclass
        note.is_shown = False
    return note
