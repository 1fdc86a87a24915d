"""Tests of tables that are mapped, that pin ETags, and that travel to other processes; see test_objects.py as well."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3torch import S3Client, S3IterableDataset, S3MapDataset
from s3torch._aws.listing import ObjectInfo
from s3torch.datasets.listing import list_table
from s3torch.datasets.table import KeyColumns, ObjectTable, S3BucketKeyData
from s3torch.errors import ArgumentTypeError, NotFoundError, ObjectChangedError, ObjectTableError

BUCKET = "pinned"


def _objects(count: int = 100, *, etags: bool = False) -> list[S3BucketKeyData]:
    def info(number: int) -> ObjectInfo:
        return ObjectInfo(f"k{number}", f'"{number}"' if etags else "", number, 0)

    return [S3BucketKeyData(f"b{number % 3}", f"k{number}", info(number)) for number in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a table is saved."""
    ObjectTable(_objects()).save(tmp_path / "table")
    return tmp_path / "table"


# --- ETags -----------------------------------------------------------------------------------------------------------


def test_etags_are_kept_where_they_are_wanted():
    """A table keeps the ETags of a listing if it is told to, also where some objects have none."""
    objects = [*_objects(3, etags=True), S3BucketKeyData("b", "unknown"), *_objects(1)]
    table = ObjectTable(objects, etags=True)
    assert table.has_etags
    assert list(table) == objects
    plain = ObjectTable(objects)
    assert not plain.has_etags
    assert [item.object_info and item.object_info.etag for item in plain] == ["", "", "", None, ""]
    assert plain.digest == ObjectTable(item._replace(object_info=_bare(item)) for item in objects).digest
    assert table.digest != plain.digest


def _bare(item: S3BucketKeyData) -> ObjectInfo | None:
    return item.object_info and item.object_info._replace(etag="")


def test_an_etag_of_none():
    """An object of a program's own that knows no ETag has an empty one; one that is no text is refused."""
    told = ObjectInfo("k", None, 5, 0)  # as KnownObject allows
    assert ObjectTable([("b", "k", told)], etags=True)[0].object_info == ObjectInfo("k", "", 5, 0)
    with pytest.raises(ArgumentTypeError, match="must be S3BucketKeyData"):
        ObjectTable([("b", "k", ObjectInfo("k", 7, 5, 0))], etags=True)


def test_columns_with_etags():
    """A table of columns has ETags if all of them have."""
    first = KeyColumns(b"ab", array("I", [1, 1]), array("q", [5, 6]), b'"e""ff"', array("I", [3, 4]))
    second = KeyColumns(b"c", array("I", [1]), array("q", [7]), b"", array("I", [0]))
    table = ObjectTable.of_columns("b", [first, second])
    assert [item.object_info.etag for item in table] == ['"e"', '"ff"', ""]
    assert not ObjectTable.of_columns("b", [first, second._replace(etag_lengths=None)]).has_etags
    assert not ObjectTable.of_columns("b", []).has_etags


# --- Mapped tables ---------------------------------------------------------------------------------------------------


def test_a_loaded_table_is_mapped(path: Path):
    """A table of a file has nothing of it in memory, and is what was saved."""
    table = ObjectTable.load(path)
    assert table._mapped is not None
    assert list(table) == _objects()
    assert [table[index] for index in (-1, 0, 50)] == [_objects()[index] for index in (-1, 0, 50)]
    assert table[10:20:3] == _objects()[10:20:3]
    assert table.digest == ObjectTable(_objects()).digest
    assert repr(table) == "<ObjectTable of 100 objects in 3 buckets>"
    with pytest.raises(IndexError, match="there are 100 objects"):
        table[100]


def test_saving_a_mapped_table(path: Path):
    """A mapped table can be saved, to its own file as well."""
    table = ObjectTable.load(path)
    content = path.read_bytes()
    table.save(path.with_name("copy"))
    table.save(path)
    assert path.read_bytes() == path.with_name("copy").read_bytes() == content
    assert list(table) == _objects()


def test_a_mapped_table_in_a_dataset(path: Path):
    """Datasets take a mapped table as any other, and pickle as little."""
    for kind in (S3MapDataset, S3IterableDataset):
        dataset = kind.from_table(path)
        assert list(dataset.objects) == _objects()
        assert len(pickle.dumps(dataset)) < 8192
        assert list(pickle.loads(pickle.dumps(dataset)).objects) == _objects()


# --- Other processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_a_mapped_table(path: Path, protocol: int):
    """A mapped table pickles as a few bytes, and is mapped again."""
    table = ObjectTable.load(path)
    pickled = pickle.dumps(table, protocol)
    assert len(pickled) < 300 + len(str(path))
    back = pickle.loads(pickled)
    assert back._mapped is not None
    assert list(back) == _objects()
    assert back.digest == table.digest


