"""Outcomes that tests make up."""

from __future__ import annotations

from benchmarks.cases import Case
from benchmarks.measure import Sample
from benchmarks.promises import Column, Promise, extra, of, over, per_second
from benchmarks.results import Outcome
from benchmarks.site import Effort

RATE = per_second("things")
MOOD = extra("mood", "mood", 1)
CASE = Case(
    name="large",
    title="Things",
    task="large",
    server="fast",
    effort=Effort(),
    quick=Effort(),
    columns=(RATE, MOOD),
    charts=(RATE,),
    promises=(
        Promise("ours over theirs", over(of("s3torch", RATE), of("boto3, readinto()", RATE)), 2, is_minimum=True),
        Promise("ours over nobody's", over(of("s3torch", RATE), of("nobody", RATE)), 2),
    ),
)


def sample(items: int, **more: float) -> Sample:
    """Return a sample of one second."""
    return Sample(wall_s=1.0, cpu_s=0.5, peak_growth=0, items=items, bytes=items, extra=more)


def outcome(*rates: tuple[int, int], case: Case = CASE, **failures: str) -> Outcome:
    """Return the outcome of rounds with these rates of s3torch and boto3."""
    rounds = [{"s3torch": sample(ours, mood=1.0), "boto3, readinto()": sample(theirs)} for ours, theirs in rates]
    return Outcome(case, {"cpu": "one", "load before": "0.10"}, rounds, dict(failures))


__all__ = ["CASE", "MOOD", "RATE", "Column", "outcome", "sample"]
