"""Tests of what stands between the arguments of s3torchconnector and s3torch: readers, clients, errors."""

from __future__ import annotations

import contextlib
import gc
import io
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch import ReaderType, S3Client, S3ReaderConfig, errors
from s3torch.compat import client as compat_client
from s3torch.compat import readers
from s3torch.compat.checkpoint import S3Checkpoint
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.datasets import S3BucketIterable, S3IterableDataset, S3MapDataset, get_objects_from_prefix
from s3torch.compat.dcp import S3FileSystem, S3StorageReader, S3StorageWriter
from s3torch.compat.mock import MockMountpointS3Client, MockS3Client
from s3torch.compat.native import join_all_managed_threads
from s3torch.compat.readers import S3ReaderConstructor, SequentialS3Reader
from s3torch.compat.wording import text_of
from s3torch.errors import ArgumentError, ArgumentTypeError
from s3torch.testing import FaultyServer

MiB = 1024 * 1024
CONTENT = bytes(range(256)) * 400
KEYS = [f"p/{number}" for number in range(5)]


@pytest.fixture
def client() -> Iterator[MockS3Client]:
    """A client of a bucket in memory with some objects."""
    client = MockS3Client("us-east-1", "bucket")
    for number, key in enumerate(KEYS):
        client.add_object(key, bytes([number]) * 1000)
    client.add_object("key", CONTENT)
    yield client
    client.close()


@pytest.fixture
def server(client: MockS3Client) -> Iterator[FaultyServer]:
    """A server that has that bucket, for those who open clients of their own."""
    with FaultyServer() as server:
        server.objects = client._objects
        yield server


@pytest.fixture
def options(client: MockS3Client, server: FaultyServer) -> dict[str, Any]:
    """The arguments with which datasets reach that bucket."""
    return {"region": "us-east-1", "endpoint": server.endpoint, "s3client_config": client.s3client_config}


@pytest.fixture
def live(options: dict[str, Any]) -> Iterator[compat_client.S3Client]:
    """A client of that server."""
    with contextlib.closing(compat_client.S3Client(**options)) as client:
        yield client


# How a reader is chosen


class Upper(readers.S3Reader):
    """A reader of a program's own, over one of s3torch's."""

    opened = 0

    def __init__(self, reader: Any) -> None:
        Upper.opened += 1
        self._reader = reader

    @property
    def bucket(self) -> str:
        return str(self._reader.bucket)

    @property
    def key(self) -> str:
        return str(self._reader.key)

    def read(self, size: int | None = None) -> bytes:
        return bytes(self._reader.read(size)).upper()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buf: Any) -> int:
        return int(self._reader.readinto(buf))


