"""The order of an epoch, measured: a short run prints all of its figures."""

from __future__ import annotations

import re

from benchmarks import order


def test_a_short_run(capsys):
    """Times for each count, and each test of chance for ours and torch's."""
    assert order.main(["--share", "50"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^ +(\d+)(?: +[\d.]+){3}$", printed, re.MULTILINE) == [
        "1000",
        "1000000",
        "100000000",
        str(2**48),
    ]
    assert len(re.findall(r"^(?:s3torch|torch\.randperm)(?: +-?[\d.]+){3}$", printed, re.MULTILINE)) == 2
