"""The numbers of a table, and the bounds that s3torch promises to keep. Pure.

A promise is checked within each round of the interleaved runs, where both sides ran next to each other, and the median
over the rounds is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.measure import Sample
from benchmarks.site import MIB

__all__ = [
    "CPU_MS_PER_PAGE",
    "CPU_S_PER_GIB",
    "CPU_US",
    "FIRST_BATCH_MS",
    "GB_PER_S",
    "OVERFETCH",
    "PEAK_MIB",
    "REQUESTS",
    "Column",
    "Promise",
    "Round",
    "best",
    "extra",
    "of",
    "over",
    "per_second",
]

Metric = Callable[[Sample], "float | None"]
Round = Mapping[str, Sample]  # of each contender that ran, by its name

_GIB = 1024 * MIB
_PAGE = 1000  # keys of one answer of a listing


@dataclass(frozen=True)
class Column:
    """One number of each contender.

    Attributes:
        title: With its unit.
        of: Gets it from a sample; None where this contender has none.
        digits: Behind the decimal point.
        is_more_better: Whether more of it is better.
    """

    title: str
    of: Metric
    digits: int = 0
    is_more_better: bool = False


@dataclass(frozen=True)
class Promise:
    """A comparison, and its bound.

    Attributes:
        text: What is compared.
        of: Gets the number from one round of all contenders.
        bound: Of the median.
        is_minimum: Whether the bound is the least that is promised, not the most.
        digits: Behind the decimal point.
    """

    text: str
    of: Callable[[Round], float]
    bound: float
    is_minimum: bool = False
    digits: int = 2

    def is_kept(self, value: float) -> bool:
        """Whether a number is within the bound."""
        return value >= self.bound if self.is_minimum else value <= self.bound


def _cpu_us(sample: Sample) -> float:
    return sample.cpu_s / sample.items * 1e6


def _cpu_s_per_gib(sample: Sample) -> float | None:
    return sample.cpu_s / sample.bytes * _GIB if sample.bytes else None


def _requests(sample: Sample) -> float | None:
    return None if sample.requests is None else sample.requests / sample.items


def _overfetch(sample: Sample) -> float | None:
    return sample.wire_bytes / sample.bytes if sample.wire_bytes is not None and sample.bytes else None


def _first_batch_ms(sample: Sample) -> float | None:
    seconds = sample.extra.get("first_batch_s")
    return None if seconds is None else seconds * 1e3


GB_PER_S = Column("GB/s", lambda sample: sample.bytes / sample.wall_s / 1e9, 2, is_more_better=True)
CPU_S_PER_GIB = Column("CPU s/GiB", _cpu_s_per_gib, 3)
CPU_US = Column("CPU us each", _cpu_us, 1)
CPU_MS_PER_PAGE = Column("CPU ms per 1,000 keys", lambda sample: sample.cpu_s / sample.items * _PAGE * 1e3, 2)
PEAK_MIB = Column("peak RSS growth, MiB", lambda sample: sample.peak_growth / MIB)
REQUESTS = Column("requests each", _requests, 2)
OVERFETCH = Column("bytes received per byte wanted", _overfetch, 2)
FIRST_BATCH_MS = Column("time to first batch, ms", _first_batch_ms)


def per_second(what: str) -> Column:
    """Return the column of a rate."""
    return Column(f"{what}/s", lambda sample: sample.items / sample.wall_s, is_more_better=True)


def extra(title: str, name: str, digits: int, scale: float = 1.0) -> Column:
    """Return the column of what only this task has."""

    def get(sample: Sample) -> float | None:
        return sample.extra[name] * scale if name in sample.extra else None

    return Column(title, get, digits)


def of(name: str, column: Column) -> Callable[[Round], float]:
    """Return what gets a contender's number from a round."""
    return lambda contenders: _value(contenders[name], column)


def best(prefix: str, column: Column) -> Callable[[Round], float]:
    """Return what gets the best number of all contenders whose names begin so."""

    def get(contenders: Round) -> float:
        values = [_value(sample, column) for name, sample in contenders.items() if name.startswith(prefix)]
        return max(values) if column.is_more_better else min(values)

    return get


def over(dividend: Callable[[Round], float], divisor: Callable[[Round], float]) -> Callable[[Round], float]:
    """Return what gets the quotient of two numbers of one round."""
    return lambda contenders: dividend(contenders) / divisor(contenders)


def _value(sample: Sample, column: Column) -> float:
    value = column.of(sample)
    if value is None:
        raise ValueError(f"{column.title} was not measured")
    return value
