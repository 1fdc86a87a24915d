"""The command ``s3torch``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import s3torch
from s3torch.cli import main
from s3torch.errors import ConnectionFailedError

_TIMEOUT = 300.0  # seconds after which a command hangs, also on a busy machine


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=_TIMEOUT, check=False)


def test_help():
    """``s3torch --help`` shows the commands, and each command's own help its options."""
    done = _python("-m", "s3torch", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: s3torch ")
    assert re.search(r"demo +train on images", done.stdout)
    assert re.search(r"bench +measure s3torch on your own bucket", done.stdout)


def test_help_of_a_command(capsys):
    """A command's help shows its options with their defaults."""
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert re.search(r"--epochs EPOCHS +.*default: 8", printed)
    assert re.search(r"--workers WORKERS +.*default: 2", printed)


def test_version():
    """``s3torch --version`` prints name and version, and imports neither torch nor botocore for it."""
    program = "import sys; from s3torch.cli import main\ntry: main(['--version'])\nfinally: print(sorted(sys.modules))"
    done = _python("-c", program)
    version, modules = done.stdout.splitlines()
    assert (done.returncode, version, done.stderr) == (0, f"s3torch {s3torch.__version__}", "")
    assert "'torch'" not in modules
    assert "'botocore'" not in modules


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["no-such-command"], "invalid choice: 'no-such-command'"),
        (["demo", "--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["demo", "--epochs", "-3"], "argument --epochs: must be at least 1, got -3"),
        (["demo", "--epochs", "many"], "argument --epochs: .*'many'"),
        (["demo", "--workers", "0"], "argument --workers: must be at least 1, got 0"),
        (["demo", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["demo", "more"], "unrecognized arguments: more"),
    ],
)
def test_bad_arguments(capsys, arguments, why):
    """A command line that cannot work is refused with its usage and the reason."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: s3torch")
    assert re.search(why, printed.err)


def test_an_error_is_one_line(capsys, monkeypatch):
    """An error of ours ends the command with one line that says what happened, and status 1."""
    _demo_that_raises(monkeypatch, ConnectionFailedError("No server is there.", status=503))
    assert main(["demo"]) == 1
    assert capsys.readouterr() == ("", "s3torch: No server is there. (status 503)\n")


def test_what_is_not_installed(capsys, monkeypatch):
    """If a package of the demo is missing, the line says which, and how to get it."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "s3torch.demo", raising=False)
    assert main(["demo"]) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(r"s3torch: the demo needs sklearn.*: pip install 's3torch\[demo\]'\n", printed)


def _demo_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from s3torch import demo

    def run(*, epochs: int, workers: int) -> int:
        raise error

    monkeypatch.setattr(demo, "run", run)


# --- The demo --------------------------------------------------------------------------------------------------------


# A fifth of the digits, as uploading them takes longest, and small batches: after too few steps of training the network
# is no better than a new one, and would not be missed.
_SMALL_DEMO = """if True:
    import sys
    from s3torch import demo
    from s3torch.cli import main

    def some_digits():
        digits = load_digits()
        digits.images, digits.target = digits.images[::5], digits.target[::5]
        return digits

    load_digits, demo.load_digits, demo._BATCH = demo.load_digits, some_digits, 4
    demo._LARGE, demo._SLICE = 16 * 1024**2, (10 * 1024**2, 11 * 1024**2)
    sys.exit(main(["demo", "--epochs", "1"]))
"""


def test_demo():
    """The demo trains, saves, reloads and reads a slice, and tells what it transferred."""
    done = _python("-c", _SMALL_DEMO)
    assert done.returncode in (0, 1), done.stderr  # one epoch may be too few for the accuracy it asks for
    assert re.search(r"SeaweedFS at http://127\.0\.0\.1:\d+, process \d+\ntraining on 288 objects\n", done.stdout)
    first, reloaded = re.findall(r"(?:held-out digits|reloaded checkpoint) +([0-9.]+)%", done.stdout)
    assert first == reloaded
    requests, retries = map(int, re.search(r"training requests +(\d+) \((\d+) retries\)", done.stdout).groups())
    assert requests >= 288 + retries  # a busy machine may have some asked for again, or twice at the same time
    crossed = re.search(r"range read of 1,048,576 B +([\d,]+) B crossed the wire", done.stdout)[1].replace(",", "")
    assert 1_048_576 <= int(crossed) < 4_194_304  # of 16 MiB
    assert "Traceback" not in done.stderr
    assert done.stderr.count("FAILED") == done.returncode


# What runs in a shell's background ignores SIGINT, and hands that on. Each sample is a batch, so that the first epoch
# lasts until the signal comes, also on a machine that is busy.
_INTERRUPTIBLE_DEMO = """if True:
    import signal, sys
    from s3torch import demo
    from s3torch.cli import main

    def some_digits():
        digits = load_digits()
        digits.images, digits.target = digits.images[::5], digits.target[::5]
        return digits

    load_digits, demo.load_digits, demo._BATCH = demo.load_digits, some_digits, 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(["demo", "--epochs", "1000"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes that are left in /proc")
def test_an_interrupted_demo():
    """Ctrl-C during the training ends the demo at once, with one line, and leaves no process."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", _INTERRUPTIBLE_DEMO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    ) as demo:
        try:
            printed = _read_until(demo.stdout, rb"process \d+\n")
            server = int(re.search(rb"process (\d+)\n", printed)[1])
            guard = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
            # A worker that is interrupted before torch's loop begins prints that; by then both are in it.
            _read_until(demo.stderr, rb"epoch 1/1000: +[1-9]")
            workers = [pid for pid in _session(demo.pid) if pid != demo.pid]
            os.killpg(demo.pid, signal.SIGINT)
            _, errors = demo.communicate(timeout=_TIMEOUT)
            left = [pid for pid in [server, guard, *workers] if _is_alive(pid)] + _session(demo.pid)
        finally:
            for pid in _session(demo.pid):
                os.kill(pid, signal.SIGKILL)
    assert demo.returncode == 130
    assert len(workers) >= 2
    assert left == []
    lines = [line for line in errors.decode().splitlines() if line.strip() and "epoch" not in line]
    assert lines == ["interrupted"]


def _read_until(pipe, pattern: bytes) -> bytes:
    found = b""
    while not re.search(pattern, found):
        piece = os.read(pipe.fileno(), 4096)
        assert piece, f"the demo ended: {found.decode()}"
        found += piece
    return found


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


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
