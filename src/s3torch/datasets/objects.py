"""The objects of a dataset: a compact table of them, and where it comes from."""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import os
import secrets
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

from s3torch._aws.checksums import crc32
from s3torch._aws.listing import ObjectInfo
from s3torch._buffer import as_index
from s3torch.client import ListObjectStream, S3Client
from s3torch.errors import ArgumentTypeError, InvalidURIError, ObjectTableError
from s3torch.uri import parse_s3_uri

__all__ = ["KeyColumns", "ObjectTable", "S3BucketKeyData", "list_prefix", "table_of_uris"]

_log = logging.getLogger(__name__)

_UNKNOWN_SIZE = -1
_PAGES_BETWEEN_MESSAGES = 100

# A saved table: this head, then the buckets' names as JSON, the ends of the keys, their sizes, the numbers of their
# buckets, and the keys, all as they are in memory, integers little-endian. The head: what it is (as for PNG, a byte
# that is no text and a line end that conversions break), the version, the CRC-32 of all that follows the head, the
# numbers of objects, of bytes of keys, and of bytes of JSON.
_MAGIC = b"\x89s3torch objects\r\n"
_VERSION = 1
_HEAD = struct.Struct(f"<{len(_MAGIC)}sIIQQQ")


class S3BucketKeyData(NamedTuple):
    """One object of a dataset.

    Attributes:
        bucket: Of the object.
        key: Of the object.
        object_info: What a listing told of it, or None.
    """

    bucket: str
    key: str
    object_info: ObjectInfo | None = None


class KeyColumns(NamedTuple):
    """Some objects of one bucket, in the form in which a table takes many of them.

    Attributes:
        keys: One after the other, in UTF-8.
        lengths: Of the keys, in bytes.
        sizes: Of the objects, in bytes.
    """

    keys: bytes
    lengths: array[int]
    sizes: array[int]


