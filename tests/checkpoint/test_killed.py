"""Processes that are killed in the middle of a save."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal

import pytest
import torch

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch.checkpoint import clean, latest

MiB = 1024 * 1024
MOST_KILLS = 200
PATIENCE = 120.0  # seconds that a process has to be killed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def _state(number: int) -> dict[str, object]:
    return {"number": number, "weight": torch.full((3 * MiB,), number, dtype=torch.float32)}


def _save_until_killed(uri: str, number: int, seconds: float) -> None:
    """Save until this process has computed for so long, however busy the machine is; the signal ends it there."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    checkpoint = S3Checkpoint(s3client_config=S3ClientConfig(part_size=5 * MiB))
    while True:
        checkpoint.save(_state(number), uri)
        number += 1


@pytest.mark.parametrize(("kills", "longest"), [(5, 0.15), pytest.param(50, 0.5, marks=pytest.mark.soak)])
def test_killed_while_saving(s3, bucket, prefix, kills, longest):
    """Whenever a process is killed, a whole checkpoint is there; what it has left behind is found and cleaned up."""
    torch.set_num_threads(1)  # a forked child has not the threads of torch's pool
    uri = f"s3://{bucket}/{prefix}run/state.pt"
    checkpoint = S3Checkpoint()
    checkpoint.save(_state(0), uri)
    chance = random.Random(5)
    seen, orphans = {0}, 0
    for kill in itertools.count():
        arguments = (uri, 1000 * (kill + 1), chance.uniform(0.02, longest))
        child = multiprocessing.get_context("fork").Process(target=_save_until_killed, args=arguments)
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == -signal.SIGPROF
        state = checkpoint.load(uri)
        assert state["weight"].unique().tolist() == [state["number"]]
        seen.add(state["number"])
        orphans += len(S3Client().list_multipart_uploads(bucket, f"{prefix}run/"))
        assert latest(f"s3://{bucket}/{prefix}run") == uri
        if kill % 5 == 4:
            clean(f"s3://{bucket}/{prefix}run", older_than=0)
            assert S3Client().list_multipart_uploads(bucket, f"{prefix}run/") == []
            if kill + 1 >= kills and len(seen) > 1 and orphans:
                break  # some saves were done, and some were not
        assert kill < MOST_KILLS
