"""Tests of S3 URIs: the bucket is found, and the key is taken as it stands."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.errors import ArgumentTypeError, InvalidURIError
from s3torch.uri import parse_checkpoint_uri, parse_s3_uri, parse_version_uri


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket/key", "bucket", "key"),
        ("s3://bucket/a/b/c.tar", "bucket", "a/b/c.tar"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket//", "bucket", "/"),
        ("s3://bucket//key", "bucket", "/key"),
        ("s3://bucket/a//b/", "bucket", "a//b/"),
        ("s3://bucket/../a/./b", "bucket", "../a/./b"),
        ("s3://bucket/a?b#c", "bucket", "a?b#c"),
        ("s3://bucket/a%20b+c", "bucket", "a%20b+c"),
        ("s3://bucket/s3://other/key", "bucket", "s3://other/key"),
        ("s3://bucket/ a\n", "bucket", " a\n"),
        ("s3://bucket/ключ", "bucket", "ключ"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint:p/key", "arn:aws:s3:eu-west-1:1:accesspoint:p", "key"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint:p/k/l", "arn:aws:s3:eu-west-1:1:accesspoint:p", "k/l"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/p/k/l", "arn:aws:s3:eu-west-1:1:accesspoint/p", "k/l"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/p", "arn:aws:s3:eu-west-1:1:accesspoint/p", ""),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/p/", "arn:aws:s3:eu-west-1:1:accesspoint/p", ""),
        ("s3://arn:aws-cn:s3::1:accesspoint/x.mrap//k", "arn:aws-cn:s3::1:accesspoint/x.mrap", "/k"),
        ("s3://arn:aws:s3::1:accesspoint:x.mrap/k", "arn:aws:s3::1:accesspoint:x.mrap", "k"),
        ("s3://arn:aws:s3-object-lambda:r:1:accesspoint/p/k", "arn:aws:s3-object-lambda:r:1:accesspoint/p", "k"),
        (
            "s3://arn:aws:s3-outposts:r:1:outpost/op/accesspoint/p/k",
            "arn:aws:s3-outposts:r:1:outpost/op/accesspoint/p",
            "k",
        ),
        (
            "s3://arn:aws:s3-outposts:r:1:outpost:op:accesspoint:p/k",
            "arn:aws:s3-outposts:r:1:outpost:op:accesspoint:p",
            "k",
        ),
        ("s3://arn:aws:s3:::bucket/key", "arn:aws:s3:::bucket", "key"),
        ("s3://bucket/arn:aws:s3:r:1:accesspoint/p/k", "bucket", "arn:aws:s3:r:1:accesspoint/p/k"),
        ("s3://name-123-s3alias/key", "name-123-s3alias", "key"),
        ("s3://bucket/key?versionId=abc", "bucket", "key?versionId=abc"),
    ],
)
def test_parts(uri: str, bucket: str, key: str):
    """The bucket ends at the first slash; everything behind it is the key, literally."""
    assert parse_s3_uri(uri) == (bucket, key)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/key?versionId=3sL4kqt.J_l-c", ("bucket", "key", "3sL4kqt.J_l-c")),
        ("s3://bucket/a?b?versionId=1", ("bucket", "a?b", "1")),
        ("s3://bucket/k?versionId=1?versionId=2", ("bucket", "k?versionId=1", "2")),
        ("s3://arn:aws:s3:r:1:accesspoint/p/k?versionId=v", ("arn:aws:s3:r:1:accesspoint/p", "k", "v")),
        ("s3://bucket/key?versionId=", ("bucket", "key?versionId=", None)),
        ("s3://bucket/key?versionId=a b", ("bucket", "key?versionId=a b", None)),
        ("s3://bucket/key?versionId=a&x=y", ("bucket", "key?versionId=a&x=y", None)),
        ("s3://bucket/key?versionid=a", ("bucket", "key?versionid=a", None)),
        ("s3://bucket/?versionId=a", ("bucket", "?versionId=a", None)),
        ("s3://bucket?versionId=a", ("bucket?versionId=a", "", None)),
        ("s3://bucket/key", ("bucket", "key", None)),
    ],
)
def test_versions(uri: str, expected: tuple[str, str, str | None]):
    """A version is what stands behind the last ?versionId=, at the very end; all else belongs to the key."""
    assert parse_version_uri(uri) == expected


def test_a_version_cannot_be_written():
    """No checkpoint is saved under a key that would name a version when it is loaded."""
    with pytest.raises(InvalidURIError, match="names a version"):
        parse_checkpoint_uri("s3://bucket/key?versionId=abc")
    assert parse_checkpoint_uri("s3://bucket/key?version=abc") == ("bucket", "key?version=abc")


@given(st.text(min_size=1).filter(lambda bucket: "/" not in bucket), st.text())
def test_round_trip(bucket: str, key: str):
    """Any bucket without a slash and any key come back from their URI."""
    assert parse_s3_uri(f"s3://{bucket}/{key}") == (bucket, key)


@pytest.mark.parametrize(
    "uri",
    ["", "bucket/key", "/bucket/key", "https://bucket/key", "S3://bucket/key", "s3a://b/k", "s3:/b/k", " s3://b/k"],
)
def test_another_scheme(uri: str):
    """What does not begin with s3:// is refused, and the error shows it."""
    with pytest.raises(InvalidURIError) as caught:
        parse_s3_uri(uri)
    assert str(caught.value) == f"Only s3:// URIs are supported, got {uri!r}. Write 's3://bucket/key'."


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "s3:///key"])
def test_no_bucket(uri: str):
    """A URI without a bucket is refused, and the error shows it."""
    with pytest.raises(InvalidURIError) as caught:
        parse_s3_uri(uri)
    assert str(caught.value) == f"Bucket name must be non-empty, got {uri!r}. Write 's3://bucket/key'."


@pytest.mark.parametrize("uri", ["s3://bucket/a\ud800", "s3://\udc80/key"])
def test_lone_surrogates(uri: str):
    """What no request can hold is refused, and the error says why."""
    with pytest.raises(InvalidURIError) as caught:
        parse_s3_uri(uri)
    assert str(caught.value) == f"The URI {uri!r} cannot be sent: surrogates not allowed. It must be valid Unicode."


@pytest.mark.parametrize("uri", [None, 7, b"s3://bucket/key", PurePosixPath("s3://bucket/key"), ["s3://bucket/key"]])
def test_not_a_string(uri: object):
    """What is no string is an error of type, and the error shows it."""
    with pytest.raises(ArgumentTypeError) as caught:
        parse_s3_uri(uri)
    assert str(caught.value) == f"An S3 URI must be a str such as 's3://bucket/key', got {uri!r}."
