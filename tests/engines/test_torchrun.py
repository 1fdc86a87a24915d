"""The example for torchrun: a job of several ranks that is killed, and goes on with another number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from s3torch import S3Client

_ROOT = Path(__file__).parents[2]
_SAMPLES = 72
_BATCH = 4
_KILLED_STEP = 7  # the last state is that of step 6: what came after it comes again


class Noted(NamedTuple):
    """What one job has received.

    Attributes:
        states: What each rank has resumed from, if it has.
        batches: Those of each rank: epoch and samples.
    """

    states: list[dict[str, object]]
    batches: list[list[tuple[int, list[int]]]]


def _run(folder: Path, ranks: int, killed: str, *arguments: str) -> tuple[int, Noted, str]:
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    program = [str(_ROOT / "tests/engines/noting.py"), str(folder), killed, str(_KILLED_STEP)]
    done = subprocess.run(
        [*launcher, *program, str(_ROOT / "examples/train_torchrun.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    files = [path.read_text().splitlines() for path in sorted(folder.glob("*.jsonl"))]
    lines = [[json.loads(line) for line in file] for file in files]
    states = [line["state"] for rank in lines for line in rank if "state" in line]
    batches = [[tuple(line["batch"]) for line in rank if "batch" in line] for rank in lines]
    return done.returncode, Noted(states, batches), done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(server):
    """The prefix of samples that tell which one they are."""
    with server.activated():
        client = S3Client()
        for number in range(_SAMPLES):
            with client.put_object("tests", f"engines/train/{number:03}") as writer:
                writer.write(number.to_bytes(2, "big") + bytes(62))
        client.close()
        yield "s3://tests/engines/train/"


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
def test_a_job_is_killed_and_goes_on(data, tmp_path, options):
    """What two ranks had received when they saved, and what one or three receive later: each sample once an epoch."""
    run = "s3://tests/engines/run" + "".join(options)
    code, killed, output = _run(tmp_path / "killed", 2, "1", data, run, *options)
    assert code != 0, output
    assert killed.states == []
    before = [batch for rank in killed.batches for batch in rank[:6]]
    assert all(len(rank) > 6 for rank in killed.batches)  # some came after the state, and are received once more
    for ranks in (1, 3):
        # They save nothing, so that both go on from the same state.
        code, later, output = _run(tmp_path / str(ranks), ranks, "", data, run, "--save-every=1000", *options)
        assert code == 0, output
        assert len(later.states) == ranks
        assert all(state == later.states[0] for state in later.states)
        assert later.states[0]["consumed"] == 6 * 2 * _BATCH
        assert len({len(rank) for rank in later.batches}) == 1
        after = [batch for rank in later.batches for batch in rank]
        for epoch in range(2):
            met = Counter(sample for each, samples in before + after if each == epoch for sample in samples)
            assert met == dict.fromkeys(range(_SAMPLES), 1), (ranks, epoch)
