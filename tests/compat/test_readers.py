"""Readers, as programs written for s3torchconnector use them: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.compat.connector import importable

with importable():
    from s3torchconnector import S3MapDataset, S3Reader, S3ReaderConstructor
    from s3torchconnector._s3client import S3Client
    from s3torchconnector.s3reader import DCPOptimizedS3Reader, ItemRange, RangedS3Reader, SequentialS3Reader

pytestmark = pytest.mark.usefixtures("found")

REGION = "us-east-1"
MiB = 1024 * 1024
CONTENT = random.Random(1).randbytes(300_000)
LINES = b"".join(b"line %d\n" % number for number in range(200))

READERS = {
    "sequential": (S3ReaderConstructor.sequential(), SequentialS3Reader),
    "default": (S3ReaderConstructor.default(), SequentialS3Reader),
    "none": (None, SequentialS3Reader),
    "range_based": (S3ReaderConstructor.range_based(), RangedS3Reader),
    "range_based, no buffer": (S3ReaderConstructor.range_based(buffer_size=0), RangedS3Reader),
    "range_based, small buffer": (S3ReaderConstructor.range_based(buffer_size=1000), RangedS3Reader),
}


@pytest.fixture(params=READERS)
def constructor(request) -> Any:
    """Each way to choose a reader."""
    return READERS[request.param][0]


@pytest.fixture
def s3_client() -> S3Client:
    """A client as the documentation makes it."""
    return S3Client(region=REGION)


@pytest.fixture
def open_reader(s3_client, bucket, key, put, constructor) -> Callable[..., Any]:
    """Opens a reader of an object of the given content."""

    def open_reader(content: bytes = CONTENT) -> Any:
        put(key, content)
        return s3_client.get_object(bucket, key, reader_constructor=constructor)

    return open_reader


def _conversation(seed: int, size: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return calls of a reader: reads of all sizes, seeks of all kinds, also to beyond the end."""
    choose = random.Random(seed)
    calls: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(60):
        whence = choose.choice([io.SEEK_SET, io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        offset = {io.SEEK_SET: (0, size + 100), io.SEEK_CUR: (0, 5000), io.SEEK_END: (-size, 50)}[whence]
        calls += choose.choice(
            [
                [("read", (choose.choice([0, 1, 10, 999, 1000, 1001, 70_000, size]),))],
                [("readinto", (choose.choice([0, 1, 1000, 40_000]),))],
                [("seek", (choose.randint(*offset), whence))],
                [("tell", ())],
            ]
        )
    return [*calls, ("seek", (-7, io.SEEK_END)), ("read", ()), ("read", (-1,)), ("seek", (5,)), ("read", (-1,))]


def _said(reader: Any, name: str, arguments: tuple[int, ...], size: int) -> object:
    """Return what a call answers, with what a BytesIO would not do: a seek to beyond the end stays at the end."""
    if name == "readinto":
        buffer = bytearray(arguments[0])
        return reader.readinto(buffer), bytes(buffer)
    answer = getattr(reader, name)(*arguments)
    return reader.seek(size) if name == "seek" and answer > size else answer


@pytest.mark.parametrize("seed", [1, 2])
def test_reads_and_seeks(open_reader, seed: int):
    """Any sequence of calls answers what a file would, but that a seek to beyond the end stays at the end."""
    reader, model = open_reader(), io.BytesIO(CONTENT)
    for number, (name, arguments) in enumerate(_conversation(seed, len(CONTENT))):
        expected = _said(model, name, arguments, len(CONTENT))
        answer = (
            _said(reader, name, arguments, len(CONTENT)) if name == "readinto" else getattr(reader, name)(*arguments)
        )
        assert answer == expected, (number, name, arguments)
        assert reader.tell() == model.tell()
        assert type(answer) is type(expected)


def test_read_to_the_end(open_reader):
    """``read()`` and ``read(None)`` read the rest from here, and then nothing."""
    reader = open_reader()
    assert reader.read(10) == CONTENT[:10]
    assert reader.read() == CONTENT[10:]
    assert (reader.read(), reader.read(None), reader.read(5), reader.readinto(bytearray(3))) == (b"", b"", b"", 0)
    reader.seek(-10, io.SEEK_CUR)
    assert reader.read(None) == CONTENT[-10:]


def test_attributes(open_reader, bucket, key):
    """A reader tells where it reads, and is a readable, seekable file that cannot be written."""
    with open_reader() as reader:
        assert (reader.bucket, reader.key) == (bucket, key)
        assert (reader.readable(), reader.seekable(), reader.writable(), reader.closed) == (True, True, False, False)
        assert isinstance(reader, S3Reader)
        assert isinstance(reader, io.BufferedIOBase)
    assert reader.closed
    reader.close()


@pytest.mark.parametrize("choice", READERS)
def test_classes(s3_client, bucket, key, choice: str):
    """Each constructor makes readers of the class that is named for it; none needs the object to exist."""
    constructor, kind = READERS[choice]
    assert type(s3_client.get_object(bucket, key, reader_constructor=constructor)) is kind


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda reader: reader.seek(-1), ValueError, "negative seek value -1"),
        (lambda reader: reader.seek(-1 - len(CONTENT), io.SEEK_END), ValueError, "negative seek value -1"),
        (lambda reader: reader.seek(0, 5), ValueError, "Seek must be passed SEEK_CUR, SEEK_SET, or SEEK_END"),
        (lambda reader: reader.seek(1.5), TypeError, "^integer argument expected"),
        (lambda reader: reader.seek("1"), TypeError, "^integer argument expected"),
        (lambda reader: reader.seek(0, "1"), TypeError, "^integer argument expected"),
        (lambda reader: reader.read("1"), TypeError, "^argument should be integer or None"),
        (lambda reader: reader.read(1.5), TypeError, "^argument should be integer or None"),
        (
            lambda reader: reader.readinto(b"read-only"),
            TypeError,
            "argument must be .* bytes-like object",
        ),
        (
            lambda reader: reader.readinto("text"),
            TypeError,
            "argument must be .* bytes-like object",
        ),
        (lambda reader: reader.write(b"x"), io.UnsupportedOperation, "write"),
        (lambda reader: reader.fileno(), io.UnsupportedOperation, "fileno"),
        (lambda reader: reader.truncate(), io.UnsupportedOperation, "truncate"),
        (lambda reader: reader.detach(), io.UnsupportedOperation, "detach"),
    ],
)
def test_bad_arguments(s3_client, bucket, client, act, error: type[Exception], message: str):
    """What cannot be is refused by the same types and texts, and the reader reads on."""
    with client.put_object(bucket, "readers/content") as writer:
        writer.write(CONTENT)
    for constructor in (S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()):
        reader = s3_client.get_object(bucket, "readers/content", reader_constructor=constructor)
        with pytest.raises(error, match=message):
            act(reader)
        reader.seek(3)
        assert reader.read(4) == CONTENT[3:7]


