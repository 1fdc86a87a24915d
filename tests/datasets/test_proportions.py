"""Which source comes at a place: each has its share of any beginning, by one turn at most."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.proportions import MOST_TURNS, Proportions, Turn, whole_weights
from s3torch.errors import ArgumentError, ArgumentTypeError

weights = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)


@given(weights, st.integers(1, 3))
def test_any_beginning_has_the_proportions(weights: list[int], rounds: int):
    """Of any n first places each source has n times its share, less than one more or less; turns count up from 0."""
    proportions, total = Proportions(weights), sum(weights)
    counts = [0] * len(weights)
    for place in range(rounds * total):
        source, number = proportions[place]
        assert number == counts[source]
        assert proportions.place_of(Turn(source, number)) == place
        counts[source] += 1
        assert all(
            abs(count * total - (place + 1) * weight) < total for count, weight in zip(counts, weights, strict=True)
        )
    assert proportions.counts(rounds * total) == counts


@given(weights, st.integers(0, 2**48))
def test_far_places(weights: list[int], place: int):
    """A place is computed alone, however far it is."""
    proportions, total = Proportions(weights), sum(weights)
    source, number = proportions[place]
    assert proportions.place_of(Turn(source, number)) == place
    assert proportions.counts(place)[source] == number
    assert sum(proportions.counts(place)) == place
    assert abs(number * total - place * weights[source]) < total


def test_many_small_ones_beside_a_large_one():
    """Where simple rules gather the small ones at one place, they are spread."""
    weights = [900, *[10] * 10]
    proportions, counts = Proportions(weights), [0] * 11
    for place in range(1000):
        counts[proportions[place].source] += 1
        assert abs(counts[0] - (place + 1) * 0.9) < 1
    assert counts == weights


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([3, 1], [3, 1]),
        ([0.5, 0], [1, 0]),
        ([10**9, 3 * 10**9], [1, 3]),
        ([0.3333, 0.6667], [3333, 6667]),
        ([Fraction(1, 3), Fraction(2, 3)], [1, 2]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.1234567, 0.8765433], [8091, 57445]),
        ([1e-30, 1], [1, MOST_TURNS - 1]),
    ],
)
def test_whole_weights(given, whole):
    """Weights are taken as they are written, exactly where that is possible, and never become 0."""
    assert whole_weights(given) == whole


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=20).filter(any))
def test_rounded_weights(given: list[float]):
    """What cannot be exact is nearly so."""
    whole = whole_weights(given)
    assert sum(whole) <= MOST_TURNS
    for weight, each in zip(given, whole, strict=True):
        assert (weight > 0) == (each > 0)
        assert abs(weight / sum(given) - each / sum(whole)) <= (len(given) + 1) / MOST_TURNS


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1, -0.5], ArgumentError, r"got -0.5 among \[1, -0.5\]"),
        ([0, 0.0], ArgumentError, r"above 0, got \[0, 0.0\]"),
        ([], ArgumentError, r"above 0, got \[\]"),
        ([float("nan"), 1], ArgumentError, "got nan"),
        ([float("inf"), 1], ArgumentError, "got inf"),
        (["1"], ArgumentTypeError, "got '1'"),
        ([True], ArgumentTypeError, "got True"),
        (range(1, MOST_TURNS + 3), ArgumentError, "are too many"),
    ],
)
def test_weights_that_cannot_be(given, error, message):
    """They are refused with the numbers."""
    with pytest.raises(error, match=message):
        whole_weights(given)
