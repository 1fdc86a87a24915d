"""Parts of an upload that are under way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from s3torch._objects.upload import _Flying


@pytest.mark.parametrize("is_free", [True, False])
def test_parts_move_while_the_next_is_written(is_free: bool):
    """Parts are moved on by whoever writes, without waiting; not in the middle of a turn, or in another thread."""
    intervals: list[float] = []
    engine = SimpleNamespace(is_free=is_free, nudge=intervals.append)
    access: Any = SimpleNamespace(engine=lambda: engine)
    nothing: Any = None
    _Flying(access, nothing, nothing).nudge()
    assert len(intervals) == int(is_free)
    assert all(interval > 0 for interval in intervals)