def test_buffers(open_reader):
    """``readinto`` fills any writable buffer of bytes, in full unless the object ends."""
    reader = open_reader()
    whole = bytearray(1000)
    assert reader.readinto(memoryview(whole)[100:200]) == 100
    assert whole[100:200] == CONTENT[:100]
    assert not any(whole[:100] + whole[200:])
    array = np.zeros(500, np.uint8)
    assert reader.readinto(array) == 500
    assert array.tobytes() == CONTENT[100:600]
    assert reader.seek(-5, io.SEEK_END) == len(CONTENT) - 5
    assert reader.readinto(array) == 5


def test_lines(open_reader):
    """A reader is iterated over by lines."""
    reader = open_reader(LINES)
    assert reader.readline() == b"line 0\n"
    assert [*reader] == LINES.splitlines(keepends=True)[1:]
    reader.seek(0)
    assert reader.readlines() == LINES.splitlines(keepends=True)


def test_formats(open_reader):
    """Files of torch, NumPy, tar and zip are read without being copied first."""
    tensor = torch.arange(10_000, dtype=torch.int32)
    saved, array, tar, archive = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": tensor}, saved)
    np.save(array, tensor.numpy())
    with tarfile.open(fileobj=tar, mode="w") as written:
        for name in ("a", "b"):
            written.addfile(member := tarfile.TarInfo(name), None)
            assert member.size == 0
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a", CONTENT)
    assert torch.equal(torch.load(open_reader(saved.getvalue()))["weight"], tensor)
    assert np.array_equal(np.load(open_reader(array.getvalue())), tensor.numpy())
    with tarfile.open(fileobj=open_reader(tar.getvalue())) as read:
        assert read.getnames() == ["a", "b"]
    assert zipfile.ZipFile(open_reader(archive.getvalue())).read("a") == CONTENT


