"""What the names of a rank's files begin with.

S3 scales by prefix: it splits a bucket where the keys differ early. A thousand ranks that save below one prefix meet
503 SlowDown, which spreading them over many prefixes avoids.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.distributed

from s3torch.errors import ArgumentError

__all__ = [
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3PrefixStrategyBase",
]


class S3PrefixStrategyBase(ABC):
    """Says what the names of a rank's files begin with; a strategy of your own derives from it."""

    def __call__(self, rank: int) -> str:
        """Return ``generate_prefix(rank)``."""
        return self.generate_prefix(rank)

    @abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """Return the prefix of a rank's files, below the checkpoint's path; it must differ from every other rank's."""


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """``__{rank}_``, as torch names files."""

    def generate_prefix(self, rank: int) -> str:
        """Return the prefix of a rank's files."""
        return f"__{rank}_"


class NumericPrefixStrategy(S3PrefixStrategyBase):
    """``{number}/epoch_{epoch_num}/__{rank}_``, with the rank's number written backwards, so that keys differ early.

    Args:
        base: Of the number: 2 to 36.
        epoch_num: Stands in the prefix; None leaves the epoch out.
        min_prefix_length: Digits of the number at least; it is filled up with zeros.
        prefix_count: How many numbers there are; ranks take turns. None is the world size, or 1 outside of a process
            group.

    Raises:
        ArgumentError: A value is out of range or no integer.
    """

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = 10,
        prefix_count: int | None = None,
    ) -> None:
        if not _is_integer(base) or not 2 <= base <= len(_DIGITS):
            raise ArgumentError(f"Base must be an integer from 2 to {len(_DIGITS)}, got {base}")
        if not _is_integer(min_prefix_length) or min_prefix_length < 1:
            raise ArgumentError(f"Minimum prefix length must be positive, got {min_prefix_length}")
        _check_epoch(epoch_num)
        if prefix_count is not None and (not _is_integer(prefix_count) or prefix_count < 1):
            raise ArgumentError(f"Prefix count must be a positive integer, got {prefix_count}")
        self.base = base
        self.epoch_num = epoch_num
        self.min_prefix_len = min_prefix_length
        self.prefix_count = _world_size() if prefix_count is None else prefix_count
        length = max(min_prefix_length, len(_digits(self.prefix_count - 1, base)))
        self.prefix_map = [self._format_number(number, length)[::-1] for number in range(self.prefix_count)]

    def generate_prefix(self, rank: int) -> str:
        """Return the prefix of a rank's files."""
        return f"{self.prefix_map[rank % self.prefix_count]}/{_epoch(self.epoch_num)}__{rank}_"

    def _format_number(self, number: int, length: int) -> str:
        """Return a number's digits, filled up with zeros; a strategy of your own may write it otherwise."""
        return _digits(number, self.base).rjust(length, "0")


class BinaryPrefixStrategy(NumericPrefixStrategy):
    """NumericPrefixStrategy with base 2."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(2, epoch_num, min_prefix_length, prefix_count)


class HexPrefixStrategy(NumericPrefixStrategy):
    """NumericPrefixStrategy with base 16."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(16, epoch_num, min_prefix_length, prefix_count)


class RoundRobinPrefixStrategy(S3PrefixStrategyBase):
    """``{prefix}/epoch_{epoch_num}/__{rank}_``: ranks take turns over prefixes that you name.

    Args:
        user_prefixes: At least one.
        epoch_num: Stands in the prefix; None leaves the epoch out.

    Raises:
        ArgumentError: There is no prefix, or the epoch is no integer.
    """

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        if isinstance(user_prefixes, str) or not all(isinstance(prefix, str) for prefix in user_prefixes):
            raise ArgumentError(f"user_prefixes must be a list of str, got {user_prefixes!r}")
        if not user_prefixes:
            raise ArgumentError("user_prefixes must not be empty")
        _check_epoch(epoch_num)
        self.user_prefixes = list(user_prefixes)
        self.epoch_num = epoch_num

    def generate_prefix(self, rank: int) -> str:
        """Return the prefix of a rank's files."""
        return f"{self.user_prefixes[rank % len(self.user_prefixes)]}/{_epoch(self.epoch_num)}__{rank}_"


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def _digits(number: int, base: int) -> str:
    digits = _DIGITS[number % base]
    while number := number // base:
        digits = _DIGITS[number % base] + digits
    return digits


def _epoch(epoch_num: int | None) -> str:
    return "" if epoch_num is None else f"epoch_{epoch_num}/"


def _check_epoch(epoch_num: int | None) -> None:
    if epoch_num is not None and not _is_integer(epoch_num):
        raise ArgumentError(f"Epoch number must be None or an integer, got {epoch_num}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
