"""The process between `LocalS3` and its server: it ends the server when the owner ends.

The owner starts this file as a script, in a session of its own, and holds the write end of the
script's standard input. The script starts the server, writes the server's process id as one line
to standard output, and waits for the first of four events: the server exits; a byte or end of file
arrives on standard input (the owner asks, or is gone); the script's parent is no longer the owner
(the owner was killed); SIGTERM or SIGINT. Then it ends the server, removes what the server left
behind, and exits; the end of its standard output tells the owner.

The end of the pipe alone would not do. A child that the owner forked, such as a DataLoader worker,
holds a copy of the pipe's write end and can outlive the owner; so the parent's process id is looked
at as well. For the same reason the owner asks with a byte and does not count on end of file. Linux's
PR_SET_PDEATHSIG was not used: it fires when the *thread* that started the child ends, and macOS
lacks it.

The script must not import the package. It runs isolated, so that it starts in some 30 ms, and
nothing in the owner's working directory or PYTHONPATH can shadow the standard library.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

__all__ = ["main", "remove_stale_sockets"]

# Seconds between two looks at the parent and at the server; standard input wakes the guard at once.
# Not tuned: short enough that nobody waits for it, long enough to cost no CPU time.
_WATCH_INTERVAL = 0.2


def _exit_on_signal(_signum: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _watch(server: subprocess.Popen[bytes], owner: int) -> None:
    while server.poll() is None and os.getppid() == owner:
        if select.select([sys.stdin], [], [], _WATCH_INTERVAL)[0]:
            return


def _end(server: subprocess.Popen[bytes], grace: float) -> None:
    if grace:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    server.kill()
    server.wait()


def remove_stale_sockets(ports: Iterable[str]) -> None:
    """Removes the sockets that a killed server leaves in /tmp, where it puts them without a choice.

    A path is removed only when nobody listens behind it: another server may have got the port.

    Args:
        ports: The ports that the server was started with, one of which is in each path.
    """
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the server's choice
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


def main(arguments: list[str]) -> None:
    """Runs the server until it, or its owner, ends.

    Args:
        arguments: The owner's process id; the seconds between SIGTERM and SIGKILL (0: no SIGTERM);
            the directory to run in, removed in the end; the server's ports, joined by commas; then
            the server's command line.
    """
    owner, grace, directory, ports, *command = arguments
    # Handlers, not SIG_IGN: an ignored signal would stay ignored in the server.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGINT, _exit_on_signal)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=directory)
        try:
            # The owner may be gone already, and nobody read this.
            with contextlib.suppress(BrokenPipeError):
                os.write(sys.stdout.fileno(), b"%d\n" % server.pid)
            _watch(server, int(owner))
        finally:
            # A second signal must not cut the clean-up short.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _end(server, float(grace))
            remove_stale_sockets(ports.split(","))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
