"""The command line."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks.__main__ import main

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks need Linux")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["lodaer"],
            "there is no case 'lodaer'; the cases are large, large-tls, ",
        ),
        (
            ["small", "--uri", "s3://bucket/"],
            "no case 'small' with --uri; the cases are loader, large, ranges",
        ),
        (["--clients", "boto4"], "there is no client 'boto4'; they are floor, s3torch, "),
        (["--clients", ","], "there is no client ','; they are floor, "),
        (["--repeat", "0"], "argument --repeat: must be at least 1, got 0"),
        (["--max-bytes", "64Q"], "argument --max-bytes: must be bytes, or such as 64M or 1G, got '64Q'"),
        (["--max-bytes", "0"], "argument --max-bytes: must be bytes, or such as 64M or 1G, got '0'"),
    ],
)
def test_bad_arguments(capsys, arguments, why):
    """A command line that cannot work is refused with its usage and the reason, before anything is started."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: python -m benchmarks ")
    assert re.search(why, printed.err)


def test_only_linux(capsys, monkeypatch):
    """Elsewhere the command says so in one line."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["--list"]) == 1
    assert capsys.readouterr().err.startswith("benchmarks: Linux is required")


def test_list(capsys):
    """``--list`` says what each client does in each case, and measures nothing."""
    assert main(["loader", "real", "--list", "--clients", "s3torch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("loader: DataLoader")
    assert any(line.startswith("    s3torch iterable: `S3IterableDataset`") for line in lines)
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == [
        *("loader", "real-loader", "real-large"),
        "clients",
    ]
