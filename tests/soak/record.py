"""What a soak is to do, what happened, and what of that is wrong."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Plan", "Record", "as_json", "is_flat", "quarters", "verdict"]

# What the end may have more than the second quarter, beside 5 %: noise of what happens to be in flight.
MORE_BYTES = 32 * 1024 * 1024
MORE_DESCRIPTORS = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done, from when both loaders have been through an epoch; times are seconds, those of chance are means."""

    seconds: float
    seed: int = 1
    objects: int = 2000
    smallest: int = 1000
    largest: int = 8_000_000
    checkpoint_bytes: int = 40_000_000
    checkpoint_every: float = 20.0
    kill_every: float = 60.0
    rotate_every: float = 40.0
    reset_every: float = 1.0
    longest_outage: float = 8.0


@dataclass
class Record:
    """What happened; moments are seconds since the trainer began."""

    plan: Plan
    began: float = 0.0
    ended: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    moments: dict[str, list[float]] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    descriptors: list[tuple[float, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    empty_uploads: int = 0
    exit_status: int | None = None
    rounds: int = 0
    is_over: bool = False

    def now(self) -> float:
        """Return the moment."""
        return time.monotonic() - self.began

    def mark(self, what: str) -> None:
        """Remember when something happened."""
        self.moments.setdefault(what, []).append(round(self.now(), 2))

    def longest_wait(self) -> float:
        """Return the longest time between two batches."""
        times = [when for when, _ in self.samples]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def quarters(series: list[tuple[float, int]]) -> tuple[float, float]:
    """Return the medians of the second and the last quarter."""
    values = [value for _, value in series]
    part = len(values) // 4
    if not part:
        return 0.0, 0.0
    return (sorted(values[part : 2 * part])[part // 2], sorted(values[-part:])[part // 2])


def is_flat(series: list[tuple[float, int]], more: int) -> bool:
    """Whether the median of the last quarter is that of the second, up to 5 % and ``more``."""
    second, last = quarters(series)
    return last <= second * 1.05 + more


def verdict(record: Record, *, with_trends: bool = True) -> list[str]:
    """Return what went wrong; nothing if all is well.

    Args:
        record: Of a run.
        with_trends: Whether memory and descriptors are judged, which takes a run of some minutes.
    """
    counts = record.counts
    wrong = list(record.problems)
    if record.exit_status != 0:
        wrong.append(f"the trainer ended with status {record.exit_status}")
    never, some = ("samples wrong", "epochs incomplete", "checkpoints wrong"), ("samples right", "epochs complete")
    wrong += [f"{name}: {counts[name]}" for name in never if counts[name]]
    wrong += [f"{name}: none" for name in (*some, "checkpoints right") if not counts[name]]
    if record.uploads:
        wrong.append(f"multipart uploads left open: {', '.join(record.uploads)}")
    if record.empty_uploads:
        wrong.append(f"multipart uploads left open without a part: {record.empty_uploads}")
    if with_trends and not is_flat(record.memory, MORE_BYTES):
        wrong.append(f"memory grew from {quarters(record.memory)[0]:.0f} to {quarters(record.memory)[1]:.0f} bytes")
    if with_trends and not is_flat(record.descriptors, MORE_DESCRIPTORS):
        wrong.append(f"descriptors grew from {quarters(record.descriptors)[0]} to {quarters(record.descriptors)[1]}")
    return wrong


def as_json(record: Record) -> dict[str, Any]:
    """Return all of it as plain values."""
    return {**vars(record), "plan": asdict(record.plan)}
