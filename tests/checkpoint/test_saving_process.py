"""S3Checkpoint.save_async with a process that saves: what a thread would store, or an error."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from s3torch import S3Checkpoint
from s3torch.checkpoint import UploadStats, saving_process
from s3torch.checkpoint.outline import Outline
from s3torch.errors import AccessDeniedError, ArgumentError, S3Error
from s3torch.testing import FaultyServer, faults
from tests.checkpoint.test_outline import without_id

MiB = 1024 * 1024


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


def _state() -> dict[str, Any]:
    shared = torch.arange(300_000.0)
    return {
        "model": nn.Linear(300, 300).state_dict(),
        "views": [shared[:10], shared[5:], shared.view(3, -1).t()],
        "half": torch.ones(7, 5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "large": torch.arange(3 * MiB, dtype=torch.int32),
        "step": 5,
    }


@pytest.mark.usefixtures("s3")
def test_it_is_what_save_stores(uri: str, client, bucket, key):
    """The file is that of ``save`` at the time of the call, whatever changes then; the statistics are told here."""
    checkpoint, told = S3Checkpoint(), []
    state = _state()
    checkpoint.save(state, f"{uri}-same")
    here = threading.get_ident(), os.getpid()
    callers: list[tuple[int, int]] = []

    def note(stats: UploadStats) -> None:
        told.append(stats)
        callers.append((threading.get_ident(), os.getpid()))

    future = checkpoint.save_async(state, uri, executor="process", on_upload=note)
    for tensor in (state["large"], state["views"][1], state["model"]["weight"]):
        tensor.zero_()
    state["step"] = 6
    assert future.result(120) is None
    content, expected = client.read_range(bucket, key, 0), client.read_range(bucket, f"{key}-same", 0)
    assert content == expected
    assert [(each.bucket, each.key, each.size) for each in told] == [(bucket, key, len(content))]
    assert callers[0][1] == here[1]
    assert callers[0][0] != here[0]
    loaded = checkpoint.load(uri)
    assert torch.equal(loaded["large"], torch.arange(3 * MiB, dtype=torch.int32))
    assert loaded["views"][0].untyped_storage().data_ptr() == loaded["views"][2].untyped_storage().data_ptr()


@pytest.mark.usefixtures("s3")
def test_the_memory_serves_again(uri: str):
    """The next call waits for the one before, and uses its memory again; smaller and larger states come right."""
    checkpoint = S3Checkpoint()
    futures = [
        checkpoint.save_async({"a": torch.full((size,), float(size))}, f"{uri}-{size}", executor="process")
        for size in (1000, 10, 100_000)
    ]
    assert [future.done() for future in futures] == [True, True, False]
    for future, size in zip(futures, (1000, 10, 100_000), strict=True):
        future.result(120)
        assert checkpoint.load(f"{uri}-{size}")["a"].tolist() == [size] * size


@pytest.mark.usefixtures("s3")
def test_two_at_once(uri: str):
    """Two objects save at the same time, and a thread beside a process."""
    futures = [
        S3Checkpoint().save_async({"a": torch.full((1000,), number)}, f"{uri}-{number}", executor=executor)
        for number, executor in enumerate(("process", "process", "thread"))
    ]
    for number, future in enumerate(futures):
        future.result(120)
        assert S3Checkpoint().load(f"{uri}-{number}")["a"].unique().tolist() == [number]


def _checkpoint(server: FaultyServer, **options: Any) -> S3Checkpoint:
    config = replace(server.config, **options)
    return S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=config)


def test_an_error_there_is_one_here():
    """What the save raises in the process comes out of the future, by its class."""
    with FaultyServer() as server:
        server.script(faults.status(403, "AccessDenied"))
        with pytest.raises(AccessDeniedError) as caught:
            _checkpoint(server).save_async({"a": 1}, "s3://bucket/key", executor="process").result(120)
        assert caught.value.key == "key"
        assert not server.objects


@pytest.mark.parametrize("how", ["before it begins", "in the middle"])
def test_a_process_that_is_killed(how: str, monkeypatch: pytest.MonkeyPatch):
    """A process that is killed is an error that says so, nothing is stored, and the next save goes on."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    arrived = threading.Event()

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        if how == "before it begins":
            started[-1].send_signal(signal.SIGKILL)
        return started[-1]

    def hang(exchange: Any) -> None:
        arrived.set()
        started[-1].send_signal(signal.SIGKILL)
        started[-1].wait(60)

    with FaultyServer() as server:
        server.objects["key"] = b"before"
        if how == "in the middle":
            server.script(faults.on("CompleteMultipartUpload", fault=faults.Fault("kill", hang)))
        checkpoint = _checkpoint(server, part_size=5 * MiB)
        with monkeypatch.context() as patch:
            patch.setattr(saving_process.subprocess, "Popen", noted)
            future = checkpoint.save_async(
                {"a": torch.zeros(6 * MiB, dtype=torch.uint8)}, "s3://bucket/key", executor="process"
            )
            with pytest.raises(S3Error, match="was killed by SIGKILL"):
                future.result(120)
        assert arrived.is_set() == (how == "in the middle")
        assert server.objects["key"] == b"before"
        checkpoint.save_async({"a": 1}, "s3://bucket/key", executor="process").result(120)
        assert checkpoint.load("s3://bucket/key") == {"a": 1}


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch):
    """Where no process can be started it is an error of the future."""
    with FaultyServer() as server:
        for executable, error in (("/nowhere/python", S3Error), ("", ArgumentError)):
            monkeypatch.setattr(sys, "executable", executable)
            with pytest.raises(error):
                _checkpoint(server).save_async({"a": 1}, "s3://bucket/key", executor="process").result(120)


