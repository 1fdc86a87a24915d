"""How long a large prefix takes to list, and what it costs the client: ``python benchmarks/listing.py``.

A stub in a process of its own answers ListObjectsV2 for a million keys like ``data/train/class_000123/
image_00123456.jpg``, each page of up to 1,000 keys out of memory and 50 ms after it was asked for, which is about what
Amazon S3 takes. It knows prefix, start-after, continuation-token and max-keys, and no signatures. Each client lists in
a fresh process; its imports are not counted. boto3 lists a tenth of the keys, which shows what a page costs it.

Needs s3torch; s3torchconnector and boto3 are measured if they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

REGION = "us-east-1"
BUCKET = "bucket"
PREFIX = "data/train/"
TENTH = "data/train/class_0000"
KEYS = 1_000_000
PAGE = 1000
LATENCY = 0.05  # seconds

Result = dict[str, float]


def key_of(number: int) -> str:
    """Return a key; they sort as their numbers do."""
    return f"data/train/class_{number // 1000:06}/image_{number:08}.jpg"


# --- The stub ---------------------------------------------------------------------------------------------------------


class Pages:
    """All pages that can be asked for, as slices of one text: the XML of every key has the same length."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)
        first = self._object(0)
        self._length = len(first)
        self._xml = "".join(map(self._object, self._numbers)).encode()

    def answer(self, target: str) -> bytes:
        """Return the answer to a request."""
        query = dict(parse_qsl(urlsplit(target).query))
        prefix = query.get("prefix", "")
        start = bisect_left(self._numbers, prefix, key=key_of)
        end = bisect_left(self._numbers, prefix + "\U0010ffff", key=key_of)
        if "start-after" in query:
            start = max(start, bisect_right(self._numbers, query["start-after"], key=key_of))
        if "continuation-token" in query:
            start = int(query["continuation-token"])
        stop = max(start, min(end, start + int(query.get("max-keys", PAGE))))
        following = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < end else ""
        encoding = "<EncodingType>url</EncodingType>" if query.get("encoding-type") == "url" else ""
        head = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix>{following}<KeyCount>{stop - start}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys>{encoding}<IsTruncated>{str(stop < end).lower()}</IsTruncated>"
        ).encode()
        tail = b"</ListBucketResult>"
        body = memoryview(self._xml)[start * self._length : stop * self._length]
        length = len(head) + len(body) + len(tail)
        fields = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n".encode()
        return b"".join([fields, head, body, tail])

    @staticmethod
    def _object(number: int) -> str:
        return (
            f"<Contents><Key>{key_of(number)}</Key><LastModified>2024-02-29T23:59:59.000Z</LastModified>"
            "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
            f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{100_000 + number % 50_000}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


class Connection(asyncio.Protocol):
    """Answers one request after another, each a while after it came."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer if the request, which has no body, is complete."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            asyncio.get_running_loop().call_later(LATENCY, self._answer, target)

    def _answer(self, target: str) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._pages.answer(target))


async def serve(count: int) -> None:
    """Answer until standard input ends; the port is the first line of standard output."""
    pages = Pages(count)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pages), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


# --- The clients: each returns what lists, and gives the number of keys -----------------------------------------------


def s3torch(endpoint: str) -> Callable[[], int]:
    """The listing of a map dataset."""
    from s3torch import S3MapDataset

    return lambda: len(S3MapDataset.from_prefix(f"s3://{BUCKET}/{PREFIX}", region=REGION, endpoint=endpoint))


def s3torch_stream(endpoint: str) -> Callable[[], int]:
    """The listing of an iterable dataset, a page ahead of who reads it."""
    from s3torch import S3Client
    from s3torch.datasets.objects import list_prefix

    return lambda: sum(1 for _ in list_prefix(S3Client(REGION, endpoint=endpoint), BUCKET, TENTH))


def s3torchconnector(endpoint: str) -> Callable[[], int]:
    """The listing of a map dataset."""
    from s3torchconnector import S3ClientConfig, S3MapDataset

    config = S3ClientConfig(force_path_style=True)
    return lambda: len(
        S3MapDataset.from_prefix(f"s3://{BUCKET}/{PREFIX}", region=REGION, endpoint=endpoint, s3client_config=config)
    )


def boto3(endpoint: str) -> Callable[[], int]:
    """The paginator, keys and sizes kept."""
    import boto3

    paginator = boto3.client("s3", region_name=REGION, endpoint_url=endpoint).get_paginator("list_objects_v2")
    pages = paginator.paginate(Bucket=BUCKET, Prefix=TENTH)
    return lambda: len([(item["Key"], item["Size"]) for page in pages for item in page["Contents"]])


# What prepares the work, and the package that it needs.
CLIENTS: dict[str, tuple[Callable[[str], Callable[[], int]], str]] = {
    "s3torch": (s3torch, "s3torch"),
    "s3torch, stream": (s3torch_stream, "s3torch"),
    "s3torchconnector": (s3torchconnector, "s3torchconnector"),
    "boto3": (boto3, "boto3"),
}


def measure(name: str, endpoint: str) -> Result:
    """List once; returns keys, wall-clock seconds and CPU seconds of all threads."""
    work = CLIENTS[name][0](endpoint)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    keys = work()
    return {"keys": keys, "wall_s": time.perf_counter() - wall, "cpu_s": _cpu_seconds() - cpu}


def measure_table(endpoint: str) -> Result:
    """Return what s3torch's table costs: bytes beside the key, seconds of a look-up, of saving and of loading."""
    import pickle
    import random
    import tempfile

    from s3torch import S3MapDataset
    from s3torch.datasets import ObjectTable

    table = S3MapDataset.from_prefix(f"s3://{BUCKET}/{PREFIX}", region=REGION, endpoint=endpoint).objects
    indices = random.choices(range(len(table)), k=200_000)
    start = time.perf_counter()
    for index in indices:
        table[index]
    lookup = (time.perf_counter() - start) / len(indices)
    held = sum(sys.getsizeof(getattr(table, name)) for name in ObjectTable.__slots__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table")
        start = time.perf_counter()
        table.save(path)
        saved = time.perf_counter()
        ObjectTable.load(path)
        loaded = time.perf_counter()
    return {
        "bytes_beside_key": held / len(table) - len(key_of(0)),
        "pickled_beside_key": len(pickle.dumps(table)) / len(table) - len(key_of(0)),
        "lookup_us": lookup * 1e6,
        "save_s": saved - start,
        "load_s": loaded - saved,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- The comparison ---------------------------------------------------------------------------------------------------


def run(name: str, endpoint: str) -> Result:
    """Measure in a fresh process."""
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--client", name, "--endpoint", endpoint],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def compare(rounds: int, names: list[str]) -> None:
    """Start the stub, measure, and print a Markdown table of the medians."""
    missing = sorted({CLIENTS[name][1] for name in names if importlib.util.find_spec(CLIENTS[name][1]) is None})
    for package in missing:
        print(f"{package} is not installed and is left out.", file=sys.stderr)
    names = [name for name in names if CLIENTS[name][1] not in missing]
    stub = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        endpoint = f"http://127.0.0.1:{int(stub.stdout.readline())}"
        results: dict[str, list[Result]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names:
                print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
                results[name].append(run(name, endpoint))
        print("| client | keys | wall s (min-max) | keys/s | CPU ms per 1,000 keys |")
        print("|---|---|---|---|---|")
        for name, samples in results.items():
            walls = [sample["wall_s"] for sample in samples]
            keys, wall = samples[0]["keys"], statistics.median(walls)
            cpu = statistics.median(sample["cpu_s"] for sample in samples)
            print(
                f"| {name} | {keys:,.0f} | {wall:.2f} ({min(walls):.2f}-{max(walls):.2f}) | {keys / wall:,.0f} "
                f"| {cpu * 1e6 / keys:.2f} |"
            )
        table = run("table", endpoint)
        print(
            f"\ns3torch's table: {table['bytes_beside_key']:.1f} bytes a key beside the key "
            f"({table['pickled_beside_key']:.1f} pickled), a look-up {table['lookup_us']:.2f} us, "
            f"saved in {table['save_s']:.2f} s, loaded in {table['load_s']:.2f} s."
        )
    finally:
        stub.communicate()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(KEYS))
    elif arguments.client:
        is_table = arguments.client == "table"
        result = measure_table(arguments.endpoint) if is_table else measure(arguments.client, arguments.endpoint)
        print(json.dumps(result))
    else:
        compare(arguments.rounds, arguments.clients)


if __name__ == "__main__":
    main()
