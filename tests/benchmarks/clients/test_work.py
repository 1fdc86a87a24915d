"""The work that clients share."""

from __future__ import annotations

import pytest

from benchmarks.clients.work import batch_size, fill, load, parts, ranges_at_once, ranges_in_turn
from benchmarks.content import content
from benchmarks.site import KIB, MIB, PART, Effort, Site, Stored

SITE = Site(
    bucket="b", is_ours=True, samples=tuple(Stored(str(n), 10) for n in range(100)), wide=Stored("wide", 4 * MIB)
)


def test_parts():
    """Parts of 8 MiB cover the object."""
    assert parts(17 * MIB) == [(0, 8 * MIB), (8 * MIB, 16 * MIB), (16 * MIB, 17 * MIB)]


def test_fill():
    """Chunks of any size land one after the other."""
    memory = bytearray(6)
    assert fill(memoryview(memory), [b"ab", b"", bytearray(b"cdef")]) == 6
    assert memory == b"abcdef"


def test_ranges():
    """All ranges are fetched by one call, or one after the other until the time is up."""
    at_once = ranges_at_once(SITE, Effort(items=40), lambda places: [content(*place) for place in places])
    assert (at_once().items, at_once().bytes) == (40, 40 * PART)
    in_turn = ranges_in_turn(SITE, Effort(items=40, seconds=0), content)
    assert in_turn().items == 1
    bounded = ranges_in_turn(SITE, Effort(items=40, max_bytes=3 * PART + KIB), content)
    assert bounded().items == 3


def test_wrong_ranges():
    """A client that delivers something else is not measured."""
    with pytest.raises(AssertionError, match="is not what is there"):
        ranges_in_turn(SITE, Effort(), lambda start, stop: content(start + 4096, stop + 4096))


@pytest.mark.parametrize(("max_bytes", "size"), [(None, 64), (10_000, 64), (400, 10), (1, 1)])
def test_batch_size(max_bytes, size):
    """Batches are of 64 unless that is too much of what may be read."""
    assert batch_size(SITE, Effort(max_bytes=max_bytes)) == size


def test_load():
    """Batches are loaded epoch after epoch until there are enough, and a wrong sample is seen."""
    work = load(SITE, Effort(items=250, seconds=60), lambda: [content(0, 10)] * 100)
    done = work()
    assert (done.items, done.bytes) == (264, 2640)  # 64 + 36 twice, and 64
    assert done.extra["first_batch_s"] > 0
    assert load(SITE, Effort(items=250, seconds=0), lambda: [content(0, 10)] * 100)().items == 64
    assert load(SITE, Effort(items=250, max_bytes=900), lambda: [content(0, 10)] * 100)().items == 100
    with pytest.raises(AssertionError, match="the first sample is not what is there"):
        load(SITE, Effort(), lambda: [b"x" * 10] * 100)
