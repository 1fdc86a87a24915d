"""What the requests make of their answers, one answer at a time."""

from __future__ import annotations

import pytest

from s3torch._aws.operations import GetObject
from s3torch.errors import ObjectChangedError, TruncatedBodyError

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


@pytest.mark.parametrize("etag", ['"old"', None])
def test_rest_of_the_same_version(etag: str | None):
    """The rest may come with the same ETag, or with none."""
    get = cut_read()
    assert answer(get, 206, CONTENT[40:], content_range="bytes 40-99/100", etag=etag) is None
    assert (get.filled, get.total, get.etag) == (100, 100, '"old"')


def test_another_version_than_is_wanted():
    """An answer whose ETag is not the wanted one is refused, although the server was told If-Match and ignores it."""
    get = GetObject(bucket(), "key", 0, 100, memoryview(bytearray(100)), etag='"old"')
    with pytest.raises(ObjectChangedError):
        answer(get, 206, CONTENT, content_range="bytes 0-99/100", etag='"new"')
    assert get.filled == 0


def test_rest_of_another_size():
    """The rest of an object that is longer now is refused, whatever its ETag."""
    get = cut_read()
    with pytest.raises(ObjectChangedError, match="it was 100 bytes long, and is 120 now"):
        answer(get, 206, CONTENT[40:], content_range="bytes 40-99/120", etag='"old"')
