"""A prefix listed into a table: many pages at the same time, and no Python object for each key."""

from __future__ import annotations

import logging
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from s3torch._aws.bucket import Bucket
from s3torch._aws.key_ranges import KeyRange, KeyRanges, UnorderedKeysError
from s3torch._aws.listing import KeyPage, PageChain, folder_of, list_parameters, parse_keys
from s3torch._aws.operations import ListObjectsV2
from s3torch._progress import new_bar
from s3torch.client import S3Client
from s3torch.datasets.objects import KeyColumns, ObjectTable
from s3torch.errors import RequestError, S3Error

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ListingProgress", "list_table"]

_log = logging.getLogger(__name__)

# Pages that are asked for at the same time, within the client's limit of connections. Beyond this the client is the
# limit: a page costs it about a millisecond, and S3 some dozens.
_MAX_REQUESTS = 32
_PAGE_SIZE = 1000
# So end the aliases of access points behind which a program of the bucket's owner answers, in whatever order
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/olap-use.html).
_OBJECT_LAMBDA = "--ol-s3"

_PAGES_BETWEEN_MESSAGES = 100
_SECONDS_BEFORE_BAR = 2.0


def list_table(
    client: S3Client, bucket: str, prefix: str, *, page_size: int = _PAGE_SIZE, etags: bool = False
) -> ObjectTable:
    """Return the objects under a prefix, in the order of their keys; see ``key_ranges`` for how.

    Markers of directories (0-byte keys that end in ``/``) are left out. Where the server does not sort keys as Amazon
    S3 does, they are listed one page after the other and come in its order. Directory buckets (S3 Express One Zone)
    have none, and know no ``start-after``: two listings of one may differ in it, so their keys are sorted here.

    Args:
        client: Sends the requests.
        bucket: To list.
        prefix: Of the keys.
        page_size: Keys of one page, 1 to 1,000.
        etags: Whether the table keeps the ETags, so that readers refuse an object that was replaced since.

    Raises:
        BucketNotFoundError: There is no such bucket.
        S3Error: The listing failed otherwise; no request is under way any more.
    """
    listing = _Listing(client, bucket, prefix, page_size, etags=etags)
    try:
        if listing.is_directory:
            return ObjectTable.of_columns(bucket, [listing.by_folder()])
        try:
            return ObjectTable.of_columns(bucket, listing.by_ranges())
        except UnorderedKeysError:
            _log.info("Listing s3://%s/%s again, one page after the other: it is not sorted", bucket, prefix)
        return ObjectTable.of_columns(bucket, (_columns(page) for page in listing.by_pages()))
    except S3Error as error:
        error.bucket = bucket
        error.args = (f"Listing s3://{bucket}/{prefix} failed: {error.args[0]}",)
        raise


_PageRequest = ListObjectsV2[KeyPage]


