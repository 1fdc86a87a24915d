"""One object as it is read: its size and ETag once they are known, and reads of byte ranges into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from s3torch import _buffer
from s3torch._aws import checksums
from s3torch._aws.checksums import Checksum
from s3torch._aws.operations import GetObject, HeadObject, PlaceRange, damaged
from s3torch._objects.fetch import Fetch, Place, RangeFetch, run
from s3torch._transfer import plan
from s3torch._transfer.buffers import BytesBuffer
from s3torch.errors import ArgumentError, ObjectChangedError, ProtocolError, UnverifiedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch._access import Access
    from s3torch.config import S3ClientConfig

__all__ = ["DEFAULT_MAX_GAP", "RemoteObject"]

# One request of S3 costs the time of some hundred kB: reading that much for nothing is cheaper than another. Not tuned.
DEFAULT_MAX_GAP = 128 * 1024
# Bytes of the memory that gaps between ranges are received into, again and again.
_SCRATCH = 64 * 1024


class RemoteObject:
    """Reads ranges of one version of an object, in parallel parts.

    The first answer fixes which version that is: all later requests carry its ETag, and an answer of another version
    is an ObjectChangedError.

    Args:
        access: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        size: In bytes, if known beforehand.
        etag: If known beforehand.
        version_id: The version to read; None for the newest.

    Attributes:
        access: Sends the requests.
        size: In bytes; None while unknown.
        etag: None while unknown.
    """

    def __init__(
        self,
        access: Access,
        bucket: str,
        key: str,
        *,
        size: int | None = None,
        etag: str | None = None,
        version_id: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.key = key
        # That an object is empty is asked again: no read would notice that it has grown since.
        self.size = size or None
        self.etag = etag
        self._told_size = size
        self._checksum: Checksum | None = None
        self.version_id = version_id
        self.access = access

    def learn_size(self) -> int:
        """Return the size in bytes; asks for it (HeadObject) if no answer has told it yet."""
        if self.size is None:
            request = HeadObject(self.access.bucket(self.bucket), self.key, self.version_id)
            self.access.run([request])
            if request.head is None:
                raise AssertionError("a HEAD that succeeded without an answer")
            self.observe(request.head.content_length, request.head.fields.get("etag") or None)
        if self.size is None:
            raise AssertionError("a HEAD that tells no size")
        return self.size

    def read_into(self, start: int, view: memoryview) -> int:
        """Fill memory with the bytes from ``start`` on.

        Args:
            start: First byte.
            view: Writable memory, one byte an item.

        Returns:
            How many bytes were read: all of ``view``, or fewer if the object ends before.
        """
        if not len(view):
            return 0
        return self.fetch(start, start + len(view), lambda _size: view)

    def read(self, start: int, stop: int | None = None) -> bytes:
        """Return the bytes of ``[start, stop)``, up to the object's end; None reads to the end."""
        buffer = BytesBuffer(0)

        def place(size: int) -> memoryview:
            nonlocal buffer
            buffer = BytesBuffer((size if stop is None else min(stop, size)) - start)
            return buffer.view

        if stop is None or stop > start:
            try:
                self.fetch(start, stop, place)
            except BaseException:
                buffer.release()  # whoever keeps the error keeps this frame
                raise
        return buffer.to_bytes()

    def fetch(self, start: int, stop: int | None, place: Place) -> int:
        """Read ``[start, stop)``, up to the object's end, into memory that is chosen once the size is known.

        Args:
            start: First byte.
            stop: The byte after the last; None for the end of the object.
            place: Gets the object's size and returns memory for what follows ``start``. Not called if nothing does.

        Returns:
            How many bytes were read.
        """
        fetch = self.new_fetch(start, stop, place)
        try:
            return fetch.finish()
        finally:
            fetch.cancel()

    def new_fetch(self, start: int, stop: int | None, place: Place) -> Fetch:
        """Return what does the work of ``fetch``, and begins when it is told to."""
        return Fetch(self, start, stop, place)

    def new_range_fetch(self, start: int, *views: memoryview) -> RangeFetch:
        """Return what fills memory with the bytes from ``start`` on, which the object is known to have."""
        return RangeFetch(self, start, views)

    def read_vector(
        self, ranges: Iterable[tuple[int, int]], into: Iterable[Buffer] | None, max_gap: int
    ) -> list[bytes] | None:
        """Check ranges and memory, and read; see ``S3Client.read_ranges``."""
        wanted = []
        for start, stop in ranges:
            first, end = _buffer.check_range(start, _buffer.as_index("stop", stop))
            wanted.append((first, end or 0))
        if _buffer.as_index("max_gap", max_gap) < 0:
            raise ArgumentError(f"max_gap={max_gap} cannot be: it must be at least 0.")
        if into is None:
            buffers = [BytesBuffer(stop - start) for start, stop in wanted]
            try:
                self.read_ranges(wanted, [buffer.view for buffer in buffers], max_gap)
                return [buffer.to_bytes() for buffer in buffers]
            except BaseException:
                for buffer in buffers:
                    buffer.release()  # whoever keeps the error keeps this frame
                raise
        views = [_buffer.writable_bytes(memory) for memory in into]
        sizes = [len(view) for view in views]
        if sizes != [stop - start for start, stop in wanted]:
            raise ArgumentError(f"into has memory of {sizes} bytes for the ranges {wanted}: each must have its size.")
        self.read_ranges(wanted, views, max_gap)
        return None

    def read_ranges(
        self,
        ranges: Sequence[tuple[int, int]],
        views: Sequence[memoryview],
        max_gap: int,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Read many ranges concurrently, near ones by one request.

        Args:
            ranges: Half-open.
            views: Memory of each range's size.
            max_gap: See ``plan.coalesce``.
            progress: Is told how many bytes more have arrived, gaps included.

        Raises:
            ArgumentError: A range reaches beyond the object's end.
        """
        gets = self.vector(ranges, views, max_gap)
        try:
            run(self.access.engine(), gets, progress)
            self.conclude_vector(gets, ranges)
        except BaseException:
            gets.clear()  # whoever keeps the error keeps this frame
            raise
        if self.is_strict:
            for (start, _), view in zip(ranges, views, strict=True):
                if not start:
                    self.verify_if_whole(view)

    def vector(
        self, ranges: Sequence[tuple[int, int]], views: Sequence[memoryview], max_gap: int = DEFAULT_MAX_GAP
    ) -> list[GetObject]:
        """Return the requests of ``read_ranges``, for those who send them beside those of other objects."""
        part_size = self.part_size(sum(stop - start for start, stop in ranges), self.access.engine().pending)
        gets = []
        for group in plan.coalesce(ranges, max_gap, part_size):
            if len(group) == 1:
                start, stop = ranges[group[0]]
                view = views[group[0]]
                parts = plan.split(start, stop, part_size)
                gets += [self.get(left, right, view[left - start : right - start]) for left, right in parts]
            else:
                pieces = _pieces([ranges[index] for index in group], [views[index] for index in group])
                has_gaps = any(ranges[left][1] < ranges[right][0] for left, right in pairwise(group))
                gets.append(self.get(ranges[group[0]][0], ranges[group[-1]][1], pieces, has_gaps=has_gaps))
        return gets

    def conclude_vector(self, gets: Sequence[GetObject], ranges: Sequence[tuple[int, int]]) -> None:
        """Check what the requests of ``vector`` brought; see ``read_ranges``."""
        self.conclude(gets)
        for start, stop in ranges:
            if stop > start:
                self.check_reaches(start, stop)

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

    def part_size(self, length: int, others: int) -> int:
        """Return how large the parts of a read are to be, while so many other requests are under way."""
        config = self.client_config
        return plan.part_size_for(length, config.part_size, others, config.connections, config.max_bytes_in_flight)

    @property
    def client_config(self) -> S3ClientConfig:
        """The client's configuration."""
        return self.access.config

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
            version_id=self.version_id,
            is_whole=bucket.has_checksums and not start and stop == self.size,
            has_gaps=has_gaps,
        )

    @property
    def is_strict(self) -> bool:
        """Whether what is read whole must be verified."""
        return self.client_config.checksums == "strict"

    def verify_if_whole(self, content: memoryview) -> None:
        """Compare the first bytes of the object with its checksum, if they are all of it.

        The checksum is asked for by a HEAD of the version that was read.

        Raises:
            IntegrityError: They have another checksum.
            UnverifiedError: The object has none that can be compared, or its algorithm is not installed.
        """
        if not len(content) or len(content) != self.size:
            return
        stored = self._checksum = self._checksum or self._ask_for_checksum()
        if not checksums.is_available(stored.algorithm):
            raise self._unverified(
                f"its {stored.algorithm.name} cannot be computed here. pip install 's3torch[checksums]', or"
            )
        arrived = checksums.compute(stored.algorithm, [content])
        if arrived != stored:
            raise damaged(stored, arrived, self.bucket, self.key)

    def _ask_for_checksum(self) -> Checksum:
        bucket = self.access.bucket(self.bucket)
        request = HeadObject(bucket, self.key, self.version_id, etag=self.etag, asks_checksum=True)
        self.access.run([request])
        fields = request.head.fields if request.head is not None else {}
        stored = checksums.checksum_of_object(fields, is_range=False)
        if stored is None:
            raise self._unverified(
                "the server tells no checksum of all its bytes (one of type COMPOSITE is none). "
                "Store it again, by S3Client.put_object for one, or"
            )
        return stored

    def _unverified(self, why: str) -> UnverifiedError:
        return UnverifiedError(
            f"s3://{self.bucket}/{self.key} was read but cannot be verified: {why} use S3ClientConfig(checksums='on').",
            bucket=self.bucket,
            key=self.key,
        )

    def conclude(self, gets: Sequence[GetObject]) -> int:
        """Check that all answers are of one version and complete; returns the bytes read."""
        for get in gets:
            self.observe(get.total, get.etag)
        size = self.size
        for get in gets:
            due = max(0, min(get.stop, size) - get.start) if size is not None else 0
            if get.filled != due:
                raise ProtocolError(
                    f"{get.filled} bytes were received of s3://{self.bucket}/{self.key} where {due} are due.",
                    bucket=self.bucket,
                    key=self.key,
                )
        return sum(get.filled for get in gets)

    def observe(self, size: int | None, etag: str | None) -> None:
        for name, known, found in (("size", self._told_size, size), ("ETag", self.etag, etag)):
            if known is not None and found is not None and known != found:
                raise ObjectChangedError(
                    f"s3://{self.bucket}/{self.key} was replaced since it was listed or opened: its {name} was {known} "
                    f"and is {found} now. List or open it again to read the new version.",
                    bucket=self.bucket,
                    key=self.key,
                )
        if size is not None:
            self.size = self._told_size = size
        self.etag = etag or self.etag


def _pieces(ranges: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> list[memoryview]:
    """Return the memory of ranges that follow one another, with memory to throw away for the gaps between them."""
    scratch = memoryview(bytearray(min(_SCRATCH, max(right[0] - left[1] for left, right in pairwise(ranges)))))
    pieces: list[memoryview] = []
    end = ranges[0][0]
    for (start, stop), view in zip(ranges, views, strict=True):
        pieces += [scratch[: right - left] for left, right in plan.split(end, start, _SCRATCH)]
        pieces.append(view)
        end = stop
    return pieces
