"""Checkpoints of several processes: saved by two ranks, loaded by four, saved by these, loaded by three."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from s3torch.errors import S3Error
from s3torch.torch_checkpointing import S3StorageConfig, clean
from tests.checkpoint.torch_checkpointing.ranks import be_rank, whole_tensors

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture(scope="module")
def run(server, forkserver, tmp_path_factory) -> Callable[[int, str, str], list[dict[str, torch.Tensor]]]:
    """Runs an action in so many ranks; returns what each has loaded."""
    folder = tmp_path_factory.mktemp("meetings")

    def run(ranks: int, action: str, path: str) -> list[dict[str, torch.Tensor]]:
        meeting = str(folder / uuid.uuid4().hex)
        with server.activated(), ProcessPoolExecutor(ranks, forkserver) as pool:
            running = [pool.submit(be_rank, rank, ranks, meeting, action, path) for rank in range(ranks)]
            return [rank.result() for rank in running]

    return run


def _is_whole(loaded: dict[str, torch.Tensor]) -> bool:
    expected = whole_tensors()
    return loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_resharding(run, bucket, prefix):
    """Ranks of any number load what others have saved."""
    root = f"s3://{bucket}/{prefix}run"
    run(2, "save", f"{root}/two")
    assert all(map(_is_whole, run(4, "load", f"{root}/two")))
    run(4, "save", f"{root}/four")
    assert all(map(_is_whole, run(3, "load", f"{root}/four")))
    storage = S3StorageConfig().create_storage()
    assert storage.ls(f"{root}/two") == ["metadata.pkl", "model_0.pt", "model_1.pt"]
    assert clean(root, older_than=0) == []


def test_in_the_background(run, bucket, prefix):
    """The background processes of two ranks, which are in no group, know what they write together."""
    path = f"s3://{bucket}/{prefix}step"
    run(2, "save_async", path)
    assert all(map(_is_whole, run(1, "load", path)))
    assert clean(path, older_than=0) == []


def test_ranks_that_know_of_each_other_in_another_way(bucket, prefix):
    """What may be another rank's file is never left out in silence; a common ``save_id`` makes it a part."""
    path = f"s3://{bucket}/{prefix}step"
    temporary = f"s3://{bucket}/{prefix}tmp_step"
    storages = [S3StorageConfig().create_storage() for _ in range(2)]
    for rank, storage in enumerate(storages):
        storage.write(f"{temporary}/model_{rank}.pt", b"x")
    with pytest.raises(S3Error, match=r"model_1\.pt may be of another rank.*save_id"):
        storages[0].rename(temporary, path, is_directory=True)
    assert not storages[0].exists(path)
    storages = [S3StorageConfig(save_id="job 7, start 2").create_storage() for _ in range(2)]
    for rank, storage in enumerate(storages):
        storage.write(f"{temporary}/model_{rank}.pt", b"x")
    storages[0].rename(temporary, path, is_directory=True)
    assert storages[1].ls(path) == ["model_0.pt", "model_1.pt"]
    assert clean(path, older_than=0) == []
