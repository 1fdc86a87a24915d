"""Which save a file is a part of: agreed on by ranks, or of one process alone."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist

from s3torch.checkpoint.torch_checkpointing.identity import Identity, agree, new_identity

KNOWN = Identity("0" * 16, is_shared=False)
OWN = new_identity()


def _stores(tmp_path):
    yield dist.HashStore()
    yield dist.FileStore(str(tmp_path / "store"), 1)
    yield dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=20))


@pytest.mark.parametrize("number", range(3))
def test_ranks_agree(tmp_path, number):
    """Whoever asks the store of a process group has the same identity; another group has another."""
    store = list(_stores(tmp_path))[number]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        first = agree(None, OWN)
        assert first.is_shared
        assert agree(None, OWN) == agree(None, KNOWN) == first
        assert len(first.name) == 16
    finally:
        dist.destroy_process_group()
    assert agree(None, OWN) != first


def test_one_process():
    """A process without a group has what it was given, or something new, which no other is known to have."""
    assert agree(None, KNOWN) == KNOWN
    assert new_identity() != OWN
    assert not OWN.is_shared


def test_a_name_of_the_users():
    """What the user says decides, and is the same everywhere."""
    assert agree("job 7", KNOWN) == agree("job 7", OWN)
    assert agree("job 7", OWN) != agree("job 8", OWN)
    assert agree("job 7", OWN).is_shared
