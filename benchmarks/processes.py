"""Processes that end with the block that started them, even if Ctrl-C or SIGTERM comes while they are being started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["INTERRUPTS", "started"]

_ROOT = Path(__file__).parent.parent  # where ``python -m benchmarks.child`` finds the package, which is not installed

INTERRUPTS = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that are held back while a process is being started; it has to let them through itself."""


@contextmanager
def started(
    command: Sequence[str | Path],
    *,
    has_children: bool = False,
    **options: Any,  # noqa: ANN401 - of Popen
) -> Iterator[subprocess.Popen[Any]]:
    """Run a process in the project's folder until the block ends, then end it if it still runs.

    Args:
        command: And its arguments.
        has_children: Whether it must end its own children, so that it is asked to end rather than killed.
        options: Of ``subprocess.Popen``.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    process = None
    try:
        process = subprocess.Popen(command, cwd=_ROOT, **options)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if process is not None:
            if has_children:
                process.terminate()
            else:
                process.kill()
            process.communicate()
