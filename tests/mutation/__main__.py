"""Asks whether the tests notice mistakes: ``python -m tests.mutation --sample 400 --seed 1 --minutes 30``.

A mutant is the library with one small change in one function. Each is written into a copy of src in a temporary folder,
which PYTHONPATH names. It meets the tests of its module that call the changed function, the simulator, and, if it
survives both, tests of a wider group that call it. A test that fails counts if it passes alone without the change. What
the copy imports from others is imported once, here; each run is a fork of this process, so it begins at once and can be
killed as a whole.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from tests.mutation.modules import PACKAGES, files_of, wider_files
from tests.mutation.operators import mutants
from tests.mutation.reach import Recorder, Selection, Watched, reaching

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_FORK = multiprocessing.get_context("fork")
_SIMULATOR = "simulator"
_STAGES = ("module's tests", _SIMULATOR, "wider tests")
# A test that takes so many times as long as it does without a change hangs; in seconds, the shortest limit. Measuring
# also takes longer than the same tests unwatched.
_PATIENCE, _LEAST_PATIENCE = 3, 10.0
# Seconds. What measuring a run may take.
_LONGEST_MEASUREMENT = 900.0
# A descriptor of the log that pytest, which takes over 1 and 2, leaves alone.
_LOG = 60
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


def runs_of(module: str) -> dict[str, list[str]]:
    """Return the runs of each stage: test files, or the simulator."""
    return dict(zip(_STAGES, (files_of(module), [_SIMULATOR], wider_files(module)), strict=True))


def _pytest(paths: Sequence[str], plugin: object, *options: str) -> int:
    import pytest

    common = ["-q", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
    return int(pytest.main([*common, *options, *(str(_ROOT / path) for path in paths)], plugins=[plugin]))


def _simulator() -> int:
    from tests.simulate.__main__ import main as simulate

    return simulate(["--seeds", "60", "--findings", "1", "--whole"])


class Measured(NamedTuple):
    """A run without a change: how long it took in seconds, and the tests that passed."""

    seconds: float
    tests: list[Watched]


class Workshop:
    """A copy of src, and the runs on it.

    Args:
        folder: A temporary one.

    Attributes:
        usual: The runs without a change: of each test file, and of the simulator.
    """

    def __init__(self, folder: Path) -> None:
        self._src, self._log, self._result = folder / "src", folder / "log", folder / "result"
        self.usual: dict[str, Measured] = {}
        self._alone: dict[str, bool] = {}
        shutil.copytree(_ROOT / "src", self._src)
        compileall.compile_dir(self._src, quiet=1)

    def measure(self, run: str) -> Measured:
        """Learn how long a run takes without a change, and what its tests call; those that fail are left out."""
        began = time.monotonic()
        status = self._run(lambda: _simulator() if run == _SIMULATOR else self._record(run), _LONGEST_MEASUREMENT)
        tests, failed = ([], set[str]()) if run == _SIMULATOR else pickle.loads(self._result.read_bytes())
        if status != 0 and not failed:
            raise SystemExit(f"{run} fails without a change: {self._first_failure()}")
        for name in failed:
            print(f"left out, as it fails without a change: {name}", flush=True)
        return Measured(time.monotonic() - began, [test for test in tests if test.name not in failed])

    def judge(self, mutant: Chosen, stage: str) -> Verdict:
        """Run a mutant in one of the stages; the verdict says if that has caught it."""
        if stage == "simulator":
            with self._changed(mutant):
                status = self._run(_simulator, self._patience(self.usual[_SIMULATOR].seconds))
            caught_by = "time limit" if status is None else stage if status else ""
            return Verdict(mutant, caught_by, self._first_failure() if status else "")
        source = (self._src / "s3torch" / mutant.module).read_text()
        runs = [self.usual[run].tests for run in runs_of(mutant.module)[stage]]
        tests = [test for run in runs for test in reaching(run, mutant.module, source, mutant.line)]
        if stage != "wider tests":  # who is called at the import alone, or in a spawned process, was not seen
            tests = tests or [test for run in runs for test in run]
        while tests := [test for test in tests if self._alone.get(test.name, True)]:
            with self._changed(mutant):
                status = self._select(tests)
            if status == 0:
                break
            name = self._result.read_text()
            is_late = status is None or re.search(r"^Timeout \(", self._log.read_text(errors="replace"), re.MULTILINE)
            how = name or self._first_failure()
            if not name or self._passes_alone(next(test for test in tests if test.name == name)):
                return Verdict(mutant, "time limit" if is_late else stage, how)
        return Verdict(mutant, "", f"{len(tests)} {stage}")

    def _passes_alone(self, test: Watched) -> bool:
        """Whether a test passes without a change and without those before it: its failure is the mutant's then."""
        if test.name not in self._alone:
            self._alone[test.name] = self._select([test]) == 0
        return self._alone[test.name]

    def _patience(self, seconds: float) -> float:
        return _LEAST_PATIENCE + _PATIENCE * seconds

    def _select(self, tests: Sequence[Watched]) -> int | None:
        """Run tests up to the first that fails, which is the one that the result names."""
        self._result.write_text("")
        paths = dict.fromkeys(test.name.partition("::")[0] for test in tests)
        limits = [self._patience(test.seconds) for test in tests]
        selection = Selection(tests, limits, _LOG, self._result)
        return self._run(lambda: _pytest([*paths], selection, "-x"), self._patience(sum(limits)))

    def _record(self, run: str) -> int:
        recorder = Recorder(self._src / "s3torch", self._result.with_suffix(".forks"))
        status = _pytest([run], recorder)
        self._result.write_bytes(pickle.dumps((recorder.tests, recorder.failed)))
        return status

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

    def _run(self, what: Callable[[], int], limit: float) -> int | None:
        """Run in a process group of its own; returns its status, or None if it was killed at the limit."""
        process: BaseProcess = _FORK.Process(target=self._begin, args=(what,))
        process.start()
        process.join(limit)
        is_late = process.exitcode is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # what it has started, too
        process.join()
        return None if is_late else process.exitcode

    def _begin(self, what: Callable[[], int]) -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for descriptor in (1, 2, _LOG):
            os.dup2(log, descriptor)
        os.environ |= {"PYTHONPATH": str(self._src), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "ci"}
        sys.dont_write_bytecode = True  # its name would hold for the next mutant of the same second and size
        sys.path.insert(0, str(self._src))
        status = what()
        sys.stdout.flush()
        os._exit(status)

    def _first_failure(self) -> str:
        log = self._log.read_text(errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) (\S+)|^  (\w.*?):", log, re.MULTILINE)
        return (found[1] or found[2]) if found else "".join(log.strip().splitlines()[-1:])


