"""Whether a success is S3's; whole readers and writers are in ``../test_believed_answers.py``."""

from __future__ import annotations

import pytest

from s3torch._aws.proof import Shows, must_be_s3, must_be_s3_document, root_of
from s3torch._transfer.http1 import Head

OBJECT, STORED, LISTED, NOTHING = Shows(is_object=True), Shows(stores=True), Shows(root="ListBucketResult"), Shows()
HTML = {"content-type": "text/html; charset=utf-8"}


@pytest.mark.parametrize(
    ("shows", "status", "fields", "is_fine"),
    [
        (OBJECT, 200, {}, False),
        (OBJECT, 200, {"x-amz-request-id": "R"}, False),
        (OBJECT, 200, {"etag": '""'}, False),
        (OBJECT, 200, {"etag": '"e"'}, True),
        (OBJECT, 200, {"last-modified": "x"}, True),
        (OBJECT, 206, {"content-range": "bytes 0-1/2"}, True),
        (OBJECT, 200, {"etag": '"e"', **HTML}, False),
        (OBJECT, 206, {"etag": '"e"', "content-range": "bytes 0-1/2", "content-type": "TEXT/HTML"}, False),
        (OBJECT, 200, {"etag": '"e"', "x-amz-id-2": "R", **HTML}, True),
        (OBJECT, 200, {"etag": '"e"', "x-amz-cf-id": "R", **HTML}, False),
        (OBJECT, 200, {"etag": '"e"', "x-goog-generation": "1", **HTML}, True),
        (OBJECT, 200, {"etag": f'"{"a" * 32}"', **HTML}, True),
        (OBJECT, 200, {"etag": f'"{"a" * 32}-10000"', **HTML}, True),
        (OBJECT, 200, {"etag": '"known"', **HTML}, True),
        (OBJECT, 200, {"etag": 'W/"known"', **HTML}, True),
        (STORED, 200, {}, False),
        (STORED, 200, {"etag": ""}, False),
        (STORED, 200, {"etag": "e"}, True),
        (STORED, 206, {"etag": "e"}, False),
        (LISTED, 200, {}, True),
        (LISTED, 206, {}, False),
        (NOTHING, 204, HTML, True),
        (NOTHING, 200, {"content-range": "bytes 0-1/2"}, False),
    ],
)
def test_heads(shows: Shows, status: int, fields: dict[str, str], is_fine: bool):
    """A head is believed if it has what S3's has, and if it is HTML, a mark of S3."""
    assert (must_be_s3(Head(status, "", fields), shows, '"known"') == "") is is_fine


@pytest.mark.parametrize(
    ("shows", "fields", "body", "is_fine"),
    [
        (LISTED, {}, b"<ListBucketResult/>", True),
        (LISTED, HTML, b"<ListBucketResult/>", True),
        (LISTED, {}, b"<ListAllMyBucketsResult/>", False),
        (LISTED, {}, b"", False),
        (LISTED, {}, b"<html/>", False),
        (STORED, HTML, b"", True),
        (STORED, HTML, b"x", False),
        (STORED, {}, b"<html>", False),
        (STORED, {}, b"<Stored/>", True),
        (NOTHING, HTML, b" ", True),
        (NOTHING, {"x-amz-request-id": "R"}, b"<DeleteResult/>", False),
    ],
)
def test_bodies(shows: Shows, fields: dict[str, str], body: bytes, is_fine: bool):
    """A body is believed if it has the root element that is due; where none is due there is none."""
    assert (must_be_s3_document(Head(200, "", fields), shows, body) == "") is is_fine


@pytest.mark.parametrize(
    ("body", "root"),
    [
        (b"", ""),
        (b"Please log in.", ""),
        (b"<a/>", "a"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- it is so -->\n<n:a xmlns:n='u'>", "a"),
        (b" " * 100_000 + b"<a>", "a"),
        (b"<!DOCTYPE html>", "html"),
        (b"<HTML>", "HTML"),
        (b"<?xml?>" * 10_000, ""),
        (b"<", ""),
    ],
)
def test_roots(body: bytes, root: str):
    """The root element is found behind what may stand before it, and in no time."""
    assert root_of(body) == root
