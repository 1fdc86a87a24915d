"""What is known of an upload after an answer to the request that completes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from s3torch._aws.multipart import (
    CompleteMultipartUpload,
    CreateMultipartUpload,
    UploadedPart,
    complete,
    multipart_etag,
)
from s3torch._aws.operations import Operation
from s3torch.errors import ProtocolError, S3Error, ServerError

from .answering import answer, bucket


def completing() -> CompleteMultipartUpload:
    """Return a request that was not sent yet."""
    return CompleteMultipartUpload(bucket(), "key", "upload", {1: UploadedPart('"etag"', 5)})


def test_nothing_was_sent():
    """What was not sent was not carried out."""
    assert not completing().may_be_done


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_answers_of_a_gateway(status: int):
    """A server error does not say what became of the request: the upload may be complete."""
    complete = completing()
    assert answer(complete, status) is not None
    assert complete.may_be_done


@pytest.mark.parametrize("status", [301, 400, 403, 404, 412, 499])
def test_refusals(status: int):
    """A refusal says for certain that this request was not carried out."""
    complete = completing()
    assert answer(complete, status) is not None
    assert not complete.may_be_done
    complete.request()
    assert complete.may_be_done  # nothing is known of the one that was sent last


def test_a_refusal_after_a_lost_answer():
    """That a second request is refused says nothing of the first one."""
    complete = completing()
    complete.request()
    assert answer(complete, 404) is not None
    assert complete.may_be_done


def test_an_answer_that_fails_with_200():
    """The error in a body that was announced as a success is a refusal only if its kind is."""
    complete = completing()
    assert answer(complete, 200, b"<Error><Code>InternalError</Code><Message>Try again.</Message></Error>") is not None
    assert answer(complete, 200, b"<CompleteMultipartUploadResult/>") is None


@pytest.mark.parametrize("told", [b"", b"<UploadId></UploadId>", b"<Other>5</Other>"])
def test_an_upload_without_a_name(told: bytes):
    """An upload that is not named cannot be used."""
    body = b"<InitiateMultipartUploadResult>" + told + b"</InitiateMultipartUploadResult>"
    assert isinstance(answer(CreateMultipartUpload(bucket(), "key"), 200, body), ProtocolError)


def test_a_named_upload():
    """What the answer tells of an upload is kept."""
    create = CreateMultipartUpload(bucket(), "key")
    body = b"<InitiateMultipartUploadResult><UploadId>a&amp;b</UploadId></InitiateMultipartUploadResult>"
    told = {"x_amz_checksum_algorithm": "CRC32", "x_amz_checksum_type": "FULL_OBJECT"}
    assert answer(create, 200, body, date="Thu, 01 Jan 1970 00:01:40 GMT", **told) is None
    assert (create.upload_id, create.began) == ("a&b", 100.0)
    assert (create.checksum_algorithm, create.checksum_type) == ("CRC32", "FULL_OBJECT")


class Engine:
    """Hands each request the next of some answers, a status and fields; notes which requests came."""

    def __init__(self, *answers: tuple[int, dict[str, object]]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def run(self, operations: Sequence[Operation]) -> None:
        (operation,) = operations
        self.asked.append(operation.name)
        status, fields = self._answers.pop(0)
        error = answer(operation, status, **fields)
        if error is not None:
            raise error


MD5S = [f'"{number:032x}"' for number in (1, 2)]
BEGAN = 100.0
BEFORE, THEN, AFTER = (f"Thu, 01 Jan 1970 00:01:{second} GMT" for second in (39, 40, 41))


def completed(etags: list[str], began: float | None = BEGAN, **stored: object) -> list[str]:
    """Complete an upload of two parts of 5 bytes, whose only answer is a gateway's; returns which requests came.

    Args:
        etags: Of the parts.
        began: When the upload was begun.
        stored: What HeadObject answers.
    """
    engine: Any = Engine((504, {}), (200, {"content_length": 10, **stored}))
    complete(
        engine,
        bucket(),
        "key",
        "upload",
        {number: UploadedPart(etag, 5) for number, etag in enumerate(etags, 1)},
        began,
    )
    return engine.asked


@pytest.mark.parametrize(
    ("etags", "stored"),
    [
        (MD5S, {"etag": multipart_etag(MD5S)}),
        (MD5S, {"etag": multipart_etag(MD5S), "last_modified": BEFORE}),
        (["a", "b"], {"etag": '"c"', "last_modified": THEN}),
        (["a", "b"], {"etag": '"c"', "last_modified": AFTER}),
    ],
)
def test_what_is_stored_is_the_upload(etags: list[str], stored: dict[str, object]):
    """By its ETag where that can be told, else by size and time, the object is known for the upload: that is enough."""
    assert completed(etags, **stored) == ["CompleteMultipartUpload", "HeadObject"]


@pytest.mark.parametrize(
    ("etags", "stored"),
    [
        (MD5S, {"etag": multipart_etag(MD5S[::-1]), "last_modified": AFTER}),
        (MD5S, {"last_modified": AFTER}),
        (MD5S, {"etag": multipart_etag(MD5S), "content_length": 11}),
        (["a", "b"], {"last_modified": BEFORE}),
        (["a", "b"], {"etag": '"c"'}),
        (["a", "b"], {"last_modified": AFTER, "began": None}),
        (["a", "b"], {"last_modified": AFTER, "content_length": 9}),
        (["a", MD5S[1]], {"etag": multipart_etag(MD5S[1:]), "last_modified": BEFORE}),
    ],
)
def test_what_is_stored_is_another_object(etags: list[str], stored: dict[str, object]):
    """An object that may be another one does not pass for the upload."""
    with pytest.raises(ServerError, match="has another size, ETag or time"):
        completed(etags, **stored)


def test_nothing_is_stored():
    """Where no object is, what failed has failed, and nothing is said of an object."""
    engine: Any = Engine((504, {}), (404, {}))
    with pytest.raises(ServerError) as raised:
        complete(engine, bucket(), "key", "upload", {1: UploadedPart("a", 5)}, BEGAN)
    assert "object that is there" not in str(raised.value)
    assert engine.asked == ["CompleteMultipartUpload", "HeadObject"]


def test_a_refused_upload_is_not_looked_for():
    """An upload that was refused for certain was not completed by us, whatever object is there."""
    engine: Any = Engine((404, {}))
    with pytest.raises(S3Error):
        complete(engine, bucket(), "key", "upload", {1: UploadedPart("a", 5)}, BEGAN)
    assert engine.asked == ["CompleteMultipartUpload"]


def test_nobody_can_tell_what_is_stored():
    """If the object cannot be looked at, the error says that it may be there."""
    engine: Any = Engine((504, {}), (403, {}))
    with pytest.raises(ServerError, match=r"is not known, as asking for it failed, too: .*403"):
        complete(engine, bucket(), "key", "upload", {1: UploadedPart("a", 5)}, BEGAN)


def test_an_upload_that_is_gone():
    """The error of an upload that does not exist any more says what may have become of it."""
    error = answer(completing(), 404, b"<Error><Code>NoSuchUpload</Code></Error>")
    assert "does not exist any more: it was aborted" in str(error)
