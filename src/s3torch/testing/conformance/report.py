"""What a run has found."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum

__all__ = ["Outcome", "Report", "Result"]

_WIDTH = 110  # characters of a line of the table


class Outcome(Enum):
    """How a check came out."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_SUPPORTED = "not supported"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one check came out.

    Args:
        name: Of the check.
        shows: What the check shows if it passes.
        outcome: How it came out.
        seen: What the server did instead, or why the check was skipped; empty if it passed.
        consequence: What that means for a user of s3torch; empty if it passed or was skipped.
        seconds: That it took.
    """

    name: str
    shows: str
    outcome: Outcome
    seen: str = ""
    consequence: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """How all checks came out: a table by ``str``, JSON by ``to_json``.

    Args:
        endpoint: Where the requests went.
        bucket: That was used.
        prefix: Of all keys that were used.
        results: In the order of the checks.
        left_over: What could not be removed, by key; usually nothing.
        server: What the server says it is, by its field ``Server``; empty if it does not say.
        s3torch_version: Of this installation.
        began: When, in ISO 8601, UTC.
        seconds: That it took.
    """

    endpoint: str
    bucket: str
    prefix: str
    results: tuple[Result, ...]
    left_over: tuple[str, ...] = ()
    server: str = ""
    s3torch_version: str = ""
    began: str = ""
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"<Report of {self.endpoint} {self.bucket!r}: {self.summary}>"

    def __str__(self) -> str:
        lines = [f"{self.endpoint}, bucket {self.bucket!r}" + (f", {self.server}" if self.server else ""), ""]
        width = max((len(result.name) for result in self.results), default=0)
        for result in self.results:
            lines.append(f"{result.name:{width}}  {result.outcome.value:13}  {result.seconds:6.2f} s")
            for text in (result.seen, result.consequence):
                lines += textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        if self.left_over:
            lines += ["", f"These could not be removed: {', '.join(self.left_over)}"]
        return "\n".join([*lines, "", f"{self.summary}, in {self.seconds:.1f} s"])

    @property
    def ok(self) -> bool:
        """Whether no check failed; what the server does not support is no failure."""
        return not self.named(Outcome.FAILED)

    @property
    def summary(self) -> str:
        """How many checks came out how, such as ``50 passed, 1 failed``."""
        counts = Counter(result.outcome for result in self.results)
        return ", ".join(f"{counts[each]} {each.value}" for each in Outcome if counts[each]) or "no check was made"

    def __getitem__(self, name: str) -> Result:
        """Return the result of one check. Raises KeyError if it was not made."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def named(self, outcome: Outcome) -> list[str]:
        """Return the names of the checks that came out in one way."""
        return [result.name for result in self.results if result.outcome is outcome]

    def to_json(self) -> str:
        """Return the report as JSON: the attributes by their names, outcomes as in the table."""
        return json.dumps(asdict(self), default=lambda outcome: outcome.value, ensure_ascii=False, indent=1)