def upper(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Upper:
    """A constructor of a program's own."""
    return Upper(SequentialS3Reader(bucket, key, get_object_info, get_stream))


class Derived(SequentialS3Reader):
    """A reader that derives from one that stands for s3torchconnector's."""


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        ({}, readers.SequentialS3Reader, "sequential"),
        ({"reader_constructor": None}, readers.SequentialS3Reader, "sequential"),
        ({"reader_constructor": S3ReaderConstructor.default()}, readers.SequentialS3Reader, "sequential"),
        ({"reader_constructor": S3ReaderConstructor.range_based()}, readers.RangedS3Reader, "range_based"),
        ({"reader_constructor": S3ReaderConstructor.range_based(0)}, readers.RangedS3Reader, "range_based"),
        ({"reader_config": S3ReaderConfig.sequential()}, readers.SequentialS3Reader, "sequential"),
        ({"reader_config": S3ReaderConfig.range_based()}, readers.RangedS3Reader, "range_based"),
        ({"reader_config": S3ReaderConfig.adaptive()}, readers.RangedS3Reader, "range_based"),
        ({"reader_type": ReaderType.SEQUENTIAL}, readers.SequentialS3Reader, "sequential"),
        ({"reader_type": ReaderType.RANGE_BASED}, readers.RangedS3Reader, "range_based"),
        ({"reader_constructor": upper}, Upper, "unknown"),
        ({"reader_constructor": partial(Derived)}, Derived, "unknown"),
        ({"reader_constructor": Derived}, Derived, "unknown"),
    ],
)
def test_three_ways_to_choose_a_reader(
    client: MockS3Client, options: dict[str, Any], given: dict[str, Any], kind: type, name: str
):
    """Each way gives that reader, to clients, to samples, to batches and to streams; the User-Agent field names it."""
    assert type(client.get_object("bucket", "key", **given)) is kind
    items = S3MapDataset.from_prefix("s3://bucket/p/", **options, **given)
    assert [type(reader) for reader in (items[0], *items.__getitems__([1, 2]))] == [kind] * 3
    stream = S3IterableDataset.from_objects([f"s3://bucket/{key}" for key in KEYS], **options, **given)
    assert [(type(reader), reader.key) for reader in stream] == [(kind, key) for key in KEYS]
    assert items.client.user_agent.endswith(f"(md/dataset#map md/reader_type#{name})")
    assert isinstance(items[0], readers.S3Reader)
    assert items[0].read(size=3) == bytes(3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"reader_constructor": 5}, ArgumentTypeError, "reader_constructor must be callable"),
        ({"reader_config": 5}, ArgumentTypeError, "reader_config must be an instance of S3ReaderConfig, got 5"),
        ({"reader_type": "sequential"}, ArgumentTypeError, "must be a ReaderType, got 'sequential'"),
        (
            {"reader_type": ReaderType.SEQUENTIAL, "reader_config": S3ReaderConfig()},
            ArgumentError,
            "reader_config and reader_type both choose",
        ),
    ],
)
def test_bad_choices(client: MockS3Client, given: dict[str, Any], error: type[Exception], message: str):
    """What chooses no reader, or two, is refused by its name."""
    with pytest.raises(error, match=message):
        client.get_object("bucket", "key", **given)


@pytest.mark.parametrize("buffer_size", ["8", 1.5])
def test_bad_buffer_size(client: MockS3Client, buffer_size: Any):
    """A buffer size that is no integer is a TypeError when the reader is made."""
    with pytest.raises(TypeError, match="buffer_size must be an integer"):
        client.get_object("bucket", "key", reader_constructor=S3ReaderConstructor.range_based(buffer_size))


def test_own_readers_are_opened_in_turn(options: dict[str, Any]):
    """Readers of a program's own are not opened ahead of those that read them."""
    stream = iter(S3IterableDataset.from_prefix("s3://bucket/p/", **options, reader_constructor=upper))
    before = Upper.opened
    next(stream)
    assert Upper.opened == before + 1


def test_configurations_of_before():
    """S3ReaderConfig has the enumeration inside, where it was."""
    from s3torch.compat.config import S3ReaderConfig as OfBefore

    assert OfBefore(OfBefore.ReaderType.RANGE_BASED) == OfBefore.range_based()
    assert OfBefore.sequential().get_reader_type_string() == "sequential"


# Streams