def _work(
    usual: MutableMapping[str, Measured],
    all_measured: Barrier,
    runs: Sequence[str],
    mine: Sequence[Chosen],
    deadline: float,
    verdicts: SimpleQueue[Verdict | None],
) -> None:
    """Measure runs, then judge mutants; what meets the wider tests, which take longest, waits for all others."""
    survivors = []
    try:
        with tempfile.TemporaryDirectory(prefix="s3torch-mutation-") as folder:
            workshop = Workshop(Path(folder))
            for run in runs:
                usual[run] = workshop.measure(run)
            all_measured.wait()
            workshop.usual.update(usual)
            for mutant in mine:
                if time.monotonic() > deadline:
                    break
                verdict = workshop.judge(mutant, "module's tests")
                verdict = verdict if verdict.caught_by else workshop.judge(mutant, _SIMULATOR)
                if not verdict.caught_by:
                    survivors.append(mutant)
                verdicts.put(verdict)
            for mutant in survivors:
                verdicts.put(workshop.judge(mutant, "wider tests"))
    except BaseException:
        all_measured.abort()  # the others need not wait for this one
        raise
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
    runs = sorted({run for each in sample for stage in runs_of(each.module).values() for run in stage})
    usual, all_measured = _FORK.Manager().dict(), _FORK.Barrier(chosen.workers)
    verdicts: SimpleQueue[Verdict | None] = _FORK.SimpleQueue()
    workers = [
        _FORK.Process(
            target=_work,
            args=(
                usual,
                all_measured,
                runs[index :: chosen.workers],
                sample[index :: chosen.workers],
                deadline,
                verdicts,
            ),
        )
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
