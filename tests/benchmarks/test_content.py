"""The content of the servers' objects."""

from __future__ import annotations

from benchmarks.content import content, pieces
from benchmarks.site import MIB


def test_any_cut_is_the_same():
    """A range is what a slice of the whole is, wherever it is cut."""
    whole = content(0, 20_000)
    assert len(whole) == 20_000
    for start, stop in [(0, 0), (0, 1), (4095, 4097), (4096, 8192), (5, 19_999)]:
        assert content(start, stop) == whole[start:stop]


def test_blocks_differ():
    """No two blocks are the same, so that a misplaced one is seen."""
    whole = content(0, 1 * MIB)
    assert len({whole[start : start + 4096] for start in range(0, len(whole), 4096)}) == 256


def test_pieces():
    """An object in pieces is the object."""
    assert b"".join(pieces(MIB + 7)) == content(0, MIB + 7)