@pytest.mark.parametrize(("start", "end"), [(None, None), (5, None), (None, 7), (100, 90000), (7, 7), (200_000, None)])
def test_get_stream(client: MockS3Client, start: int | None, end: int | None):
    """What constructors are given opens streams of ranges; ``tell`` is the place in the object."""
    streams = []

    def constructor(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Any:
        assert get_object_info().size == len(CONTENT)
        streams.append(get_stream(start=start, end=end))

    client.get_object("bucket", "key", reader_constructor=constructor)
    assert b"".join(streams[0]) == CONTENT[start:end]
    assert streams[0].tell() == (start or 0) + len(CONTENT[start:end])
    assert b"".join(client._get_object_stream("bucket", "key", start, end)) == CONTENT[start:end]


@pytest.mark.parametrize("constructor", [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()])
@pytest.mark.parametrize("buffer_size", [0, 1, 100_000])
def test_streams_of_the_programs_own(client: MockS3Client, constructor: Any, buffer_size: int):
    """A reader that is made of another ``get_stream`` reads that one: whole, in parts, and where it is told to."""
    if "buffer_size" in constructor.keywords:
        constructor = S3ReaderConstructor.range_based(buffer_size)
    asked = []

    def get_stream(start: int | None = None, end: int | None = None) -> Iterator[bytes]:
        asked.append((start, end))
        part = CONTENT[start:end]
        return iter([part[: len(part) // 2], part[len(part) // 2 :], b"more than was asked for"])

    info = client.head_object("bucket", "key")
    reader = constructor(bucket="bucket", key="key", get_object_info=lambda: info, get_stream=get_stream)
    assert reader.read(10) == CONTENT[:10]
    assert reader.seek(-20, io.SEEK_END) == len(CONTENT) - 20
    assert reader.read() == CONTENT[-20:]
    reader.seek(0)
    assert reader.read() == CONTENT
    assert reader.read(1) == b""
    assert asked


def test_short_streams_are_errors(client: MockS3Client):
    """A stream that ends before the size that it is said to have is an error, not fewer bytes."""
    info = client.head_object("bucket", "key")
    reader = SequentialS3Reader("bucket", "key", lambda: info, lambda: [CONTENT[:-1]])
    with pytest.raises(errors.TruncatedBodyError, match=f"has ended after {len(CONTENT) - 1} of {len(CONTENT)} bytes"):
        reader.read()


def test_readers_need_a_bucket():
    """A reader without a bucket is refused."""
    with pytest.raises(ValueError, match="Bucket should be specified"):
        SequentialS3Reader("", "key", lambda: None, list)


def test_readers_pickle(live: compat_client.S3Client):
    """A reader pickles as what it reads and its position."""
    for constructor in (S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(0)):
        reader = live.get_object("bucket", "key", reader_constructor=constructor)
        reader.seek(5)
        again = pickle.loads(pickle.dumps(reader))
        assert type(again) is type(reader)
        assert again.read(5) == CONTENT[5:10]


def test_exact_reads(server: FaultyServer, live: compat_client.S3Client):
    """Without a buffer each read is one request of exactly its bytes."""
    reader = live.get_object(
        "bucket",
        "key",
        object_info=live.head_object("bucket", "key"),
        reader_constructor=S3ReaderConstructor.range_based(buffer_size=0),
    )
    reader.seek(100)
    reader.read(10)
    reader.readinto(bytearray(20))
    pickle.loads(pickle.dumps(reader)).read(5)
    asked = [request.headers.get("range") for request in server.requests]
    assert asked == [None, "bytes=100-109", "bytes=110-129", "bytes=130-134"]


# Clients


def test_keys_to_copy_are_encoded(client: MockS3Client):
    """copy_object takes the key to copy from percent-encoded."""
    client.add_object("a b%c", b"content")
    client.copy_object("bucket", "a%20b%25c", "bucket", "copy")
    assert client.get_object("bucket", "copy").read() == b"content"


def test_pages(client: MockS3Client):
    """A listing yields pages of facts, with their prefixes in common."""
    pages = list(client.list_objects("bucket", "", "/", 1))
    assert [info.key for page in pages for info in page.object_info] == ["key"]
    assert [prefix for page in pages for prefix in page.common_prefixes] == ["p/"]
    assert next(client.list_objects("bucket", max_keys=5000)).object_info[0].key == "key"


def _read_of_a_listed_object(client: MockS3Client) -> None:
    """Read by ranges an object whose size is known, and which is gone."""
    info = client.head_object("bucket", "key")
    client.remove_object("key")
    client.get_object("bucket", "key", object_info=info, reader_constructor=S3ReaderConstructor.range_based(0)).read(1)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda client: client.get_object("bucket", "no").read(), "Service error: The key does not exist"),
        (
            lambda client: client.get_object("bucket", "no").readinto(bytearray(3)),
            "Service error: The key does not exist",
        ),
        (lambda client: client.get_object("bucket", "no").readline(), "Service error: The key does not exist"),
        (
            lambda client: client.get_object("bucket", "no").seek(0, io.SEEK_END),
            "Service error: The object was not found",
        ),
        (
            lambda client: client.get_object("bucket", "no", reader_constructor=S3ReaderConstructor.range_based()).read(
                1
            ),
            "Service error: The object was not found",
        ),
        (_read_of_a_listed_object, "Service error: The key does not exist"),
        (lambda client: client.get_object("nowhere", "no").read(), "Service error: The bucket does not exist"),
        (lambda client: next(client.list_objects("nowhere")), "Service error: The bucket does not exist"),
        (lambda client: client.head_object("bucket", "no"), "Service error: The object was not found"),
        (lambda client: list(client._get_object_stream("bucket", "no")), "Service error: The key does not exist"),
        (lambda client: client.put_object("nowhere", "key").close(), "Service error: The bucket does not exist"),
        (
            lambda client: client.put_object("nowhere", "key").write(bytes(20 * MiB)),
            "Service error: The bucket does not exist",
        ),
    ],
)
def test_words(client: MockS3Client, act: Any, text: str):
    """What is missing has the text of s3torchconnector, in each way to find out; the class is s3torch's."""
    with pytest.raises(errors.NotFoundError) as caught:
        act(client)
    assert str(caught.value) == text
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.AccessDeniedError("no", status=403), "Client error: Forbidden: no (status 403)"),
        (errors.CredentialsError("none"), "Client error: No signing credentials available: none"),
        (errors.CredentialsError("old", code="ExpiredToken"), "Client error: old (code ExpiredToken)"),
        (errors.ServerError("broken", status=500), "Client error: broken (status 500)"),
        (errors.ServerError("Client error: said already"), None),
        (errors.ArgumentError("Only s3:// URIs are supported"), None),
    ],
)
def test_text_of(error: errors.S3Error, text: str | None):
    """Other errors begin as those of s3torchconnector do; bad arguments stay as they are."""
    assert text_of(error) == text


