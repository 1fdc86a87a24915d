"""Measures one contender in one task: time, CPU, memory, and what the server says went over the wire.

CPU time is that of all threads of the process, and of its children, in user and kernel mode: the kernel's copy out of
the socket is part of what a client costs. Wall-clock time depends on how client and server fall into step; CPU time
much less.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.registry import Done, Work

__all__ = ["AccessLog", "Sample", "measure", "together"]

_SETTLE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the measured rounds of one process cost.

    Attributes:
        wall_s: Wall-clock seconds.
        cpu_s: CPU seconds, user and system.
        peak_growth: Bytes by which the resident memory grew at most, warm-up included. What the client holds when it
            is ready, such as a buffer to be reused, does not count.
        items: Objects, ranges, samples or keys.
        bytes: That the caller got.
        requests: Answers that the server gave, or that the client counted; None where nobody did.
        wire_bytes: Of these answers, heads included.
        extra: What only this task has.
    """

    wall_s: float
    cpu_s: float
    peak_growth: int
    items: int
    bytes: int
    requests: int | None = None
    wire_bytes: int | None = None
    extra: dict[str, float] = field(default_factory=dict)


def together(ranks: Sequence[Sample]) -> Sample:
    """Return what ranks did together, at the same time: the slowest tells how long it took.

    Each of them has done the same items, has its own bytes, and has seen the answers that the server gave to all.
    """
    return Sample(
        wall_s=max(rank.wall_s for rank in ranks),
        cpu_s=sum(rank.cpu_s for rank in ranks),
        peak_growth=max(rank.peak_growth for rank in ranks),
        items=ranks[0].items,
        bytes=sum(rank.bytes for rank in ranks),
        requests=_most(rank.requests for rank in ranks),
        wire_bytes=_most(rank.wire_bytes for rank in ranks),
        extra=ranks[0].extra,
    )


def _most(counts: Iterable[int | None]) -> int | None:
    return max((count for count in counts if count is not None), default=None)


class AccessLog:
    """The sizes of the answers that the server has given since this was made.

    Args:
        path: Of the log; None counts nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._start = self._size()

    def counts(self) -> tuple[int, int] | None:
        """Return answers and bytes, once no more are written."""
        if self._path is None:
            return None
        before = -1
        while before != (before := self._size()):
            time.sleep(_SETTLE_SECONDS)
        with self._path.open("rb") as log:
            log.seek(self._start)
            sizes = [int(line) for line in log.read().split()]
        return len(sizes), sum(sizes)

    def _size(self) -> int:
        return 0 if self._path is None else self._path.stat().st_size


def measure(work: Work, *, warm_up: int, rounds: int, access_log: str | None) -> Sample:
    """Do the work, and measure all but the warm-up.

    Args:
        work: That is ready.
        warm_up: Rounds before the clock starts.
        rounds: Rounds that count.
        access_log: Of the server, or None.

    Raises:
        RuntimeError: This system does not tell a process's resident memory.
    """
    _forget_peak()
    resident = _memory("VmRSS")
    for _ in range(warm_up):
        work()
    log = AccessLog(access_log)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    done = [work() for _ in range(rounds)]
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    peak = max(0, _memory("VmHWM") - resident)
    requests, wire_bytes = log.counts() or _counted_by_client(done)
    return Sample(
        wall_s=sum(each.seconds for each in done if each.seconds is not None) or wall,
        cpu_s=cpu,
        peak_growth=peak,
        items=sum(each.items for each in done),
        bytes=sum(each.bytes for each in done),
        requests=requests,
        wire_bytes=wire_bytes,
        extra=dict(done[-1].extra),
    )


def _counted_by_client(done: list[Done]) -> tuple[int | None, int | None]:
    requests = [each.requests for each in done if each.requests is not None]
    received = [each.wire_bytes for each in done if each.wire_bytes is not None]
    return (sum(requests), sum(received)) if requests and received else (None, None)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _forget_peak() -> None:
    """Let the peak of the resident memory begin at what it is now (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Return a line of /proc/self/status, which are in KiB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not tell {name}: the benchmarks need Linux")
