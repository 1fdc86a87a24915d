"""Tests of manifests: files of several formats that name the objects of a dataset."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from s3torch import S3Client, S3IterableDataset, S3MapDataset, S3Reader
from s3torch._aws.listing import ObjectInfo
from s3torch.datasets import Filter, Manifest, ObjectTable, S3BucketKeyData
from s3torch.datasets.manifest_formats import read_csv, read_jsonl
from s3torch.datasets.rows import Rows
from s3torch.datasets.sources import Source
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    EmptyDatasetError,
    ManifestError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTableError,
)

KINDS = [S3MapDataset, S3IterableDataset]
KEYS = ["a", "é/日本 🦜", "a+b%20c", "with, comma", 'with "quotes"', " blank ", "two\nlines", "a", "//", "?x=#"]
Row = tuple[str, str, "int | None", str]


def content(reader: S3Reader) -> bytes:
    """Return what a sample is."""
    return reader.read()


def _read(place: Path | str, format: str | None = None) -> ObjectTable:  # noqa: A002  # as it is called there
    return Manifest(place, format).table(S3Client())


def _rows(table: ObjectTable) -> list[Row]:
    def row(item: S3BucketKeyData) -> Row:
        info = item.object_info
        return (item.bucket, item.key, None, "") if info is None else (item.bucket, item.key, info.size, info.etag)

    return [row(item) for item in table]


def _csv(rows: list[list[object]], newline: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


def _jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes, str], Path]:
    """Writes a file: ``file(content, name)``."""

    def write(content: bytes, name: str = "manifest") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


# --- CSV and JSON Lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", ["", ".csv", ".CSV"])
def test_csv(file, zipped, suffix):
    """Columns are found by their names, and keys are taken as they are, with duplicates, in their order."""
    text = b"\xef\xbb\xbf" + _csv(
        [["label", "etag", "uri", "size"], []]
        + [["x", "e" * (n % 2), f"s3://b{n % 2}/{key}", n] for n, key in enumerate(KEYS)]
    )
    path = file(gzip.compress(text) if zipped else text, f"m{suffix}.gz" if zipped else f"m{suffix}")
    expected = [(f"b{n % 2}", key, n, '"e"' if n % 2 else "") for n, key in enumerate(KEYS)]
    assert _rows(_read(path)) == _rows(_read(str(path), "csv")) == expected


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", ["", ".jsonl", ".ndjson", ".json"])
def test_json_lines(file, zipped, suffix):
    """Fields may be missing or null, and others are left out."""
    lines = [{"uri": f"s3://b/{key}", "size": n, "etag": '"e"'} for n, key in enumerate(KEYS)]
    lines += [{"label": [1], "uri": "s3://b/k"}, {"uri": "s3://b/k", "size": None, "etag": None}]
    text = b"\xef\xbb\xbf\r\n \n" + _jsonl(lines).replace(b"\n", b"\r\n")
    path = file(gzip.compress(text) if zipped else text, f"m{suffix}.gz" if zipped else f"m{suffix}")
    expected = [("b", key, n, '"e"') for n, key in enumerate(KEYS)] + [("b", "k", None, "")] * 2
    assert _rows(_read(path)) == _rows(_read(path, "jsonl")) == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_csv_without_a_header(file, newline):
    """The first column is that of the URIs; blank lines are left out."""
    path = file(newline.join(["", "s3://b/k,7", "", "  ,x"[:2], '"s3://b/k,1",cat', "s3://c/k,", ""]).encode())
    assert _rows(_read(path)) == [("b", "k", None, ""), ("b", "k,1", None, ""), ("c", "k", None, "")]


def test_gzip_in_several_parts(file):
    """Compressed files that were put behind each other are one."""
    path = file(b"".join(map(gzip.compress, (b"uri\n", b"s3://b/1\n", b"", b"s3://b/2\n"))))
    assert [item.key for item in _read(path)] == ["1", "2"]


def test_access_points(file):
    """The ARN of an access point is a bucket, beside one that looks like its beginning."""
    beginning = "s3://arn:aws:s3:eu-west-1:1:accesspoint/"
    path = file(f"{beginning}/x\n{beginning}name/k\n{beginning}other/k\n".encode())
    arn = beginning[5:]
    assert [tuple(item[:2]) for item in _read(path)] == [(arn[:-1], "/x"), (arn + "name", "k"), (arn + "other", "k")]


_KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda key: key.encode()
)
_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["b", "bucket-2"]), _KEYS, st.integers(0, 2**63 - 1), st.sampled_from(["", '"x"', '"x-2"'])
    )
)


# Python's writer does not quote a "\r" if lines end in "\n".
@given(_ROWS, st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]))
def test_what_is_written_is_read(rows: list[Row], how: tuple[str, int]):
    """Rows of any keys come back from CSV and from JSON Lines, and make the same table."""
    expected = ObjectTable(_items(rows), etags=any(etag for *_, etag in rows))
    named = [(f"s3://{bucket}/{key}", size, etag) for bucket, key, size, etag in rows]
    ours = Rows()
    read_csv(io.BytesIO(_csv([["uri", "size", "etag"], *map(list, named)], *how)), ours, "m")
    theirs = Rows()
    fields = [dict(zip(("uri", "size", "etag"), row, strict=True)) for row in named]
    read_jsonl(io.BytesIO(_jsonl(fields)), theirs, "m")
    assert _rows(ours.table()) == _rows(theirs.table()) == rows
    assert ours.table().digest == theirs.table().digest == expected.digest


def _items(rows: list[Row]) -> list[S3BucketKeyData]:
    return [S3BucketKeyData(b, k, ObjectInfo(k, etag, size, 0)) for b, k, size, etag in rows]


BAD = [
    (b"uri\ns3://b/k\nhttp://b/k\n", r"Line 3 of .*m.* has no S3 URI: Only s3:// URIs are supported, got 'http://b/k'"),
    (b"uri\n\ns3://b\n", r"Line 3 of .* has no key"),
    (b"uri\ns3:///k\n", r"Line 2 of .* Bucket name must be non-empty"),
    (b"uri\n\xef\xbb\xbfs3://b/k\n", "Line 2 of .* has no S3 URI"),
    (b"uri\ns3://b/k\ns3://b/\xff\n", r"Line 3 of .* is no UTF-8"),
    (b"uri\ns3://\xff/k\n", r"Line 2 of .* has no S3 URI: .* must be valid Unicode"),
    (
        b"uri,size\ns3://b/k,-1\n",
        r"Line 2 of .* has the size '-1', which is no integer within 0 and 9223372036854775807",
    ),
    (b"uri,size\ns3://b/k,5.0\n", r"Line 2 of .* has the size '5.0', which is no integer"),
    (b"uri,size\ns3://b/k,1_0\n", r"has the size '1_0'"),
    (
        b"uri,size\ns3://b/k,9223372036854775808\n",
        r"Line 2 of .* has the size 9223372036854775808, which is not within",
    ),
    (b"uri,size\ns3://b/k," + b"9" * 5000, r"Line 2 of .* no integer within"),
    (b"uri,etag\ns3://b/k,x\n", r"Line 2 of .* has the ETag x and no size"),
    (b"url,size\ns3://b/k,1\n", r"m has no column 'uri'. Its columns are: 'url', 'size'"),
    (b"URI\ns3://b/k\n", r"has no column 'uri'. Its columns are: 'URI'"),
    (b"uri,uri\ns3://b/k,s3://b/l\n", r"has 2 columns 'uri', and one is needed"),
    (b"uri,size,size\ns3://b/k,1,2\n", r"has 2 columns 'size'"),
    (
        b'uri\n"s3://b/two\nlines"\ns3://b/a,b.jpg\n',
        r"Line 4 of .* has 2 fields, and the first line 1. .* must be quoted",
    ),
    (b"uri,size\ns3://b/k\n", r"Line 2 of .* has 1 fields, and the first line 2"),
    (b"s3://b/k\ns3://b/k,1\n", r"Line 2 of .* has 2 fields, and the first line 1"),
    (b'uri\ns3://b/k\n\n"s3://b/k\ns3://b/l\n', r"The record that begins in line 4 of .*m is no CSV: unexpected end"),
    (b'uri\n"s3://b/k"x\n', r"The record that begins in line 2 of .* is no CSV"),
    (b'uri\n"' + b"x" * 200_000, r"The record that begins in line 2 of .* is no CSV: field larger"),
    ("uri\ns3://b/k\n".encode("utf-16"), r"m is text in UTF-16, and s3torch reads UTF-8"),
    (b'[{"uri": "s3://b/k"}]', r"m is a JSON array, and s3torch reads JSON Lines"),
    (b'{"uri": "s3://b/k"}\n{"uri": "s3://b/k"\n', r"Line 2 of .* is no JSON: .* one whole JSON object a line"),
    (b'{"uri": "s3://b/k"\n', r"Line 1 of .* is no JSON"),
    (b'{"uri": "s3://b/k"}\n\n"s3://b/k"\n', r"Line 3 of .* is no JSON object but 's3://b/k'"),
    (
        b'{"uri": "s3://b/k"}\n{"url": 1, "size": 2}\n',
        r"Line 2 of .* has no field 'uri'. Its fields are: 'url', 'size'",
    ),
    (b'{"uri": 3}\n', r"Line 1 of .* has no S3 URI: .* must be a str"),
    (b'{"uri": "s3://b/k", "size": -1}\n', r"Line 1 of .* has the size -1, which is not within"),
    (b'{"uri": "s3://b/k", "size": 5.0}\n', r"Line 1 of .* has the size 5.0, which is no integer"),
    (b'{"uri": "s3://b/k", "size": true}\n', r"has the size True"),
    (b'{"uri": "s3://b/k", "size": "5"}\n', r"has the size '5'"),
    (b'{"uri": "s3://b/k", "size": 1, "etag": 5}\n', r"has the ETag 5, which is no text"),
    (b'{"uri": "s3://b/\\ud800"}\n', r"Line 1 of .* must be valid Unicode"),
    (b'{"uri": "s3://b/k"}\n{"uri": "s3://b/\\ud800"}\n', r"Line 2 of .* is no UTF-8"),
    (b'{"uri": "s3://b/k"}\n{"uri": "s3://b/\xff"}\n', r"Line 2 of .* is no UTF-8"),
    (b'{"uri": ' + b"[" * 100_000 + b"\n", r"Line 1 of .* is no JSON"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_lines(file, text, message, zipped):
    """What is none of an object is an error with the file and the line, and nothing is left out."""
    path = file(gzip.compress(text) if zipped else text, "m")
    with pytest.raises(ManifestError, match=message) as caught:
        S3MapDataset.from_manifest(path)
    assert str(path) in str(caught.value)


def test_damaged_gzip(file):
    """A compressed file that is cut anywhere, or altered, or has something behind it, is an error with its name."""
    text = gzip.compress(b"uri\n" + b"".join(b"s3://b/%d\n" % number for number in range(2000)))
    bad = [text[:length] for length in (2, 9, 10, 11, len(text) // 2, len(text) - 8, len(text) - 1)]
    bad += [text[:-6] + b"xx" + text[-4:], text[:50] + b"\xff\xff\xff" + text[53:], text + b"garbage"]
    for each in bad:
        path = file(each, "m.csv.gz")
        with pytest.raises(ManifestError, match=re.escape(f"{path} is compressed by gzip, and cut off or damaged")):
            _read(path)


# --- Which format ----------------------------------------------------------------------------------------------------


def test_a_saved_table(file, tmp_path):
    """A saved table is one, whatever its name, and is mapped as from_table does it."""
    table = ObjectTable([S3BucketKeyData("b", key) for key in KEYS])
    table.save(tmp_path / "m.csv")
    for said in (None, "table"):
        read = _read(tmp_path / "m.csv", said)
        assert read.digest == table.digest
        assert read._mapped is not None
    whole = (tmp_path / "m.csv").read_bytes()
    with pytest.raises(ObjectTableError, match="cut off or damaged"):
        _read(file(whole[:-1]))


def test_a_format_that_is_another(file, tmp_path):
    """Both the format that was asked for and what is there are named."""
    ObjectTable([S3BucketKeyData("b", "k")]).save(tmp_path / "t")
    for said in ("csv", "jsonl", "inventory", "parquet"):
        with pytest.raises(ManifestError, match=rf"t is 'table', and format='{said}' was asked for"):
            _read(tmp_path / "t", said)
    path = file(b"uri\ns3://b/k\n")
    for said in ("table", "parquet"):
        with pytest.raises(ManifestError, match=rf"begins with b'uri.*', and format='{said}' was asked for"):
            _read(path, said)
    with pytest.raises(ManifestError, match=r"Line 1 of .* is no JSON"):
        _read(path, "jsonl")
    with pytest.raises(ManifestError, match=r"manifest.json of an S3 Inventory, as it is no JSON"):
        _read(path, "inventory")
    with pytest.raises(ManifestError, match="has no column 'uri'"):
        _read(file(b'{"uri": "s3://b/k"}'), "csv")
    with pytest.raises(ManifestError, match="has no column 'uri'"):
        _read(file(b"\x89PNG\r\n\x1a\n" + bytes(1000)))


def test_bad_arguments():
    """What cannot be a manifest is refused where it is made."""
    with pytest.raises(ArgumentTypeError, match="A manifest is at a path or an S3 URI, got 3"):
        Manifest(3)
    with pytest.raises(ArgumentError, match=r"format must be None or one of 'table', 'csv', .*, got 'tsv'"):
        Manifest("m", "tsv")
    with pytest.raises(FileNotFoundError):
        _read("/no/such/file")


def test_manifests_are_values():
    """Manifests compare and pickle, and are sources."""
    assert Manifest("m") == Manifest("m") != Manifest("m", "csv")
    assert pickle.loads(pickle.dumps(Manifest("m", "csv"))) == Manifest("m", "csv")
    assert isinstance(Manifest("m"), Source)
    assert repr(Manifest("m")) == "Manifest(place='m', format=None)"


# --- Datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_dataset_of_a_manifest_in_s3(made, zipped, s3, bucket, prefix, put, file):
    """The manifest may be an object; samples come in its order, and workers do not read it again."""
    odd = ["a", "a+b%20c", "é 🦜", "with, comma", "a"]
    for key in set(odd):
        put(prefix + key, key.encode())
    text = _csv([["uri"], *([f"s3://{bucket}/{prefix}{key}"] for key in odd)])
    put(f"{prefix}m.csv", gzip.compress(text) if zipped else text)
    expected = [key.encode() for key in odd]
    dataset = made.from_manifest(f"s3://{bucket}/{prefix}m.csv", transform=content)
    S3Client().delete_object(bucket, f"{prefix}m.csv")
    assert _samples(dataset) == expected
    assert list(DataLoader(pickle.loads(pickle.dumps(dataset)), None, num_workers=1)) == expected
    local = file(text)
    assert _samples(made.from_source(Manifest(local), transform=content)) == expected
    assert _samples(made.from_manifest(local, transform=content, filter=Filter(suffix="comma"))) == [b"with, comma"]


def _samples(dataset: S3MapDataset | S3IterableDataset) -> list[object]:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("quoted", [False, True])
def test_objects_are_pinned(made, quoted, s3, bucket, prefix, put, file):
    """An object that was replaced since the manifest was written, by one of equal size, is an error."""
    put(f"{prefix}k", b"before")
    etag = S3Client().head_object(bucket, f"{prefix}k").etag
    assert etag is not None
    row = {"uri": f"s3://{bucket}/{prefix}k", "size": 6, "etag": etag if quoted else etag.strip('"')}
    path = file(_jsonl([row]))
    assert _samples(made.from_manifest(path, transform=content)) == [b"before"]
    put(f"{prefix}k", b"behind")
    with pytest.raises(ObjectChangedError):
        _samples(made.from_manifest(path, transform=content))


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("text", [b"", b"\n\r\n", b"uri,size\n", gzip.compress(b"", mtime=0), b"\xef\xbb\xbf"])
def test_an_empty_manifest(made, text, file):
    """That a manifest names nothing is an error with its name, unless it is allowed."""
    path = file(text)
    with pytest.raises(EmptyDatasetError, match=re.escape(f"There is no object in {path}. Pass allow_empty=True")):
        _samples(made.from_manifest(path))
    assert _samples(made.from_manifest(path, allow_empty=True)) == []
    assert len(_read(file(b"\n", "m.jsonl"))) == 0
    full = file(b"s3://b/k\n", "full")
    with pytest.raises(EmptyDatasetError, match=re.escape(f"leaves none of the 1 objects of {full}")):
        _samples(made.from_manifest(full, filter=Filter(suffix=".jpg")))


def test_a_manifest_that_is_missing(s3, bucket, prefix):
    """An object that does not exist is told by its own error."""
    with pytest.raises(ObjectNotFoundError):
        S3MapDataset.from_manifest(f"s3://{bucket}/{prefix}nothing.csv")


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(columns: dict[str, object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=4)
    return sink.getvalue()


def test_parquet(file):
    """Columns are found by their names; a value may be null."""
    uris = [f"s3://b/{key}" for key in KEYS]
    path = file(
        _parquet({"label": KEYS, "size": [None, *range(1, len(KEYS))], "uri": uris, "etag": [None] + ["e"] * 9})
    )
    expected = [("b", key, n or None, '"e"' if n else "") for n, key in enumerate(KEYS)]
    assert _rows(_read(path)) == _rows(_read(path, "parquet")) == expected
    assert [item.key for item in _read(file(_parquet({"uri": pa.array(uris).dictionary_encode()})))] == KEYS


def test_bad_parquet(file):
    """A bad row is an error with its number; a damaged file one with its name."""
    uris = ["s3://b/k"] * 5
    for columns, message in (
        ({"url": uris}, r"has no column 'uri'. Its columns are: 'url'"),
        ({"uri": [*uris, None]}, r"Row 6 of .* has no S3 URI"),
        ({"uri": [*uris, b"s3://b/k"][5:]}, r"Row 1 of .* has no S3 URI"),
        ({"uri": uris, "size": [1, 2, 3, 4, -5]}, r"Row 5 of .* has the size -5"),
        ({"uri": uris, "size": [1.0] * 5}, r"Row 1 of .* has the size 1.0"),
    ):
        with pytest.raises(ManifestError, match=message):
            _read(file(_parquet(columns)))
    whole = _parquet({"uri": uris})
    for bad in (whole[:4], whole[:-1], whole[: len(whole) // 2], whole[:10] + b"\xff" * 60 + whole[70:]):
        path = file(bad)
        with pytest.raises(ManifestError, match=re.escape(f"{path} is damaged, or no Parquet file")):
            _read(path)


def test_without_pyarrow(file, monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ManifestError, match=r"pyarrow, which reads it, is not installed: pip install 's3torch\[parquet\]'"
    ):
        _read(file(_parquet({"uri": ["s3://b/k"]})))


# --- S3 Inventory ----------------------------------------------------------------------------------------------------

SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
_LAST = "2016-11-06T21:32:00.000Z"


def _inventory_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return gzip.compress(text.getvalue().encode())


def _row(key: str, size: int | str = 3, etag: str = "e", *, latest: str = "true", deleted: str = "false") -> list[str]:
    return ["src", quote_plus(key, safe="/"), "v", latest, deleted, str(size), _LAST, etag]


def _manifest_json(contents: dict[str, bytes], bucket: str = "dest", **changed: object) -> bytes:
    """Return a manifest.json as Amazon S3 writes it."""
    listed = [
        {"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()} for key, data in contents.items()
    ]
    document = {
        "sourceBucket": "src",
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": "CSV",
        "fileSchema": SCHEMA,
        "files": listed,
        **changed,
    }
    return json.dumps(document, indent=4).encode()


@pytest.fixture
def inventory(tmp_path: Path) -> Callable[..., Path]:
    """Writes an inventory as it lies in S3, and returns its manifest.json."""

    def write(contents: dict[str, bytes], **changed: object) -> Path:
        folder = tmp_path / "2016-11-06T21-32Z"
        folder.mkdir(exist_ok=True)
        (tmp_path / "data").mkdir(exist_ok=True)
        for key, data in contents.items():
            (tmp_path / "data" / key.rpartition("/")[2]).write_bytes(data)
        (folder / "manifest.json").write_bytes(_manifest_json(contents, **changed))
        return folder / "manifest.json"

    return write


def test_an_inventory(inventory):
    """All files count, in their order; what a listing would not have is left out; keys are decoded."""
    first = [_row(key, n) for n, key in enumerate(KEYS, 1)] + [_row("folder/", 0), _row("empty", 0)]
    second = [_row("old", latest="false"), _row("gone", "", "", deleted="true"), _row("last", "", "")]
    path = inventory({"p/src/x/data/2.csv.gz": _inventory_csv(first), "p/src/x/data/1.csv.gz": _inventory_csv(second)})
    expected = [("src", key, n, '"e"') for n, key in enumerate(KEYS, 1)] + [("src", "empty", 0, '"e"')]
    expected.append(("src", "last", None, ""))
    assert _rows(_read(path)) == _rows(_read(path, "inventory")) == expected
    path.write_bytes(json.dumps(json.loads(path.read_bytes())).encode())
    assert _rows(_read(path)) == expected


def test_an_inventory_without_its_optional_fields(inventory):
    """Bucket and key are enough; without sizes nothing is pinned."""
    files = {"1.csv.gz": _inventory_csv([["src", "a%2Bb+c"]])}
    assert _rows(_read(inventory(files, fileSchema="Bucket, Key"))) == [("src", "a+b c", None, "")]
    files = {"1.csv.gz": _inventory_csv([["src", "k", "e"]])}
    assert _rows(_read(inventory(files, fileSchema="Bucket, Key, ETag"))) == [("src", "k", None, "")]
    files = {"1.csv": b'"src","k"\n'}
    assert _rows(_read(inventory(files, fileSchema="Bucket, Key"))) == [("src", "k", None, "")]


def test_an_inventory_of_parquet(inventory):
    """Keys of Parquet are literal, and the same is left out."""
    data = _parquet(
        {
            "bucket": ["src"] * 4,
            "key": ["a+b%20c", "old", "gone", "folder/"],
            "size": [3, 3, None, 0],
            "e_tag": ["e", "e", None, "e"],
            "is_latest": [True, False, True, True],
            "is_delete_marker": [False, False, True, False],
        }
    )
    path = inventory({"1.parquet": data}, fileFormat="Parquet", fileSchema="message s3.inventory { ... }")
    assert _rows(_read(path)) == [("src", "a+b%20c", 3, '"e"')]


def test_an_inventory_in_s3(s3, bucket, prefix, put):
    """Files are read from the destination bucket, and objects are pinned; a file that is missing is named."""
    for key in ("a b+c", "é%"):
        put(prefix + key, key.encode())
    objects = S3Client().list_objects(bucket, prefix)
    rows = [
        [bucket, quote_plus(info.key, safe="/"), "", "true", "false", str(info.size), _LAST, info.etag.strip('"')]
        for page in objects
        for info in page.object_info
    ]
    data = _inventory_csv(rows)
    name = f"{prefix}inv/data/1.csv.gz"
    put(name, data)
    place = f"{prefix}inv/2016-11-06T21-32Z/manifest.json"
    put(place, _manifest_json({name: data}, bucket))
    for made in KINDS:
        assert _samples(made.from_manifest(f"s3://{bucket}/{place}", transform=content)) == [b"a b+c", "é%".encode()]
    put(prefix + "a b+c", b"a b-c")
    with pytest.raises(ObjectChangedError):
        _samples(S3MapDataset.from_manifest(f"s3://{bucket}/{place}", transform=content))
    put(name, data[:-1])
    message = f"s3://{bucket}/{name} has the MD5 {hashlib.md5(data[:-1]).hexdigest()}, and its inventory says"
    with pytest.raises(ManifestError, match=message):
        S3MapDataset.from_manifest(f"s3://{bucket}/{place}")
    S3Client().delete_object(bucket, name)
    with pytest.raises(
        ManifestError, match=f"s3://{bucket}/{name} does not exist, and the inventory .*{place} names it"
    ):
        S3MapDataset.from_manifest(f"s3://{bucket}/{place}")


def test_a_manifest_json_alone(tmp_path, s3, bucket, prefix, put):
    """A manifest.json that was copied without its files is read with those in S3."""
    data = _inventory_csv([_row("k")])
    put(f"{prefix}1.csv.gz", data)
    (tmp_path / "manifest.json").write_bytes(_manifest_json({f"{prefix}1.csv.gz": data}, bucket))
    assert _rows(_read(tmp_path / "manifest.json")) == [("src", "k", 3, '"e"')]


GOOD = {"1.csv.gz": _inventory_csv([_row("k")])}
BAD_INVENTORIES = [
    (GOOD, {"version": "2027-01-01"}, "has version '2027-01-01', and this s3torch reads '2016-11-30'"),
    (GOOD, {"version": None}, "has no text 'version': it has None there"),
    (GOOD, {"fileFormat": "ORC"}, "has files of 'ORC', and s3torch reads CSV and Parquet"),
    (GOOD, {"fileSchema": "Bucket, Name"}, "1.csv.gz has no column 'Key'. Its columns are: 'Bucket', 'Name'"),
    (GOOD, {"fileSchema": "Key"}, "1.csv.gz has no column 'Bucket'. Its columns are: 'Key'"),
    (GOOD, {"fileSchema": SCHEMA + ", StorageClass"}, "Line 1 of .* has 8 fields, and its inventory's fileSchema 9"),
    (GOOD, {"files": {}}, "a list of files"),
    (GOOD, {"files": [3]}, r"files\[0\], is no JSON object"),
    (GOOD, {"files": [{"key": "1.csv.gz"}]}, r"files\[0\], has no text 'MD5checksum'"),
    (GOOD, {"destinationBucket": "arn:aws:s3:::"}, "must have a bucket"),
    (
        GOOD,
        {"files": [{"key": "1.csv.gz", "MD5checksum": "0" * 32}]},
        r"data/1.csv.gz has the MD5 \w+, and .* says 0000",
    ),
    ({"1.csv.gz": _inventory_csv([_row("k"), _row("k", -1)])}, {}, r"Line 2 of .*1.csv.gz has the size '-1'"),
    ({"1.csv.gz": _inventory_csv([_row("k", latest="yes")])}, {}, r"Line 1 of .* has 'yes' where .* a truth value"),
    (
        {"1.csv.gz": _inventory_csv([["src", "50%", *_row("k")[2:]]])},
        {},
        r"Line 1 .* '50%', which is not URL-encoded at 2",
    ),
    ({"1.csv.gz": _inventory_csv([["src", "%ff", *_row("k")[2:]]])}, {}, r"Line 1 of .*, which is no UTF-8"),
    ({"1.csv.gz": _inventory_csv([["", *_row("k")[1:]]])}, {}, r"Line 1 of .* has the bucket ''"),
    ({"1.csv.gz": GOOD["1.csv.gz"][:-9]}, {}, r"data/1.csv.gz is compressed by gzip, and cut off"),
    (GOOD, {"fileFormat": "Parquet"}, "1.csv.gz is damaged, or no Parquet file"),
    ({"1": _parquet({"bucket": ["b", "b"], "key": ["k", None]})}, {"fileFormat": "Parquet"}, "Row 2 of .* no text"),
]


@pytest.mark.parametrize(("files", "changed", "message"), BAD_INVENTORIES, ids=range(len(BAD_INVENTORIES)))
def test_bad_inventories(inventory, files, changed, message):
    """What an inventory contradicts, or is of another version, is an error that names both sides."""
    with pytest.raises(ManifestError, match=message) as caught:
        S3MapDataset.from_manifest(inventory(files, **changed))
    assert "manifest.json" in str(caught.value) or "data/1" in str(caught.value)


def test_an_inventory_without_files(inventory):
    """An inventory of an empty bucket is an empty dataset."""
    with pytest.raises(EmptyDatasetError, match=r"There is no object in .*manifest.json"):
        len(S3MapDataset.from_manifest(inventory({})))


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_no_object_for_each_row(file):
    """A table of a manifest is as compact as that of a listing."""
    path = file(b"uri,size\n" + b"".join(b"s3://b/%06d,%d\n" % (n, n) for n in range(20_000)))
    table = _read(path)
    assert len(table) == 20_000
    assert len(pickle.dumps(table)) < 20_000 * (6 + 20) + 1000
