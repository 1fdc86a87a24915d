"""Prefix strategies: what a rank's files are called."""

from __future__ import annotations

import pytest
import torch.distributed

from s3torch.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from s3torch.errors import ArgumentError


@pytest.mark.parametrize(
    ("strategy", "rank", "prefix"),
    [
        (DefaultPrefixStrategy(), 12, "__12_"),
        (BinaryPrefixStrategy(), 1, "0000000000/__1_"),
        (BinaryPrefixStrategy(3, prefix_count=2), 1, "1000000000/epoch_3/__1_"),
        (BinaryPrefixStrategy(min_prefix_length=1, prefix_count=4), 2, "01/__2_"),
        (BinaryPrefixStrategy(min_prefix_length=1, prefix_count=4), 7, "11/__7_"),
        (BinaryPrefixStrategy(min_prefix_length=1, prefix_count=5), 4, "001/__4_"),
        (HexPrefixStrategy(0, 3, 300), 26, "a10/epoch_0/__26_"),
        (HexPrefixStrategy(min_prefix_length=1, prefix_count=16), 15, "f/__15_"),
        (NumericPrefixStrategy(10, min_prefix_length=1, prefix_count=200), 123, "321/__123_"),
        (RoundRobinPrefixStrategy(["a", "b/c"]), 3, "b/c/__3_"),
        (RoundRobinPrefixStrategy(["a", "b/c"], epoch_num=7), 2, "a/epoch_7/__2_"),
    ],
)
def test_prefixes(strategy, rank, prefix):
    """Each strategy gives the prefixes that it documents."""
    assert strategy(rank) == strategy.generate_prefix(rank) == prefix


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 100])
@pytest.mark.parametrize("kind", [BinaryPrefixStrategy, HexPrefixStrategy])
def test_prefixes_differ(kind, count):
    """No two of the numbers are the same, and all have the same length."""
    numbers = kind(min_prefix_length=1, prefix_count=count).prefix_map
    assert len(set(numbers)) == count
    assert len({len(number) for number in numbers}) == 1


def test_the_world_size_counts(monkeypatch):
    """Within a process group each rank has a number of its own."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert BinaryPrefixStrategy(min_prefix_length=2).prefix_map == ["00", "10", "01"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BinaryPrefixStrategy(min_prefix_length=0), "Minimum prefix length must be positive, got 0"),
        (lambda: HexPrefixStrategy("3"), "Epoch number must be None or an integer, got 3"),
        (lambda: HexPrefixStrategy(prefix_count=0), "Prefix count must be a positive integer, got 0"),
        (lambda: HexPrefixStrategy(prefix_count=1.5), r"Prefix count must be a positive integer, got 1\.5"),
        (lambda: NumericPrefixStrategy(1), "Base must be an integer from 2 to 36, got 1"),
        (lambda: RoundRobinPrefixStrategy([]), "user_prefixes must not be empty"),
        (lambda: RoundRobinPrefixStrategy("ab"), "user_prefixes must be a list of str, got 'ab'"),
    ],
)
def test_bad_values(make, message):
    """A value that cannot be is refused, in the words of the reference connector where it refuses it too."""
    with pytest.raises(ArgumentError, match=message):
        make()


def test_the_base_is_abstract():
    """A strategy without generate_prefix cannot be made."""
    with pytest.raises(TypeError, match="generate_prefix"):
        S3PrefixStrategyBase()
