"""What 1 % of faults costs: ``python -m tests.soak.throughput [ROUNDS] [BATCHES]``.

Batches of 64 objects of 100 kB of an S3MapDataset, read from a FaultyServer in a process of its own; each round without
faults and with them, in turns. Prints the rates, and the median of their ratios.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter

from s3torch import S3ClientConfig, S3MapDataset
from tests.soak.apart import BATCH, SIZE, Rates, apart, batches, dataset_of
from tests.soak.faults import RATES

# A fault that stands still costs its timeout, whatever the client does: they are those of the soak.
CONFIG = S3ClientConfig(unsigned=True, connect_timeout=1.0, first_byte_timeout=1.0, stall_timeout=1.0)


def rates_of(name: str) -> Rates:
    """Return a fifth of the rates of the soak, which are 5 % together."""
    return {} if name == "none" else {fault: rate / 5 for fault, rate in RATES.items()}


def samples_per_second(dataset: S3MapDataset[bytes], contents: list[bytes], count: int, seed: int) -> float:
    """Read batches; all bytes are compared, which the clock does not count."""
    seconds = 0.0
    for wanted in batches(count, seed):
        began = time.perf_counter()
        found = dataset.__getitems__(wanted)
        seconds += time.perf_counter() - began
        assert found == [contents[number] for number in wanted]
    return count * BATCH / seconds


def main() -> int:
    """Run it, and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    contents = [random.Random(number).randbytes(SIZE) for number in range(512)]
    ratios, injected = [], Counter[str]()
    print("| round | samples/s without faults | with 1 % | ratio |\n|---|---|---|---|")
    with apart(rates_of, seed=1) as server:
        datasets = {name: dataset_of(server.endpoint, CONFIG) for name in ("none", "some")}
        server.rates("none")
        for dataset in datasets.values():
            samples_per_second(dataset, contents, 5, 0)
        for number in range(1, rounds + 1):
            rates = {}
            for name in ("none", "some") if number % 2 else ("some", "none"):
                injected += server.rates(name)
                rates[name] = samples_per_second(datasets[name], contents, count, number)
            ratios.append(rates["some"] / rates["none"])
            print(f"| {number} | {rates['none']:,.0f} | {rates['some']:,.0f} | {ratios[-1]:.2f} |", flush=True)
        injected += server.rates("none")
        stats = datasets["some"].client.stats
        for dataset in datasets.values():
            dataset.client.close()
    print(f"median ratio {statistics.median(ratios):.2f}; {rounds * count * BATCH:,} reads with faults, {stats}")
    print(dict(injected.most_common()))
    return 0 if statistics.median(ratios) >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