def test_arguments():
    """Another executor is refused, and what cannot be pickled is an error of the future."""
    with FaultyServer() as server:
        checkpoint = _checkpoint(server)
        with pytest.raises(ArgumentError, match="executor='fork'"):
            checkpoint.save_async({}, "s3://bucket/key", executor="fork")  # type: ignore[arg-type]
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            checkpoint.save_async({"a": lambda: 1}, "s3://bucket/key", executor="process").result(120)


@pytest.mark.parametrize("has_outline", [True, False])
def test_without_an_outline(has_outline: bool, monkeypatch: pytest.MonkeyPatch):
    """Where torch has no outlines it holds as well, and of a state without a tensor."""
    if not has_outline:
        monkeypatch.setattr(Outline, "of", lambda _: None)
    with FaultyServer() as server:
        checkpoint = _checkpoint(server)
        state = {"step": 5} if has_outline else {"a": torch.arange(1000), "step": 5}
        checkpoint.save_async(state, "s3://bucket/key", executor="process").result(120)
        checkpoint.save(state, "s3://bucket/same")
        assert without_id(server.objects["key"]) == without_id(server.objects["same"])


def test_no_secrets(monkeypatch: pytest.MonkeyPatch):
    """What is handed over has no credentials, which the process finds by itself, and its command line has nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    handed: list[bytes] = []
    commands: list[str] = []
    write, start = saving_process._write, subprocess.Popen
    monkeypatch.setattr(
        saving_process, "_write", lambda file, content, begin: handed.append(content) or write(file, content, begin)
    )
    monkeypatch.setattr(
        saving_process.subprocess,
        "Popen",
        lambda *args, **options: commands.append(str(args)) or start(*args, **options),
    )
    with FaultyServer() as server:
        server.objects["other"] = b""
        checkpoint = _checkpoint(server, unsigned=False)
        checkpoint.save({"a": 1}, "s3://bucket/other")  # the credentials are known here now
        checkpoint.save_async({"a": 1}, "s3://bucket/key", executor="process").result(120)
        signed = [request.headers.get("authorization", "") for request in server.requests]
    assert handed
    assert commands
    assert not any(b"the-secret-key" in content or b"the-access-key" in content for content in handed)
    assert not any("the-secret-key" in command or "the-access-key" in command for command in commands)
    assert "the-access-key" in signed[-1]


def test_a_forked_child_has_memory_of_its_own():
    """Memory that a fork has copied is the parent's, which may be saving it."""
    staging = saving_process.SharedStaging()
    memory = staging._room(1000)
    assert staging._room(10) is memory
    memory.pid += 1
    assert staging._room(10) is not memory
