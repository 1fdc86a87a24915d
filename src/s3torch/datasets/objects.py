"""Where the objects of a dataset come from: URIs, and listings page by page."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from s3torch.client import ListObjectStream, S3Client
from s3torch.datasets.table import KeyColumns, ObjectTable, S3BucketKeyData
from s3torch.errors import ArgumentTypeError, InvalidURIError
from s3torch.uri import parse_s3_uri

__all__ = ["KeyColumns", "ObjectTable", "S3BucketKeyData", "list_prefix", "table_of_uris"]

_log = logging.getLogger(__name__)

_PAGES_BETWEEN_MESSAGES = 100


def table_of_uris(object_uris: str | Iterable[str]) -> ObjectTable:
    """Return the objects that URIs name; a single string is one URI.

    Raises:
        InvalidURIError: One is not of the form ``s3://bucket/key``, or has no key.
        ArgumentTypeError: It is neither a string nor an iterable of strings.
    """
    uris = [object_uris] if isinstance(object_uris, str) else object_uris
    if not isinstance(uris, Iterable):
        raise ArgumentTypeError(f"object_uris must be an S3 URI or an iterable of them, got {object_uris!r}.")
    return ObjectTable(map(_object_at, uris))


def _object_at(uri: str) -> S3BucketKeyData:
    bucket, key = parse_s3_uri(uri)
    if not key:
        raise InvalidURIError(f"A URI of an object must have a key, got {uri!r}. Write 's3://bucket/key'.")
    return S3BucketKeyData(bucket, key)


def list_prefix(client: S3Client, bucket: str, prefix: str) -> Iterator[S3BucketKeyData]:
    """Yield the objects under a prefix. Markers of directories (0-byte keys that end in ``/``) are left out.

    They come as the server lists them, page by page. Directory buckets list in no order, and ranks must agree on one:
    there all pages are waited for, and the objects come in the order of their keys.

    After an error the iterator can be asked again: it asks for the same page again.

    Raises:
        BucketNotFoundError: There is no such bucket.
        S3Error: The listing failed otherwise.
    """
    return _InOneOrder(client.list_objects(bucket, prefix), bucket, prefix)


class _InOneOrder(Iterator[S3BucketKeyData]):
    """The objects of a listing, in an order that another listing has as well. Which bucket it is, is asked lazily."""

    def __init__(self, stream: ListObjectStream, bucket: str, prefix: str) -> None:
        self._stream = stream
        self._listed = _Listed(stream, bucket, prefix)
        self._gathered: list[S3BucketKeyData] = []
        self._ordered: Iterator[S3BucketKeyData] | None = None

    def __next__(self) -> S3BucketKeyData:
        if self._ordered is None:
            self._ordered = self._sorted() if self._stream.is_directory else self._listed
        return next(self._ordered)

    def _sorted(self) -> Iterator[S3BucketKeyData]:
        for item in self._listed:  # after an error it goes on with the page that failed
            self._gathered.append(item)
        return iter(sorted(self._gathered, key=lambda item: item.key.encode()))


class _Listed(Iterator[S3BucketKeyData]):
    """The objects of a listing, page by page. No generator: that would end after an error, as if all had come."""

    def __init__(self, stream: ListObjectStream, bucket: str, prefix: str) -> None:
        stream.look_ahead = True
        self._pages = iter(stream)
        self._bucket = bucket
        self._where = f"s3://{bucket}/{prefix}"
        self._count = 0
        self._page: Iterator[S3BucketKeyData] = iter(())

    def __next__(self) -> S3BucketKeyData:
        while (item := next(self._page, None)) is None:
            page = next(self._pages)
            self._count += 1
            if self._count % _PAGES_BETWEEN_MESSAGES == 0:
                _log.info("Listing %s: %d pages of up to 1000 keys so far", self._where, self._count)
            infos = (info for info in page.object_info if info.size or not info.key.endswith("/"))
            self._page = iter([S3BucketKeyData(self._bucket, info.key, info) for info in infos])
        return item
