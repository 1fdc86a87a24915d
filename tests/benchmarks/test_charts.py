"""The charts."""

from __future__ import annotations

import pytest

from .examples import outcome

pytest.importorskip("matplotlib", reason="charts need matplotlib, of the extra test")


def test_draw(tmp_path):
    """A case with numbers is drawn as a PNG, one without is not."""
    from benchmarks.charts import draw

    assert draw(outcome((10, 1), (20, 3)), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not draw(outcome(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
