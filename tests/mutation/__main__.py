"""Asks whether the tests notice mistakes: ``python -m tests.mutation --sample 400 --seed 1 --minutes 30``.

A mutant is the library with one small change in one function. Each is written into a copy of src in a temporary folder,
which PYTHONPATH names, and meets the tests of its module, the simulator, and, if it survives both, a wider group of
tests. What the copy imports from others is imported once, here; each run is a fork of this process, so it begins at
once and can be killed as a whole.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

from tests.mutation.modules import PACKAGES, files_of, wider_files
from tests.mutation.operators import mutants

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_FORK = multiprocessing.get_context("fork")
_STAGES = ("module's tests", "simulator", "wider tests")
# A run that takes so many times as long as the same run without a change hangs; in seconds, the shortest limit.
_PATIENCE, _LEAST_PATIENCE = 3, 10.0
# Bytes. A mutant may allocate without end, on a machine that others use.
_MOST_MEMORY = 8 * 1024**3


class Chosen(NamedTuple):
    """A mutant of the sample: its module, below the package, and which of the module's it is."""

    module: str
    number: int
    line: int
    change: str


class Verdict(NamedTuple):
    """What became of a mutant: what caught it, or an empty string; and which test that was."""

    mutant: Chosen
    caught_by: str
    how: str


def every_mutant(package: Path) -> list[Chosen]:
    """Return all mutants of the modules that are looked at, in order."""
    paths = (path for name in PACKAGES for path in ([package / name, *sorted((package / name).rglob("*.py"))]))
    return [
        Chosen(str(path.relative_to(package)), number, mutant.line, mutant.change)
        for path in paths
        if path.is_file()
        for number, mutant in enumerate(mutants(ast.parse(path.read_text())))
    ]


def _tests(*paths: str) -> int:
    import pytest

    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
    return int(pytest.main([*options, *(str(_ROOT / path) for path in paths if (_ROOT / path).exists())]))


def _simulator() -> int:
    from tests.simulate.__main__ import main as simulate

    return simulate(["--seeds", "60", "--findings", "1", "--whole"])


class Workshop:
    """A copy of src, and the runs on it.

    Args:
        folder: A temporary one.
    """

    def __init__(self, folder: Path) -> None:
        self._src, self._log = folder / "src", folder / "log"
        shutil.copytree(_ROOT / "src", self._src)
        self._limits: dict[tuple[object, ...], float] = {}

    def judge(self, mutant: Chosen, stage: str) -> Verdict:
        """Run a mutant in one of the stages; the verdict says if that has caught it."""
        run, arguments = self._stage(mutant, stage)
        limit = self._limit(run, arguments)
        with self._changed(mutant):
            status = self._run(run, arguments, limit)
        if status is None:
            return Verdict(mutant, "time limit", stage)
        return Verdict(mutant, stage if status else "", self._first_failure() if status else "")

    def _stage(self, mutant: Chosen, stage: str) -> tuple[Callable[..., int], Sequence[str]]:
        if stage == "simulator":
            return _simulator, ()
        return _tests, wider_files(mutant.module) if stage == "wider tests" else files_of(mutant.module)

    def _limit(self, run: Callable[..., int], arguments: Sequence[str]) -> float:
        """Return for how long a run may take, from the same run without a change; that must find nothing."""
        known = self._limits.get((run, *arguments))
        if known is None:
            began = time.monotonic()
            if self._run(run, arguments, 600.0) != 0:
                raise SystemExit(f"fails without a change: {run.__name__} {arguments}: {self._first_failure()}")
            known = self._limits[(run, *arguments)] = _LEAST_PATIENCE + _PATIENCE * (time.monotonic() - began)
        return known

    @contextlib.contextmanager
    def _changed(self, mutant: Chosen) -> Iterator[None]:
        path = self._src / "s3torch" / mutant.module
        source = path.read_text()
        tree = ast.parse(source)
        list(mutants(tree))[mutant.number].apply()
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
        try:
            yield
        finally:
            path.write_text(source)

    def _run(self, run: Callable[..., int], arguments: Sequence[str], limit: float) -> int | None:
        """Run in a process group of its own; returns its status, or None if it was killed at the limit."""
        process: BaseProcess = _FORK.Process(target=self._begin, args=(run, arguments))
        process.start()
        process.join(limit)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # what it has started, too
        is_late = process.exitcode is None
        process.join()
        return None if is_late else process.exitcode

    def _begin(self, run: Callable[..., int], arguments: Sequence[str]) -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"PYTHONPATH": str(self._src), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "ci"}
        sys.dont_write_bytecode = True  # its name would hold for the next mutant of the same second and size
        sys.path.insert(0, str(self._src))
        status = run(*arguments)
        sys.stdout.flush()
        os._exit(status)

    def _first_failure(self) -> str:
        log = self._log.read_text(errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) (\S+)|^  (\w.*?):", log, re.MULTILINE)
        return (found[1] or found[2]) if found else "".join(log.strip().splitlines()[-1:])


