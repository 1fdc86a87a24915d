"""The range-based reader: exactly the bytes that are asked for, and a buffer only where one is."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

from s3torch import S3ReaderConfig
from s3torch.readers import RangedS3Reader

KiB = 1024
MiB = 1024 * KiB
# Room for the head of one answer.
_HEAD = 1 * KiB


@pytest.fixture
def open_large(client, bucket, large):
    """Opens a range-based reader of the large object whose size is known."""
    known = client.head_object(bucket, large[0])

    def open_large(buffer_size: int | None = None) -> RangedS3Reader:
        config = S3ReaderConfig.range_based(buffer_size)
        return client.get_object(bucket, large[0], object_info=known, reader_config=config)

    return open_large


def _readinto(reader: RangedS3Reader, size: int) -> bytes:
    buffer = bytearray(size)
    assert reader.readinto(buffer) == size
    return bytes(buffer)


@pytest.mark.parametrize(("start", "size"), [(0, 1), (5 * MiB - 3, 1000), (40 * MiB, 3 * MiB), (64 * MiB - 7, 7)])
def test_a_read_is_its_range(open_large, large, traffic, start, size):
    """A read receives its bytes and no others, by one request."""
    for call in (RangedS3Reader.read, _readinto):
        reader = open_large()
        reader.seek(start)
        traffic.restart()
        assert call(reader, size) == large[1][start : start + size]
        assert traffic.requests == 1
        assert size < traffic.bytes_received < size + _HEAD


def test_nothing_is_kept(open_large, large, traffic):
    """Without a buffer each read is a request, also of the same bytes."""
    reader = open_large(0)
    traffic.restart()
    for _ in range(3):
        reader.seek(100)
        assert reader.read(10) + reader.read(10) == large[1][100:120]
    assert traffic.requests == 6


def test_a_large_read_comes_in_parallel_parts(open_large, large, traffic):
    """A read of several parts is as many requests, straight into the caller's memory and into none beside it."""
    reader = open_large()
    values = np.zeros((5, MiB), np.uint32)
    reader.seek(4 * MiB)
    traffic.restart()
    tracemalloc.start()
    try:
        assert reader.readinto(values) == 20 * MiB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (values.ravel() == np.arange(MiB, 6 * MiB)).all()
    assert traffic.requests == 5
    assert peak < MiB


def test_the_end_drops_nothing(client, bucket, key, traffic):
    """Reads and lines that reach the end keep what is buffered before it."""
    with client.put_object(bucket, key) as writer:
        writer.write(b"line\n" * 100)
    with client.get_object(bucket, key, reader_config=S3ReaderConfig.range_based(KiB)) as reader:
        assert reader.read(5) == b"line\n"
        traffic.restart()
        for _ in range(2):
            reader.seek(490)
            assert reader.read(20) == b"line\n" * 2
            assert reader.read(20) == reader.readline() == b""
    assert traffic.requests == 0


def test_memory_of_one_read(open_large, large):
    """All of a large object can be read with the memory of one read."""
    reader = open_large()
    expected = memoryview(large[1])
    tracemalloc.start()
    try:
        for start in range(0, len(expected), MiB):
            assert reader.read(MiB) == expected[start : start + MiB]
        assert reader.read(MiB) == b""
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB
    finally:
        tracemalloc.stop()


def test_the_size_is_asked_for_once(client, bucket, large, traffic):
    """The end of an object of unknown size costs a HEAD, once."""
    reader = client.get_object(bucket, large[0], reader_config=S3ReaderConfig.range_based())
    traffic.restart()
    for size in (4, 8, 4):
        reader.seek(-size, io.SEEK_END)
        assert reader.read() == large[1][-size:]
    assert traffic.requests == 4
    assert traffic.bytes_received < 5 * _HEAD


