"""Which request meets which fault by chance: the same ones each time, for the same seed.

What a request meets is a function of the seed, of what it asks for, and of how often that was asked for before. So it
does not depend on the order in which concurrent requests arrive.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Generic, TypeVar

__all__ = ["Draws", "Rates"]

F = TypeVar("F")


class Rates(Generic[F]):
    """Faults and how likely each is.

    Args:
        shares: The probability of each fault, 0 to 1; together 1 at most.

    Raises:
        ValueError: If a probability is out of range, or their sum is.
    """

    def __init__(self, shares: Mapping[F, float]) -> None:
        total = sum(shares.values())
        if any(share < 0 for share in shares.values()) or total > 1 + 1e-9:
            raise ValueError(f"rates must be 0 to 1, and 1 at most together; they are {list(shares.values())}")
        self._faults = list(shares)
        self._bounds = list(itertools.accumulate(shares.values()))

    def choose(self, random: Random) -> F | None:
        """Returns the fault that a number drawn from `random` stands for, or None."""
        if not self._faults:
            return None
        drawn = random.random()
        return next((fault for fault, bound in zip(self._faults, self._bounds, strict=True) if drawn < bound), None)


class Draws:
    """Hands out a source of randomness for each request. May be shared by threads.

    Args:
        seed: Chooses among all sequences.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def of(self, what: str) -> Random:
        """Returns the source for the next request for `what`."""
        with self._lock:
            self._seen[what] += 1
            count = self._seen[what]
        return Random(f"{self._seed} {count} {what}")