def test_missing_prefix(options: dict[str, Any]):
    """The listing of a dataset has these words, too."""
    with pytest.raises(errors.S3Error, match=r"^Service error: The bucket does not exist$"):
        len(S3MapDataset.from_prefix("s3://nowhere/p/", **options))
    with pytest.raises(errors.S3Error, match=r"^Service error: The bucket does not exist$"):
        next(iter(S3IterableDataset.from_prefix("s3://nowhere/p/", **options)))


def test_throughput_of_nobodys_choice():
    """The default of 10 Gbit/s limits nothing; another number does as in s3torch."""
    assert S3ClientConfig().connections == S3Client().s3client_config.connections
    assert S3ClientConfig(throughput_target_gbps=1).connections == 2


def test_mock_client(client: MockS3Client):
    """Objects of a client for tests come and go."""
    client.remove_object("key")
    with pytest.raises(errors.NotFoundError):
        client.head_object("bucket", "key")


def test_datasets_of_a_programs_own(options: dict[str, Any]):
    """A class that derives from a dataset is what from_prefix returns, and its own __getitem__ is asked in batches."""

    class Doubled(S3MapDataset):
        def __getitem__(self, index: Any) -> Any:
            return 2 * super().__getitem__(index).read(1)

    items = Doubled.from_prefix("s3://bucket/p/", **options)
    assert type(items) is Doubled
    assert items.__getitems__([1, 2]) == [b"\1\1", b"\2\2"]


# Checkpoints


@pytest.fixture
def fs(client: MockS3Client) -> S3FileSystem:
    """The file system of distributed checkpoints, given a client."""
    return S3FileSystem("us-east-1", s3_client=client)