def test_large_object(s3_client, bucket, large, constructor):
    """Parts of a large object, as the documentation reads them: seek, then readinto a buffer."""
    key, content = large
    reader = s3_client.get_object(bucket=bucket, key=key, reader_constructor=constructor)
    buffer = bytearray(10 * MiB)
    assert reader.seek(20 * MiB) == 20 * MiB
    assert reader.readinto(buffer) == 10 * MiB
    assert buffer == content[20 * MiB : 30 * MiB]
    assert reader.seek(MiB + 1) == MiB + 1
    assert reader.read(3 * MiB) == content[MiB + 1 : 4 * MiB + 1]


def test_prefetch(s3_client, bucket, key, put):
    """A sequential reader can be told to begin."""
    put(key, CONTENT)
    reader = s3_client.get_object(bucket, key)
    reader.prefetch()
    assert reader.read() == CONTENT


def test_object_info(s3_client, bucket, key, put):
    """With what a listing or a HEAD told, the end is known without another request."""
    put(key, CONTENT)
    listed = next(s3_client.list_objects(bucket, key)).object_info[0]
    for info in (listed, s3_client.head_object(bucket, key)):
        for constructor in (S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()):
            reader = s3_client.get_object(bucket, key, object_info=info, reader_constructor=constructor)
            assert reader.seek(0, io.SEEK_END) == len(CONTENT)
            reader.seek(-3, io.SEEK_CUR)
            assert reader.read() == CONTENT[-3:]


# Constructors


class Upper(S3Reader):
    """A reader of the program's own, over one of the package's."""

    def __init__(self, bucket: str, key: str, get_object_info: Any, get_stream: Any, *, suffix: bytes = b"") -> None:
        self._reader = SequentialS3Reader(bucket, key, get_object_info, get_stream)
        self._suffix = suffix

    @property
    def bucket(self) -> str:
        return self._reader.bucket

    @property
    def key(self) -> str:
        return self._reader.key

    def read(self, size: int | None = None) -> bytes:
        return self._reader.read(size).upper() + self._suffix

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def readinto(self, buf: Any) -> int:
        return self._reader.readinto(buf)