class ObjectTable:
    """An immutable sequence of objects in a few contiguous arrays.

    A list of ten million Python objects would be copied page by page into every forked DataLoader worker, as reference
    counts are touched. Here an object is its key's bytes and 20 bytes more. Of a listing's facts only the size is kept.

    Args:
        objects: To be held, in order.

    Raises:
        ArgumentTypeError: An item is not of the form of S3BucketKeyData.
    """

    __slots__ = ("_bucket_of", "_buckets", "_digest", "_ends", "_keys", "_sizes")

    def __init__(self, objects: Iterable[S3BucketKeyData] = ()) -> None:
        keys = bytearray()
        self._ends = array("Q")
        self._sizes = array("q")
        self._bucket_of = array("I")
        numbers: dict[str, int] = {}
        for item in objects:
            name, key, size = _taken_apart(item)
            keys += key
            self._ends.append(len(keys))
            self._sizes.append(size)
            self._bucket_of.append(numbers.setdefault(name, len(numbers)))
        self._keys = bytes(keys)
        self._buckets = list(numbers)
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """What tells this table from any other: 128 bits in hexadecimal, of buckets, keys, sizes and their order.

        It is computed once, at about 1 GB/s, and is the same on all machines.
        """
        if self._digest is None:
            state = hashlib.blake2b(digest_size=16)
            for part in self._to_bytes():
                state.update(part)
            self._digest = state.hexdigest()
        return self._digest

    @classmethod
    def of_columns(cls, bucket: str, columns: Iterable[KeyColumns]) -> ObjectTable:
        """Return a table of objects of one bucket, without a Python object for each."""
        parts = list(columns)
        table = cls()
        table._keys = b"".join([part.keys for part in parts])
        table._ends = array("Q", accumulate(chain.from_iterable(part.lengths for part in parts)))
        for part in parts:
            table._sizes += part.sizes
        table._bucket_of = array("I", bytes(4 * len(table._ends)))
        table._buckets = [bucket] if parts else []
        return table

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, client: S3Client | None = None) -> ObjectTable:
        """Return a table that was saved. Nothing in the file is executed, and all of it is checked.

        Args:
            source: A path, or ``s3://bucket/key``.
            client: Reads the object; None is ``S3Client()``.

        Raises:
            ObjectTableError: It is no saved table, is cut off or damaged, or of a newer version.
            NotFoundError: There is no such object.
            S3Error: The object could not be read.
            OSError: The file could not be read.
        """
        content = (client or S3Client()).get_object(*uri).read() if (uri := _uri(source)) else Path(source).read_bytes()
        return cls._from_bytes(content, str(source))

    def save(self, target: str | os.PathLike[str], *, client: S3Client | None = None) -> None:
        """Write the table to a file or an object, which appears whole or not at all, whoever else writes it.

        Args:
            target: A path, or ``s3://bucket/key``; replaced if it exists.
            client: Writes the object; None is ``S3Client()``.

        Raises:
            S3Error: The object could not be written.
            OSError: The file could not be written.
        """
        if uri := _uri(target):
            with (client or S3Client()).put_object(*uri) as writer:
                for part in self._to_bytes():
                    writer.write(part)
            return
        path = Path(target)
        # Random, as threads, and processes of two containers, can have the same process id. Made by open(), so that
        # the file gets the permissions that any other file of this process gets.
        partial = path.with_name(f".s3torch-{secrets.token_hex(16)}")
        try:
            with partial.open("xb") as file:
                file.writelines(self._to_bytes())
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may leave the new name with nothing in it
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _to_bytes(self) -> list[bytes]:
        names = json.dumps(self._buckets).encode()
        columns = [_little_endian(column).tobytes() for column in (self._ends, self._sizes, self._bucket_of)]
        body = [names, *columns, self._keys]
        checksum = 0
        for part in body:
            checksum = crc32(part, checksum)
        return [_HEAD.pack(_MAGIC, _VERSION, checksum, len(self), len(self._keys), len(names)), *body]

    @classmethod
    def _from_bytes(cls, content: bytes, name: str) -> ObjectTable:
        if not content.startswith(_MAGIC):
            raise ObjectTableError(f"{name} is no saved table of objects: it begins with {content[: len(_MAGIC)]!r}.")
        if len(content) < _HEAD.size:
            raise ObjectTableError(f"The table of objects in {name} is cut off: it has {len(content)} bytes.")
        _, version, checksum, count, key_bytes, name_bytes = _HEAD.unpack_from(content)
        if version != _VERSION:
            raise ObjectTableError(
                f"The table of objects in {name} has version {version}, and this s3torch reads version {_VERSION}."
            )
        table = cls()
        columns = (table._ends, table._sizes, table._bucket_of)
        due = _HEAD.size + name_bytes + key_bytes + count * sum(column.itemsize for column in columns)
        if len(content) != due:
            raise ObjectTableError(
                f"The table of objects in {name} is cut off or damaged: it has {len(content)} of {due} bytes."
            )
        body = memoryview(content)[_HEAD.size :]
        if crc32(body) != checksum:
            raise ObjectTableError(f"The table of objects in {name} is damaged: its checksum is wrong.")
        names, body = bytes(body[:name_bytes]), body[name_bytes:]
        for column in columns:
            size = count * column.itemsize
            column.frombytes(body[:size])
            if sys.byteorder == "big":
                column.byteswap()
            body = body[size:]
        table._keys = bytes(body)
        table._buckets = _bucket_names(names)
        if not table._is_consistent():
            raise ObjectTableError(f"The table of objects in {name} contradicts itself: it was not written by s3torch.")
        return table

    def _is_consistent(self) -> bool:
        """Whether every index leads to a key, a size and a bucket."""
        if not self._ends:
            return not self._keys
        return (
            self._ends[-1] == len(self._keys)
            and all(map(operator.le, self._ends, islice(self._ends, 1, None)))
            and min(self._sizes) >= _UNKNOWN_SIZE
            and max(self._bucket_of) < len(self._buckets)
        )

    def __getstate__(self) -> tuple[bytes, array[int], array[int], array[int], list[str]]:
        # With slots and without this the pickle protocols 0 and 1 refuse.
        return self._keys, self._ends, self._sizes, self._bucket_of, self._buckets

    def __setstate__(self, state: tuple[bytes, array[int], array[int], array[int], list[str]]) -> None:
        self._keys, self._ends, self._sizes, self._bucket_of, self._buckets = state
        self._digest = None

    def __repr__(self) -> str:
        return f"<ObjectTable of {len(self)} objects in {len(self._buckets)} buckets>"

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[S3BucketKeyData]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: SupportsIndex) -> S3BucketKeyData: ...

    @overload
    def __getitem__(self, index: slice) -> list[S3BucketKeyData]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> S3BucketKeyData | list[S3BucketKeyData]:
        """Return one object, or a list of those of a slice; negative indices count from the end.

        Raises:
            IndexError: There is no such object.
            ArgumentTypeError: The index is neither an integer nor a slice.
            ObjectTableError: The table was loaded from a file that s3torch did not write, and the key is no text.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = as_index("index", index)  # such as numpy's int8, whose arithmetic ends at 127
        ends = self._ends
        count = len(ends)
        if index < 0:
            index += count
        if not 0 <= index < count:
            raise IndexError(f"list index out of range: there are {count} objects")
        name = self._keys[ends[index - 1] if index else 0 : ends[index]]
        try:
            key = name.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ObjectTableError(f"Object {index} of the table has the key {name!r}, which is no UTF-8.") from error
        size = self._sizes[index]
        info = None if size == _UNKNOWN_SIZE else ObjectInfo(key, "", size, 0)
        return S3BucketKeyData(self._buckets[self._bucket_of[index]], key, info)


def _taken_apart(item: Any) -> tuple[str, bytes, int]:  # noqa: ANN401  # whatever a program yields
    """Return bucket, key in UTF-8, and size of an object."""
    try:
        bucket, key, object_info = item
        size = _UNKNOWN_SIZE if object_info is None else operator.index(object_info.size)
        if isinstance(bucket, str) and _UNKNOWN_SIZE <= size < 2**63:
            return bucket, key.encode("utf-8", "surrogatepass"), size
    except (AttributeError, TypeError, ValueError) as error:
        raise _no_object(item) from error
    raise _no_object(item)


def _no_object(item: object) -> ArgumentTypeError:
    return ArgumentTypeError(f"An object of a dataset must be S3BucketKeyData(bucket, key, object_info), got {item!r}.")


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


def _bucket_names(document: bytes) -> list[str]:
    """Return the names in a saved table; none if they are not what is written there."""
    try:
        names = json.loads(document)
    except (ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _uri(place: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return bucket and key of an S3 URI; None for a path."""
    if not isinstance(place, (str, os.PathLike)):
        raise ArgumentTypeError(f"A table of objects is kept at a path or an S3 URI, got {place!r}.")
    return parse_s3_uri(place) if isinstance(place, str) and place.startswith("s3://") else None


