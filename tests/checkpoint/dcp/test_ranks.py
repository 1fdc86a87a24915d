"""Checkpoints of several processes: saved by two ranks, loaded by one, two and three."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.checkpoint.dcp.ranks import be_rank

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture(scope="module")
def run(server, forkserver, tmp_path_factory) -> Callable[[int, str, str], list[int]]:
    """Runs an action in so many ranks; returns how many bytes each load of each rank has received."""
    folder = tmp_path_factory.mktemp("meetings")

    def run(ranks: int, action: str, path: str) -> list[int]:
        meeting = str(folder / uuid.uuid4().hex)
        with server.activated(), ProcessPoolExecutor(ranks, forkserver) as pool:
            running = [pool.submit(be_rank, rank, ranks, meeting, action, path) for rank in range(ranks)]
            return [count for rank in running for count in rank.result()]

    return run


@pytest.fixture(scope="module")
def checkpoint(run, bucket) -> str:
    """A checkpoint that two ranks saved: tensors sharded by rows and by columns, a DDP model, a number."""
    path = f"s3://{bucket}/ranks"
    run(2, "save", path)
    return path


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_loaded_by(run, checkpoint, ranks):
    """Any number of ranks loads equal tensors, and each receives what it needs and ends of archives, no more."""
    received = run(ranks, "load", checkpoint)
    assert len(received) == 2 * ranks  # of what was saved at once, and in the background
    rows = 1030 * 600 * 4
    assert max(received) < {1: 1.02, 2: 0.52, 3: 0.7}[ranks] * rows + 64 * 1024
