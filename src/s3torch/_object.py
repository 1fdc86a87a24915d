"""One object as it is read: its size and ETag once they are known, and reads of byte ranges into memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from s3torch import _buffer
from s3torch._aws import checksums
from s3torch._aws.checksums import Checksum
from s3torch._aws.operations import GetObject, HeadObject, PlaceRange, damaged
from s3torch._transfer import plan
from s3torch._transfer.buffers import BytesBuffer
from s3torch._transfer.http1 import ContentRange
from s3torch.errors import ArgumentError, IntegrityError, ObjectChangedError, ProtocolError, UnverifiedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch._transfer.engine import Engine
    from s3torch.client import S3Client
    from s3torch.config import S3ClientConfig

__all__ = ["Fetch", "Place", "RangeFetch", "RemoteObject", "run"]

Place = Callable[[int], memoryview]

# One request of S3 costs the time of some hundred kB: reading that much for nothing is cheaper than another. Not tuned.
DEFAULT_MAX_GAP = 128 * 1024
# Bytes of the memory that gaps between ranges are received into, again and again.
_SCRATCH = 64 * 1024
# How often an object is fetched whose parts together do not have its checksum; as for a single request.
_ATTEMPTS_WHEN_DAMAGED = 3


class Fetch:
    """A read that has begun: requests under way into memory.

    If the size is unknown only the first part is requested at first; the head of its answer tells the size, and the
    other parts follow while the first one's body is still arriving.

    Args: see ``RemoteObject.fetch``.
    """

    def __init__(self, remote: RemoteObject, engine: Engine, start: int, stop: int | None, place: Place) -> None:
        self.engine = engine
        self._remote = remote
        self._start = start
        self._stop = stop
        self._place = place
        self._memory: memoryview | None = None
        self._gets: list[GetObject] = []
        self._began_without_size = remote.size is None
        try:
            self._begin()
        except BaseException:
            self.give_up()
            raise

    def finish(self) -> int:
        """Wait until all has arrived; returns how many bytes that is.

        Raises:
            S3Error: It failed; no request is under way any more.
        """
        try:
            deadline = self.engine.deadline()
            count = self._receive(deadline)
            attempts = 1
            while not self._is_proven(count, is_last=attempts == _ATTEMPTS_WHEN_DAMAGED):
                attempts += 1
                self._gets, self._began_without_size = [], False
                self._begin()
                count = self._receive(deadline)
        except BaseException:
            self.engine.cancel(self._gets)
            raise
        finally:
            # Slices of the destination must be gone before its owner can take the memory back.
            self._gets, self._memory = [], None
        return count

    def _receive(self, deadline: float | None) -> int:
        if self._began_without_size:
            self._await_size(deadline)
        self.engine.wait(self._gets, deadline)
        return self._remote.conclude(self._gets)

    def _is_proven(self, count: int, *, is_last: bool) -> bool:
        """Verify an object that was read whole, if that is required and no request has done so.

        Args:
            count: How many bytes arrived.
            is_last: Raise, rather than return False, if they are damaged.
        """
        is_verified = len(self._gets) == 1 and self._gets[0].is_verified
        if self._remote.is_strict and not self._start and not is_verified and self._memory is not None:
            try:
                self._remote.verify_if_whole(self._memory[:count])
            except IntegrityError:
                if is_last:
                    raise
                return False
        return True

    def give_up(self) -> None:
        """Let go of it; safe from any thread and from the garbage collector."""
        self.engine.give_up(self._gets)

    def _begin(self) -> None:
        start, size = self._start, self._remote.size
        if size is None:
            length = 0 if self._stop is None else self._stop - start
            first_stop = start + self._remote.part_size(length, self.engine.pending)
            self._submit(start, first_stop if self._stop is None else min(first_stop, self._stop), self._place_first)
        elif start < size:
            self._memory = self._place(size)
            self._submit_parts(start)

    def _await_size(self, deadline: float | None) -> None:
        first = self._gets[0]
        while first.total is None and not first.is_done:
            self.engine.turn(deadline)
        if first.error is not None:
            return
        self._remote.observe(first.total, first.etag)
        if self._memory is not None:
            self._submit_parts(first.stop)

    def _place_first(self, content_range: ContentRange) -> memoryview:
        self._memory = self._place(content_range.total or 0)
        return self._memory[: content_range.stop - self._start]

    def _submit_parts(self, begin: int) -> None:
        size = self._remote.size
        if self._memory is None or size is None:
            raise AssertionError("parts of an object of unknown size")
        end = size if self._stop is None else min(self._stop, size)
        part_size = plan.SMALLEST_PART  # most objects of a dataset are smaller, and not worth more thought
        if end - begin > part_size:
            others = self.engine.pending - sum(not get.is_done for get in self._gets)
            part_size = self._remote.part_size(end - begin, others)
        for left, right in plan.split(begin, end, part_size):
            self._submit(left, right, self._memory[left - self._start : right - self._start])

    def _submit(self, start: int, stop: int, into: memoryview | Sequence[memoryview] | PlaceRange) -> None:
        get = self._remote.get(start, stop, into)
        self._gets.append(get)
        self.engine.submit(get)


class RangeFetch:
    """A read that has begun of a range that is known to be within the object: all its requests are under way.

    Args:
        remote: What is read.
        engine: Of the calling thread.
        start: First byte.
        views: Memory for all that is read, in one or several pieces.
    """

    def __init__(self, remote: RemoteObject, engine: Engine, start: int, views: Sequence[memoryview]) -> None:
        self._remote = remote
        self._engine = engine
        size = sum(map(len, views))
        self._start, self._stop = start, start + size
        part_size = plan.even_part_size(size, remote.part_size(size, engine.pending))
        parts = plan.split(start, self._stop, part_size)
        self._gets = [remote.get(left, right, _cut(views, left - start, right - start)) for left, right in parts]
        for get in self._gets:
            engine.submit(get)

    def finish(self) -> None:
        """Wait until all has arrived.

        Raises:
            ArgumentError: The object ends before the range does.
            S3Error: It failed; no request is under way any more.
        """
        gets, self._gets = self._gets, []
        try:
            self._engine.wait(gets, self._engine.deadline())
        except BaseException:
            self._engine.cancel(gets)
            raise
        self._remote.conclude(gets)
        if gets:
            self._remote.check_reaches(self._start, self._stop)

    def give_up(self) -> None:
        """Let go of it; safe from any thread and from the garbage collector."""
        self._engine.give_up(self._gets)


class RemoteObject:
    """Reads ranges of one version of an object, in parallel parts.

    The first answer fixes which version that is: all later requests carry its ETag, and an answer of another version
    is an ObjectChangedError.

    Args:
        client: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        size: In bytes, if known beforehand.
        etag: If known beforehand.
        version_id: The version to read; None for the newest.

    Attributes:
        size: In bytes; None while unknown.
        etag: None while unknown.
    """

    def __init__(
        self,
        client: S3Client,
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
        self._client = client

    def learn_size(self) -> int:
        """Return the size in bytes; asks for it (HeadObject) if no answer has told it yet."""
        if self.size is None:
            found = self._client.head_object(self.bucket, self.key, version_id=self.version_id)
            self.observe(found.size, found.etag or None)
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
            self.fetch(start, stop, place)
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
        return self.begin(start, stop, place).finish()

    def begin(self, start: int, stop: int | None, place: Place) -> Fetch:
        """Begin what ``fetch`` does, and return without waiting; the transfers move whenever somebody waits."""
        return Fetch(self, self._client.engine(), start, stop, place)

    def begin_range(self, start: int, *views: memoryview) -> RangeFetch:
        """Begin to fill memory with the bytes from ``start`` on, which the object is known to have."""
        return RangeFetch(self, self._client.engine(), start, views)

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
            self.read_ranges(wanted, [buffer.view for buffer in buffers], max_gap)
            return [buffer.to_bytes() for buffer in buffers]
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
        run(self.engine(), gets, progress)
        self.conclude_vector(gets, ranges)
        if self.is_strict:
            for (start, _), view in zip(ranges, views, strict=True):
                if not start:
                    self.verify_if_whole(view)

    def vector(
        self, ranges: Sequence[tuple[int, int]], views: Sequence[memoryview], max_gap: int = DEFAULT_MAX_GAP
    ) -> list[GetObject]:
        """Return the requests of ``read_ranges``, for those who send them beside those of other objects."""
        part_size = self.part_size(sum(stop - start for start, stop in ranges), self._client.engine().pending)
        gets = []
        for group in plan.coalesce(ranges, max_gap, part_size):
            if len(group) == 1:
                start, stop = ranges[group[0]]
                view = views[group[0]]
                parts = plan.split(start, stop, part_size)
                gets += [self.get(left, right, view[left - start : right - start]) for left, right in parts]
            else:
                pieces = _pieces([ranges[index] for index in group], [views[index] for index in group])
                gets.append(self.get(ranges[group[0]][0], ranges[group[-1]][1], pieces))
        return gets

    def conclude_vector(self, gets: list[GetObject], ranges: Sequence[tuple[int, int]]) -> None:
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

    def is_current(self, fetch: Fetch) -> bool:
        """Whether the calling thread of this process may wait for a fetch, because it has begun it."""
        return fetch.engine is self._client.engine()

    def engine(self) -> Engine:
        """Return the engine that the calling thread sends requests by."""
        return self._client.engine()

    @property
    def client_config(self) -> S3ClientConfig:
        """The client's configuration."""
        return self._client.s3client_config

    def get(self, start: int, stop: int, into: memoryview | Sequence[memoryview] | PlaceRange) -> GetObject:
        """Return the request for one part."""
        bucket = self._client.bucket(self.bucket)
        return GetObject(
            bucket,
            self.key,
            start,
            stop,
            into,
            etag=self.etag,
            version_id=self.version_id,
            is_whole=bucket.has_checksums and not start and stop == self.size,
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
        bucket = self._client.bucket(self.bucket)
        request = HeadObject(bucket, self.key, self.version_id, etag=self.etag, asks_checksum=True)
        self._client.engine().run([request])
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

    def conclude(self, gets: list[GetObject]) -> int:
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


def run(engine: Engine, gets: Sequence[GetObject], progress: Callable[[int], object] | None) -> None:
    """Run requests.

    Args:
        engine: Of the calling thread.
        gets: The requests.
        progress: Is told how many bytes more have arrived.
    """
    if progress is None:
        engine.run(gets)
        return
    deadline = engine.deadline()
    try:
        for get in gets:
            engine.submit(get)
        for get in gets:
            engine.wait([get], deadline)
            progress(get.filled)
    except BaseException:
        engine.cancel(gets)
        raise


def _cut(views: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Return the bytes ``[start, stop)`` of memory in several pieces, as pieces."""
    starts = itertools.accumulate(map(len, views), initial=0)
    cut = [view[max(start - at, 0) : max(stop - at, 0)] for view, at in zip(views, starts, strict=False)]
    return [view for view in cut if len(view)]


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
