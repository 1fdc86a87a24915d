"""Processes of a server: on loopback, in a directory of their own, ended by their ids."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from typing_extensions import Self

__all__ = ["Processes", "ServerError", "free_ports"]

# Below what systems give to outgoing connections, and beside what `LocalS3` takes.
_PORTS = range(23_000, 29_900)
_POLL = 0.05  # seconds
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LOG_TAIL = 3000  # bytes of a log that an error shows


class ServerError(RuntimeError):
    """A server cannot be had here, or does not start."""


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nothing listens on."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"{count} free ports are wanted, and there are {len(found)}")


class Processes:
    """What a server is made of; all of it ends with the `with` block.

    Attributes:
        directory: Theirs; removed in the end.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="s3torch-server-")
        self.directory = Path(self._temporary.name)
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _, process in reversed(self._started):
            process.terminate()
        for _, process in reversed(self._started):
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._temporary.cleanup()

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Starts a process, whose output goes into a file of its name."""
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**_plain_environment(), "HOME": str(self.directory), **(environment or {})},
            )
        self._started.append((name, process))

    def run(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None, stdin: str = "") -> str:
        """Runs a command to its end; returns what it prints.

        Raises:
            ServerError: It fails.
        """
        done = subprocess.run(
            list(map(str, command)),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.directory,
            env={**_plain_environment(), "HOME": str(self.directory), **(environment or {})},
            check=False,
        )
        if done.returncode:
            raise ServerError(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-_LOG_TAIL:]}")
        return done.stdout

    def wait_until(self, is_ready: Callable[[], bool], seconds: float = 60.0) -> None:
        """Waits until something holds.

        Raises:
            ServerError: A process ends before, or it takes too long.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            ended = [name for name, process in self._started if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(
                    f"{path.name}: {path.read_bytes()[-_LOG_TAIL:].decode(errors='replace')}"
                    for path in sorted(self.directory.glob("*.log"))
                )
                what = f"{ended} ended" if ended else f"it was not ready in {seconds:.0f} s"
                raise ServerError(f"The server did not start: {what}.\n{logs}")
            time.sleep(_POLL)

    def wait_for_http(self, url: str, seconds: float = 60.0) -> None:
        """Waits until a URL is answered, by whatever status."""

        def is_answered() -> bool:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        self.wait_until(is_answered, seconds)


def _plain_environment() -> dict[str, str]:
    """Returns the environment without what a server could take for its configuration."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "CEPH_", "PYTHON"))}
