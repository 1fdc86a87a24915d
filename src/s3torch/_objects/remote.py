"""One object as it is read: byte ranges into memory, in parallel parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from s3torch import _buffer
from s3torch._aws.operations import GetObject
from s3torch._objects.fetch import Fetch, Place, RangeFetch
from s3torch._objects.spread import run
from s3torch._objects.verifying import VerifiedVersion
from s3torch._transfer import plan
from s3torch._transfer.buffers import BytesBuffer
from s3torch.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DEFAULT_MAX_GAP", "RemoteObject"]

# One request of S3 costs the time of some hundred kB: reading that much for nothing is cheaper than another. Not tuned.
DEFAULT_MAX_GAP = 128 * 1024
# Bytes of the memory that gaps between ranges are received into, again and again.
_SCRATCH = 64 * 1024


class RemoteObject(VerifiedVersion):
    """Reads ranges of one version of an object; see ``ObjectVersion`` for the arguments."""

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
        fetch = self.new_fetch(start, stop, place, proves_ranges=True)
        try:
            return fetch.finish()
        except BaseException:
            fetch.cancel()
            raise

    def new_fetch(self, start: int, stop: int | None, place: Place, *, proves_ranges: bool = False) -> Fetch:
        """Return what does the work of ``fetch``, and begins when it is told to.

        Args:
            start: First byte.
            stop: The byte after the last; None for the end of the object.
            place: As for ``fetch``.
            proves_ranges: Whether ranges are verified as well, and not whole objects alone.
        """
        return Fetch(self, start, stop, place, proves_ranges=proves_ranges)

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
            views = [buffer.view for buffer in buffers]
            try:
                self.read_ranges(wanted, views, max_gap)
                views.clear()  # slices must be gone
                return [buffer.to_bytes() for buffer in buffers]
            except BaseException:
                views.clear()  # whoever keeps the error keeps this frame
                for buffer in buffers:
                    buffer.release()
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
            run(self.access, gets, progress)
            self.conclude_vector(gets, ranges)
        except BaseException:
            gets.clear()  # whoever keeps the error keeps this frame
            raise
        if self.is_strict:
            self.prove_ranges(ranges, views)

    def prove_ranges(self, ranges: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> None:
        """Verify what was read of ranges, those that follow one another together; see ``Verifier.prove``."""
        for start, joined in _runs(ranges, views):
            try:
                self.verifier.prove(start, joined)
            finally:
                joined.clear()  # whoever keeps an error keeps this frame

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


def _runs(ranges: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """Return what follows one another without a gap, as the place of its first byte and its memory."""
    begin = end = 0
    run: list[memoryview] = []
    for index in sorted(range(len(ranges)), key=lambda index: ranges[index]):
        start, stop = ranges[index]
        if start == stop:
            continue
        if start != end and run:
            yield begin, run
            run = []
        begin = begin if run else start
        run.append(views[index])
        end = stop
    if run:
        yield begin, run


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
