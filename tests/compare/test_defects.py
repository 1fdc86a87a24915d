"""What s3torchconnector 1.5 gets wrong, each as a test that it fails and s3torch passes.

In the suite these run against s3torch. ``make compare`` runs them against s3torchconnector too, in the environment of
the benchmarks; that run is green if each fails there, and for the reason that its mark names.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.objects import checksum_fields
from tests.compare.connectors import (
    IS_OTHER,
    Error,
    checkpoint,
    close_all,
    fails_elsewhere,
    map_dataset,
    range_based,
    read_ranges,
)
from tests.support.server import Request, ScriptedServer, Wire

MiB = 1024 * 1024
PATIENCE = 60.0  # seconds for what must happen
URI = "s3://bucket/key"
CONTENT = b"0123456789" * 100


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A server with one object, in which each test finds and changes what it likes."""
    with FaultyServer({"key": CONTENT}) as server:
        yield server


@pytest.fixture(autouse=True)
def no_connection_is_left() -> Iterator[None]:
    """What the test has opened is closed behind it."""
    yield
    close_all()


def content(reader: Any) -> bytes:
    """Read the object of a sample."""
    found: bytes = reader.read()
    return found


# D2: half a checkpoint is published


class _JobError(Exception):
    pass


@fails_elsewhere("the half that was written replaces the checkpoint", AssertionError, "b'half' == b'whole'")
def test_exception_leaves_the_checkpoint(faulty: FaultyServer):
    """An exception while a checkpoint is written leaves the one that was there, and no upload."""
    faulty.objects["key"] = b"whole"
    with contextlib.suppress(_JobError), checkpoint(faulty.endpoint).writer(URI) as writer:
        writer.write(b"half")
        raise _JobError
    del writer
    gc.collect()
    assert faulty.objects["key"] == b"whole"
    assert not faulty.objects.uploads


@fails_elsewhere("what was written replaces the checkpoint", AssertionError, "b'half' == b'whole'")
@pytest.mark.filterwarnings("ignore:.*never closed:ResourceWarning")
def test_abandoned_writer_leaves_the_checkpoint(faulty: FaultyServer):
    """A writer that is collected without having been closed leaves the checkpoint that was there."""
    faulty.objects["key"] = b"whole"
    writer = checkpoint(faulty.endpoint).writer(URI)
    writer.write(b"half")
    del writer
    gc.collect()
    assert faulty.objects["key"] == b"whole"


# D3: a size that is no longer true


@pytest.mark.parametrize("buffer_size", [0, 8 * MiB])
@fails_elsewhere("the missing bytes are returned as zeros", AssertionError, r"does not hold.*\\x00\\x00")
def test_object_shrinks(faulty: FaultyServer, buffer_size: int):
    """An object that was replaced by a smaller one since it was listed is an error, or read as it is now."""
    _read_of_another_size(faulty, b"0123456789", buffer_size)


@pytest.mark.parametrize("buffer_size", [0, 8 * MiB])
@fails_elsewhere("the new object is cut off at the old size", AssertionError, "does not hold")
def test_object_grows(faulty: FaultyServer, buffer_size: int):
    """An object that was replaced by a larger one since it was listed is an error, or read as it is now."""
    _read_of_another_size(faulty, CONTENT * 2, buffer_size)


def _read_of_another_size(server: FaultyServer, now: bytes, buffer_size: int) -> None:
    server.objects["listed/key"] = CONTENT
    dataset = map_dataset(server.endpoint, ["s3://bucket/listed/"], content, range_based(buffer_size))
    assert len(dataset) == 1  # has listed it
    server.objects["listed/key"] = now
    try:
        found = dataset[0]
    except Error:
        return
    assert found == now, f"the object does not hold {found!r}"


# D5: loading parts of a checkpoint. s3torch reads them by read_ranges, s3torchconnector by its reader for DCP.


@fails_elsewhere("the default reader for DCP refuses them", ValueError, "[Oo]verlapping")
@pytest.mark.parametrize("ranges", [[(0, 100), (0, 100)], [(0, 100), (50, 150)]], ids=["the same", "overlapping"])
def test_ranges_overlap(faulty: FaultyServer, ranges: list[tuple[int, int]]):
    """Two tensors of a resharded checkpoint may want the same stored bytes."""
    assert read_ranges(faulty.endpoint, "key", ranges) == [CONTENT[start:stop] for start, stop in ranges]


@fails_elsewhere("a range is asked for when the one before has been read", AssertionError, "1 at a time")
def test_ranges_are_concurrent():
    """Ranges that lie apart are asked for together, not one after the other: each costs a round trip."""
    ranges = [(start, start + 100) for start in range(0, 1000, 250)]
    lock, most, waiting = threading.Lock(), 0, 0
    everyone = threading.Event()

    with FaultyServer({"key": CONTENT}) as server:

        def wait_for_others(exchange: Any) -> None:
            nonlocal most, waiting
            with lock:
                waiting += 1
                most = max(most, waiting)
                if waiting == len(ranges):
                    everyone.set()
            everyone.wait(0.3 if IS_OTHER else PATIENCE)
            with lock:
                waiting -= 1
            exchange.send()

        server.script(*[faults.on("GetObject", fault=faults.Fault("wait", wait_for_others))] * len(ranges))
        assert read_ranges(server.endpoint, "key", ranges) == [CONTENT[start:stop] for start, stop in ranges]
    assert most == len(ranges), f"{most} at a time"


