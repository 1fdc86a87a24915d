"""The columns of a table of objects: in memory, or in a mapped file of which each block is verified when it is used.

A file on a disk, or in a cache that many jobs share, can be damaged. To verify a large one at once would take each
process that opens it a second. So the checksums of its blocks are kept, and a block is verified when something is first
read from it: no value leaves a column before the block that it lies in was found to be whole. A block is verified once
in a process (and in those that are forked from it), in some 10 us for 64 KiB.

The columns are read by several threads. Two that meet in a block both verify it, and note the same.
"""

from __future__ import annotations

import json
import mmap
import sys
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from s3torch._aws.checksums import crc32
from s3torch.errors import ObjectTableError

__all__ = [
    "BLOCK",
    "Blocks",
    "ByteColumn",
    "Columns",
    "IntegerColumn",
    "LabelNames",
    "MappedBytes",
    "MappedIntegers",
    "block_checksums",
    "in_memory",
    "little_endian",
]

# So much does Linux map when a page of a file is touched that is in memory, whatever is needed of it.
_BITS = 16
BLOCK = 1 << _BITS


class IntegerColumn(Protocol):
    """A number for each object."""

    def __getitem__(self, index: int, /) -> int:
        """Return that of one object."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __iter__(self) -> Iterator[int]:
        """Yield all."""


class ByteColumn(Protocol):
    """Texts of all objects, one after the other, in UTF-8."""

    def __getitem__(self, part: slice, /) -> bytes:
        """Return the bytes of a slice, which has a start, a stop and no step; fewer if there are fewer."""

    def __len__(self) -> int:
        """Return how many bytes there are."""


class LabelNames(NamedTuple):
    """What the column of labels means.

    Attributes:
        column: Its name in the manifest.
        names: Of the labels, by their numbers; a filter may have left some of them without an object.
        digest: Of these and of the numbers of all objects: 128 bits in hexadecimal, the same on all machines.
    """

    column: str
    names: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, column: str, names: Iterable[str], numbers: IntegerColumn) -> LabelNames:
        """Return names with their digest.

        Raises:
            ObjectTableError: The numbers are a column of a damaged file.
        """
        texts = tuple(names)
        state = blake2b(json.dumps([column, *texts]).encode(), digest_size=16)
        state.update(little_endian(numbers))
        return cls(column, texts, state.hexdigest())

    @classmethod
    def told(cls, told: Any) -> LabelNames:  # noqa: ANN401  # whatever JSON holds
        """Return what the head of a file says, as ``_asdict`` returns it.

        Raises:
            KeyError, TypeError, ValueError: It says something else.
        """
        column, names, digest = told["column"], told["names"], told["digest"]
        if not isinstance(names, list) or not all(isinstance(text, str) for text in (column, digest, *names)):
            raise ValueError("labels that are no text")
        if len({*names}) < len(names):
            raise ValueError("labels that are there twice")
        return cls(column, tuple(names), digest)

    def fit(self, numbers: IntegerColumn) -> bool:
        """Whether these are the names of numbers; raises what ``of`` does."""
        return max(numbers, default=-1) < len(self.names) and self == LabelNames.of(self.column, self.names, numbers)


class Columns(NamedTuple):
    """What a table consists of.

    Attributes:
        buckets: Their names.
        ends: Where the key of each object ends in ``keys``; it begins where that of the object before ends.
        sizes: In bytes; -1 where it is not known.
        bucket_numbers: Which of ``buckets`` each object is in.
        keys: All of them.
        etag_ends: Where the ETag of each object ends; None if the table has none.
        etags: All of them, with their quotes, and empty where one is not known; None if the table has none.
        label_numbers: Which label each object has; None if the table has none.
        labels: What these are; None if the table has none.
    """

    buckets: list[str]
    ends: IntegerColumn
    sizes: IntegerColumn
    bucket_numbers: IntegerColumn
    keys: ByteColumn
    etag_ends: IntegerColumn | None = None
    etags: ByteColumn | None = None
    label_numbers: IntegerColumn | None = None
    labels: LabelNames | None = None


class Blocks:
    """The body of a mapped file, and the checksums of its blocks.

    Args:
        mapping: Of the whole file.
        start: Of the body, in bytes.
        length: Of the body, in bytes.
        checksums: CRC-32 of each block.
        name: Of the file, for errors.

    Attributes:
        name: Of the file.
        proven: For each block whether it was verified.
    """

    def __init__(self, mapping: mmap.mmap, start: int, length: int, checksums: array[int], name: str) -> None:
        self._mapping = mapping
        self._file_length = start + length
        self._view = memoryview(mapping)[start : start + length]
        self._checksums = checksums
        self.name = name
        self.proven = bytearray(len(checksums))

    def view(self, start: int, stop: int) -> memoryview:
        """Return bytes of the body that nobody has verified yet."""
        return self._view[start:stop]

    def prove(self, block: int) -> None:
        """Verify one block.

        Raises:
            ObjectTableError: It is damaged, or the file is shorter than it was.
        """
        if self._mapping.size() < self._file_length:  # what lies beyond a file's end ends the process (SIGBUS)
            raise ObjectTableError(
                f"The table of objects in {self.name} was cut off while it was in use: it has {self._mapping.size()} "
                f"of {self._file_length} bytes. Put another file in its place instead of writing into it."
            )
        first = block << _BITS
        if crc32(self._view[first : first + BLOCK]) != self._checksums[block]:
            raise ObjectTableError(
                f"The table of objects in {self.name} is damaged: the {BLOCK} bytes from {first} on of its body have "
                "not the checksum that was written with them. Save it anew."
            )
        self.proven[block] = 1

    def prove_range(self, start: int, stop: int) -> None:
        """Verify the blocks that some bytes lie in, but for those that were verified before; see ``prove``."""
        if start < stop:
            for block in range(start >> _BITS, ((stop - 1) >> _BITS) + 1):
                if not self.proven[block]:
                    self.prove(block)

    def prove_all(self) -> None:
        """Verify all blocks, those as well that were verified before; see ``prove``."""
        for block in range(len(self.proven)):
            self.prove(block)


class MappedIntegers:
    """A column of integers in a mapped file.

    Args:
        blocks: The file's.
        start: Of the column, in the body; a multiple of the integers' width.
        length: Of the column, in bytes.
        code: Their type, as ``array`` has it; native, so this is for little-endian machines.
    """

    def __init__(self, blocks: Blocks, start: int, length: int, code: str) -> None:
        self._blocks = blocks
        self._proven = blocks.proven
        self._start = start
        self._stop = start + length
        self._code = code
        self._width = array(code).itemsize
        view = blocks.view(start, start + length)
        self._values: memoryview = view.cast(code) if length else view  # type: ignore[call-overload]  # any letter

    def __getitem__(self, index: int, /) -> int:
        block = (self._start + index * self._width) >> _BITS
        if not self._proven[block]:
            self._blocks.prove(block)
        return self._values[index]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[int]:
        self.whole()
        return iter(self._values)

    def whole(self) -> memoryview:
        """Return the bytes of the column, verified.

        Raises:
            ObjectTableError: The file is damaged.
        """
        self._blocks.prove_range(self._start, self._stop)
        return self._blocks.view(self._start, self._stop)

    def copied(self) -> array[int]:
        """Return the column in memory of its own."""
        copy: array[int] = array(self._code)
        copy.frombytes(self.whole())
        return copy


class MappedBytes:
    """A column of bytes in a mapped file; see MappedIntegers."""

    def __init__(self, blocks: Blocks, start: int, length: int) -> None:
        self._blocks = blocks
        self._proven = blocks.proven
        self._start = start
        self._length = length
        self._view = blocks.view(start, start + length)

    def __getitem__(self, part: slice, /) -> bytes:
        start: int = part.start
        stop = min(part.stop, self._length)
        if start >= stop:
            return b""
        first, last = (self._start + start) >> _BITS, (self._start + stop - 1) >> _BITS
        if first != last or not self._proven[first]:
            self._blocks.prove_range(self._start + start, self._start + stop)
        return bytes(self._view[start:stop])

    def __len__(self) -> int:
        return self._length

    def whole(self) -> memoryview:
        """Return the bytes of the column, verified.

        Raises:
            ObjectTableError: The file is damaged.
        """
        self._blocks.prove_range(self._start, self._start + self._length)
        return self._view


def block_checksums(parts: Iterable[memoryview]) -> array[int]:
    """Return the CRC-32 of each block of what follows one another."""
    checksums = array("I")
    checksum, room = 0, BLOCK
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + room]
            checksum = crc32(piece, checksum)
            start += len(piece)
            room -= len(piece)
            if not room:
                checksums.append(checksum)
                checksum, room = 0, BLOCK
    if room < BLOCK:
        checksums.append(checksum)
    return checksums


def little_endian(column: IntegerColumn | ByteColumn) -> memoryview:
    """Return the bytes of a column as a file has them, verified where they are mapped.

    Raises:
        ObjectTableError: It is a column of a damaged file.
    """
    if isinstance(column, (MappedIntegers, MappedBytes)):
        return column.whole()
    if isinstance(column, array) and sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    if not isinstance(column, (array, bytes)):
        raise TypeError(f"a column of type {type(column)}")
    return memoryview(column).cast("B") if len(column) else memoryview(b"")


def in_memory(columns: Columns) -> Columns:
    """Return columns that are in this process's own memory.

    Raises:
        ObjectTableError: They are those of a damaged file.
    """
    return Columns._make([columns.buckets, *map(_copied, columns[1:-1]), columns.labels])


def _copied(column: IntegerColumn | ByteColumn | None) -> IntegerColumn | ByteColumn | None:
    if isinstance(column, MappedIntegers):
        return column.copied()
    return bytes(column.whole()) if isinstance(column, MappedBytes) else column