class _Listing:
    """The requests of one listing."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, page_size: int, *, etags: bool) -> None:
        self._engine = client._access.engine()
        self._deadline = self._engine.deadline()
        self._bucket = client._access.bucket(bucket)
        self.is_directory = self._bucket.endpoint.is_directory
        self._prefix = prefix
        self._page_size = page_size
        self._etags = etags
        self._max_requests = min(_MAX_REQUESTS, client._access.share.connections)
        self._where = f"s3://{bucket}/{prefix}"

    def by_ranges(self) -> list[KeyColumns]:
        """Return the objects, asked for in ranges of keys side by side.

        Raises:
            UnorderedKeysError: The server does not sort as it must for this.
        """
        ranges = KeyRanges(self._prefix, self._max_requests, is_sorted=_is_known_to_sort(self._bucket))
        columns: dict[KeyRange, list[KeyColumns]] = {}
        pending: dict[_PageRequest, KeyRange] = {}
        progress = ListingProgress(self._where)
        try:
            self._begin(ranges.due(), pending)
            while True:
                if not pending:
                    break
                done = [request for request in pending if request.is_done]
                if not done:
                    self._engine.turn(self._deadline)
                for request in done:
                    key_range = pending[request]
                    if key_range.after and isinstance(request.error, RequestError):
                        raise UnorderedKeysError from request.take_error()  # a server that does not know start-after
                    if request.error is not None:
                        raise request.take_error()
                    del pending[request]
                    page = request.page
                    count = ranges.receive(key_range, page.keys, page.continuation_token)
                    columns.setdefault(key_range, []).append(_columns(page, count))
                    progress.add(count)
                    self._begin(ranges.due(), pending)
        except BaseException:
            self._engine.cancel(pending)
            raise
        finally:
            if pending:
                self._engine.cancel(pending)  # again: an interrupt may have come before the one above
            progress.close()
        return [part for key_range in ranges for part in columns[key_range]]

    def by_folder(self) -> KeyColumns:
        """Return the objects of a directory bucket, sorted: of its folder those that begin with the prefix."""
        begin = self._prefix.encode()
        found = [
            (key, size, etag)
            for page in self.by_pages()
            for key, size, etag in zip(page.keys, page.sizes, page.etags or [b""] * len(page.keys), strict=True)
            if key.startswith(begin)
        ]
        found.sort()
        etags = [etag for _, _, etag in found] if self._etags else None
        return _columns(KeyPage([key for key, _, _ in found], [size for _, size, _ in found], None, etags))

    def by_pages(self) -> Iterator[KeyPage]:
        """Yield the pages, asked for one after the other."""
        progress = ListingProgress(self._where)
        token: str | None = None
        chain = PageChain()
        try:
            while True:
                request = self._request(token=token)
                self._engine.run([request], self._deadline)
                page = request.page
                first = page.keys[0] if page.keys else None
                chain.check(page.continuation_token, is_empty=not page.keys, first=first)
                chain.add(page.continuation_token, is_empty=not page.keys, first=first)
                yield page
                progress.add(len(page.keys))
                token = page.continuation_token
                if token is None:
                    return
        finally:
            progress.close()

    def _begin(self, due: Sequence[KeyRange], pending: dict[_PageRequest, KeyRange]) -> None:
        """Send the requests for the next pages of ranges."""
        for key_range in due:
            request = self._request_of(key_range)
            pending[request] = key_range
            self._engine.submit(request)
        if due:
            self._engine.nudge()

    def _request_of(self, key_range: KeyRange) -> _PageRequest:
        if key_range.is_first_key:
            return self._request(start_after=key_range.after, max_keys=1)
        return self._request(token=key_range.token)

    def _request(self, *, token: str | None = None, start_after: str = "", max_keys: int | None = None) -> _PageRequest:
        prefix = folder_of(self._prefix) if self.is_directory else self._prefix
        query = list_parameters(prefix, "", max_keys or self._page_size, token, start_after)
        return ListObjectsV2(self._bucket, query, partial(parse_keys, etags=self._etags))


def _is_known_to_sort(bucket: Bucket) -> bool:
    """Whether a bucket is listed by the bytes of its keys, as Amazon documents it of its general purpose buckets."""
    is_usual = bucket.endpoint.service == "s3"  # and not on Outposts, nor of Object Lambda
    return bucket.endpoint.is_amazons and is_usual and not bucket.name.endswith(_OBJECT_LAMBDA)


def _columns(page: KeyPage, count: int | None = None) -> KeyColumns:
    """Return the objects of a page in the form of the table, without the markers of directories.

    Args:
        page: Of a listing.
        count: How many of its objects are wanted, from the first on; None is all.
    """
    keys, sizes = page.keys[:count], page.sizes[:count]
    etags = None if page.etags is None else page.etags[:count]
    if 0 in sizes:
        kept = [index for index, size in enumerate(sizes) if size or not keys[index].endswith(b"/")]
        keys, sizes = [keys[index] for index in kept], [sizes[index] for index in kept]
        etags = None if etags is None else [etags[index] for index in kept]
    columns = KeyColumns(b"".join(keys), array("I", map(len, keys)), array("q", sizes))
    if etags is None:
        return columns
    return columns._replace(etags=b"".join(etags), etag_lengths=array("I", map(len, etags)))


class ListingProgress:
    """Tells how far a long listing is: in the log, and on a terminal by a bar.

    The bar appears after two seconds, on stderr, unless ``TQDM_DISABLE`` is set. tqdm is not imported before.

    Args:
        where: What is listed.
        clock: Returns seconds.
    """

    def __init__(self, where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._where = where
        self._clock = clock
        self._begun_at = clock()
        self._pages = 0
        self._keys = 0
        self._bar: tqdm[None] | None = None
        self._wants_bar = os.environ.get("TQDM_DISABLE", "0") in ("", "0") and _is_terminal()

    def add(self, keys: int) -> None:
        """Count a page."""
        self._pages += 1
        self._keys += keys
        if self._pages % _PAGES_BETWEEN_MESSAGES == 0:
            _log.info("Listing %s: %d keys in %d pages so far", self._where, self._keys, self._pages)
        if self._bar is not None:
            self._bar.update(keys)
        elif self._wants_bar and self._clock() - self._begun_at >= _SECONDS_BEFORE_BAR:
            self._bar = self._new_bar()

    def close(self) -> None:
        """Take leave of the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _new_bar(self) -> tqdm[None]:
        bar = new_bar(desc=f"Listing {self._where}", unit=" keys", unit_scale=True)
        bar.start_t -= self._clock() - self._begun_at
        bar.update(self._keys)
        return bar


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
