"""Tests of the objects of a dataset: the table holds them in little memory, and URIs and listings fill it."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import pickle
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3torch._aws.listing import ListObjectsResult, ObjectInfo
from s3torch.datasets.objects import KeyColumns, ObjectTable, S3BucketKeyData, list_prefix, table_of_uris
from s3torch.errors import ArgumentTypeError, ConnectionFailedError, InvalidURIError, ObjectTableError
from tests.support.iterating import taken

ODD_KEYS = [
    "",
    "a",
    "a/b/c",
    "//",
    " ",
    "\0",
    "a\nb",
    "é",
    "e\u0301",
    "日本",
    "🦜",
    "\ud800",
    "a\udcffb",
    "\udc80\ud83e",
    "\uffff\U0010ffff",
    "k" * 1024,
]


def _info(key: str, size: int) -> ObjectInfo:
    """Return what a table keeps of a listing's facts."""
    return ObjectInfo(key, "", size, 0)


def _parts(table: ObjectTable) -> int:
    """Return the bytes of everything that a table consists of."""
    held = [getattr(table, name) for name in ObjectTable.__slots__]
    return sum(map(sys.getsizeof, [table, *held, *table._buckets]))


# --- The table -------------------------------------------------------------------------------------------------------


def test_an_empty_table():
    """A table of nothing has no length, no items and no first one."""
    table = ObjectTable()
    assert len(table) == 0
    assert list(table) == []
    for index in (0, -1, 1):
        with pytest.raises(IndexError):
            table[index]


def test_odd_keys_come_back():
    """Any text is a key, lone surrogates and the empty one too, and comes back as it was."""
    table = ObjectTable(S3BucketKeyData("b", key) for key in ODD_KEYS)
    assert [item.key for item in table] == ODD_KEYS
    assert [table[index].key for index in range(len(table))] == ODD_KEYS


@pytest.mark.parametrize("size", [0, 1, 5 * 1024**4, 2**63 - 1])
def test_sizes_are_kept(size: int):
    """Of what a listing told the size is kept, and nothing else: an ETag or a date would take more than a key."""
    told = ObjectInfo("k", '"e"', size, 1709251199, "STANDARD")
    assert ObjectTable([S3BucketKeyData("b", "k", told)])[0] == ("b", "k", ObjectInfo("k", "", size, 0, None))


def test_unknown_sizes():
    """Where there was no listing there are no facts, also between objects that were listed."""
    objects = [
        S3BucketKeyData("b", "x"),
        S3BucketKeyData("b", "y", _info("y", 0)),
        S3BucketKeyData("b", "z"),
    ]
    assert list(ObjectTable(objects)) == objects


def test_several_buckets():
    """Objects of several buckets keep theirs, in any order."""
    objects = [S3BucketKeyData(f"bucket-{number * 7 % 5}", str(number)) for number in range(50)]
    table = ObjectTable(objects)
    assert list(table) == objects
    assert repr(table) == "<ObjectTable of 50 objects in 5 buckets>"


def test_items_are_tuples():
    """An item can be taken apart, and a plain tuple can be put in."""
    bucket, key, info = ObjectTable([("b", "k", None)])[0]
    assert (bucket, key, info) == ("b", "k", None)


def test_indices():
    """Negative indices count from the end, and there is nothing beyond either end."""
    table = ObjectTable(S3BucketKeyData("b", key) for key in "xyz")
    assert [table[index].key for index in (0, 1, 2, -1, -2, -3)] == ["x", "y", "z", "z", "y", "x"]
    for index in (3, 4, -4, 10**30, -(10**30)):
        with pytest.raises(IndexError, match="there are 3 objects"):
            table[index]


def test_slices():
    """A slice is a list of its objects."""
    objects = [S3BucketKeyData("b", key) for key in "xyz"]
    table = ObjectTable(objects)
    for each in (slice(2), slice(1, None), slice(None, None, -1), slice(-2, 9), slice(5, 2)):
        assert table[each] == objects[each]


def test_iterating_anew():
    """A table can be iterated any number of times, also at the same time."""
    table = ObjectTable(S3BucketKeyData("b", key) for key in "xy")
    assert [(one.key, other.key) for one in table for other in table] == [
        ("x", "x"),
        ("x", "y"),
        ("y", "x"),
        ("y", "y"),
    ]


