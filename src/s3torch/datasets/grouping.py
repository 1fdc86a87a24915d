"""Several objects that are one sample: which belong together, and what each of them is in the sample.

The groups of ten million objects are a few arrays of numbers, as the table of objects is: 8 bytes for each object and
each sample, and 2 for what the object is. The names by which objects find one another are forgotten once they have.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch

from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.errors import ArgumentError, ArgumentTypeError, SampleLayoutError

__all__ = ["ByStem", "Grouping", "Groups", "by_stem", "check_grouping", "first_of", "group", "numbers", "uri_of"]

_log = logging.getLogger(__name__)

_MISSING = ("raise", "skip")
_NAMED = 3  # that an error or a message names, of many
_MOST_MEMBERS = 2**15  # other names of members than that are a mistake: the numbers of the names have 16 bits
_NO_SAMPLE = -1

Grouping = Callable[[S3BucketKeyData], "tuple[str, str] | None"]


@dataclass(frozen=True)
class ByStem:
    """Joins objects whose keys are equal but for their suffixes; made by ``by_stem``."""

    suffixes: tuple[str, ...]
    optional: tuple[str, ...] = ()
    missing: Literal["raise", "skip"] = "raise"
    _longest_first: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for suffix in (*self.suffixes, *self.optional):
            if not isinstance(suffix, str):
                raise ArgumentTypeError(f"A suffix must be a str, such as '.jpg', got {suffix!r} in {self!r}.")
            if not suffix:
                raise ArgumentError(f"{self!r} has an empty suffix, which every key ends in.")
        if not self.suffixes:
            raise ArgumentError("by_stem() needs at least one suffix that each sample has.")
        if len({*self.suffixes, *self.optional}) < len(self.suffixes) + len(self.optional):
            raise ArgumentError(f"{self!r} names a suffix twice.")
        if self.missing not in _MISSING:
            raise ArgumentError(f"missing must be one of {', '.join(map(repr, _MISSING))}, got {self.missing!r}.")
        longest_first = sorted((*self.suffixes, *self.optional), key=len, reverse=True)
        object.__setattr__(self, "_longest_first", tuple(longest_first))

    def __repr__(self) -> str:
        optional = [f"optional={self.optional!r}"] if self.optional else []
        missing = [f"missing={self.missing!r}"] if self.missing != "raise" else []
        return f"by_stem({', '.join([*map(repr, self.suffixes), *optional, *missing])})"

    def __call__(self, item: S3BucketKeyData) -> tuple[str, str] | None:
        """Return the key without its suffix, and the suffix: the longest that fits. None: the key has none of them."""
        for suffix in self._longest_first:
            if item.key.endswith(suffix):
                return item.key[: -len(suffix)], suffix
        return None


def by_stem(*suffixes: str, optional: Iterable[str] = (), missing: Literal["raise", "skip"] = "raise") -> ByStem:
    """Return what makes one sample of the objects whose keys are equal but for their suffixes.

    Of two suffixes that fit a key the longer one counts: with ``".png"`` and ``".seg.png"``, ``a.seg.png`` is a member
    of the sample ``a``. Upper and lower case count. Objects with other suffixes are left out, and a message of the log
    counts them. The bucket does not count, so that one bucket may have the images and another one the captions.

    Args:
        suffixes: Such as ``".jpg"``. Each sample has all of them.
        optional: Suffixes that a sample may lack; a list of them.
        missing: What happens if an object is missing. ``"raise"``: an error names the samples. ``"skip"``: the samples
            that lack one are left out, and a warning of the log counts them and names the first.

    Raises:
        ArgumentError: There is no suffix, an empty one, or one twice; or ``missing`` is none of these.
        ArgumentTypeError: A suffix is no string.
    """
    if isinstance(optional, str):
        raise ArgumentTypeError(
            f"optional must be a list of suffixes, got {optional!r}. Write optional=({optional!r},)."
        )
    return ByStem(suffixes, tuple(optional), missing)


def check_grouping(given: object) -> None:
    """Raise an ArgumentTypeError if this cannot be the option ``samples``."""
    if given is not None and not callable(given):
        raise ArgumentTypeError(
            f"samples must be made by by_stem, or be callable with an S3BucketKeyData, got {given!r}. By suffixes: "
            'samples=by_stem(".jpg", ".json").'
        )


@dataclass(frozen=True)
class Groups:
    """Which objects of a table are samples together.

    Attributes:
        names: Of the members, such as suffixes.
        members: Numbers of objects, sample by sample.
        kinds: Of each of them, the number of its name.
        ends: Of each sample, the place behind its last member.
    """

    names: tuple[str, ...]
    members: array[int]
    kinds: array[int]
    ends: array[int]

    def __len__(self) -> int:
        return len(self.ends)


def group(objects: ObjectTable, grouping: Grouping) -> Groups:
    """Return which objects are samples together. Samples come in the order of their first objects.

    The members of a sample come in the order of the suffixes of ``by_stem``; else in that in which their names are
    first seen.

    Args:
        objects: All of the dataset.
        grouping: Returns the names of an object's sample, and of what it is in that; None if it is in none.

    Raises:
        ArgumentTypeError: ``grouping`` has returned something else.
        SampleLayoutError: Two objects are the same member of one sample, or a sample lacks one.
    """
    kinds = {name: number for number, name in enumerate(_known_names(grouping))}
    sample_of, kind_of = _assigned(objects, grouping, kinds)
    samples, kind = numbers(sample_of), numbers(kind_of).long()
    total = int(samples.max()) + 1 if len(samples) else 0
    slots = samples * len(kinds) + kind
    order = torch.argsort(slots, stable=True)[int((samples == _NO_SAMPLE).sum()) :]  # what is in no sample comes first
    slots = slots[order]
    if (twice := torch.nonzero(slots[1:] == slots[:-1])).numel():
        raise _twice(objects, grouping, order, twice.flatten())
    samples, kind = samples[order], kind[order]
    if isinstance(grouping, ByStem):
        needed = torch.bincount(samples[kind < len(grouping.suffixes)], minlength=total)
        whole = needed == len(grouping.suffixes)
        if not bool(whole.all()):
            _report_missing(objects, grouping, order, samples, kind, whole)
            order, samples, kind = order[whole[samples]], samples[whole[samples]], kind[whole[samples]]
    counts = torch.bincount(samples, minlength=total)
    ends = counts[counts > 0].cumsum(0)
    _log_left_out(objects, sample_of, len(ends))
    return Groups(tuple(kinds), _array("q", order), _array("h", kind), _array("q", ends))


def numbers(values: array[int]) -> torch.Tensor:
    """Return the numbers of an array as a tensor over the same memory."""
    kind = {"h": torch.int16, "q": torch.int64}[values.typecode]
    return torch.frombuffer(values, dtype=kind) if values else torch.zeros(0, dtype=kind)


def _array(typecode: str, values: torch.Tensor) -> array[int]:
    found = array(typecode, bytes(array(typecode).itemsize * len(values)))
    numbers(found).copy_(values)
    return found


def _known_names(grouping: Grouping) -> tuple[str, ...]:
    return (*grouping.suffixes, *grouping.optional) if isinstance(grouping, ByStem) else ()


def _assigned(objects: ObjectTable, grouping: Grouping, kinds: dict[str, int]) -> tuple[array[int], array[int]]:
    """Return the number of each object's sample, and that of what it is in that; adds new names to ``kinds``."""
    sample_of, kind_of = array("q"), array("h")
    samples: dict[str, int] = {}
    for item in objects:
        found: object = grouping(item)  # whatever a program returns
        if found is None:
            sample_of.append(_NO_SAMPLE)
            kind_of.append(0)
            continue
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(name, str) for name in found)):
            raise ArgumentTypeError(
                f"samples={grouping!r} must return two strings, the names of the sample and of the member, or None. "
                f"For {uri_of(item)} it has returned {found!r}."
            )
        sample, name = found
        sample_of.append(samples.setdefault(sample, len(samples)))
        kind_of.append(kinds.setdefault(name, len(kinds)))
        if len(kinds) > _MOST_MEMBERS:
            raise SampleLayoutError(
                f"samples={grouping!r} has named more than {_MOST_MEMBERS} kinds of members, the last one {name!r}. It "
                "returns the name of the sample first, then that of the member, such as a suffix."
            )
    return sample_of, kind_of


