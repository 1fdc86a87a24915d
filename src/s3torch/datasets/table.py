"""The objects of a dataset: a compact table of them, in memory or in a mapped file."""

from __future__ import annotations

import hashlib
import operator
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, overload

from s3torch._aws.listing import ObjectInfo
from s3torch._buffer import as_index
from s3torch.client import S3Client
from s3torch.datasets.columns import (
    Blocks,
    ByteColumn,
    Columns,
    IntegerColumn,
    LabelNames,
    MappedIntegers,
    in_memory,
    little_endian,
)
from s3torch.datasets.one_object import KeyColumns, S3BucketKeyData, taken_apart
from s3torch.datasets.table_file import (
    UNKNOWN_SIZE,
    is_consistent,
    read_content,
    read_file,
    version_1,
    version_2,
    write_file,
)
from s3torch.errors import ArgumentTypeError, ObjectTableError
from s3torch.uri import parse_s3_uri

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KeyColumns", "ObjectTable", "S3BucketKeyData"]


class ObjectTable:
    """An immutable sequence of objects in a few contiguous columns.

    A list of ten million Python objects would be copied page by page into every forked DataLoader worker, as reference
    counts are touched. Here an object is its key's bytes and 20 bytes more. Of a listing's facts the size is kept, and
    the ETag if that is wanted: readers then refuse an object that was replaced since. A table of a manifest also keeps
    the column of labels that was asked for, in 4 bytes an object, and its names.

    A table that was saved in a file is mapped when it is loaded: it is there at once, however large it is, and all
    processes of a machine share its memory. It pickles as the file's path and its digest, so a process that is started
    with it maps the same file. A table that is in memory pickles whole.

    Args:
        objects: To be held, in order.
        etags: Whether to keep the ETags that a listing told, which takes some 42 bytes more for each object.

    Raises:
        ArgumentTypeError: An item is not of the form of S3BucketKeyData.
    """

    __slots__ = (
        "_bucket_of",
        "_buckets",
        "_columns",
        "_digest",
        "_ends",
        "_etag_ends",
        "_etags",
        "_keys",
        "_mapped",
        "_sizes",
    )

    _columns: Columns
    _digest: str | None
    _mapped: Blocks | None  # of the file that is mapped

    def __init__(self, objects: Iterable[S3BucketKeyData] = (), *, etags: bool = False) -> None:
        keys, tags = bytearray(), bytearray()
        ends, sizes, bucket_of, tag_ends = array("Q"), array("q"), array("I"), array("Q")
        numbers: dict[str, int] = {}
        for item in objects:
            name, key, size, tag = taken_apart(item, etags=etags)
            keys += key
            ends.append(len(keys))
            sizes.append(size)
            bucket_of.append(numbers.setdefault(name, len(numbers)))
            if etags:
                tags += tag
                tag_ends.append(len(tags))
        tags_of = (tag_ends, bytes(tags)) if etags else (None, None)
        self._take(Columns(list(numbers), ends, sizes, bucket_of, bytes(keys), *tags_of))

    def _take(self, columns: Columns, digest: str | None = None, mapped: Blocks | None = None) -> None:
        self._columns = columns
        self._buckets, self._ends, self._sizes, self._bucket_of, self._keys = columns[:5]  # for each look at an object
        self._etag_ends, self._etags = columns.etag_ends, columns.etags
        self._digest = digest
        self._mapped = mapped

    @classmethod
    def _of(cls, columns: Columns, digest: str | None = None, mapped: Blocks | None = None) -> Self:
        table = cls.__new__(cls)
        table._take(columns, digest, mapped)
        return table

    @property
    def digest(self) -> str:
        """What tells the objects of this table from any others: 128 bits in hexadecimal.

        It is of buckets, keys, sizes and their order, and of the ETags if the table has them, and not of labels. It is
        the same however the table was made, and on all machines. A file has it; else it is computed once, at 0.5 GB/s
        or more.
        """
        if self._digest is None:
            self._digest = _digest_of(self._columns)
        return self._digest

    @property
    def has_etags(self) -> bool:
        """Whether the table keeps the ETags of its objects, so that readers refuse one that was replaced since."""
        return self._etags is not None

    @property
    def label_column(self) -> str | None:
        """The name of the column of labels that the table keeps, for ``by_column``; None if it keeps none."""
        return None if self._columns.labels is None else self._columns.labels.column

    @property
    def _identity(self) -> tuple[str, str | None]:
        """What tells this table from any other, its labels included."""
        return self.digest, None if self._columns.labels is None else self._columns.labels.digest

    def _numbered_labels(self) -> tuple[tuple[str, ...], array[int]]:
        """Return names of labels, and the number of each object's, in memory; nothing of a table without labels."""
        labels, numbers = self._columns.labels, self._columns.label_numbers
        if labels is None or numbers is None:
            return (), array("I")
        return labels.names, numbers.copied() if isinstance(numbers, MappedIntegers) else array("I", numbers)

    def _chosen(self, belongs: Callable[[S3BucketKeyData], bool]) -> ObjectTable:
        """Return a table of some objects, with what this one keeps of them."""
        labels, label_numbers = self._columns.labels, self._columns.label_numbers
        if labels is None or label_numbers is None:
            return ObjectTable(filter(belongs, self), etags=self.has_etags)
        numbers = array("I")

        def chosen() -> Iterator[S3BucketKeyData]:
            for item, number in zip(self, label_numbers, strict=True):
                if belongs(item):
                    numbers.append(number)
                    yield item

        columns = ObjectTable(chosen(), etags=self.has_etags)._columns
        kept = LabelNames.of(labels.column, labels.names, numbers)
        return ObjectTable._of(columns._replace(label_numbers=numbers, labels=kept))

    def _first_unpinned(self) -> int | None:
        """Return the index of the first object whose size or ETag is not known; None if all are."""
        columns = self._columns
        if columns.etag_ends is None:
            return 0 if len(self) else None
        has_etag = map(operator.lt, chain((0,), columns.etag_ends), columns.etag_ends)
        has_size = map(UNKNOWN_SIZE.__lt__, columns.sizes)
        found = bytes(map(operator.and_, has_etag, has_size)).find(0)
        return None if found < 0 else found

    @classmethod
    def of_columns(cls, bucket: str, columns: Iterable[KeyColumns]) -> ObjectTable:
        """Return a table of objects of one bucket, without a Python object for each.

        It has ETags if all columns have.
        """
        parts = list(columns)
        ends = array("Q", accumulate(chain.from_iterable(part.lengths for part in parts)))
        sizes = array("q")
        for part in parts:
            sizes += part.sizes
        tag_lengths = [part.etag_lengths for part in parts if part.etag_lengths is not None]
        has_etags = bool(parts) and len(tag_lengths) == len(parts)
        return cls._of(
            Columns(
                [bucket] if parts else [],
                ends,
                sizes,
                array("I", bytes(4 * len(ends))),
                b"".join([part.keys for part in parts]),
                array("Q", accumulate(chain.from_iterable(tag_lengths))) if has_etags else None,
                b"".join([part.etags for part in parts]) if has_etags else None,
            )
        )

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        client: S3Client | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        verify: bool = False,
    ) -> ObjectTable:
        """Return a table that was saved. Nothing in the file is executed, and no damaged part of it is believed.

        A file is mapped: its head is verified at once, and each block of 64 KiB when it is first used. Put another file
        in its place to replace it, as ``save`` does; do not write into it while it is in use. A file that an older
        version of s3torch wrote is read whole, and so is an object: both are verified at once.

        Args:
            source: A path, or ``s3://bucket/key``.
            client: Reads the object; None is ``S3Client()``.
            cache_dir: A directory of this machine, in which a copy of the object is kept and mapped; it is made if it
                is missing. The processes of the machine, and later jobs, share the copy. Each load asks S3 for the
                object's ETag (HeadObject), and reads the object only if there is no copy of this version. Copies of
                older ones are not removed. Others must not be able to write there. Not used for a path, nor if the
                server tells no ETag. None keeps the table in the memory of this process.
            verify: Whether to verify all of a mapped file at once; see ``verify``. A copy that is damaged is made anew.

        Raises:
            ObjectTableError: It is no saved table, is cut off or damaged, or of a newer version.
            NotFoundError: There is no such object.
            S3Error: The object could not be read.
            OSError: The file could not be read, or the copy not be written.
        """
        uri = _uri(source)
        if uri is None:
            table = cls._of_file(Path(source))
        elif cache_dir is None:
            table = cls._from_bytes((client or S3Client()).get_object(*uri).read(), str(source))
        else:
            return cls._of_copy(*uri, client or S3Client(), Path(cache_dir), verify=verify)
        if verify:
            table.verify()
        return table

    @classmethod
    def _of_file(cls, path: Path) -> ObjectTable:
        path = path.absolute()  # a pickle may be loaded elsewhere
        return cls._checked(*read_file(path), name=str(path))

    @classmethod
    def _from_bytes(cls, content: bytes, name: str) -> ObjectTable:
        return cls._checked(*read_content(content, name), None, name=name)

    @classmethod
    def _checked(cls, columns: Columns, told: str | None, mapped: Blocks | None, *, name: str) -> ObjectTable:
        """Return the table of a file. That it has the digest that its head says is seen if all of it was read."""
        if mapped is not None:
            return cls._of(columns, told, mapped)
        table = cls._of(columns)
        if told is not None and told != table.digest:
            raise ObjectTableError(f"The table of objects in {name} contradicts itself: its digest is not its own.")
        return table

    @classmethod
    def _of_copy(cls, bucket: str, key: str, client: S3Client, directory: Path, *, verify: bool) -> ObjectTable:
        """Return the table of an object, mapped from a copy of it, which is made if there is none."""
        info = client.head_object(bucket, key)
        reader = client.get_object(bucket, key, object_info=info)
        if not info.etag:  # nothing would tell a copy of this version from one of another
            return cls._from_bytes(reader.read(), f"s3://{bucket}/{key}")
        version = hashlib.blake2b(f"{bucket}/{key}\n{info.etag}".encode(), digest_size=16)
        path = directory / f"s3torch-{version.hexdigest()}.table"
        try:
            return cls.load(path, verify=verify)
        except (FileNotFoundError, ObjectTableError):  # it is not there, or damaged, and is written anew
            pass
        table = cls._from_bytes(reader.read(), f"s3://{bucket}/{key}")
        directory.mkdir(parents=True, exist_ok=True)
        table.save(path)
        return cls._of_file(path)

    def save(self, target: str | os.PathLike[str], *, client: S3Client | None = None) -> None:
        """Write the table to a file or an object, which appears whole or not at all, whoever else writes it.

        Args:
            target: A path, or ``s3://bucket/key``; replaced if it exists.
            client: Writes the object; None is ``S3Client()``.

        Raises:
            ObjectTableError: The table is mapped, and its file is damaged.
            S3Error: The object could not be written.
            OSError: The file could not be written.
        """
        uri = _uri(target)
        parts = self._to_bytes()
        if uri is None:
            write_file(Path(target), parts)
            return
        with (client or S3Client()).put_object(*uri) as writer:
            for part in parts:
                writer.write(part)

    def _to_bytes(self, note: Mapping[str, object] | None = None) -> list[memoryview | bytes]:
        """Return what a file of the table holds, piece by piece."""
        return version_2(self._columns, self.digest, note)

    def verify(self) -> None:
        """Verify the whole table: every block of a mapped file, that every index leads somewhere, and the digest.

        That takes 3 s for ten million objects. Without it a block is verified when it is first used.

        Raises:
            ObjectTableError: The file is damaged, or was not written by s3torch.
        """
        if self._mapped is None:
            return  # it was verified when it was loaded
        self._mapped.prove_all()
        if not is_consistent(self._columns) or _digest_of(self._columns) != self.digest:
            raise ObjectTableError(
                f"The table of objects in {self._mapped.name} contradicts itself: it was not written by s3torch."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._mapped is not None and _holds(Path(self._mapped.name), self._identity):
            return _mapped_again, (self._mapped.name, *self._identity)
        return ObjectTable, (), _State(in_memory(self._columns))

    def __setstate__(self, state: _State | tuple[Any, ...]) -> None:
        if isinstance(state, _State):
            self._take(state.columns)
        else:
            keys, ends, sizes, bucket_of, buckets = state  # as s3torch pickled them that had no mapped tables
            self._take(Columns(buckets, ends, sizes, bucket_of, keys))

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
            ObjectTableError: The table was loaded from a file that is damaged, or that s3torch did not write.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = as_index("index", index)  # such as numpy's int8, whose arithmetic ends at 127
        count = len(self._ends)
        if index < 0:
            index += count
        if not 0 <= index < count:
            raise IndexError(f"list index out of range: there are {count} objects")
        key = self._text(index, self._ends, self._keys, "key")
        etag = "" if self._etag_ends is None else self._text(index, self._etag_ends, self._etags, "ETag")
        size, number = self._sizes[index], self._bucket_of[index]
        if size < UNKNOWN_SIZE or number >= len(self._buckets):
            raise self._nonsense(index, f"has the size {size} and the bucket number {number}")
        info = None if size == UNKNOWN_SIZE else ObjectInfo(key, etag, size, 0)
        return S3BucketKeyData(self._buckets[number], key, info)

    def _text(self, index: int, ends: IntegerColumn, texts: ByteColumn | None, what: str) -> str:
        """Return the key or the ETag of an object."""
        start, stop = (ends[index - 1] if index else 0), ends[index]
        content = b"" if texts is None else texts[start:stop]
        if len(content) != stop - start:
            raise self._nonsense(index, f"has its {what} at [{start}, {stop})")
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self._nonsense(index, f"has the {what} {content!r}, which is no UTF-8") from error

    def _nonsense(self, index: int, what: str) -> ObjectTableError:
        where = f"the table in {self._mapped.name}" if self._mapped else "the table"
        return ObjectTableError(f"Object {index} of {where} {what}: s3torch did not write it so.")


class _State(NamedTuple):
    """What a table in memory pickles as."""

    columns: Columns


def _digest_of(columns: Columns) -> str:
    """Return the digest of a table: a hash of what a file of version 1 holds, and of the ETags behind it."""
    state = hashlib.blake2b(digest_size=16)
    for part in version_1(columns):
        state.update(part)
    if columns.etag_ends is not None and columns.etags is not None:  # what is before them tells its own length
        state.update(b"etags")
        state.update(little_endian(columns.etag_ends))
        state.update(little_endian(columns.etags))
    return state.hexdigest()


def _holds(path: Path, identity: tuple[str, str | None]) -> bool:
    """Whether a file can be mapped that is the table of an identity."""
    try:
        columns, digest, mapped = read_file(path)
    except (OSError, ObjectTableError):
        return False
    return mapped is not None and identity == (digest, None if columns.labels is None else columns.labels.digest)


def _mapped_again(path: str, digest: str, labels: str | None = None) -> ObjectTable:
    """Return the table of a file that another process has mapped.

    Args:
        path: Of the file.
        digest: Of the table.
        labels: Digest of its labels; None if it had none, or if a version of s3torch pickled it that knew none.

    Raises:
        ObjectTableError: It is not there any more, or is another table, or damaged.
    """
    remedy = (
        "A table that was loaded from a file is pickled as its path: keep the file as long as there are such pickles, "
        "where every process that loads them sees it; or make the dataset there, by from_table."
    )
    try:
        table = ObjectTable.load(path)
    except OSError as error:
        raise ObjectTableError(f"The table of objects in {path} cannot be opened again: {error}. {remedy}") from error
    if table.digest != digest:
        raise ObjectTableError(
            f"The table of objects in {path} is another one: its digest is {table.digest}, and was {digest} when the "
            f"table was pickled. {remedy}"
        )
    if labels is not None and table._identity != (digest, labels):
        raise ObjectTableError(f"The table of objects in {path} has other labels than when it was pickled. {remedy}")
    return table


def _uri(place: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return bucket and key of an S3 URI; None for a path."""
    if not isinstance(place, (str, os.PathLike)):
        raise ArgumentTypeError(f"A table of objects is kept at a path or an S3 URI, got {place!r}.")
    return parse_s3_uri(place) if isinstance(place, str) and place.startswith("s3://") else None
