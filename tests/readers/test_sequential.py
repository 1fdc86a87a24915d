"""The sequential reader: parallel parts forwards, a growing window, and no copy of what it keeps."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc

import pytest

from s3torch._objects.fetch import Fetch
from s3torch._transfer import buffers
from s3torch.errors import ObjectChangedError, ObjectNotFoundError
from s3torch.readers import SequentialS3Reader

MiB = 1024 * 1024
_PART = 8 * MiB
# Room for the heads of some answers.
_HEADS = 16 * 1024


@pytest.fixture
def reader(client, bucket, large) -> SequentialS3Reader:
    """A reader of the large object, of which nothing is known."""
    return client.get_object(bucket, large[0])


def test_all_of_it_is_no_copy(reader, large):
    """Once the object is there, ``read()`` of all of it returns the very bytes that were received, each time."""
    first = reader.read()
    assert first == large[1]
    reader.seek(0)
    assert reader.read() is first
    reader.seek(0)
    assert reader.read(len(first)) is first


def test_all_of_it_in_pieces_is_no_copy(reader, large):
    """That holds also for an object that came in pieces."""
    pieces = b"".join(iter(lambda: reader.read(7 * MiB), b""))
    assert pieces == large[1]
    reader.seek(0)
    first = reader.read()
    reader.seek(0)
    assert reader.read() is first
    assert first == large[1]


def test_a_little_of_it_costs_one_part(client, bucket, large, traffic):
    """Reading the first bytes receives as much as one part, in two halves, whether the size is known or not."""
    known = client.head_object(bucket, large[0])
    for facts in ({}, {"object_info": known}):
        traffic.restart()
        with client.get_object(bucket, large[0], **facts) as reader:
            assert reader.read(100) == large[1][:100]
            assert reader.readline(4) == large[1][100:104]
            assert reader.seek(0, io.SEEK_END) == len(large[1])
        assert traffic.requests == 2
        assert _PART < traffic.bytes_received < _PART + _HEADS


def test_the_window_doubles(reader, large, traffic):
    """Each time the buffer runs out twice as much is fetched as before, in parallel parts, up to the end."""
    parts = []
    for position in (0, 8, 24, 56):
        reader.seek(position * MiB)
        traffic.restart()
        assert reader.read(4) == large[1][position * MiB :][:4]
        parts.append(traffic.requests)
    assert parts == [2, 4, 8, 2]
    traffic.restart()
    reader.seek(0)
    assert reader.read() == large[1]
    assert traffic.requests == 0


def test_going_back_is_free(reader, large, traffic):
    """What was fetched is read again without a request."""
    reader.read(20 * MiB)
    traffic.restart()
    for position in (0, 19, 7, 8):
        reader.seek(position * MiB)
        assert reader.read(1000) == large[1][position * MiB :][:1000]
        buffer = bytearray(1000)
        assert reader.readinto(buffer) == 1000
        assert buffer == large[1][position * MiB + 1000 :][:1000]
    assert traffic.requests == 0


def test_skipping_fetches_what_is_skipped(reader, large, traffic):
    """A jump forwards fetches up to there: it is a reader for those who want nearly everything."""
    reader.seek(40 * MiB)
    assert reader.read(4) == large[1][40 * MiB :][:4]
    assert 40 * MiB < traffic.bytes_received < 56 * MiB + _HEADS


def test_lines_of_what_is_not_there_yet(reader, large):
    """A line that reaches beyond what was fetched is fetched on."""
    start = large[1].rindex(b"\n", 0, _PART) + 1
    stop = large[1].index(b"\n", _PART) + 1
    reader.seek(start)
    assert reader.readline() == large[1][start:stop]
    assert reader.tell() == stop


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
@pytest.mark.skipif(buffers._NEEDS_A_COPY, reason="the memory is copied once")
def test_peak_memory(bucket, large, s3):
    """Reading all of an object takes the object's size of memory and 32 MiB more at most."""
    script = f"""if True:
        from s3torch import S3Client

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

        client = S3Client()
        client.read_range({bucket!r}, {large[0]!r}, 0, 1)
        before = peak()
        content = client.get_object({bucket!r}, {large[0]!r}).read()
        print(len(content), peak() - before)
    """
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    size, growth = map(int, printed.split())
    assert size == len(large[1])
    assert growth < size + 32 * MiB


def test_closing_releases(reader):
    """A closed reader holds nothing of the object any more."""
    tracemalloc.start()
    try:
        reader.read(40 * MiB)
        reader.read(1)
        assert tracemalloc.get_traced_memory()[0] > 40 * MiB
        reader.close()
        assert tracemalloc.get_traced_memory()[0] < MiB
    finally:
        tracemalloc.stop()


def test_replaced_after_the_first_part(small_parts, bucket, key):
    """If the object is replaced on the way, what is there stays readable and what is missing raises."""
    old, new = bytes(6 * MiB), b"n" * 6 * MiB
    for content in (old, new):
        with small_parts.put_object(bucket, key) as writer:
            writer.write(content)
        if content is old:
            reader = small_parts.get_object(bucket, key)
            assert reader.read(1) == b"\0"
    assert reader.read(1000) == bytes(1000)
    with pytest.raises(ObjectChangedError, match="Open it again"):
        reader.read()
    assert reader.tell() == 1001
    assert reader.read(5 * MiB - 1001) == old[1001 : 5 * MiB]
    with pytest.raises(ObjectChangedError):
        reader.read(1)


def test_a_prefetch_that_is_interrupted(client, bucket, large, monkeypatch):
    """After a prefetch that failed to begin the object is prefetched, and read, as if there had been none."""

    def interrupt(_fetch: Fetch) -> None:
        raise KeyboardInterrupt

    with client.get_object(bucket, large[0]) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(Fetch, "nudge", interrupt)
            with pytest.raises(KeyboardInterrupt):
                reader.prefetch()
        begun = client._access.engine().pending
        reader.prefetch(send=False)
        assert client._access.engine().pending > begun == 0
        assert reader.read(100) == large[1][:100]


@pytest.mark.parametrize(("arguments", "count"), [({}, 1), ({"send": True}, 1), ({"send": False}, 0)])
def test_when_a_prefetch_is_sent(reader, monkeypatch, arguments: dict[str, bool], count: int):
    """The requests of a prefetch are sent at once, unless the caller has many of them."""
    nudged = 0

    def nudge(_fetch: Fetch) -> None:
        nonlocal nudged
        nudged += 1

    monkeypatch.setattr(Fetch, "nudge", nudge)
    reader.prefetch(**arguments)
    assert nudged == count
    reader.close()


def test_a_prefetch_after_one_that_failed(client, bucket, monkeypatch):
    """A prefetch whose object was missing is over once a read has said so: the next one asks again."""
    reader = client.get_object(bucket, "not there yet")
    reader.prefetch()
    with pytest.raises(ObjectNotFoundError):
        reader.read(1)
    begun: list[Fetch] = []

    def note(fetch: Fetch) -> None:
        begun.append(fetch)

    monkeypatch.setattr(Fetch, "begin", note)
    reader.prefetch(send=False)
    assert len(begun) == 1
    reader.close()
