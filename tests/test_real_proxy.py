"""A real proxy, tinyproxy, between a client and a server, where it is installed; and what it answers, anywhere."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch.errors import AccessDeniedError, ProxyRefusedError, S3Error
from s3torch.testing import FaultyServer
from s3torch.testing.faulty.listener import ScriptedServer
from tests.servers.processes import free_ports

CONTENT = bytes(range(256)) * 30_000
PART = 5 * 1024**2
_PATIENCE = 20.0  # seconds, for it to start

needs_it = pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="tinyproxy is not installed")


@contextlib.contextmanager
def tinyproxy(directory: Path, *lines: str) -> Iterator[tuple[str, Path]]:
    """Run it with some lines of configuration; yields its address and its log."""
    [port], log = free_ports(1), directory / "tinyproxy.log"
    settings = [
        f"Port {port}",
        "Listen 127.0.0.1",
        "Allow 127.0.0.1",
        "Timeout 20",
        f'LogFile "{log}"',
        "LogLevel Info",
        *lines,
    ]
    config = directory / "tinyproxy.conf"
    config.write_text("\n".join(settings) + "\n")
    process = subprocess.Popen(["tinyproxy", "-d", "-c", str(config)], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _PATIENCE
        while not (log.exists() and "Accepting connections" in log.read_text()):
            assert process.poll() is None, "it has not started"
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.02)
        yield f"127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def use(client: S3Client) -> None:
    """Write, read, list, copy and delete, with several requests at a time."""
    with client.put_object("bucket", "key") as writer:
        writer.write(CONTENT)
    assert client.read_range("bucket", "key", 0) == CONTENT
    ranges = [(start, start + 1000) for start in range(0, 100_000, 2000)]
    assert client.read_ranges("bucket", "key", ranges, max_gap=0) == [CONTENT[start:stop] for start, stop in ranges]
    client.copy_object("bucket", "key", "bucket", "copy")
    assert [info.key for page in client.list_objects("bucket") for info in page.object_info] == ["copy", "key"]
    assert client.head_object("bucket", "copy").size == len(CONTENT)
    client.delete_object("bucket", "copy")


@needs_it
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("user", ["", "user:secret@"], ids=["open", "with a password"])
def test_a_real_proxy(tmp_path: Path, is_tls: bool, user: str):
    """All requests go through it, in absolute form or by CONNECT, with a password where it wants one."""
    lines = ["BasicAuth user secret"] if user else []
    with FaultyServer(tls=is_tls) as server, tinyproxy(tmp_path, *lines) as (address, log):
        scheme = "https" if is_tls else "http"
        config = replace(server.config, proxies={scheme: f"http://{user}{address}"}, part_size=PART)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        use(client)
        client.close()
        text = log.read_text()
        assert (": CONNECT " in text) == is_tls
        assert server.requests


@needs_it
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
def test_a_real_proxy_refuses(tmp_path: Path, is_tls: bool):
    """A password that it does not know is an error of the proxy, and nothing reaches the server."""
    with FaultyServer(tls=is_tls) as server, tinyproxy(tmp_path, "BasicAuth user secret") as (address, _):
        scheme = "https" if is_tls else "http"
        config = replace(server.config, proxies={scheme: f"http://user:wrong@{address}"})
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        with pytest.raises(S3Error) as caught:
            client.read_range("bucket", "key", 0)
        assert isinstance(caught.value, ProxyRefusedError), caught.value
        assert not isinstance(caught.value, AccessDeniedError)
        assert "wrong" not in str(caught.value)
        assert not server.requests
        client.close()


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_refusal_of_a_proxy(status: int):
    """What a proxy answers by itself is no refusal of S3's; tinyproxy asks for a password by 401."""
    page = b"<html><head><title>Unauthorized</title></head></html>"
    with ScriptedServer(lambda _, wire: wire.respond(status, {"Content-Type": "text/html"}, page)) as proxy:
        config = S3ClientConfig(unsigned=True, max_attempts=1, proxies={"http": proxy.endpoint})
        client = S3Client("us-east-1", endpoint="http://127.0.0.1:9", s3client_config=config)
        with pytest.raises(ProxyRefusedError, match=f"status {status}"):
            client.read_range("bucket", "key", 0)
        client.close()
