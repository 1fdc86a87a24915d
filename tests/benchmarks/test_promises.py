"""Columns and promises."""

from __future__ import annotations

import pytest

from benchmarks.measure import Sample
from benchmarks.promises import CPU_S_PER_GIB, CPU_US, FIRST_BATCH_MS, OVERFETCH, REQUESTS, Promise, best, of, over
from benchmarks.site import MIB

from .examples import MOOD, RATE, sample

ROUND = {"s3torch a": sample(10), "s3torch b": sample(20), "other": sample(5)}


def test_columns():
    """Each column is the quotient that its title says; what was not measured is None."""
    measured = Sample(
        wall_s=2, cpu_s=1, peak_growth=0, items=4, bytes=512 * MIB, requests=8, wire_bytes=1024 * MIB, extra={"mood": 3}
    )
    assert (RATE.of(measured), CPU_US.of(measured), CPU_S_PER_GIB.of(measured)) == (2, 250_000, 2)
    assert (REQUESTS.of(measured), OVERFETCH.of(measured), MOOD.of(measured)) == (2, 2, 3)
    assert [column.of(sample(1)) for column in (REQUESTS, OVERFETCH, MOOD, FIRST_BATCH_MS)] == [None] * 4


def test_best_and_over():
    """The best is the greatest of a rate and the least of a cost."""
    assert best("s3torch", RATE)(ROUND) == 20
    assert best("s3torch", CPU_US)(ROUND) == 25_000
    assert over(best("s3torch", RATE), of("other", RATE))(ROUND) == 4


def test_what_is_missing_is_an_error():
    """A contender that is missing, or has no such number, is no zero."""
    with pytest.raises(KeyError):
        of("nobody", RATE)(ROUND)
    with pytest.raises(ValueError, match="mood was not measured"):
        of("other", MOOD)(ROUND)


@pytest.mark.parametrize(("is_minimum", "kept"), [(True, [False, True, True]), (False, [True, True, False])])
def test_bounds(is_minimum, kept):
    """A bound itself is kept."""
    promise = Promise("text", of("other", RATE), 2, is_minimum=is_minimum)
    assert [promise.is_kept(value) for value in (1, 2, 3)] == kept
