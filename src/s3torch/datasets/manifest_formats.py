"""The formats of manifests: bytes of a file to rows of objects. Nothing here opens anything.

A column or field ``uri`` names the object, literally; ``size`` and ``etag`` may be there, and be empty. Of the others
the one of labels is read, if it was asked for. What cannot be read for sure is an error with its line: rows of another
length than the header, as of a key with a comma that nobody has quoted, would otherwise be other keys.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, BinaryIO, cast

from s3torch.datasets.rows import RowError, Rows, size_in
from s3torch.errors import ManifestError

__all__ = [
    "csv_records",
    "damage_of_gzip",
    "first_lines",
    "places_of",
    "read_csv",
    "read_jsonl",
    "read_parquet",
    "rows_of_parquet",
    "unzipped",
]

_SCHEME = "s3://"
_BOM = b"\xef\xbb\xbf"
_SHOWN = 200  # characters of what is in a file, in an error
_PARQUET_BATCH = 65536  # rows that are Python objects at a time
_GZIP = b"\x1f\x8b"
_NO_INTEGER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?|nan", re.ASCII | re.IGNORECASE)
_BUFFER_SIZE = 1024 * 1024  # bytes; not tuned


def unzipped(file: BinaryIO) -> io.BufferedReader:
    """Return a stream of what a file holds, decompressed if it is compressed by gzip. It closes the file."""
    stream: io.BufferedReader = io.BufferedReader(
        cast("io.RawIOBase", file), _BUFFER_SIZE
    )  # any that has readinto will do
    if not stream.peek(len(_GZIP)).startswith(_GZIP):
        return stream
    return io.BufferedReader(cast("io.RawIOBase", _Unzipped(stream)), _BUFFER_SIZE)


class _Unzipped(gzip.GzipFile):
    """A compressed file that closes what it reads, which GzipFile does not."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


@contextmanager
def damage_of_gzip(name: str) -> Iterator[None]:
    """Name the file whose decompression fails.

    Raises:
        ManifestError: What is read within is damaged, or cut off.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ManifestError(f"{name} is compressed by gzip, and cut off or damaged: {error}.") from error


def read_csv(stream: BinaryIO, rows: Rows, name: str) -> None:
    """Add the objects of a CSV file, which has a header, or URIs in its first column.

    Args:
        stream: Of UTF-8.
        rows: What they are added to.
        name: Of the file, for errors.

    Raises:
        ManifestError: A line is none of an object.
    """
    records = csv_records(stream, name)
    first = next(records, None)
    if first is None:
        return
    header = first[1]
    wanted, required = columns_of(rows)
    if header[0].startswith(_SCHEME):
        if rows.label_column is not None:
            raise ManifestError(
                f"{name} has no column {rows.label_column!r}: it has no header, and begins with {_shown(header[:1])}. "
                f"Put one into its first line, such as: uri,{rows.label_column}"
            )
        places: Sequence[int | None] = (0, *[None] * len(wanted[1:]))
        records = chain([first], records)
    else:
        places = places_of(wanted, [each.strip() for each in header], required, name)
    uri_at, size_at, etag_at, label_at = (*places, None)[:4]
    if uri_at is None:
        raise AssertionError("a column that must be there")
    for line, record in records:
        try:
            if len(record) != len(header):
                raise RowError(
                    f"has {len(record)} fields, and the first line {len(header)}. A field with a comma must be quoted."
                )
            rows.add_uri(
                record[uri_at],
                None if size_at is None else size_in(record[size_at]),
                None if etag_at is None else record[etag_at],
                None if label_at is None else _label_in(record[label_at], rows.label_column),
            )
        except RowError as error:
            raise ManifestError(f"Line {line} of {name} {error}") from error


def columns_of(rows: Rows) -> tuple[list[str], list[str]]:
    """Return the columns of a manifest that are read, in the order of ``Rows.add_uri``, and those that it must have."""
    labels = [] if rows.label_column is None else [rows.label_column]
    return ["uri", "size", "etag", *labels], ["uri", *labels]


def _label_in(text: str, column: str | None) -> str:
    """Return a label of CSV, where numbers are text, too.

    Raises:
        RowError: It looks like a number that is no integer: a program that writes those has lost its integers.
    """
    if _NO_INTEGER.fullmatch(text):
        raise RowError(
            f"has {text!r} as {column!r}, and a label is text or an integer. Write it without a decimal point; if it "
            "is text, write JSON Lines or Parquet, which tell text from numbers."
        )
    return text


def csv_records(stream: BinaryIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file that are not blank, each with the number of its first line.

    The stream is closed behind the last. Bytes that are no UTF-8 come as lone surrogates: they may lie in a column that
    nobody asks for.

    Raises:
        ManifestError: A record is no CSV.
    """
    line = 1
    # It would close the stream when it is collected; this does it at a known time.
    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            for record in reader:
                if len(record) > 1 or (record and record[0].strip()):
                    yield line, record
                line = reader.line_num + 1
        except csv.Error as error:
            raise ManifestError(f"The record that begins in line {line} of {name} is no CSV: {error}.") from error


