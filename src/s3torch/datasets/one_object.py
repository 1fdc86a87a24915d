"""One object of a dataset, and many of one bucket in the form in which a table takes them."""

from __future__ import annotations

import operator
from array import array
from typing import Any, NamedTuple

from s3torch._aws.listing import ObjectInfo
from s3torch.datasets.table_file import UNKNOWN_SIZE
from s3torch.errors import ArgumentTypeError

__all__ = ["KeyColumns", "S3BucketKeyData", "taken_apart"]


class S3BucketKeyData(NamedTuple):
    """One object of a dataset.

    Attributes:
        bucket: Of the object.
        key: Of the object.
        object_info: What a listing told of it, or None.
    """

    bucket: str
    key: str
    object_info: ObjectInfo | None = None


class KeyColumns(NamedTuple):
    """Some objects of one bucket, in the form in which a table takes many of them.

    Attributes:
        keys: One after the other, in UTF-8.
        lengths: Of the keys, in bytes.
        sizes: Of the objects, in bytes.
        etags: With their quotes, one after the other, in UTF-8; empty if they are not wanted.
        etag_lengths: Of the ETags, in bytes; None if they are not wanted.
    """

    keys: bytes
    lengths: array[int]
    sizes: array[int]
    etags: bytes = b""
    etag_lengths: array[int] | None = None


def taken_apart(item: Any, *, etags: bool) -> tuple[str, bytes, int, bytes]:  # noqa: ANN401  # whatever a program yields
    """Return bucket, key in UTF-8, size, and ETag of an object; that is empty if it is not wanted."""
    try:
        bucket, key, object_info = item
        size = UNKNOWN_SIZE if object_info is None else operator.index(object_info.size)
        etag = object_info.etag or "" if etags and object_info is not None else ""
        if isinstance(bucket, str) and UNKNOWN_SIZE <= size < 2**63:
            return bucket, key.encode("utf-8", "surrogatepass"), size, etag.encode("utf-8", "surrogatepass")
    except (AttributeError, TypeError, ValueError) as error:
        raise _no_object(item) from error
    raise _no_object(item)


def _no_object(item: object) -> ArgumentTypeError:
    return ArgumentTypeError(f"An object of a dataset must be S3BucketKeyData(bucket, key, object_info), got {item!r}.")
