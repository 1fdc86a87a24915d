"""What is measured: the cases, the columns of their tables, and what s3torch promises in each.

A promise is checked within each round of the interleaved runs, where both sides ran next to each other, and the median
over the rounds is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meter import Sample
from server import MIB

__all__ = ["CASES", "Case", "Column", "Promise", "Round"]

GIB = 1024 * MIB

Metric = Callable[[Sample], float]
Round = Mapping[str, Sample]  # of each client that ran, by its name


@dataclass(frozen=True)
class Column:
    """One number of each client.

    Attributes:
        title: With its unit.
        of: Gets it from a sample.
        digits: Behind the decimal point.
    """

    title: str
    of: Metric
    digits: int = 0


@dataclass(frozen=True)
class Promise:
    """A comparison, and its bound.

    Attributes:
        text: What is compared.
        of: Gets the number from one round of all clients.
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


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        name: On the command line.
        title: Above the table.
        columns: Of the table.
        promises: Below the table.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    promises: tuple[Promise, ...]


def _wall_ms(sample: Sample) -> float:
    return sample.wall_s / sample.requests * 1e3


def _cpu_us(sample: Sample) -> float:
    return sample.cpu_s / sample.requests * 1e6


def _cpu_s_per_gib(sample: Sample) -> float:
    return sample.cpu_s / sample.bytes * GIB


def _peak_mib(sample: Sample) -> float:
    return sample.peak_growth / MIB


def _over_floor(client: str, metric: Metric) -> Callable[[Round], float]:
    return lambda clients: metric(clients[client]) / metric(clients["floor"])


def _best_connector_over(client: str, metric: Metric) -> Callable[[Round], float]:
    """Compare with the best that s3torchconnector did in the round, whichever way that was."""

    def of(clients: Round) -> float:
        rivals = [metric(sample) for name, sample in clients.items() if name.startswith("s3torchconnector")]
        return min(rivals) / metric(clients[client])

    return of


def _of(client: str, metric: Metric) -> Callable[[Round], float]:
    return lambda clients: metric(clients[client])


_ONE, _MANY = "s3torch, 1 connection", "s3torch, 32 connections"
_RECYCLED, _FRESH = "s3torch engine, recycled memory", "s3torch engine, fresh bytes"

_LARGE_COLUMNS = (
    Column("GB/s", lambda sample: sample.bytes / sample.wall_s / 1e9, 2),
    Column("CPU s/GiB", _cpu_s_per_gib, 3),
    Column("peak RSS growth, MiB", _peak_mib),
)


def _large_promises(*, times_connector: float) -> tuple[Promise, ...]:
    floor = [
        Promise(f"{client}: CPU over the floor's", _over_floor(client, _cpu_s_per_gib), 1.25)
        for client in (_ONE, _MANY)
    ]
    rivals = [
        Promise(
            f"s3torchconnector at its best: CPU over that of {client}",
            _best_connector_over(client, _cpu_s_per_gib),
            times_connector,
            is_minimum=True,
        )
        for client in (_ONE, _MANY)
    ]
    return (*floor, *rivals)


CASES = (
    Case(
        "large",
        "256 MiB object into the caller's memory, HTTP",
        _LARGE_COLUMNS,
        _large_promises(times_connector=3),
    ),
    Case(
        "large-tls",
        "256 MiB object into the caller's memory, HTTPS",
        _LARGE_COLUMNS,
        _large_promises(times_connector=1),  # most of the time goes to the cipher, which is the same for everybody
    ),
    Case(
        "small",
        "Objects of 100 kB, 32 at a time, HTTP",
        (
            Column("GETs/s", lambda sample: sample.requests / sample.wall_s),
            Column("CPU us/GET", _cpu_us, 1),
            Column("peak RSS growth, MiB", _peak_mib),
        ),
        (
            Promise(f"{_RECYCLED}: CPU us/GET", _of(_RECYCLED, _cpu_us), 70, digits=1),
            Promise(f"{_FRESH}: CPU us/GET", _of(_FRESH, _cpu_us), 70, digits=1),
            Promise(
                f"s3torchconnector: CPU over that of {_RECYCLED}",
                _best_connector_over(_RECYCLED, _cpu_us),
                3,
                is_minimum=True,
            ),
            Promise(
                f"s3torchconnector: CPU over that of {_FRESH}",
                _best_connector_over(_FRESH, _cpu_us),
                3,
                is_minimum=True,
            ),
        ),
    ),
    Case(
        "memory",
        "256 MiB object as `bytes`, HTTP, first read of a fresh process",
        (Column("peak RSS growth, MiB", _peak_mib), Column("CPU s/GiB", _cpu_s_per_gib, 3)),
        (
            Promise(
                "s3torch: peak RSS growth, MiB: the object and 32 more",
                _of("s3torch get_object", _peak_mib),
                256 + 32,
                digits=0,
            ),
        ),
    ),
    Case(
        "import",
        "Start of a program that imports it",
        (Column("ms", _wall_ms), Column("CPU ms", lambda sample: _cpu_us(sample) / 1e3)),
        (
            Promise(
                "import s3torch: ms more than an empty program",
                lambda clients: _wall_ms(clients["import s3torch"]) - _wall_ms(clients["empty program"]),
                150,
                digits=0,
            ),
        ),
    ),
)
