"""Which bytes a slice needs, compared with torch for any shape and index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3torch.checkpoint.safetensors.slices import ranges_of, select
from s3torch.errors import ArgumentError, ArgumentTypeError

bounds = st.none() | st.integers(-9, 9)


@st.composite
def cases(draw: st.DrawFn):
    """A shape, and an index that fits it."""
    shape = draw(st.lists(st.integers(1, 12), max_size=4))
    index = [draw(st.integers(-size, size - 1) | st.builds(slice, bounds, bounds)) for size in shape]
    if draw(st.booleans()):
        start = draw(st.integers(0, len(index)))
        index[start : draw(st.integers(start, len(index)))] = [...]
    return shape, tuple(index)


@given(cases(), st.sampled_from([1, 8, 20_000]))
def test_as_torch(case, item_size):
    """The fetched bytes, put together and cut, are what torch's index gives, and few more."""
    shape, index = case
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    selection = select(shape, index)
    ranges, fetched = ranges_of(shape, selection.bounds, item_size)
    assert all(start < stop for start, stop in ranges)
    items = [item for start, stop in ranges for item in range(start // item_size, stop // item_size)]
    cut = torch.tensor(items, dtype=torch.int64).reshape([stop - start for start, stop in fetched])
    for dimension, ((start, stop), (begin, _)) in enumerate(zip(selection.bounds, fetched, strict=True)):
        cut = cut.narrow(dimension, start - begin, stop - start)
    assert torch.equal(cut.reshape(selection.shape), whole[index])
    assert len(items) <= (1 if item_size == 20_000 else 8) * whole[index].numel()


@pytest.mark.parametrize("index", [3, -4, (0, 0, 0), slice(0, 3, 2), slice(None, None, -1), (..., ...)])
def test_refused(index):
    """What is out of range, has a step or too many items is refused."""
    with pytest.raises(ArgumentError):
        select((3, 2), index)


@pytest.mark.parametrize("index", [True, None, "a", [0, 1], 1.0, slice("a", 1)])
def test_refused_types(index):
    """What is no integer, slice or ellipsis is refused."""
    with pytest.raises(ArgumentTypeError):
        select((3, 2), index)
