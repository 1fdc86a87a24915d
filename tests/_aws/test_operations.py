"""What the requests make of their answers, one answer at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from s3torch._aws import checksums
from s3torch._aws.attributes import GetObjectAttributes, HeadPart
from s3torch._aws.bucket import Bucket
from s3torch._aws.endpoint import Endpoint
from s3torch._aws.operations import DeleteObject, GetObject, HeadObject, Operation
from s3torch._aws.sending import PutObject
from s3torch._transfer.connection import Origin
from s3torch._transfer.http1 import Inbox
from s3torch.errors import (
    ClockSkewError,
    ConnectionFailedError,
    ObjectChangedError,
    ObjectNotFoundError,
    ProtocolError,
    RegionError,
    S3Error,
    ThrottledError,
    TruncatedBodyError,
)

from .answering import answer, bucket

CONTENT = bytes(range(100))


def cut_read(etag: str = '"old"') -> GetObject:
    """Return a read of all of ``CONTENT`` whose first answer broke off after 40 bytes."""
    get = GetObject(bucket(), "key", 0, 100, memoryview(bytearray(100)))
    with pytest.raises(TruncatedBodyError):
        answer(get, 206, CONTENT[:40], content_length=100, content_range="bytes 0-99/100", etag=etag)
    assert get.filled == 40
    return get


def test_rest_of_another_version():
    """The rest of a body whose ETag is another one is refused, although the server was told If-Match and ignores it."""
    get = cut_read()
    assert b'if-match: "old"' in bytes(get.request()[0])
    with pytest.raises(ObjectChangedError, match='its ETag was "old", and is "new" now'):
        answer(get, 206, CONTENT[40:], content_range="bytes 40-99/100", etag='"new"')
    assert get.filled == 40


@pytest.mark.parametrize("etag", ['"old"', "old", 'W/"old"'])
def test_rest_of_the_same_version(etag: str):
    """The rest comes with the same ETag, however it is written."""
    get = cut_read()
    assert answer(get, 206, CONTENT[40:], content_range="bytes 40-99/100", etag=etag) is None
    assert (get.filled, get.total, get.etag) == (100, 100, '"old"')


@pytest.mark.parametrize("etag", [None, "", '""'])
def test_rest_of_no_version(etag: str | None):
    """A rest that shows of no version that it is the same is not believed: not every server heeds If-Match."""
    get = cut_read()
    with pytest.raises(
        ProtocolError, match='it has neither ETag nor Last-Modified, and before there was the ETag "old"'
    ):
        answer(get, 206, CONTENT[40:], content_range="bytes 40-99/100", etag=etag)
    assert get.filled == 40


def test_another_version_than_is_wanted():
    """An answer whose ETag is not the wanted one is refused, although the server was told If-Match and ignores it."""
    get = GetObject(bucket(), "key", 0, 100, memoryview(bytearray(100)), etag='"old"')
    with pytest.raises(ObjectChangedError):
        answer(get, 206, CONTENT, content_range="bytes 0-99/100", etag='"new"')
    assert get.filled == 0


@pytest.mark.parametrize(("has_checksums", "told"), [(True, True), (True, False), (False, True)])
def test_what_was_verified(has_checksums: bool, told: bool):
    """A read of all bytes whose checksum came with them says that it was verified, so that nobody asks again."""
    get = GetObject(bucket(has_checksums=has_checksums), "key", 0, 100, memoryview(bytearray(100)))
    assert not get.is_verified
    checksum = str(checksums.compute(checksums.CRC32, [memoryview(CONTENT)])) if told else None
    fields = {"x_amz_checksum_crc32": checksum, "x_amz_checksum_type": "FULL_OBJECT"}
    assert answer(get, 206, CONTENT, content_range="bytes 0-99/100", **fields) is None
    assert get.is_verified is (has_checksums and told)


def ask_for_size() -> GetObject:
    """Return a read whose answer said that nothing is there, and not how large the object is: a HEAD is to tell."""
    get = GetObject(bucket(), "key", 200, 300, memoryview(bytearray(100)))
    get.attempts = 1
    error = answer(get, 416)
    assert error is not None
    assert get.recover(error)
    assert bytes(get.request()[0]).startswith(b"HEAD ")
    return get


def test_a_size_that_is_asked_for():
    """The HEAD belongs to the same attempt, and its size is the object's."""
    get = ask_for_size()
    assert get.attempts == 0
    assert answer(get, 200, content_length=100, etag='"e"') is None
    assert get.total == 100


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (200, {}),
        (200, {"etag": '"5f-1e"', "content_type": "text/html"}),
        (200, {"etag": '"e"', "content_range": "bytes 0-99/1000"}),
        (200, {"etag": '"e"', "content_length": None}),
        (204, {"etag": '"e"'}),
        (206, {"etag": '"e"', "content_range": "bytes 0-99/1000"}),
    ],
)
def test_a_size_that_is_not_s3s(status: int, fields: dict[str, object]):
    """What answers the HEAD is believed for no more than what answers any other: a portal has a length, too."""
    get = ask_for_size()
    try:
        error = answer(get, status, **{"content_length": 100, **fields})
    except ProtocolError as raised:
        error = raised
    assert isinstance(error, ProtocolError)
    assert get.total is None


