"""Ranks that are killed in the middle of a save."""

from __future__ import annotations

import random
import time
import uuid

import pytest
import torch

from s3torch import S3Client
from s3torch.checkpoint import latest
from s3torch.torch_checkpointing import S3StorageConfig, clean
from tests.checkpoint.torch_checkpointing.ranks import rank_path, save_until_killed, state_of, sync_manager
from tests.conftest import MiB

RANKS = 2
PATIENCE = 120.0  # seconds for what must happen


def _keys(bucket: str, prefix: str) -> list[str]:
    return [info.key for page in S3Client().list_objects(bucket, prefix) for info in page.object_info]


def _is_loaded(uri: str, number: int, size: int) -> bool:
    """Whether both ranks' files of a checkpoint hold what was saved."""
    loaded = [sync_manager(rank).load(uri, into={"weight": None, "number": None}) for rank in range(RANKS)]
    expected = [state_of(number, rank, size) for rank in range(RANKS)]
    return all(
        torch.equal(one["weight"], other["weight"]) and one["number"] == other["number"]
        for one, other in zip(loaded, expected, strict=True)
    )


def _wait_for(path, processes) -> str:
    """Return what a rank has written into a file, as soon as it has."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize(("kills", "size"), [(3, 24 * MiB), pytest.param(20, 1024 * MiB, marks=pytest.mark.soak)])
def test_killed_while_saving(s3, forkserver, bucket, prefix, tmp_path, kills, size):
    """Two ranks are killed at random moments: what was there before loads, and what was not committed is not there.

    The same name saved again becomes a checkpoint, and nothing of the killed save is left.
    """
    run = f"s3://{bucket}/{prefix}run"
    chance = random.Random(7)
    storage = S3StorageConfig().create_storage()
    uncommitted, orphans, seconds = 0, 0, None
    for kill in range(kills):
        folder = tmp_path / str(kill)
        folder.mkdir()
        meeting = str(folder / uuid.uuid4().hex)
        first = 1000 * (kill + 1)
        processes = [
            forkserver.Process(
                target=save_until_killed, args=(rank, RANKS, meeting, str(folder), run, first, size // RANKS)
            )
            for rank in range(RANKS)
        ]
        for process in processes:
            process.start()
        try:
            previous = _wait_for(rank_path(str(folder), first + 1), processes)  # the first is complete
            if seconds is None:
                seconds = float(previous)
            time.sleep(chance.uniform(0, 1.5 * seconds))
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join(PATIENCE)
        begun = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        last, name = f"{run}/step-{begun - 1}", f"{run}/step-{begun}"
        assert _is_loaded(last, begun - 1, size // RANKS)
        marker = f"{prefix}run/step-{begun}/_COMPLETE"
        if marker in _keys(bucket, marker):
            assert _is_loaded(name, begun, size // RANKS)
            assert latest(run) == name
        else:
            uncommitted += 1
            orphans += len(_keys(bucket, f"{prefix}run/step-{begun}/"))
            orphans += len(S3Client().list_multipart_uploads(bucket, f"{prefix}run/step-{begun}/"))
            assert not storage.exists(name)
            assert storage.ls(run) == sorted(f"step-{number}" for number in range(first, begun))
            assert latest(run) == last
            with pytest.raises(FileNotFoundError):
                sync_manager().load(name, into={"weight": None})
            sync_manager().save(name, state_of(1, 0, MiB))
            assert sync_manager().load(name, into={"number": None}) == {"number": 1}
            assert clean(name, older_than=0) == []
        clean(run, older_than=0)
        storage.rmdir(run)
        assert _keys(bucket, f"{prefix}run/") == []
    assert uncommitted
    assert orphans or kills < 20
