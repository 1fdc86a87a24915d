"""S3Writer: an object that appears whole, or not at all."""

from __future__ import annotations

import array
import gc
import io
import pickle
import random
import tarfile
import threading
import time
import tracemalloc
import weakref
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from s3torch import S3Client, S3ClientConfig, S3Writer
from s3torch._aws.multipart import CreateMultipartUpload
from s3torch._aws.object_options import ObjectOptions
from s3torch._objects.novelty import check_is_new
from s3torch._objects.upload import MultipartUpload, PartBuffer
from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    ConcurrentUseError,
    CredentialsError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestError,
)
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.objects import Objects
from tests.support.server import Request, ScriptedServer, Wire, fail

MiB = 1024 * 1024
_PART = 5 * MiB
CONTENT = random.Random(1).randbytes(3 * _PART + 1)


@pytest.fixture
def open_uploads(boto, bucket, prefix):
    """Returns the keys of this test's uploads that were neither completed nor aborted."""

    def open_uploads() -> list[str]:
        uploads = boto.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix)]

    return open_uploads


def _keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    return [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info]


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, 0),
        (1, 0),
        (_PART - 1, 0),
        (_PART, 0),
        (_PART + 1, 2),
        (2 * _PART, 2),
        (3 * _PART - 1, 3),
        (3 * _PART + 1, 4),
    ],
)
@pytest.mark.parametrize("step", [3 * _PART + 1, MiB + 7])
def test_sizes(small_parts, boto, bucket, key, open_uploads, size, parts, step):
    """Up to a part's size an object is one PUT, beyond that as few parts as it takes, however it is written."""
    before = small_parts.stats.requests
    with small_parts.put_object(bucket, key) as writer:
        for start in range(0, size, step):
            piece = CONTENT[start : min(start + step, size)]
            assert writer.write(piece) == len(piece)
        assert writer.tell() == size
    assert small_parts.stats.requests - before == (parts + 2 if parts else 1)
    found = boto.get_object(Bucket=bucket, Key=key)
    assert found["Body"].read() == CONTENT[:size]
    assert found["ETag"].strip('"').partition("-")[2] == (str(parts) if parts else "")
    assert open_uploads() == []


@pytest.mark.parametrize("size", [0, 1, _PART, _PART + 1, 3 * _PART + 1])
def test_a_size_that_is_known(small_parts, bucket, key, size):
    """An object whose size is told is stored as any other."""
    with small_parts.put_object(bucket, key, size=np.int64(size)) as writer:
        writer.write(CONTENT[:size])
    assert small_parts.read_range(bucket, key, 0) == CONTENT[:size]


@pytest.mark.parametrize(("told", "written"), [(0, 1), (10, 9), (_PART, _PART + 1), (3 * _PART, 2 * _PART + 5)])
def test_another_size_than_was_told(small_parts, bucket, key, open_uploads, told, written):
    """To write more, or less, is an error, and stores nothing."""
    with (
        pytest.raises(ArgumentError, match=f"{written} bytes were written to s3://.*size={told}"),
        small_parts.put_object(bucket, key, size=told) as writer,
    ):
        writer.write(CONTENT[:written])
    assert writer.closed
    assert _keys(small_parts, bucket, key) == []
    small_parts.delete_object(bucket, key)  # sends what was left
    assert open_uploads() == []


def test_sizes_that_cannot_be(client, bucket, key, traffic):
    """What S3 does not take, or is no size, is an error before a byte is sent."""
    with pytest.raises(ArgumentError, match=r"cannot have 53687091200001 bytes: S3 takes 53687091200000 \(50 TB\)"):
        client.put_object(bucket, key, size=10_000 * 5 * 1024**3 + 1)
    with pytest.raises(ArgumentError, match="cannot have -1 bytes"):
        client.put_object(bucket, key, size=-1)
    with pytest.raises(ArgumentTypeError, match="size must be an integer"):
        client.put_object(bucket, key, size="1")
    writer = client.put_object(bucket, key)
    writer.expect(10)
    writer.write(b"x")
    with pytest.raises(ArgumentError, match="size=10 comes too late: 1 bytes"):
        writer.expect(10)
    writer.abort()
    with pytest.raises(ClosedError):
        writer.expect(10)
    assert traffic.requests == 0