def test_at_the_end_nothing_is_asked(open_large, traffic):
    """At the end of an object of known size there is nothing to ask for, with a buffer or without."""
    for reader in (open_large(), open_large(1000)):
        traffic.restart()
        reader.seek(0, io.SEEK_END)
        assert reader.read() + reader.read(10) + reader.readline() == b""
        assert reader.readinto(bytearray(10)) == 0
        assert traffic.requests == 0


# --- With a buffer ---------------------------------------------------------------------------------------------------


def test_a_buffer_serves_a_run_of_small_reads(open_large, large, traffic):
    """Small reads one after the other cost one request for as many as a buffer holds."""
    reader = open_large(64 * KiB)
    reader.seek(MiB)
    traffic.restart()
    for start in range(MiB, MiB + 64 * KiB, 128):
        assert reader.read(64) + _readinto(reader, 64) == large[1][start : start + 128]
    assert traffic.requests == 1
    assert 64 * KiB < traffic.bytes_received < 64 * KiB + _HEAD


def test_a_large_read_passes_the_buffer(open_large, large, traffic):
    """A read of the buffer's size or more is exactly its range, and leaves the buffer as it was."""
    reader = open_large(1000)
    reader.read(10)
    traffic.restart()
    for size in (1000, 5000):
        reader.seek(2000)
        assert reader.read(size) == large[1][2000 : 2000 + size]
        reader.seek(2000)
        assert _readinto(reader, size) == large[1][2000 : 2000 + size]
    assert traffic.requests == 4
    assert traffic.bytes_received < 12_000 + 4 * _HEAD
    reader.seek(990)
    assert reader.read(10) == large[1][990:1000]
    assert traffic.requests == 4


def test_a_read_over_the_edge_of_the_buffer(open_large, large, traffic):
    """What the buffer holds is used, and only the rest is fetched: with it the next buffer."""
    reader = open_large(100_000)
    traffic.restart()
    assert reader.read(60_000) + reader.read(60_000) == large[1][:120_000]
    assert traffic.requests == 2
    assert traffic.bytes_received < 200_000 + 2 * _HEAD
    assert reader.read(80_000) == large[1][120_000:200_000]
    assert traffic.requests == 2


def test_going_back(open_large, large, traffic):
    """Back inside of the buffer is free; before it, the buffer is filled anew from there."""
    reader = open_large(1000)
    reader.seek(5000)
    reader.read(10)
    traffic.restart()
    for start, requests in ((5990, 0), (5000, 0), (5500, 0), (4999, 1), (5990, 1), (5999, 2), (6990, 2)):
        reader.seek(start)
        assert reader.read(5) == large[1][start : start + 5]
        assert traffic.requests == requests


def test_the_buffer_ends_with_the_object(open_large, large, traffic):
    """Near the end the buffer is what is left, and asking on costs nothing."""
    reader = open_large(1000)
    reader.seek(-300, io.SEEK_END)
    traffic.restart()
    assert reader.read(200) + reader.read(200) + reader.read(200) == large[1][-300:]
    assert traffic.requests == 1
    assert traffic.bytes_received < 300 + _HEAD


def test_lines_have_a_buffer_of_their_own(open_large, large, traffic):
    """Lines are cut from 64 KiB that are kept, or from the buffer if it is larger."""
    for buffer_size, fetched in ((0, 64 * KiB), (1000, 64 * KiB), (MiB, MiB)):
        reader = open_large(buffer_size)
        traffic.restart()
        assert [next(reader) for _ in range(50)] == list(io.BytesIO(large[1][: 64 * KiB]))[:50]
        assert traffic.requests == 1
        assert fetched < traffic.bytes_received < fetched + _HEAD


def test_closing_releases(open_large):
    """A closed reader holds nothing of the object any more."""
    reader = open_large(20 * MiB)
    tracemalloc.start()
    try:
        reader.read(1)
        assert tracemalloc.get_traced_memory()[0] > 20 * MiB
        reader.close()
        assert tracemalloc.get_traced_memory()[0] < MiB
    finally:
        tracemalloc.stop()
