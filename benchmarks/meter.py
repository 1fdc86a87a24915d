"""Measures one client in one case, in a process of its own: ``python meter.py CASE CLIENT ADDRESS``.

Prints a Sample as JSON. ADDRESS is the JSON of a server.Address. run.py starts it; it is no use alone.

The client gets ready and does its warm-up rounds first; then the measured rounds follow without a pause. CPU time is
that of all threads of the process, and of its children, in user and kernel mode: the kernel's copy out of the socket is
part of what a client costs. Wall-clock time depends on how client and server fall into step; CPU time much less.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from clients import CLIENTS, Work
from server import Address

__all__ = ["ROUNDS", "Rounds", "Sample"]


@dataclass(frozen=True)
class Rounds:
    """How often a case's work is done before the clock starts, and while it runs."""

    warm_up: int
    measured: int


ROUNDS = {
    "large": Rounds(1, 6),
    "large-tls": Rounds(1, 3),
    "small": Rounds(1, 2),
    "memory": Rounds(0, 1),
    "import": Rounds(1, 3),
}


@dataclass(frozen=True)
class Sample:
    """What the measured rounds of one process cost.

    Attributes:
        wall_s: Wall-clock seconds.
        cpu_s: CPU seconds, user and system.
        peak_growth: Bytes by which the resident memory grew at most, warm-up included. What the client holds when it
            is ready, such as a buffer to be reused, does not count.
        bytes: Received.
        requests: Sent, as the caller sees them.
    """

    wall_s: float
    cpu_s: float
    peak_growth: int
    bytes: int
    requests: int


def measure(work: Work, rounds: Rounds) -> Sample:
    """Do the work, and measure all but the warm-up."""
    _forget_peak()
    resident = _memory("VmRSS")
    for _ in range(rounds.warm_up):
        work()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    received = [work() for _ in range(rounds.measured)]
    return Sample(
        time.perf_counter() - wall,
        _cpu_seconds() - cpu,
        _memory("VmHWM") - resident,
        sum(count.bytes for count in received),
        sum(count.requests for count in received),
    )


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
    raise SystemExit(f"This kernel does not tell {name}; the benchmarks need Linux.")


if __name__ == "__main__":
    case, name, address = sys.argv[1:]
    sample = measure(CLIENTS[case][name].prepare(Address(**json.loads(address))), ROUNDS[case])
    print(json.dumps(asdict(sample)), flush=True)
    os._exit(0)  # the end of the interpreter is not measured, and a client with threads of its own may abort there
