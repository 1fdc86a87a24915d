"""What the command does: choose the cases, measure them, print and write the results."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.cases import CASES, OWN_CASES, Case, named
from benchmarks.machine import describe_machine
from benchmarks.own import find_site
from benchmarks.report import case_report, machine_report, report
from benchmarks.results import SCHEMA, Outcome, merge
from benchmarks.roster import CLIENTS
from benchmarks.runner import contestants, run_case
from benchmarks.servers.files import Scale
from benchmarks.servers.start import Place, Servers
from s3torch.errors import S3Error

__all__ = ["run"]

_TERMINATED = 128 + signal.SIGTERM


def run(options: argparse.Namespace) -> int:
    """Run what the command line asks for.

    Args:
        options: Of ``make_parser``.

    Returns:
        0, or 1 if a server or s3torch itself failed in any case. That another client failed, or that a promise was
        missed, is printed.
    """
    cases = _chosen_cases(options)
    clients = _chosen_clients(options)
    if options.list:
        _print_list(cases, clients)
        return 0
    repeat = 1 if options.quick else options.repeat
    if options.quick:
        cases = [case.as_quick() for case in cases]
    max_bytes = options.max_bytes if options.uri else None
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    print(machine_report(machine), flush=True)
    outcomes: list[Outcome] = []
    failed = False
    with _terminable(), ExitStack() as stack:
        servers = stack.enter_context(
            Servers(
                Scale.quick() if options.quick else Scale(),
                has_tls=any(case.server == "tls" for case in cases),
                keys=min(options.keys, 5000) if options.quick else options.keys,
            )
        )
        own = _own_place(options, cases, clients, repeat) if options.uri else None
        for case in cases:
            try:
                site, environment = own or servers.place(case.server)
            except (RuntimeError, OSError, S3Error) as error:
                _say(f"{case.name} is left out: {error}")
                failed = True
                continue
            outcome = run_case(
                case,
                site,
                environment,
                {**machine, "load before": describe_machine()["load before"]},
                repeat=repeat,
                clients=clients,
                max_bytes=max_bytes,
                progress=_say,
            )
            outcomes.append(outcome)
            print("\n" + case_report(outcome), flush=True)
            if options.out is not None:
                _write(options.out, outcomes)
    ours = {contender.name for case in cases for contender in contestants(case, ["floor", "s3torch"])}
    return int(failed or any(ours & outcome.failures.keys() for outcome in outcomes))


def _chosen_cases(options: argparse.Namespace) -> list[Case]:
    is_own = options.uri is not None
    if not options.case:
        return list(OWN_CASES if is_own else CASES)
    try:
        found = [case for name in options.case for case in named(name, is_own=is_own)]
    except ValueError as error:
        _refuse(options, str(error))
    return list(dict.fromkeys(found))


def _chosen_clients(options: argparse.Namespace) -> list[str]:
    if options.clients is None:
        return list(CLIENTS)
    names = [name for name in options.clients.split(",") if name]
    unknown = [name for name in names if name not in CLIENTS]
    if unknown or not names:
        wrong = ", ".join(map(repr, unknown)) or repr(options.clients)
        _refuse(options, f"there is no client {wrong}; they are {', '.join(CLIENTS)}")
    return names


def _refuse(options: argparse.Namespace, reason: str) -> NoReturn:
    options.parser.error(reason)
    raise AssertionError("a parser's error returned")


def _own_place(options: argparse.Namespace, cases: Sequence[Case], clients: Sequence[str], repeat: int) -> Place:
    site, environment = find_site(
        options.uri,
        endpoint=options.endpoint,
        region=options.region,
        max_objects=options.max_objects,
        max_bytes=options.max_bytes,
    )
    processes = repeat * sum(len(contestants(case, clients)) for case in cases)
    each = 2 * options.max_bytes  # once to warm up
    _say(
        f"{len(site.samples):,} objects; {processes} measurements of up to about {each:,} bytes, "
        f"{processes * each / 1e9:,.1f} GB in all"
    )
    return site, environment


def _print_list(cases: Sequence[Case], clients: Sequence[str]) -> None:
    for case in cases:
        print(f"{case.name}: {case.title}")
        for contender in contestants(case, clients):
            print(f"    {contender.name}: {(contender.prepare.__doc__ or '').replace('``', '`')}")
    print(f"clients: {', '.join(CLIENTS)}")


def _write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write all results; those of other cases that lie in the folder stay."""
    path = folder / "results.json"
    merged = merge(json.loads(path.read_text()) if path.exists() else None, outcomes)
    document = {"schema": SCHEMA, "cases": [outcome.as_json() for outcome in merged]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    _draw(folder, outcomes[-1])
    charts = {case.case.name: f"{case.case.name}.png" for case in merged if (folder / f"{case.case.name}.png").exists()}
    command = f"python -m benchmarks --out {shlex.quote(folder.name if folder.is_absolute() else str(folder))}"
    (folder / "results.md").write_text(report(merged, command, charts))


def _draw(folder: Path, outcome: Outcome) -> None:
    try:
        from benchmarks.charts import draw

        draw(outcome, folder / f"{outcome.case.name}.png")
    except ModuleNotFoundError as error:
        _say(f"no chart: {error.name} is not installed")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that servers are stopped."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
