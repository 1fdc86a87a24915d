"""Programs written for s3torchconnector, unchanged, on s3torch: DataLoader workers, and ranks of torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3torch.compat.installing import real_version

IS_REAL = real_version() is not None
PROGRAM = Path(__file__).with_name("programs.py")
RUNNER = [] if IS_REAL else ["-m", "s3torch.compat"]

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture(scope="module")
def objects(bucket, client) -> str:
    """The prefix of 20 objects of 1 to 20 bytes."""
    for number in range(1, 21):
        with client.put_object(bucket, f"compat/programs/{number:02}") as writer:
            writer.write(bytes(number))
    return f"s3://{bucket}/compat/programs/"


def _run(server, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "ignore"}
    with server.activated():
        environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loader(server, objects, method):
    """Workers of each start method read each object once, as a map and as a stream."""
    _run(server, sys.executable, *RUNNER, str(PROGRAM), "loader", objects, method)


@pytest.mark.parametrize("count", [1, 3])
def test_ranks(server, bucket, objects, count):
    """Under torchrun ranks share a dataset, and save, overwrite and load distributed checkpoints by all readers."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    path = f"s3://{bucket}/compat/ranks-{count}"
    printed = _run(server, *torchrun, *RUNNER, str(PROGRAM), "ranks", objects, path)
    assert printed.count(f"of {count} is done") == count
