"""The file of a table of objects: how it is written, and how each version of it is read.

Version 2 is made to be mapped. It is a head and a body; integers are little-endian::

    magic        18 bytes: as for PNG, a byte that is no text and a line end that conversions break
    version      u32
    CRC-32       u32, of all of the head that follows
    directory    u64, its length in bytes
    head         u64, the length of the head, a multiple of 4,096
    directory    JSON: the number of objects, the digest, the buckets, the length of the body, and its columns,
                 each with name, dtype, offset in the body, length in bytes, and whether a reader must know it;
                 and perhaps a note of whoever wrote the file
    checksums    u32 each: the CRC-32 of each 64 KiB of the body
    zeros        up to the end of the head
    body         the columns, each at a multiple of 4,096

The columns: ``key_ends`` (u64), ``sizes`` (i64, -1 if unknown), ``bucket_numbers`` (u32), ``keys`` (u8), and where
objects are pinned ``etag_ends`` (u64) and ``etags`` (u8). A table with labels has ``label_numbers`` (u32), and
``labels`` in its directory: the name of the column in the manifest, the names by their numbers, and a digest of all
of that. They are not required: older versions read the objects without them. A new column needs no new version: who
does not know it leaves it out, or refuses the file, by the column's name, if it is required.

To open a file is to read its head, some 40 kB for ten million objects. The rest is mapped, so all processes of a
machine share one copy. Its blocks are verified as they are used; see ``columns``. What verified blocks say may still be
nonsense, if somebody else wrote the file: an index that leads nowhere is found where it is used.

Whoever replaces the file (as ``write_file`` does) leaves those as they are who have mapped it. Whoever writes into it
changes what they see: what was verified is not verified again.

Version 1 is a head and the same columns without ETags, checked by one CRC-32. It is read whole. A digest is still made
of it, so that states of jobs stay valid.

It is one file of over 450 lines: what is written and what is read of it are to be compared side by side.
"""

from __future__ import annotations

import json
import mmap
import operator
import os
import secrets
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from s3torch._aws.checksums import crc32
from s3torch.datasets.columns import (
    BLOCK,
    Blocks,
    ByteColumn,
    Columns,
    IntegerColumn,
    LabelNames,
    MappedBytes,
    MappedIntegers,
    block_checksums,
    little_endian,
)
from s3torch.errors import ObjectTableError

__all__ = [
    "UNKNOWN_SIZE",
    "is_consistent",
    "is_table",
    "note_in",
    "of_mapping",
    "read_content",
    "read_file",
    "read_open_file",
    "version_1",
    "version_2",
    "write_file",
]

UNKNOWN_SIZE = -1

_MAGIC = b"\x89s3torch objects\r\n"
_NEWEST = 2
_BEGIN = struct.Struct(f"<{len(_MAGIC)}sI")
_CHECKED_FROM = _BEGIN.size + 4
_HEAD_1 = struct.Struct(f"<{len(_MAGIC)}sIIQQQ")  # numbers of objects, of bytes of keys, of bytes of JSON
_HEAD_2 = struct.Struct(f"<{len(_MAGIC)}sIIQQ")
_PAGE = 4096

# The columns of version 2, in their order, with their types there and in ``array``.
_TYPES = {
    "key_ends": ("u64", "Q"),
    "sizes": ("i64", "q"),
    "bucket_numbers": ("u32", "I"),
    "keys": ("u8", ""),
    "etag_ends": ("u64", "Q"),
    "etags": ("u8", ""),
    "label_numbers": ("u32", "I"),
}
_ETAGS = {"etag_ends", "etags"}
_LABELS = {"label_numbers"}


