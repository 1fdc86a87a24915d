"""What is replaced or deleted only if it is what it was: If-Match on PutObject, CompleteMultipartUpload and Delete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from s3torch import S3Client
from s3torch._aws.etags import check_condition
from s3torch._aws.operations import DeleteObject
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from s3torch.testing import FaultyServer, faults

MiB = 1024 * 1024
PART = 5 * MiB
SIZES = [10, PART + 1]
CONTENT = bytes(range(256)) * (PART // 256 + 1)


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A bucket in memory with one object."""
    with FaultyServer({"key": b"old"}) as faulty:
        yield faulty


@pytest.fixture
def memory(faulty: FaultyServer) -> Iterator[S3Client]:
    """A client of that bucket."""
    config = replace(faulty.config, part_size=PART)
    client = S3Client("us-east-1", endpoint=faulty.endpoint, s3client_config=config)
    yield client
    client.close()


def write(client: S3Client, key: str, content: bytes, etag: str | None, bucket: str = "bucket") -> str | None:
    """Store an object in place of a version; returns the ETag of the new one."""
    with client.put_object(bucket, key, if_match=etag) as writer:
        writer.write(content)
    return writer.etag


@pytest.mark.parametrize("size", SIZES)
def test_replaced(small_parts, bucket, key, put, size):
    """On a real server: the version that was read is replaced, an older one is not; the writer tells the new ETag."""
    put(key, b"old")
    old = small_parts.head_object(bucket, key).etag
    new = write(small_parts, key, CONTENT[:size], old, bucket)
    assert new == small_parts.head_object(bucket, key).etag
    with pytest.raises(ObjectChangedError, match="is not the version any more that was to be replaced"):
        write(small_parts, key, b"other", old, bucket)
    with pytest.raises(ObjectChangedError):
        small_parts.delete_object(bucket, key, if_match=old)
    assert small_parts.read_range(bucket, key, 0) == CONTENT[:size]
    small_parts.delete_object(bucket, key, if_match=new)
    with pytest.raises(ObjectNotFoundError):
        write(small_parts, key, b"other", new, bucket)
    small_parts.delete_object(bucket, key, if_match=new)  # what is not there is deleted


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_another_version(faulty: FaultyServer, memory: S3Client, size: int, heeds: bool):
    """It stays, also on a server that does not heed the condition; of the upload nothing is left."""
    if not heeds:
        faulty.rates({faults.ignore_condition(): 1})
    with pytest.raises(ObjectChangedError):
        write(memory, "key", CONTENT[:size], '"other"')
    with pytest.raises(ObjectChangedError):
        memory.delete_object("bucket", "key", if_match='"other"')
    with pytest.raises(ObjectNotFoundError):
        write(memory, "nothing", CONTENT[:size], '"other"')
    memory.list_multipart_uploads("bucket")  # what was left to be aborted is
    assert (dict(faulty.objects), faulty.objects.uploads) == ({"key": b"old"}, [])


@pytest.mark.parametrize("size", SIZES)
def test_the_condition_is_sent(faulty: FaultyServer, memory: S3Client, size: int):
    """The server compares as well: what comes between the look and the request is noticed. Quotes may be left out."""
    etag = memory.head_object("bucket", "key").etag
    write(memory, "key", CONTENT[:size], etag.strip('"'))
    sent = [request.method for request in faulty.requests if request.headers.get("if-match") == etag]
    assert sent == ["PUT" if size == 10 else "POST"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("condition", ["if_match", "if_none_match"])
def test_an_answer_that_is_lost(faulty: FaultyServer, memory: S3Client, condition: str, size: int):
    """What one has stored oneself is no conflict, and the ETag is known."""
    etag = memory.head_object("bucket", "key").etag
    options = {"if_match": etag} if condition == "if_match" else {"if_none_match": True}
    key = "key" if condition == "if_match" else "new"
    faulty.script(faults.on("PutObject", "CompleteMultipartUpload", fault=faults.answer_lost()))
    with memory.put_object("bucket", key, **options) as writer:
        writer.write(CONTENT[:size])
    assert faulty.objects[key] == CONTENT[:size]
    assert writer.etag == memory.head_object("bucket", key).etag


@pytest.mark.parametrize("condition", ["if_match", "if_none_match"])
def test_an_answer_that_is_lost_and_another_version(faulty: FaultyServer, memory: S3Client, condition: str):
    """If somebody else has stored other bytes meanwhile, that is a conflict."""
    etag = memory.head_object("bucket", "key").etag
    kind = ObjectChangedError if condition == "if_match" else ObjectExistsError
    key = "key" if condition == "if_match" else "new"
    options = {"if_match": etag} if condition == "if_match" else {"if_none_match": True}
    writer = memory.put_object("bucket", key, **options)
    writer.write(b"mine")

    def both(exchange) -> None:
        faulty.objects[key] = b"theirs"
        exchange.wire.close()

    faulty.script(faults.on("PutObject", fault=replace(faults.answer_lost(), act=both)))
    with pytest.raises(kind):
        writer.close()
    assert writer.etag is None
    assert faulty.objects[key] == b"theirs"


def test_a_conflict_is_sent_again(faulty: FaultyServer, memory: S3Client):
    """Another request about the same key was under way: S3 says to send it again."""
    conflict = faults.status(409, "ConditionalRequestConflict")
    etag = memory.head_object("bucket", "key").etag
    faulty.script(faults.on("PutObject", fault=conflict), faults.on("DeleteObject", fault=conflict))
    new = write(memory, "key", b"new", etag)
    assert faulty.objects["key"] == b"new"
    memory.delete_object("bucket", "key", if_match=new)
    assert dict(faulty.objects) == {}


def test_a_missing_bucket_is_no_missing_object(faulty: FaultyServer, memory: S3Client):
    """What a server answers of a bucket that is not there is an error, whatever the condition."""
    for etag in (None, '"e"'):
        with pytest.raises(BucketNotFoundError):
            memory._access.run([DeleteObject(memory._access.bucket("nobody"), "key", etag)])
    memory._access.run([DeleteObject(memory._access.bucket("bucket"), "nothing", '"e"')])


@pytest.mark.parametrize("etag", ["", '""', "*", 'W/"e"', "W/e"])
def test_what_names_no_version(faulty: FaultyServer, memory: S3Client, etag: str):
    """It is refused before anything is sent."""
    with pytest.raises(ArgumentError, match="if_match"):
        check_condition(etag)
    with pytest.raises(ArgumentError, match="if_match"):
        memory.put_object("bucket", "key", if_match=etag)
    with pytest.raises(ArgumentError, match="if_match"):
        memory.delete_object("bucket", "key", if_match=etag)
    assert faulty.requests == []


def test_bad_arguments(memory: S3Client):
    """Wrong types and contradictions are refused by name."""
    with pytest.raises(ArgumentTypeError, match="if_match must be a str"):
        memory.put_object("bucket", "key", if_match=True)
    with pytest.raises(ArgumentTypeError, match="if_match must be a str"):
        memory.delete_object("bucket", "key", if_match=3)
    with pytest.raises(ArgumentError, match="contradict each other"):
        memory.put_object("bucket", "key", if_match='"e"', if_none_match=True)
