"""What hedging gives and takes: ``python -m tests.soak.hedging [ROUNDS] [BATCHES]``.

Batches of 64 objects of 100 kB of an S3MapDataset, read from a FaultyServer in a process of its own that answers 1 % of
the requests a second late; with hedging and without, in turns. Prints the time of a batch and the requests beyond one
for each object.
"""

from __future__ import annotations

import math
import statistics
import sys
import time

from s3torch import S3ClientConfig, S3MapDataset
from s3torch.testing import faults
from tests.soak.apart import BATCH, Rates, apart, batches, dataset_of


def rates_of(name: str) -> Rates:
    """Return one in a hundred a second late."""
    return {faults.late(1.0): 0.01} if name == "late" else {}


def batch_times(dataset: S3MapDataset[bytes], count: int, seed: int) -> list[float]:
    """Return the seconds of each batch."""
    seconds = []
    for wanted in batches(count, seed):
        began = time.perf_counter()
        dataset.__getitems__(wanted)
        seconds.append(time.perf_counter() - began)
    return seconds


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values do not exceed."""
    return sorted(values)[math.ceil(len(values) * share) - 1]


def main() -> int:
    """Run it, and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    print("| round | hedging | p50, ms | p99, ms | more requests |\n|---|---|---|---|---|")
    ratios, more = [], []
    with apart(rates_of, seed=1) as server:
        for number in range(1, rounds + 1):
            late = {}
            for hedging in (False, True) if number % 2 else (True, False):
                dataset = dataset_of(server.endpoint, S3ClientConfig(unsigned=True, hedging=hedging))
                server.rates("none")
                batch_times(dataset, 5, 0)  # what is usual has to be known before anything is late
                server.rates("late")
                before = dataset.client.stats.requests
                seconds = batch_times(dataset, count, number)
                extra = (dataset.client.stats.requests - before) / (count * BATCH) - 1
                dataset.client.close()
                late[hedging] = percentile(seconds, 0.99)
                p50 = statistics.median(seconds)
                name = "on" if hedging else "off"
                print(f"| {number} | {name} | {p50 * 1e3:.0f} | {late[hedging] * 1e3:.0f} | {extra:.2%} |", flush=True)
                if hedging:
                    more.append(extra)
            ratios.append(late[False] / late[True])
    print(f"medians: p99 {statistics.median(ratios):.1f} times better by {statistics.median(more):.2%} more requests")
    return 0 if statistics.median(ratios) >= 3 and statistics.median(more) < 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
