"""Which bytes of a tensor a slice needs. Pure arithmetic on shapes in C order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["Selection", "ranges_of", "select"]

# Each range costs a call to the system. Where ranges are smaller than this (bytes), and the rows that they lie in
# hold at most so many times what is wanted, whole rows are fetched; memory grows by no more than that. Not tuned.
_SMALL_RANGE = 16 * 1024
_MAX_OVERFETCH = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """A slice of a tensor, taken apart.

    Attributes:
        bounds: Of each dimension of the tensor: ``start, stop`` in items.
        shape: Of the result: dimensions that an integer chose are gone.
    """

    bounds: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]


def select(shape: Sequence[int], index: object) -> Selection:
    """Take an index apart, as torch understands it.

    Args:
        shape: Of the tensor, in items.
        index: Integers, slices without a step, and at most one ``...``; one of them, or a tuple.

    Raises:
        ArgumentError: An integer is out of range, a slice has a step, or there are too many.
        ArgumentTypeError: It is made of something else.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    ellipses = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(items) - len(ellipses) > len(shape) or len(ellipses) > 1:
        raise ArgumentError(f"The index {index!r} has too many items for a tensor of shape {list(shape)}.")
    place = ellipses[0] if ellipses else len(items)
    missing = len(shape) - len(items) + len(ellipses)
    items[place : place + 1] = [slice(None)] * missing
    bounds, kept = [], []
    for size, item in zip(shape, items, strict=True):
        if isinstance(item, slice):
            if item.step not in (None, 1):
                raise ArgumentError(f"The slice {item!r} has a step: only 1 is possible here.")
            try:
                start, stop, _ = item.indices(size)
            except TypeError as error:
                raise ArgumentTypeError(f"The slice {item!r} must be made of integers.") from error
            bounds.append((start, max(start, stop)))
            kept.append(max(0, stop - start))
        else:
            start = _position(item, size)
            bounds.append((start, start + 1))
    return Selection(tuple(bounds), tuple(kept))


def _position(item: object, size: int) -> int:
    try:
        if isinstance(item, bool):
            raise TypeError  # torch takes it for a mask
        position = operator.index(item)  # type: ignore[arg-type]  # what has no index is a TypeError
    except TypeError as error:
        raise ArgumentTypeError(f"An index is made of integers, slices and '...', got {item!r}.") from error
    if not -size <= position < size:
        raise ArgumentError(f"The index {position} is out of range for a dimension of {size} items.")
    return position % size


def ranges_of(
    shape: Sequence[int], bounds: Sequence[tuple[int, int]], item_size: int
) -> tuple[list[tuple[int, int]], tuple[tuple[int, int], ...]]:
    """Return which bytes of the tensor to fetch.

    Args:
        shape: Of the tensor, in items.
        bounds: What is wanted of each dimension.
        item_size: In bytes.

    Returns:
        The ranges in order, and what of each dimension is fetched: as wanted, or all of it where ranges would be many
        and small. Put together they are a tensor in C order of what is fetched.
    """
    if any(start == stop for start, stop in bounds):
        return [], tuple(bounds)
    fetched = list(bounds)
    for dimension in reversed(range(1, len(shape))):
        wanted = prod(stop - start for start, stop in bounds[dimension:])
        if wanted * item_size >= _SMALL_RANGE or prod(shape[dimension:]) > _MAX_OVERFETCH * wanted:
            break
        fetched[dimension] = (0, shape[dimension])
    # Behind the last dimension of which not all is fetched, all bytes follow one another.
    inner = len(shape)
    while inner and fetched[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    inner = max(0, inner - 1)
    strides = [prod(shape[dimension + 1 :]) * item_size for dimension in range(len(shape))]
    if not shape:
        return [(0, item_size)], ()
    start, stop = fetched[inner]
    ranges = []
    for outer in product(*(range(*each) for each in fetched[:inner])):
        base = sum(position * stride for position, stride in zip(outer, strides, strict=False))
        ranges.append((base + start * strides[inner], base + stop * strides[inner]))
    return ranges, tuple(fetched)
