"""Tests of how transfers are cut into requests."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._transfer.plan import (
    MAX_OBJECT_SIZE,
    MAX_PART_SIZE,
    MAX_PARTS,
    coalesce,
    even_part_size,
    known_upload_part_size,
    part_size_for,
    split,
    upload_part_size,
    upload_parts_at_once,
)

MiB = 1024**2


@pytest.mark.parametrize(
    ("start", "stop", "part_size", "ranges"),
    [
        (0, 10, 4, [(0, 4), (4, 8), (8, 10)]),
        (0, 8, 4, [(0, 4), (4, 8)]),
        (3, 5, 4, [(3, 5)]),
        (3, 11, 4, [(3, 7), (7, 11)]),
        (0, 1, 1, [(0, 1)]),
        (5, 5, 4, []),
        (7, 5, 4, []),
    ],
)
def test_split(start: int, stop: int, part_size: int, ranges: list[tuple[int, int]]):
    """A range is cut from its start; the last part may be shorter, and an empty range has none."""
    assert split(start, stop, part_size) == ranges


@given(st.integers(0, 10**15), st.integers(1, 10**6), st.integers(1, 2000))
def test_split_covers_the_range(start: int, length: int, parts: int):
    """The parts follow each other without gap or overlap, all but the last of full size and none empty."""
    part_size = max(1, length // parts + 1)
    ranges = split(start, start + length, part_size)
    lefts, rights = zip(*ranges, strict=True)
    assert (lefts[0], rights[-1]) == (start, start + length)
    assert lefts[1:] == rights[:-1]
    assert {right - left for left, right in ranges[:-1]} <= {part_size}
    assert 0 < rights[-1] - lefts[-1] <= part_size


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(1, [1]), (8, [8]), (9, [9]), (11, [11]), (13, [7, 6]), (16, [8, 8]), (17, [9, 8]), (25, [9, 9, 7])],
)
def test_even_part_size(length: int, sizes: list[int]):
    """A few bytes more than a part do not make another request."""
    assert [right - left for left, right in split(0, length, even_part_size(length, 8))] == sizes


@pytest.mark.parametrize(
    ("length", "others", "size"),
    [
        (0, 0, 4 * MiB),
        (MiB, 0, 4 * MiB),
        (64 * MiB, 0, 4 * MiB),
        (384 * MiB, 0, 6 * MiB),
        (512 * MiB, 0, 8 * MiB),
        (5 * 1024**4, 0, 8 * MiB),
        (64 * MiB, 1, 8 * MiB),
        (64 * MiB, 63, 8 * MiB),
        (64 * MiB, 64, 16 * MiB),
        (64 * MiB, 1000, 16 * MiB),
    ],
)
def test_part_size_for(length: int, others: int, size: int):
    """A lone read is spread over the connections, and one beside many others is split as little as memory allows."""
    assert part_size_for(length, 8 * MiB, others, 64, 1024 * MiB) == size


def test_part_size_for_little_memory():
    """Parts are never larger than usual because memory is short, and never smaller than usual but for a lone read."""
    assert part_size_for(MiB, 5 * MiB, 64, 64, 64 * MiB) == 5 * MiB
    assert part_size_for(100 * MiB, 5 * MiB, 0, 1, 64 * MiB) == 5 * MiB


@pytest.mark.parametrize(
    ("part_number", "times"),
    [(1, 1), (2, 1), (300, 1), (301, 2), (600, 2), (601, 4), (901, 8), (3001, 1024), (10_000, 1024)],
)
def test_upload_part_size(part_number: int, times: int):
    """The size doubles with every 300 parts."""
    assert upload_part_size(part_number, 5 * MiB) == 5 * MiB * times


@pytest.mark.parametrize(
    "part_size", [5 * MiB, 5 * MiB + 1, 6 * MiB, 8 * MiB, 9 * MiB, 64 * MiB, 2500 * MiB, MAX_PART_SIZE]
)
def test_uploads_reach_the_largest_object(part_size: int):
    """From any part size on, an upload of 10,000 parts holds 39 TB, and no part is larger than S3 takes."""
    sizes = [upload_part_size(number, part_size) for number in range(1, MAX_PARTS + 1)]
    assert sizes[0] == part_size
    assert sizes == sorted(sizes)
    assert sizes[-1] <= MAX_PART_SIZE == 5 * 1024**3
    assert sum(sizes) >= 39 * 1000**4


@given(st.integers(5 * MiB, MAX_PART_SIZE))
def test_uploads_reach_the_largest_object_from_any_part_size(part_size: int):
    """The same, for any part size that may be configured."""
    doublings = range(-(-MAX_PARTS // 300))
    sizes = [upload_part_size(1 + 300 * number, part_size) for number in doublings]
    assert sum(300 * size for size in sizes[:-1]) + (MAX_PARTS - 300 * (len(sizes) - 1)) * sizes[-1] >= 39 * 1000**4


@given(st.integers(0, MAX_OBJECT_SIZE), st.integers(5 * MiB, MAX_PART_SIZE))
@example(MAX_OBJECT_SIZE, 5 * MiB)
@example(MAX_OBJECT_SIZE - 1, 8 * MiB)
@example(5 * MiB * MAX_PARTS, 5 * MiB)
@example(5 * MiB * MAX_PARTS + 1, 5 * MiB)
def test_any_known_size_fits(size: int, part_size: int):
    """Any size up to S3's limit fits in 10,000 parts of 5 MiB to 5 GiB, of the configured size if possible."""
    found = known_upload_part_size(size, part_size)
    assert 5 * MiB <= part_size <= found <= MAX_PART_SIZE
    assert -(-size // found) <= MAX_PARTS
    assert found == part_size or (found - MiB) * MAX_PARTS < size


@pytest.mark.parametrize("size", [-1, MAX_OBJECT_SIZE + 1])
def test_no_such_object(size: int):
    """What is beyond S3's limit is refused before."""
    with pytest.raises(AssertionError):
        known_upload_part_size(size, 8 * MiB)


@pytest.mark.parametrize(
    ("capacity", "part_size", "memory", "expected"),
    [
        (8, 8, 256, 31),
        (64, 64, 256, 3),
        (128, 128, 256, 1),
        (300, 300, 256, 1),
        (16, 8, 256, 15),
        (64, 8, 256, 3),
        (128, 8, 256, 3),
        (256, 8, 256, 3),
        (512, 8, 256, 1),
        (5120, 8, 256, 1),
        (16, 8, 16, 3),
        (64, 8, 16, 1),
    ],
)
def test_upload_parts_at_once(capacity: int, part_size: int, memory: int, expected: int):
    """As many as memory allows; of parts that have grown three, if that takes no more than four times as much."""
    found = upload_parts_at_once(capacity * MiB, part_size * MiB, memory * MiB)
    assert found == expected
    assert (found + 1) * capacity <= max(memory * (4 if capacity > part_size else 1), 2 * capacity)


@pytest.mark.parametrize("part_number", [-1, 0, 10_001])
def test_there_is_no_such_part(part_number: int):
    """A part that S3 does not count is our own bug."""
    with pytest.raises(AssertionError, match=f"part {part_number} of an upload"):
        upload_part_size(part_number, 5 * MiB)


@pytest.mark.parametrize(
    ("ranges", "groups"),
    [
        ([(0, 50), (50, 100)], [[0, 1]]),
        ([(0, 50), (50, 101)], [[0], [1]]),
        ([(0, 40), (60, 100)], [[0, 1]]),
        ([(0, 40), (60, 101)], [[0], [1]]),
        ([(0, 60), (60, 120), (120, 160), (160, 161)], [[0], [1, 2], [3]]),
        ([(0, 500), (500, 501)], [[0], [1]]),
        ([(7, 60), (60, 107), (107, 200)], [[0, 1], [2]]),
    ],
)
def test_groups_are_no_larger_than_they_may_be(ranges: list[tuple[int, int]], groups: list[list[int]]):
    """A group spans 100 bytes at most, gaps included; only a single range may be larger."""
    assert coalesce(ranges, 20, 100) == groups


@pytest.mark.parametrize(
    ("ranges", "groups"),
    [
        ([(0, 10), (30, 40)], [[0, 1]]),
        ([(0, 10), (31, 40)], [[0], [1]]),
        ([(30, 40), (0, 10), (10, 30)], [[1, 2, 0]]),
        ([(0, 10), (9, 20)], [[0], [1]]),
        ([(0, 10), (0, 10)], [[0], [1]]),
        ([(5, 5), (0, 10), (10, 10)], [[1]]),
        ([], []),
    ],
)
def test_groups_of_ranges(ranges: list[tuple[int, int]], groups: list[list[int]]):
    """Ranges with at most 20 bytes between them are read together; what overlaps or is empty is not."""
    assert coalesce(ranges, 20, 1000) == groups
