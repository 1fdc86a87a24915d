"""Runs the contenders of a case in turn, round after round, each in a process of its own.

So other load on the machine affects all of them alike, and none uses the memory or the connections of another.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.measure import Sample, together
from benchmarks.ranks import started_ranks
from benchmarks.registry import Contender
from benchmarks.results import Outcome, redact
from benchmarks.roster import contenders_of
from benchmarks.site import Effort, Site

__all__ = ["contestants", "run_case"]

_PROCESS_SECONDS = 600.0
_REASON_LENGTH = 300


def contestants(case: Case, clients: Sequence[str]) -> list[Contender]:
    """Return who takes part in a case, in the order of its table."""
    return [
        contender
        for contender in contenders_of(case.task).values()
        if contender.client in clients and contender.name not in case.without
    ]


def run_case(
    case: Case,
    site: Site,
    environment: Mapping[str, str],
    machine: Mapping[str, str],
    *,
    repeat: int,
    clients: Sequence[str],
    max_bytes: int | None,
    progress: Callable[[str], None],
) -> Outcome:
    """Measure a case.

    Args:
        case: To measure.
        site: To read from.
        environment: Of the processes.
        machine: Its description.
        repeat: Rounds.
        clients: Who takes part.
        max_bytes: Of one round of one process; None sets no bound.
        progress: Is told what begins.
    """
    outcome = Outcome(case, machine)
    effort = replace(case.effort, max_bytes=max_bytes)
    ready = []
    for contender in contestants(case, clients):
        if contender.needs is None or importlib.util.find_spec(contender.needs) is not None:
            ready.append(contender)
        else:
            outcome.failures[contender.name] = f"{contender.needs} is not installed"
    for number in range(1, repeat + 1):
        samples: dict[str, Sample] = {}
        outcome.rounds.append(samples)
        for contender in ready:
            if contender.name in outcome.failures:
                continue
            progress(f"{case.name}, round {number} of {repeat}: {contender.name}")
            try:
                samples[contender.name] = _measure(case, contender, site, effort, environment)
            except (subprocess.SubprocessError, ValueError, IndexError) as error:
                outcome.failures[contender.name] = redact(_reason(error), environment)
                progress(f"{case.name}: {contender.name} failed: {outcome.failures[contender.name]}")
    return outcome


def _measure(case: Case, contender: Contender, site: Site, effort: Effort, environment: Mapping[str, str]) -> Sample:
    job = {"task": case.task, "name": contender.name, "site": site.as_json(), "effort": asdict(effort)}
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3torch-bench-"))
        path = Path(scratch, "job.json")
        path.write_text(json.dumps(job))
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.child", path]
        processes = stack.enter_context(started_ranks(command, case.ranks, scratch, env=environment))
        return together([_sample(process) for process in processes])


def _sample(process: subprocess.Popen[str]) -> Sample:
    printed, errors = process.communicate(timeout=_PROCESS_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, printed, errors)
    return Sample(**json.loads(printed.splitlines()[-1]))


def _reason(error: Exception) -> str:
    """Return the last thing that a client said, or how it ended."""
    if isinstance(error, subprocess.CalledProcessError):
        said: list[str] = [line.strip() for line in error.stderr.splitlines() if line.strip(" \t})]>,^~-")]
        errors = [line for line in said if "Error" in line.partition(":")[0]]
        return (errors or said or [f"it ended with status {error.returncode}"])[-1][:_REASON_LENGTH]
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {_PROCESS_SECONDS:.0f} s"
    return str(error)[:_REASON_LENGTH]
