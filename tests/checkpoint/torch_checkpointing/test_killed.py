"""Ranks that are killed in the middle of a save."""

from __future__ import annotations

import logging
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from s3torch import S3Client
from s3torch.checkpoint import latest
from s3torch.torch_checkpointing import S3StorageConfig, clean
from tests.checkpoint.torch_checkpointing.ranks import rank_path, save_steps, state_of, sync_manager
from tests.conftest import MiB

_log = logging.getLogger(__name__)

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


def _wait_for(path: Path, processes: list[BaseProcess]) -> None:
    """Wait until a rank has made a file."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


@pytest.mark.parametrize(("kills", "size"), [(3, 24 * MiB), pytest.param(20, 1024 * MiB, marks=pytest.mark.soak)])
def test_killed_while_saving(s3, forkserver, bucket, prefix, tmp_path, kills, size):
    """Two ranks are killed at random moments: what was there before loads, and what was not committed is not there.

    The same name saved again becomes a checkpoint, and nothing of the killed save is left.
    """
    run = f"s3://{bucket}/{prefix}run"
    chance = random.Random(7)
    storage = S3StorageConfig().create_storage()

    def start(folder: Path, steps: range) -> list[BaseProcess]:
        folder.mkdir()
        arguments = (RANKS, str(folder), run, steps, size // RANKS)
        processes = [forkserver.Process(target=save_steps, args=(rank, *arguments)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        _wait_for(rank_path(str(folder), steps[0]), processes)
        return processes

    def end(processes: list[BaseProcess]) -> list[int | None]:
        for process in processes:
            process.join(PATIENCE)
        return [process.exitcode for process in processes]

    processes = start(tmp_path / "first", range(1, 2))
    began = time.monotonic()
    assert end(processes) == [0] * RANKS
    seconds = time.monotonic() - began
    assert _is_loaded(f"{run}/step-1", 1, size // RANKS)
    uncommitted = orphans = 0
    for kill in range(kills):
        steps = range(10 * (kill + 1), 10 * (kill + 2))
        processes = start(tmp_path / str(kill), steps)
        time.sleep(chance.uniform(0, 1.1 * seconds))
        for process in processes:
            process.kill()
        end(processes)
        step = max(step for step in steps if rank_path(str(tmp_path / str(kill)), step).exists())
        folder, name = f"{prefix}run/step-{step}/", f"{run}/step-{step}"
        assert _is_loaded(f"{run}/step-1", 1, size // RANKS)
        if f"{folder}_COMPLETE" in _keys(bucket, folder):
            assert _is_loaded(name, step, size // RANKS)
            assert latest(run) == name
        else:
            uncommitted += 1
            orphans += len(_keys(bucket, folder)) + len(S3Client().list_multipart_uploads(bucket, folder))
            assert not storage.exists(name)
            assert storage.ls(run) == sorted(f"step-{each}" for each in (1, *range(steps[0], step)))
            with pytest.raises(FileNotFoundError):
                sync_manager().load(name, into={"weight": None})
            # Of one process, which says that it has no others: they may have left files of names that it has not.
            sync_manager(save_id=f"alone {kill}").save(name, state_of(7, 0, MiB))
            assert sync_manager().load(name, into={"number": None}) == {"number": 7}
            assert clean(name, older_than=0) == []
        _log.info("kill %d: %d not committed, %d files and uploads left by these", kill, uncommitted, orphans)
        for each in range(steps[0], step + 1):
            storage.rmdir(f"{run}/step-{each}")
        assert clean(run, older_than=0) == []
        assert len(_keys(bucket, f"{prefix}run/")) == 1 + 2 * RANKS
    assert uncommitted
    assert orphans or kills < 20
