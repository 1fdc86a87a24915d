"""What was measured of each server: ``docs/servers.json``, and the tables of ``docs/servers.md``, made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from s3torch.testing import conformance
from s3torch.testing.conformance import Outcome, Report

__all__ = ["RECORDS", "differences", "merged", "rendered", "save"]

_DOCS = Path(__file__).parent.parent.parent / "docs"
RECORDS = _DOCS / "servers.json"
PAGE = _DOCS / "servers.md"
_MARKS = {
    Outcome.PASSED.value: "yes",
    Outcome.FAILED.value: "**no**",
    Outcome.NOT_SUPPORTED.value: "lacks",
    Outcome.SKIPPED.value: "-",
}
_TABLES = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.DOTALL)
# Differ from run to run: keys, ids, ports.
_VARIES = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}/|request id [^,)]*|127\.0\.0\.1:\d+")


def merged(report: Report, versions: Report) -> Report:
    """Returns a report with the check of versions of another."""
    results = tuple(versions["version.read"] if each.name == "version.read" else each for each in report.results)
    return replace(report, results=results, left_over=report.left_over + versions.left_over)


def load() -> dict[str, dict[str, object]]:
    """Returns the records by the server's name."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}


def _recorded(name: str) -> Mapping[str, Mapping[str, str]]:
    return load().get(name, {}).get("checks", {})  # type: ignore[attr-defined, return-value]


def differences(name: str, report: Report) -> list[str]:
    """Returns a line for each check that came out otherwise than it is recorded, and for what was left over."""
    recorded = _recorded(name)
    lines = [
        f"{each.name} is {each.outcome.value}, and was {recorded.get(each.name, {}).get('outcome')}: {each.seen}"
        for each in report.results
        if each.outcome.value != recorded.get(each.name, {}).get("outcome")
    ]
    return lines + [f"{key} is left over" for key in report.left_over]


def save(name: str, version: str, report: Report) -> None:
    """Records how the checks came out, and writes the page."""
    from .recipes import RECIPES

    records = load()
    records[name] = {
        "title": RECIPES[name].title,
        "version": version,
        "server": report.server,
        "date": report.began[:10],
        "seconds": round(report.seconds, 1),
        "checks": {
            each.name: {"outcome": each.outcome.value, **({"seen": _settled(each.seen)} if each.seen else {})}
            for each in report.results
        },
    }
    records = {each: records[each] for each in RECIPES if each in records}
    RECORDS.write_text(f"{json.dumps(records, ensure_ascii=False, indent=1)}\n", encoding="utf-8")
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")


def _settled(seen: str) -> str:
    """Returns what was seen without what differs from run to run."""
    return _VARIES.sub("...", seen)


def rendered(page: str, records: Mapping[str, Mapping[str, object]]) -> str:
    """Returns the page with the tables of the records."""
    return _TABLES.sub(lambda found: f"{found[1]}{_tables(records)}{found[2]}", page)


def _tables(records: Mapping[str, Mapping[str, object]]) -> str:
    head = ["check", *(_short(str(each["title"])) for each in records.values())]
    lines = [_row(head), _row(["---"] * len(head))]
    for each in conformance.checks():
        found = [record["checks"].get(each.name, {}).get("outcome", "") for record in records.values()]  # type: ignore[attr-defined]
        lines.append(_row([f"`{each.name}`", *(_MARKS.get(outcome, "") for outcome in found)]))
    measured = [
        f"{record['title']} {record['version']} ({record['date']}, {record['seconds']} s)"
        for record in records.values()
    ]
    return "\n".join(
        [
            "\n" + "\n".join(lines),
            "",
            f"Measured on 2 cores that others used as well: {', '.join(measured)}.",
            "",
            *_faults(records),
            "",
        ]
    )


def _short(title: str) -> str:
    return re.sub(r" s3api| gateway.*| RGW", "", title)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _faults(records: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines: list[str] = []
    for record in records.values():
        lines += [f"### {record['title']} {record['version']}", ""]
        seen = {
            name: found["seen"]
            for name, found in record["checks"].items()  # type: ignore[attr-defined]
            if found["outcome"] in {Outcome.FAILED.value, Outcome.NOT_SUPPORTED.value}
        }
        lines += [f"- `{name}`: {_plain(text)}" for name, text in seen.items()] or ["- nothing"]
        lines.append("")
    return lines


def _plain(text: str) -> str:
    """Returns what was seen on one line, with nothing that Markdown would take for its own."""
    text = " ".join(text.split())
    return re.sub(r"([*_<>`|\\])", r"\\\1", text)
