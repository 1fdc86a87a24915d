"""Workers that start anew, measured: a short run prints all of its figures."""

from __future__ import annotations

import re

from benchmarks import worker_start


def test_a_short_run(capsys):
    """Both epochs of each dataset, and one search for credentials of each job that reads from S3."""
    assert worker_start.main(["--workers", "2", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:local|iterable|map)(?: +[\d.]+){6}$", printed, re.MULTILINE)) == 3
    assert printed.endswith("2 searches for credentials by 2 jobs of 4 epochs\n")
