"""Whether a process that another one knows has ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from s3torch.checkpoint import processes
from s3torch.checkpoint.processes import Process, has_ended, this_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def _of(number: int) -> Process:
    here = this_process()
    assert here is not None
    return here._replace(number=number, started=int(processes._fields(number)[processes._STARTED]))


def test_this_one():
    """A process that lives has not ended; one that had its number before has."""
    here = this_process()
    assert here is not None
    assert here.number == os.getpid()
    assert not has_ended(here)
    assert has_ended(here._replace(started=here.started - 1))


def test_one_that_is_killed():
    """One that was killed has ended, before and after somebody has waited for it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = _of(child.pid)
        assert not has_ended(known)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes._fields(child.pid)[processes._STATE] == "Z"
        assert has_ended(known)
    assert has_ended(known)


def test_one_that_is_hidden(monkeypatch):
    """One that /proc does not show, but that can be sent signals, lives."""
    known = _of(os.getpid())
    monkeypatch.setattr(processes, "_fields", lambda _: [])
    assert not has_ended(known)
    assert this_process() is None


def test_without_proc(monkeypatch, tmp_path):
    """Where there is no /proc nothing is known."""
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert this_process() is None
