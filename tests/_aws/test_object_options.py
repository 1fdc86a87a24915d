"""What can be said about an object when it is stored."""

from __future__ import annotations

from typing import Any

import pytest

from s3torch._aws.object_options import ObjectOptions
from s3torch.errors import ArgumentError, ArgumentTypeError

ALL: dict[str, Any] = {
    "storage_class": "STANDARD_IA",
    "metadata": {"Epoch": "7", "loss": "0.25"},
    "content_type": "application/zip",
    "server_side_encryption": "aws:kms",
    "sse_kms_key_id": "key",
    "if_none_match": True,
}


def test_nothing_is_sent_that_was_not_given():
    """Without options the service decides."""
    assert ObjectOptions().fields() == {}
    assert ObjectOptions().fields_to_create() == {}
    assert ObjectOptions().fields_to_complete() == {}


def test_fields():
    """Header fields have the names of the S3 API; names of metadata are in lower case, as S3 returns them."""
    assert ObjectOptions(**ALL).fields() == {
        "x-amz-storage-class": "STANDARD_IA",
        "content-type": "application/zip",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "key",
        "if-none-match": "*",
        "x-amz-meta-epoch": "7",
        "x-amz-meta-loss": "0.25",
    }


def test_fields_of_an_upload():
    """An upload is created with the same options; whether it may replace an object is asked when it is completed."""
    options = ObjectOptions(**ALL)
    assert options.fields_to_complete() == {"if-none-match": "*"}
    assert {**options.fields_to_create(), "if-none-match": "*"} == options.fields()
    assert "if-none-match" not in options.fields_to_create()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"storage_class": 1}, ArgumentTypeError, "storage_class must be a str"),
        ({"storage_class": "A\r\nB: c"}, ArgumentError, "printable ASCII"),
        ({"content_type": b"text"}, ArgumentTypeError, "content_type must be a str"),
        ({"content_type": "text\n"}, ArgumentError, "printable ASCII"),
        ({"if_none_match": "*"}, ArgumentTypeError, "if_none_match must be a bool"),
        ({"server_side_encryption": "AES"}, ArgumentError, "one of AES256, aws:kms, aws:kms:dsse"),
        ({"sse_kms_key_id": "key"}, ArgumentError, "needs server_side_encryption='aws:kms'"),
        ({"sse_kms_key_id": "key", "server_side_encryption": "AES256"}, ArgumentError, "needs server_side_encryption"),
        ({"metadata": [("a", "b")]}, ArgumentTypeError, "mapping of str to str"),
        ({"metadata": {"a": 1}}, ArgumentTypeError, "mapping of str to str"),
        ({"metadata": {1: "a"}}, ArgumentTypeError, "mapping of str to str"),
        ({"metadata": {"a:b": "c"}}, ArgumentError, "cannot be named 'a:b'"),
        ({"metadata": {"": "c"}}, ArgumentError, "cannot be named ''"),
        ({"metadata": {"a\r\nb": "c"}}, ArgumentError, "cannot be named"),
        ({"metadata": {"a": "é"}}, ArgumentError, "printable ASCII"),
        ({"metadata": {"a": " b"}}, ArgumentError, "without spaces around"),
        ({"metadata": {"a": "b\r\nc: d"}}, ArgumentError, "printable ASCII"),
        ({"metadata": {"a": "1", "A": "2"}}, ArgumentError, "differ by case only"),
        ({"metadata": {"a": "x" * 2048}}, ArgumentError, "2049 bytes: S3 takes at most 2048"),
    ],
)
def test_what_cannot_be(options, kind, message):
    """What cannot be sent is refused before anything is."""
    with pytest.raises(kind, match=message):
        ObjectOptions(**options)
