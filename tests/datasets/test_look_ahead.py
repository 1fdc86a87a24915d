"""The window of readers: order, bounds, and what happens to it when the consumer stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.look_ahead import _SIZES_SEEN, ExpectedSize, LookAhead

KiB = 1024


class Reader:
    """Stands for an S3Reader, and for the object that it reads: notes what is asked of it."""

    def __init__(self, footprint: int = 1) -> None:
        self.footprint = footprint
        self.known_size = footprint
        self.expected: int | None = None
        self.begun = False
        self.closed = False
        self.object_info = None  # it stands for its object, too

    def expect(self, size: int) -> None:
        self.expected = size

    def prefetch(self, *, send: bool) -> None:
        self.begun = True

    def close(self) -> None:
        self.closed = True


def numbered(readers: list[Reader], start: int = 0) -> Iterator[tuple[int, Reader]]:
    """Objects as a dataset hands them over."""
    return ((index, readers[index]) for index in range(start, len(readers)))


class Source:
    """Stands for a dataset: objects are their own readers."""

    def __init__(self) -> None:
        self.nudges: list[float] = []

    def _open(self, item: Reader) -> Reader:
        return item

    def _nudge(self, interval: float) -> None:
        self.nudges.append(interval)


SOURCE = Source()


def consume(ahead: LookAhead, items: Iterator[tuple[int, Reader]]) -> Iterator[Reader]:
    """Take all objects as a dataset does."""
    while (begun := ahead.take(items, SOURCE)) is not None:
        yield begun.reader
        ahead.settle(begun)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 8), st.integers(1, 100))
def test_bounds(footprints: list[int], max_objects: int, max_bytes: int):
    """Readers come in order, and what is begun and not consumed stays within both bounds, or is a single object."""
    readers = [Reader(footprint) for footprint in footprints]
    handed_out = []
    for reader in consume(LookAhead(max_objects, max_bytes), numbered(readers)):
        assert reader.begun
        handed_out.append(reader)
        held = [other for other in readers if other.begun and other not in handed_out[:-1]]
        assert len(held) <= max_objects
        assert sum(other.footprint for other in held) <= max_bytes or len(held) == 1
    assert handed_out == readers
    assert not any(reader.closed for reader in readers)


def test_bytes_are_given_back():
    """After all was consumed, or cancelled, as much fits as in the beginning."""
    ahead = LookAhead(8, 100)
    for end in (lambda: None, ahead.cancel):
        readers = [Reader(60) for _ in range(3)]
        assert len(list(consume(ahead, numbered(readers)))) == 3
        end()
        readers = [Reader(50) for _ in range(3)]
        ahead.take(numbered(readers), SOURCE)
        assert [reader.begun for reader in readers] == [True, True, False]
        ahead.cancel()


def test_the_window_stays_full():
    """What the consumer is done with makes room at once: beside the object in its hands, as many as fit are begun."""
    readers = [Reader(30) for _ in range(10)]
    for index, _ in enumerate(consume(LookAhead(8, 100), numbered(readers))):
        assert [reader.begun for reader in readers].count(True) == min(index + 3, 10)


def test_window_is_full():
    """As many objects as fit are begun before the first one is handed out."""
    readers = [Reader() for _ in range(10)]
    LookAhead(4, 100).take(numbered(readers), SOURCE)
    assert [reader.begun for reader in readers] == [True] * 4 + [False] * 6


def test_transfers_are_moved():
    """Transfers are moved a little after each start."""
    source = Source()
    LookAhead(4, 100).take(numbered([Reader() for _ in range(6)]), source)
    assert len(source.nudges) == 1
    assert source.nudges[0] > 0


def test_what_is_begun_is_kept_for_the_next_call():
    """Readers that were begun and not taken stay begun, and are taken first."""
    readers = [Reader() for _ in range(6)]
    ahead = LookAhead(4, 100)
    items = numbered(readers)
    assert [ahead.take(items, SOURCE).reader for _ in range(2)] == readers[:2]
    assert ahead.places == [2, 3, 4]
    more = numbered(readers, 5)
    assert [ahead.take(more, SOURCE).reader for _ in range(4)] == readers[2:]
    assert ahead.places == []
    assert ahead.take(more, SOURCE) is None


def test_a_reader_without_room_is_not_lost():
    """A reader that was taken in and does not fit yet comes in its turn."""
    readers = [Reader(60), Reader(60), Reader(60)]
    assert list(consume(LookAhead(4, 100), numbered(readers))) == readers


def test_cancelling():
    """What is cancelled is closed, but for the reader that was handed out."""
    readers = [Reader() for _ in range(5)]
    ahead = LookAhead(3, 100)
    ahead.take(numbered(readers), SOURCE)
    ahead.cancel()
    assert [reader.closed for reader in readers] == [False, True, True, False, False]
    assert ahead.places == []


def test_an_error_behind_good_objects():
    """An object that cannot be taken in costs none of those before it: its error is raised in its turn, once."""

    def items() -> Iterator[tuple[int, Reader]]:
        yield from numbered([Reader(), Reader()])
        raise IndexError("bad")

    ahead, bad = LookAhead(8, 100), items()
    assert ahead.take(bad, SOURCE).place == 0
    assert ahead.take(bad, SOURCE).place == 1
    with pytest.raises(IndexError, match="bad"):
        ahead.take(bad, SOURCE)
    assert ahead.take(bad, SOURCE) is None


def test_expected_sizes():
    """Objects of unknown size are taken for as large as the largest of late, and a little larger."""
    expected = ExpectedSize(2048 * KiB)
    assert expected.expected == 2048 * KiB
    for size in [None, *[100 * KiB] * 31]:
        expected.note(size)
    assert expected.expected == 2048 * KiB
    expected.note(80 * KiB)
    assert expected.expected == 125 * KiB
    expected.note(1000 * KiB)
    assert expected.expected == 1250 * KiB
    for _ in range(32):
        expected.note(10)
    for _ in range(32):
        expected.note(10)
    assert expected.expected == 64 * KiB


def test_readers_are_told_what_to_expect():
    """Each reader is told how large its object probably is."""
    readers = [Reader(100 * KiB) for _ in range(40)]
    list(consume(LookAhead(4, 8192 * KiB), numbered(readers)))
    assert readers[0].expected == 2048 * KiB
    assert readers[-1].expected == 125 * KiB


def test_how_long_an_expectation_lasts():
    """A large object is expected again until as many others were seen after those that it was among."""
    sizes = ExpectedSize(0)
    sizes.note(8192 * KiB)
    assert sizes.expected == 10240 * KiB
    for seen in range(1, 2 * _SIZES_SEEN):
        sizes.note(4096 * KiB)
        assert sizes.expected == (10240 * KiB if seen < 2 * _SIZES_SEEN - 1 else 5120 * KiB), seen
