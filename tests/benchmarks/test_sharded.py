"""The state dict that ranks share."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

from benchmarks.ranks import join
from benchmarks.sharded import SHARDED, check_shards, make_shards, rows, write_sharded
from benchmarks.site import KIB
from benchmarks.state import WARM_UP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks meet over Linux's loopback")
SIZE = 12 * KIB  # three rows: two of the first rank, one of the second


@pytest.fixture
def only_rank(tmp_path, monkeypatch):
    """This process is the only rank."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setitem(os.environ, name, value)
    join()
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rows(count, ranks):
    """Ranks share rows as torch.chunk does; the last ones may have none."""
    chunks = [len(chunk) for chunk in torch.arange(count).chunk(ranks)] if count else []
    shares = [rows(rank, ranks, count) for rank in range(ranks)]
    assert [stop - start for start, stop in shares] == [*chunks, *[0] * (ranks - len(chunks))]


@pytest.mark.usefixtures("only_rank")
@pytest.mark.parametrize("damage", [lambda t: t[:1].zero_(), lambda t: t[-1, -1:].zero_(), lambda t: t.fill_(-1)])
def test_damage(damage):
    """What was not loaded to its ends is seen."""
    state = make_shards([0, 5], SIZE)
    assert check_shards(state, [0, 5], SIZE) == 2 * SIZE
    damage(state["layer5.weight"].to_local())
    with pytest.raises(AssertionError, match="tensor 5 is not what was saved"):
        check_shards(state, [0, 5], SIZE)


@pytest.mark.usefixtures("only_rank")
def test_written_by_two_ranks(tmp_path):
    """Each of two ranks writes its rows into a file of its own, and one rank can load them all."""
    write_sharded(tmp_path, 3, SIZE)
    for name in (SHARDED, f"{WARM_UP}{SHARDED}"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    state = make_shards(range(3), SIZE, is_blank=True)
    dcp.load(state, storage_reader=FileSystemReader(tmp_path / SHARDED))
    assert check_shards(state, range(3), SIZE) == 3 * SIZE


def test_a_rank_fails(tmp_path):
    """That the checkpoint cannot be written says why."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"the checkpoint could not be written: (.|\n)*Error"):
        write_sharded(tmp_path / "file", 1, SIZE)
