"""A listing, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from s3torch._aws.listing import (
    ListObjectsResult,
    PageChain,
    folder_of,
    list_parameters,
    only_under,
    parse_page,
)
from s3torch._aws.operations import ListObjectsV2
from s3torch._exclusive import exclusive
from s3torch._transfer.scope import LastingScope
from s3torch.errors import ArgumentError

if TYPE_CHECKING:
    from s3torch._access import Access

__all__ = ["ListObjectStream"]


class _PageRead(LastingScope):
    """The request for one page.

    Attributes:
        token: Names the page; None is the first.
        is_begun: Whether it was sent.
    """

    def __init__(self, stream: ListObjectStream, access: Access, token: str | None) -> None:
        super().__init__(access.engine())
        self.token = token
        self.is_begun = False
        bucket = access.bucket(stream.bucket)
        self._is_directory = bucket.endpoint.is_directory
        self._prefix = stream.prefix
        if self._is_directory and stream.delimiter not in ("", "/"):
            raise ArgumentError(
                f"{stream.bucket!r} is a directory bucket, whose keys are grouped by '/' alone, not by "
                f"{stream.delimiter!r}.",
                bucket=stream.bucket,
            )
        # A prefix that is no folder would be refused: what lies in its folder is listed, and the rest left out here.
        listed = folder_of(stream.prefix) if self._is_directory else stream.prefix
        query = list_parameters(listed, stream.delimiter, stream.max_keys, token)
        self._request = ListObjectsV2(bucket, query, parse_page)

    @property
    def is_empty(self) -> bool:
        """Whether the server's page, once it is there, holds nothing."""
        page = self._request.page
        return not (page.object_info or page.common_prefixes)

    @property
    def first(self) -> str | None:
        """The first key of the server's page, once it is there; None if it has none."""
        found = self._request.page.object_info
        return found[0].key if found else None

    def begin(self) -> None:
        """Send it, without waiting. It must be called inside the ``try`` that cancels."""
        self.is_begun = True
        self.submit(self._request)
        self._engine.nudge()

    def finish(self) -> ListObjectsResult:
        """Wait for the page."""
        self.wait()
        page = self._request.page
        return only_under(page, self._prefix) if self._is_directory else page


class ListObjectStream:
    """Iterates over the pages of a listing; each is one request, sent when it is asked for or one page ahead.

    Directory buckets (S3 Express One Zone) are listed in no order, and by folders alone: of a prefix that does not end
    in ``/`` the folder is listed that it lies in, and what does not begin with it is left out. So a page may have few
    objects or none, and there may be more pages than the prefix has objects.

    Attributes:
        bucket: That is listed.
        prefix: Of the keys.
        delimiter: That groups them.
        max_keys: Keys of one page.
        look_ahead: Whether to ask for the next page when one has come, for those who will read all of them.
    """

    def __init__(self, access: Access, bucket: str, prefix: str, delimiter: str, max_keys: int) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.delimiter = delimiter
        self.max_keys = max_keys
        self.look_ahead = False
        self._access = access
        self._position: tuple[str | None, bool] = None, False  # one value, so that an interrupt finds no half of it
        self._chain = PageChain()
        self._begun: _PageRead | None = None
        self._users: dict[int, object] = {}

    def __repr__(self) -> str:
        state = "complete" if self.complete else "more to come"
        return f"<ListObjectStream s3://{self.bucket}/{self.prefix} {state}>"

    @property
    def continuation_token(self) -> str | None:
        """What names the next page, once there was one."""
        return self._position[0]

    @property
    def is_directory(self) -> bool:
        """Whether the bucket is a directory bucket, which is listed in no order."""
        return self._access.bucket(self.bucket).endpoint.is_directory

    @property
    def complete(self) -> bool:
        """Whether the last page was reached."""
        return self._position[1]

    def __iter__(self) -> Iterator[ListObjectsResult]:
        return self

    @exclusive
    def __next__(self) -> ListObjectsResult:
        """Fetch the next page.

        Raises:
            BucketNotFoundError: There is no such bucket.
            ConcurrentUseError: Another thread is in the middle of this.
            ProtocolError: The server sends or names a page twice, or 1,000 pages in a row are empty.
            S3Error: Any other failure; the same page can be asked for again.
        """
        if self.complete:
            raise StopIteration
        read, self._begun = self._begun, None
        # Otherwise: nothing was asked for ahead, or in another thread or process, or a call was interrupted.
        if read is None or not read.is_here or read.token != self.continuation_token:
            read = _PageRead(self, self._access, self.continuation_token)
        following = None
        try:
            if not read.is_begun:
                read.begin()
            page = read.finish()
            token, is_empty, first = page.continuation_token, read.is_empty, read.first
            self._chain.check(token, is_empty=is_empty, first=first)
            if self.look_ahead and token is not None:
                following = _PageRead(self, self._access, token)
                following.begin()
        except BaseException:
            read.cancel()
            if following is not None:
                following.cancel()
            raise
        self._begun = following
        self._position = token, token is None  # only now: whatever was raised before, this page is asked for again
        # Behind that: to the chain the page must not be one that came before.
        self._chain.add(token, is_empty=is_empty, first=first)
        return page

    def _what_is_shared(self) -> str:
        return f"The listing of s3://{self.bucket}/{self.prefix}"
