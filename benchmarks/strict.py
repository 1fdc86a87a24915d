"""``python -m benchmarks.strict``: what ``checksums="strict"`` costs for an upload of boto3, beside one of our own.

The same bytes are uploaded by boto3 with its defaults (parts of 8 MiB, a checksum of the type COMPOSITE) and by s3torch
(a checksum of all bytes). Both are read whole by ``strict``, in turns, into the same memory; requests, seconds and CPU
time are compared, and those of ``on``, which verifies neither, stand beside. A real server, SeaweedFS, on this machine.
boto3 is needed: ``pip install boto3``.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from typing import NamedTuple

from benchmarks.content import content
from benchmarks.site import MIB
from s3torch import S3Client, S3ClientConfig
from s3torch.testing import LocalS3

__all__ = ["main"]

_BUCKET = "benchmarks"
# boto3's default (TransferConfig.multipart_chunksize), so that both uploads have the same parts.
_PART_SIZE = 8 * MIB


class _Cost(NamedTuple):
    requests: int
    seconds: float
    cpu_seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strict", description="What strict costs.")
    parser.add_argument("--size", type=int, default=256, help="of the object, in MiB (default: 256)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of all (default: 7)")
    options = parser.parse_args(arguments)
    size = options.size * MIB
    memory = bytearray(content(0, size))
    costs: dict[str, list[_Cost]] = {}
    with LocalS3() as server, server.activated():
        server.create_bucket(_BUCKET)
        kind = _upload_by_boto3(server, memory)
        config = S3ClientConfig(part_size=_PART_SIZE)
        client = S3Client(server.region, endpoint=server.endpoint, s3client_config=config)
        with client.put_object(_BUCKET, "ours", size=size) as writer:
            writer.write(memory)
        for _ in range(options.rounds):
            for mode in ("on", "strict"):
                for key in ("boto3", "ours"):
                    costs.setdefault(f"{mode}, {key}", []).append(_read(server, key, mode, memory))
    print(f"{options.size} MiB, {options.rounds} rounds; boto3 stored a checksum of the type {kind}")
    for name, found in costs.items():
        cpu = [cost.cpu_seconds * 1024 * MIB / size for cost in found]
        print(
            f"  {name + ':':16}{found[0].requests} requests, "
            f"{statistics.median(cost.seconds for cost in found):.2f} s, "
            f"CPU {statistics.median(cpu):.3f} s/GiB ({min(cpu):.3f}-{max(cpu):.3f})"
        )
    theirs, ours = costs["strict, boto3"], costs["strict, ours"]
    ratios = [one.cpu_seconds / other.cpu_seconds for one, other in zip(theirs, ours, strict=True)]
    print(f"  strict, boto3 over ours: requests {theirs[0].requests / ours[0].requests:.3f}, ", end="")
    print(f"CPU {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return 0


def _upload_by_boto3(server: LocalS3, memory: bytearray) -> str:
    """Upload as boto3 does by default; returns the type of the checksum that the server keeps."""
    import boto3

    client = boto3.client("s3", endpoint_url=server.endpoint, region_name=server.region)
    client.upload_fileobj(io.BytesIO(memory), _BUCKET, "boto3")
    head = client.head_object(Bucket=_BUCKET, Key="boto3", ChecksumMode="ENABLED")
    return str(head["ChecksumType"])


def _read(server: LocalS3, key: str, mode: str, memory: bytearray) -> _Cost:
    config = S3ClientConfig(part_size=_PART_SIZE, checksums="strict" if mode == "strict" else "on", hedging=False)
    client = S3Client(server.region, endpoint=server.endpoint, s3client_config=config)
    client.head_object(_BUCKET, key)  # what a client begins with is not measured
    requests, cpu, began = client.stats.requests, time.process_time(), time.perf_counter()
    client.read_range(_BUCKET, key, 0, None, into=memory)
    cost = _Cost(client.stats.requests - requests, time.perf_counter() - began, time.process_time() - cpu)
    client.close()
    return cost


if __name__ == "__main__":
    sys.exit(main())