@pytest.mark.parametrize(
    ("size", "part_size"),
    [(None, 5 * MiB), (50_000 * MiB, 5 * MiB), (50_000 * MiB + 1, 6 * MiB), (5 * 1024**4, 525 * MiB)],
)
def test_parts_of_a_size_that_is_known(small_parts, bucket, key, size, part_size):
    """Parts are no larger than 10,000 of them must be."""
    writer = small_parts.put_object(bucket, key, size=size)
    assert writer._buffer.capacity == part_size
    writer.abort()


def test_nothing_is_there_before_the_end(small_parts, bucket, key, open_uploads):
    """Parts that were sent are no object before the writer is closed."""
    writer = small_parts.put_object(bucket, key)
    assert repr(writer) == f"<S3Writer s3://{bucket}/{key} open position=0 parts=0>"
    writer.write(CONTENT[: 2 * _PART + 1])
    assert repr(writer) == f"<S3Writer s3://{bucket}/{key} open position={2 * _PART + 1} parts=2>"
    assert open_uploads() == [key]
    assert _keys(small_parts, bucket, key) == []
    writer.close()
    assert open_uploads() == []
    assert small_parts.head_object(bucket, key).size == 2 * _PART + 1
    assert repr(writer) == f"<S3Writer s3://{bucket}/{key} committed position={2 * _PART + 1} parts=3>"


def test_making_a_writer_sends_nothing(client, bucket, key, traffic):
    """A writer sends nothing before a part is full."""
    writer = client.put_object(bucket, key)
    writer.write(b"x" * MiB)
    assert traffic.requests == 0
    writer.abort()
    assert traffic.requests == 0


# --- What can be written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        b"abc",
        b"",
        bytearray(b"abc"),
        memoryview(b"xxabcxx")[2:5],
        array.array("d", [1.5, 2.5]),
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array(2.5),
        np.zeros((0, 4)),
        np.zeros(5, [("a", ">i4"), ("b", "f8")]),
        torch.arange(5.0).numpy(),
    ],
    ids=["bytes", "empty", "bytearray", "slice", "array", "2-D", "0-D", "no items", "struct", "tensor"],
)
def test_any_memory(client, bucket, key, piece):
    """Bytes of C-contiguous memory are written, whatever the type of its items."""
    expected = memoryview(piece).tobytes()
    with client.put_object(bucket, key) as writer:
        assert writer.write(piece) == len(expected)
        assert writer.write(b"-") == 1
        assert writer.write(piece) == len(expected)
        assert writer.tell() == 2 * len(expected) + 1
    assert client.get_object(bucket, key).read() == expected + b"-" + expected


def test_memory_may_change_after_the_call(small_parts, bucket, key):
    """What was written is taken: the caller can use the memory again, also if it is larger than a part."""
    memory = bytearray(CONTENT[: _PART + 1000])
    with small_parts.put_object(bucket, key) as writer:
        for _ in range(2):
            memory[:] = CONTENT[: len(memory)]
            writer.write(memory)
            memory[:] = bytes(len(memory))
    assert small_parts.get_object(bucket, key).read() == CONTENT[: _PART + 1000] * 2


@pytest.mark.parametrize("piece", [np.zeros((3, 4), order="F"), np.zeros(8)[::2], memoryview(b"abc")[::-1]])
def test_memory_with_gaps(client, bucket, key, piece):
    """Memory with gaps or in another order is refused; what was written before stays."""
    with client.put_object(bucket, key) as writer:
        writer.write(b"before")
        with pytest.raises(ArgumentError, match="C-contiguous"):
            writer.write(piece)
        assert writer.tell() == 6
    assert client.get_object(bucket, key).read() == b"before"


@pytest.mark.parametrize("piece", ["text", 5, None, [1, 2], torch.zeros(3, device="meta")])
def test_no_memory(client, bucket, key, piece):
    """What is no memory is refused with a remedy."""
    with client.put_object(bucket, key) as writer, pytest.raises(ArgumentTypeError, match="tensor must be on the CPU"):
        writer.write(piece)


def test_writelines(client, bucket, key):
    """``writelines`` writes one after the other."""
    with client.put_object(bucket, key) as writer:
        writer.writelines([b"a\n", bytearray(b"b\n"), b""])
        assert writer.tell() == 4
    assert client.get_object(bucket, key).read() == b"a\nb\n"


# --- The end ---------------------------------------------------------------------------------------------------------


