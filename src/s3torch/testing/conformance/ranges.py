"""Checks of ranges, and of the readers that live by them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from s3torch._aws.operations import GetObject
from s3torch.config import S3ReaderConfig
from s3torch.errors import UnverifiedError
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnsupportedError, equal, same_bytes, that
from s3torch.testing.conformance.site import MiB

if TYPE_CHECKING:
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS", "READ"]

CHECKS = Checks()

_SIZE = 10_000
# What every reader relies on.
READ = (
    "object.large",
    "object.head",
    "object.etag",
    "checksum.right",
    "range.bytes",
    "range.past-end",
    "range.if-match",
)


@CHECKS.add(
    "range.bytes",
    "A range is answered by exactly its bytes, with status 206 and a Content-Range that says so.",
    "Nothing but whole objects can be read: no reader that seeks, no part of a checkpoint, no large object.",
)
def _bytes(site: Site) -> None:
    content = os.urandom(_SIZE)
    key = site.put(content)
    for start, stop in ((0, 1), (100, 200), (_SIZE - 1, _SIZE), (0, _SIZE), (1, _SIZE)):
        answer = site.send("GET", key, fields={"range": f"bytes={start}-{stop - 1}"})
        what = f"the answer to bytes={start}-{stop - 1} of {_SIZE}"
        equal(answer.status, 206, f"the status of {what}")
        equal(answer.answered.get("content-range"), f"bytes {start}-{stop - 1}/{_SIZE}", f"the Content-Range of {what}")
        same_bytes(answer.body, content[start:stop], what)
    same_bytes(site.client.read_range(site.bucket, key, 100, 200), content[100:200], "read_range")


@CHECKS.add(
    "range.past-end",
    "A range that reaches beyond the end of the object gives what there is.",
    "A read of the first bytes of a small object fails.",
    needs=["range.bytes", "checksum.right"],
)
def _past_end(site: Site) -> None:
    content = os.urandom(_SIZE)
    key = site.put(content)
    for start in (0, 100, _SIZE - 1):
        answer = site.send("GET", key, fields={"range": f"bytes={start}-{_SIZE * 10}"})
        what = f"the answer to bytes={start}-{_SIZE * 10} of {_SIZE}"
        that(answer.status in {200, 206}, f"the status of {what} is {answer.status}")
        same_bytes(answer.body, content[start:], what)
        same_bytes(site.client.read_range(site.bucket, key, start, _SIZE * 10), content[start:], "read_range")


@CHECKS.add(
    "range.open-end",
    "A range without an end (`bytes=5-`) gives all that follows.",
    "s3torch sends no such range; other readers of the bucket do.",
    needs=["range.bytes"],
)
def _open_end(site: Site) -> None:
    content = os.urandom(_SIZE)
    answer = site.send("GET", site.put(content), fields={"range": "bytes=5-"})
    equal(answer.status, 206, "the status of the answer to bytes=5-")
    same_bytes(answer.body, content[5:], "the answer to bytes=5-")


@CHECKS.add(
    "range.suffix",
    "A suffix (`bytes=-7`) gives the last bytes, and the whole object where it is longer than that.",
    "s3torch sends no such range; other readers of Parquet and ZIP files do.",
    needs=["range.bytes"],
)
def _suffix(site: Site) -> None:
    content = os.urandom(_SIZE)
    key = site.put(content)
    for count in (7, _SIZE, _SIZE * 2):
        answer = site.send("GET", key, fields={"range": f"bytes=-{count}"})
        same_bytes(answer.body, content[-count:], f"the answer to bytes=-{count} of {_SIZE}")


@CHECKS.add(
    "range.unsatisfiable",
    "A range that begins at the end of the object or beyond is status 416, and b'' from read_range.",
    "A read at the end of an object raises an error instead of returning b''.",
    needs=["range.bytes", "checksum.right"],
)
def _unsatisfiable(site: Site) -> None:
    key = site.put(os.urandom(_SIZE))
    for start in (_SIZE, _SIZE * 2):
        answer = site.send("GET", key, fields={"range": f"bytes={start}-{start + 10}"})
        equal(answer.status, 416, f"the status of the answer to bytes={start}-{start + 10} of {_SIZE}")
        same_bytes(site.client.read_range(site.bucket, key, start, start + 10), b"", "read_range beyond the end")


@CHECKS.add(
    "range.empty-object",
    "A range of an object of 0 bytes gives none, without an error.",
    "Empty objects raise errors when they are read: leave them out of datasets.",
    needs=["range.bytes", "object.empty"],
)
def _empty_object(site: Site) -> None:
    key = site.put(b"")
    same_bytes(site.client.read_range(site.bucket, key, 0, 100), b"", "read_range of the empty object")
    answer = site.send("GET", key, fields={"range": "bytes=0-99"})
    that(answer.status in {200, 206, 416}, f"the status of the answer to bytes=0-99 of 0 is {answer.status}")
    if answer.status != 416:
        same_bytes(answer.body, b"", "the answer to bytes=0-99 of the empty object")


@CHECKS.add(
    "range.if-match",
    "A range with an If-Match of another ETag is status 412, so that two versions of an object are never mixed.",
    "An object that is replaced while it is read in parts gives a mixture of both versions, without an error.",
    needs=["range.bytes", "condition.get-if-match"],
)
def _if_match(site: Site) -> None:
    key = site.put(b"content")
    etag = site.send("HEAD", key).answered.get("etag", "")
    right = site.send("GET", key, fields={"range": "bytes=1-3", "if-match": etag})
    equal((right.status, right.body), (206, b"ont"), "status and body of a range with the right If-Match")
    wrong = site.send("GET", key, fields={"range": "bytes=1-3", "if-match": '"00000000000000000000000000000000"'})
    equal(wrong.status, 412, "the status of a range with an If-Match of another ETag")


@CHECKS.add(
    "range.vectors",
    "Many ranges of an object are read side by side, near ones by one request.",
    "read_ranges, Parquet and safetensors give wrong bytes or errors.",
    needs=["range.bytes", "range.if-match", "object.large"],
)
def _vectors(site: Site) -> None:
    content = os.urandom(1 * MiB)
    key = site.put(content, site.key("vectors"))
    ranges = [(start, start + 100) for start in range(0, 1 * MiB - 100, 50_021)] + [(0, 0), (5, 105), (7, 8)]
    for (start, stop), got in zip(ranges, site.client.read_ranges(site.bucket, key, ranges), strict=True):
        same_bytes(got, content[start:stop], f"the range [{start}, {stop}) of read_ranges")


@CHECKS.add(
    "range.parallel",
    "A large object is read in parallel parts over many connections, and each part is right.",
    "Large objects cannot be read: set S3ClientConfig(max_connections=1), or a larger part_size.",
    needs=[*READ, "multipart.upload"],
)
def _parallel(site: Site) -> None:
    content = os.urandom(12 * MiB)
    key = site.put(content, site.key("parallel"))
    same_bytes(site.read(key), content, "an object of 12 MiB read in parts")
    memory = bytearray(9 * MiB)
    site.client.read_range(site.bucket, key, 1 * MiB, 10 * MiB, memory)
    same_bytes(memory, content[1 * MiB : 10 * MiB], "9 MiB of it, received into memory")


def _check_reader(site: Site, config: S3ReaderConfig) -> None:
    """Read, seek and read again, as a library that parses a file does."""
    content = os.urandom(3 * MiB)
    key = site.put(content, site.key(config.reader_type.value))
    with site.client.get_object(site.bucket, key, reader_config=config) as reader:
        same_bytes(reader.read(100), content[:100], "the first 100 bytes")
        equal(reader.seek(-100, 2), len(content) - 100, "the position 100 bytes before the end")
        same_bytes(reader.read(), content[-100:], "the last 100 bytes")
        for position in (2 * MiB, 50, 1 * MiB + 1):
            reader.seek(position)
            same_bytes(reader.read(70_000), content[position : position + 70_000], f"70,000 bytes from {position}")


@CHECKS.add(
    "reader.sequential",
    "The sequential reader reads, seeks, and reads again.",
    "Datasets and get_object raise errors.",
    needs=READ,
)
def _sequential(site: Site) -> None:
    _check_reader(site, S3ReaderConfig.sequential())


@CHECKS.add(
    "reader.range-based",
    "The range-based reader reads, seeks, and reads again.",
    "Use S3ReaderConfig.sequential().",
    needs=READ,
)
def _range_based(site: Site) -> None:
    _check_reader(site, S3ReaderConfig.range_based())


@CHECKS.add(
    "reader.adaptive",
    "The adaptive reader reads, seeks, and reads again.",
    "Use S3ReaderConfig.sequential().",
    needs=READ,
)
def _adaptive(site: Site) -> None:
    _check_reader(site, S3ReaderConfig.adaptive())


@CHECKS.add(
    "reader.strict",
    'What was written is read with checksums="strict", small or in parts, and proven.',
    'Do not set checksums="strict".',
    needs=[*READ, "checksum.stored", "checksum.multipart", "range.parallel"],
)
def _strict(site: Site) -> None:
    client = site.new_client(checksums="strict")
    try:
        for size in (1000, 6 * MiB):
            content = os.urandom(size)
            same_bytes(site.read(site.put(content, client=client), client), content, f"an object of {size} bytes")
    except UnverifiedError as error:
        raise UnsupportedError(str(error)) from None
    finally:
        client.close()


@CHECKS.add(
    "connection.parallel",
    "64 objects are read at the same time, each with its own bytes.",
    "Set S3ClientConfig(max_connections=...) to fewer than the default of 128.",
    needs=["range.bytes", "checksum.right"],
)
def _many(site: Site) -> None:
    folder = f"{site.folder()}many/"
    contents = {f"{folder}{number}": os.urandom(5000) for number in range(8)}
    for key, content in contents.items():
        site.put(content, key)
    access = site.client._access  # many reads of one call
    memory = [(key, bytearray(5000)) for key in list(contents) * 8]
    access.run([GetObject(access.bucket(site.bucket), key, 0, 5000, memoryview(room)) for key, room in memory])
    for key, room in memory:
        same_bytes(room, contents[key], "one of 64 objects that were read at the same time")


@CHECKS.add(
    "connection.keep-alive",
    "A connection serves one request after the other.",
    "Each request opens a connection of its own, and over TLS shakes hands: small objects come several times slower.",
)
def _keep_alive(site: Site) -> None:
    key = site.put(b"content")
    opened = site.client.stats.connections_opened
    for _ in range(5):
        same_bytes(site.send("GET", key).body, b"content", "the object")
    if (more := site.client.stats.connections_opened - opened) > 1:
        raise UnsupportedError(f"5 requests, one after the other, took {more} new connections")
