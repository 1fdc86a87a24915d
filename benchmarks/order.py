"""``python -m benchmarks.order``: how long the order of an epoch takes, and how well it is shuffled.

The k-th index alone and in batches, in CPU time, for counts up to 2^48; then three tests of chance beside
``torch.randperm``, which stands for what an order should look like:

* each permutation of 5 samples is as likely (chi-squared over 12,000 epochs),
* each of 100 samples comes at each place as often (chi-squared over 4,000 epochs),
* neighbours meet in a batch of 64 no more often than by chance (of 100,000 samples, 20 epochs).

The first two are told in standard deviations from the mean of chi-squared: beyond 5 is no chance any more.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch

from s3torch.datasets.order import MOST, Shuffled

__all__ = ["main"]

_Epoch = Callable[[int, int], list[int]]  # count and epoch to an order
_BATCH = 64


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order", description="The order of an epoch.")
    parser.add_argument("--share", type=int, default=1, help="make tests of chance so many times shorter (default: 1)")
    share: int = parser.parse_args(arguments).share
    torch.set_num_threads(1)
    print(f"{'samples':>16}{'alone':>12}{'of 64':>12}{'of 4096':>12}   CPU us a sample")
    for count in (1000, 10**6, 10**8, MOST):
        alone, few, many = (_microseconds(count, size, share) for size in (1, _BATCH, 4096))
        print(f"{count:16}{alone:12.1f}{few:12.2f}{many:12.2f}")
    print(f"\n{'':16}{'5 samples':>16}{'100 samples':>16}{'neighbours':>16}")
    chance = torch.Generator().manual_seed(1)
    epochs: dict[str, _Epoch] = {
        "s3torch": lambda count, epoch: Shuffled(count, 7, epoch).at(range(count)),
        "torch.randperm": lambda count, _: torch.randperm(count, generator=chance).tolist(),
    }
    for name, order in epochs.items():
        fives, places = _permutations(order, 12_000 // share), _places(order, 4000 // share)
        print(f"{name:16}{fives:16.1f}{places:16.1f}{_neighbours(order, max(1, 20 // share)):16.1f}")
    due = 100_000 * (_BATCH - 1) / (100_000 - 1)
    print(f"{'by chance':16}{'-5 to 5':>16}{'-5 to 5':>16}{due:16.1f}")
    return 0


def _microseconds(count: int, size: int, share: int) -> float:
    """Return the CPU time of one sample, in batches of a size; one by one for 1."""
    order = Shuffled(count, 3, 4)
    size = min(size, count)
    turns = max(1, 20_000 // size // share)
    began = time.process_time()
    for turn in range(turns):
        first = turn * 7919 * size % (count - size + 1)
        if size == 1:
            order[first]
        else:
            order.at(range(first, first + size))
    return (time.process_time() - began) / turns / size * 1e6


def _permutations(order: _Epoch, epochs: int) -> float:
    found = Counter(tuple(order(5, epoch)) for epoch in range(epochs))
    kinds = math.factorial(5)
    due = epochs / kinds
    return _deviations(sum((found[each] - due) ** 2 / due for each in found) + (kinds - len(found)) * due, kinds - 1)


def _places(order: _Epoch, epochs: int) -> float:
    times = torch.zeros(100, 100)
    for epoch in range(epochs):
        times[torch.arange(100), torch.tensor(order(100, epoch))] += 1
    due = epochs / 100
    return _deviations(float(((times - due) ** 2 / due).sum()), 99**2)


def _neighbours(order: _Epoch, epochs: int) -> float:
    """Return how many pairs of neighbours are in one batch, on average."""
    met = 0
    for epoch in range(epochs):
        place = torch.empty(100_000, dtype=torch.int64)
        place[torch.tensor(order(100_000, epoch))] = torch.arange(100_000)
        batch = place // _BATCH
        met += int((batch[1:] == batch[:-1]).sum())
    return met / epochs


def _deviations(chi_squared: float, free: int) -> float:
    return (chi_squared - free) / math.sqrt(2 * free)


if __name__ == "__main__":
    sys.exit(main())
