"""How large transfers are cut into requests. Pure arithmetic on half-open byte ranges."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "LEAST_TO_SPREAD",
    "MAX_OBJECT_SIZE",
    "MAX_PARTS",
    "MAX_PART_SIZE",
    "SMALLEST_PART",
    "coalesce",
    "even_part_size",
    "known_upload_part_size",
    "part_size_for",
    "split",
    "threads_for",
    "upload_part_size",
    "upload_parts_at_once",
]

MiB = 1024**2

# Limits of a multipart upload (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). The largest object
# is one of the largest parts: 48.8 TiB, which S3 announces as 50 TB.
MAX_PART_SIZE = 5 * 1024**3
MAX_PARTS = 10_000
MAX_OBJECT_SIZE = MAX_PARTS * MAX_PART_SIZE

# Doubling the size every 300 parts reaches 39 TB by part 10,000, from the smallest part size (5 MiB), and keeps the
# parts of a stream of 140 GB at 256 MiB, of which several are sent at the same time. To reach 50 TB, sizes would have
# to double every 76 parts: those of such a stream would have 1 GiB, and go out one after the other.
_PARTS_PER_DOUBLING = 300
# Parts that have grown and are in memory, that which is filled among them, and times ``max_bytes_in_flight`` that they
# may take: with fewer, large parts would go out one after the other, by a connection each. Not tuned.
_GROWN_PARTS = 4
_MEMORY_OF_GROWN_PARTS = 4


# Of a lone read, in bytes: a connection of S3 brings this in about 45 ms, after 20 ms of waiting for its first byte.
# Measured at that latency and speed: 16 MiB took 90 ms in parts of 4 MiB, 134 ms in parts of 8 and 70 ms in parts of 2,
# which are twice as many requests.
SMALLEST_PART = 4 * 1024**2

# Bytes of a read that may be spread over two threads, and half of them for each one more. They take 25 ms at 2.5 GB/s,
# and the start of a thread 0.1. Not tuned.
LEAST_TO_SPREAD = 64 * 1024**2


def part_size_for(length: int, usual: int, others: int, connections: int, memory: int) -> int:
    """Return how large the parts of a read are to be.

    A lone read is spread over all connections. When others keep them busy, more parts win nothing: then a part is as
    large as memory allows if each connection is to have one.

    Args:
        length: Bytes of the read.
        usual: Bytes of a part by the configuration.
        others: How many requests are in flight or queued.
        connections: How many there may be.
        memory: Bytes of answers that may be in flight.
    """
    if others >= connections:
        return max(usual, memory // connections)
    if others:
        return usual
    return min(usual, max(SMALLEST_PART, -(-length // connections)))


def threads_for(length: int, most: int, *, is_tls: bool, is_new: bool) -> int:
    """Return how many threads a read is to be spread over, the caller's included.

    What takes CPU time and lets go of the interpreter is decryption, and the pages of new memory; the copy into memory
    that is there already is limited by the memory itself (measured: docs/design.md).

    Args:
        length: Bytes of the read.
        most: How many threads there may be.
        is_tls: Whether what arrives must be decrypted.
        is_new: Whether the kernel has yet to make the pages of the memory.
    """
    if not (is_tls or is_new):
        return 1
    return max(1, min(most, length // (LEAST_TO_SPREAD // 2)))


def even_part_size(length: int, part_size: int) -> int:
    """Return a part size near the given one, with which the last part is no shorter than the others.

    Args:
        length: Bytes of the read.
        part_size: In bytes.
    """
    return -(-length // max(1, round(length / part_size)))


def split(start: int, stop: int, part_size: int) -> list[tuple[int, int]]:
    """Cut ``[start, stop)`` into ranges of ``part_size`` bytes; the last may be shorter.

    Returns:
        The ranges in order; none when ``stop <= start``.
    """
    return [(left, min(left + part_size, stop)) for left in range(start, stop, part_size)]


def coalesce(ranges: Sequence[tuple[int, int]], max_gap: int, max_size: int) -> list[list[int]]:
    """Group ranges that are better read by one request.

    Args:
        ranges: Half-open, in any order. Those that overlap stay apart: each byte of a group has one place to go.
        max_gap: Bytes between two ranges that are read for nothing rather than sending another request.
        max_size: Bytes of a group, gaps included, at most; a single larger range is a group of its own.

    Returns:
        The groups: indices into ``ranges``, each group in the order of its bytes. Empty ranges are in none.
    """
    groups: list[list[int]] = []
    begin = end = 0
    for index in sorted(range(len(ranges)), key=lambda index: ranges[index]):
        start, stop = ranges[index]
        if start == stop:
            continue
        if groups and end <= start <= end + max_gap and stop - begin <= max_size:
            groups[-1].append(index)
        else:
            groups.append([index])
            begin = start
        end = stop
    return groups


def upload_part_size(part_number: int, part_size: int) -> int:
    """Return the size in bytes of a part of an upload whose length is not known beforehand.

    Args:
        part_number: 1 to 10,000, as S3 counts.
        part_size: Size of the first parts.
    """
    if not 1 <= part_number <= MAX_PARTS:
        raise AssertionError(f"part {part_number} of an upload")
    return min(part_size << ((part_number - 1) // _PARTS_PER_DOUBLING), MAX_PART_SIZE)


def known_upload_part_size(size: int, part_size: int, most: int = MAX_PARTS) -> int:
    """Return the size in bytes of all parts but the last, of an upload whose length is known.

    Args:
        size: Of the object, in bytes; ``most`` parts of 5 GiB at most.
        part_size: By the configuration.
        most: How many parts there may be.
    """
    if not 0 <= size <= most * MAX_PART_SIZE:
        raise AssertionError(f"an upload of {size} bytes")
    least = -(-size // most)
    return part_size if least <= part_size else -(-least // MiB) * MiB


def upload_parts_at_once(capacity: int, part_size: int, memory: int) -> int:
    """Return how many parts of an upload may be under way while another is filled.

    Args:
        capacity: Bytes of each.
        part_size: Bytes of a part by the configuration.
        memory: Bytes that may be in flight by the configuration.
    """
    if capacity > part_size:
        memory = max(memory, min(_GROWN_PARTS * capacity, _MEMORY_OF_GROWN_PARTS * memory))
    return max(1, memory // capacity - 1)
