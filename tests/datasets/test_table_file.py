"""Tests of the file of a table: each version is pinned by a file, and no damage ever gives another object."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch._aws.listing import ObjectInfo
from s3torch.datasets.columns import BLOCK, LabelNames
from s3torch.datasets.labels import by_column, label
from s3torch.datasets.table import ObjectTable, S3BucketKeyData
from s3torch.datasets.table_file import version_1, version_2, write_file
from s3torch.errors import ObjectTableError
from tests.datasets.test_objects import ODD_KEYS

DATA = Path(__file__).parent / "data"
MAGIC = b"\x89s3torch objects\r\n"
HEAD = struct.Struct("<18sIIQQ")


def _object(bucket: str, key: str, size: int | None = None, etag: str = "") -> S3BucketKeyData:
    return S3BucketKeyData(bucket, key, None if size is None else ObjectInfo(key, etag, size, 0))


def _odd_objects(etag: Callable[[str], str] = lambda _: "") -> list[S3BucketKeyData]:
    objects = [_object(f"b{len(key) % 2}", key, len(key), etag(key)) for key in ODD_KEYS]
    return [*objects, _object("b", "unknown")]


def _labelled(table: ObjectTable, labels: list[str], column: str = "label") -> ObjectTable:
    """Return a table with a label for each object."""
    names = tuple(dict.fromkeys(labels))
    numbers = array("I", map(names.index, labels))
    known = LabelNames.of(column, names, numbers)
    return ObjectTable._of(table._columns._replace(label_numbers=numbers, labels=known))


def _labels_of(table: ObjectTable) -> list[str]:
    names, numbers = table._numbered_labels()
    return [names[number] for number in numbers]


def _bytes_of(table: ObjectTable, version: int = 2) -> bytes:
    parts = version_1(table._columns) if version == 1 else version_2(table._columns, table.digest)
    return b"".join(parts)


def _is_mapped(table: ObjectTable) -> bool:
    return table._mapped is not None


_rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ü", "\ud800"]) | st.text(max_size=3),
        st.text(st.characters(exclude_categories=[]), max_size=5),  # surrogates too
        st.none() | st.integers(0, 2**63 - 1),
        st.text(st.characters(exclude_categories=[]), max_size=5),
    ),
    max_size=20,
)


# --- Round trips -----------------------------------------------------------------------------------------------------


@given(_rows, st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows, has_etags: bool):
    """Any table comes back, mapped and in memory, of version 2 and of version 1, with the same digest."""
    path = tmp_path_factory.getbasetemp() / "round-trip.table"
    objects = [_object(bucket, key, size, etag if has_etags else "") for bucket, key, size, etag in rows]
    table = ObjectTable(objects, etags=has_etags)
    assert list(table) == objects
    table.save(path)
    found = [ObjectTable.load(path, verify=True), ObjectTable._from_bytes(path.read_bytes(), "f")]
    if not has_etags:
        found.append(ObjectTable._from_bytes(_bytes_of(table, 1), "f"))
    assert _is_mapped(found[0])
    for each in found:
        assert list(each) == objects
        assert each.digest == table.digest
        assert each.has_etags == has_etags
        assert _bytes_of(each) == _bytes_of(table)


@given(_rows, st.booleans(), st.text(st.characters(exclude_categories=[]), max_size=3), st.data())
def test_round_trip_of_labels(tmp_path_factory: pytest.TempPathFactory, rows, has_etags: bool, column: str, data):
    """Labels come back with their objects, mapped and in memory, and leave the digest as it is."""
    path = tmp_path_factory.getbasetemp() / "labels.table"
    plain = ObjectTable((_object(*row) for row in rows), etags=has_etags)
    labels = data.draw(st.lists(st.text(max_size=2), min_size=len(rows), max_size=len(rows)))
    table = _labelled(plain, labels, column)
    table.save(path)
    for each in (ObjectTable.load(path, verify=True), ObjectTable._from_bytes(path.read_bytes(), "f")):
        assert list(each) == list(plain)
        assert (each.digest, each.has_etags, each.label_column) == (plain.digest, has_etags, column)
        assert _labels_of(each) == labels
        assert _bytes_of(each) == _bytes_of(table)


@given(_rows, _rows)
def test_digests_of_other_tables(rows, others):
    """The digest tells tables apart, those too that differ in an ETag alone, or in having any."""
    tables = [
        ObjectTable((_object(*row) for row in each), etags=etags) for each in (rows, others) for etags in (False, True)
    ]
    different = {(tuple(table), table.has_etags) for table in tables}
    assert len({table.digest for table in tables}) == len(different)


def test_files_of_each_version():
    """A file that each version has written is read, and its digest is that of the same objects today."""
    objects = _odd_objects()
    one, two = (ObjectTable.load(DATA / f"version-{version}.table", verify=True) for version in (1, 2))
    assert list(one) == list(two) == objects
    assert one.digest == two.digest == ObjectTable(objects).digest == "09cb4eed7331fa9f969d511e7a02ad14"
    pinned = ObjectTable.load(DATA / "version-2-etags.table", verify=True)
    assert list(pinned) == _odd_objects(lambda key: f'"{len(key):032x}"')
    assert (_is_mapped(one), _is_mapped(two), _is_mapped(pinned)) == (False, True, True)
    labelled = ObjectTable.load(DATA / "version-2-labels.table", verify=True)
    assert list(labelled) == objects
    assert labelled.digest == one.digest
    assert (labelled.label_column, _labels_of(labelled)) == ("class", [f"é {len(item.key) % 3}" for item in objects])
    assert [each.label_column for each in (one, two, pinned)] == [None] * 3


def test_the_format_is_pinned():
    """What is written today are the bytes of these files: files and digests of earlier versions must stay valid."""
    table = ObjectTable(_odd_objects())
    assert _bytes_of(table, 1) == (DATA / "version-1.table").read_bytes()
    assert _bytes_of(table, 2) == (DATA / "version-2.table").read_bytes()
    etags = ObjectTable(_odd_objects(lambda key: f'"{len(key):032x}"'), etags=True)
    assert _bytes_of(etags) == (DATA / "version-2-etags.table").read_bytes()
    labels = _labelled(table, [f"é {len(item.key) % 3}" for item in table], "class")
    assert _bytes_of(labels) == (DATA / "version-2-labels.table").read_bytes()
    body = b'["b"]' + bytes([1, *[0] * 7, 7, *[0] * 7, *[0] * 4]) + b"k"
    head = struct.pack("<IIQQQ", 1, zlib.crc32(body), 1, 1, 5)
    assert _bytes_of(ObjectTable([_object("b", "k", 7)]), 1) == MAGIC + head + body


def test_digests_that_states_of_jobs_hold():
    """Digests are those of s3torch before tables were mapped."""
    assert ObjectTable().digest == "21c3db472e2ccbd32c623813c84f8046"
    many = ObjectTable(_object("b", f"k{number}", number) for number in range(100_000))
    assert many.digest == "6816e30df82691c344239d777a915994"


def test_columns_begin_at_pages(tmp_path: Path):
    """All columns of a file are aligned to pages, and named in its head."""
    content = _bytes_of(ObjectTable(_odd_objects(lambda _: '"e"'), etags=True))
    directory, start = _directory(content)
    assert start % 4096 == 0
    assert [column["offset"] % 4096 for column in directory["columns"]] == [0] * 6
    names = [column["name"] for column in directory["columns"]]
    assert names == ["key_ends", "sizes", "bucket_numbers", "keys", "etag_ends", "etags"]


def test_who_knows_no_labels_reads_the_objects():
    """The column of labels is none that a reader must know, and the only one."""
    columns = _directory(_bytes_of(_labelled(ObjectTable([_object("b", "k")]), ["a"])))[0]["columns"]
    assert [column["name"] for column in columns if not column["required"]] == ["label_numbers"]


def _directory(content: bytes) -> tuple[dict, int]:
    _, _, _, length, start = HEAD.unpack_from(content)
    return json.loads(content[HEAD.size : HEAD.size + length]), start


def _with_directory(content: bytes, change: Callable[[dict], object]) -> bytes:
    """Return a file whose directory says something else, and whose checksum fits."""
    directory, start = _directory(content)
    length = HEAD.unpack_from(content)[3]
    checksums = content[HEAD.size + length : start].rstrip(b"\0")
    changed = change(directory)
    document = json.dumps(directory if changed is None else changed).encode()
    head = document + checksums
    head += bytes(-(HEAD.size + len(head)) % 4096)
    return _head(document, head) + content[start:]


def _head(document: bytes, rest: bytes) -> bytes:
    lengths = struct.pack("<QQ", len(document), HEAD.size + len(rest))
    return MAGIC + struct.pack("<II", 2, zlib.crc32(lengths + rest)) + lengths + rest


# --- Damage ----------------------------------------------------------------------------------------------------------


def _outcome(make: Callable[[], ObjectTable]) -> list[S3BucketKeyData] | None:
    """Return the objects of a table; None if it is refused, wholly or somewhere."""
    try:
        return list(make())
    except ObjectTableError:
        return None


def test_each_damaged_byte(tmp_path: Path):
    """Whichever byte of a file has changed: no object comes of it, wherever it is read, and ``verify`` finds it."""
    objects = [_object("a", "x", 300, '"e"'), _object("b", "y")]
    path = tmp_path / "table"
    _labelled(ObjectTable(objects, etags=True), ["a", "b"]).save(path)
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(content):
            damaged = bytes([byte ^ 1 << place % 8])
            os.pwrite(file.fileno(), damaged, place)
            with pytest.raises(ObjectTableError, match=re.escape(str(path))):
                ObjectTable.load(path, verify=True)
            assert _outcome(lambda: ObjectTable.load(path)) is None
            if place % 16 == 0:
                changed = content[:place] + damaged + content[place + 1 :]
                assert _outcome(lambda changed=changed: ObjectTable._from_bytes(changed, "f")) is None
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert list(ObjectTable.load(path, verify=True)) == objects


def test_each_damaged_byte_of_version_1(tmp_path: Path):
    """A file of version 1 is refused as a whole if any byte has changed, is missing, or is too many."""
    path = tmp_path / "table"
    content = _bytes_of(ObjectTable([_object("a", "x", 300), _object("b", "y")]), 1)
    cut = [content[:length] for length in range(len(content))]
    changed = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in range(len(content))]
    for damaged in (*cut, *changed, content + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ObjectTableError, match=re.escape(str(path))):
            ObjectTable.load(path)


def test_files_that_are_cut_off(tmp_path: Path):
    """A file that ends too early, at whichever byte, or too late is refused when it is opened; so is its content."""
    path = tmp_path / "table"
    ObjectTable([_object("a", "x", 300), _object("b", "y")]).save(path)
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(ObjectTableError, match=r"cut off or damaged: it has \d+ of \d+ bytes"):
        ObjectTable.load(path)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(ObjectTableError, match=re.escape(str(path))):
            ObjectTable.load(path)
        if length % 16 == 0:
            assert _outcome(lambda length=length: ObjectTable._from_bytes(content[:length], "f")) is None


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, list[S3BucketKeyData]]:
    """Return a saved table of several blocks, and its objects."""
    objects = [_object("b", f"{number:064}", number, f'"{number:032x}"') for number in range(10_000)]
    ObjectTable(objects, etags=True).save(tmp_path / "table")
    return tmp_path / "table", objects


def test_damage_is_found_where_it_is(large):
    """An object whose blocks are whole comes, others raise: at the first look and at each one after it."""
    path, objects = large
    content = bytearray(path.read_bytes())
    start = _directory(content)[1]
    assert (len(content) - start) // BLOCK > 15
    column = next(column for column in _directory(content)[0]["columns"] if column["name"] == "keys")
    content[start + column["offset"] + 64 * 9_000 + 5] ^= 4
    path.write_bytes(content)
    table = ObjectTable.load(path)
    assert table[:7_000] == objects[:7_000]
    for _ in range(3):
        with pytest.raises(ObjectTableError, match=rf"{re.escape(str(path))} is damaged: the 65536 bytes from \d+ on"):
            table[9_000]
    with pytest.raises(ObjectTableError, match="is damaged"):
        table.verify()
    with pytest.raises(ObjectTableError, match="is damaged"):
        table.save(path.with_name("copy"))
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_lies_in_two_blocks(tmp_path: Path):
    """Both blocks of a key are verified, when one of them was verified before as well."""
    path = tmp_path / "table"
    ObjectTable(_object("b", f"{number:0100}", 1) for number in range(3_000)).save(path)
    content = bytearray(path.read_bytes())
    directory, start = _directory(content)
    offset = next(column["offset"] for column in directory["columns"] if column["name"] == "keys")
    border = (offset // BLOCK + 2) * BLOCK
    index = (border - offset) // 100
    assert (border - offset) % 100
    content[start + border] ^= 1
    path.write_bytes(content)
    table = ObjectTable.load(path)
    assert int(table[index - 1].key) == index - 1
    with pytest.raises(ObjectTableError, match="is damaged"):
        table[index]


def test_each_block_is_verified_once(large, monkeypatch: pytest.MonkeyPatch):
    """A block is verified when it is first used, and no more then."""
    path, objects = large
    table = ObjectTable.load(path)
    proven: list[int] = []
    prove = table._mapped.prove
    monkeypatch.setattr(table._mapped, "prove", lambda block: (proven.append(block), prove(block)))
    assert proven == []
    for _ in range(2):
        assert table[5_000] == objects[5_000]
        assert len(proven) == len(set(proven)) == 6  # one of each column
    assert list(table) == objects
    assert sorted(proven) == list(range(len(table._mapped.proven)))


def test_threads_that_read_at_the_same_time(large):
    """Threads that verify the same blocks each get what is there."""
    path, objects = large
    table = ObjectTable.load(path)
    found: list[list[S3BucketKeyData]] = []
    threads = [threading.Thread(target=lambda: found.append(table[::7])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [objects[::7]] * 4


def test_a_file_that_is_cut_off_while_it_is_in_use(large):
    """What lies beyond the new end is an error by name, and does not end the process."""
    path, _ = large
    table = ObjectTable.load(path)
    os.truncate(path, 4096)
    with pytest.raises(ObjectTableError, match=r"was cut off while it was in use: it has 4096 of \d+ bytes"):
        table[9_999]


def test_a_file_that_is_replaced_while_it_is_in_use(large):
    """A table stays what it was when another one is saved in its place, or when its file is removed."""
    path, objects = large
    table = ObjectTable.load(path)
    ObjectTable([_object("other", "k")]).save(path)
    assert table[::99] == objects[::99]
    path.unlink()
    assert list(table) == objects


# --- Foreign files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 3, 2**32 - 1])
def test_a_table_of_a_newer_version(tmp_path: Path, version: int):
    """A table of a version that is not known is refused, with both versions."""
    path = tmp_path / "table"
    content = bytearray(_bytes_of(ObjectTable()))
    content[18:22] = struct.pack("<I", version)
    path.write_bytes(content)
    for make in (lambda: ObjectTable.load(path), lambda: ObjectTable._from_bytes(bytes(content), "f")):
        with pytest.raises(ObjectTableError, match=f"has version {version}, and this s3torch reads versions 1 to 2"):
            make()


def _unknown(*, required: bool) -> Callable[[dict], None]:
    column = {"name": "labels", "dtype": "u16", "offset": 0, "length": 4, "required": required}
    return lambda directory: directory["columns"].append(column)


def test_a_column_that_is_not_known(tmp_path: Path):
    """A column that need not be known is left out; one that must be is an error with its name."""
    path = tmp_path / "table"
    objects = [_object("b", "k", 7)]
    content = _bytes_of(ObjectTable(objects))
    path.write_bytes(_with_directory(content, _unknown(required=False)))
    assert list(ObjectTable.load(path, verify=True)) == objects
    path.write_bytes(_with_directory(content, _unknown(required=True)))
    with pytest.raises(ObjectTableError, match="has a column 'labels', which this s3torch does not know"):
        ObjectTable.load(path)


def _set(name: str, value: object, column: int | None = None) -> Callable[[dict], None]:
    def change(directory: dict) -> None:
        (directory if column is None else directory["columns"][column])[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [],
        lambda _: "text",
        lambda _: 7,
        lambda directory: directory.pop("digest") and None,
        lambda directory: directory["columns"].pop() and None,
        lambda directory: directory["columns"].pop(0) and None,
        lambda directory: directory["columns"].append([]),
        lambda directory: directory["columns"].append("keys"),
        lambda directory: directory["columns"].append({"name": []}),
        lambda directory: directory["columns"].append(
            {"name": "etags", "dtype": "u8", "offset": 0, "length": 0, "required": True}
        ),
        _set("objects", 3),
        _set("objects", -1),
        _set("objects", 2.0),
        _set("objects", True),
        _set("objects", 10**40),
        _set("body", 10**40),
        _set("body", 1),
        _set("columns", None),
        _set("digest", 7),
        _set("digest", "0" * 32),
        _set("buckets", []),
        _set("buckets", "ab"),
        _set("offset", 1, 0),
        _set("offset", 4096 * 99, 0),
        _set("offset", -4096, 0),
        _set("length", 8, 0),
        _set("length", 1, 3),
        _set("length", 10**40, 3),
        _set("dtype", "u32", 0),
        _set("dtype", "i64", 3),
        _set("name", "keys", 0),
    ],
)
def test_heads_that_contradict_themselves(tmp_path: Path, change):
    """A head that cannot be, and whose checksum is right, is refused by name: at once, or by ``verify`` or a read."""
    path = tmp_path / "table"
    content = _with_directory(_bytes_of(ObjectTable([_object("a", "x", 1), _object("b", "y")])), change)
    path.write_bytes(content)
    for make in (lambda: ObjectTable.load(path, verify=True), lambda: ObjectTable._from_bytes(content, str(path))):
        with pytest.raises(ObjectTableError, match=re.escape(str(path))):
            make()
    assert _outcome(lambda: ObjectTable.load(path)) in (None, [_object("a", "x", 1), _object("b", "y")])


def _labels(name: str, value: object) -> Callable[[dict], None]:
    def change(directory: dict) -> None:
        directory["labels"][name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: directory.pop("labels") and None,
        lambda directory: directory["columns"].pop() and None,
        _set("labels", None),
        _set("labels", []),
        _set("labels", "label"),
        _set("length", 4, -1),
        _set("dtype", "u64", -1),
        _labels("names", None),
        _labels("names", "ab"),
        _labels("names", ["a", 7]),
        _labels("names", ["a", "a"]),
        _labels("names", ["b", "a"]),
        _labels("names", ["a"]),
        _labels("column", 7),
        _labels("column", "other"),
        _labels("digest", None),
        _labels("digest", "0" * 32),
    ],
)
def test_labels_that_contradict_themselves(tmp_path: Path, change):
    """Labels that cannot be, in a head whose checksum is right, are refused by name: at once, or by ``verify``."""
    path = tmp_path / "table"
    table = _labelled(ObjectTable([_object("a", "x", 1), _object("b", "y")]), ["a", "b"])
    content = _with_directory(_bytes_of(table), change)
    path.write_bytes(content)
    for make in (lambda: ObjectTable.load(path, verify=True), lambda: ObjectTable._from_bytes(content, str(path))):
        with pytest.raises(ObjectTableError, match=re.escape(str(path))):
            make()


@pytest.mark.parametrize("names", [["a", "a"], ["a", 7], "ab"])
def test_names_of_labels_that_cannot_be(tmp_path: Path, names: object):
    """They are refused when the file is opened, before a label is given to an object."""
    table = _labelled(ObjectTable([_object("a", "x", 1), _object("b", "y")]), ["a", "b"])
    (tmp_path / "table").write_bytes(_with_directory(_bytes_of(table), _labels("names", names)))
    with pytest.raises(ObjectTableError, match="contradicts itself"):
        ObjectTable.load(tmp_path / "table")


@pytest.mark.parametrize("number", [2, 2**31, 2**32 - 1])
def test_a_label_that_leads_nowhere(tmp_path: Path, number: int):
    """A number that no name has is an error where the labels are asked for, and where all is verified."""
    table = _labelled(ObjectTable([_object("a", "x", 1), _object("b", "y")]), ["a", "b"])
    numbers = array("I", [0, number])
    known = LabelNames.of("label", ["a", "b"], numbers)
    foreign = ObjectTable._of(table._columns._replace(label_numbers=numbers, labels=known))
    foreign.save(tmp_path / "table")
    with pytest.raises(ObjectTableError, match="has labels that its 2 names do not name"):
        label(ObjectTable.load(tmp_path / "table"), None, by_column("label"))
    for make in (
        lambda: ObjectTable.load(tmp_path / "table", verify=True),
        lambda: ObjectTable._from_bytes((tmp_path / "table").read_bytes(), "f"),
    ):
        with pytest.raises(ObjectTableError, match="contradicts itself"):
            make()


@pytest.mark.parametrize("lengths", [(2**63, 4096), (0, 0), (0, 10), (10, 2**64 - 1), (4096, 4096), (0, 4096 * 9)])
def test_lengths_that_cannot_be(tmp_path: Path, lengths: tuple[int, int]):
    """Lengths of a head that lead beyond it, or beyond the file, are refused before anything is made of them."""
    path = tmp_path / "table"
    packed = struct.pack("<QQ", *lengths)
    rest = bytes(4096 * 2)
    checksum = zlib.crc32((packed + rest)[: max(0, min(lengths[1], len(rest)) - 26)])
    path.write_bytes(MAGIC + struct.pack("<II", 2, checksum) + packed + rest)
    with pytest.raises(ObjectTableError, match=re.escape(str(path))):
        ObjectTable.load(path)


_NONSENSE = [
    ("key_ends", 0, "<Q", 9),  # beyond the keys, and backwards for the next one
    ("key_ends", 1, "<Q", 2**64 - 1),
    ("key_ends", 1, "<Q", 0),
    ("sizes", 1, "<q", -2),
    ("bucket_numbers", 1, "<I", 7),
    ("keys", 0, "<H", 0xFFFF),
    ("etag_ends", 1, "<Q", 99),
    ("etags", 0, "<H", 0xFFFF),
]


@pytest.mark.parametrize(("name", "place", "code", "value"), _NONSENSE)
def test_columns_that_contradict_themselves(tmp_path: Path, name: str, place: int, code: str, value: int):
    """What leads nowhere in columns whose checksums are right is an error that names the file, and never an object."""
    path = tmp_path / "table"
    table = ObjectTable([_object("b", "xy", 1, '"e"'), _object("b", "z", 2, '"f"')], etags=True)
    content = bytearray(_bytes_of(table))
    directory, start = _directory(content)
    column = next(column for column in directory["columns"] if column["name"] == name)
    struct.pack_into(code, content, start + column["offset"] + place * struct.calcsize(code), value)
    length = HEAD.unpack_from(content)[3]
    body = content[start:]
    checksums = struct.pack("<I", zlib.crc32(body))
    rest = bytes(content[HEAD.size : HEAD.size + length]) + checksums
    rest += bytes(-(HEAD.size + len(rest)) % 4096)
    content = _head(content[HEAD.size : HEAD.size + length], rest) + body
    path.write_bytes(content)
    for index in range(2):
        found = _outcome(lambda index=index: [ObjectTable.load(path)[index]])
        assert found in (None, [table[index]])
    with pytest.raises(ObjectTableError, match=rf"Object [01] of the table in {re.escape(str(path))} has "):
        list(ObjectTable.load(path))
    for make in (lambda: list(ObjectTable.load(path)), lambda: ObjectTable.load(path, verify=True)):
        with pytest.raises(ObjectTableError, match=re.escape(str(path))):
            make()
    with pytest.raises(ObjectTableError):
        ObjectTable._from_bytes(bytes(content), "f")[0]


# --- Machines and systems --------------------------------------------------------------------------------------------


def test_a_big_endian_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where numbers are kept the other way round they are turned round, and a file is read whole."""
    path, objects = tmp_path / "table", _odd_objects(lambda _: '"e"')
    labels = [f"{len(item.key) % 3}" for item in objects]
    content = _bytes_of(_labelled(ObjectTable(objects, etags=True), labels))
    # This machine then turns round what it ought not to, on both ways.
    monkeypatch.setattr(sys, "byteorder", "big")
    turned = _bytes_of(_labelled(ObjectTable(objects, etags=True), labels))
    assert turned != content
    assert struct.pack(">q", len("k" * 1024)) in turned
    path.write_bytes(turned)
    found = ObjectTable.load(path)
    assert not _is_mapped(found)
    assert list(found) == objects
    assert _labels_of(found) == labels
    with pytest.raises(ObjectTableError, match="is damaged"):
        ObjectTable._from_bytes(content, "f")


def test_a_pipe(tmp_path: Path):
    """What cannot be mapped is read whole."""
    path, objects = tmp_path / "pipe", _odd_objects()
    os.mkfifo(path)
    content = _bytes_of(ObjectTable(objects))
    writer = threading.Thread(target=lambda: path.write_bytes(content))
    writer.start()
    table = ObjectTable.load(path)
    writer.join()
    assert list(table) == objects
    assert not _is_mapped(table)
    table.verify()


def test_a_table_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All bytes are handed to the disk before the file gets its name, and nothing is left of a write that failed."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    write_file(tmp_path / "f", [b"abc", memoryview(b"de")])
    assert sizes == [5]

    def parts() -> Iterator[bytes]:
        yield b"x"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(tmp_path / "f", parts())
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"abcde"
