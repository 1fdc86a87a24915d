"""Tests of what is recorded of servers, and of the page that is made of it."""

from __future__ import annotations

import pytest

from s3torch.testing import conformance
from s3torch.testing.conformance import Outcome, Report, Result

from . import record
from .recipes import RECIPES

NAMES = [each.name for each in conformance.checks()]


def test_page_is_that_of_the_records():
    """The tables of docs/servers.md are those of docs/servers.json; `make conformance ARGS=--record` writes both."""
    page = record.PAGE.read_text(encoding="utf-8")
    assert record.rendered(page, record.load()) == page


def test_each_server_is_recorded():
    """Of each server there is a record, of each check in it."""
    records = record.load()
    assert list(records) == list(RECIPES)
    for each in records.values():
        assert list(each["checks"]) == NAMES
        assert each["version"]


def _report(**outcomes: Outcome) -> Report:
    results = [
        Result(name=name, shows="", outcome=outcomes.get(name, Outcome.PASSED), seen="seen") for name in ("a", "b")
    ]
    return Report(endpoint="", bucket="", prefix="", results=tuple(results), left_over=("key",))


def test_differences(monkeypatch: pytest.MonkeyPatch):
    """A check that came out otherwise, one that is not recorded, and what is left over, are told."""
    monkeypatch.setattr(record, "load", lambda: {"server": {"checks": {"a": {"outcome": "passed"}}}})
    assert record.differences("server", _report(a=Outcome.FAILED)) == [
        "a is failed, and was passed: seen",
        "b is passed, and was None: seen",
        "key is left over",
    ]
