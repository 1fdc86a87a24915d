"""torch's async_save with a process of its own (AsyncCheckpointerType.PROCESS) writes to S3 as from a thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict_saver

from s3torch import S3ClientConfig
from s3torch.dcp import S3HuggingFaceStorageReader, S3HuggingFaceStorageWriter, S3StorageReader, S3StorageWriter

pytestmark = [
    pytest.mark.usefixtures("s3"),
    pytest.mark.skipif(not hasattr(state_dict_saver, "AsyncCheckpointerType"), reason="this torch has threads alone"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of torch, which never ends its process
]


@pytest.fixture
def _group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    from torch.distributed.checkpoint import _async_process_executor as executor

    if executor._CHECKPOINT_PROCESS is not None:
        process = executor._CHECKPOINT_PROCESS._save_process
        process.kill()
        process.join(60)
        executor._CHECKPOINT_PROCESS = None


@pytest.mark.usefixtures("_group")
def test_a_process_saves(bucket: str, prefix: str):
    """A state that changes after the call is stored as it was, by another process, by both writers."""
    config = S3ClientConfig(hedging=False)
    kind: Any = state_dict_saver.AsyncCheckpointerType.PROCESS
    for name, writer_of, reader_of in (
        ("dcp", S3StorageWriter, S3StorageReader),
        ("model", S3HuggingFaceStorageWriter, S3HuggingFaceStorageReader),
    ):
        path = f"s3://{bucket}/{prefix}{name}"
        state = {"weight": torch.arange(300_000.0), "half": torch.ones(7, dtype=torch.bfloat16)}
        writer = writer_of(None, path, s3client_config=config)
        future = dcp.async_save(state, storage_writer=writer, async_checkpointer_type=kind)
        state["weight"].zero_()
        future.result(120)
        loaded = {"weight": torch.zeros(300_000), "half": torch.zeros(7, dtype=torch.bfloat16)}
        dcp.load(loaded, storage_reader=reader_of(None, path))
        assert torch.equal(loaded["weight"], torch.arange(300_000.0))
        assert loaded["half"].tolist() == [1.0] * 7
        client = (writer.fs if hasattr(writer, "fs") else writer).client
        assert client.stats.bytes_sent < 100_000, os.getpid()  # it was another process
