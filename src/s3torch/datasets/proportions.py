"""Which of several sources comes at a place, so that each has its share of any beginning: arithmetic on weights.

Weights become whole numbers, and the order repeats after as many places as these are together. Within that, the j-th
turn of a source of share r must lie between the places (j - 1) / r and j / r: then it has never one turn too many, or
one too few. Of the turns that may come, the one that must come first is taken, which always works out.

Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980); that the earliest deadline is
enough: S. Baruah, N. Cohen, C. Plaxton and D. Varvel, "Proportionate progress", Algorithmica 15 (1996), of one
processor.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, isfinite, lcm
from typing import NamedTuple

from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["MOST_TURNS", "Proportions", "Turn", "whole_weights"]

MOST_TURNS = 2**16  # places after which the order repeats, at most: 6 bytes and 2 us each


class Turn(NamedTuple):
    """What comes at a place.

    Attributes:
        source: Which one.
        number: How often it came before.
    """

    source: int
    number: int


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the proportions of weights.

    They are exact if they are at most 65,536 together, as those of weights with up to four decimals mostly are. Else
    they are the nearest ones that are 65,536 together; none that was above 0 becomes 0.

    Raises:
        ArgumentError: One is negative or not finite, all are 0, or there are too many.
        ArgumentTypeError: One is no number.
    """
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float, Fraction)):
            raise ArgumentTypeError(f"A weight must be a number, got {weight!r}.")
        if not isfinite(weight) or weight < 0:
            raise ArgumentError(f"A weight must be at least 0 and finite, got {weight} among {list(weights)}.")
    if not any(weights):
        raise ArgumentError(f"At least one weight must be above 0, got {list(weights)}.")
    # As they are written: 0.1 is meant as a tenth, and not as the nearest binary fraction.
    exact = [Fraction(str(weight)) for weight in weights]
    common = lcm(*(each.denominator for each in exact))
    whole = [int(each * common) for each in exact]
    whole = [each // gcd(*whole) for each in whole]
    return whole if sum(whole) <= MOST_TURNS else _rounded(whole)


def _rounded(whole: Sequence[int]) -> list[int]:
    """Return the nearest whole numbers that are MOST_TURNS together, those above 0 at least 1 (largest remainders)."""
    total, positive = sum(whole), sum(each > 0 for each in whole)
    if positive > MOST_TURNS:
        raise ArgumentError(f"{positive} weights above 0 are too many: at most {MOST_TURNS} can be mixed.")
    rounded = [max(each * MOST_TURNS // total, int(each > 0)) for each in whole]
    by_rest = sorted(range(len(whole)), key=lambda number: whole[number] * MOST_TURNS % total, reverse=True)
    for number in by_rest[: max(0, MOST_TURNS - sum(rounded))]:
        rounded[number] += 1
    while sum(rounded) > MOST_TURNS:  # small ones were raised to 1
        rounded[rounded.index(max(rounded))] -= 1
    return rounded


class Proportions:
    """The order in which sources come, for ever.

    Of any n first places, a source of share r has more than n * r - 1 and less than n * r + 1.

    Args:
        weights: Whole numbers; see ``whole_weights``.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        self._period = sum(weights)
        self._sources = array("H", _order(self._weights))
        self._numbers = array("I", [0]) * self._period
        self._places = [array("I") for _ in weights]  # of each source's turns
        for place, source in enumerate(self._sources):
            self._numbers[place] = len(self._places[source])
            self._places[source].append(place)

    def __getitem__(self, place: int) -> Turn:
        rounds, place = divmod(place, self._period)
        source = self._sources[place]
        return Turn(source, rounds * self._weights[source] + self._numbers[place])

    def place_of(self, turn: Turn) -> int:
        """Return the place of a turn of a source whose weight is above 0."""
        rounds, number = divmod(turn.number, self._weights[turn.source])
        return rounds * self._period + self._places[turn.source][number]

    def counts(self, places: int) -> list[int]:
        """Return how often each source comes in so many first places."""
        rounds, rest = divmod(places, self._period)
        found = [rounds * weight for weight in self._weights]
        for source in self._sources[:rest]:
            found[source] += 1
        return found


def _order(weights: Sequence[int]) -> list[int]:
    """Return which source comes at each place until it repeats."""
    total = sum(weights)
    found: list[int] = []
    done = [0] * len(weights)
    waiting = [
        (0, source) for source, weight in enumerate(weights) if weight
    ]  # by the place from which on they may come
    due: list[tuple[int, int]] = []  # by the place before which they must come
    for place in range(total):
        while waiting and waiting[0][0] <= place:
            source = heapq.heappop(waiting)[1]
            heapq.heappush(due, (-(-(done[source] + 1) * total // weights[source]), source))
        source = heapq.heappop(due)[1]
        found.append(source)
        done[source] += 1
        heapq.heappush(waiting, (done[source] * total // weights[source], source))
    return found
