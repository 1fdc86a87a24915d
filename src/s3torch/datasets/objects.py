"""The objects of a dataset: a compact table of them, and where it comes from."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from s3torch._aws.listing import ObjectInfo
from s3torch.client import S3Client
from s3torch.errors import ArgumentTypeError
from s3torch.uri import parse_s3_uri

__all__ = ["ObjectTable", "S3BucketKeyData", "list_prefix", "table_of_uris"]

_log = logging.getLogger(__name__)

_UNKNOWN_SIZE = -1
_PAGES_BETWEEN_MESSAGES = 100


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


class ObjectTable:
    """An immutable sequence of objects in a few contiguous arrays.

    A list of ten million Python objects would be copied page by page into every forked DataLoader worker, as reference
    counts are touched. Here an object is its key's bytes and 20 bytes more. Of a listing's facts only the size is kept.

    Args:
        objects: To be held, in order.
    """

    __slots__ = ("_bucket_of", "_buckets", "_ends", "_keys", "_sizes")

    def __init__(self, objects: Iterable[S3BucketKeyData] = ()) -> None:
        keys = bytearray()
        self._ends = array("Q")
        self._sizes = array("q")
        self._bucket_of = array("I")
        numbers: dict[str, int] = {}
        for bucket, key, object_info in objects:
            keys += key.encode("utf-8", "surrogatepass")
            self._ends.append(len(keys))
            self._sizes.append(_UNKNOWN_SIZE if object_info is None else object_info.size)
            self._bucket_of.append(numbers.setdefault(bucket, len(numbers)))
        self._keys = bytes(keys)
        self._buckets = list(numbers)

    def __repr__(self) -> str:
        return f"<ObjectTable of {len(self)} objects in {len(self._buckets)} buckets>"

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[S3BucketKeyData]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> S3BucketKeyData:
        """Return one object; negative indices count from the end.

        Raises:
            IndexError: There is no such object.
        """
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"list index out of range: there are {len(self)} objects")
        start = self._ends[index - 1] if index else 0
        key = self._keys[start : self._ends[index]].decode("utf-8", "surrogatepass")
        size = self._sizes[index]
        info = None if size == _UNKNOWN_SIZE else ObjectInfo(key, "", size, 0)
        return S3BucketKeyData(self._buckets[self._bucket_of[index]], key, info)


def table_of_uris(object_uris: str | Iterable[str]) -> ObjectTable:
    """Return the objects that URIs name; a single string is one URI.

    Raises:
        InvalidURIError: One is not of the form ``s3://bucket/key``.
        ArgumentTypeError: It is neither a string nor an iterable of strings.
    """
    uris = [object_uris] if isinstance(object_uris, str) else object_uris
    if not isinstance(uris, Iterable):
        raise ArgumentTypeError(f"object_uris must be an S3 URI or an iterable of them, got {object_uris!r}.")
    return ObjectTable(S3BucketKeyData(*parse_s3_uri(uri)) for uri in uris)


def list_prefix(client: S3Client, bucket: str, prefix: str) -> Iterator[S3BucketKeyData]:
    """Yield the objects under a prefix. Markers of directories (0-byte keys that end in ``/``) are left out.

    Raises:
        BucketNotFoundError: There is no such bucket.
        S3Error: The listing failed otherwise.
    """
    pages = client.list_objects(bucket, prefix)
    pages.look_ahead = True
    for number, page in enumerate(pages, 1):
        if number % _PAGES_BETWEEN_MESSAGES == 0:
            _log.info("Listing s3://%s/%s: %d pages of up to 1000 keys so far", bucket, prefix, number)
        for info in page.object_info:
            if info.size or not info.key.endswith("/"):
                yield S3BucketKeyData(bucket, info.key, info)