def places_of(wanted: Iterable[str], columns: Sequence[str], required: Iterable[str], name: str) -> list[int | None]:
    """Return where the wanted columns are; None for one that is not there.

    Raises:
        ManifestError: One of those that are required is not there, or one is there twice.
    """
    for each in required:
        if each not in columns:
            raise ManifestError(f"{name} has no column {each!r}. Its columns are: {_shown(columns)}.")
    found: list[int | None] = []
    for each in wanted:
        if columns.count(each) > 1:
            raise ManifestError(f"{name} has {columns.count(each)} columns {each!r}, and one is needed.")
        found.append(columns.index(each) if each in columns else None)
    return found


def first_lines(stream: BinaryIO) -> list[bytes]:
    """Return the first line that is not blank, and the blank ones before it."""
    lines: list[bytes] = []
    for line in stream:
        lines.append(line.removeprefix(_BOM) if not lines else line)
        if not lines[-1].isspace():
            break
    return lines


def read_jsonl(lines: Iterable[bytes], rows: Rows, name: str) -> None:
    """Add the objects of a file of JSON Lines, one JSON object a line.

    Args:
        lines: Of UTF-8.
        rows: What they are added to.
        name: Of the file, for errors.

    Raises:
        ManifestError: A line is none of an object.
    """
    wanted, required = columns_of(rows)
    for number, line in enumerate(lines, 1):
        try:
            if not line.isspace():
                rows.add_uri(*_fields_in(line, wanted, required))
        except RowError as error:
            raise ManifestError(f"Line {number} of {name} {error}") from error


def _fields_in(line: bytes, wanted: Sequence[str], required: Sequence[str]) -> list[object]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"is no UTF-8: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"is no JSON: {error}. JSON Lines has one whole JSON object a line.") from error
    if not isinstance(found, dict):
        raise RowError(f"is no JSON object but {_shown([str(found)])}. JSON Lines has one JSON object a line.")
    for name in required:
        if name not in found:
            raise RowError(f"has no field {name!r}. Its fields are: {_shown(list(found))}.")
    return [found.get(name) for name in wanted]


def read_parquet(content: bytes, rows: Rows, name: str) -> None:
    """Add the objects of a Parquet file with a column ``uri``.

    Args:
        content: Of the file.
        rows: What they are added to.
        name: Of the file, for errors.

    Raises:
        ManifestError: It is damaged, or a row is none of an object; or pyarrow is not installed.
    """
    for number, values in enumerate(rows_of_parquet(content, *columns_of(rows), name), 1):
        try:
            rows.add_uri(*values)
        except RowError as error:
            raise ManifestError(f"Row {number} of {name} {error}") from error


def rows_of_parquet(
    content: bytes, wanted: Sequence[str], required: Sequence[str], name: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns of a Parquet file, None for those of a column that is not there.

    Raises:
        ManifestError: The file is damaged, or lacks a column that is required; or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ManifestError(
            f"{name} is a Parquet file, and pyarrow, which reads it, is not installed: pip install 's3torch[parquet]'."
        ) from error
    # Of a buffer, so that an OSError is none of a disk.
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        places_of(wanted, file.schema_arrow.names, required, name)
        present = [each for each in wanted if each in file.schema_arrow.names]
        for batch in file.iter_batches(_PARQUET_BATCH, columns=present):
            columns = {each: batch.column(each).to_pylist() for each in present}
            yield from zip(*(columns.get(each) or repeat(None, batch.num_rows) for each in wanted), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{name} is damaged, or no Parquet file: {error}.") from error


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
