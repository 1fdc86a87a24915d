"""Large reads into new memory, measured: a short run prints all of its figures."""

from __future__ import annotations

from benchmarks import new_memory


def test_a_short_run(capsys):
    """All ways over HTTP, and both numbers of threads over TLS."""
    assert new_memory.main(["--size", "16", "--rounds", "1"]) == 0
    rows = [line[:22].rstrip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        "plain HTTP",
        "floor, 8 threads",
        "read_ranges",
        "load_file",
        "S3Checkpoint.load",
        "torch.load(reader)",
        "TLS, read_ranges",
        "1 thread",
        "2 threads",
    ]
