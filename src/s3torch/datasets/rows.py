"""Rows of a manifest, gathered into the columns of a table without a Python object for each."""

from __future__ import annotations

from array import array

from s3torch.datasets.columns import Columns, LabelNames
from s3torch.datasets.table import ObjectTable
from s3torch.datasets.table_file import UNKNOWN_SIZE
from s3torch.errors import ArgumentError
from s3torch.uri import parse_s3_uri

__all__ = ["RowError", "Rows", "size_in"]

_TOO_LARGE = 2**63  # the column of sizes has 64 bits, and a sign
_MAX_DIGITS = 19


class RowError(Exception):
    """A row is no object of a dataset. Its sentence lacks the subject: who reads the file says which row of what."""


class Rows:
    """Objects in the order in which they are added, some of them perhaps several times.

    Args:
        label_column: Of the manifest, whose values are kept; None: they have no labels.

    Attributes:
        label_column: The same.
    """

    def __init__(self, label_column: str | None = None) -> None:
        self.label_column = label_column
        self._label_numbers = array("I")
        self._labels: dict[str, int] = {}
        self._keys = bytearray()
        self._ends = array("Q")
        self._sizes = array("q")
        self._bucket_numbers = array("I")
        self._buckets: dict[str, int] = {}
        self._etags = bytearray()
        self._etag_ends: array[int] | None = None  # until the first ETag
        # Of the URI before. An empty tuple begins nothing.
        self._bucket = ""
        self._beginning: str | tuple[()] = ()
        self._beginning_length = 0

    def add_uri(self, uri: object, size: object, etag: object, label: object = None) -> None:
        """Add the object that a URI names; see ``add``.

        Args:
            uri: ``s3://bucket/key``, taken literally.
            size: In bytes; None if it is not known.
            etag: With its quotes or without them; None or empty if it is not known.
            label: Text or an integer; not used if there is no column of labels.

        Raises:
            RowError: One of them cannot be.
        """
        if isinstance(uri, str) and uri.startswith(self._beginning):
            self.add(self._bucket, uri[self._beginning_length :], size, etag, label)
            return
        try:
            bucket, key = parse_s3_uri(uri)  # type: ignore[arg-type]  # it checks that
        except ArgumentError as error:
            raise RowError(f"has no S3 URI: {error}") from error
        self.add(bucket, key, size, etag, label)
        if not bucket.startswith("arn:"):  # an ARN ends where its name ends, and not at the first slash
            self._bucket, self._beginning = bucket, f"s3://{bucket}/"
            self._beginning_length = len(self._beginning)

    def add(self, bucket: object, key: object, size: object, etag: object, label: object = None) -> None:
        """Add an object.

        Args:
            bucket: Of the object.
            key: Of the object.
            size: In bytes; None if it is not known.
            etag: With its quotes or without them; None or empty if it is not known.
            label: Text or an integer; not used if there is no column of labels.

        Raises:
            RowError: One of them cannot be; nothing was added.
        """
        name = _utf8("key", key)
        if not isinstance(bucket, str) or not bucket:
            raise RowError(f"has the bucket {bucket!r}, which is no name.")
        if not name:
            raise RowError("has no key. An object is 's3://bucket/key'.")
        if size is None:
            size = UNKNOWN_SIZE
        elif type(size) is not int:  # True is no size
            raise RowError(f"has the size {size!r}, which is no integer.")
        elif not 0 <= size < _TOO_LARGE:
            raise RowError(f"has the size {size}, which is not within 0 and {_TOO_LARGE - 1}.")
        tag = _utf8("ETag", etag) if etag else b""
        if tag and size == UNKNOWN_SIZE:
            raise RowError(f"has the ETag {etag} and no size. An object is known by both: add the size.")
        if self.label_column is not None:
            self._label_numbers.append(self._number_of(label, self.label_column))
        self._keys += name
        self._ends.append(len(self._keys))
        self._sizes.append(size)
        self._bucket_numbers.append(self._buckets.setdefault(bucket, len(self._buckets)))
        if tag:
            self._etags += tag if tag.endswith(b'"') else b'"%b"' % tag
            if self._etag_ends is None:
                self._etag_ends = array("Q", bytes(8 * (len(self._ends) - 1)))
        if self._etag_ends is not None:
            self._etag_ends.append(len(self._etags))

    def _number_of(self, label: object, column: str) -> int:
        """Return the number of a label, a new one if it is the first of its name."""
        name = str(label) if type(label) is int else label  # True is no label
        if isinstance(name, str) and (number := self._labels.get(name)) is not None:
            return number
        if not isinstance(name, str):
            raise RowError(f"has {label!r} as {column!r}, and a label is text or an integer.")
        if not name or name.isspace():
            raise RowError(f"has {label!r} as {column!r}, and a label must not be empty.")
        _utf8(repr(column), name)
        return self._labels.setdefault(name, len(self._labels))

    def table(self) -> ObjectTable:
        """Return a table of the objects. It has ETags if one of them has, and labels if they have a column."""
        etags = None if self._etag_ends is None else bytes(self._etags)
        buckets, keys = list(self._buckets), bytes(self._keys)
        columns = Columns(buckets, self._ends, self._sizes, self._bucket_numbers, keys, self._etag_ends, etags)
        if self.label_column is not None:
            labels = LabelNames.of(self.label_column, self._labels, self._label_numbers)
            columns = columns._replace(label_numbers=self._label_numbers, labels=labels)
        return ObjectTable._of(columns)


def size_in(text: str) -> int | None:
    """Return the size that a text says; None if it is empty.

    Raises:
        RowError: It is no integer.
    """
    if text.isdigit() and text.isascii() and len(text) <= _MAX_DIGITS:
        return int(text)
    if not text:
        return None
    raise RowError(f"has the size {text!r}, which is no integer within 0 and {_TOO_LARGE - 1}.")


def _utf8(what: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise RowError(f"has the {what} {value!r}, which is no text.")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"has the {what} {value!r}, which is no UTF-8.") from error
