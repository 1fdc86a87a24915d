"""What is known of an upload after an answer to the request that completes it."""

from __future__ import annotations

import pytest

from s3torch._aws.multipart import CompleteMultipartUpload, UploadedPart

from .answering import answer, bucket


def completing() -> CompleteMultipartUpload:
    """Return a request that was not sent yet."""
    return CompleteMultipartUpload(bucket(), "key", "upload", [UploadedPart('"etag"', 5)])


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