# D6: reading a little


class _LargeObject:
    """Serves 200 MiB of zeros that nobody holds, and counts what it has sent."""

    size = 200 * MiB
    limit = 32 * MiB

    def __init__(self) -> None:
        self.sent = 0
        self.is_all = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, request: Request, wire: Wire) -> None:
        start, stop = 0, self.size
        fields = {"ETag": '"e"', "Content-Length": str(self.size)}
        if "range" in request.headers:
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, self.size) if last else self.size
            fields |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{self.size}"}
        wire.respond(206 if "range" in request.headers else 200, fields)
        for left in range(start, stop if request.method == "GET" else start, MiB):
            piece = bytes(min(MiB, stop - left))
            wire.send(piece)
            with self._lock:
                self.sent += len(piece)
                if self.sent == self.size:
                    self.is_all.set()


@fails_elsewhere("all of the object is fetched in the background", AssertionError, "200 MiB of 200 were sent")
def test_small_read_of_a_large_object():
    """Reading 16 bytes of an object of 200 MiB fetches a part or so of it, not all, then or later."""
    large = _LargeObject()
    with ScriptedServer(large) as server:
        reader = checkpoint(server.endpoint).reader(URI)
        assert reader.read(16) == bytes(16)
        large.is_all.wait(PATIENCE if IS_OTHER else 0.3)  # whatever fetches on in the background has the time for it
        assert large.sent <= large.limit, f"{large.sent // MiB} MiB of 200 were sent"
        reader.close()


# D9: integrity. That a byte of a body is another one takes a checksum, and is tested with those.


@fails_elsewhere("the body is not part of what is signed", AssertionError, "UNSIGNED-PAYLOAD")
@pytest.mark.parametrize("size", [0, 1000, 9 * MiB])
def test_upload_signs_its_body(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, size: int):
    """Over plain HTTP a digest or checksum of each body is signed: a byte that changes on the way is refused."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ACCESS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    body = bytes(size)
    with checkpoint(faulty.endpoint, unsigned=False).writer(URI) as writer:
        writer.write(body)
    uploads = [request for request in faulty.requests if request.method == "PUT"]
    assert sum(len(request.body) for request in uploads) == size
    for request in uploads:
        told = request.headers["x-amz-content-sha256"]
        if told == "UNSIGNED-PAYLOAD" and "x-amz-checksum-crc32" in request.headers["authorization"]:
            told, due = request.headers["x-amz-checksum-crc32"], checksum_fields(request.body)["x-amz-checksum-crc32"]
        else:
            due = hashlib.sha256(request.body).hexdigest()
        assert told == due
        assert "x-amz-content-sha256" in request.headers["authorization"]


@fails_elsewhere("other bytes are returned, and one too few", AssertionError, "999 bytes")
def test_answer_of_another_range(faulty: FaultyServer):
    """An answer of other bytes than were asked for, which says so, is an error."""
    faulty.rates({faults.on("GetObject", fault=faults.other_range()): 1})
    try:
        found = checkpoint(faulty.endpoint).reader(URI).read()
    except Error:
        return
    assert found == CONTENT, f"{len(found)} bytes, beginning with {found[:4]!r}, are not the object"


# D12: what a fork does to the parent

FORK = """\
import os, sys
from tests.compare.connectors import checkpoint

def read(key):
    with files.reader(f"s3://bucket/{key}") as reader:
        assert reader.read() == b"content"

def in_child(act):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