def test_close(client, bucket, key, traffic):
    """A writer can be closed twice; the second time does nothing."""
    writer = client.put_object(bucket, key)
    assert not writer.closed
    writer.write(b"x")
    writer.close()
    writer.close()
    assert writer.closed
    assert traffic.requests == 1
    assert writer.tell() == 1


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("call", ["write", "writelines", "__enter__", "flush"])
def test_use_after_the_end(client, bucket, key, end, call):
    """A writer that was closed or aborted refuses everything, naming the object and the remedy."""
    writer = client.put_object(bucket, key)
    getattr(writer, end)()
    with pytest.raises(
        ClosedError, match=f"I/O operation on closed file: .*s3://{bucket}/{key} .*Open another"
    ) as caught:
        getattr(writer, call)(*{"write": [b"x"], "writelines": [[b"x"]]}.get(call, []))
    assert (caught.value.bucket, caught.value.key) == (bucket, key)


def test_a_writer_serves_once(client, bucket, key):
    """A second with block on one writer is refused, so that it cannot be taken for a second object."""
    with client.put_object(bucket, key) as writer:
        writer.write(b"first")
    with pytest.raises(ClosedError), writer:
        pass
    assert client.get_object(bucket, key).read() == b"first"


def _write_and_fail(writer: S3Writer, content: bytes) -> None:
    with writer:
        writer.write(content)
        _ = 1 / 0


@pytest.mark.parametrize("size", [10, _PART + 1, 3 * _PART])
def test_an_exception_leaves_the_old_object(small_parts, bucket, key, put, open_uploads, size):
    """An exception inside of with is passed on; the old object stays, and no parts are left behind."""
    put(key, b"old")
    writer = small_parts.put_object(bucket, key)
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(writer, CONTENT[:size])
    assert writer.closed
    assert repr(writer).startswith(f"<S3Writer s3://{bucket}/{key} aborted position={size}")
    assert small_parts.get_object(bucket, key).read() == b"old"
    assert open_uploads() == []


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_abort(small_parts, bucket, key, open_uploads, size):
    """An aborted writer leaves nothing, and stays so: closing it later publishes nothing."""
    with small_parts.put_object(bucket, key) as writer:
        writer.write(CONTENT[:size])
        writer.abort()
        writer.abort()
    writer.close()
    assert _keys(small_parts, bucket, key) == []
    assert open_uploads() == []


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_a_forgotten_writer(small_parts, bucket, key, open_uploads, size):
    """A writer that is dropped without being closed publishes nothing, leaves no parts, and warns."""
    with pytest.warns(ResourceWarning, match=f"s3://{bucket}/{key} .* was never closed: what was written is discarded"):
        small_parts.put_object(bucket, key).write(CONTENT[:size])
    assert _keys(small_parts, bucket, key) == []
    assert open_uploads() == []


def test_a_block_that_ends_while_another_thread_writes(small_parts, bucket, key, monkeypatch, open_uploads):
    """Who waited for memory when another thread left the block by an error is told so, and no part stays behind."""
    writer = small_parts.put_object(bucket, key)
    take = MultipartUpload.buffer

    def leave_meanwhile(upload: MultipartUpload, capacity: int) -> PartBuffer:
        buffer = take(upload, capacity)
        writer.__exit__(ValueError, ValueError(), None)
        return buffer

    monkeypatch.setattr(MultipartUpload, "buffer", leave_meanwhile)
    with pytest.raises(ConcurrentUseError):
        writer.write(CONTENT[: _PART + 1])
    assert writer.closed
    assert open_uploads() == []


def test_a_block_that_ends_before_a_part_is_sent(small_parts, bucket, key, monkeypatch):
    """A part that is sent after another thread has left the block is cancelled, while the error is kept, too."""
    writer = small_parts.put_object(bucket, key)
    send = MultipartUpload.send

    def leave_before(upload: MultipartUpload, buffer: PartBuffer, *, is_last: bool) -> None:
        writer.__exit__(ValueError, ValueError(), None)
        send(upload, buffer, is_last=is_last)

    monkeypatch.setattr(MultipartUpload, "send", leave_before)
    monkeypatch.setattr(MultipartUpload, "buffer", lambda _, capacity: PartBuffer(capacity))
    with pytest.raises(ConcurrentUseError) as raised:
        writer.write(CONTENT[: _PART + 1])
    assert [engine.pending for engine in small_parts._access.engines] == [0]
    del raised


