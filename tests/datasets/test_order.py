"""Order as arithmetic: each is a permutation, the same one by one and many at once, and looks like chance."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.order import MOST, InOrder, Shuffled, WindowShuffled
from s3torch.errors import ArgumentError


@pytest.mark.parametrize("first", range(1, 5001, 500))
def test_each_count_up_to_5000_is_permuted(first: int):
    """Each count up to 5,000 is permuted."""
    for count in range(first, first + 500):
        indices = torch.tensor(Shuffled(count, 1, 0).at(range(count)))
        assert torch.equal(indices.sort().values, torch.arange(count)), count


@given(
    count=st.integers(1, MOST),
    seed=st.integers(),
    epoch=st.integers(0, 2**63),
    place=st.integers(0, MOST - 1),
)
def test_no_two_places_have_one_index(count: int, seed: int, epoch: int, place: int):
    """Orders of any count: neighbouring places, and those far from them, have indices of their own within the count."""
    order = Shuffled(count, seed, epoch)
    first = place % count
    near = range(first, min(first + 300, count))
    far = range(first % 7, count, max(7, count // 300 // 7 * 7))
    places = sorted({*near, *far})
    indices = [order[each] for each in places]
    assert len(set(indices)) == len(places)
    assert min(indices) >= 0
    assert max(indices) < count
    assert order.at(near) == [order[each] for each in near]
    assert order.at(far) == [order[each] for each in far]


def test_known_orders():
    """The arithmetic stays what it is: jobs resume with later versions."""
    assert Shuffled(10, 0, 0).at(range(10)) == [1, 2, 5, 6, 4, 7, 3, 8, 9, 0]
    assert Shuffled(10, 0, 1).at(range(10)) == [6, 8, 4, 3, 5, 1, 2, 7, 0, 9]
    assert [Shuffled(MOST, -1, 7)[place] for place in (0, 1, MOST - 1)] == [
        662732818055,
        75081087365187,
        156687191985164,
    ]
    assert WindowShuffled([3, 2, 4], 2, 1, 0).at(range(9)) == [1, 0, 4, 2, 3, 7, 5, 6, 8]


def test_seeds_and_epochs_are_not_added():
    """Seeds and epochs that have one sum have orders of their own."""
    orders = {tuple(Shuffled(20, seed, epoch).at(range(20))) for seed in range(-5, 5) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_each_permutation_is_as_likely(count: int):
    """Chi-squared over 20 epochs a permutation, within 5 standard deviations."""
    kinds = math.factorial(count)
    due = 20
    found = Counter(tuple(Shuffled(count, 1, epoch).at(range(count))) for epoch in range(due * kinds))
    assert len(found) == kinds
    chi = sum((times - due) ** 2 / due for times in found.values())
    assert (chi - (kinds - 1)) / math.sqrt(2 * (kinds - 1)) < 5


@pytest.mark.parametrize("count", [7, 31, 100])
def test_each_sample_comes_everywhere_as_often(count: int):
    """Chi-squared of samples by places over 1,000 epochs, within 5 standard deviations."""
    times = torch.zeros(count, count)
    for epoch in range(1000):
        times[torch.arange(count), torch.tensor(Shuffled(count, 3, epoch).at(range(count)))] += 1
    due = 1000 / count
    chi = float(((times - due) ** 2 / due).sum())
    free = (count - 1) ** 2
    assert (chi - free) / math.sqrt(2 * free) < 5


def test_neighbours_are_in_one_batch_no_more_often_than_by_chance():
    """Of 100,000 samples in batches of 64, 64 pairs of neighbours meet by chance, with a deviation of 8."""
    place = torch.empty(100_000, dtype=torch.int64)
    place[torch.tensor(Shuffled(100_000, 5, 0).at(range(100_000)))] = torch.arange(100_000)
    batch = place // 64
    assert int((batch[1:] == batch[:-1]).sum()) < 64 + 5 * 8


@given(sizes=st.lists(st.integers(0, 40), max_size=20), shards=st.integers(1, 25), seed=st.integers(0, 9))
def test_a_window_is_of_whole_shards(sizes: list[int], shards: int, seed: int):
    """Each window holds all samples of its shards, the last one too; together they are all."""
    order = WindowShuffled(sizes, shards, seed, 0)
    count = sum(sizes)
    indices = order.at(range(count))
    assert sorted(indices) == list(range(count))
    assert [order[place] for place in range(count)] == indices
    assert order.at(range(count)[1::3]) == indices[1::3]
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    met = [shard_of[index] for index in indices]
    assert len(set(met)) == sum(size > 0 for size in sizes)
    for shard in set(met):  # between its first and its last sample are those of its window alone
        first = met.index(shard)
        last = count - 1 - met[::-1].index(shard)
        assert len(set(met[first : last + 1])) <= shards


def test_windows_are_shuffled_anew_each_epoch():
    """Each epoch has other windows, of whole shards."""
    orders = [WindowShuffled([10] * 6, 2, 1, epoch).at(range(60)) for epoch in range(2)]
    assert orders[0] != orders[1]
    assert orders[0] != list(range(60))
    for order in orders:
        shards = [{index // 10 for index in order[first : first + 20]} for first in range(0, 60, 20)]
        assert [len(each) for each in shards] == [2, 2, 2]


def test_in_order():
    """The order in which samples lie is the identity."""
    assert InOrder(5).at(range(1, 5, 2)) == [1, 3]
    assert InOrder(5)[-1] == 4
    assert len(InOrder(0)) == 0


@pytest.mark.parametrize("order", [InOrder(5), Shuffled(5, 0, 0), WindowShuffled([2, 3], 1, 0, 0)])
def test_places_that_are_not_there(order):
    """A place outside of an order is an IndexError; none at all are none."""
    with pytest.raises(IndexError):
        order[5]
    with pytest.raises(IndexError):
        order.at(range(3, 6))
    with pytest.raises(IndexError):
        order.at(range(3, -1, -1))
    assert order.at(range(0)) == []


def test_counts_that_cannot_be():
    """Too many samples and negative counts are refused with the number."""
    with pytest.raises(ArgumentError, match="An order is of 0 to 281474976710656 samples, got 281474976710657"):
        Shuffled(MOST + 1, 0, 0)
    with pytest.raises(ArgumentError, match="got -1"):
        InOrder(-1)
    with pytest.raises(ArgumentError, match="A window of 0 shards"):
        WindowShuffled([1], 0, 0, 0)
    assert Shuffled(0, 0, 0).at(range(0)) == []
