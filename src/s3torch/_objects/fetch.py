"""Reads that are under way. Each owns its requests and their memory until it is over; see ``_transfer/scope.py``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from s3torch._objects.spread import crew_for
from s3torch._transfer import plan
from s3torch._transfer.scope import LastingScope

if TYPE_CHECKING:
    from s3torch._aws.operations import GetObject
    from s3torch._objects.spread import Crew
    from s3torch._objects.verifying import VerifiedVersion
    from s3torch._transfer.http1 import ContentRange

__all__ = ["Fetch", "Place", "RangeFetch"]

Place = Callable[[int], memoryview]


class _Landing:
    """Chooses the memory of a fetch once the first answer tells the object's size.

    The engine refers to it as long as the answer is awaited. So it must not refer to the fetch or its reader, which
    could not be collected then.
    """

    __slots__ = ("_place", "_start", "memory")

    def __init__(self, start: int, place: Place) -> None:
        self.memory: memoryview | None = None
        self._start = start
        self._place = place

    def __call__(self, content_range: ContentRange) -> memoryview:
        self.memory = self._place(content_range.total or 0)
        return self.memory[: content_range.stop - self._start]


class Fetch(LastingScope):
    """A read of ``[start, stop)`` into memory that is chosen once the size is known.

    If the size is unknown only the first part is requested at first; the head of its answer tells the size, and the
    other parts follow while the first one's body is still arriving.

    Args: see ``RemoteObject.fetch``.
    """

    def __init__(
        self, version: VerifiedVersion, start: int, stop: int | None, place: Place, *, proves_ranges: bool = False
    ) -> None:
        super().__init__(version.access.engine())
        self._proves_ranges = proves_ranges
        self._version = version
        self._start = start
        self._stop = stop
        self._place: Place | None = place
        self._landing: _Landing | None = None
        self._memory: memoryview | None = None
        self._is_begun = False

    def begin(self) -> None:
        """Queue the requests; they move when somebody waits. It must be called inside the ``try`` that cancels."""
        self._begin(spreads=False)

    def _begin(self, *, spreads: bool) -> Crew | None:
        """Queue the requests, or those of them that threads are not to send, who are returned then.

        Args:
            spreads: Whether the caller waits now, so that there may be such threads.
        """
        self._is_begun = True
        place, start, size = self._place, self._start, self._version.size
        if place is None:
            raise AssertionError("a fetch is begun after its end")
        if size is None:
            length = 0 if self._stop is None else self._stop - start
            first_stop = start + self._version.part_size(length, self._engine.pending)
            self._landing = _Landing(start, place)
            first_stop = first_stop if self._stop is None else min(first_stop, self._stop)
            self.submit(self._version.get(start, first_stop, self._landing))
        elif start < size:
            self._memory = place(size)
            return self._get_parts(start, spreads=spreads)
        return None

    def nudge(self) -> None:
        """Send what is queued, without waiting for anything."""
        self._engine.nudge()

    def finish(self) -> int:
        """Wait until all has arrived; returns how many bytes that is.

        Raises:
            S3Error: It failed; no request is under way any more.
        """
        try:
            deadline = self._engine.deadline()
            count = self._receive(deadline)
            if self._version.is_strict:
                self._prove(count, deadline)
        except BaseException:
            self.cancel()
            raise
        # Slices of the destination must be gone before its owner can take the memory back.
        self._exchanges, self._landing, self._memory, self._place = [], None, None, None
        return count

    def cancel(self) -> None:
        """Cancel it, and drop its memory; see ``Scope.cancel``."""
        super().cancel()
        self._landing = self._memory = self._place = None

    def _receive(self, deadline: float | None) -> int:
        crew = None if self._is_begun else self._begin(spreads=True)
        if self._landing is not None:
            crew = self._await_size(deadline)
        if crew is None:
            self._engine.wait(self._exchanges, deadline)
        else:
            crew.run(lambda: self._engine.wait(self._exchanges, deadline), deadline)
            self._exchanges += crew.others  # only now: an engine cancels what is its own
        return self._version.conclude(self._exchanges)

    def _prove(self, count: int, deadline: float | None) -> None:
        """Verify what was read, unless a request has done so."""
        is_whole = not self._start and count == self._version.size
        if self._memory is None or not (is_whole or self._proves_ranges):
            return
        if is_whole and len(self._exchanges) == 1:
            (get,) = self._exchanges
            if get.is_verified:
                return
            self._version.verifier.note(get.composite)
        self._exchanges, self._landing = [], None  # whose slices would outlive an error
        self._version.verifier.prove(self._start, [self._memory[:count]], deadline)

    def _await_size(self, deadline: float | None) -> Crew | None:
        first = self._exchanges[0]
        while first.total is None and not first.is_done:
            self._engine.turn(deadline)
        if first.error is not None:
            return None
        self._version.observe(first.total, first.etag, first.modified, has_bytes=False)
        # The landing and its memory are in no variable here: whoever keeps an error keeps this frame.
        self._memory = None if self._landing is None else self._landing.memory
        return None if self._memory is None else self._get_parts(first.stop, spreads=True)

    def _get_parts(self, begin: int, *, spreads: bool) -> Crew | None:
        """Queue the requests for the parts from ``begin`` on; see ``_begin``."""
        size = self._version.size
        if self._memory is None or size is None:
            raise AssertionError("parts of an object of unknown size")
        end = size if self._stop is None else min(self._stop, size)
        part_size = plan.SMALLEST_PART  # most objects of a dataset are smaller, and not worth more thought
        if end - begin > part_size:
            others = self._engine.pending - sum(not get.is_done for get in self._exchanges)
            part_size = self._version.part_size(end - begin, others)
        gets: Sequence[GetObject] = [
            self._version.get(left, right, self._memory[left - self._start : right - self._start])
            for left, right in plan.split(begin, end, part_size)
        ]
        crew = None
        if spreads and end - begin >= plan.LEAST_TO_SPREAD:
            crew = crew_for(self._version.access, self._engine, gets)
            gets = crew.own
        for get in gets:
            self.submit(get)
        return crew


class RangeFetch(LastingScope):
    """A read of a range that the object is known to have. Nothing is verified: who reads says what proves it.

    Args:
        version: What is read.
        start: First byte.
        views: Memory for all that is read, in one or several pieces.
    """

    def __init__(self, version: VerifiedVersion, start: int, views: Sequence[memoryview]) -> None:
        super().__init__(version.access.engine())
        self._version = version
        self._views = views
        self._start, self._stop = start, start + sum(map(len, views))

    def begin(self) -> None:
        """Queue the requests; they move when somebody waits. It must be called inside the ``try`` that cancels."""
        size = self._stop - self._start
        part_size = plan.even_part_size(size, self._version.part_size(size, self._engine.pending))
        for left, right in plan.split(self._start, self._stop, part_size):
            self.submit(self._version.get(left, right, _cut(self._views, left - self._start, right - self._start)))

    def finish(self) -> None:
        """Wait until all has arrived.

        Raises:
            ArgumentError: The object ends before the range does.
            S3Error: It failed; no request is under way any more.
        """
        try:
            self.wait(self._engine.deadline())
        except BaseException:
            self.cancel()
            raise
        gets = self._exchanges
        self._exchanges = []
        self._version.conclude(gets)
        if gets:
            self._version.check_reaches(self._start, self._stop)


def _cut(views: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Return the bytes ``[start, stop)`` of memory in several pieces, as pieces."""
    starts = itertools.accumulate(map(len, views), initial=0)
    cut = [view[max(start - at, 0) : max(stop - at, 0)] for view, at in zip(views, starts, strict=False)]
    return [view for view in cut if len(view)]
