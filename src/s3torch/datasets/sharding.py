"""Who reads what: arithmetic on ranks and workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Position", "shard"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """One reader among all: a DataLoader worker of a rank.

    Attributes:
        rank: Of the process group, from 0.
        world_size: Number of ranks.
        worker: Of the rank's DataLoader, from 0.
        num_workers: Number of its workers; 1 without any.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    @property
    def first(self) -> int:
        """The first item that is this reader's."""
        return self.rank + self.world_size * self.worker

    @property
    def step(self) -> int:
        """How many items there are from one of this reader's to the next."""
        return self.world_size * self.num_workers

    @property
    def is_alone(self) -> bool:
        """Whether nobody else reads."""
        return self.world_size == 1 and self.num_workers == 1


def shard(items: Iterable[T], position: Position) -> Iterator[T]:
    """Return every item that is this reader's: over all positions each item comes exactly once.

    Items go to the ranks in turn, and each rank's to its workers in turn, so that ranks differ by one item at most.
    """
    return itertools.islice(items, position.first, None, position.step)