@pytest.mark.parametrize("index", [np.int8(-1), torch.tensor(149), torch.tensor(-1, dtype=torch.int8), np.uint8(149)])
def test_any_integer_is_an_index(index: object):
    """Integers of any type are indices, however many objects there are; slices of them too."""
    table = ObjectTable(S3BucketKeyData("b", str(number)) for number in range(150))
    assert table[index].key == "149"
    assert [item.key for item in table[index:]] == ["149"]


@pytest.mark.parametrize("index", [1.0, "1", None, [1], torch.tensor([1, 2]), np.float32(1)])
def test_what_is_no_index(index: object):
    """What is no integer is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError, match="index must be an integer"):
        ObjectTable([S3BucketKeyData("b", "k")])[index]


@pytest.mark.parametrize(
    "item",
    [
        "s3://b/k",
        5,
        ("b", "k"),
        (None, "k", None),
        ("b", b"k", None),
        ("b", "k", 5),
        ("b", "k", ObjectInfo("k", "", -2, 0)),
        ("b", "k", ObjectInfo("k", "", 2**63, 0)),
        ("b", "k", ObjectInfo("k", "", 1.5, 0)),
    ],
)
def test_what_is_no_object(item: object):
    """What is no object is an error that shows it; an error of who yields objects stays what it is."""
    with pytest.raises(ArgumentTypeError, match=r"must be S3BucketKeyData\(bucket, key, object_info\), got ") as caught:
        ObjectTable([S3BucketKeyData("b", "k"), item])
    assert repr(item) in str(caught.value)
    with pytest.raises(ValueError, match=r"^mine$"):
        ObjectTable(_failing())


def _failing() -> Iterator[S3BucketKeyData]:
    yield S3BucketKeyData("b", "k")
    raise ValueError("mine")


@pytest.mark.parametrize(
    "duplicate",
    [
        *(lambda table, protocol=protocol: pickle.loads(pickle.dumps(table, protocol)) for protocol in range(6)),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_pickling(duplicate):
    """A table travels to another process with everything in it."""
    objects = [S3BucketKeyData(f"b{len(key) % 2}", key, _info(key, len(key))) for key in ODD_KEYS]
    back = duplicate(ObjectTable(objects))
    assert type(back) is ObjectTable
    assert list(back) == objects
    assert repr(back) == f"<ObjectTable of {len(objects)} objects in 2 buckets>"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "ü"]),
            st.text(st.characters(exclude_categories=[]), max_size=5),  # surrogates too
            st.none() | st.integers(0, 2**63 - 1),
        ),
        max_size=20,
    )
)
def test_round_trip(items: list[tuple[str, str, int | None]]):
    """Whatever is put in comes out, in order."""
    objects = [S3BucketKeyData(bucket, key, None if size is None else _info(key, size)) for bucket, key, size in items]
    table = ObjectTable(objects)
    assert list(table) == objects
    assert [table[index - len(table)] for index in range(len(table))] == objects


@pytest.mark.parametrize("travels", [False, True])
def test_bytes_of_an_object(travels: bool):
    """An object takes its key's bytes and 20 more, of which arrays that grow keep a sixteenth as room."""
    count = 100_000
    keys = [f"train/shard-{number:08d}.tar" for number in range(count)]
    table = ObjectTable(S3BucketKeyData("bucket", key, _info(key, 1)) for key in keys)
    if travels:
        table = pickle.loads(pickle.dumps(table))
    assert _parts(table) < count * (len(keys[0]) + 20 * 17 / 16) + 1024


def test_a_table_does_not_grow_with_the_names_of_its_buckets():
    """The name of a bucket is kept once, however many objects it has."""
    long, short = (ObjectTable(S3BucketKeyData(name, "k") for _ in range(1000)) for name in ("b" * 63, "b"))
    assert _parts(long) - _parts(short) == 62


def test_columns():
    """A table of columns is the table of the same objects, and as small."""
    keys = [f"k{number}" for number in range(1000)]
    columns = [
        KeyColumns("".join(part).encode(), array("I", map(len, part)), array("q", range(len(part))))
        for part in (keys[:300], [], keys[300:])
    ]
    table = ObjectTable.of_columns("b", columns)
    sizes = [*range(300), *range(700)]
    objects = [S3BucketKeyData("b", key, _info(key, size)) for key, size in zip(keys, sizes, strict=True)]
    assert list(table) == objects
    assert _parts(table) <= _parts(ObjectTable(objects)) * 1.07
    assert list(ObjectTable.of_columns("b", [])) == []


# --- Saved tables ----------------------------------------------------------------------------------------------------


