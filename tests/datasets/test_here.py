"""Which rank this process is."""

from __future__ import annotations

import pytest
import torch.distributed

from s3torch.datasets.here import rank_and_world_size


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_alone():
    """Where nothing is said, this is the only one; or what was known before."""
    assert rank_and_world_size() == (0, 1)
    assert rank_and_world_size((2, 3)) == (2, 3)


def test_torchrun(monkeypatch):
    """Torchrun's variables count where nothing was known."""
    monkeypatch.setenv("RANK", "1")
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world_size() == (1, 4)
    assert rank_and_world_size((2, 3)) == (2, 3)


def test_a_process_group(monkeypatch):
    """A process group knows best."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert rank_and_world_size((2, 3)) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
