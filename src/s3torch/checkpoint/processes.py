"""Which process a rank is, so that the others of its machine see when it ends.

Linux tells by ``/proc`` (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html). Elsewhere nothing is known.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["Process", "has_ended", "this_process"]

_PROC = Path("/proc")
# Of the numbers behind the name in /proc/PID/stat, which are counted from the third on.
_STATE, _STARTED = 3 - 3, 22 - 3


class Process(NamedTuple):
    """One process for ever: numbers are used again, but not with the same time.

    Attributes:
        machine: Whose processes see each other by their numbers: one boot of a machine, one namespace.
        number: Its pid in that namespace.
        started: Ticks from the boot of the machine to its begin.
    """

    machine: str
    number: int
    started: int


def this_process() -> Process | None:
    """Return what this process is; None if that cannot be told here."""
    number = os.getpid()
    try:
        if (_PROC / "self").readlink() != Path(str(number)):  # /proc is of another namespace, with other numbers
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return None
    fields = _fields(number)
    return Process(f"{boot}-{namespace}", number, int(fields[_STARTED])) if fields else None


def has_ended(process: Process) -> bool:
    """Whether a process of this machine and namespace has ended. One that nobody has waited for (a zombie) has."""
    fields = _fields(process.number)
    if fields:
        return int(fields[_STARTED]) != process.started or fields[_STATE] in "ZXx"
    try:
        os.kill(process.number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False  # /proc does not show it (its mount option hidepid)


def _fields(number: int) -> list[str]:
    """Return what the system says of a process behind its name; nothing if it says nothing."""
    try:
        line = (_PROC / str(number) / "stat").read_bytes()
    except OSError:
        return []
    return line.rpartition(b")")[2].decode().split()
