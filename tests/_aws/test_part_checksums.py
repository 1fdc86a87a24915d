"""What the checksums of an object's parts prove."""

from __future__ import annotations

import base64
import hashlib
import itertools
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._aws.checksums import CRC32, SHA256, Checksum, compute
from s3torch._aws.part_checksums import (
    AllParts,
    Composite,
    ListedPart,
    ReadBytes,
    composite_of_object,
    is_maybe_of_parts,
    join,
    parts_at,
    parts_of_list,
    places_of,
    probable_places,
    stored_of_object,
    within,
)

MiB = 1024 * 1024
VALUE = base64.b64encode(b"\1\2\3\4").decode()
OF_VALUE = Checksum(CRC32, b"\1\2\3\4")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"x-amz-checksum-crc32": f"{VALUE}-8", "x-amz-checksum-type": "COMPOSITE"}, Composite(OF_VALUE, 8)),
        ({"x-amz-checksum-crc32": f"{VALUE}-8"}, Composite(OF_VALUE, 8)),
        ({"x-amz-checksum-crc32": VALUE, "x-amz-checksum-type": "COMPOSITE"}, Composite(OF_VALUE, None)),
        (
            {"x-amz-checksum-crc32": VALUE, "x-amz-checksum-type": "COMPOSITE", "etag": '"e-3"'},
            Composite(OF_VALUE, 3),
        ),
        ({"x-amz-checksum-crc32": VALUE, "etag": '"e-3"'}, Composite(OF_VALUE, 3, is_told=False)),
        ({"x-amz-checksum-crc32": VALUE, "etag": '"e"'}, None),
        ({"x-amz-checksum-crc32": VALUE, "x-amz-checksum-type": "FULL_OBJECT", "etag": '"e-3"'}, None),
        ({"x-amz-checksum-crc32": f"{VALUE}-0"}, None),
        ({"x-amz-checksum-crc32": f"{VALUE}-x", "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-crc32": "AAAA-2", "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-future": f"{VALUE}-8", "x-amz-checksum-type": "COMPOSITE"}, None),
        ({}, None),
    ],
)
def test_composite_of_object(fields: dict[str, str], expected: Composite | None):
    """A checksum of parts is told by its number of parts, by its type, or maybe by the ETag."""
    assert composite_of_object(fields) == expected


def test_stored_of_object():
    """An answer tells the checksum of the bytes, or one of parts."""
    whole = {"x-amz-checksum-crc32": VALUE, "x-amz-checksum-type": "FULL_OBJECT", "etag": '"e-3"'}
    assert stored_of_object(whole) == OF_VALUE
    assert stored_of_object({"x-amz-checksum-crc32": VALUE, "etag": '"e"'}) == OF_VALUE
    assert stored_of_object({"x-amz-checksum-crc32": f"{VALUE}-3"}) == Composite(OF_VALUE, 3)
    assert stored_of_object({}) is None


def test_as_text():
    """A composite checksum is written as in a header field."""
    assert str(Composite(OF_VALUE, 8)) == f"{VALUE}-8"
    assert str(Composite(OF_VALUE, None)) == VALUE


@pytest.mark.parametrize(
    ("etag", "expected"),
    [(None, True), ('"0123456789abcdef0123456789abcdef"', False), ('"0123456789abcdef0123456789abcdef-2"', True)],
)
def test_is_maybe_of_parts(etag: str | None, expected: bool):
    """The ETag of what was put at once is an MD5."""
    assert is_maybe_of_parts(etag) is expected


@given(st.integers(1, 50_000_000_000_000), st.integers(1, 10_000))
@example(1, 1)
@example(1, 2)
@example(10_000, 10_000)
def test_probable_places(size: int, count: int):
    """They follow one another, are all of the object, as many as asked for, and of one size but for the last."""
    places = probable_places(size, count)
    if not places:
        part_sizes = range(-(-size // count), (size - 1) // (count - 1) + 1) if 1 < count <= size else ()
        assert not part_sizes
        return
    assert len(places) == count
    assert (places[0][0], places[-1][1]) == (0, size)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(places))
    assert len({stop - start for start, stop in places[:-1]}) <= 1
    assert 0 < places[-1][1] - places[-1][0] <= places[0][1]


@given(st.sampled_from([5, 8, 16, 32, 50, 64, 100, 128, 512]), st.integers(12, 9_000), st.integers(1, 5 * MiB))
def test_usual_parts_are_guessed(part_size: int, count: int, last: int):
    """The part sizes of usual clients are guessed, where there are some parts."""
    size = part_size * MiB * (count - 1) + last
    low, high = -(-size // count), (size - 1) // (count - 1)
    rounder = [each for each in (8, 16, 32, 64, 128, 256, 512) if low <= each * MiB <= high]
    expected = part_size * MiB if not rounder or part_size in rounder else rounder[0] * MiB
    found = probable_places(size, count)[0][1]
    assert low <= found <= high
    if part_size & (part_size - 1) == 0:
        assert found == expected


PARTS = [b"first part", b"", b"x", b"the last one"]
CONTENT = b"".join(PARTS)


def read_of(*cuts: int) -> ReadBytes:
    bounds = [0, *cuts, len(CONTENT)]
    return ReadBytes(0, [memoryview(CONTENT)[left:right] for left, right in itertools.pairwise(bounds)])


def stored_of(parts: list[bytes], count: int | None = None) -> Composite:
    values = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts)
    return Composite(Checksum(CRC32, zlib.crc32(values).to_bytes(4, "big")), count)


def listed_of(parts: list[bytes], *, has_values: bool = True) -> list[ListedPart]:
    values = [{CRC32: zlib.crc32(part).to_bytes(4, "big")} if has_values else {} for part in parts]
    return [ListedPart(len(part), value) for part, value in zip(parts, values, strict=True)]


@given(st.lists(st.integers(0, len(CONTENT)), max_size=5), st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)))
def test_read_bytes(cuts: list[int], start: int, stop: int):
    """Any bytes are found in memory in any pieces."""
    read = read_of(*sorted(cuts))
    assert b"".join(read.pieces(start, stop)) == CONTENT[start:stop]
    assert read.stop == len(CONTENT)
    shifted = ReadBytes(100, read.views)
    assert b"".join(shifted.pieces(start + 100, stop + 100)) == CONTENT[start:stop]
    assert read.compute(CRC32, start, stop) == compute(CRC32, [memoryview(CONTENT)[start:stop]])
    read.release()
    assert read.views == []


