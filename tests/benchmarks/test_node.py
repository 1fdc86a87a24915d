"""What a node's processes take, measured: a short run prints both parts."""

from __future__ import annotations

import re

import pytest

from benchmarks import node


@pytest.mark.parametrize("rounds", ["0", "1"])
def test_a_short_run(capsys, monkeypatch: pytest.MonkeyPatch, rounds: str):
    """Connections, memory and seconds of each side; rates by number of connections, unless they are left out."""
    monkeypatch.setattr(node, "_SAMPLES", 32)
    monkeypatch.setattr(node, "_CONNECTIONS", (4, 128))
    short = ["--ranks", "1", "--workers", "2", "--samples", "32", "--large", "4", "--rounds", rounds]
    assert node.main(short) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^(100 kB|8 MiB), (by default|each as if alone) +(\d+) +\d+ +[\d.]+$", printed, re.MULTILINE)
    assert len(rows) == 4
    # It looks now and then: so few objects may come between two looks.
    assert all(int(connections) <= 32 for _, _, connections in rows)
    assert len(re.findall(r"^transform of [\d.]+ ms(?: +[\d.]+){2}$", printed, re.MULTILINE)) == 4 * int(rounds)
