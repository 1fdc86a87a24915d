"""What the checksums of an object's parts prove. Pure.

A multipart upload has a checksum of the type FULL_OBJECT, which is that of the object's bytes, or of the type
COMPOSITE: the checksums of its parts, one behind the other, have that checksum. HEAD and GET write it ``value-N`` for
N parts, and GetObjectAttributes without ``-N``. To compute it, it must be known where the parts began.

Nothing that a server tells of parts is believed for itself. Some echo the checksum of the object for each part, and in
answers with a range S3 leaves out the ``-N``. But the composite checksum proves its own parts: checksums, or places, of
which it follows are those that the upload had, as surely as a checksum of that algorithm proves anything. So a guess
costs nothing where it is right, and where it is wrong nothing is concluded from it.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html,
https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from s3torch._aws import checksums
from s3torch._aws.checksums import ALGORITHMS, OF_PARTS, TYPE_FIELD, Algorithm, Checksum

__all__ = [
    "AllParts",
    "Composite",
    "ListedPart",
    "Part",
    "ReadBytes",
    "composite_of_object",
    "is_maybe_of_parts",
    "join",
    "parts_at",
    "parts_of_list",
    "places_of",
    "probable_places",
    "stored_of_object",
    "within",
]

_WITH_COUNT = re.compile(r"([A-Za-z0-9+/]+=*)-([1-9][0-9]{0,4})")
_MD5_ETAG = re.compile(r'"?[0-9a-f]{32}"?')


class Composite(NamedTuple):
    """A checksum of the checksums of parts.

    Attributes:
        checksum: Of the parts' checksums, one behind the other.
        parts: How many there are; None if that was not told.
        is_told: Whether the server says so. Else it may be of the object's bytes as well.
    """

    checksum: Checksum
    parts: int | None
    is_told: bool = True

    @property
    def algorithm(self) -> Algorithm:
        """Of the parts' checksums, and of the checksum of these."""
        return self.checksum.algorithm

    def __str__(self) -> str:
        return str(self.checksum) if self.parts is None else f"{self.checksum}-{self.parts}"


class Part(NamedTuple):
    """A part of the upload that an object is of.

    Attributes:
        number: Its place among the parts, from 1.
        parts: How many there are.
        start: Its first byte in the object.
        stop: The byte after its last.
        checksum: Of its bytes.
    """

    number: int
    parts: int
    start: int
    stop: int
    checksum: Checksum

    def arrived(self, read: ReadBytes) -> Checksum:
        """Return what its checksum is in what was read."""
        return read.compute(self.checksum.algorithm, self.start, self.stop)


class AllParts(NamedTuple):
    """All parts of an object, where the server tells their places alone: they are damaged, or not, together.

    Attributes:
        places: Where they lie, in order.
        checksum: Of their checksums.
    """

    places: Sequence[tuple[int, int]]
    checksum: Checksum

    @property
    def start(self) -> int:
        """The first byte of the object."""
        return self.places[0][0]

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.places[-1][1]

    def arrived(self, read: ReadBytes) -> Checksum:
        """Return what the checksum is in what was read."""
        algorithm = self.checksum.algorithm
        return join(algorithm, [read.compute(algorithm, start, stop) for start, stop in self.places])


class ListedPart(NamedTuple):
    """A part as a server tells it.

    Attributes:
        size: In bytes.
        values: Of its checksums; None for what is none.
    """

    size: int
    values: Mapping[Algorithm, bytes | None]


class ReadBytes:
    """Bytes of an object that follow one another, in one or several pieces of memory.

    Args:
        start: The place of the first in the object.
        views: The pieces, of one byte an item.
    """

    def __init__(self, start: int, views: Sequence[memoryview]) -> None:
        self.start = start
        self.views = [view for view in views if len(view)]
        self._ends = list(accumulate(map(len, self.views), initial=start))[1:]
        self.stop = self._ends[-1] if self._ends else start

    def release(self) -> None:
        """Drop the memory: whoever keeps an error keeps the frames that know this."""
        self.views = []

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Return the memory of ``[start, stop)``, which lies within."""
        for index in range(bisect_right(self._ends, start), len(self.views)):
            view = self.views[index]
            begin = self._ends[index] - len(view)
            if begin >= stop:
                return
            yield view[max(0, start - begin) : stop - begin]

    def compute(self, algorithm: Algorithm, start: int, stop: int) -> Checksum:
        """Return the checksum of ``[start, stop)``."""
        return checksums.compute(algorithm, self.pieces(start, stop))


def composite_of_object(fields: Mapping[str, str]) -> Composite | None:
    """Return the checksum of the parts' checksums that the answer for a whole object carries; None if it has none.

    Args:
        fields: Header fields of an answer without a range, by lower-case name.
    """
    kind = fields.get(TYPE_FIELD)
    if kind not in (None, OF_PARTS):
        return None
    counted = {each: match for each in ALGORITHMS if (match := _WITH_COUNT.fullmatch(fields.get(each.field, "")))}
    parts = max((int(match[2]) for match in counted.values()), default=checksums.parts_in(fields.get("etag")))
    is_told = bool(counted) or kind == OF_PARTS
    if not is_told and not parts:
        return None
    texts = {each: match[1] for each, match in counted.items()} or {
        each: fields[each.field] for each in ALGORITHMS if each.field in fields
    }
    checksum = checksums.cheapest({each: checksums.decoded(text, each) for each, text in texts.items()})
    return None if checksum is None else Composite(checksum, parts or None, is_told)


def stored_of_object(fields: Mapping[str, str]) -> Checksum | Composite | None:
    """Return the checksum that the answer for a whole object carries: of its bytes, or of its parts' checksums."""
    return checksums.checksum_of_object(fields, is_range=False) or composite_of_object(fields)


