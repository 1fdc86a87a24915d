"""Tests of memory that becomes bytes without a copy."""

from __future__ import annotations

import platform
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from s3torch._transfer import buffers
from s3torch._transfer.buffers import BytesBuffer

MiB = 1024**2
SIZE = 16 * MiB

only_cpython = pytest.mark.skipif(
    platform.python_implementation() != "CPython" or buffers._NEEDS_A_COPY,
    reason="elsewhere the memory is copied, and the result is the same",
)


class _Growth:
    """The memory that a block needed at most, in bytes."""

    peak = 0


@contextmanager
def _measured() -> Iterator[_Growth]:
    growth = _Growth()
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield growth
        growth.peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 2, 100, 5000, MiB])
def test_what_was_written_is_returned(size: int):
    """The bytes are those that were written, in full."""
    buffer = BytesBuffer(size)
    content = bytes(index % 251 for index in range(size))
    assert len(buffer.view) == size
    buffer.view[:] = content
    found = buffer.to_bytes()
    assert type(found) is bytes
    assert found == content


@pytest.mark.parametrize("size", [2**63, 2**64 + 5])
def test_more_than_memory(size: int):
    """A size that no memory has is refused, and not cut down to what fits into a machine word."""
    with pytest.raises((MemoryError, OverflowError)):
        BytesBuffer(size)


def test_buffers_do_not_share_memory():
    """Small buffers are distinct, though CPython has only one empty and few one-byte bytes objects."""
    for size in (0, 1, 2):
        one, other = BytesBuffer(size), BytesBuffer(size)
        other.view[:] = b"y" * size
        one.view[:] = b"x" * size
        assert other.to_bytes() == b"y" * size
        assert one.to_bytes() == b"x" * size
        assert bytes(size) == b"\0" * size


@only_cpython
def test_the_measure_sees_a_copy():
    """The two tests below can fail: a copy shows in the measure."""
    original = bytearray(SIZE)
    with _measured() as growth:
        copied = bytes(original)
    assert len(copied) == SIZE
    assert growth.peak >= SIZE


@only_cpython
def test_to_bytes_makes_no_copy():
    """The bytes are the buffer's own memory: handing them over needs none."""
    buffer = BytesBuffer(SIZE)
    buffer.view[-3:] = b"end"
    with _measured() as growth:
        found = buffer.to_bytes()
    assert growth.peak < 64 * 1024
    assert len(found) == SIZE
    assert found.endswith(b"end")


@only_cpython
def test_a_buffer_is_made_once():
    """From its making to its bytes a buffer takes its memory once."""
    with _measured() as growth:
        buffer = BytesBuffer(SIZE)
        buffer.view[:3] = b"abc"
        found = buffer.to_bytes()
    assert SIZE <= growth.peak < SIZE + 64 * 1024
    assert found.startswith(b"abc")


@only_cpython
def test_the_bytes_are_one_object():
    """Asked again, the buffer returns the same object."""
    buffer = BytesBuffer(100)
    first = buffer.to_bytes()
    assert buffer.to_bytes() is first


def test_the_view_is_given_up():
    """After the bytes were handed over nobody can write to them through the view."""
    buffer = BytesBuffer(10)
    view = buffer.view
    buffer.to_bytes()
    with pytest.raises(ValueError, match="released"):
        view[0] = 1


def test_a_slice_that_is_still_there():
    """While a slice of the view is alive the bytes are a copy, which writing to the slice does not change."""
    buffer = BytesBuffer(10)
    buffer.view[:] = bytes(10)
    piece = buffer.view[2:4]
    found = buffer.to_bytes()
    piece[:] = b"ab"
    assert found == bytes(10)
