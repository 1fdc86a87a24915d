"""A stub of ListObjectsV2: ``python -m benchmarks.servers.listing KEYS`` answers until its standard input ends.

It knows keys like ``data/train/class_000123/image_00123456.jpg``, each page of up to 1,000 of them out of memory and
50 ms after it was asked for, which is about what Amazon S3 takes. It knows prefix, start-after, continuation-token and
max-keys, and no signatures.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from benchmarks.processes import started

__all__ = ["BUCKET", "PREFIX", "Pages", "key_of", "serve", "tenth_of"]

BUCKET = "bucket"
PREFIX = "data/train/"
_PAGE = 1000
_LATENCY = 0.05  # seconds
_CLASS = 1000  # keys of one directory
_DIGITS = 6  # of a directory's number


def key_of(number: int) -> str:
    """Return a key; they sort as their numbers do."""
    return f"{PREFIX}class_{number // _CLASS:0{_DIGITS}}/image_{number:08}.jpg"


def tenth_of(keys: int) -> str:
    """Return a prefix of about a tenth of the keys: of as many as a power of ten of directories has."""
    directories = max(1, keys // _CLASS // 10)
    return f"{PREFIX}class_{'0' * (_DIGITS - len(str(directories)) + 1)}"


class Pages:
    """All pages that can be asked for, as slices of one text: the XML of every key has the same length.

    Args:
        count: Of the keys.
    """

    def __init__(self, count: int) -> None:
        self._numbers = range(count)
        self._length = len(_object(0))
        self._xml = "".join(map(_object, self._numbers)).encode()

    def answer(self, target: str) -> bytes:
        """Return the answer to a request.

        Args:
            target: Path and query.
        """
        query = dict(parse_qsl(urlsplit(target).query))
        prefix = query.get("prefix", "")
        start = bisect_left(self._numbers, prefix, key=key_of)
        end = bisect_left(self._numbers, prefix + "\U0010ffff", key=key_of)
        if "start-after" in query:
            start = max(start, bisect_right(self._numbers, query["start-after"], key=key_of))
        if "continuation-token" in query:
            start = int(query["continuation-token"])
        stop = max(start, min(end, start + int(query.get("max-keys", _PAGE))))
        following = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < end else ""
        encoding = "<EncodingType>url</EncodingType>" if query.get("encoding-type") == "url" else ""
        head = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix>{following}<KeyCount>{stop - start}</KeyCount>"
            f"<MaxKeys>{_PAGE}</MaxKeys>{encoding}<IsTruncated>{str(stop < end).lower()}</IsTruncated>"
        ).encode()
        tail = b"</ListBucketResult>"
        body = memoryview(self._xml)[start * self._length : stop * self._length]
        length = len(head) + len(body) + len(tail)
        fields = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n".encode()
        return b"".join([fields, head, body, tail])


class _Connection(asyncio.Protocol):
    """Answers one request after another, each a while after it came."""

    _transport: asyncio.Transport

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, received: bytes) -> None:
        self._received += received
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            asyncio.get_running_loop().call_later(_LATENCY, self._answer, target)

    def _answer(self, target: str) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._pages.answer(target))


@contextmanager
def serve(keys: int) -> Iterator[int]:
    """Run the stub in a process of its own until the block ends; gives its port on 127.0.0.1."""
    command = [sys.executable, "-m", __name__, str(keys)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise RuntimeError("the stub of listings did not start")
        yield int(port)


def _object(number: int) -> str:
    return (
        f"<Contents><Key>{key_of(number)}</Key><LastModified>2024-02-29T23:59:59.000Z</LastModified>"
        "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{100_000 + number % 50_000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


async def _answer_until_told(keys: int) -> None:
    pages = Pages(keys)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(pages), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_answer_until_told(int(sys.argv[1])))