def test_join():
    """The checksum of the checksums, one behind the other, as S3 computes it (vectors of real S3, 5, 5 and 1 MiB)."""
    parts = [
        "lcKa6Boe7a167tUCN5C4OaFygGSYD8MBnBARTrdL+1w=",
        "gHjhbUT4oo2tSCtSZJdlKi+jeNXJT+VImqdPXsXvkOc=",
        "4l9PQ3zOPZ0oGFvknFX+J4zZwE4WMzO+l3r8XrbWOeM=",
    ]
    joined = join(SHA256, [Checksum(SHA256, base64.b64decode(part)) for part in parts])
    assert str(joined) == "rVWtNbadtsaKXJAcgWPWjifHzJaXde/iV4jaJAOdivc="
    assert joined.value == hashlib.sha256(b"".join(map(base64.b64decode, parts))).digest()


@pytest.mark.parametrize("count", [None, 3])
def test_parts_of_list(count: int | None):
    """A list of parts is believed if the object's checksum follows from it."""
    parts, stored = [b"ab", b"cde", b"f"], stored_of([b"ab", b"cde", b"f"], count)
    found = parts_of_list(listed_of(parts), 6, stored)
    assert found is not None
    assert [(part.number, part.parts, part.start, part.stop) for part in found] == [
        (1, 3, 0, 2),
        (2, 3, 2, 5),
        (3, 3, 5, 6),
    ]
    assert parts_of_list(listed_of(parts), 7, stored) is None
    assert parts_of_list(listed_of(parts[::-1]), 6, stored) is None
    assert parts_of_list(listed_of(parts, has_values=False), 6, stored) is None
    assert parts_of_list(listed_of(parts), 6, Composite(stored.checksum, 4)) is None
    assert parts_of_list([], 0, stored) is None
    whole = compute(CRC32, [memoryview(b"abcdef")])
    assert parts_of_list(listed_of(parts), 6, whole) == found
    assert parts_of_list(listed_of([b"ab", b"cdX", b"f"]), 6, whole) is None
    of_hash = compute(SHA256, [memoryview(b"abcdef")])
    told = [ListedPart(6, {SHA256: of_hash.value})]
    assert parts_of_list(told, 6, of_hash) is not None
    assert parts_of_list([ListedPart(3, {SHA256: of_hash.value})] * 2, 6, of_hash) is None
    assert places_of(listed_of(parts), 6, stored) == [(0, 2), (2, 5), (5, 6)]
    assert places_of(listed_of(parts), 5, stored) == []


def test_parts_at():
    """Places are believed if the object's checksum follows from the bytes in them."""
    stored, read = stored_of(PARTS, 4), read_of(3, 11)
    places = [(0, 10), (10, 10), (10, 11), (11, 23)]
    found = parts_at(places, read, stored)
    assert found is not None
    assert [part.arrived(read) == part.checksum for part in found] == [True] * 4
    assert parts_at([(0, 9), (9, 10), (10, 11), (11, 23)], read, stored) is None
    assert parts_at(places[:2], read, stored) is None
    assert parts_at([], read, stored) is None
    together = AllParts(places, stored.checksum)
    assert (together.start, together.stop) == (0, len(CONTENT))
    assert together.arrived(read) == stored.checksum


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 40), st.integers(0, 40))
def test_within(sizes: list[int], start: int, stop: int):
    """The parts of which all bytes lie in a range, and no others."""
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    found = parts_of_list(listed_of(parts), sum(sizes), stored_of(parts))
    assert found is not None
    assert list(within(found, start, stop)) == [part for part in found if start <= part.start and part.stop <= stop]
