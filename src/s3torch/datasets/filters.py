"""Which objects of a source belong to a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from s3torch.datasets.grouping import ByStem, Grouping
from s3torch.datasets.objects import S3BucketKeyData
from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["Filter", "check_filter", "described"]

# A state has two of these texts, and is below 1 kB whatever characters they have. A character is up to 12 in JSON.
_LONGEST = 250
_SHOWN = 16


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Chooses objects by their keys and sizes. An object belongs to the dataset if all that is given holds.

    Args:
        suffix: How the key ends, such as ``".jpg"``, or a tuple of which one fits; upper and lower case count.
        glob: A pattern of the whole key, or a tuple of which one fits: ``*`` is any text, ``/`` included, ``?`` one
            character, ``[ab]`` one of these (as ``--include`` of the AWS CLI).
        min_size: In bytes, of the smallest object that belongs to it.
        max_size: In bytes, of the largest.

    Raises:
        ArgumentError: A size is negative, or the smallest is above the largest.
        ArgumentTypeError: A value has the wrong type.
    """

    suffix: str | tuple[str, ...] | None = None
    glob: str | tuple[str, ...] | None = None
    min_size: int | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("suffix", "glob"):
            value = getattr(self, name)
            texts = value if isinstance(value, tuple) else (value,)
            if value is not None and not (texts and all(isinstance(text, str) for text in texts)):
                raise ArgumentTypeError(f"Filter({name}=...) must be a str or a tuple of them, got {value!r}.")
        for name in ("min_size", "max_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ArgumentTypeError(f"Filter({name}=...) must be an int, got {value!r}.")
            if value is not None and value < 0:
                raise ArgumentError(f"Filter({name}={value}) must be at least 0: it is bytes.")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ArgumentError(f"Filter(min_size={self.min_size}, max_size={self.max_size}) leaves no object.")

    def __repr__(self) -> str:
        given = [f"{each.name}={value!r}" for each in fields(self) if (value := getattr(self, each.name)) is not None]
        return f"Filter({', '.join(given)})"

    def __call__(self, item: S3BucketKeyData) -> bool:
        """Return whether an object belongs to the dataset.

        Raises:
            ArgumentError: A size is asked for, and nobody has told that of the object: it was named by a URI.
        """
        key = item.key
        if self.suffix is not None and not key.endswith(self.suffix):
            return False
        if self.glob is not None:
            patterns = (self.glob,) if isinstance(self.glob, str) else self.glob
            if not any(fnmatchcase(key, pattern) for pattern in patterns):
                return False
        if self.min_size is None and self.max_size is None:
            return True
        if item.object_info is None:
            raise ArgumentError(
                f"{self!r} needs the size of s3://{item.bucket}/{key}, which is not known: the object was named by a "
                "URI. Use a prefix, or a table of a listing."
            )
        size = item.object_info.size
        return (self.min_size or 0) <= size and (self.max_size is None or size <= self.max_size)


def check_filter(given: object) -> None:
    """Raise an ArgumentTypeError if this is no filter."""
    if given is not None and not callable(given):
        raise ArgumentTypeError(
            f"filter must be a Filter or callable with an S3BucketKeyData, got {given!r}. By a suffix: "
            'filter=Filter(suffix=".jpg").'
        )


def described(given: Filter | Callable[[S3BucketKeyData], bool] | Grouping | None) -> str | None:
    """Return the text by which the state of a loader knows a filter or grouping: the same in every process."""
    if given is None:
        return None
    if isinstance(given, (Filter, ByStem)):
        return _short(repr(given))
    kind = type(given)
    name = getattr(given, "__qualname__", kind.__qualname__)
    return _short(f"{getattr(given, '__module__', kind.__module__)}.{name}")


def _short(text: str) -> str:
    """Return a text that is too long for a state as its beginning, and what tells it from others."""
    if len(ascii(text)) <= _LONGEST:
        return text
    return f"{text[:_SHOWN]}... {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