def test_an_abort_that_is_interrupted(small_parts, bucket, key, monkeypatch, open_uploads):
    """The next call that sends anything does what an interrupted abort has left."""
    writer = small_parts.put_object(bucket, key)
    writer.write(CONTENT[: _PART + 1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("s3torch._objects.upload.abort_multipart_upload", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.abort()
    assert open_uploads() == [key]
    with pytest.raises(ObjectNotFoundError):
        small_parts.head_object(bucket, key)
    assert open_uploads() == []


def test_a_refused_part(s3, small_parts, bucket, key, monkeypatch):
    """A write that the service refuses raises its reason and ends the writer."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    writer = S3Client(s3client_config=small_parts.s3client_config).put_object(bucket, key)
    with pytest.raises(CredentialsError, match=f"s3://{bucket}/{key}"):
        writer.write(CONTENT[: 2 * _PART])
    assert writer.closed
    with pytest.raises(ClosedError):
        writer.write(b"more")
    writer.close()


def test_an_upload_that_vanished(boto, small_parts, bucket, key):
    """If the upload was aborted behind the writer's back, the error speaks of the upload, not of a missing object."""
    writer = small_parts.put_object(bucket, key)
    writer.write(CONTENT[: _PART + 1])
    (upload,) = [one for one in boto.list_multipart_uploads(Bucket=bucket)["Uploads"] if one["Key"] == key]
    boto.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    with pytest.raises(RequestError, match=f"upload.*s3://{bucket}/{key}|s3://{bucket}/{key}.*upload") as caught:
        writer.close()
    assert caught.value.code == "NoSuchUpload"
    assert writer.closed
    assert _keys(small_parts, bucket, key) == []


# --- Parts side by side ----------------------------------------------------------------------------------------------


class _Uploads:
    """A server of uploads that answers no part before ``together`` of them are there, and counts those that are."""

    def __init__(self, together: int = 1) -> None:
        self.there = threading.Barrier(together, timeout=20)
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.log: list[str] = []

    def __call__(self, request: Request, wire: Wire) -> None:
        query = request.target.partition("?")[2]
        if request.method == "PUT" and query:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            self.there.wait()
            with self.lock:
                self.now -= 1
            wire.respond(200, {"ETag": f'"{query}"'})
        elif query.startswith("uploads"):
            self.log.append("create")
            wire.respond(
                200, {}, b"<InitiateMultipartUploadResult><UploadId>ID</UploadId></InitiateMultipartUploadResult>"
            )
        else:
            self.log.append({"POST": "complete", "DELETE": "abort"}.get(request.method, request.method))
            wire.respond(200, {"ETag": '"e"'}, b"<CompleteMultipartUploadResult/>" if request.method == "POST" else b"")


class _Empty(_Uploads):
    """A server of uploads that has no object yet."""

    def __call__(self, request: Request, wire: Wire) -> None:
        if request.method == "HEAD":
            wire.respond(404, {"x-amz-request-id": "R"})
        else:
            super().__call__(request, wire)


class _Heedless:
    """A server that replaces objects whatever the condition is.

    Attributes:
        objects: What is stored.
    """

    def __init__(self) -> None:
        self.objects = Objects("bucket", {"old": b"old"})

    def __call__(self, request: Request, wire: Wire) -> None:
        headers = {name: value for name, value in request.headers.items() if name != "if-none-match"}
        answer = self.objects.answer(replace(request, headers=headers))
        wire.respond(answer.status, answer.fields, answer.body)


def _client_of(server: ScriptedServer, **config: Any) -> S3Client:
    config = {"part_size": 5 * MiB, "max_attempts": 2, **config}
    return S3Client("us-east-1", endpoint=server.endpoint, s3client_config=S3ClientConfig(**config))


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for servers that look at none."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ACCESS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")


def test_parts_are_sent_side_by_side(credentials):
    """A server that answers no part before it has four gets four."""
    uploads = _Uploads(together=4)
    with ScriptedServer(uploads) as server, _client_of(server).put_object("bucket", "key") as writer:
        writer.write(CONTENT + bytes(4 * _PART - len(CONTENT)))
    assert (uploads.most, uploads.log) == (4, ["create", "complete"])


def test_memory_of_parts(credentials, monkeypatch):
    """No more memory is taken than the configuration permits, and that of parts that have arrived is used again."""
    made = []

    class Counted(PartBuffer):
        def __init__(self, capacity: int) -> None:
            super().__init__(capacity)
            if capacity:
                made.append(self)

    monkeypatch.setattr("s3torch._objects.upload.PartBuffer", Counted)
    uploads = _Uploads()
    with (
        ScriptedServer(uploads) as server,
        _client_of(server, max_bytes_in_flight=4 * _PART).put_object("bucket", "key") as writer,
    ):
        for _ in range(20):
            writer.write(bytes(_PART))
    assert uploads.most <= 3
    assert len(made) <= 3  # and the first, which the writer made


@pytest.mark.parametrize("checksums", ["on", "off"])
@pytest.mark.parametrize("seed", range(6))
def test_lasting_bytes_between_others(seed, checksums):
    """Bytes that are sent from where they are, and copied ones, come in order, over all parts and retries."""
    chance = random.Random(seed)
    sizes = [0, 1, 1000, 64 * 1024 - 1, 64 * 1024, MiB, _PART, 2 * _PART + 3]
    pieces = [chance.randbytes(chance.choice(sizes)) for _ in range(chance.choice([1, 3, 12]))]
    with FaultyServer(seed=seed) as server:
        server.rates({faults.reset_mid_body: 0.1, faults.reset_before_head: 0.1, faults.status(500): 0.1})
        config = replace(server.config, part_size=_PART, max_bytes_in_flight=3 * _PART, checksums=checksums)
        client = S3Client(endpoint=server.endpoint, s3client_config=config)
        with client.put_object("bucket", "key") as writer:
            for piece in pieces:
                if chance.random() < 0.5:
                    assert writer.write_lasting(piece) == zlib.crc32(piece)
                else:
                    writer.write(piece)
        assert server.objects["key"] == b"".join(pieces)
        client.close()


def test_lasting_bytes_are_not_copied_and_let_go(small_parts, bucket, key):
    """Memory that was lent is the writer's only until its part has arrived."""
    arrays = [np.full(_PART, number, dtype=np.uint8) for number in range(6)]
    gone = [weakref.ref(array) for array in arrays]
    with small_parts.put_object(bucket, key) as writer:
        for number in range(6):
            tracemalloc.start()
            writer.write_lasting(arrays[number])
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < MiB
        del arrays
        gc.collect()
        while sum(reference() is not None for reference in gone) > 1:  # the last part is sent by close
            writer._upload._await(writer._upload._flying[0])
            writer._upload._settle()
            gc.collect()
    assert small_parts.read_range(bucket, key, 0) == b"".join(bytes([number]) * _PART for number in range(6))


def test_lasting_bytes_of_an_interrupted_upload(small_parts, bucket, key):
    """Parts of lent memory that arrived before are not sent again."""
    _interrupt(small_parts, bucket, key, CONTENT[: 2 * _PART + 1])
    before = small_parts.stats
    with small_parts.put_object(bucket, key, resume=True) as writer:
        writer.write(CONTENT[:10])
        writer.write_lasting(memoryview(CONTENT)[10:])
    assert small_parts.stats.bytes_sent - before.bytes_sent < _PART + 100_000
    assert small_parts.read_range(bucket, key, 0) == CONTENT


def test_data_by_name(client, bucket, key):
    """Bytes can be given by name, as to the writer of s3torchconnector."""
    with client.put_object(bucket, key) as writer:
        assert writer.write(data=b"abc") == 3
    assert client.read_range(bucket, key, 0) == b"abc"


def test_lasting_bytes_to_a_closed_writer(client, bucket, key):
    """A closed writer refuses them, as it does others."""
    writer = client.put_object(bucket, key)
    writer.abort()
    with pytest.raises(ClosedError, match="was aborted"):
        writer.write_lasting(b"late")


def test_a_part_fails_while_others_are_written(credentials, monkeypatch):
    """What fails in the background ends the writer at its next part, and aborts the upload."""
    with FaultyServer() as server:
        server.script(faults.on("UploadPart", fault=faults.status(403, "AccessDenied")))
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=S3ClientConfig(part_size=5 * MiB))
        writer = client.put_object("bucket", "key")
        with pytest.raises(AccessDeniedError, match="UploadPart on s3://bucket/key"):
            writer.writelines([bytes(_PART)] * 100)
        assert writer.closed
        assert server.objects.uploads == []


def test_begun_in_one_thread_and_ended_in_another(small_parts, bucket, key):
    """Parts that one thread has begun to send are sent by the thread that goes on."""
    writer = small_parts.put_object(bucket, key)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(writer.write, CONTENT[: 2 * _PART + 1]).result()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(writer.write, CONTENT[2 * _PART + 1 :]).result()
    writer.close()
    assert small_parts.read_range(bucket, key, 0) == CONTENT


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_options(small_parts, boto, bucket, key, size):
    """Metadata and media type are stored with objects of one and of several parts."""
    options = {"metadata": {"Epoch": "7"}, "content_type": "application/x-checkpoint"}
    with small_parts.put_object(bucket, key, **options) as writer:
        writer.write(CONTENT[:size])
    found = boto.head_object(Bucket=bucket, Key=key)
    assert (found["Metadata"], found["ContentType"]) == ({"epoch": "7"}, "application/x-checkpoint")


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_encryption_is_asked_for(credentials, size):
    """How to encrypt is said once: with the PUT, or when the upload begins."""
    with ScriptedServer(_Uploads()) as server:
        options = {"server_side_encryption": "aws:kms", "sse_kms_key_id": "key", "storage_class": "STANDARD_IA"}
        with _client_of(server).put_object("bucket", "key", **options) as writer:
            writer.write(CONTENT[:size])
        (first, *others) = server.requests
    assert first.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert first.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key"
    assert first.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert not [request for request in others if "x-amz-server-side-encryption" in request.headers]


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_not_to_replace(credentials, size):
    """An object that is there is not replaced if that was asked for; the condition goes with what would do it."""
    with ScriptedServer(_Empty()) as server:
        with _client_of(server).put_object("bucket", "key", if_none_match=True) as writer:
            writer.write(CONTENT[:size])
        conditional = [request.method for request in server.requests if request.headers.get("if-none-match") == "*"]
    assert conditional == (["PUT"] if size == 10 else ["POST"])


@pytest.mark.parametrize("size", [10, _PART + 1])
def test_not_to_replace_where_nobody_heeds_that(credentials, size):
    """A server that ignores the condition is asked for the object before, so nothing is replaced silently."""
    handler = _Heedless()
    with ScriptedServer(handler) as server:
        client = _client_of(server)
        writer = client.put_object("bucket", "old", if_none_match=True)
        writer.write(CONTENT[:size])
        with pytest.raises(ObjectExistsError, match="s3://bucket/old is there already, and was not to be replaced"):
            writer.close()
        assert not [request for request in server.requests if "if-none-match" in request.headers]
        with client.put_object("bucket", "new", if_none_match=True) as writer:
            writer.write(CONTENT[:size])
        client.close()
    assert dict(handler.objects) == {"old": b"old", "new": CONTENT[:size]}
    assert handler.objects.uploads == []


def test_not_to_replace_what_may_not_be_looked_at(credentials):
    """Where nobody may ask whether the object is there, it is not written: the server might replace it."""
    with ScriptedServer(fail(403, "AccessDenied")) as server:
        writer = _client_of(server).put_object("bucket", "key", if_none_match=True)
        with pytest.raises(AccessDeniedError, match=r"HeadObject .* not every server heeds that condition"):
            writer.close()
        assert {request.method for request in server.requests} <= {"HEAD", "GET"}


def test_amazon_heeds_conditions():
    """Amazon S3 is not asked before."""
    bucket = SimpleNamespace(endpoint=SimpleNamespace(is_amazons=True))
    access: Any = SimpleNamespace(bucket=lambda name: bucket)
    check_is_new(access, "bucket", "key")


def test_an_object_is_in_the_way(small_parts, bucket, key, put):
    """The error says that the object is there; it stays as it was."""
    put(key, b"old")
    writer = small_parts.put_object(bucket, key, if_none_match=True)
    writer.write(b"new")
    with pytest.raises(ObjectExistsError, match=f"s3://{bucket}/{key} is there already, and was not to be replaced"):
        writer.close()
    assert small_parts.read_range(bucket, key, 0) == b"old"


# --- Going on where one was interrupted ------------------------------------------------------------------------------


def _interrupt(client: S3Client, bucket: str, key: str, content: bytes, **options: Any) -> None:
    """Write, let all parts that are full arrive, and fail."""
    writer = client.put_object(bucket, key, resume=True, **options)
    writer.write(content)
    upload = writer._upload
    assert upload is not None
    while upload._flying:
        upload._await(upload._flying[0])
        upload._settle()
    writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


def test_resume(small_parts, bucket, key, open_uploads):
    """Parts that arrived before the interruption are not sent again, if they hold the same bytes."""
    _interrupt(small_parts, bucket, key, CONTENT[: 2 * _PART + 1])
    assert open_uploads() == [key]
    before = small_parts.stats
    changed = CONTENT[:_PART] + b"!" + CONTENT[_PART + 1 :]
    with small_parts.put_object(bucket, key, resume=True) as writer:
        writer.write(changed)
    sent = small_parts.stats.bytes_sent - before.bytes_sent
    assert 2 * _PART < sent < 2 * _PART + 100_000  # all but the first part
    assert small_parts.read_range(bucket, key, 0) == changed
    assert open_uploads() == []


OPTIONS: list[dict[str, Any]] = [
    {},
    {"metadata": {"epoch": "1"}},
    {"metadata": {"epoch": "2"}},
    {"metadata": {"Epoch": "2", "a": "b"}},
    {"content_type": "text/plain"},
    {"storage_class": "STANDARD_IA"},
    {"server_side_encryption": "AES256"},
]


@pytest.mark.parametrize("second", range(len(OPTIONS)))
@pytest.mark.parametrize("first", range(len(OPTIONS)))
def test_resume_with_other_options(first: int, second: int):
    """An upload goes on only if it was begun with the same options; else a new one is begun, with those."""
    with FaultyServer() as server:
        config = replace(server.config, part_size=_PART)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        _interrupt(client, "bucket", "key", CONTENT[: 2 * _PART + 1], **OPTIONS[first])
        (left,) = server.objects.uploads
        sent = client.stats.bytes_sent
        with client.put_object("bucket", "key", resume=True, **OPTIONS[second]) as writer:
            writer.write(CONTENT)
        sent = client.stats.bytes_sent - sent
        created = [request for request in server.requests if request.target.endswith("?uploads=")]
        wanted = ObjectOptions(**OPTIONS[second]).fields_to_create()
        assert wanted.items() <= created[-1].headers.items()
        assert server.objects["key"] == CONTENT
        assert (len(created), server.objects.uploads) == ((1, []) if first == second else (2, [left]))
        assert (sent < len(CONTENT) - _PART) == (first == second)
        client.close()


def test_resume_what_others_have_begun():
    """An upload of another program does not say what it was begun with: it is left alone."""
    with FaultyServer() as server:
        client = S3Client(
            "us-east-1", endpoint=server.endpoint, s3client_config=replace(server.config, part_size=_PART)
        )
        access = client._access
        access.run([CreateMultipartUpload(access.bucket("bucket"), "key")])
        with client.put_object("bucket", "key", resume=True) as writer:
            writer.write(CONTENT)
        assert server.objects["key"] == CONTENT
        assert server.objects.uploads == ["upload-1"]
        client.close()


def test_resume_where_parts_cannot_be_noted():
    """A server that refuses the note takes the object nevertheless, and nothing is left for a later writer."""
    refusals = [faults.on("UploadPart", fault=faults.status(400, "InvalidArgument"))] * 2  # as 10,000, and as 1,000
    with FaultyServer() as server:
        client = S3Client(
            "us-east-1", endpoint=server.endpoint, s3client_config=replace(server.config, part_size=_PART)
        )
        server.script(*refusals)
        _interrupt(client, "bucket", "key", CONTENT)
        client.list_multipart_uploads("bucket")  # the next request sends the abort, too
        assert server.objects.uploads == []
        server.script(*refusals)
        with client.put_object("bucket", "key", resume=True) as writer:
            writer.write(CONTENT)
        assert server.objects["key"] == CONTENT
        client.close()


def test_resume_with_less(small_parts, bucket, key, open_uploads):
    """Parts of an earlier upload beyond the end are not in the object."""
    _interrupt(small_parts, bucket, key, CONTENT)
    with small_parts.put_object(bucket, key, resume=True) as writer:
        writer.write(CONTENT[: _PART + 1])
    assert small_parts.read_range(bucket, key, 0) == CONTENT[: _PART + 1]
    assert open_uploads() == []


def test_resume_without_an_upload(small_parts, bucket, key):
    """Where nothing was interrupted, a writer that may resume begins anew; an upload of a longer key is another's."""
    _interrupt(small_parts, bucket, key + "x", CONTENT)
    with small_parts.put_object(bucket, key, resume=True) as writer:
        writer.write(CONTENT)
    assert small_parts.read_range(bucket, key, 0) == CONTENT
    (other,) = small_parts.list_multipart_uploads(bucket, key)
    assert other.key == key + "x"
    small_parts.abort_multipart_upload(bucket, other.key, other.upload_id)


def test_abort_ends_an_upload_that_could_be_resumed(small_parts, bucket, key, open_uploads):
    """Only an interruption leaves parts for later; an explicit abort deletes them."""
    writer = small_parts.put_object(bucket, key, resume=True)
    writer.write(CONTENT)
    writer.abort()
    assert open_uploads() == []


def test_uploads_can_be_listed_and_aborted(small_parts, bucket, key):
    """Each upload tells its key, when it was begun, and the id to abort it by; twice is no error."""
    _interrupt(small_parts, bucket, key, CONTENT)
    (upload,) = small_parts.list_multipart_uploads(bucket, key)
    assert (upload.key, abs(upload.initiated - time.time()) < 3600) == (key, True)
    for _ in range(2):
        small_parts.abort_multipart_upload(bucket, key, upload.upload_id)
    assert small_parts.list_multipart_uploads(bucket, key) == []


def test_resume_must_be_a_bool(client, bucket, key):
    """What is no bool is refused."""
    with pytest.raises(ArgumentTypeError, match="resume must be a bool, got 'yes'"):
        client.put_object(bucket, key, resume="yes")


# --- As a file -------------------------------------------------------------------------------------------------------


def test_abilities(client, bucket, key):
    """It says what it can do: write, in order."""
    with client.put_object(bucket, key) as writer:
        assert (writer.readable(), writer.writable(), writer.seekable(), writer.isatty()) == (False, True, False, False)
        writer.flush()
    assert (writer.readable(), writer.writable(), writer.seekable()) == (False, False, False)
    assert isinstance(writer, io.BufferedIOBase)
    assert (writer.bucket, writer.key) == (bucket, key)


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.read(),
        lambda writer: writer.readinto(bytearray(1)),
        lambda writer: writer.readline(),
        lambda writer: writer.seek(0),
        lambda writer: writer.truncate(),
        lambda writer: writer.fileno(),
        lambda writer: writer.detach(),
    ],
)
def test_not_supported(client, bucket, key, call):
    """What a writer cannot do is refused as io has it."""
    with client.put_object(bucket, key) as writer, pytest.raises(io.UnsupportedOperation):
        call(writer)


