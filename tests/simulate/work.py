"""What one process of a simulation does: plays one seed after the other, tells of what fails, and counts the rest."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from s3torch.testing.simulate import Finding, Program, result_of, run, shrunk

__all__ = ["Order", "Report", "told", "work"]

_INTERRUPTS = {"Interrupt at bytecodes"}
_COLLECTIONS = {f"{name} at bytecodes" for name in ("Collect", "Forget", "Lose")}
_OTHERS = {f"{name} at bytecodes" for name in ("Signal", "Replace")}


@dataclass
class Report:
    """What came of many programs.

    Attributes:
        programs: How many there were.
        failed: How many of them broke something.
        cpu: Seconds of CPU.
        broken: How often each invariant was broken.
        happened: In how many programs each thing happened.
        pairs: In how many programs each pair of things met.
    """

    programs: int = 0
    failed: int = 0
    cpu: float = 0.0
    broken: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __add__(self, other: Report) -> Report:
        return Report(
            self.programs + other.programs,
            self.failed + other.failed,
            self.cpu + other.cpu,
            self.broken + other.broken,
            self.happened + other.happened,
            self.pairs + other.pairs,
        )

    def told(self, took: float, *, pairs: bool) -> str:
        """Return it as text.

        Args:
            took: Seconds of real time.
            pairs: Whether to tell how often things met.
        """
        rate = self.programs / self.cpu if self.cpu else 0.0
        programs = f"{self.programs} programs in {took:.0f} s ({self.cpu:.0f} s of CPU, {rate:.0f} programs each)"
        interrupts, collections, handlers = map(self._with, (_INTERRUPTS, _COLLECTIONS, _OTHERS))
        lines = [
            f"{programs}, {self.failed} that fail: {dict(self.broken)}",
            f"between two bytecodes: {interrupts} interrupts, {collections} collections, {handlers} handlers",
        ]
        if pairs:
            lines += [f"{count:8} {what}" for what, count in self.happened.most_common()]
            lines += [f"{count:8} {one} + {other}" for (one, other), count in self.pairs.most_common()]
        return "\n".join(lines)

    def _with(self, names: Iterable[str]) -> int:
        return sum(self.happened[name] for name in names)


@dataclass(frozen=True)
class Order:
    """What one process is to do: each n-th seed from ``start``, until ``stop``."""

    start: int
    stop: int | None
    stride: int
    minutes: float | None
    only: str | None
    ignore: tuple[str, ...]
    findings: int
    whole: bool

    @property
    def seeds(self) -> Iterable[int]:
        return (
            itertools.count(self.start, self.stride) if self.stop is None else range(self.start, self.stop, self.stride)
        )


def told(seed: int, program: Program, findings: list[Finding]) -> str:
    """Return how a finding is printed."""
    lines = [f"seed {seed} breaks:", *(f"  {each.invariant}: {each.detail}" for each in findings[:5])]
    lines += [f"  it happened at {place}" for place in run(program).met]
    return "\n".join([*lines, "", "from s3torch.testing.simulate import *", "", f"check({program!r})", ""])


def work(order: Order) -> Report:
    """Play programs, and tell of those that fail."""
    report, began, cpu = Report(), time.monotonic(), time.process_time()
    for seed in order.seeds:
        is_late = order.minutes is not None and time.monotonic() - began >= 60 * order.minutes
        if is_late or report.failed >= order.findings:
            break
        program, result = result_of(seed, order.only, ignore=order.ignore)
        report.programs += 1
        report.happened.update(result.happened)
        report.pairs.update(result.pairs)
        if findings := result.findings:
            report.failed += 1
            report.broken.update({each.invariant for each in findings})
            small = program if order.whole else shrunk(program, findings, ignore=order.ignore)
            print(told(seed, small, findings), flush=True)
    report.cpu = time.process_time() - cpu
    return report