def _work(mine: Sequence[Chosen], deadline: float, verdicts: SimpleQueue[Verdict | None]) -> None:
    """Judge mutants; what meets the wider tests, which take longest, waits for all others."""
    survivors = []
    try:
        with tempfile.TemporaryDirectory(prefix="s3torch-mutation-") as folder:
            workshop = Workshop(Path(folder))
            for mutant in mine:
                if time.monotonic() > deadline:
                    break
                verdict = workshop.judge(mutant, "module's tests")
                verdict = verdict if verdict.caught_by else workshop.judge(mutant, "simulator")
                if not verdict.caught_by:
                    survivors.append(mutant)
                verdicts.put(verdict)
            for mutant in survivors:
                verdicts.put(workshop.judge(mutant, "wider tests"))
    finally:
        verdicts.put(None)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return by module what became of the mutants."""
    columns = (*_STAGES, "time limit", "")
    counts = Counter((verdict.mutant.module, verdict.caught_by) for verdict in verdicts)
    titles = ("module", "mutants", *columns[:-1], "survived", "caught")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    modules = sorted({module for module, _ in counts})
    for title, rows in [*((module, [module]) for module in modules), ("all", modules)]:
        row = [sum(counts[module, column] for module in rows) for column in columns]
        lines.append(f"| {title} | {sum(row)} | {' | '.join(map(str, row))} | {1 - row[-1] / (sum(row) or 1):.0%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Try a sample as the command line says; returns 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=100, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for how long mutants are begun")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", help="those of the sample whose MODULE:LINE begins so")
    chosen = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * chosen.minutes
    everything = every_mutant(_ROOT / "src" / "s3torch")
    sample = random.Random(chosen.seed).sample(everything, min(chosen.sample, len(everything)))
    if chosen.only:
        sample = [each for each in sample if f"{each.module}:{each.line} ".startswith(tuple(chosen.only))]
    print(f"{len(sample)} of {len(everything)} mutants", flush=True)
    for name in ("botocore.session", "hypothesis", "numpy", "pytest", "torch.utils.data", "trustme"):
        __import__(name)
    verdicts: SimpleQueue[Verdict | None] = _FORK.SimpleQueue()
    workers = [
        _FORK.Process(target=_work, args=(sample[index :: chosen.workers], deadline, verdicts))
        for index in range(chosen.workers)
    ]
    for worker in workers:
        worker.start()
    seen: dict[Chosen, Verdict] = {}
    at_work = len(workers)
    while at_work:
        verdict = verdicts.get()
        at_work -= verdict is None
        if verdict is not None:
            what = verdict.caught_by or ("SURVIVED" if verdict.mutant in seen else "goes on")
            seen[verdict.mutant] = verdict
            place = f"{verdict.mutant.module}:{verdict.mutant.line}"
            print(f"{what}: {place} {verdict.mutant.change} [{verdict.how}]", flush=True)
    print(table([*seen.values()]))
    return int(any(not verdict.caught_by for verdict in seen.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
