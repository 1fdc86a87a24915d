"""What was measured, as values and as JSON. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cases import CASES, OWN_CASES, Case
from benchmarks.measure import Sample
from benchmarks.promises import Column, Promise, Round

__all__ = ["SCHEMA", "Outcome", "Spread", "check", "merge", "redact", "spread_of"]

SCHEMA = 1
"""Version of the JSON document."""

# Signed URLs and header fields, in whatever a client says when it fails.
_SIGNED = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)=|Signature=|Credential=|SessionToken\W+)[^&\s,'\"<>]+",
    re.IGNORECASE,
)
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and how far they lie apart."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return median, least and greatest of at least one number."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: That was run.
        machine: It was run on.
        rounds: The samples by contender.
        failures: Why a contender has no samples.
    """

    case: Case
    machine: Mapping[str, str]
    rounds: list[dict[str, Sample]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def complete_rounds(self) -> list[Round]:
        """Return the rounds without the contenders that failed in any of them, as far as all contenders were run."""
        rounds = [{name: each[name] for name in each if name not in self.failures} for each in self.rounds]
        return [each for each in rounds if each and len(each) == len(rounds[0])]

    def column(self, column: Column) -> dict[str, Spread]:
        """Return a column of the table, without the contenders that have no number in it."""
        values: dict[str, list[float]] = {}
        for each in self.complete_rounds():
            for name, sample in each.items():
                value = column.of(sample)
                if value is not None:
                    values.setdefault(name, []).append(value)
        return {name: spread_of(found) for name, found in values.items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values, for ``of_json``, with what it comes to for other readers."""
        return {
            "case": self.case.name,
            "is_quick": self.case.is_quick,
            "title": self.case.title,
            "machine": dict(self.machine),
            "rounds": [{name: asdict(sample) for name, sample in each.items()} for each in self.rounds],
            "failures": self.failures,
            "columns": {
                column.title: {name: asdict(spread) for name, spread in self.column(column).items()}
                for column in self.case.columns
            },
            "promises": [
                {
                    "text": promise.text,
                    "bound": promise.bound,
                    "is_minimum": promise.is_minimum,
                    "measured": check(promise, self.complete_rounds()),
                }
                for promise in self.case.promises
            ],
        }

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Outcome:
        """Return what ``as_json`` described.

        Raises:
            KeyError: The case is no longer there.
        """
        case = {case.name: case for case in (*CASES, *OWN_CASES)}[values["case"]]
        case = case.as_quick() if values["is_quick"] else case
        rounds = [{name: Sample(**sample) for name, sample in each.items()} for each in values["rounds"]]
        return cls(case, values["machine"], rounds, dict(values["failures"]))


def check(promise: Promise, rounds: Sequence[Round]) -> list[float]:
    """Return a promise's number in each round; none where a contender that it compares has no numbers."""
    try:
        return [promise.of(each) for each in rounds]
    except (KeyError, ValueError, ZeroDivisionError):
        return []


def merge(document: Mapping[str, Any] | None, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return these outcomes and those of an earlier document whose cases were not run again, in the order of cases."""
    found: dict[str, Outcome] = {}
    if document is not None and document.get("schema") == SCHEMA:
        known = {case.name for case in (*CASES, *OWN_CASES)}
        found = {each["case"]: Outcome.of_json(each) for each in document["cases"] if each["case"] in known}
    found |= {outcome.case.name: outcome for outcome in outcomes}
    return [found[case.name] for case in (*CASES, *OWN_CASES) if case.name in found]


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Return a client's message without credentials and signatures.

    Args:
        text: The message.
        environment: The process's variables, whose secrets are looked for.
    """
    for name in _SECRET_VARIABLES:
        secret = environment.get(name)
        if secret:
            text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1***", text)
