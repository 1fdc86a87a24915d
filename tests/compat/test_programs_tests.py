"""What tests of programs replace, and hand in, of their own: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import pytest
import torch.utils.data

from tests.compat.connector import IS_REAL, importable

with importable():
    import s3torchconnector.s3iterable_dataset
    from s3torchconnector import S3Exception, S3IterableDataset, S3MapDataset, S3ReaderConstructor
    from s3torchconnector._s3client import MockS3Client
    from s3torchconnectorclient._mountpoint_s3_client import MockMountpointS3Client

REGION = "us-east-1"
CONTENT = bytes(range(256)) * 10
KEYS = [f"p/{number}" for number in range(6)]

READERS = [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.range_based(0)]


@pytest.fixture
def client() -> Any:
    """A client of a bucket in memory."""
    client = MockS3Client(REGION, "bucket")
    client.add_object("key", CONTENT)
    for key in KEYS:
        client.add_object(key, key.encode())
    return client


@pytest.fixture
def stream(client: Any) -> Any:
    """A dataset of the folder, which workers share."""
    stream = S3IterableDataset.from_prefix("s3://bucket/p/", region=REGION, enable_sharding=True)
    stream._client = client
    return stream


# Workers and ranks that are not there


@pytest.mark.parametrize(
    "name", ["torch.utils.data.get_worker_info", "s3torchconnector.s3iterable_dataset.torch.utils.data.get_worker_info"]
)
@pytest.mark.parametrize("worker", range(4))
def test_workers(stream: Any, name: str, worker: int):
    """A test that says by torch's function which worker it is gets the objects of that worker."""
    target, _, attribute = name.rpartition(".")
    holder = torch.utils.data if target == "torch.utils.data" else s3torchconnector.s3iterable_dataset.torch.utils.data
    with patch.object(holder, attribute, return_value=SimpleNamespace(id=worker, num_workers=4)) as asked:
        assert [item.key for item in stream] == KEYS[worker::4]
    asked.assert_called()


def test_workers_by_a_mock(stream: Any):
    """It may be a mock, as it mostly is."""
    with patch("torch.utils.data.get_worker_info") as asked:
        asked.return_value = MagicMock(id=1, num_workers=2)
        assert [item.key for item in stream] == KEYS[1::2]
    assert [item.key for item in stream] == KEYS


def test_ranks(client: Any):
    """So it is with ranks."""
    with (
        patch("torch.distributed.is_initialized", return_value=True),
        patch("torch.distributed.get_rank", return_value=1),
        patch("torch.distributed.get_world_size", return_value=2),
    ):
        stream = S3IterableDataset.from_prefix("s3://bucket/p/", region=REGION, enable_sharding=True)
        stream._client = client
        with patch("torch.utils.data.get_worker_info", return_value=SimpleNamespace(id=1, num_workers=2)):
            assert [item.key for item in stream] == KEYS[1::2][1::2]


# Facts of their own


class Facts(NamedTuple):
    """What a program keeps of an object."""

    size: int
    etag: str


@pytest.fixture(params=["of the client", "namespace", "tuple", "mock", "no etag"])
def facts(request: pytest.FixtureRequest, client: Any) -> Any:
    """What is known of an object, in different clothes."""
    head = client.head_object("bucket", "key")
    return {
        "of the client": head,
        "namespace": SimpleNamespace(size=head.size, etag=head.etag, more=1),
        "tuple": Facts(head.size, head.etag),
        "mock": MagicMock(size=head.size, etag=head.etag),
        "no etag": SimpleNamespace(size=head.size, etag=""),
    }[request.param]


@pytest.mark.parametrize("constructor", READERS)
def test_facts(client: Any, facts: Any, constructor: Any):
    """Any object with a size and an ETag tells what is known of an object."""
    reader = client.get_object("bucket", "key", object_info=facts, reader_constructor=constructor)
    assert reader.seek(-10, 2) == len(CONTENT) - 10
    assert reader.read() == CONTENT[-10:]


def test_facts_of_a_dataset(client: Any):
    """So they do as a dataset's objects."""
    with importable():
        from s3torchconnector._s3bucket_key_data import S3BucketKeyData

    def objects(client: Any) -> Any:
        return [S3BucketKeyData("bucket", "key", SimpleNamespace(size=len(CONTENT), etag='"etag"'))]

    items = S3MapDataset(REGION, objects)
    items._client = client
    reader = items[0]
    assert reader.seek(0, 2) == len(CONTENT)


@pytest.mark.skipif(IS_REAL, reason="it asks nothing, and fails later")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, "or have a size and an etag as these do, got 5"),
        (SimpleNamespace(size=5), "or have a size and an etag"),
        (SimpleNamespace(size="5", etag=""), "size of object_info must be an integer, got '5'"),
        (SimpleNamespace(size=5, etag=b""), "etag of object_info must be a str, got b''"),
        (SimpleNamespace(size=-1, etag=""), "size of object_info is negative: -1"),
    ],
)
def test_wrong_facts(client: Any, wrong: Any, message: str):
    """What has neither, or something else there, is refused with a word about it."""
    with pytest.raises(S3Exception, match=message) as caught:
        client.get_object("bucket", "key", object_info=wrong)
    assert isinstance(caught.value, ValueError)


# Streams that begin


@pytest.fixture
def native() -> Any:
    """A native client of a bucket in memory."""
    double = MockMountpointS3Client(REGION, "bucket", part_size=5 * 1024 * 1024)
    double.add_object("key", CONTENT)
    double.add_object("large", CONTENT * 5000)
    double.add_object("empty", b"")
    return double.create_mocked_client()


@pytest.mark.parametrize(
    ("bucket", "text"),
    [("bucket", "Service error: The key does not exist"), ("no", "Service error: The bucket does not")],
)
def test_streams_fail_when_they_are_opened(native: Any, client: Any, bucket: str, text: str):
    """What does not exist is an error of the call that opens a stream, not of the first read."""
    with pytest.raises(S3Exception, match=text):
        native.get_object(bucket, "no")
    with pytest.raises(S3Exception, match=text):
        client._get_object_stream(bucket, "no")


def test_streams_of_constructors_fail_when_they_are_opened(client: Any):
    """So it is with those that reader constructors of a program open."""
    opened = []

    def constructor(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Any:
        opened.append(get_stream)
        return MagicMock()

    client.get_object("bucket", "no", reader_constructor=constructor)
    with pytest.raises(S3Exception, match="Service error: The key does not exist"):
        opened[0]()


@pytest.mark.parametrize("key", ["key", "large", "empty"])
def test_streams_yield_all(native: Any, key: str):
    """A stream that has begun yields all bytes, each once, and tells where it is; at its end it stays."""
    content = {"key": CONTENT, "large": CONTENT * 5000, "empty": b""}[key]
    stream = native.get_object("bucket", key)
    assert stream.tell() == 0
    received = b""
    for part in stream:
        received += part
        assert stream.tell() == len(received)
    assert received == content
    assert next(stream, None) is None


def test_streams_of_ranges(native: Any):
    """So does one of a range."""
    stream = native.get_object("bucket", "large", 100, 6_000_000)
    assert stream.tell() == 100
    assert b"".join(stream) == (CONTENT * 5000)[100:6_000_000]
    assert stream.tell() == 6_000_000
