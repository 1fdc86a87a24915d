"""Order as arithmetic: which sample comes k-th, computed for each k alone, without a list of all.

A shuffled order is a permutation of ``[0, N)`` chosen by (seed, epoch). Index i is taken as the pair
``(i % a, i // a)``, with a and b just large enough for ``a * b >= N``, and mixed by a Feistel network: in turn each
half is shifted by a hash of the other, which anyone who knows the other can take back, so no two pairs meet. The few
results that are not below N are mixed again until they are ("cycle walking"), which keeps it a permutation of [0, N).

Source: J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, methods 2 and 3.

All of it is integer arithmetic that never exceeds 63 bits, so the same lines work on one ``int`` and on a tensor of
many, and give the same on any machine.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import isqrt
from typing import Protocol, TypeVar

import torch

from s3torch.errors import ArgumentError

__all__ = ["AT_ONCE", "MOST", "InOrder", "Order", "Shuffled", "WindowShuffled"]

MOST = 2**48  # samples of an order
AT_ONCE = 4096  # places whose indices a reader asks for at once: one of many costs a tenth of one of a few

_Index = TypeVar("_Index", int, torch.Tensor)

# What 4 rounds leave of the order can be seen at 100 samples, what 8 leave at 5 only, and of 12 nothing was seen.
_ROUNDS = 12
_OF_A_TENSOR = 8192  # samples: enough to cost little each, too few for torch to start threads
_MASK = 2**32 - 1
# Odd, and below 2^31: times a number of 32 bits it stays within the 63 bits of a tensor's integers.
_FIRST, _SECOND = 0x7FEB352D, 0x45D9F3B3


class Order(Protocol):
    """In which order samples come. ``order[k]`` is the index of the k-th."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, place: int) -> int:
        """Return the index of the sample that comes at a place."""

    def at(self, places: range) -> list[int]:
        """Return the indices of many samples at once, which takes a small part of the time for each."""


class InOrder:
    """The order in which they lie.

    Args:
        count: Of samples.
    """

    def __init__(self, count: int) -> None:
        self._count = _checked(count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        return range(self._count)[place]

    def at(self, places: range) -> list[int]:
        """Return the indices of many samples; see Order."""
        _check_places(places, self._count)
        return list(places)


class Shuffled:
    """All samples shuffled.

    Args:
        count: Of samples, at most 2^48.
        seed: Any integer. Orders of other seeds, and of other epochs, have nothing to do with each other.
        epoch: Likewise.
        window: Which of several permutations of one epoch.
    """

    def __init__(self, count: int, seed: int, epoch: int, window: int = 0) -> None:
        self._count = _checked(count)
        self._left = isqrt(count - 1) + 1 if count else 1
        self._right = -(-count // self._left)
        self._keys = _keys(seed, epoch, window)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        index = self._mixed(range(self._count)[place])
        while index >= self._count:
            index = self._mixed(index)
        return index

    def at(self, places: range) -> list[int]:
        """Return the indices of many samples; see Order."""
        _check_places(places, self._count)
        found: list[int] = []
        for first in range(0, len(places), _OF_A_TENSOR):
            some = places[first : first + _OF_A_TENSOR]
            found += self._all(torch.arange(some.start, some.stop, some.step, dtype=torch.int64))
        return found

    def at_any(self, places: Sequence[int]) -> list[int]:
        """Return the indices of many samples, at most some thousands, at any places of the order."""
        if not all(0 <= place < self._count for place in places):
            raise IndexError(f"{places} are not within the {self._count} places of an order")
        return self._all(torch.tensor(places, dtype=torch.int64))

    def _all(self, places: torch.Tensor) -> list[int]:
        indices = self._mixed(places)
        while (beyond := torch.nonzero(indices >= self._count)).numel():
            indices[beyond] = self._mixed(indices[beyond])
        found: list[int] = indices.tolist()
        return found

    def _mixed(self, index: _Index) -> _Index:
        left, right = index % self._left, index // self._left
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _hashed(left, key)) % self._right
            else:
                left = (left + _hashed(right, key)) % self._left
        return right * self._left + left


class WindowShuffled:
    """Shards shuffled, and the samples within each window of so many shards: few shards are open at a time.

    Each window has all samples of its shards, the last one too, and each is shuffled as a whole.

    Args:
        sizes: Samples of each shard, in the order in which they lie.
        shards: Of a window.
        seed: As for Shuffled.
        epoch: As for Shuffled.
    """

    def __init__(self, sizes: Sequence[int], shards: int, seed: int, epoch: int) -> None:
        if shards < 1:
            raise ArgumentError(f"A window of {shards} shards holds nothing: it must have at least 1.")
        order = Shuffled(len(sizes), seed, epoch).at(range(len(sizes)))
        begins = list(accumulate(sizes, initial=0))
        self._windows = [order[first : first + shards] for first in range(0, len(order), shards)]
        self._stops = list(accumulate(sum(sizes[shard] for shard in window) for window in self._windows))
        self._count = _checked(begins[-1])
        self._sizes, self._begins = sizes, begins
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        place = range(self._count)[place]
        window = bisect_right(self._stops, place)
        first = self._stops[window - 1] if window else 0
        return self._index(window, self._shuffled(window)[place - first])

    def at(self, places: range) -> list[int]:
        """Return the indices of many samples; see Order."""
        _check_places(places, self._count)
        found: list[int] = []
        while places:
            window = bisect_right(self._stops, places[0])
            first = self._stops[window - 1] if window else 0
            here = range(places[0], min(self._stops[window], places.stop), places.step)
            within = self._shuffled(window).at(range(here.start - first, here.stop - first, here.step))
            found += [self._index(window, each) for each in within]
            places = places[len(here) :]
        return found

    def _shuffled(self, window: int) -> Shuffled:
        first = self._stops[window - 1] if window else 0
        return Shuffled(self._stops[window] - first, self._seed, self._epoch, window + 1)  # 0 is that of the shards

    def _index(self, window: int, place: int) -> int:
        """Return the index of a sample by its place among those of the window, as they lie."""
        for shard in self._windows[window]:
            if place < self._sizes[shard]:
                return self._begins[shard] + place
            place -= self._sizes[shard]
        raise AssertionError(f"window {window} has no place {place}")


def _hashed(value: _Index, key: int) -> _Index:
    """Return 32 bits that look random, of at most 32 bits."""
    value = value ^ key
    value = ((value ^ (value >> 16)) * _FIRST) & _MASK
    value = ((value ^ (value >> 15)) * _SECOND) & _MASK
    return value ^ (value >> 16)


def _keys(seed: int, epoch: int, window: int) -> list[int]:
    """Return a number of 32 bits for each round. The three are hashed, not added: (1, 0) is not (0, 1)."""
    digest = hashlib.blake2b(f"{seed} {epoch} {window}".encode(), digest_size=4 * _ROUNDS).digest()
    return [int.from_bytes(digest[first : first + 4], "little") for first in range(0, len(digest), 4)]


def _checked(count: int) -> int:
    if not 0 <= count <= MOST:
        raise ArgumentError(f"An order is of 0 to {MOST} samples, got {count}.")
    return count


def _check_places(places: range, count: int) -> None:
    if places and not (0 <= places[0] < count and 0 <= places[-1] < count and places.step > 0):
        raise IndexError(f"{places} is not within the {count} places of an order")
