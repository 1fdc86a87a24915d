"""The window of readers: order, bounds, and what happens to it when the consumer stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.look_ahead import LookAhead


class Reader:
    """Stands for an S3Reader: notes what is asked of it."""

    def __init__(self, footprint: int = 1) -> None:
        self.footprint = footprint
        self.begun = False
        self.closed = False

    def prefetch(self, *, send: bool) -> None:
        self.begun = True

    def close(self) -> None:
        self.closed = True


def numbered(readers: list[Reader], start: int = 0) -> Iterator[tuple[int, Reader]]:
    """Readers as a dataset hands them over."""
    return ((index, readers[index]) for index in range(start, len(readers)))


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 8), st.integers(1, 100))
def test_bounds(footprints: list[int], max_objects: int, max_bytes: int):
    """Readers come in order, and what is begun and not consumed stays within both bounds, or is a single object."""
    readers = [Reader(footprint) for footprint in footprints]
    handed_out = []
    for reader in LookAhead(max_objects, max_bytes, lambda _interval: None).through(numbered(readers)):
        assert reader.begun
        handed_out.append(reader)
        held = [other for other in readers if other.begun and other not in handed_out[:-1]]
        assert len(held) <= max_objects
        assert sum(other.footprint for other in held) <= max_bytes or len(held) == 1
    assert handed_out == readers
    assert not any(reader.closed for reader in readers)


def test_window_is_full():
    """As many objects as fit are begun before the first one is handed out."""
    readers = [Reader() for _ in range(10)]
    next(LookAhead(4, 100, lambda _interval: None).through(numbered(readers)))
    assert [reader.begun for reader in readers] == [True] * 4 + [False] * 6


def test_transfers_are_moved():
    """Transfers are moved a little after each start, and in any case before the consumer of a batch is busy with it."""
    nudges: list[tuple[float, int]] = []
    readers = [Reader() for _ in range(6)]
    handed_out: list[Reader] = []
    ahead = LookAhead(4, 100, lambda interval: nudges.append((interval, len(handed_out))))
    handed_out.extend(ahead.through(numbered(readers), 2))
    assert [count for interval, count in nudges if interval > 0] == [0, 1]
    assert [count for interval, count in nudges if interval == 0] == [2]


def test_what_is_begun_is_kept_for_the_next_call():
    """Readers beyond the count stay begun, and the next call hands them out first."""
    readers = [Reader() for _ in range(6)]
    ahead = LookAhead(4, 100, lambda _interval: None)
    assert list(ahead.through(numbered(readers), 2)) == readers[:2]
    assert ahead.indices == [2, 3, 4]
    assert list(ahead.through(numbered(readers, 5), 4)) == readers[2:]
    assert ahead.indices == []


def test_a_reader_without_room_is_not_lost():
    """A reader that was taken in and does not fit yet is the next one of the next call."""
    readers = [Reader(60), Reader(60), Reader(60)]
    ahead = LookAhead(4, 100, lambda _interval: None)
    assert list(ahead.through(numbered(readers), 1)) == readers[:1]
    assert ahead.indices == [1]
    assert list(ahead.through(numbered(readers, 2), 2)) == readers[1:]


def test_stopping_early_cancels():
    """When the consumer stops, all that was begun for it is closed, but not the reader that it holds."""
    readers = [Reader() for _ in range(5)]
    window = LookAhead(3, 100, lambda _interval: None).through(numbered(readers))
    next(window)
    window.close()
    assert [reader.closed for reader in readers] == [False, True, True, False, False]


def test_an_error_cancels():
    """An error of the consumer, or of a reader, closes what was begun."""
    readers = [Reader() for _ in range(5)]
    ahead = LookAhead(3, 100, lambda _interval: None)
    with pytest.raises(ZeroDivisionError):
        [1 // 0 for _ in ahead.through(numbered(readers))]
    assert [reader.closed for reader in readers[:3]] == [False, True, True]
    assert ahead.indices == []
