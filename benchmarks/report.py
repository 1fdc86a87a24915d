"""Markdown of what was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.promises import Promise
from benchmarks.results import Outcome, Spread, check, spread_of

__all__ = ["case_report", "machine_report", "report"]


def report(outcomes: Sequence[Outcome], command: str, charts: Mapping[str, str]) -> str:
    """Return the whole document.

    Args:
        outcomes: In their order.
        command: That measured them.
        charts: The file of each case's chart, as far as there is one.
    """
    lines = [
        "# Results",
        "",
        f"Written by `{command}`; do not edit. Medians, in parentheses the least and the greatest.",
        "[README.md](README.md) says how it is measured.",
        "",
    ]
    machines = list(dict.fromkeys(_without_load(outcome.machine) for outcome in outcomes))
    lines += [f"> {machine}\n" for machine in machines]
    lines += ["## Promises", "", *_table(_PROMISE_TITLES, _all_promises(outcomes), texts=2), "", "## Cases", ""]
    for outcome in outcomes:
        lines.append(case_report(outcome))
        if outcome.case.name in charts:
            lines.append(f"![{outcome.case.title}]({charts[outcome.case.name]})\n")
    return "\n".join(lines).rstrip() + "\n"


def machine_report(machine: Mapping[str, str]) -> str:
    """Return the description of the machine as one paragraph."""
    return "; ".join(f"{name}: {value}" for name, value in machine.items()) + "."


def case_report(outcome: Outcome) -> str:
    """Return the table of a case, its promises, and who has no numbers."""
    case, rounds = outcome.case, outcome.complete_rounds()
    names = list(rounds[0]) if rounds else []
    load = outcome.machine.get("load before", "unknown")
    lines = [f"### {case.name}: {case.title}", "", f"Rounds: {len(rounds)}. Load of the machine before: {load}.", ""]
    columns = [(column, outcome.column(column)) for column in case.columns]
    lines += _table(
        ["client", *(column.title for column, _ in columns)],
        ([name, *(_cell(found.get(name), column.digits) for column, found in columns)] for name in names),
    )
    if outcome.failures:
        lines += ["", *(f"- Not measured: {name}: {reason}" for name, reason in outcome.failures.items())]
    if case.promises:
        lines += ["", *_table(_PROMISE_TITLES[1:], (_promise_row(each, outcome) for each in case.promises))]
    return "\n".join(lines) + "\n"


_PROMISE_TITLES = ["case", "promise", "bound", "measured", ""]


def _all_promises(outcomes: Sequence[Outcome]) -> Iterable[list[str]]:
    for outcome in outcomes:
        for promise in outcome.case.promises:
            yield [outcome.case.name, *_promise_row(promise, outcome)]


def _promise_row(promise: Promise, outcome: Outcome) -> list[str]:
    bound = f"{'>=' if promise.is_minimum else '<='} {promise.bound:,g}"
    values = check(promise, outcome.complete_rounds())
    if not values:
        return [promise.text, bound, "not measured", ""]
    spread = spread_of(values)
    return [
        promise.text,
        bound,
        _cell(spread, promise.digits),
        "kept" if promise.is_kept(spread.median) else "**missed**",
    ]


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return ""
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}-{spread.high:,.{digits}f})"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> list[str]:
    """Return a table whose first columns are texts, and the others numbers."""
    lines = [titles, [*["---"] * texts, *["---:"] * (len(titles) - texts)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _without_load(machine: Mapping[str, str]) -> str:
    return machine_report({name: value for name, value in machine.items() if name != "load before"})
