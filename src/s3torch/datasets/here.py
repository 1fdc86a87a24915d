"""Which rank this process is, of how many."""

from __future__ import annotations

import os

import torch.distributed

__all__ = ["rank_and_world_size"]


def rank_and_world_size(known: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Return what the process group says, else what torchrun set, else what was known.

    A DataLoader worker that is not forked has no process group: it uses what was known when the dataset was pickled for
    it, or torchrun's variables.

    Args:
        known: Rank and world size.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if known == (0, 1) and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return known