def _saved(folder: Path) -> tuple[ObjectTable, Path]:
    objects = [S3BucketKeyData(f"b{len(key) % 2}", key, _info(key, len(key))) for key in ODD_KEYS]
    table = ObjectTable([*objects, S3BucketKeyData("b", "unknown")])
    table.save(folder / "table")
    return table, folder / "table"


def test_a_saved_table_comes_back(tmp_path: Path):
    """What is loaded is what was saved, odd keys, unknown sizes and an empty table too, and nothing else is left."""
    table, path = _saved(tmp_path)
    assert list(ObjectTable.load(path)) == list(table)
    assert list(ObjectTable.load(str(path))) == list(table)
    ObjectTable().save(path)
    assert len(ObjectTable.load(path)) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file(tmp_path: Path):
    """Whoever writes or reads a file at the same time: each load is one of the tables, whole, and nothing is left."""
    path = tmp_path / "table"
    tables = [ObjectTable(S3BucketKeyData("b", f"{letter}{n}") for n in range(2000)) for letter in "xyz"]
    tables[0].save(path)
    whole = [list(table) for table in tables]

    def save(table: ObjectTable) -> None:
        for _ in range(20):
            table.save(path)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(save, table) for table in tables]
        while not all(writer.done() for writer in writers):
            assert list(ObjectTable.load(path)) in whole
        for writer in writers:
            writer.result()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_permissions_of_a_saved_table(tmp_path: Path):
    """A saved table has the permissions that any new file of the process has."""
    before = os.umask(0o027)
    try:
        ObjectTable().save(tmp_path / "table")
    finally:
        os.umask(before)
    assert (tmp_path / "table").stat().st_mode & 0o777 == 0o640


def test_a_table_with_a_long_name(tmp_path: Path):
    """The longest name that a file can have is a place for a table, too."""
    path = tmp_path / ("t" * 255)
    ObjectTable().save(path)
    assert len(ObjectTable.load(path)) == 0


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", pickle.dumps([1]), b"[]", b"s3torch objects"])
def test_foreign_files(tmp_path: Path, content: bytes):
    """A file of another kind is refused, and the error shows how it begins."""
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ObjectTableError, match="is no saved table of objects: it begins with b"):
        ObjectTable.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("ends", "sizes", "numbers", "names"),
    [
        ((2, 1), (0, 0), (0, 0), b'["b"]'),
        ((1, 9), (0, 0), (0, 0), b'["b"]'),
        ((1, 2), (0, -2), (0, 0), b'["b"]'),
        ((1, 2), (0, 0), (0, 1), b'["b"]'),
        ((1, 2), (0, 0), (0, 0), b"[]"),
        ((1, 2), (0, 0), (0, 0), b"{}"),
        ((1, 2), (0, 0), (0, 0), b"\xff"),
        ((), (), (), b'["b"]'),
    ],
)
def test_tables_that_contradict_themselves(tmp_path: Path, ends, sizes, numbers, names):
    """A table whose checksum is right and whose columns lead nowhere is refused when it is loaded."""
    count = len(ends)
    body = names + struct.pack(f"<{count}Q{count}q{count}I", *ends, *sizes, *numbers) + b"xy"
    head = struct.pack("<IIQQQ", 1, zlib.crc32(body), count, 2, len(names))
    (tmp_path / "f").write_bytes(b"\x89s3torch objects\r\n" + head + body)
    with pytest.raises(ObjectTableError, match="contradicts itself"):
        ObjectTable.load(tmp_path / "f")


def test_a_place_that_is_none():
    """What is neither a path nor a URI is an error of type."""
    with pytest.raises(ArgumentTypeError, match="a path or an S3 URI, got 7"):
        ObjectTable.load(7)


# --- URIs ------------------------------------------------------------------------------------------------------------


def test_table_of_uris():
    """URIs give their objects, in order and as often as they are named, of unknown size."""
    uris = ["s3://b/2", "s3://a/x//y", "s3://b/1", "s3://b/2"]
    assert list(table_of_uris(uris)) == [("b", "2", None), ("a", "x//y", None), ("b", "1", None), ("b", "2", None)]
    assert list(table_of_uris(iter(uris))) == list(table_of_uris(tuple(uris)))


def test_a_single_uri():
    """A string is one URI, not an iterable of letters."""
    assert list(table_of_uris("s3://b/k")) == [("b", "k", None)]


def test_no_uris():
    """No URIs give an empty table."""
    assert len(table_of_uris([])) == 0


def test_a_bad_uri():
    """A bad URI among good ones is refused, and the error shows it."""
    with pytest.raises(InvalidURIError, match="got 'b/k'"):
        table_of_uris(["s3://b/k", "b/k"])


