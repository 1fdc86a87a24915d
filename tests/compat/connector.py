"""The s3torchconnector that the programs here import: the real one where it is installed, else what stands for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import s3torch
from s3torch.compat.installing import PACKAGES, real_version

__all__ = ["IS_REAL", "OBJECTS", "content_of", "importable", "run_program"]

IS_REAL = real_version() is not None
PROGRAMS = Path(__file__).parent / "programs"
SOURCE = str(Path(s3torch.__file__).parent.parent)
OBJECTS = 23  # in the folder that programs read


def content_of(number: int) -> bytes:
    """Return what an object of that folder holds."""
    return b"%03d" % number * (1 + 200 * number)


@contextmanager
def importable() -> Iterator[None]:
    """Make s3torchconnector importable, and leave no trace: other tests are about what install() changes."""
    if IS_REAL:
        yield
        return
    sys.path.insert(0, str(PACKAGES))
    try:
        yield
    finally:
        sys.path.remove(str(PACKAGES))
        for name in [name for name in sys.modules if name.startswith("s3torchconnector")]:
            del sys.modules[name]


def run_program(name: str, *arguments: str, ranks: int = 0) -> str:
    """Run a program of this folder without a change, and return what it prints.

    Args:
        name: Of its file in ``programs/``, without the suffix.
        arguments: Of its command line.
        ranks: How many processes torchrun starts of it; 0 runs it by itself.
    """
    launcher = [] if ranks == 0 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    runner = [] if IS_REAL else ["-m", "s3torch.compat"]
    done = subprocess.run(
        [sys.executable, *launcher, *runner, str(PROGRAMS / f"{name}.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
