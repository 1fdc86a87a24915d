"""Checkpoints of several processes: saved by two ranks, loaded by one, two and three."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("s3")

ROOT = Path(__file__).parents[3]


def _torchrun(ranks: int, action: str, path: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "tests.checkpoint.dcp.ranks", action, path]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(server, bucket) -> str:
    """A checkpoint that two ranks saved: tensors sharded by rows and by columns, a DDP model, a number."""
    path = f"s3://{bucket}/ranks"
    with server.activated():
        _torchrun(2, "save", path)
    return path


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_loaded_by(checkpoint, ranks):
    """Any number of ranks loads equal tensors, and each receives what it needs and ends of archives, no more."""
    printed = _torchrun(ranks, "load", checkpoint)
    received = [int(count) for count in re.findall(r"received (\d+) bytes", printed)]
    assert len(received) == 2 * ranks  # of what was saved at once, and in the background
    rows = 1030 * 600 * 4
    assert max(received) < {1: 1.02, 2: 0.52, 3: 0.7}[ranks] * rows + 64 * 1024
