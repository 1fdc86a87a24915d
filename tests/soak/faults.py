"""Reads small objects by the hundred thousand under random faults: ``python -m tests.soak.faults [READS] [SEED]``.

Prints, as rows of a table, how many reads were right, wrong, or ended with an error, how many faults there were, and
how many requests that took. Exits with 1 if bytes were wrong, or if an error is none of ours.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import replace

from s3torch import S3MapDataset, S3Reader
from s3torch.errors import S3Error
from s3torch.testing import FaultyServer, faults

COUNT = 1000  # objects
BATCH = 100
# What may happen to any request and passes; 5 % together.
RATES = {
    faults.reset_before_head: 0.006,
    faults.reset_after_head: 0.006,
    faults.reset_mid_body: 0.006,
    faults.close_before_head: 0.006,
    faults.truncate: 0.006,
    faults.close_idle: 0.004,
    faults.chunked: 0.003,
    faults.until_close: 0.003,
    faults.late(0.05): 0.002,
    faults.stall(0.05): 0.001,
    faults.stall: 0.0002,
    faults.stall_before_head: 0.0002,
    faults.wrong_content_range: 0.001,
    faults.other_range: 0.001,
    faults.wrong_length: 0.001,
    faults.garbage_head: 0.001,
    faults.many_fields(1000): 0.0006,
    faults.status(500, "InternalError"): 0.002,
    faults.status(503, "SlowDown"): 0.0005,
    faults.status(429): 0.0005,
}


def content_of(number: int) -> bytes:
    """Return what is in an object: some hundred bytes of its own."""
    return random.Random(number).randbytes(200 + number % 800)


def sample(reader: S3Reader) -> tuple[str, bytes]:
    """Return key and content."""
    return reader.key, reader.read()


def soak(reads: int, seed: int) -> Counter[str]:
    """Read objects in random order, in batches, and return what came of it."""
    contents = {f"objects/{number:04}": content_of(number) for number in range(COUNT)}
    keys, order, counts = list(contents), random.Random(seed), Counter[str]()
    with FaultyServer(contents, seed=seed) as server:
        server.rates(RATES)
        config = replace(server.config, first_byte_timeout=1.0, stall_timeout=1.0, max_connections=32)
        uris = [f"s3://bucket/{key}" for key in keys]
        dataset = S3MapDataset.from_objects(uris, endpoint=server.endpoint, transform=sample, s3client_config=config)
        while counts["reads"] < reads:
            wanted = order.choices(range(COUNT), k=BATCH)
            counts["reads"] += BATCH
            try:
                samples = dataset.__getitems__(wanted)
            except S3Error as error:
                counts[f"batches with {type(error).__name__}"] += 1
                continue
            except Exception as error:  # noqa: BLE001 - is counted
                counts["unexplained errors"] += 1
                print(repr(error), file=sys.stderr)
                continue
            right = [contents[keys[number]] == content for number, (_, content) in zip(wanted, samples, strict=True)]
            counts["right"] += sum(right)
            counts["wrong"] += BATCH - sum(right)
        counts["requests"] = len(server.requests)
        counts["connections"] = server.connections
        counts["faults"] = sum(server.injected.values())
        counts["retries"] = dataset._client.stats.retries
        dataset._client.close()
    return counts


def main() -> int:
    """Run it, and print the counts."""
    reads = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()
    counts = soak(reads, seed)
    counts.update({"wrong": 0, "unexplained errors": 0, "seconds": round(time.monotonic() - began)})
    for name, count in counts.items():
        print(f"| {name} | {count:,} |")
    return 1 if counts["wrong"] or counts["unexplained errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
