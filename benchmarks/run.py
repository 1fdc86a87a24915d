"""Measures what s3torch costs beside other clients, against an nginx on this machine.

Each client of each case runs in a process of its own, and the clients take turns, round after round, so that what else
the machine does meets all of them alike. The tables give the median of the rounds, with the least and the greatest.
See README.md in this folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cases import CASES, Case, Round
from clients import CLIENTS, Client
from meter import Sample
from report import case_report, check, describe_machine, machine_report
from server import Address, serve

__all__ = ["main"]

_METER = Path(__file__).with_name("meter.py")
_CLIENT_SECONDS = 300.0

# No client is to find anybody's real account, nor ask the network for one.
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "*",
}


@dataclass
class Outcome:
    """What became of one case.

    Attributes:
        case: That was run.
        rounds: The samples by client.
        failures: Why a client has no samples.
    """

    case: Case
    rounds: list[dict[str, Sample]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def complete_rounds(self) -> list[Round]:
        """Return the rounds without the clients that failed in any of them."""
        return [{name: sample for name, sample in each.items() if name not in self.failures} for each in self.rounds]

    def as_json(self) -> dict[str, object]:
        """Return all of it as plain values."""
        rounds = self.complete_rounds()
        return {
            "case": self.case.name,
            "rounds": [{name: asdict(sample) for name, sample in each.items()} for each in self.rounds],
            "failures": self.failures,
            "promises": [
                {"text": promise.text, "bound": promise.bound, "measured": check(promise, rounds)}
                for promise in self.case.promises
            ],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status: 1 if a client failed."""
    options = _parser().parse_args(arguments)
    cases = options.case or CASES
    if options.list:
        _print_list(cases)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nginx is stopped
    machine = describe_machine()
    print(machine_report(machine), flush=True)
    with serve() as (plain, tls):
        outcomes = []
        for case in cases:
            outcomes.append(_run_case(case, tls if case.name.endswith("-tls") else plain, options.repeat))
            print("\n" + case_report(case, outcomes[-1].complete_rounds(), outcomes[-1].failures), flush=True)
    if options.json is not None:
        document = {"machine": machine, "cases": [outcome.as_json() for outcome in outcomes]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(any(outcome.failures for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "case", nargs="*", type=_case, metavar="CASE", help=f"what to measure: {_case_names()}; default: all of them"
    )
    parser.add_argument("--repeat", type=_positive, default=5, metavar="N", help="rounds of each case (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement here as well")
    parser.add_argument("--list", action="store_true", help="list the cases and their clients, and measure nothing")
    return parser


def _case(name: str) -> Case:
    for case in CASES:
        if case.name == name:
            return case
    raise argparse.ArgumentTypeError(f"there is no case {name!r}; the cases are {_case_names()}")


def _case_names() -> str:
    return ", ".join(case.name for case in CASES)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _print_list(cases: Sequence[Case]) -> None:
    for case in cases:
        print(f"{case.name}: {case.title}")
        for client in CLIENTS[case.name].values():
            print(f"    {client.name}: {(client.prepare.__doc__ or '').replace('``', '`')}")


def _run_case(case: Case, address: Address, repeat: int) -> Outcome:
    outcome = Outcome(case)
    contestants = []
    for client in CLIENTS[case.name].values():
        if client.needs is None or importlib.util.find_spec(client.needs) is not None:
            contestants.append(client)
        else:
            outcome.failures[client.name] = f"{client.needs} is not installed"
    for number in range(1, repeat + 1):
        samples: dict[str, Sample] = {}
        for client in contestants:
            if client.name in outcome.failures:
                continue
            print(f"{case.name}, round {number} of {repeat}: {client.name}", file=sys.stderr, flush=True)
            try:
                samples[client.name] = _measure(case, client, address)
            except (subprocess.SubprocessError, ValueError) as error:
                outcome.failures[client.name] = _reason(error)
        outcome.rounds.append(samples)
    return outcome


def _measure(case: Case, client: Client, address: Address) -> Sample:
    """Run one client in one case in a new process."""
    command = [sys.executable, _METER, case.name, client.name, json.dumps(asdict(address))]
    run = subprocess.run(
        command, env=_environment(address), capture_output=True, text=True, timeout=_CLIENT_SECONDS, check=True
    )
    return Sample(**json.loads(run.stdout))


def _environment(address: Address) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    authority = {} if address.authority is None else {"SSL_CERT_FILE": address.authority}
    return {**kept, **_ENVIRONMENT, **authority}


def _reason(error: Exception) -> str:
    """Return the last thing that a client said, or how it ended."""
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.strip()
        return said.splitlines()[-1] if said else f"it ended with status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {_CLIENT_SECONDS:.0f} s"
    return str(error)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing is left running.")