@pytest.mark.parametrize("uri", ["s3://b", "s3://b/"])
def test_a_uri_without_a_key(uri: str):
    """A URI without a key among good ones is refused, and the error shows it."""
    with pytest.raises(InvalidURIError, match=f"must have a key, got {uri!r}"):
        table_of_uris(["s3://b/k", uri])


@pytest.mark.parametrize("uris", [None, 7, object])
def test_neither_a_uri_nor_uris(uris: object):
    """What is neither a string nor iterable is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError) as caught:
        table_of_uris(uris)
    assert str(caught.value) == f"object_uris must be an S3 URI or an iterable of them, got {uris!r}."


@pytest.mark.parametrize("uri", [None, 7, b"s3://b/k", Path("s3://b/k")])
def test_uris_that_are_no_strings(uri: object):
    """A URI among others that is no string is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError, match="An S3 URI must be a str"):
        table_of_uris(["s3://b/k", uri])


# --- Listings --------------------------------------------------------------------------------------------------------


class Listing:
    """A client that knows one listing."""

    is_directory = False

    def __init__(self, *pages: list[ObjectInfo]) -> None:
        self.pages = pages
        self.asked: list[tuple[str, str]] = []
        self.sent = 0

    def list_objects(self, bucket: str, prefix: str) -> Listing:
        """Return what yields the pages; also takes whether to look ahead."""
        self.asked.append((bucket, prefix))
        return self

    def __iter__(self) -> Iterator[ListObjectsResult]:
        for page in self.pages:
            self.sent += 1
            yield ListObjectsResult(page, [], None)


def test_list_prefix():
    """The objects of all pages come in order, with what the listing told of them."""
    infos = [ObjectInfo(key, '"e"', size, 5, "STANDARD") for size, key in enumerate("abc", 1)]
    client = Listing(infos[:2], [], infos[2:])
    assert list(list_prefix(client, "photos", "2024/")) == [("photos", info.key, info) for info in infos]
    assert client.asked == [("photos", "2024/")]


def test_markers_of_directories_are_left_out():
    """Empty objects whose key ends in a slash are left out; other empty ones, and full ones of such a key, are not."""
    client = Listing([_info("d/", 0), _info("d/a", 0), _info("d/e/", 1), _info("", 0), _info("d/e/f/", 0)])
    assert [item.key for item in list_prefix(client, "b", "")] == ["d/a", "d/e/", ""]


def test_a_listing_is_read_page_by_page():
    """A page is asked for when the objects of the one before are used up."""
    client = Listing([_info("a", 1)], [_info("b", 1)])
    objects = list_prefix(client, "b", "")
    assert client.sent == 0
    next(objects)
    assert client.sent == 1
    next(objects)
    assert client.sent == 2


class Failing(Listing):
    """A client whose listing fails once before each page, which can be asked for again."""

    def __iter__(self) -> Iterator[ListObjectsResult]:
        pages = super().__iter__()
        failures = itertools.cycle([True, False])
        return iter(lambda: _fail() if next(failures) else next(pages), None)


def _fail() -> None:
    raise ConnectionFailedError("No answer.")


def test_after_an_error_the_same_page_is_asked_for_again():
    """Who goes on after an error gets all that is missing, and no end before that."""
    objects = list_prefix(Failing(*([_info(f"{page}{key}", 1) for key in "abc"] for page in range(5))), "b", "")
    found, errors = taken(objects, ConnectionFailedError)
    assert [info.key for info in found] == [f"{page}{key}" for page in range(5) for key in "abc"]
    assert len(errors) == 6


def test_a_long_listing_tells_how_far_it_is(caplog):
    """Every hundred pages a message tells how many there were; a short listing is silent."""
    with caplog.at_level(logging.INFO, "s3torch.datasets.objects"):
        list(list_prefix(Listing(*[[]] * 99), "b", "p"))
        assert caplog.messages == []
        list(list_prefix(Listing(*[[]] * 250), "b", "p"))
    assert caplog.messages == [
        "Listing s3://b/p: 100 pages of up to 1000 keys so far",
        "Listing s3://b/p: 200 pages of up to 1000 keys so far",
    ]


def test_a_table_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All bytes are handed to the disk before the file gets its name: a crash leaves the old table or the new one."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    path = tmp_path / "table"
    table_of_uris([f"s3://b/{number}" for number in range(10)]).save(path)
    assert sizes == [path.stat().st_size]
