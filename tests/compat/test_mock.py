"""The double of the client, as tests of programs use it: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.compat.connector import importable

with importable():
    from s3torchconnector import S3Checkpoint, S3IterableDataset, S3MapDataset
    from s3torchconnector._s3client import MockS3Client
    from s3torchconnectorclient import S3Exception
    from s3torchconnectorclient._mountpoint_s3_client import MockMountpointS3Client

REGION = "us-east-1"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def client() -> Any:
    """A client of a bucket with three objects."""
    client = MockS3Client(REGION, "bucket")
    client.add_object("key", CONTENT)
    for number in range(2):
        client.add_object(f"p/{number}", bytes([number]) * 1000)
    return client


def test_reads(client: Any):
    """Objects are read as from S3."""
    reader = client.get_object("bucket", "key")
    assert (reader.read(3), reader.seek(-3, 2), reader.read()) == (CONTENT[:3], len(CONTENT) - 3, CONTENT[-3:])
    assert client.head_object("bucket", "key").size == len(CONTENT)


def test_writes(client: Any):
    """An object appears when its writer is closed."""
    with client.put_object("bucket", "new") as writer:
        writer.write(b"con")
        writer.write(b"tent")
        with pytest.raises(S3Exception, match="The key does not exist"):
            client.get_object("bucket", "new").read()
    assert client.get_object("bucket", "new").read() == b"content"


def test_large_objects(client: Any):
    """An object of several parts is written and read."""
    content = CONTENT * 250
    with client.put_object("bucket", "large") as writer:
        writer.write(content)
    assert client.get_object("bucket", "large").read() == content


def test_lists(client: Any):
    """A listing has pages, prefixes, and prefixes in common."""
    pages = list(client.list_objects("bucket", "", "/"))
    assert [info.key for page in pages for info in page.object_info] == ["key"]
    assert [prefix for page in pages for prefix in page.common_prefixes] == ["p/"]
    pages = list(client.list_objects("bucket", "p/", max_keys=1))
    assert [[info.key for info in page.object_info] for page in pages] == [["p/0"], ["p/1"]]


def test_copies_and_deletes(client: Any):
    """Objects are copied and deleted; to delete what is not there is no error."""
    client.copy_object("bucket", "key", "bucket", "copy")
    client.delete_object("bucket", "key")
    client.delete_object("bucket", "key")
    client.remove_object("key")
    assert client.get_object("bucket", "copy").read() == CONTENT
    with pytest.raises(S3Exception, match=r"^Service error: The object was not found$"):
        client.head_object("bucket", "key")


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda client: client.get_object("bucket", "no").read(), "Service error: The key does not exist"),
        (lambda client: client.get_object("other", "key").read(), "Service error: The bucket does not exist"),
        (lambda client: client.head_object("bucket", "no"), "Service error: The object was not found"),
        (lambda client: client.head_object("other", "key"), "Service error: The object was not found"),
        (lambda client: next(iter(client.list_objects("other"))), "Service error: The bucket does not exist"),
        (lambda client: client.delete_object("other", "key"), "Service error: The bucket does not exist"),
        (lambda client: client.copy_object("bucket", "no", "bucket", "key"), "Service error: The object was not found"),
    ],
)
def test_what_is_missing(client: Any, act: Any, text: str):
    """What is not there is an S3Exception with the text that programs compare."""
    with pytest.raises(S3Exception, match=f"^{text}$"):
        act(client)


def test_datasets_of_a_double(client: Any):
    """A dataset reads through the double that is put in its place."""
    items = S3MapDataset.from_prefix("s3://bucket/p/", region=REGION)
    items._client = client
    assert [(item.key, item.read()) for item in items] == [(f"p/{number}", bytes([number]) * 1000) for number in (0, 1)]
    stream = S3IterableDataset.from_objects(["s3://bucket/key"], region=REGION)
    stream._client = client
    assert [item.read() for item in stream] == [CONTENT]


def test_checkpoints_of_a_double(client: Any):
    """A checkpoint is saved and loaded through the double that is put in its place."""
    checkpoint = S3Checkpoint(REGION)
    checkpoint._client = client
    with checkpoint.writer("s3://bucket/a.pt") as writer:
        torch.save({"step": 1}, writer)
    with checkpoint.reader("s3://bucket/a.pt") as reader:
        assert torch.load(reader) == {"step": 1}


def test_the_double_of_the_native_client():
    """The double of the native client makes clients that all see one bucket."""
    double = MockMountpointS3Client(REGION, "bucket")
    first, second = double.create_mocked_client(), double.create_mocked_client()
    stream = first.put_object("bucket", "key")
    stream.write(b"content")
    stream.close()
    assert b"".join(second.get_object("bucket", "key")) == b"content"
    double.add_object("other", b"")
    assert second.head_object("bucket", "other").size == 0
    double.remove_object("other")
    double.remove_object("other")