def _twice(objects: ObjectTable, grouping: Grouping, order: torch.Tensor, twice: torch.Tensor) -> SampleLayoutError:
    first, second = (objects[int(order[int(twice[0]) + step])] for step in (0, 1))
    sample, name = grouping(first) or ("", "")
    return SampleLayoutError(
        f"Two objects are {name!r} of the sample {sample!r}: {uri_of(first)} and {uri_of(second)}. "
        f"{len(twice)} objects in all come twice like this: a sample has one of each."
    )


def _report_missing(
    objects: ObjectTable,
    grouping: ByStem,
    order: torch.Tensor,
    samples: torch.Tensor,
    kind: torch.Tensor,
    whole: torch.Tensor,
) -> None:
    """Raise an error of the samples that lack an object, or write a warning, as ``grouping`` says."""
    lacking = torch.nonzero(~whole).flatten()
    named = []
    for sample in lacking[:_NAMED]:
        places = torch.nonzero(samples == sample).flatten()
        there = {int(each) for each in kind[places]}
        stem = (grouping(objects[int(order[places[0]])]) or ("",))[0]
        missing = [suffix for number, suffix in enumerate(grouping.suffixes) if number not in there]
        named.append(f"{stem!r} has no {' and no '.join(missing)}")
    what = f"{len(lacking)} of {len(whole)} samples of {grouping!r} lack an object: {first_of(named, len(lacking))}."
    if grouping.missing == "raise":
        raise SampleLayoutError(
            f'{what} Upload what is missing, name it in optional=, or leave such samples out by missing="skip".'
        )
    _log.warning("%s They are left out.", what)


def _log_left_out(objects: ObjectTable, sample_of: array[int], count: int) -> None:
    alone = sample_of.count(_NO_SAMPLE)
    if alone:
        first = uri_of(objects[sample_of.index(_NO_SAMPLE)])
        _log.info(
            "%d objects are %d samples; %d objects belong to none, the first is %s", len(objects), count, alone, first
        )


def uri_of(item: S3BucketKeyData) -> str:
    """Return the URI of an object."""
    return f"s3://{item.bucket}/{item.key}"


def first_of(texts: Iterable[str], count: int) -> str:
    """Return the first few of so many texts, and how many more there are."""
    first = list(islice(texts, _NAMED))
    return f"{', '.join(first)}{f', and {count - len(first)} more' if count > len(first) else ''}"
