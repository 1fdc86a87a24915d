"""A snapshot that another process saves: the interpreter of the one that trains has nothing to do with it.

The state is copied into memory that both processes map, a file without a name. What else the other process must know
lies behind that in the same file: the pickle of the region, the endpoint and the configuration as they were given, and
of the outline. Credentials are not among them: the process finds its own, in the environment that it inherits. When it
has ended, what it has to say lies behind that. So nobody waits for the end of a pipe, which a forked worker might keep
open: that the process has ended is told by the system, and one that was killed has said nothing.

The process is a new interpreter, which imports nothing of the program: neither its module ``__main__``, as those of
multiprocessing do, nor its classes, which are pickled already. It sees no GPU, and is in a session of its own, so that
Ctrl-C in a terminal ends it as little as a thread. One whose parent is killed goes on to the end of the save.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from s3torch.checkpoint.outline import Outline, torch_save
from s3torch.checkpoint.saving import save_object
from s3torch.checkpoint.staging import Snapshot, copy_bytes
from s3torch.checkpoint.uploads import UploadStats
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentError, S3Error
from s3torch.uri import parse_checkpoint_uri

__all__ = ["SharedSnapshot", "SharedStaging", "main", "save_in_process"]

_ALIGNMENT = 64  # of a storage, in bytes: that of torch's own
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from s3torch.checkpoint.saving_process import main; main(*map(int, sys.argv[2:]))"
)


class _Memory:
    """Memory without a name that another process can map, by the number of its file.

    Args:
        size: In bytes.

    Attributes:
        file: Its number in this process.
        pid: Of this process: what a fork has copied is another's.
        size: As given.
    """

    def __init__(self, size: int) -> None:
        self.pid = os.getpid()
        self.size = size
        self.file = _new_file()
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file, 0, size)  # an error here, and no signal when the memory is written
        else:
            os.ftruncate(self.file, size)
        self.bytes = mmap.mmap(self.file, size) if size else None

    def __del__(self) -> None:
        file, self.file = getattr(self, "file", -1), -1
        if file >= 0:
            os.close(file)


class SharedSnapshot(NamedTuple):
    """The file that torch.save would have written of a state, for another process.

    Attributes:
        memory: Has the storages, each at the next aligned place.
        pieces: Of the file: bytes, and the sizes of storages.
        keys: Of the storages; None if the file is the pieces.
    """

    memory: _Memory
    pieces: list[bytes | int]
    keys: list[bytes] | None


class SharedStaging:
    """Makes snapshots in memory that another process can map, always in the same as long as the state is no larger."""

    def __init__(self) -> None:
        self._memory: _Memory | None = None

    def copy(self, state: object) -> SharedSnapshot:
        """Return a snapshot of what can be saved. It is valid until the next one.

        Raises:
            OSError: There is not so much memory.
        """
        outline = Outline.of(state)
        if outline is None:
            file: Any = io.BytesIO()  # torch's types name another class
            torch_save(state, file)
            return SharedSnapshot(self._room(0), [file.getvalue()], None)
        pieces, keys = outline.without_storages()
        places, size = _places(pieces)
        memory = self._room(size)
        copies = [
            (storage, _storage(memory.bytes, *place)) for storage, place in zip(outline.storages, places, strict=True)
        ]
        copy_bytes(copies)
        return SharedSnapshot(memory, pieces, keys)

    def _room(self, size: int) -> _Memory:
        kept = self._memory
        if kept is None or kept.size < size or kept.pid != os.getpid():
            self._memory = None  # first: there may be no room for both
            del kept
            self._memory = kept = _Memory(size)
        return kept


class _Job(NamedTuple):
    """What the other process must know."""

    region: str | None
    endpoint: str | None
    config: S3ClientConfig
    uri: str
    pieces: list[bytes | int]
    keys: list[bytes] | None


def save_in_process(
    region: str | None, endpoint: str | None, config: S3ClientConfig, snapshot: SharedSnapshot, uri: str
) -> UploadStats:
    """Save a snapshot in another process, and wait for that.

    Args:
        region: Of S3Checkpoint, like the others.
        endpoint: URL of the server; None finds it.
        config: See S3ClientConfig.
        snapshot: Which must not change meanwhile.
        uri: Where.

    Returns:
        What it took.

    Raises:
        S3Error: The process was killed, or could not be started. Nothing is stored, or all of it.
        Exception: What the save has raised there.
    """
    memory = snapshot.memory
    job = pickle.dumps(_Job(region, endpoint, config, uri, snapshot.pieces, snapshot.keys))
    end = memory.size + len(job)
    os.ftruncate(memory.file, memory.size)  # what an earlier job has left is gone
    _write(memory.file, job, memory.size)
    numbers = [str(number) for number in (memory.file, memory.size, end)]
    try:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter
            [_executable(), "-c", _COMMAND, json.dumps(sys.path), *numbers],
            stdin=subprocess.DEVNULL,
            pass_fds=[memory.file],
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    except OSError as error:
        raise S3Error(f"No process could be started that saves {uri}: {error}") from error
    status = process.wait()
    said = _read(memory.file, end, os.fstat(memory.file).st_size)
    if status or not said:
        raise S3Error(
            f"The process that was to save {uri} {_end_of(status)}. Nothing is stored, or all of it: look for it."
        )
    stored: UploadStats | None
    failure: BaseException | None
    stored, failure = pickle.loads(said)  # noqa: S301  # of our own process
    if stored is None:
        raise failure or AssertionError("a save that has neither succeeded nor failed")
    return stored


def main(file: int, size: int, end: int) -> None:
    """Be the process.

    Args:
        file: The number of the memory's file.
        size: Bytes of the storages in there.
        end: Where the job ends that lies behind them.
    """
    try:
        said: tuple[UploadStats | None, BaseException | None] = (_save(file, size, end), None)
    except BaseException as error:  # noqa: BLE001  # it is the other process's
        said = None, error
    _write(file, _pickled(said), end)


def _save(file: int, size: int, end: int) -> UploadStats:
    job: _Job = pickle.loads(_read(file, size, end))  # noqa: S301  # of our parent
    content: Outline | bytes
    if job.keys is None:
        content = b"".join(piece for piece in job.pieces if isinstance(piece, bytes))
    else:
        memory = mmap.mmap(file, size) if size else None
        places, _ = _places(job.pieces)
        content = Outline.of_pieces(job.pieces, job.keys, [_storage(memory, *place) for place in places])
    told: list[UploadStats] = []
    client = S3Client(job.region, endpoint=job.endpoint, s3client_config=job.config)
    bucket, key = parse_checkpoint_uri(job.uri)
    save_object(
        client,
        lambda: client.put_object(bucket, key),
        Snapshot(content),
        f"Saving {job.uri}",
        progress=False,
        on_upload=told.append,
    )
    client.close()
    return told[0]


def _pickled(said: tuple[UploadStats | None, BaseException | None]) -> bytes:
    """Return what the process has to say; of an error that does not survive that, its name and text."""
    with contextlib.suppress(Exception):
        content = pickle.dumps(said)
        pickle.loads(content)  # noqa: S301  # of this process
        return content
    _, error = said
    return pickle.dumps((None, S3Error(f"{type(error).__name__}: {error}")))


def _places(pieces: Sequence[bytes | int]) -> tuple[list[tuple[int, int]], int]:
    """Return where each storage begins and how large it is, and the size of the memory."""
    places, begin = [], 0
    for piece in pieces:
        if isinstance(piece, int):
            places.append((begin, piece))
            begin += -(-piece // _ALIGNMENT) * _ALIGNMENT
    return places, begin


def _storage(memory: mmap.mmap | None, begin: int, size: int) -> torch.UntypedStorage:
    if memory is None:
        raise AssertionError("a storage without memory")
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=begin).untyped_storage()


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("s3torch checkpoint")  # not bounded by the size of /dev/shm
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _executable() -> str:
    if not sys.executable:
        raise ArgumentError("executor='process' needs the path of an interpreter, and sys.executable has none.")
    return sys.executable


def _write(file: int, content: bytes, begin: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, begin)
        view, begin = view[count:], begin + count


def _read(file: int, begin: int, end: int) -> bytes:
    found = bytearray()
    while begin < end:
        piece = os.pread(file, end - begin, begin)
        if not piece:
            break
        found += piece
        begin += len(piece)
    return bytes(found)


def _end_of(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else "ended without a word"
