"""Outcomes, their JSON, and what is taken out of messages."""

from __future__ import annotations

import json

import pytest

from benchmarks.cases import CASES
from benchmarks.results import SCHEMA, Outcome, Spread, check, merge, redact, spread_of

from .examples import CASE, MOOD, RATE, outcome, sample


def test_spread():
    """Median, least and greatest."""
    assert spread_of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread_of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_column():
    """A column has the contenders that have a number in it."""
    measured = outcome((10, 1), (30, 3), (20, 2))
    assert measured.column(RATE) == {"s3torch": Spread(20, 10, 30), "boto3, readinto()": Spread(2, 1, 3)}
    assert list(measured.column(MOOD)) == ["s3torch"]


def test_who_failed_is_left_out():
    """A contender that failed in one round has no numbers, and a round that was interrupted does not count."""
    measured = outcome((10, 1), (20, 2), **{"boto3, readinto()": "broke"})
    measured.rounds[1].pop("boto3, readinto()")
    assert [list(each) for each in measured.complete_rounds()] == [["s3torch"], ["s3torch"]]
    interrupted = outcome((10, 1), (20, 2))
    interrupted.rounds[1].pop("boto3, readinto()")
    assert len(interrupted.complete_rounds()) == 1


def test_check():
    """A promise is checked round by round; it has no numbers where it compares with nobody."""
    rounds = outcome((10, 1), (30, 2)).complete_rounds()
    assert check(CASE.promises[0], rounds) == [10, 15]
    assert check(CASE.promises[1], rounds) == []


def test_json_round_trip():
    """An outcome is read back as it was written, and the document says what it comes to."""
    large = next(case for case in CASES if case.name == "large")
    measured = outcome((10, 1), (20, 2), case=large, floor="broke")
    document = json.loads(json.dumps(measured.as_json()))
    assert Outcome.of_json(document) == measured
    assert set(document) == {"case", "is_quick", "title", "machine", "rounds", "failures", "columns", "promises"}
    assert document["columns"]["CPU s/GiB"]["s3torch"].keys() == {"median", "low", "high"}


def test_a_quick_run_stays_one():
    """A quick run is not taken for a measurement when it is read back."""
    large = next(case for case in CASES if case.name == "large")
    again = Outcome.of_json(outcome((1, 1), case=large.as_quick()).as_json())
    assert again.case == large.as_quick()
    assert again.case.promises == ()


def test_merge():
    """What was measured before stays until it is measured again; the order is that of the cases."""
    cases = {case.name: case for case in CASES}
    old = [outcome((1, 1), case=cases["small"]), outcome((2, 2), case=cases["large"])]
    document = {"schema": SCHEMA, "cases": [each.as_json() for each in old] + [{"case": "gone"}]}
    again = outcome((3, 3), case=cases["small"])
    assert merge(document, [again]) == [old[1], again]
    assert merge(None, [again]) == [again]
    assert merge({"schema": SCHEMA + 1, "cases": []}, [again]) == [again]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key AKIA1234 refused", "key *** refused"),
        ("secret s3cr3t/+ leaked", "secret *** leaked"),
        ("GET /k?X-Amz-Signature=abc123&x=1 failed", "GET /k?X-Amz-Signature=***&x=1 failed"),
        ("Credential=AK/2026/r, Signature=0f", "Credential=***, Signature=***"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_redact(text, expected):
    """No credential and no signature of a message gets into a file."""
    variables = {"AWS_ACCESS_KEY_ID": "AKIA1234", "AWS_SECRET_ACCESS_KEY": "s3cr3t/+", "AWS_SESSION_TOKEN": ""}
    assert redact(text, variables) == expected


def test_sample_has_plain_values():
    """A sample's fields are what JSON knows."""
    assert json.loads(json.dumps(sample(1, mood=2.0).extra)) == {"mood": 2.0}