def table_of_uris(object_uris: str | Iterable[str]) -> ObjectTable:
    """Return the objects that URIs name; a single string is one URI.

    Raises:
        InvalidURIError: One is not of the form ``s3://bucket/key``, or has no key.
        ArgumentTypeError: It is neither a string nor an iterable of strings.
    """
    uris = [object_uris] if isinstance(object_uris, str) else object_uris
    if not isinstance(uris, Iterable):
        raise ArgumentTypeError(f"object_uris must be an S3 URI or an iterable of them, got {object_uris!r}.")
    return ObjectTable(map(_object_at, uris))


def _object_at(uri: str) -> S3BucketKeyData:
    bucket, key = parse_s3_uri(uri)
    if not key:
        raise InvalidURIError(f"A URI of an object must have a key, got {uri!r}. Write 's3://bucket/key'.")
    return S3BucketKeyData(bucket, key)


def list_prefix(client: S3Client, bucket: str, prefix: str) -> Iterator[S3BucketKeyData]:
    """Yield the objects under a prefix. Markers of directories (0-byte keys that end in ``/``) are left out.

    They come as the server lists them, page by page. Directory buckets list in no order, and ranks must agree on one:
    there all pages are waited for, and the objects come in the order of their keys.

    After an error the iterator can be asked again: it asks for the same page again.

    Raises:
        BucketNotFoundError: There is no such bucket.
        S3Error: The listing failed otherwise.
    """
    return _InOneOrder(client.list_objects(bucket, prefix), bucket, prefix)


class _InOneOrder(Iterator[S3BucketKeyData]):
    """The objects of a listing, in an order that another listing has as well. Which bucket it is, is asked lazily."""

    def __init__(self, stream: ListObjectStream, bucket: str, prefix: str) -> None:
        self._stream = stream
        self._listed = _Listed(stream, bucket, prefix)
        self._gathered: list[S3BucketKeyData] = []
        self._ordered: Iterator[S3BucketKeyData] | None = None

    def __next__(self) -> S3BucketKeyData:
        if self._ordered is None:
            self._ordered = self._sorted() if self._stream.is_directory else self._listed
        return next(self._ordered)

    def _sorted(self) -> Iterator[S3BucketKeyData]:
        for item in self._listed:  # after an error it goes on with the page that failed
            self._gathered.append(item)
        return iter(sorted(self._gathered, key=lambda item: item.key.encode()))


class _Listed(Iterator[S3BucketKeyData]):
    """The objects of a listing, page by page. No generator: that would end after an error, as if all had come."""

    def __init__(self, stream: ListObjectStream, bucket: str, prefix: str) -> None:
        stream.look_ahead = True
        self._pages = iter(stream)
        self._bucket = bucket
        self._where = f"s3://{bucket}/{prefix}"
        self._count = 0
        self._page: Iterator[S3BucketKeyData] = iter(())

    def __next__(self) -> S3BucketKeyData:
        while (item := next(self._page, None)) is None:
            page = next(self._pages)
            self._count += 1
            if self._count % _PAGES_BETWEEN_MESSAGES == 0:
                _log.info("Listing %s: %d pages of up to 1000 keys so far", self._where, self._count)
            infos = (info for info in page.object_info if info.size or not info.key.endswith("/"))
            self._page = iter([S3BucketKeyData(self._bucket, info.key, info) for info in infos])
        return item