files = checkpoint(sys.argv[1])
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def _fork(directory: Path, server: FaultyServer, script: str) -> str:
    """Run a script in a process of its own; return what it says."""
    path = directory / "script.py"
    path.write_text(FORK + script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, str(path), server.endpoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_fork
@fails_elsewhere("its clients and their connections are given up at each fork", AssertionError, "are new")
def test_fork_leaves_the_connections(tmp_path: Path):
    """A fork, as of a DataLoader worker, leaves the parent the connections it had."""
    script = """
read("before")
read("before")
in_child(lambda: read("child"))
read("after")
"""
    with FaultyServer(dict.fromkeys(["before", "child", "after"], b"content")) as server:
        _fork(tmp_path, server, script)
        by_key: dict[str, set[int]] = {}
        for request in server.requests:
            by_key.setdefault(server.objects.key_of(request), set()).add(request.connection)
    assert not by_key["child"] & by_key["before"]
    new = by_key["after"] - by_key["before"]
    assert not new, f"{new} are new"


@needs_fork
@fails_elsewhere("the fork waits for it in vain, and says so", AssertionError, "Failed to properly clean up")
def test_fork_beside_a_reader(tmp_path: Path):
    """A fork beside a reader that is open says nothing; the child reads by it, and so does the parent then."""
    script = """
reader = files.reader("s3://bucket/large")
assert reader.read(4) == b"abcd"

def read_on():
    assert reader.read(4) == b"efgh"

in_child(read_on)
read_on()
"""
    with FaultyServer({"large": b"abcdefgh" * 2 * MiB}) as server:
        assert not _fork(tmp_path, server, script)


# D14: gaps in the io calls


def _closed(reader: Any) -> bytes | None:
    reader.close()
    try:
        found: bytes = reader.read(4)
    except ValueError:
        return None
    return found


def _read_lines(reader: Any) -> list[bytes]:
    return [reader.readline() for _ in range(10)]


def _array(reader: Any) -> bytes:
    array = np.zeros((2, 2), np.int32)
    assert reader.readinto(array) == 16
    return array.tobytes()


def _pickled(reader: Any) -> bytes:
    reader.read(4)
    found: bytes = pickle.loads(pickle.dumps(reader)).read(4)
    return found


LINES = b"".join(b"line %d\n" % number for number in range(100))


def gap(
    name: str, act: Callable[[Any], object], wanted: object, defect: str, failure: type[Exception], match: str
) -> object:
    """Return what a reader is to do, and how the other connector's readers fail."""
    return pytest.param(act, wanted, id=name, marks=fails_elsewhere(defect, failure, match))


@pytest.mark.parametrize("buffer_size", [None, 0], ids=["default", "range-based"])
@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        gap("closed", _closed, None, "it can be read when it is closed", AssertionError, "b'line' == None"),
        gap("read1", lambda file: file.read1(4), b"line", "not there", io.UnsupportedOperation, "read1"),
        gap("readinto1", lambda file: file.readinto1(bytearray(4)), 4, "not there", io.UnsupportedOperation, "read1"),
        gap("readall", lambda file: file.readall(), LINES, "not there", AttributeError, "readall"),
        gap(
            "text",
            lambda file: io.TextIOWrapper(file).readline(),
            "line 0\n",
            "it cannot be read as text",
            io.UnsupportedOperation,
            "read1",
        ),
        gap("size", lambda file: file.read(np.int64(4)), b"line", "only int is taken", TypeError, "numpy.int64"),
        gap("offset", lambda file: file.seek(np.int64(4)), 4, "only int is taken", TypeError, "numpy.int64"),
    ],
)
def test_io_of_readers(faulty: FaultyServer, act: Callable[[Any], object], wanted: object, buffer_size: int | None):
    """Readers do what files of Python's io module do."""
    assert act(_reader(faulty, buffer_size)) == wanted


@fails_elsewhere("only memory of single bytes is filled", (ValueError, NotImplementedError), "memoryview")
def test_readinto_array(faulty: FaultyServer):
    """A range-based reader fills an array of any item type and number of dimensions."""
    assert _array(_reader(faulty, 0)) == LINES[:16]


@fails_elsewhere("a reader that has begun holds what cannot be pickled", TypeError, "pickle")
def test_pickle_reader(faulty: FaultyServer):
    """A reader that has been read from pickles with its position."""
    assert _pickled(_reader(faulty, None)) == LINES[4:8]


@fails_elsewhere("each byte of a line is a request", AssertionError, "requests")
def test_lines_of_a_range_based_reader(faulty: FaultyServer):
    """Ten short lines take a few requests, whatever the reader."""
    reader = _reader(faulty, 0)
    assert _read_lines(reader) == LINES.splitlines(keepends=True)[:10]
    assert len(faulty.requests) <= 3, f"{len(faulty.requests)} requests"


@pytest.mark.parametrize("memory", [bytearray(b"abcd"), np.frombuffer(b"abcd", np.int32)], ids=["bytearray", "array"])
@fails_elsewhere("only bytes and memoryviews are taken", TypeError, "cannot be cast as 'bytes'")
def test_write_memory(faulty: FaultyServer, memory: Any):
    """A writer takes any contiguous memory."""
    writer = checkpoint(faulty.endpoint).writer(URI)
    try:
        assert writer.write(memory) == 4
    finally:
        writer.close()  # one that is left open fails again when Python ends
    assert faulty.objects["key"] == b"abcd"


def _reader(server: FaultyServer, buffer_size: int | None) -> Any:
    server.objects["key"] = LINES
    if buffer_size is None:
        return checkpoint(server.endpoint).reader(URI)
    return map_dataset(server.endpoint, [URI], lambda reader: reader, range_based(buffer_size))[0]


# D15: S3-compatible servers


@pytest.mark.parametrize("name", ["empty", "directory/"])
@fails_elsewhere("it sends a Range that no empty object satisfies", Error, "416|Content-Range|CONTENT_RANGE")
@pytest.mark.usefixtures("s3")
def test_empty_object(server: Any, bucket: str, prefix: str, put: Callable[[str, bytes], None], name: str):
    """An object of 0 bytes, and the marker of a directory, are read as b"" from a server that is not Amazon S3."""
    put(prefix + name, b"")
    reader = checkpoint(server.endpoint, unsigned=False).reader(f"s3://{bucket}/{prefix}{name}")
    assert reader.read() == b""