def test_a_writer_does_not_pickle(client, bucket, key):
    """Two processes cannot share an upload, so a writer cannot be pickled."""
    with client.put_object(bucket, key) as writer, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(writer)


def test_torch_save(small_parts, bucket, prefix):
    """Torch saves to it, more than a part and again, and loads what it saved."""
    state = {"weight": torch.arange(3 * MiB, dtype=torch.float32), "step": 7}
    for number in range(2):
        with small_parts.put_object(bucket, f"{prefix}{number}") as writer:
            torch.save(state, writer)
        assert writer.tell() == small_parts.head_object(bucket, f"{prefix}{number}").size > 2 * _PART
    for number in range(2):
        loaded = torch.load(small_parts.get_object(bucket, f"{prefix}{number}"), weights_only=True)
        assert torch.equal(loaded["weight"], state["weight"])
        assert loaded["step"] == 7


def _write_text(file: S3Writer) -> None:
    with io.TextIOWrapper(file, "utf-8", newline="\n") as text:
        text.write("héllo\n" * 3)


def _write_zip(file: S3Writer) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"aaa")


def _write_tar(file: S3Writer) -> None:
    with tarfile.open(fileobj=file, mode="w|") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def _read_tar(file: io.BytesIO) -> list[str]:
    with tarfile.open(fileobj=file) as archive:
        return archive.getnames()


@pytest.mark.parametrize(
    ("write", "read", "expected"),
    [
        (_write_text, lambda file: file.read(), "héllo\n".encode() * 3),
        (_write_zip, lambda file: zipfile.ZipFile(file).read("a"), b"aaa"),
        (_write_tar, _read_tar, ["a"]),
        (lambda file: np.save(file, np.arange(5)), lambda file: np.load(file).tolist(), [0, 1, 2, 3, 4]),
    ],
    ids=["text", "zip", "tar", "numpy"],
)
def test_what_writes_files(client, bucket, key, write, read, expected):
    """What writes to a file as to a stream writes to it."""
    with client.put_object(bucket, key) as writer:
        write(writer)
    assert read(io.BytesIO(client.read_range(bucket, key, 0))) == expected
