"""Tables of many objects, measured: a short run prints all of its figures."""

from __future__ import annotations

import re

from benchmarks import tables


def test_a_short_run(capsys):
    """Costs for both sizes, and workers that get either mapped, or the large one whole."""
    assert tables.main(["--objects", "2000", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^ +(\d+)(?: +[\d.]+){7}$", printed, re.MULTILINE) == ["10", "2000"]
    workers = dict(re.findall(r"^(\d+, [a-z ]+[a-z]) +([\d.]+)(?: +[\d.]+){4}$", printed, re.MULTILINE))
    assert list(workers) == ["10, mapped", "2000, mapped", "2000, in memory"]
    assert float(workers["2000, mapped"]) < 1 < float(workers["2000, in memory"])
