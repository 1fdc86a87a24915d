"""Whole files that are received into memory of which the library makes tensors, and memory that serves again."""

from __future__ import annotations

import gc
import io
import mmap
import os
import threading
from pathlib import Path

import pytest
import torch
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
from torch_checkpointing.storage.torch_serialization import load_torch_serialized_from_storage

from s3torch.checkpoint.torch_checkpointing.fill import KeptMemory
from s3torch.errors import AccessDeniedError, ObjectNotFoundError
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.objects import operation_of
from s3torch.torch_checkpointing import S3StorageConfig, native_fill
from tests.conftest import MiB

needs_madvise = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="memory cannot be left to the system")


def _archive(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@needs_madvise
def test_memory_serves_again():
    """Memory that nobody refers to any more is given out again, and no other."""
    memory = KeptMemory(10 * MiB)
    window, view = memory.take(2 * MiB)
    view[:] = bytes(range(256)) * (8 * 1024)
    address = torch.frombuffer(window, dtype=torch.uint8).data_ptr()
    held = torch.frombuffer(window, dtype=torch.uint8)[5:10]
    view.release()
    del window
    assert memory.kept == 0
    assert held.tolist() == [5, 6, 7, 8, 9]
    del held
    assert memory.kept == 2 * MiB
    window, view = memory.take(MiB + 1)
    assert torch.frombuffer(window, dtype=torch.uint8).data_ptr() == address
    assert (len(window), len(view), memory.kept) == (MiB + 1, MiB + 1, 0)


@needs_madvise
def test_what_is_kept_is_bounded():
    """No more is kept than the limit, and no small file is given the memory of a large one."""
    memory = KeptMemory(5 * MiB)
    windows = [memory.take(size) for size in (MiB, 2 * MiB, 4 * MiB)]
    while windows:
        windows.pop()
    assert memory.kept == 5 * MiB  # the second would have been too much
    assert len(memory.take(1000)[0]) == 1000
    assert memory.kept == 5 * MiB
    nothing = KeptMemory(0)
    nothing.take(1000)
    assert nothing.kept == 0


def test_memory_that_is_held():
    """Memory that the system may not take is as it was left."""
    memory = KeptMemory(MiB, is_reclaimable=False)
    window, view = memory.take(1000)
    view[:] = bytes([7]) * 1000
    view.release()
    del window
    assert bytes(memory.take(1000)[1]) == bytes([7]) * 1000


def test_the_memory_reads_like_a_file():
    """What the reader of archives asks of a file is answered as by io.BytesIO."""
    content = os.urandom(1000)
    window, view = KeptMemory(0).take(1000)
    view[:] = content
    file = io.BytesIO(content)
    for step in [
        lambda file: file.seek(990),
        lambda file: file.read(5),
        lambda file: file.tell(),
        lambda file: file.read(50),
        lambda file: file.read(),
        lambda file: file.seek(-10, io.SEEK_END),
        lambda file: file.read(-1),
        lambda file: file.seek(3),
        lambda file: file.seek(4, io.SEEK_CUR),
        lambda file: file.read(0),
        lambda file: file.read(2),
    ]:
        assert step(window) == step(file)


def test_threads_share_the_memory():
    """Two threads never have the same memory at the same time."""
    memory = KeptMemory(100 * MiB)
    wrong = []

    def work(number: int) -> None:
        for _ in range(200):
            window, view = memory.take(64 * 1024)
            view[:] = bytes([number]) * len(view)
            tensor = torch.frombuffer(window, dtype=torch.uint8)
            del window, view
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_is_filled_by_one_read(tmp_path):
    """The fill receives the file in parts that are under way together, and the tensors are what they are locally."""
    state = {"large": torch.arange(5 * MiB, dtype=torch.int32), "small": [torch.ones(3), "x"]}
    content = _archive(state)
    (tmp_path / "file").write_bytes(content)
    local = LocalFileSystemStorageConfig().create_storage()
    expected = load_torch_serialized_from_storage(tmp_path / "file", local)
    with FaultyServer({"file": content}) as server:
        storage = S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config).create_storage()
        path = Path("s3://bucket/file")
        loaded = load_torch_serialized_from_storage(path, storage, mmap_fill=native_fill(storage))
        assert torch.equal(loaded["large"], expected["large"])
        assert torch.equal(loaded["small"][0], expected["small"][0])
        kinds = [operation_of(request) for request in server.requests]
        assert kinds.count("HeadObject") == 1
        assert kinds.count("GetObject") > 1
        begin = len(server.requests)
        again = load_torch_serialized_from_storage(path, storage)  # without the fill: one read all the same
        assert torch.equal(again["large"], expected["large"])
        assert len(server.requests) - begin <= len(kinds)


def test_no_fill_for_other_storages():
    """Storages of others are filled by the library."""
    assert native_fill(LocalFileSystemStorageConfig().create_storage()) is None


def test_a_fill_that_fails():
    """An error is raised as it is, and the memory is free."""
    with FaultyServer({"file": bytes(MiB)}) as server:
        storage = S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config).create_storage()
        with pytest.raises(ObjectNotFoundError, match="s3://bucket/none"):
            storage.mmap_fill(5, "s3://bucket/none", 1, 1)
        server.script(faults.on("GetObject", fault=faults.status(403, "AccessDenied")))
        gc.disable()
        try:
            with pytest.raises(AccessDeniedError) as error:
                storage.mmap_fill(MiB, "s3://bucket/file", 1, 1)
            assert storage._memory.kept == (MiB if storage._memory.limit else 0)
        finally:
            gc.enable()
        del error


def test_the_bar(capsys):
    """The bar is shown where it was asked for."""
    with FaultyServer({"file": bytes(MiB)}) as server:
        for progress in (True, False):
            storage = S3StorageConfig(
                endpoint=server.endpoint, s3client_config=server.config, progress=progress
            ).create_storage()
            storage.mmap_fill(MiB, "s3://bucket/file", 1, 1)
        assert capsys.readouterr().err == ""  # it took less than a second


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork(server, s3, bucket, prefix):
    """A storage that was used goes on in a child, with connections of its own."""
    storage = S3StorageConfig().create_storage()
    path = f"s3://{bucket}/{prefix}file"
    storage.write(path, b"content")
    assert storage.read(path) == b"content"
    child = os.fork()
    if not child:
        try:
            os._exit(0 if storage.read(path) == bytes(storage.mmap_fill(7, path, 1, 1)) == b"content" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage.read(path) == b"content"
