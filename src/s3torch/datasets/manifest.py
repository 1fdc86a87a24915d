"""Manifests: files that somebody else has written, which name the objects of a dataset."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, get_args

from s3torch.client import S3Client
from s3torch.datasets.inventory import Inventory, InventoryFile, is_inventory, parse_inventory, read_inventory_file
from s3torch.datasets.manifest_formats import (
    damage_of_gzip,
    first_lines,
    read_csv,
    read_jsonl,
    read_parquet,
    unzipped,
)
from s3torch.datasets.rows import Rows
from s3torch.datasets.sources import Known
from s3torch.datasets.table import ObjectTable
from s3torch.errors import ArgumentError, ArgumentTypeError, ManifestError, NotFoundError
from s3torch.uri import parse_s3_uri

__all__ = ["Manifest", "ManifestFormat"]

ManifestFormat = Literal["table", "csv", "jsonl", "inventory", "parquet"]

# How files of a format begin that is told by that alone.
_MAGIC: dict[bytes, ManifestFormat] = {b"\x89s3torch objects\r\n": "table", b"PAR1": "parquet"}
_SUFFIXES: dict[str, ManifestFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_SHOWN = 16  # bytes of a file's beginning, in an error


@dataclass(frozen=True)
class Manifest:
    """The objects that a file names, in its order; an object that it names twice is there twice.

    It is one of: a table that ``ObjectTable.save`` wrote; CSV with a column ``uri``, or with no header and with URIs in
    its first column; JSON Lines with a field ``uri``; Parquet with a column ``uri``; the ``manifest.json`` of an S3
    Inventory. CSV and JSON Lines may be compressed by gzip. Columns ``size`` (bytes) and ``etag`` are used if they are
    there: a reader then refuses an object that was replaced since. The column that ``labels=by_column(...)`` names is
    kept as well. Other columns are left out.

    Args:
        place: A path, or ``s3://bucket/key``. It is read when a dataset is made of it, once.
        format: None finds it out, by how the file begins, and by its name.

    Raises:
        ArgumentTypeError: ``place`` is neither a path nor a string.
        ArgumentError: There is no such format.
    """

    place: str | os.PathLike[str]
    format: ManifestFormat | None = None
    is_listed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.place, (str, os.PathLike)):
            raise ArgumentTypeError(f"A manifest is at a path or an S3 URI, got {self.place!r}.")
        if self.format is not None and self.format not in get_args(ManifestFormat):
            known = ", ".join(map(repr, get_args(ManifestFormat)))
            raise ArgumentError(f"format must be None or one of {known}, got {self.format!r}.")

    def __call__(self, client: S3Client) -> ObjectTable:
        """Return the objects; raises what ``table`` does."""
        return self.table(client)

    def table(
        self,
        client: S3Client,
        label_column: str | None = None,
        *,
        etags: bool = False,  # noqa: ARG002  # it has them or not
    ) -> ObjectTable:
        """Return the objects.

        Args:
            client: Reads them, if they are in S3.
            label_column: Whose values are kept, for ``by_column``; a saved table has what was kept when it was made.
                None: none is read.
            etags: Not used: what is there has them or not.

        Raises:
            ManifestError: A line is none of an object or has no label, there is no such column, the file is damaged, or
                of another format.
            ObjectTableError: It is a saved table that is damaged.
            S3Error: It could not be read from S3.
            OSError: It could not be read from a file.
        """
        rows = Rows(label_column)
        with _opened(self.place, client) as stream:
            if _read(stream, self, client, rows):
                return rows.table()
        return ObjectTable.load(self.place, client=client)

    def opened(self, client: S3Client, label_column: str | None = None) -> Known:
        """Return the objects; raises what ``table`` does."""
        return Known(self.table(client, label_column), str(self.place))


def _read(stream: io.BufferedReader, manifest: Manifest, client: S3Client, rows: Rows) -> bool:
    """Add the objects of a manifest; return False if it is a saved table, which is not read like this."""
    name = str(manifest.place)
    with damage_of_gzip(name):
        found = _format_of(stream.peek(_SHOWN), manifest.format, name)
        if found == "table":
            return False
        if found == "parquet":
            read_parquet(stream.read(), rows, name)
        elif found == "csv":
            read_csv(stream, rows, name)
        else:
            begun = first_lines(stream)
            if found == "jsonl" or (found is None and not (begun and is_inventory(begun[-1]))):
                read_jsonl(chain(begun, stream), rows, name)
            else:
                if rows.label_column is not None:
                    raise ManifestError(
                        f"{name} is an S3 Inventory, which has no column of labels: there is no {rows.label_column!r}. "
                        "Name the classes by labels=by_folder(), or by a function."
                    )
                inventory = parse_inventory(b"".join([*begun, stream.read()]), name)
                _read_inventory(inventory, manifest, client, rows)
    return True


def _format_of(beginning: bytes, said: ManifestFormat | None, name: str) -> ManifestFormat | None:
    """Return the format of a file; None if it is JSON, of which there are two.

    Raises:
        ManifestError: It is of another one than was said, or of none that is known.
    """
    found = next((kind for magic, kind in _MAGIC.items() if beginning.startswith(magic)), None)
    if said not in (None, found) and (found is not None or said in _MAGIC.values()):
        what = f"is {found!r}" if found else f"begins with {beginning[:_SHOWN]!r}"
        raise ManifestError(f"{name} {what}, and format={said!r} was asked for.")
    if found is not None:
        return found
    if beginning.startswith(_UTF_16):
        raise ManifestError(f"{name} is text in UTF-16, and s3torch reads UTF-8. Save it as UTF-8.")
    if said is not None:
        return said
    path = name.lower().removesuffix(".gz")
    by_name = next((kind for suffix, kind in _SUFFIXES.items() if path.endswith(suffix)), None)
    if by_name is not None:
        return by_name
    text = beginning.removeprefix(_BOM).lstrip()
    if text.startswith(b"["):
        raise ManifestError(f"{name} is a JSON array, and s3torch reads JSON Lines: one JSON object a line.")
    return None if text.startswith(b"{") else "csv"


def _opened(place: str | os.PathLike[str], client: S3Client) -> io.BufferedReader:
    uri = parse_s3_uri(place) if isinstance(place, str) and place.startswith("s3://") else None
    file: BinaryIO = Path(place).open("rb") if uri is None else client.get_object(*uri)  # noqa: SIM115  # see below
    try:
        return unzipped(file)
    except BaseException:
        file.close()
        raise


def _read_inventory(inventory: Inventory, manifest: Manifest, client: S3Client, rows: Rows) -> None:
    """Add the objects of an inventory, one file after the other, as it names them."""
    for file in inventory.files:
        path = _beside(manifest.place, file)
        if path is not None:
            read_inventory_file(path.read_bytes(), inventory, file, rows, str(path))
            continue
        name = f"s3://{inventory.bucket}/{file.key}"
        try:
            content = client.get_object(inventory.bucket, file.key).read()
        except NotFoundError as error:
            raise ManifestError(
                f"{name} does not exist, and the inventory {manifest.place} names it: {error}",
                bucket=inventory.bucket,
                key=file.key,
            ) from error
        read_inventory_file(content, inventory, file, rows, name)


def _beside(place: str | os.PathLike[str], file: InventoryFile) -> Path | None:
    """Return where a file of an inventory is that was copied to this machine with its manifest, as it lies in S3.

    There are ``.../2016-11-06T21-32Z/manifest.json`` and ``.../data/x.csv.gz``.
    """
    if isinstance(place, str) and place.startswith("s3://"):
        return None
    path = Path(place).absolute().parent.parent / "data" / file.key.rpartition("/")[2]
    return path if path.is_file() else None
