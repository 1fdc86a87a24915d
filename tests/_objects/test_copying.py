"""Copies within the service: by one request, or in parts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.copying import CopySource
from s3torch._objects import copying
from s3torch.errors import (
    ArgumentError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
    ProtocolError,
    RequestError,
    S3Error,
    ServerError,
)
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import Objects, operation_of, s3_error
from s3torch.testing.faulty.wire import Request, Wire

LIMIT = 10_000
CONTENT = os.urandom(2 * LIMIT + 5_500)
Change = Callable[[Request, Wire], bool]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request copies 10,000 bytes at most, in parts of 4,000."""
    monkeypatch.setattr(copying, "_MOST_OF_ONE_REQUEST", LIMIT)
    monkeypatch.setattr(copying, "_PART_SIZE", 4_000)


@pytest.mark.parametrize(("etag", "sent"), [('"e"', '"e"'), ('W/"e"', None), ("e", None), (None, None)])
def test_only_a_strong_etag_pins_what_is_copied(etag: str | None, sent: str | None):
    """If-Match compares strongly: a weak ETag, or one without quotes, would never match."""
    fields = CopySource("bucket", "key", etag=etag).fields()
    assert fields.get("x-amz-copy-source-if-match") == sent


@contextlib.contextmanager
def serving(change: Change = lambda request, wire: False, code: str = "InvalidRequest") -> Iterator[tuple]:
    """Yield a bucket, its requests by operation, and a client of it; ``change`` may answer a request by itself."""
    objects = Objects("bucket", {"large": CONTENT, "small": b"content"})
    log: list[str] = []

    def handler(request: Request, wire: Wire) -> None:
        log.append(operation_of(request))
        source = objects._source_of(request) if "x-amz-copy-source" in request.headers else None
        if change(request, wire):
            return
        if log[-1] == "CopyObject" and source is not None and len(objects[source]) > LIMIT:
            wire.respond(
                400, {}, s3_error(code, "The specified copy source is larger than the maximum allowable size.")
            )
            return
        answer = objects.answer(request)
        fields = dict(answer.fields)
        if log[-1] == "HeadObject":
            fields |= {"Content-Type": "text/plain", "x-amz-meta-Run": "7", "Cache-Control": "no-store"}
        wire.respond(answer.status, fields, answer.body)

    with ScriptedServer(handler) as server:
        config = S3ClientConfig(unsigned=True, max_attempts=3)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        yield objects, log, client, server
        client.close()


def test_one_request():
    """A copy is one request, which names its source."""
    with serving() as (objects, log, client, server):
        client.copy_object("bucket", "small", "bucket", "to/ü", version_id="v/1")
        assert (log, objects["to/ü"]) == (["CopyObject"], b"content")
        assert server.requests[0].headers["x-amz-copy-source"] == "bucket/small?versionId=v%2F1"
        assert server.requests[0].headers["content-length"] == "0"


@pytest.mark.parametrize("code", ["InvalidRequest", "EntityTooLarge", "InvalidArgument"])
def test_in_parts(code: str):
    """An object that is too large for one request is copied in parts, all of one version, with what it is kept with."""
    with serving(code=code) as (objects, log, client, server):
        client.copy_object("bucket", "large", "bucket", "copy")
        assert objects["copy"] == CONTENT
        assert log[:3] == ["CopyObject", "HeadObject", "CreateMultipartUpload"]
        assert sorted(log[3:]) == ["CompleteMultipartUpload", "HeadObject", *["UploadPartCopy"] * 7]
        assert log[-2:] == ["HeadObject", "CompleteMultipartUpload"]
        assert not objects.uploads
        begun = server.requests[2].headers
        kept = ("content-type", "x-amz-meta-run", "cache-control")
        assert [begun[name] for name in kept] == ["text/plain", "7", "no-store"]
        parts = [each for each in server.requests if operation_of(each) == "UploadPartCopy"]
        assert {part.headers["x-amz-copy-source-if-match"] for part in parts} == {objects._stored["large"][1]}
        numbers = sorted(int(parse_qs(urlsplit(part.target).query)["partNumber"][0]) for part in parts)
        assert numbers == list(range(1, 8))


def test_a_size_that_is_not_in_the_head():
    """Where the answer to HEAD has no length, that of the first byte is not the object's size."""

    def change(request: Request, wire: Wire) -> bool:
        if operation_of(request) == "HeadObject":
            wire.respond(200, {"ETag": '"e"', "Content-Length": None})
        return operation_of(request) == "HeadObject"

    with serving(change) as (objects, log, client, _):
        client.copy_object("bucket", "large", "bucket", "copy")
        assert objects["copy"] == CONTENT
        assert log[:4] == ["CopyObject", "HeadObject", "GetObject", "CreateMultipartUpload"]


def test_another_refusal():
    """What is refused for another reason is not copied in parts."""

    def refuse(request: Request, wire: Wire) -> bool:
        if operation_of(request) == "CopyObject":
            wire.respond(400, {}, s3_error("InvalidRequest", "This copy request is illegal."))
        return operation_of(request) == "CopyObject"

    with serving(refuse) as (_, log, client, _), pytest.raises(RequestError, match="is illegal"):
        client.copy_object("bucket", "small", "bucket", "small")
    assert log == ["CopyObject", "HeadObject"]


