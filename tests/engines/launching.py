"""Runs programs of several ranks, and the examples among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLES = 72
BATCH_SIZE = 4
KILLED_STEP = 7  # the last state is that of step 6: what came after it comes again


def torchrun(ranks: int, *program: str) -> tuple[int, str]:
    """Run a program by torchrun; returns its exit code and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def train(name: str, folder: Path, ranks: int, *arguments: str, kill: bool = False) -> list[list[list[int]]]:
    """Run an example by torchrun, to its end or until its last rank is killed; returns the batches of each rank."""
    folder.mkdir()
    killed = str(ranks - 1) if kill else "none"
    code, output = torchrun(
        ranks,
        *(str(ROOT / "tests/engines/noting.py"), str(folder), killed, str(KILLED_STEP)),
        *(str(ROOT / "examples" / name), *arguments),
    )
    assert (code != 0) is kill, output
    assert not kill or "SIGKILL" in output or "exitcode  : -9" in output, output
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) == ranks, output
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def check(killed: list[list[list[int]]], later: list[list[list[int]]]) -> None:
    """Check that two epochs are whole: what was received when a job saved its last state, and what came in the next."""
    assert all(len(rank) > KILLED_STEP - 1 for rank in killed)  # some came after the state, and come once more
    before = [sample for rank in killed for batch in rank[: KILLED_STEP - 1] for sample in batch]
    assert len(before) == (KILLED_STEP - 1) * BATCH_SIZE * len(killed)
    rest = (SAMPLES - len(before)) // len(later)  # of each rank
    assert len({len(rank) for rank in later}) == 1
    epochs: list[list[int]] = [before, []]
    for rank in later:
        samples = [sample for batch in rank for sample in batch]
        epochs[0] += samples[:rest]
        epochs[1] += samples[rest:]
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys(range(SAMPLES), 1)
