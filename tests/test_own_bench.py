"""``s3torch bench``: the command that measures s3torch on the user's own bucket."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from s3torch._aws.listing import ObjectInfo
from s3torch._own_bench import CASES, choose
from s3torch.cli import main

_TIMEOUT = 120.0


def _info(key: str, size: int) -> ObjectInfo:
    return ObjectInfo(key, "", size, 0)


SMALL, MEDIUM, HUGE = _info("s", 10), _info("m", 100), _info("h", 1000)


def test_choose():
    """What is too large to be read whole is left out, unless there is nothing else."""
    assert choose([SMALL, HUGE, MEDIUM], 100) == ([SMALL, MEDIUM], MEDIUM)
    assert choose([HUGE, MEDIUM], 50) == ([MEDIUM], MEDIUM)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--quick"], ["small", "loader"], ["--list"], ["loader", "--clients", "s3torch,boto3", "--keys", "10"]],
)
def test_without_uri(capsys, arguments):
    """Without ``--uri`` the command is refused, and says where the benchmarks are that compare clients."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: s3torch bench ")
    assert "--uri s3://BUCKET/PREFIX is missing." in printed.err
    assert "`make bench` or `python -m benchmarks` in a clone of the repository." in printed.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["small"], "there is no case 'small'; the cases are loader, large, ranges"),
        (["--repeat", "0"], "argument --repeat: must be at least 1, got 0"),
        (["--max-objects", "0"], "argument --max-objects: must be at least 1, got 0"),
        (["--max-bytes", "64Q"], "argument --max-bytes: must be bytes, or such as 64M or 1G, got '64Q'"),
        (["--max-bytes", "0"], "argument --max-bytes: must be bytes, or such as 64M or 1G, got '0'"),
        (["--clients", "boto3"], "unrecognized arguments: --clients"),
    ],
)
def test_bad_arguments(capsys, arguments, why):
    """A command line that cannot work is refused with its usage and the reason, before anything is read."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--uri", "s3://bucket/", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: s3torch")
    assert re.search(re.escape(why), printed.err)


def test_all_cases(s3, put, prefix, bucket, tmp_path, capsys):
    """All cases are measured, printed and written, and no credential is in what is written."""
    for number in range(4):
        put(f"{prefix}{number}", bytes(1000 * number))
    folder = tmp_path / "new"
    arguments = ["--uri", f"s3://{bucket}/{prefix}", "--quick", "--max-bytes", "1M", "--out", str(folder)]
    assert main(["bench", *arguments]) == 0
    printed = capsys.readouterr()
    assert "3 objects; 5 measurements of up to about 2,097,152 bytes, 0.0 GB in all\n" in printed.err
    assert "loader, round 1 of 1: S3MapDataset\n" in printed.err
    assert all(f"### {case.title}\n" in printed.out for case in CASES.values())
    text = (folder / "own.json").read_text()
    cases = json.loads(text)["cases"]
    assert cases.keys() == CASES.keys()
    for (sample,) in cases["loader"].values():
        assert sample["items"] > 0  # how many depends on what else this machine does
        assert sample["bytes"] == sample["items"] * 2000
        assert sample["first_batch_s"] > 0
    ((large,),) = cases["large"].values()
    assert (large["items"], large["bytes"], large["requests"]) == (1, 3000, 1)
    ((ranges,),) = cases["ranges"].values()
    assert (ranges["items"], ranges["bytes"]) == (16, 16 * 3000)
    written = text + (folder / "own.md").read_text() + printed.out + printed.err
    assert s3.access_key not in written
    assert s3.secret_key not in written


def test_rounds(s3, put, prefix, bucket, tmp_path):
    """Each case has as many rounds as were asked for, and only the chosen cases are measured."""
    put(f"{prefix}a", bytes(200_000))
    options = ["--repeat", "2", "--max-bytes", "128K", "--out", str(tmp_path)]
    server = ["--endpoint", s3.endpoint, "--region", s3.region]
    assert main(["bench", "ranges", "large", "ranges", "--uri", f"s3://{bucket}/{prefix}", *options, *server]) == 0
    cases = json.loads((tmp_path / "own.json").read_text())["cases"]
    assert {case: [len(each) for each in found.values()] for case, found in cases.items()} == {
        "ranges": [2],
        "large": [2],
    }
    assert cases["large"]["read_range"][0]["bytes"] == 128 * 1024  # an object that is too large is read as far as that
    assert cases["ranges"]["read_ranges"][0]["bytes"] == 2 * 65536


def test_nothing_there(s3, bucket):
    """A prefix without objects is one line, and status 1."""
    uri = f"s3://{bucket}/nothing-here/"
    done = subprocess.run(
        [sys.executable, "-m", "s3torch", "bench", "--uri", uri],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"s3torch: There are no objects with content under {uri}.\n"
