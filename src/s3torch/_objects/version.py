"""One version of an object: what is known of it, the requests for its parts, and the checks of what they brought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s3torch._aws import etags
from s3torch._aws.operations import GetObject, HeadObject, PlaceRange, unproven
from s3torch._transfer import plan
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch.errors import ArgumentError, ObjectChangedError, ProtocolError

if TYPE_CHECKING:
    from s3torch._access import Access
    from s3torch.config import S3ClientConfig

__all__ = ["ObjectVersion"]


class ObjectVersion:
    """One version of an object.

    The first answer fixes which version that is: all later requests carry its ETag, and an answer of another version
    is an ObjectChangedError. Where a server has no ETags, size and Last-Modified are compared. An answer that does not
    show which version it is of is a ProtocolError, unless no answer does.

    Args:
        access: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        size: In bytes, if known beforehand.
        etag: If known beforehand.
        modified_at: When it was changed, in seconds since the epoch, if known beforehand.
        version_id: The version to read; None for the newest.

    Attributes:
        access: Sends the requests.
        client_config: The client's configuration.
        is_strict: Whether what is read whole must be verified.
        size: In bytes; None while unknown.
        etag: None while unknown.
        modified: The field Last-Modified of its answers, for servers without ETags; None while unknown.
    """

    def __init__(
        self,
        access: Access,
        bucket: str,
        key: str,
        *,
        size: int | None = None,
        etag: str | None = None,
        modified_at: int | None = None,
        version_id: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.key = key
        # That an object is empty is asked again: no read would notice that it has grown since.
        self.size = size or None
        self.etag = etag
        self.modified: str | None = None
        self._modified_at = modified_at
        self._told_size = size
        self._is_answered = False
        self.version_id = version_id
        self.access = access
        self.client_config: S3ClientConfig = access.config
        self.is_strict = access.config.checksums == "strict"

    def learn_size(self) -> int:
        """Return the size in bytes; asks for it (HeadObject) if no answer has told it yet."""
        if self.size is None:
            request = HeadObject(self.access.bucket(self.bucket), self.key, self.version_id)
            self.access.run([request])
            self.observe_head(request)
        if self.size is None:
            raise AssertionError("a HEAD that tells no size")
        return self.size

    def usual_first_byte(self) -> float | None:
        """Return how many seconds the first byte of an answer takes, if nothing is in its way; None if unknown."""
        return PROCESS_FACTS.of(self.access.bucket(self.bucket).endpoint.origin).first_bytes.least()

    def part_size(self, length: int, others: int) -> int:
        """Return how large the parts of a read are to be, while so many other requests are under way."""
        share, usual = self.access.share, self.client_config.part_size
        return plan.part_size_for(length, usual, others, share.connections, share.bytes_in_flight)

    def get(
        self, start: int, stop: int, into: memoryview | Sequence[memoryview] | PlaceRange, *, has_gaps: bool = False
    ) -> GetObject:
        """Return the request for one part; see ``GetObject``."""
        bucket = self.access.bucket(self.bucket)
        return GetObject(
            bucket,
            self.key,
            start,
            stop,
            into,
            etag=self.etag,
            modified=self.modified,
            modified_at=self._modified_at,
            version_id=self.version_id,
            is_whole=bucket.has_checksums and not start and stop == self.size,
            has_gaps=has_gaps,
        )

    def conclude(self, gets: Sequence[GetObject]) -> int:
        """Check that all answers are of one version and complete; returns the bytes read."""
        for get in gets:
            self.observe(get.total, get.etag, get.modified, has_bytes=get.filled > 0)
        size, count = self.size, 0
        for get in gets:
            due = max(0, min(get.stop, size) - get.start) if size is not None else 0
            filled = get.filled
            if filled != due:
                raise ProtocolError(
                    f"{filled} bytes were received of s3://{self.bucket}/{self.key} where {due} are due.",
                    bucket=self.bucket,
                    key=self.key,
                )
            count += filled
        return count

    def observe_head(self, request: HeadObject) -> None:
        """Learn what the answer to a HEAD tells."""
        if request.head is None:
            raise AssertionError("a HEAD that succeeded without an answer")
        fields = request.head.fields
        has_bytes = request.head.status != 416
        self.observe(request.size, fields.get("etag"), fields.get("last-modified"), has_bytes=has_bytes)

    def observe(
        self, size: int | None, etag: str | None, modified: str | None = None, *, has_bytes: bool = True
    ) -> None:
        """Learn what an answer tells.

        Args:
            size: Of the object, in bytes; None if it is not told.
            etag: Of the answer, or None.
            modified: The field Last-Modified of the answer, or None.
            has_bytes: Whether it is about bytes that have come: then it must show of which version they are.

        Raises:
            ObjectChangedError: It is of another version.
            ProtocolError: It does not show that it is of the same.
        """
        if (
            self._is_answered
            and size is not None
            and size == self.size == self._told_size
            and etag == self.etag
            and modified == self.modified
        ):
            return  # most answers tell nothing new
        versions = self.etag, etag, self.modified, modified, self._modified_at
        other: tuple[object, ...] | None = etags.other_version(*versions)
        if size is not None and self._told_size is not None and size != self._told_size:
            other = "size", self._told_size, size
        if other is not None:
            name, known, found = other
            raise ObjectChangedError(
                f"s3://{self.bucket}/{self.key} was replaced since it was listed or opened: its {name} was {known} "
                f"and is {found} now. List or open it again to read the new version.",
                bucket=self.bucket,
                key=self.key,
            )
        if has_bytes:
            if missing := etags.lacks_proof(*versions, is_first=not self._is_answered):
                error = unproven(missing)
                error.bucket, error.key = self.bucket, self.key
                raise error
            self._is_answered = True
        if size is not None:
            self.size = self._told_size = size
        self.etag = etags.preferred(self.etag, etag)
        self.modified = self.modified or modified

    def check_reaches(self, start: int, stop: int) -> None:
        """Check, after a read, that the object has all bytes of a range that is not empty.

        Raises:
            ArgumentError: It ends before.
        """
        if self.size is None or stop > self.size:  # None: all lie there, and no answer told it
            end = "end" if self.size is None else f"{self.size} bytes"
            raise ArgumentError(
                f"The range [{start}, {stop}) reaches beyond the {end} of s3://{self.bucket}/{self.key}.",
                bucket=self.bucket,
                key=self.key,
            )