class _Extent(NamedTuple):
    """Where a column lies in the body, in bytes."""

    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What the head of a file says."""

    digest: str
    buckets: list[str]
    extents: dict[str, _Extent]
    labels: LabelNames | None
    checksums: array[int]
    start: int
    length: int


# --- Writing ----------------------------------------------------------------------------------------------------------


def version_1(columns: Columns) -> list[memoryview | bytes]:
    """Return what a file of version 1 holds, piece by piece. ETags and labels are left out."""
    names = json.dumps(columns.buckets).encode()
    written = columns.ends, columns.sizes, columns.bucket_numbers, columns.keys
    body: list[memoryview | bytes] = [names, *(little_endian(column) for column in written)]
    checksum = 0
    for part in body:
        checksum = crc32(part, checksum)
    return [_HEAD_1.pack(_MAGIC, 1, checksum, len(columns.ends), len(columns.keys), len(names)), *body]


def version_2(columns: Columns, digest: str, note: Mapping[str, object] | None = None) -> list[memoryview | bytes]:
    """Return what a file of version 2 holds, piece by piece; with a note, if there is one."""
    written: dict[str, IntegerColumn | ByteColumn] = {
        name: column for name, column in zip(_TYPES, columns[1:-1], strict=True) if column is not None
    }
    body: list[memoryview] = []
    extents: dict[str, _Extent] = {}
    end = 0
    for name, column in written.items():
        padding = -end % _PAGE
        content = little_endian(column)
        extents[name] = _Extent(end + padding, len(content))
        body += [memoryview(bytes(padding)), content]
        end += padding + len(content)
    directory: dict[str, object] = {
        "objects": len(columns.ends),
        "digest": digest,
        "buckets": columns.buckets,
        "body": end,
        "columns": [
            {
                "name": name,
                "dtype": _TYPES[name][0],
                "offset": extent.start,
                "length": extent.length,
                "required": name not in _LABELS,
            }
            for name, extent in extents.items()
        ],
    }
    if columns.labels is not None:
        directory["labels"] = columns.labels._asdict()
    if note is not None:
        directory["note"] = note
    return [_head_of(json.dumps(directory).encode(), block_checksums(body)), *body]


def _head_of(directory: bytes, checksums: array[int]) -> bytes:
    content = directory + little_endian(checksums)
    content += bytes(-(_HEAD_2.size + len(content)) % _PAGE)
    lengths = struct.pack("<QQ", len(directory), _HEAD_2.size + len(content))
    return b"".join([_BEGIN.pack(_MAGIC, 2), struct.pack("<I", crc32(content, crc32(lengths))), lengths, content])


def write_file(path: Path, parts: Iterable[memoryview | bytes]) -> None:
    """Write a file, which appears whole or not at all, whoever else writes it.

    Raises:
        OSError: The file could not be written.
    """
    # Random, as threads, and processes of two containers, can have the same process id. Made by open(), so that
    # the file gets the permissions that any other file of this process gets.
    partial = path.with_name(f".s3torch-{secrets.token_hex(16)}")
    try:
        with partial.open("xb") as file:
            for part in parts:
                # Not all at once: ext4 would keep it in pages of 2 MiB, each of which counts as memory of a process
                # that looks one object up.
                file.writelines(part[start : start + BLOCK] for start in range(0, len(part), BLOCK))
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine may leave the new name with nothing in it
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[Columns, str | None, Blocks | None]:
    """Map a file and check its head, or read it whole: if it is of version 1, or if it cannot be mapped.

    Returns:
        The columns, the digest that the head says, and the blocks of the columns, which are verified as they are used;
        None for these if all was read, and verified. Version 1 says no digest.

    Raises:
        ObjectTableError: It is no table of objects, is cut off, damaged in its head, or of a newer version; or it was
            read whole, and is damaged anywhere.
        OSError: The file could not be opened.
    """
    with path.open("rb") as file:
        return read_open_file(file, str(path))


def read_open_file(file: BinaryIO, name: str) -> tuple[Columns, str | None, Blocks | None]:
    """Map a file that is open, from its beginning on; see ``read_file``."""
    try:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # it is empty, a pipe, or on a file system that maps nothing
        mapped = None
    else:
        mapped = of_mapping(mapping, name)
    return (*read_content(file.read(), name), None) if mapped is None else mapped


def of_mapping(mapping: mmap.mmap, name: str) -> tuple[Columns, str, Blocks] | None:
    """Return what a mapped file holds; None if it must be read whole. See ``read_file``."""
    if _version_of(mapping[: _BEGIN.size], name) == 1 or sys.byteorder == "big":
        return None
    head = _head_in(memoryview(mapping), name)
    blocks = Blocks(mapping, head.start, head.length, head.checksums, name)
    return _columns_in(head, lambda extent, code: _mapped(blocks, extent, code)), head.digest, blocks


def _mapped(blocks: Blocks, extent: _Extent, code: str) -> MappedIntegers | MappedBytes:
    return MappedIntegers(blocks, *extent, code) if code else MappedBytes(blocks, *extent)


def read_content(content: bytes, name: str) -> tuple[Columns, str | None]:
    """Return the columns that a file holds, in memory, all verified; and the digest that it says, if it does.

    Args:
        content: Of the file.
        name: Of the file, for errors.

    Raises:
        ObjectTableError: It is no table of objects, is cut off or damaged, of a newer version, or contradicts itself.
    """
    if _version_of(content[: _BEGIN.size], name) == 1:
        columns, digest = _of_version_1(content, name), None
    else:
        columns, digest = _of_version_2(content, name)
    if not is_consistent(columns):
        raise ObjectTableError(f"The table of objects in {name} contradicts itself: it was not written by s3torch.")
    return columns, digest


def is_table(beginning: bytes) -> bool:
    """Whether a file begins as a table of objects does."""
    return beginning.startswith(_MAGIC)


def _version_of(beginning: bytes, name: str) -> int:
    if not beginning.startswith(_MAGIC):
        raise ObjectTableError(f"{name} is no saved table of objects: it begins with {beginning[: len(_MAGIC)]!r}.")
    if len(beginning) < _BEGIN.size:
        raise _cut_off(name, len(beginning))
    version: int = _BEGIN.unpack(beginning)[1]
    if not 1 <= version <= _NEWEST:
        raise ObjectTableError(
            f"The table of objects in {name} has version {version}, and this s3torch reads versions 1 to {_NEWEST}."
        )
    return version


def _of_version_1(content: bytes, name: str) -> Columns:
    if len(content) < _HEAD_1.size:
        raise _cut_off(name, len(content))
    _, _, checksum, count, key_bytes, name_bytes = _HEAD_1.unpack_from(content)
    columns = array("Q"), array("q"), array("I")
    due = _HEAD_1.size + name_bytes + key_bytes + count * sum(column.itemsize for column in columns)
    if len(content) != due:
        raise _cut_off(name, len(content), due)
    body = memoryview(content)[_HEAD_1.size :]
    if crc32(body) != checksum:
        raise _damaged(name, "its checksum is wrong")
    names, body = bytes(body[:name_bytes]), body[name_bytes:]
    for column in columns:
        size = count * column.itemsize
        _fill(column, body[:size])
        body = body[size:]
    return Columns(_names_in(_json_in(names)), *columns, bytes(body))


def _of_version_2(content: bytes, name: str) -> tuple[Columns, str]:
    view = memoryview(content)
    head = _head_in(view, name)
    body = view[head.start :]
    if block_checksums([body]) != head.checksums:
        raise _damaged(name, "the checksums of its blocks are wrong")
    return _columns_in(head, lambda extent, code: _copied(body, extent, code)), head.digest


def _copied(body: memoryview, extent: _Extent, code: str) -> array[int] | bytes:
    content = body[extent.start : extent.start + extent.length]
    if not code:
        return bytes(content)
    column: array[int] = array(code)
    _fill(column, content)
    return column


def _fill(column: array[int], content: memoryview) -> None:
    column.frombytes(content)
    if sys.byteorder == "big":
        column.byteswap()


def _columns_in(head: _Head, make: Callable[[_Extent, str], Any]) -> Columns:
    made = {name: make(extent, _TYPES[name][1]) for name, extent in head.extents.items()}
    return Columns._make([head.buckets, *map(made.get, _TYPES), head.labels])


# --- The head of version 2 --------------------------------------------------------------------------------------------


def _head_in(file: memoryview, name: str) -> _Head:
    """Return what the head says, checked against the length of the file.

    Raises:
        ObjectTableError: It is cut off or damaged, has a column that must be known and is not, or contradicts itself.
    """
    directory, directory_length, start = _directory_in(file, name)
    try:
        length, extents = _extents_in(directory, name)
        digest, buckets = directory["digest"], _names_in(directory["buckets"])
        if ("labels" in directory) == extents.keys().isdisjoint(_LABELS):
            raise ValueError("names of labels without their column, or a column without names")
        labels = LabelNames.told(directory["labels"]) if "labels" in directory else None
    except (KeyError, TypeError, ValueError) as error:
        raise ObjectTableError(
            f"The head of the table of objects in {name} contradicts itself: it was not written by s3torch ({error})."
        ) from error
    if len(file) != start + length:
        raise _cut_off(name, len(file), start + length)
    checksums = array("I")
    begin = _HEAD_2.size + directory_length
    blocks = (length + BLOCK - 1) // BLOCK
    if begin + blocks * checksums.itemsize > start or start % _PAGE or not isinstance(digest, str):
        raise _damaged(name, "its head is too short")
    _fill(checksums, file[begin : begin + blocks * checksums.itemsize])
    return _Head(
        digest=digest,
        buckets=buckets,
        extents=extents,
        labels=labels,
        checksums=checksums,
        start=start,
        length=length,
    )


def _directory_in(file: memoryview, name: str) -> tuple[Any, int, int]:
    """Return the directory, which has its checksum; its length, and that of the head."""
    if len(file) < _HEAD_2.size:
        raise _cut_off(name, len(file))
    _, _, checksum, length, start = _HEAD_2.unpack_from(file)
    if start > len(file):
        raise _cut_off(name, len(file), start)
    if crc32(file[_CHECKED_FROM:start]) != checksum or _HEAD_2.size + length > start:
        raise _damaged(name, "the checksum of its head is wrong")
    return _json_in(bytes(file[_HEAD_2.size : _HEAD_2.size + length])), length, start


def note_in(file: BinaryIO, name: str) -> object:
    """Return the note that a file was written with; None if there is none.

    Args:
        file: A table that was read before, from its beginning on.
        name: Of the file, for errors.

    Raises:
        ObjectTableError: It is damaged in its head.
    """
    head = file.read(_HEAD_2.size)
    if _version_of(head[: _BEGIN.size], name) == 1:
        return None
    start = _HEAD_2.unpack(head)[4]
    directory, _, _ = _directory_in(memoryview(head + file.read(start - len(head))), name)
    return directory.get("note") if isinstance(directory, dict) else None


def _extents_in(directory: Any, name: str) -> tuple[int, dict[str, _Extent]]:  # noqa: ANN401  # whatever JSON holds
    """Return the length of the body, and where the columns are that this version knows."""
    count, length = _natural(directory["objects"]), _natural(directory["body"])
    extents: dict[str, _Extent] = {}
    for column in directory["columns"]:
        of = column["name"]
        if of not in _TYPES:
            if column.get("required", True):
                raise ObjectTableError(
                    f"The table of objects in {name} has a column {of!r}, which this s3torch does not know and must "
                    "not leave out. A newer version reads it."
                )
            continue
        extent = _Extent(_natural(column["offset"]), _natural(column["length"]))
        dtype, code = _TYPES[of]
        if column["dtype"] != dtype or extent.start % _PAGE or extent.start + extent.length > length:
            raise ValueError(f"column {of!r}")
        if code and extent.length != count * array(code).itemsize:
            raise ValueError(f"length of column {of!r}")
        extents[of] = extent
    found = extents.keys()
    if found | _ETAGS | _LABELS != _TYPES.keys() or len(found & _ETAGS) == 1:
        raise ValueError(f"columns {sorted(found)}")
    return length, extents


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a number must be")
    return value


def _json_in(document: bytes) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return what a document says; None if it is none."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def _names_in(names: object) -> list[str]:
    """Return the names of buckets; none if they are not what is written there."""
    return [str(name) for name in names] if isinstance(names, list) else []


# --- What holds for any version ---------------------------------------------------------------------------------------


def is_consistent(columns: Columns) -> bool:
    """Whether every index leads to a key, a size and a bucket, and to an ETag and a label if there are any.

    Raises:
        ObjectTableError: The columns are of a damaged file.
    """
    return (
        _is_covered(columns.ends, columns.keys)
        and (columns.etag_ends is None or columns.etags is None or _is_covered(columns.etag_ends, columns.etags))
        and min(columns.sizes, default=UNKNOWN_SIZE) >= UNKNOWN_SIZE
        and max(columns.bucket_numbers, default=-1) < len(columns.buckets)
        and (columns.label_numbers is None or columns.labels is None or columns.labels.fit(columns.label_numbers))
    )


def _is_covered(ends: IntegerColumn, texts: ByteColumn) -> bool:
    if not len(ends):
        return not len(texts)
    return ends[len(ends) - 1] == len(texts) and all(map(operator.le, ends, islice(ends, 1, None)))


def _cut_off(name: str, length: int, due: int | None = None) -> ObjectTableError:
    if due is None:
        return ObjectTableError(f"The table of objects in {name} is cut off: it has {length} bytes.")
    return ObjectTableError(f"The table of objects in {name} is cut off or damaged: it has {length} of {due} bytes.")


def _damaged(name: str, why: str) -> ObjectTableError:
    return ObjectTableError(f"The table of objects in {name} is damaged: {why}.")
