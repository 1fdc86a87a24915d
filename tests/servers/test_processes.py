"""Tests of the processes of a server: they end with their block, and one that does not start says why."""

from __future__ import annotations

import os
import sys

import pytest

from .processes import Processes, ServerError, free_ports


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_end_with_the_block():
    """A process runs in a directory that is removed with it, and is ended by its id."""
    script = "import os, time; open('pid', 'w').write(f'{os.getpid()}.'); time.sleep(600)"
    with Processes() as processes:
        processes.start("sleeper", [sys.executable, "-c", script])
        path = processes.directory / "pid"
        processes.wait_until(lambda: path.exists() and path.read_text().endswith("."))
        pid = int(path.read_text()[:-1])
        assert _is_alive(pid)
    assert not _is_alive(pid)
    assert not processes.directory.exists()


def test_what_ends_says_why():
    """A process that ends instead of starting is an error with its log; so is a command that fails."""
    with Processes() as processes:
        processes.start("broken", [sys.executable, "-c", "import sys; sys.exit('the port is taken')"])
        with pytest.raises(ServerError, match=r"\['broken'\] ended.*\n.*the port is taken"):
            processes.wait_until(lambda: False)
        with pytest.raises(ServerError, match="no such user"):
            processes.run([sys.executable, "-c", "import sys; sys.exit('no such user')"])


def test_free_ports_are_different():
    """As many ports as are asked for, each another one."""
    assert len(set(free_ports(20))) == 20