def at(operation: str, body: bytes, status: int = 200, times: int = 99) -> Change:
    """Return what answers an operation by this body."""
    left = [times]

    def change(request: Request, wire: Wire) -> bool:
        if operation_of(request) != operation or not left[0]:
            return False
        left[0] -= 1
        wire.respond(status, {"ETag": '"e"'}, body)
        return True

    return change


@pytest.mark.parametrize(
    ("body", "error", "requests"),
    [
        (s3_error("InternalError", "We encountered an internal error."), ServerError, 3),
        (s3_error("AccessDenied"), S3Error, 1),
        (b"", ProtocolError, 3),
        (b"   \n ", ProtocolError, 3),
        (b"<html><title>Log in</title></html>", ProtocolError, 3),
        (b"<CopyObjectResults/>", ProtocolError, 3),
        (b"<CopyObjectResult/>", ProtocolError, 3),
        (b"<CopyPartResult><ETag></ETag></CopyPartResult>", ProtocolError, 3),
    ],
)
@pytest.mark.parametrize(("operation", "key"), [("CopyObject", "small"), ("UploadPartCopy", "large")])
def test_answers_of_status_200_that_are_errors(operation: str, key: str, body: bytes, error: type, requests: int):
    """Status 200 says nothing of a copy: without a result in its body it has failed, and no part is left."""
    with serving(at(operation, body)) as (objects, log, client, _):
        with pytest.raises(error):
            client.copy_object("bucket", key, "bucket", "copy")
        assert "copy" not in objects
        assert not objects.uploads
        assert operation != "CopyObject" or log.count(operation) == requests


@pytest.mark.parametrize(("operation", "key"), [("CopyObject", "small"), ("UploadPartCopy", "large")])
def test_errors_in_passing(operation: str, key: str):
    """What has failed with status 200 is sent again."""
    with serving(at(operation, s3_error("InternalError"), times=1)) as (objects, _, client, _):
        client.copy_object("bucket", key, "bucket", "copy")
        assert objects["copy"] == objects[key]


def test_replaced_meanwhile():
    """An object that is replaced while its parts are copied is an error, and no part is left."""

    def replace(request: Request, wire: Wire) -> bool:
        del wire
        if operation_of(request) == "UploadPartCopy" and "partNumber=3" in request.target:
            served["large"] = bytes(len(CONTENT))
        return False

    with serving(replace) as (served, _, client, _):
        with pytest.raises(ObjectChangedError, match="was replaced while it was copied"):
            client.copy_object("bucket", "large", "bucket", "copy")
        assert "copy" not in served
        assert not served.uploads


@pytest.mark.parametrize("is_weak", [True, False])
def test_replaced_meanwhile_where_nothing_is_compared(is_weak: bool):
    """So it is where a server ignores the condition, or writes ETags that cannot stand in one."""
    version = [1]

    def replace(request: Request, wire: Wire) -> bool:
        request.headers.pop("x-amz-copy-source-if-match", None)
        if operation_of(request) == "UploadPartCopy" and "partNumber=3" in request.target:
            served["large"], version[0] = bytes(len(CONTENT)), 2
        if operation_of(request) != "HeadObject":
            return False
        etag = f'{"W/" if is_weak else ""}"{version[0]}"'
        wire.respond(200, {"ETag": etag, "Content-Length": str(len(CONTENT))})
        return True

    with serving(replace) as (served, _, client, _):
        with pytest.raises(ObjectChangedError, match="was replaced while it was copied"):
            client.copy_object("bucket", "large", "bucket", "copy")
        assert "copy" not in served
        assert not served.uploads


def test_nothing_to_copy():
    """The error names the source."""
    with (
        serving() as (_, _, client, _),
        pytest.raises(ObjectNotFoundError, match=r"s3://bucket/no, which was") as caught,
    ):
        client.copy_object("bucket", "no", "bucket", "copy")
    assert (caught.value.bucket, caught.value.key) == ("bucket", "no")


@pytest.mark.parametrize(
    ("source", "field"),
    [
        (CopySource("b", "a b/ü?&~"), "b/a%20b/%C3%BC%3F%26~"),
        (CopySource("b", "k", "v=1"), "b/k?versionId=v%3D1"),
        (
            CopySource("arn:aws:s3:us-east-1:123456789012:accesspoint/name", "k/l"),
            "arn%3Aaws%3As3%3Aus-east-1%3A123456789012%3Aaccesspoint/name/object/k/l",
        ),
    ],
)
def test_sources(source: CopySource, field: str):
    """A source is named as the S3 API wants it: percent-encoded, a version behind it, an ARN with its resource."""
    assert source.fields() == {"x-amz-copy-source": field}
    assert unquote(field).startswith(source.bucket)


def test_keys_that_cannot_be_sent():
    """A key that is no Unicode text is refused before anything is sent."""
    with pytest.raises(ArgumentError, match="cannot be sent"):
        CopySource("b", "\ud800").fields()
    assert issubclass(InvalidURIError, ArgumentError)