def test_copies_of_a_mapped_table(path: Path):
    """Copies of a mapped table are the same table."""
    table = ObjectTable.load(path)
    for back in (copy.copy(table), copy.deepcopy(table)):
        assert list(back) == _objects()


def test_a_path_is_not_relative_to_where_a_pickle_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A table that was loaded by a relative path is found by a process in another directory."""
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(ObjectTable.load("table"))
    monkeypatch.chdir("/")
    assert list(pickle.loads(pickled)) == _objects()


@pytest.mark.parametrize("change", [Path.unlink, ObjectTable(_objects(7)).save])
def test_a_file_that_is_gone_before_a_table_is_pickled(path: Path, change):
    """Where nobody could map the file again, the table travels whole."""
    table = ObjectTable.load(path)
    change(path)
    back = pickle.loads(pickle.dumps(table))
    assert back._mapped is None
    assert list(back) == _objects()
    assert back.digest == table.digest


def test_a_file_that_is_gone_when_a_pickle_is_loaded(path: Path):
    """A pickle whose file is gone is an error that says the path and what to do."""
    pickled = pickle.dumps(ObjectTable.load(path))
    path.unlink()
    with pytest.raises(ObjectTableError, match=rf"{re.escape(str(path))} cannot be opened again: .* keep the file"):
        pickle.loads(pickled)


def test_a_file_that_is_another_one_when_a_pickle_is_loaded(path: Path):
    """A pickle whose file is another table is an error with both digests, or says that it is no table."""
    table, other = ObjectTable.load(path), ObjectTable(_objects(7))
    pickled = pickle.dumps(table)
    other.save(path)
    with pytest.raises(ObjectTableError, match=f"is another one: its digest is {other.digest}, and was {table.digest}"):
        pickle.loads(pickled)
    path.write_bytes(b"text")
    with pytest.raises(ObjectTableError, match="is no saved table of objects"):
        pickle.loads(pickled)


def test_a_pickle_that_finds_the_same_table_in_another_file(path: Path):
    """What tells a table is its digest: the same objects that were saved anew are the same table."""
    pickled = pickle.dumps(ObjectTable.load(path))
    ObjectTable(_objects()).save(path)
    assert list(pickle.loads(pickled)) == _objects()


def test_pickles_of_older_versions():
    """A table that was pickled before tables were mapped is still read."""
    table = ObjectTable.__new__(ObjectTable)
    table.__setstate__((b"ab", array("Q", [1, 2]), array("q", [5, -1]), array("I", [0, 1]), ["x", "y"]))
    assert list(table) == [("x", "a", ObjectInfo("a", "", 5, 0)), ("y", "b", None)]
    assert not table.has_etags


def _listed(table: ObjectTable) -> tuple[bool, list[S3BucketKeyData]]:
    return table._mapped is not None, list(table)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_mapped_table_in_another_process(path: Path, method: str):
    """A process of any start method maps the same file; a table with ETags in memory travels whole."""
    tables = [ObjectTable.load(path), ObjectTable(_objects(etags=True), etags=True)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_listed, tables) == [(True, _objects()), (False, _objects(etags=True))]


# --- A real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server) -> Iterator[S3Client]:
    """Return a client of a server with a bucket for these tests."""
    with server.activated():
        server.create_bucket(BUCKET)
        client = S3Client()
        yield client
        client.close()


def _put(client: S3Client, key: str, content: bytes) -> None:
    with client.put_object(BUCKET, key) as writer:
        writer.write(content)


def _content(reader) -> bytes:
    return reader.read()


@pytest.mark.parametrize("page_size", [1000, 3])
def test_etags_of_a_listing(client: S3Client, page_size: int):
    """A listing that is asked for them keeps the ETags that the server tells of each object."""
    for number in range(10):
        _put(client, f"etags/{number}", b"x" * number)
    table = list_table(client, BUCKET, "etags/", page_size=page_size, etags=True)
    assert len(table) == 10
    for item in table:
        assert item.object_info.etag == client.head_object(BUCKET, item.key).etag != ""
        assert item.object_info.size == int(item.key[-1])
    assert not list_table(client, BUCKET, "etags/").has_etags
    assert (
        list_table(client, BUCKET, "etags/none", etags=True).digest
        == ObjectTable.of_columns(BUCKET, [KeyColumns(b"", array("I"), array("q"), b"", array("I"))]).digest
    )


@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
def test_an_object_that_was_replaced(client: S3Client, tmp_path: Path, kind):
    """A table with ETags finds an object that was replaced by one of the same size; others are read as before."""
    for key in ("a", "b"):
        _put(client, f"replaced/{key}", b"old " + key.encode())
    list_table(client, BUCKET, "replaced/", etags=True).save(tmp_path / "pinned")
    list_table(client, BUCKET, "replaced/").save(tmp_path / "plain")
    _put(client, "replaced/b", b"new b")
    samples = iter(kind.from_table(tmp_path / "pinned", transform=_content))
    assert next(samples) == b"old a"
    with pytest.raises(ObjectChangedError, match=f"s3://{BUCKET}/replaced/b"):
        next(samples)
    assert list(kind.from_table(tmp_path / "plain", transform=_content)) == [b"old a", b"new b"]


def test_tables_in_s3(client: S3Client):
    """A table that is kept in S3 is read whole into memory, verified, of either version."""
    uri = f"s3://{BUCKET}/tables/one"
    ObjectTable(_objects(etags=True), etags=True).save(uri, client=client)
    table = ObjectTable.load(uri, client=client)
    assert table._mapped is None
    assert list(table) == _objects(etags=True)
    for version, name in ((1, "version-1"), (2, "version-2")):
        content = (Path(__file__).parent / "data" / f"{name}.table").read_bytes()
        _put(client, f"tables/{version}", content)
        assert len(ObjectTable.load(f"s3://{BUCKET}/tables/{version}", client=client)) == 17
        _put(client, f"tables/{version}", content[:-1] + b"?")
        with pytest.raises(ObjectTableError, match=f"s3://{BUCKET}/tables/{version} is damaged"):
            ObjectTable.load(f"s3://{BUCKET}/tables/{version}", client=client)


@pytest.fixture
def kept(client: S3Client, tmp_path: Path, request) -> tuple[str, Path]:
    """Return the URI of a table, and a directory for copies that is not there yet."""
    uri = f"s3://{BUCKET}/kept/{request.node.name}"
    ObjectTable(_objects()).save(uri, client=client)
    return uri, tmp_path / "new" / "cache"


def test_a_copy_of_a_table_is_kept(client: S3Client, kept):
    """The first load keeps a copy and maps it; the next one asks for the ETag alone, and maps the same copy."""
    uri, directory = kept
    first = ObjectTable.load(uri, client=client, cache_dir=directory)
    before = client.stats.requests
    again = ObjectTable.load(uri, client=client, cache_dir=str(directory), verify=True)
    assert client.stats.requests == before + 1
    for table in (first, again, pickle.loads(pickle.dumps(again))):
        assert table._mapped is not None
        assert list(table) == _objects()
    assert len(list(directory.iterdir())) == 1


def test_a_copy_is_never_stale(client: S3Client, kept):
    """When the object is replaced the new table is loaded; the one of the older version stays for who has it."""
    uri, directory = kept
    old = ObjectTable.load(uri, client=client, cache_dir=directory)
    ObjectTable(_objects(7)).save(uri, client=client)
    new = ObjectTable.load(uri, client=client, cache_dir=directory)
    assert list(new) == _objects(7)
    assert list(old) == list(pickle.loads(pickle.dumps(old))) == _objects()
    client.delete_object(BUCKET, uri.partition(f"{BUCKET}/")[2])
    with pytest.raises(NotFoundError):
        ObjectTable.load(uri, client=client, cache_dir=directory)


@pytest.mark.parametrize("place", [20, 30, -1])
def test_a_copy_that_is_damaged(client: S3Client, kept, place: int):
    """A copy whose damage is seen when it is loaded is made anew; else it is an error where it is read."""
    uri, directory = kept
    ObjectTable.load(uri, client=client, cache_dir=directory)
    (copied,) = directory.iterdir()
    content = bytearray(copied.read_bytes())
    content[place] ^= 1
    copied.write_bytes(content)
    if place < 0:
        with pytest.raises(ObjectTableError, match=re.escape(str(copied))):
            list(ObjectTable.load(uri, client=client, cache_dir=directory))
    assert list(ObjectTable.load(uri, client=client, cache_dir=directory, verify=True)) == _objects()
    assert list(ObjectTable.load(uri, client=client, cache_dir=directory)) == _objects()
    assert list(directory.iterdir()) == [copied]


def test_a_copy_of_an_old_file(client: S3Client, tmp_path: Path):
    """A table of version 1 in S3 is kept as one that can be mapped."""
    _put(client, "kept/version-1", (Path(__file__).parent / "data" / "version-1.table").read_bytes())
    table = ObjectTable.load(f"s3://{BUCKET}/kept/version-1", client=client, cache_dir=tmp_path)
    assert table._mapped is not None
    assert table.digest == "09cb4eed7331fa9f969d511e7a02ad14"
    table.verify()


def test_a_copy_that_cannot_be_kept(client: S3Client, kept, tmp_path: Path):
    """A directory that cannot be made is an error of the system."""
    uri, _ = kept
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=os.strerror(20)):
        ObjectTable.load(uri, client=client, cache_dir=tmp_path / "file" / "cache")
