"""Parts of an upload that are under way."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from s3torch import S3ClientConfig
from s3torch._access import Access
from s3torch._aws.object_options import ObjectOptions
from s3torch._objects.upload import MultipartUpload, PartBuffer, _Flying, note_of
from s3torch.errors import ProtocolError
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.wire import Request, Wire
from tests._aws import answering

MiB = 1024 * 1024


@pytest.mark.parametrize("is_free", [True, False])
def test_parts_move_while_the_next_is_written(is_free: bool):
    """Parts are moved on by whoever writes, without waiting; not in the middle of a turn, or in another thread."""
    intervals: list[float] = []
    engine = SimpleNamespace(is_free=is_free, nudge=intervals.append)
    access: Any = SimpleNamespace(engine=lambda: engine)
    nothing: Any = None
    _Flying(access, nothing, nothing).nudge()
    assert len(intervals) == int(is_free)
    assert all(interval > 0 for interval in intervals)


def test_memory_of_a_part_that_has_arrived(client, bucket, key):
    """It is used again at once, though there is room for more parts."""
    upload = MultipartUpload(client._access, bucket, key, ObjectOptions())
    upload.begin(resumes=False)
    first = upload.buffer(5 * MiB)
    first.add(memoryview(bytes(5 * MiB)))
    upload.send(first)
    assert upload.buffer(5 * MiB) is not first
    engine = client._access.engine()
    while engine.pending:
        engine.turn(None)
    assert upload.buffer(5 * MiB) is first
    upload.abort()


def test_an_upload_moves_what_is_under_way():
    """Whoever writes moves the parts that are under way, if there are any."""
    moved: list[float] = []

    def ignore(_: object) -> None:
        pass

    engine = SimpleNamespace(
        is_free=True, nudge=lambda interval=0.0: moved.append(interval), submit=ignore, cancel=ignore
    )
    access: Any = SimpleNamespace(
        engine=lambda: engine,
        bucket=lambda _: answering.bucket(),
        config=S3ClientConfig(),
    )
    upload = MultipartUpload(access, "b", "k", ObjectOptions())
    upload.nudge()
    assert moved == []
    part = PartBuffer(5)
    part.add(memoryview(b"bytes"))
    upload.send(part)
    before = len(moved)
    upload.nudge()
    assert len(moved) == before + 1
    upload.cancel()


def test_a_cancel_that_is_interrupted():
    """An interrupt while parts are cancelled arrives, and all parts are cancelled nevertheless."""
    cancelled: list[object] = []

    def cancel(exchanges: list[object]) -> None:
        cancelled.extend(exchanges)
        if len(cancelled) == 1:
            raise KeyboardInterrupt

    engine = SimpleNamespace(is_free=True, nudge=lambda: None, submit=lambda _: None, cancel=cancel)
    access: Any = SimpleNamespace(engine=lambda: engine, bucket=lambda _: answering.bucket(), config=S3ClientConfig())
    upload = MultipartUpload(access, "b", "k", ObjectOptions())
    for _ in range(2):
        part = PartBuffer(5)
        part.add(memoryview(b"bytes"))
        upload.send(part)
    with pytest.raises(KeyboardInterrupt):
        upload.cancel()
    assert len(set(cancelled)) == 2
    before = len(cancelled)
    upload.cancel()
    assert len(cancelled) == before


def listed_note() -> str:
    """Return the note of an upload without options, as ListParts tells it."""
    note = note_of({"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"})
    etag = hashlib.md5(note, usedforsecurity=False).hexdigest()
    return f"<Part><PartNumber>10000</PartNumber><ETag>{etag}</ETag><Size>{len(note)}</Size></Part>"


def find_parts(*pages: str) -> list[str | None]:
    """Go on with an upload whose parts come in these pages; returns from which part on each page was asked for."""
    markers = []
    answers = list(pages)
    begun = "<Upload><Key>k</Key><UploadId>1</UploadId><Initiated>1970-01-01T00:00:00Z</Initiated></Upload>"

    def handler(request: Request, wire: Wire) -> None:
        query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
        if "uploads" in query:
            wire.respond(200, {}, f"<ListMultipartUploadsResult>{begun}</ListMultipartUploadsResult>".encode())
            return
        assert (request.method, request.path, query["uploadId"]) == ("GET", "/b/k", ["1"])
        markers.append(query.get("part-number-marker", [None])[0])
        page = answers.pop(0)
        note = "" if answers else listed_note()  # the last of all parts
        wire.respond(200, {}, f"<ListPartsResult>{page}{note}</ListPartsResult>".encode())

    with ScriptedServer(handler) as server:
        access = Access(S3ClientConfig(unsigned=True, max_attempts=1), "us-east-1", server.endpoint)
        MultipartUpload(access, "b", "k", ObjectOptions()).begin(resumes=True)
        access.close()
    return markers


_MORE = "<IsTruncated>true</IsTruncated>"
_FIRST = f"{_MORE}<NextPartNumberMarker>2</NextPartNumberMarker>"


@pytest.mark.parametrize("last", ["", "<IsTruncated>false</IsTruncated><NextPartNumberMarker>3</NextPartNumberMarker>"])
def test_pages_of_parts(last: str):
    """Parts are asked for up to the page without more."""
    assert find_parts(_FIRST, last) == [None, "2"]


@pytest.mark.parametrize("marker", ["", "2", "1"])
def test_pages_of_parts_that_lead_nowhere(marker: str):
    """A page that says that there are more, but not where, or leads back, is not taken for the last one."""
    with pytest.raises(ProtocolError, match="not how to get them"):
        find_parts(_FIRST, f"{_MORE}<NextPartNumberMarker>{marker}</NextPartNumberMarker>")


def test_aborting_what_was_not_begun():
    """An upload of which the service knows nothing has nothing to abort."""
    nobody: Any = SimpleNamespace(bucket=lambda _: answering.bucket(), config=S3ClientConfig())
    MultipartUpload(nobody, "b", "k", ObjectOptions()).abort()
