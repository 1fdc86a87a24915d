"""Ray: the example trains by Ray Train, and decodes by tasks of Ray Data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.engines.launching import KILLED_STEP, ROOT, SAMPLES, check

pytest.importorskip("ray.train")


@pytest.mark.soak
def test_a_job_is_killed_and_goes_on(data, tmp_path):
    """A worker of two is killed, and three go on where the last state was: each sample once an epoch."""
    arguments = [str(tmp_path), data, "s3://tests/engines/run-ray", str(KILLED_STEP)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/engines/on_ray.py"), *arguments],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert (tmp_path / "error").exists()
    assert output.count(f"{SAMPLES} objects, mean {sum(range(SAMPLES)) / SAMPLES / 64:.3f}") == 2
    killed, later = (
        [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted((tmp_path / job).glob("*.jsonl"))
        ]
        for job in ("killed", "later")
    )
    assert (len(killed), len(later)) == (2, 3)
    check(killed, later)