@pytest.mark.parametrize("is_own", [True, False])
def test_distributed_checkpoint(client: MockS3Client, fs: S3FileSystem, is_own: bool):
    """A checkpoint is written by a file system that is put in its place, and read by the program's own readers."""
    made = []

    def constructor(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Any:
        made.append(key)
        return SequentialS3Reader(bucket, key, get_object_info, get_stream)

    writer = S3StorageWriter("us-east-1", "s3://bucket/step")
    writer.fs, state = fs, {"weight": torch.arange(12.0)}
    dcp.save(state, storage_writer=writer, no_dist=True)
    chosen = constructor if is_own else S3ReaderConstructor.dcp_optimized()
    reader = S3StorageReader("us-east-1", "s3://bucket/step", reader_constructor=chosen)
    reader.fs._client = client
    loaded = {"weight": torch.zeros(12)}
    dcp.load(loaded, storage_reader=reader, no_dist=True)
    assert torch.equal(loaded["weight"], state["weight"])
    assert made == (["step/.metadata", "step/__0_0.distcp"] if is_own else [])


def test_rename(client: MockS3Client, fs: S3FileSystem):
    """Renaming takes keys as they are, whatever is in them."""
    odd = "test_[+re.name]!@$%25^&*_(src)"
    client.add_object(odd, b"content")
    fs.rename(old_path=f"s3://bucket/{odd}", new_path="s3://bucket/new")
    assert (fs.exists(f"s3://bucket/{odd}"), fs.exists("s3://bucket/new")) == (False, True)


def test_lightning(options: dict[str, Any]):
    """``storage_options`` are ignored, and what is missing has the words of s3torchconnector."""
    pytest.importorskip("lightning")
    from s3torch.compat.lightning import S3LightningCheckpoint

    checkpoint = S3LightningCheckpoint(**options)
    checkpoint.save_checkpoint({"step": 1}, "s3://bucket/a.ckpt", storage_options={"any": "thing"})
    assert checkpoint.load_checkpoint("s3://bucket/a.ckpt") == {"step": 1}
    with pytest.raises(errors.NotFoundError, match=r"^Service error: The key does not exist$"):
        checkpoint.load_checkpoint("s3://bucket/b.ckpt")
    checkpoint.teardown()


# The native client


def test_native_client():
    """The native client and its double have the attributes, the methods and the streams of s3torchconnector's."""
    mock = MockMountpointS3Client("us-east-1", "bucket", part_size=16 * MiB)
    mock.add_object("key", CONTENT)
    native = mock.create_mocked_client()
    given = (native.region, native.part_size, native.unsigned, native.force_path_style, native.profile)
    assert given == ("us-east-1", 16 * MiB, True, True, None)
    assert (native.throughput_target_gbps, native.max_attempts, native.endpoint) == (10.0, 10, mock.endpoint)
    assert native.user_agent_prefix.endswith("(mock_client)")
    del mock
    gc.collect()
    stream = native.get_object("bucket", "key")
    assert (stream.bucket, stream.key, b"".join(stream), stream.tell()) == ("bucket", "key", CONTENT, len(CONTENT))
    assert b"".join(native.get_object("bucket", "key", 5, 9)) == CONTENT[5:9]
    written = native.put_object("bucket", "other")
    written.write(b"content")
    written.close()
    assert native.head_object("bucket", "other").size == 7
    native.delete_object("bucket", "other")
    assert [info.key for page in native.list_objects("bucket") for info in page.object_info] == ["key"]
    join_all_managed_threads(1.0)


def test_clients_put_in_place(client: MockS3Client):
    """Tests of programs put a client for tests where checkpoints have theirs."""
    checkpoint = S3Checkpoint("us-east-1")
    checkpoint._client = client
    with checkpoint.writer("s3://bucket/saved") as writer:
        torch.save({"step": 1}, writer)
    assert torch.load(checkpoint.reader("s3://bucket/saved")) == {"step": 1}
    items = S3MapDataset.from_prefix("s3://bucket/p/", region="us-east-1")
    items._client = client
    assert [len(reader.read()) for reader in items] == [1000] * 5


def test_listings_of_functions(client: MockS3Client):
    """What lists a prefix can be iterated over again."""
    listed = S3BucketIterable(client, "bucket", "p/")
    assert [[item.key for item in listed] for _ in range(2)] == [KEYS] * 2
    assert [item.key for item in get_objects_from_prefix("s3://bucket/p/", client)] == KEYS