def test_a_size_that_contradicts():
    """If the HEAD tells that something should be there, the range is asked for again."""
    get = ask_for_size()
    assert isinstance(answer(get, 200, content_length=1000, etag='"e"'), ProtocolError)
    assert bytes(get.request()[0]).startswith(b"GET ")
    assert b"range: bytes=200-299" in bytes(get.request()[0])


def test_a_body_that_is_misframed():
    """What came of a body whose frames are wrong is not kept, and the answer is an error."""
    get = GetObject(bucket(), "key", 0, 100, memoryview(bytearray(100)))
    frames = b"5\r\nabcde\r\nxyz\r\n"
    with pytest.raises(ProtocolError):
        answer(get, 206, frames, content_length=None, transfer_encoding="chunked", content_range="bytes 0-99/100")
    assert get.filled == 0


def test_rest_of_another_size():
    """The rest of an object that is longer now is refused, whatever its ETag."""
    get = cut_read()
    with pytest.raises(ObjectChangedError, match="it was 100 bytes long, and is 120 now"):
        answer(get, 206, CONTENT[40:], content_range="bytes 40-99/120", etag='"old"')


@pytest.mark.parametrize(("status", "is_fine"), [(200, True), (204, True), (299, True), (300, False), (404, False)])
def test_successes(status: int, is_fine: bool):
    """An answer of 200 to 299 is a success, any other an error."""
    assert (answer(DeleteObject(bucket(), "key"), status) is None) is is_fine


def test_errors_are_explained_once():
    """An error that names no object is told what it is about; one that does stays as it is."""
    operation = DeleteObject(bucket(), "key")
    error = ConnectionFailedError("It broke.")
    assert operation.explain(error) is error
    assert (error.bucket, error.key) == ("bucket", "key")
    assert str(error).startswith("DeleteObject on s3://bucket/key failed: It broke.")
    known = ObjectNotFoundError("There is no such object.", bucket="other", key="one")
    assert operation.explain(known) is known
    assert (known.bucket, known.key, str(known)) == ("other", "one", "There is no such object.")