def is_maybe_of_parts(etag: str | None) -> bool:
    """Whether an object of this ETag may have been uploaded in parts: a single upload has the MD5 of its bytes."""
    return etag is None or _MD5_ETAG.fullmatch(etag) is None


def join(algorithm: Algorithm, parts: Sequence[Checksum]) -> Checksum:
    """Return the checksum of the parts' checksums."""
    return checksums.compute(algorithm, [memoryview(b"".join(part.value for part in parts))])


def probable_places(size: int, count: int) -> list[tuple[int, int]]:
    """Return where the parts of an upload probably lie; none if so many do not fit.

    Clients send parts of one size, and the last is the rest. Of the sizes that make so many parts, it is probably the
    one that the highest power of two divides: no two of them differ by a factor of two.

    Args:
        size: Of the object, in bytes.
        count: Of the parts.
    """
    if not 1 <= count <= size:
        return []
    if count == 1:
        return [(0, size)]
    low, high = -(-size // count), (size - 1) // (count - 1)
    if low > high:
        return []
    bit = next(bit for bit in range(high.bit_length(), -1, -1) if (high >> bit << bit) >= low and high >> bit)
    part_size = high >> bit << bit
    return [(start, min(start + part_size, size)) for start in range(0, size, part_size)]


def places_of(listed: Sequence[ListedPart], size: int, stored: Checksum | Composite) -> list[tuple[int, int]]:
    """Return where the parts lie that a server tells; none if they are not all of the object, or not so many.

    Args:
        listed: All parts, in order.
        size: Of the object, in bytes.
        stored: The object's checksum.
    """
    ends = list(accumulate(part.size for part in listed))
    if not listed or ends[-1] != size or (isinstance(stored, Composite) and stored.parts not in (None, len(listed))):
        return []
    return list(zip([0, *ends[:-1]], ends, strict=True))


def parts_of_list(listed: Sequence[ListedPart], size: int, stored: Checksum | Composite) -> list[Part] | None:
    """Return the parts that a server tells, if the object's checksum follows from theirs.

    Args:
        listed: All parts, in order.
        size: Of the object, in bytes.
        stored: The object's checksum, of an algorithm that is available.

    Returns:
        The parts; None if nothing proves them.
    """
    places = places_of(listed, size, stored)
    told = [part.values.get(stored.algorithm) for part in listed]
    values = [Checksum(stored.algorithm, value) for value in told if value is not None]
    if not places or len(values) != len(places):
        return None
    if isinstance(stored, Composite):
        is_proven = join(stored.algorithm, values) == stored.checksum
    elif stored.algorithm.polynomial:
        known = [(value, stop - start) for value, (start, stop) in zip(values, places, strict=True)]
        is_proven = checksums.combine_all(stored.algorithm, known) == stored
    else:
        is_proven = len(values) == 1 and values[0] == stored  # what is no CRC follows from nothing but the bytes
    return _parts(places, values) if is_proven else None


def parts_at(places: Sequence[tuple[int, int]], read: ReadBytes, stored: Composite) -> list[Part] | None:
    """Return the parts that lie in some places, if the object's checksum follows from the bytes there.

    Then it proves these, too.

    Args:
        places: Of all parts, in order; none if they are not known.
        read: All bytes of the object.
        stored: The object's checksum, of an algorithm that is available.

    Returns:
        The parts; None if the bytes are damaged, or the parts lie in other places.
    """
    if not places or stored.parts not in (None, len(places)):
        return None
    values = [read.compute(stored.algorithm, start, stop) for start, stop in places]
    return _parts(places, values) if join(stored.algorithm, values) == stored.checksum else None


def within(parts: Sequence[Part], start: int, stop: int) -> Sequence[Part]:
    """Return the parts of which all bytes lie in ``[start, stop)``."""
    first = bisect_left(parts, start, key=lambda part: part.start)
    last = bisect_right(parts, stop, key=lambda part: part.stop)
    return parts[first:last]


def _parts(places: Sequence[tuple[int, int]], values: Sequence[Checksum]) -> list[Part]:
    return [
        Part(number, len(places), start, stop, value)
        for number, ((start, stop), value) in enumerate(zip(places, values, strict=True), 1)
    ]
