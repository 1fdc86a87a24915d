"""What 1 % of faults costs: ``python -m tests.soak.throughput [ROUNDS] [BATCHES]``.

Batches of 64 objects of 100 kB of an S3MapDataset, read from a FaultyServer in a process of its own: one after the
other, and with the next batch in flight (LookAheadBatchSampler). Each round without faults and with them, in turns.
Prints the rates, and the medians of their ratios.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable

from s3torch import S3ClientConfig, S3MapDataset
from s3torch.datasets import LookAheadBatchSampler
from tests.soak.apart import BATCH, OBJECTS, SIZE, Rates, apart, batches, dataset_of
from tests.soak.faults import RATES

# A fault that stands still costs its timeout, whatever the client does: they are those of the soak.
CONFIG = S3ClientConfig(unsigned=True, connect_timeout=1.0, first_byte_timeout=1.0, stall_timeout=1.0)


def rates_of(name: str) -> Rates:
    """Return a fifth of the rates of the soak, which are 5 % together."""
    return {fault: rate / 5 for fault, rate in RATES.items()} if name == "faults" else {}


def samples_per_second(
    dataset: S3MapDataset[bytes], contents: list[bytes], count: int, seed: int, *, is_ahead: bool = False
) -> float:
    """Read batches and compare all bytes, which belongs to the time."""
    order: Iterable[list[int]] = batches(count, seed)
    began = time.perf_counter()
    for wanted in LookAheadBatchSampler(order) if is_ahead else order:
        assert dataset.__getitems__(wanted) == [contents[number] for number in wanted]
    return count * BATCH / (time.perf_counter() - began)


def main() -> int:
    """Run it, and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    contents = [random.Random(number).randbytes(SIZE) for number in range(OBJECTS)]
    ratios: dict[bool, list[float]] = {False: [], True: []}
    injected = Counter[str]()
    print("| round | samples/s one batch after the other | with faults | ratio | a batch ahead | with faults | ratio |")
    print("|---|---|---|---|---|---|---|")
    with apart(rates_of, seed=1) as server:
        dataset = dataset_of(server.endpoint, CONFIG)
        samples_per_second(dataset, contents, 10, 0)
        for number in range(1, rounds + 1):
            row = [f"{number}"]
            for is_ahead, found in ratios.items():
                rates = {}
                for name in ("none", "faults") if number % 2 else ("faults", "none"):
                    injected += server.rates(name)
                    rates[name] = samples_per_second(dataset, contents, count, number, is_ahead=is_ahead)
                found.append(rates["faults"] / rates["none"])
                row += [f"{rates['none']:,.0f}", f"{rates['faults']:,.0f}", f"{found[-1]:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)
        injected += server.rates("none")
        dataset.client.close()
    alone, ahead = (statistics.median(found) for found in ratios.values())
    print(
        f"medians {alone:.2f} one after the other, {ahead:.2f} ahead; {rounds * count * BATCH:,} reads with faults each"
    )
    print(dict(injected.most_common()))
    return 0 if min(alone, ahead) >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