def test_a_fault_is_corrected_once(monkeypatch: pytest.MonkeyPatch):
    """What did not help is not tried again, unless a fault that cannot be corrected came in between."""
    operation = DeleteObject(bucket(), "key")
    answer(operation, 400)
    can_correct = True
    monkeypatch.setattr(Bucket, "correct", lambda *_: can_correct)
    region, clock = RegionError("There."), ClockSkewError("Late.")
    assert [operation.recover(error) for error in (region, region, clock, region, clock)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    can_correct = False
    assert not operation.recover(S3Error("It broke."))
    can_correct = True
    assert operation.recover(region)


@pytest.mark.parametrize(
    ("status", "told", "count"),
    [
        (206, "bytes 11-19/100", 10),
        (206, "bytes 11-20/100", 10),
        (206, "bytes 9-19/100", 10),
        (206, "bytes 10-18/100", 9),
        (206, "bytes 10-20/100", 11),
        (206, "bytes 10-19/*", 10),
        (206, "bytes 10-14/16", 5),
        (206, None, 10),
        (200, None, 10),
        (200, "bytes 0-9/100", 10),
        (200, "bytes 10-18/100", 9),
        (200, "bytes 10-19/*", 10),
        (200, "nonsense", 10),
    ],
)
def test_other_ranges_than_asked_for(status: int, told: str | None, count: int):
    """An answer is taken for the range that was asked for only if it says so, however long its body is."""
    memory = bytearray(10)
    get = GetObject(bucket(), "key", 10, 20, memoryview(memory))
    with pytest.raises(ProtocolError):
        answer(get, status, CONTENT[1 : count + 1], content_range=told)
    assert (get.filled, memory) == (0, bytes(10))


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize(
    ("told", "count", "total"), [("bytes 10-19/100", 10, 100), ("bytes 10-19/20", 10, 20), ("bytes 10-14/15", 5, 15)]
)
def test_ranges_that_were_asked_for(status: int, told: str, count: int, total: int):
    """A range is answered whole, or up to the end of the object; some servers answer it with status 200."""
    memory = bytearray(10)
    get = GetObject(bucket(), "key", 10, 20, memoryview(memory))
    assert answer(get, status, CONTENT[10 : 10 + count], content_range=told) is None
    assert (get.filled, get.total, memory[:count]) == (count, total, CONTENT[10 : 10 + count])


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_range_with_status_200(is_whole: bool):
    """The first range of an object is not the whole object, although its status is that of one."""
    get = GetObject(bucket(), "key", 0, 20, memoryview(bytearray(20)), is_whole=is_whole)
    assert answer(get, 200, CONTENT[:20], content_range="bytes 0-19/100", etag='"e"') is None
    assert (get.filled, get.total) == (20, 100)


@pytest.mark.parametrize("size", [0, 1, 19, 20])
def test_whole_objects(size: int):
    """An answer without a range is the whole object, if that is no longer than what was asked for."""
    memory = bytearray(20)
    get = GetObject(bucket(), "key", 0, 20, memoryview(memory))
    assert answer(get, 200, CONTENT[:size], etag='"e"') is None
    assert (get.total, get.filled, memory[:size]) == (size, size, CONTENT[:size])


def test_a_released_body():
    """A request that is done holds no memory of the caller's."""
    memory = bytearray(b"body")
    put = PutObject(bucket(), "key", [memoryview(memory)], None)
    assert [bytes(piece) for piece in put.request()[1:]] == [b"body"]
    put.release()
    memory.clear()  # refused as long as there is a view


def operations(root: type[Operation] = Operation) -> set[type[Operation]]:
    """Return all kinds of requests."""
    return {root}.union(*map(operations, root.__subclasses__()))


def test_who_reads_a_body_alone():
    """Only what reads an object, or nothing, reads its answer itself: all others are judged where all are."""
    own = {each for each in operations() if "accept" in vars(each)}
    looks_first = {GetObjectAttributes}  # whether the answer is the object, which is not to be received
    assert own == {Operation, GetObject, HeadObject, HeadPart} | looks_first


class New(Operation):
    """An operation that says nothing of what shows that its answer is S3's."""

    def __init__(self) -> None:
        super().__init__("New", "POST", bucket(), "key")


@pytest.mark.parametrize(
    ("status", "body", "fields"),
    [
        (200, b"<html></html>", {}),
        (200, b"<!doctype html>", {"content_type": "text/html", "x_amz_request_id": "R"}),
        (200, b"fine", {}),
        (200, b"<NewResult/>", {"x_amz_request_id": "R"}),
        (206, b"", {}),
        (200, b"", {"content_range": "bytes 0-0/1"}),
    ],
)
def test_a_new_operation(status: int, body: bytes, fields: dict[str, object]):
    """An operation that says nothing of its answer takes none that says something."""
    with pytest.raises(ProtocolError, match=r"that is no answer of S3 to it\. Check the endpoint"):
        answer(New(), status, body, **fields)
    assert answer(New(), 200) is None
    assert answer(New(), 204) is None
    assert type(answer(New(), 200, b"<Error><Code>SlowDown</Code></Error>")) is ThrottledError


@pytest.mark.parametrize(
    "fields", [{}, {"content_length": 5, "content_range": "bytes 0-4/9"}, {"content_length": None}]
)
def test_a_head_that_tells_no_size(fields: dict[str, object]):
    """The length of a part is not that of the object: the first byte is asked for, at no attempt."""
    head = HeadObject(bucket(), "key")
    told = {"content_length": None, "etag": '"e"', **fields}
    error = answer(head, 200, **told)
    assert isinstance(error, ProtocolError)
    head.attempts = 1
    assert head.recover(error)
    assert head.attempts == 0
    assert b"range: bytes=0-0" in bytes(head.request()[0])
    assert answer(head, 206, b"x", content_range="bytes 0-0/9", etag='"e"') is None
    assert head.size == 9


def test_an_answer_that_comes_after_the_correction():
    """An answer to an attempt that was sent before a correction leads to another attempt, whatever was signed since."""
    origins = {region: Origin("http", f"{region}.test", 80) for region in ("here", "there")}
    endpoints = {region: Endpoint(each, "h", "") for region, each in origins.items()}
    session: Any = SimpleNamespace(
        region=lambda: "here",
        endpoint=lambda _, region: endpoints[region],
        credentials=lambda: None,
        proxy=lambda _: None,
    )
    where = Bucket("bucket", lambda: session, "test")
    operation = DeleteObject(where, "key")
    operation.request()
    reading = operation.response(Inbox())
    room = next(reading)
    assert where.correct(RegionError("There.", region="there"), {}, 0)  # what another answer has told
    operation.aim()  # as for a second request beside it
    head = b"HTTP/1.1 301 -\r\ncontent-length: 0\r\nx-amz-bucket-region: there\r\n\r\n"
    room[: len(head)] = head
    with pytest.raises(StopIteration) as end:
        reading.send(len(head))
    assert isinstance(end.value.value, RegionError)
    assert operation.recover(end.value.value)
    assert operation.origin.host == "there.test"


def test_a_request_that_was_queued_before_a_correction():
    """A request is signed as is right when it is sent, if that goes to the same address; else for its own address."""
    origins = {"here": Origin("http", "same.test", 80), "near": Origin("http", "same.test", 80)}
    origins["far"] = Origin("http", "far.test", 80)
    endpoints = {region: Endpoint(each, region, "") for region, each in origins.items()}
    session: Any = SimpleNamespace(
        region=lambda: "here",
        endpoint=lambda _, region: endpoints[region],
        credentials=lambda: None,
        proxy=lambda _: None,
    )
    where = Bucket("bucket", lambda: session, "test")
    operation = DeleteObject(where, "key")
    assert where.correct(RegionError("Near.", region="near"), {}, 0)
    assert b"host: near\r\n" in bytes(operation.request()[0])
    assert where.correct(RegionError("Far.", region="far"), {}, 1)
    assert b"host: near\r\n" in bytes(operation.request()[0])
    operation.aim()
    assert b"host: far\r\n" in bytes(operation.request()[0])
