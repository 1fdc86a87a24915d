"""S3 Inventory: the manifest that Amazon S3 writes once a day or week, and the files that it names. All of it is pure.

``manifest.json`` names files in the destination bucket, their format, their columns, and the MD5 of each
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html). An inventory of all versions
has those that are not the latest, and delete markers: a listing has neither, so they are left out. So are markers of
directories (0-byte keys that end in ``/``), as in any listing of a dataset.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

from s3torch.datasets.manifest_formats import csv_records, damage_of_gzip, places_of, rows_of_parquet, unzipped
from s3torch.datasets.rows import RowError, Rows, size_in
from s3torch.errors import ManifestError

__all__ = ["Inventory", "InventoryFile", "is_inventory", "parse_inventory", "read_inventory_file"]

_VERSION = "2016-11-30"
_CSV_COLUMNS = ("Bucket", "Key", "Size", "ETag", "IsLatest", "IsDeleteMarker")
_PARQUET_COLUMNS = ("bucket", "key", "size", "e_tag", "is_latest", "is_delete_marker")
_TRUTHS = {"true": True, "false": False, "": None}
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryFile:
    """A file of an inventory.

    Attributes:
        key: In the destination bucket.
        md5: Of its bytes, in hexadecimal.
    """

    key: str
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a manifest.json says.

    Attributes:
        bucket: In which the files are.
        file_format: ``CSV`` or ``Parquet``.
        columns: Of CSV files, which have no header.
        files: In their order.
    """

    bucket: str
    file_format: str
    columns: tuple[str, ...]
    files: tuple[InventoryFile, ...]


def is_inventory(first_line: bytes) -> bool:
    """Whether JSON that begins with this line is an inventory and no JSON Lines."""
    if first_line.strip() == b"{":
        return True
    try:
        document = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"fileFormat", "files"} <= document.keys()


def parse_inventory(content: bytes, name: str) -> Inventory:
    """Return what a manifest.json says.

    Raises:
        ManifestError: It is none, is of another version, or names files of a format that is not known here.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{name} is no manifest.json of an S3 Inventory, as it is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{name} is no manifest.json of an S3 Inventory: it is no JSON object.")
    version = _text_of(document, "version", name)
    if version != _VERSION:
        raise ManifestError(f"The inventory {name} has version {version!r}, and this s3torch reads {_VERSION!r}.")
    file_format = _text_of(document, "fileFormat", name)
    if file_format not in ("CSV", "Parquet"):
        raise ManifestError(f"The inventory {name} has files of {file_format!r}, and s3torch reads CSV and Parquet.")
    bucket = _text_of(document, "destinationBucket", name).rpartition(":::")[2]  # of an ARN, or the name itself
    columns = _text_of(document, "fileSchema", name).split(",") if file_format == "CSV" else []
    files = document.get("files")
    if not bucket or not isinstance(files, list):
        raise ManifestError(f"The inventory {name} contradicts its format: it must have a bucket and a list of files.")
    return Inventory(
        bucket=bucket,
        file_format=file_format,
        columns=tuple(column.strip() for column in columns),
        files=tuple(_file_of(file, f"{name}, files[{index}],") for index, file in enumerate(files)),
    )


def _file_of(file: object, name: str) -> InventoryFile:
    if not isinstance(file, dict):
        raise ManifestError(f"The inventory {name} is no JSON object.")
    return InventoryFile(key=_text_of(file, "key", name), md5=_text_of(file, "MD5checksum", name).lower())


def _text_of(document: dict[str, Any], field: str, name: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise ManifestError(f"The inventory {name} has no text {field!r}: it has {value!r} there.")
    return value


def read_inventory_file(content: bytes, inventory: Inventory, file: InventoryFile, rows: Rows, name: str) -> None:
    """Add the objects of one file of an inventory.

    Args:
        content: Of the file. None of it is believed before it has the MD5 that the inventory says.
        inventory: Whose file it is.
        file: Which one.
        rows: What the objects are added to.
        name: Of the file, for errors.

    Raises:
        ManifestError: It has another MD5, or a row is none of an object.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise ManifestError(
            f"{name} has the MD5 {found}, and its inventory says {file.md5}: it is damaged, or of another inventory."
        )
    if inventory.file_format == "CSV":
        with damage_of_gzip(name), unzipped(io.BytesIO(content)) as stream:
            _read_csv(stream, inventory.columns, rows, name)
    else:
        _read_parquet(content, rows, name)


def _read_csv(stream: BinaryIO, columns: tuple[str, ...], rows: Rows, name: str) -> None:
    places = places_of(_CSV_COLUMNS, columns, ["Bucket", "Key"], name)
    for line, record in csv_records(stream, name):
        try:
            if len(record) != len(columns):
                raise RowError(f"has {len(record)} fields, and its inventory's fileSchema {len(columns)}.")
            texts = ["" if place is None else record[place] for place in places]
            bucket, key, size, etag, is_latest, is_deleted = texts
            _add(rows, bucket, _unquoted(key), size_in(size), etag, _truth(is_latest), _truth(is_deleted))
        except RowError as error:
            raise ManifestError(f"Line {line} of {name} {error}") from error


def _read_parquet(content: bytes, rows: Rows, name: str) -> None:
    for number, values in enumerate(rows_of_parquet(content, _PARQUET_COLUMNS, ["bucket", "key"], name), 1):
        try:
            _add(rows, *values)
        except RowError as error:
            raise ManifestError(f"Row {number} of {name} {error}") from error


def _add(
    rows: Rows, bucket: object, key: object, size: object, etag: object, is_latest: object, is_deleted: object
) -> None:
    """Add an object, unless a listing would not have it."""
    if is_latest is False or is_deleted is True:
        return
    if size == 0 and isinstance(key, str) and key.endswith("/"):
        return
    # An inventory need not have sizes. To be pinned by its ETag an object must have one, see the docs.
    rows.add(bucket, key, size, None if size is None else etag)


def _truth(text: str) -> bool | None:
    if text not in _TRUTHS:
        raise RowError(f"has {text!r} where its inventory's fileSchema has a truth value.")
    return _TRUTHS[text]


def _unquoted(text: str) -> str:
    """Return a key as it is: Amazon S3 writes a space as ``+``, and other bytes as ``%20``."""
    if "%" not in text:
        return text.replace("+", " ")
    if found := _BAD_ESCAPE.search(text):
        raise RowError(f"has the key {text!r}, which is not URL-encoded at {found.start()}.")
    return unquote_plus(text, errors="surrogateescape")  # what is no UTF-8 is refused with its row
