"""The Markdown."""

from __future__ import annotations

from benchmarks.report import case_report, machine_report, report

from .examples import outcome


def test_case_report():
    """A table of medians and spreads, who is not in it and why, and each promise with its verdict."""
    text = case_report(outcome((10, 1), (30, 2), (20, 20), minio="minio is not installed"))
    assert text.splitlines() == [
        "### large: Things",
        "",
        "Rounds: 3. Load of the machine before: 0.10.",
        "",
        "| client | things/s | mood |",
        "| --- | ---: | ---: |",
        "| s3torch | 20 (10-30) | 1.0 (1.0-1.0) |",
        "| boto3, readinto() | 2 (1-20) |  |",
        "",
        "- Not measured: minio: minio is not installed",
        "",
        "| promise | bound | measured |  |",
        "| --- | ---: | ---: | ---: |",
        "| ours over theirs | >= 2 | 10.00 (1.00-15.00) | kept |",
        "| ours over nobody's | <= 2 | not measured |  |",
    ]


def test_missed():
    """A promise that is missed says so."""
    assert "| ours over theirs | >= 2 | 1.00 (1.00-1.00) | **missed** |" in case_report(outcome((1, 1)))


def test_nothing_measured():
    """A case without a round has an empty table, not a crash."""
    assert "Rounds: 0." in case_report(outcome(s3torch="broke"))


def test_report():
    """The document names its command and machines, repeats the promises, and shows the charts that there are."""
    text = report([outcome((10, 1))], "python -m benchmarks --out x", {"large": "large.png"})
    assert text.startswith("# Results\n\nWritten by `python -m benchmarks --out x`; do not edit.")
    assert "> cpu: one.\n" in text
    assert text.count("| ours over theirs |") == 2
    assert text.endswith("![Things](large.png)\n")


def test_machine_report():
    """A machine is one line."""
    assert machine_report({"a": "1", "b": "2"}) == "a: 1; b: 2."
