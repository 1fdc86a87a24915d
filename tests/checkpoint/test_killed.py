"""Processes that are killed in the middle of a save."""

from __future__ import annotations

import multiprocessing
import os
import random
import time

import pytest
import torch

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.checkpoint import clean, latest

MiB = 1024 * 1024
KILLS = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def _state(number: int) -> dict[str, object]:
    return {"number": number, "weight": torch.full((3 * MiB,), number, dtype=torch.float32)}


def _save_for_ever(uri: str, number: int) -> None:
    checkpoint = S3Checkpoint(s3client_config=S3ClientConfig(part_size=5 * MiB))
    while True:
        checkpoint.save(_state(number), uri)
        number += 1


def test_killed_while_saving(s3, bucket, prefix):
    """Whenever a process is killed, a whole checkpoint is there; what it has left behind is found and cleaned up."""
    torch.set_num_threads(1)  # a forked child has not the threads of torch's pool
    uri = f"s3://{bucket}/{prefix}run/state.pt"
    checkpoint = S3Checkpoint()
    checkpoint.save(_state(0), uri)
    chance = random.Random(5)
    seen, orphans = {0}, 0
    for kill in range(KILLS):
        child = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(uri, 1000 * (kill + 1)))
        child.start()
        time.sleep(chance.uniform(0.05, 0.5))
        child.kill()
        child.join()
        state = checkpoint.load(uri)
        assert state["weight"].unique().tolist() == [state["number"]]
        seen.add(state["number"])
        orphans += len(S3Client().list_multipart_uploads(bucket, f"{prefix}run/"))
        assert latest(f"s3://{bucket}/{prefix}run") == uri
        if kill % 5 == 4:
            clean(f"s3://{bucket}/{prefix}run")
            assert S3Client().list_multipart_uploads(bucket, f"{prefix}run/") == []
    assert len(seen) > 1  # some saves were done
    assert orphans  # and some were not
