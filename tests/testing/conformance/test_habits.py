"""Tests of the suite itself: a server with one wrong habit fails the check that is for it, and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3torch.testing import conformance
from s3torch.testing.conformance import Outcome

from .habits import CASES, Case
from .whole import ACCESS_KEY, SECRET_KEY, WholeS3, serve

_BY_NAME = {each.name: each for each in conformance.checks()}
# What moves megabytes, or starts workers. `make soak` leaves none out.
_SLOW = {
    "checksum.multipart",
    "condition.complete-if-none-match",
    "range.parallel",
    "reader.strict",
    *(name for name in _BY_NAME if name.startswith(("multipart.", "dataset.", "checkpoint."))),
}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def _needed(name: str) -> Iterator[str]:
    """Yields the names of all checks that a check needs, and that these need."""
    for each in _BY_NAME[name].needs:
        yield each
        yield from _needed(each)


def _checked(case: Case, names: list[str]) -> None:
    s3 = WholeS3("bucket", keeps_versions=case.keeps_versions)
    s3["foreign"] = b"of somebody else"
    with serve(s3, case.habit()) as endpoint:
        report = conformance.run(
            "bucket", endpoint=endpoint, region="us-east-1", s3client_config=case.config, names=names
        )
    found = {result.name: result for result in report.results}
    due = {
        name: case.outcome if name == case.check else Outcome.SKIPPED
        for name in found
        if name == case.check or case.check in _needed(name)
    }
    assert {name: result for name, result in found.items() if result.outcome is not due.get(name, Outcome.PASSED)} == {}
    assert found[case.check].seen
    assert found[case.check].consequence == _BY_NAME[case.check].consequence
    assert bool(report.left_over) is case.leaves
    assert s3["foreign"] == b"of somebody else"
    if not case.leaves:
        assert (list(s3), s3.uploads, s3.versions) == (["foreign"], [], 0)


def _some(case: Case) -> list[str]:
    """Return the check that is for it, those that are about the same, those that need it, and each fourth of the rest.

    Which these are turns from case to case, so that all are among them.
    """
    room = case.check.partition(".")[0]
    turn = CASES.index(case)
    near = {name for name in _BY_NAME if name.partition(".")[0] == room or case.check in _needed(name)}
    quick = [name for name in _BY_NAME if name not in _SLOW]
    return [case.check, *(name for place, name in enumerate(quick) if name in near or (place + turn) % 4 == 0)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_habits(case: Case):
    """A wrong habit is found by one check; the others pass, or are skipped as they need that one; all is removed."""
    _checked(case, _some(case))


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_habits_among_all(case: Case):
    """That holds among all checks."""
    _checked(case, list(_BY_NAME))


def test_every_check_can_fail():
    """For each check there is a habit that it finds."""
    assert {case.check for case in CASES} == _BY_NAME.keys()