class FirstHalf(io.BytesIO):
    """What reads no more of an object than a constructor's stream gives it."""

    def __init__(self, bucket: str, key: str, get_object_info: Any, get_stream: Any) -> None:
        self.bucket, self.key = bucket, key
        super().__init__(b"".join(get_stream(0, get_object_info().size // 2)))


def upper(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> Upper:
    """Make a reader of the program's own."""
    return Upper(bucket, key, get_object_info, get_stream)


def by_name(**given: Any) -> Upper:
    """Make a reader of what is given by name."""
    return upper(**given)


@pytest.mark.parametrize(
    ("constructor", "expected"),
    [
        (Upper, b"CONTENT"),
        (upper, b"CONTENT"),
        (partial(Upper, suffix=b"!"), b"CONTENT!"),
        (by_name, b"CONTENT"),
        (FirstHalf, b"con"),
    ],
    ids=["class", "function", "partial", "keywords", "streams"],
)
def test_own_constructors(s3_client, bucket, key, put, constructor: Any, expected: bytes):
    """Any callable of the protocol makes readers, for clients and datasets."""
    put(key, b"content")
    reader = s3_client.get_object(bucket, key, reader_constructor=constructor)
    assert (reader.read(), reader.bucket, reader.key) == (expected, bucket, key)
    dataset = S3MapDataset.from_objects(f"s3://{bucket}/{key}", region=REGION, reader_constructor=constructor)
    assert dataset[0].read() == expected


def test_type_strings():
    """The kind of readers that a constructor makes has a name, which is ``unknown`` for the program's own."""
    named = S3ReaderConstructor.get_reader_type_string
    assert {choice: named(constructor) for choice, (constructor, _) in READERS.items()} == {
        "sequential": "sequential",
        "default": "sequential",
        "none": "sequential",
        "range_based": "range_based",
        "range_based, no buffer": "range_based",
        "range_based, small buffer": "range_based",
    }
    assert named(S3ReaderConstructor.dcp_optimized()) == "dcp_optimized"
    assert [named(own) for own in (Upper, upper, partial(Upper, suffix=b""))] == ["unknown"] * 3


def _dcp_reader(bucket: str, key: str, *ranges: tuple[int, int], **more: Any) -> object:
    return DCPOptimizedS3Reader(bucket, key, [ItemRange(*each) for each in ranges], None, None, **more)


_dcp_constructor = S3ReaderConstructor.dcp_optimized


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: S3ReaderConstructor.dcp_optimized(max_gap_size=-1), ValueError, "max_gap_size must be non-negative"),
        (lambda: S3ReaderConstructor.dcp_optimized(max_gap_size="x"), TypeError, "str|'x'"),
        (lambda: SequentialS3Reader("", "key", None, None), ValueError, "Bucket should be specified"),
        (lambda: RangedS3Reader("", "key", None, None), ValueError, "Bucket should be specified"),
        (lambda: RangedS3Reader("b", "key", None, None, buffer_size="8"), TypeError, "str|'8'"),
        (lambda: RangedS3Reader("b", "key", None, None, buffer_size=1.5), TypeError, "float|1.5"),
        (lambda: _dcp_reader("", "key", (0, 1)), ValueError, "Bucket should be specified"),
        (lambda: _dcp_reader("b", "", (0, 1)), ValueError, "Key should be specified"),
        (lambda: _dcp_reader("b", "k"), ValueError, r"item_ranges must be a non-empty List\[ItemRange\] object"),
        (lambda: _dcp_reader("b", "k", (0, 0), (5, 5)), ValueError, "No non-empty ranges to read"),
        (lambda: _dcp_reader("b", "k", (0, 1), (5, 3)), ValueError, "Invalid range: 5-3"),
        (lambda: _dcp_reader("b", "k", (-1, 3)), ValueError, "Invalid range: -1-3"),
        (lambda: _dcp_reader("b", "k", (0, 1), max_gap_size=-1), ValueError, "max_gap_size must be non-negative"),
        (lambda: _dcp_reader("b", "k", (0, 1), max_gap_size="x"), TypeError, "max_gap_size must be"),
        (
            lambda: _dcp_constructor()("b", "k/x.distcp", None, None),
            ValueError,
            "No ranges found for s3://b/k/x.distcp",
        ),
        (lambda: _dcp_constructor().set_item_ranges_by_file([1], {}, "s3://b"), ValueError, "storage_data must not be"),
    ],
)
def test_bad_constructors(make: Callable[[], object], error: type[Exception], message: str):
    """What cannot make a reader is refused by the same types and texts."""
    with pytest.raises(error, match=message):
        make()
