"""Tests of who reads what: every item comes exactly once."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.sharding import Position, shard


def _positions(world_size: int, num_workers: int) -> list[Position]:
    return [
        Position(rank, world_size, worker, num_workers)
        for rank, worker in itertools.product(range(world_size), range(num_workers))
    ]


def test_alone():
    """A position that nothing is said of reads everything, and knows that it is alone."""
    assert list(shard("abc", Position())) == ["a", "b", "c"]
    assert Position().is_alone


@pytest.mark.parametrize("position", [Position(world_size=2), Position(num_workers=2), Position(1, 2, 1, 2)])
def test_not_alone(position: Position):
    """A position among others knows that it is not alone."""
    assert not position.is_alone


@pytest.mark.parametrize(
    ("position", "items"),
    [
        (Position(0, 2, 0, 2), [0, 4, 8]),
        (Position(0, 2, 1, 2), [2, 6]),
        (Position(1, 2, 0, 2), [1, 5, 9]),
        (Position(1, 2, 1, 2), [3, 7]),
    ],
)
def test_in_turn(position: Position, items: list[int]):
    """Items go to the ranks in turn, and each rank's to its workers in turn."""
    assert list(shard(range(10), position)) == items


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9))
def test_every_item_exactly_once(count: int, world_size: int, num_workers: int):
    """Over all ranks and workers each item comes exactly once, whatever their numbers."""
    shards = [list(shard(range(count), position)) for position in _positions(world_size, num_workers)]
    assert sorted(itertools.chain.from_iterable(shards)) == list(range(count))
    assert all(items == sorted(items) for items in shards)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9))
def test_shares_are_even(count: int, world_size: int, num_workers: int):
    """Ranks differ by one item at most, and so do the workers of one rank."""
    sizes = {
        (position.rank, position.worker): len(list(shard(range(count), position)))
        for position in _positions(world_size, num_workers)
    }
    ranks = [sum(sizes[rank, worker] for worker in range(num_workers)) for rank in range(world_size)]
    assert max(ranks) - min(ranks) <= 1
    for rank in range(world_size):
        workers = [sizes[rank, worker] for worker in range(num_workers)]
        assert max(workers) - min(workers) <= 1


def test_items_are_taken_as_they_come():
    """An endless stream is sharded without being read ahead."""
    source = itertools.count()
    items = shard(source, Position(1, 4, 0, 1))
    assert [next(items), next(items)] == [1, 5]
    assert next(source) == 6


def test_a_position_is_a_value():
    """A position is frozen, hashable and pickles."""
    position = Position(1, 2, 3, 4)
    assert pickle.loads(pickle.dumps(position)) == position
    assert hash(position) == hash(Position(1, 2, 3, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        position.rank = 0
