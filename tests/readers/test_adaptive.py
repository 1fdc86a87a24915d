"""Tests of the adaptive reader against a real server: that it reads right, and what each file format costs it."""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from s3torch import S3Client, S3ClientConfig, S3ReaderConfig
from s3torch._objects.remote import RemoteObject
from s3torch.errors import ObjectChangedError, ObjectNotFoundError
from s3torch.readers import AdaptiveS3Reader, S3Reader
from s3torch.readers.budget import BUDGET, MemoryBudget

KiB = 1024
MiB = 1024 * KiB
BUCKET = "adaptive"
# The smallest part that S3 takes, so that the objects below are as many parts as those of real use.
PART = 5 * MiB
LARGE = np.random.default_rng(1).bytes(6 * MiB)


@pytest.fixture(scope="module")
def client(server) -> Iterator[S3Client]:
    """A client that makes parts of that size, with a bucket for its objects."""
    with server.activated():
        server.create_bucket(BUCKET)
        client = S3Client(s3client_config=S3ClientConfig(part_size=PART))
        _put(client, "large", LARGE)
        _put(client, "small", LARGE[: 300 * KiB])
        _put(client, "empty", b"")
        yield client
        client.close()


@pytest.fixture
def budget() -> MemoryBudget:
    """A budget of its own, to see what is held."""
    return MemoryBudget(100 * MiB)


@pytest.fixture
def open_key(client, budget):
    """Opens an adaptive reader that holds from that budget."""

    def open_key(key: str, max_window: int = 64 * MiB, size: int | None = None) -> AdaptiveS3Reader:
        return AdaptiveS3Reader(RemoteObject(client._access, BUCKET, key, size=size), max_window, budget)

    return open_key


def _put(client: S3Client, key: str, content: bytes) -> None:
    with client.put_object(BUCKET, key) as writer:
        writer.write(content)


# --- it is a file ----------------------------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    st.tuples(st.just("read"), st.one_of(st.integers(-1, 100), st.integers(0, 300 * KiB))),
    st.tuples(st.just("readinto"), st.one_of(st.integers(0, 100), st.integers(0, 300 * KiB))),
    st.tuples(st.just("readline"), st.integers(-1, 2000)),
    st.tuples(st.just("seek"), st.one_of(st.integers(0, 20 * KiB), st.integers(0, len(LARGE)))),
    st.tuples(st.just("skip"), st.integers(0, 20 * KiB)),
    st.tuples(st.just("seek_end"), st.integers(0, 100 * KiB)),
)


def _apply(file: io.BufferedIOBase, name: str, number: int, size: int) -> object:
    if name == "readinto":
        buffer = bytearray(number)
        return file.readinto(buffer), bytes(buffer)
    if name == "seek":
        return file.seek(min(number, size))
    if name == "skip":
        return file.seek(min(file.tell() + number, size))
    if name == "seek_end":
        return file.seek(max(0, size - number))
    return getattr(file, name)(number)


@settings(max_examples=25)
@given(
    st.sampled_from(["large", "small", "empty"]),
    st.lists(OPERATIONS, max_size=20),
    st.booleans(),
    st.sampled_from([16 * KiB, 64 * MiB]),
    st.sampled_from([0, 20 * KiB, 200 * KiB, 100 * MiB]),
)
def test_reads_like_a_file(client, key, operations, is_size_known, max_window, limit):
    """Whatever is done in whatever order gives what BytesIO gives, with any window, and with hardly any memory."""
    content = {"large": LARGE, "small": LARGE[: 300 * KiB], "empty": b""}[key]
    budget = MemoryBudget(limit)
    remote = RemoteObject(client._access, BUCKET, key, size=len(content) if is_size_known else None)
    with AdaptiveS3Reader(remote, max_window, budget) as reader, io.BytesIO(content) as model:
        for name, number in operations:
            assert _apply(reader, name, number, len(content)) == _apply(model, name, number, len(content)), name
            assert reader.tell() == model.tell()
            assert budget.held == sum(len(block.content) for block in (reader._window, reader._head, reader._tail))
    assert budget.held == 0


def test_chosen_by_configuration(client):
    """It is opened where the configuration says so, with its window, and shares the process's budget."""
    config = S3ReaderConfig.adaptive(max_window=MiB)
    with client.get_object(BUCKET, "large", reader_config=config) as reader:
        assert type(reader) is AdaptiveS3Reader
        assert reader._max_window == MiB
        assert reader._share._budget is BUDGET


def test_nothing_is_sent_before_the_first_read(client, open_key):
    """Opening, closing, and reading nothing send no request."""
    before = client.stats.requests
    with open_key("large") as reader:
        assert reader.read(0) == b""
        assert reader.readinto(bytearray()) == 0
    assert client.stats.requests == before


def test_the_size_comes_with_the_head(client, open_key):
    """Asking for the size fetches the head, which is then at hand: one request for both."""
    before = client.stats.requests
    reader = open_key("large")
    assert reader.seek(0, io.SEEK_END) == reader.size == len(LARGE)
    reader.seek(0)
    assert reader.read(10_000) == LARGE[:10_000]
    assert client.stats.requests == before + 1


@pytest.mark.parametrize(("count", "held"), [(16 * KiB, 16 * KiB), (16 * KiB + 1, 0)])
def test_the_first_read_of_an_object_of_unknown_size(open_key, budget, count: int, held: int):
    """Up to a block, it brings the block, which is held; a longer one brings what is asked for, and nothing is held."""
    reader = open_key("large")
    assert reader.read(count) == LARGE[:count]
    assert budget.held == held


def test_a_read_of_all_pays_for_what_follows(open_key, budget):
    """Who has read all of an object of unknown size gets a block for a small read, as for any other bytes read."""
    reader = open_key("large")
    assert reader.read() == LARGE
    assert budget.held == 0
    reader.seek(3 * MiB)
    assert reader.read(10) == LARGE[3 * MiB :][:10]
    assert budget.held == 16 * KiB


def test_large_reads_go_into_the_callers_memory(open_key, budget):
    """A large read is held nowhere else, and brings nothing but itself while it follows no other."""
    reader = open_key("large", size=len(LARGE))
    buffer = bytearray(MiB)
    reader.seek(2 * MiB)
    assert reader.readinto(buffer) == MiB
    assert buffer == LARGE[2 * MiB : 3 * MiB]
    assert budget.held == 0


def test_lines(client, open_key):
    """Lines are fetched by windows that grow, not one by one."""
    text = b"".join(b"%d %s\n" % (number, b"x" * (number % 90)) for number in range(80_000))
    _put(client, "lines", text)
    before = client.stats.requests
    with open_key("lines") as reader:
        assert list(reader) == text.splitlines(keepends=True)
    assert client.stats.requests - before <= 12


def test_lines_pay_for_what_follows(open_key, budget):
    """A line far away counts as a block that was asked for: afterwards a small read still gets a block."""
    reader = open_key("large", size=len(LARGE))
    for place in range(25):
        reader.seek(5 * MiB - place * 200 * KiB)
        reader.readline()
    reader.seek(100 * KiB)
    assert reader.read(10) == LARGE[100 * KiB :][:10]
    assert budget.held == 16 * KiB


def test_what_is_held(open_key, budget):
    """Its blocks count against the budget, and closing gives all back."""
    reader = open_key("large")
    reader.read(10)
    assert budget.held == 16 * KiB
    reader.seek(-10, io.SEEK_END)
    reader.read()
    assert budget.held == 48 * KiB
    reader.seek(3 * MiB)
    reader.read(10)
    assert budget.held == 64 * KiB
    reader.close()
    reader.close()
    assert budget.held == 0


def test_collected_without_close(open_key, budget):
    """A reader that is forgotten gives back what it held."""
    reader = open_key("large")
    reader.read(10)
    assert budget.held == 16 * KiB
    del reader
    gc.collect()
    assert budget.held == 0


def test_no_memory_is_left(open_key, budget):
    """Without memory everything is read all the same, byte for byte as it is asked for."""
    others = budget.share()
    taken = others.take(budget.limit)
    reader = open_key("large")
    assert reader.size == len(LARGE)
    assert reader.read(100) == LARGE[:100]
    assert reader.readline() == LARGE[100:].partition(b"\n")[0] + b"\n"
    assert reader.seek(-10, io.SEEK_END)
    assert reader.read() == LARGE[-10:]
    assert budget.held == taken


def test_little_memory_is_left(open_key, budget):
    """Windows do not grow beyond what is left, and the caches are dropped before the limit is passed."""
    others = budget.share()
    others.take(budget.limit - 40 * KiB)
    reader = open_key("large")
    found = bytearray()
    while piece := reader.read(10_000):
        found += piece
        assert budget.held <= budget.limit
        assert len(reader._window.content) <= 40 * KiB
    assert found == LARGE
    reader.seek(0, io.SEEK_SET)
    assert reader.read(10) == LARGE[:10]


def test_failures_hold_nothing(open_key, budget):
    """A read that fails raises, gives back the memory that it took, and moves nothing."""
    reader = open_key("nowhere", size=10 * MiB)
    for call in (lambda: reader.read(10), lambda: reader.read(MiB), reader.readline, reader.read):
        with pytest.raises(ObjectNotFoundError):
            call()
        assert (budget.held, reader.tell()) == (0, 0)


def test_an_object_that_is_replaced_before_a_large_read(client, open_key, budget):
    """A large read with bytes ahead of it that fails raises, holds nothing, and moves nothing."""
    _put(client, "replaced", LARGE)
    reader = open_key("replaced")
    assert reader.read(MiB) == LARGE[:MiB]
    _put(client, "replaced", LARGE[:-1])
    for call in (lambda: reader.read(MiB), lambda: reader.readinto(bytearray(MiB))):
        with pytest.raises(ObjectChangedError):
            call()
        assert (budget.held, reader.tell()) == (0, MiB)


def test_pickle(client):
    """It pickles as what it reads, its position and its window, without what it holds."""
    reader = client.get_object(BUCKET, "large", reader_config=S3ReaderConfig.adaptive(MiB))
    reader.read(100)
    pickled = pickle.dumps(reader)
    assert len(pickled) < 4 * KiB
    twin = pickle.loads(pickled)
    assert (twin.tell(), twin._max_window) == (100, MiB)
    assert twin.read(MiB) == reader.read(MiB) == LARGE[100 : MiB + 100]


# --- what formats cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A file of some format, and a way to read it."""

    write: Callable[[io.BytesIO], object]
    read: Callable[[S3Reader], object]


# What files hold is made where one is written: all workers collect this.


@functools.cache
def _floats() -> np.ndarray:  # 40 MiB
    return np.random.default_rng(2).standard_normal(5 * MiB)


@functools.cache
def _members() -> dict[str, bytes]:  # of 128 KiB
    return {f"member{place}": bytes(part) for place, part in enumerate(np.split(_floats(), 320))}


def _tensors() -> dict[str, torch.Tensor]:
    return {f"layer{place}": torch.from_numpy(part) for place, part in enumerate(np.split(_floats(), 40))}


@functools.cache
def _image() -> Image.Image:  # 34 MiB
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (3000, 4000, 3), np.uint8))


def _write_zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _members().items():
            archive.writestr(name, content)


def _read_zip(reader: S3Reader, names: list[str]) -> list[bytes]:
    with zipfile.ZipFile(reader) as archive:
        return [archive.read(name) for name in names]


def _write_tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in _members().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _read_tar(reader: S3Reader) -> list[bytes]:
    with tarfile.open(fileobj=reader) as archive:
        return [archive.extractfile(member).read() for member in archive]


def _write_parquet(file: io.BytesIO) -> None:
    columns = {f"column{place}": part for place, part in enumerate(np.split(_floats(), 8))}
    pq.write_table(pa.table(columns), file, row_group_size=164_000, compression="none", use_dictionary=False)


def _read_parquet(reader: S3Reader) -> list[np.ndarray]:
    return [pq.read_table(reader, columns=["column3"], pre_buffer=False)["column3"].to_numpy()]


def _write_hdf5(file: io.BytesIO) -> None:
    with h5py.File(file, "w") as h5:
        h5.create_dataset("samples", data=_floats().reshape(5120, 1024), chunks=(128, 1024))
        h5.create_dataset("labels", data=_floats()[:5120])


def _read_hdf5(reader: S3Reader) -> np.ndarray:
    with h5py.File(reader, "r") as h5:
        return h5["samples"][2000:2300]


def _read_image(reader: S3Reader) -> np.ndarray:
    with Image.open(reader) as image:
        return np.asarray(image)


def _read_header(reader: S3Reader) -> tuple[int, int]:
    with Image.open(reader) as image:
        return image.size


CASES = {
    "torch.load": Case(
        lambda file: torch.save(_tensors(), file),
        lambda reader: [tensor.numpy() for tensor in torch.load(reader, weights_only=True).values()],
    ),
    "zip, 3 of 320 members": Case(_write_zip, lambda reader: _read_zip(reader, ["member5", "member250", "member100"])),
    "zip, all members": Case(_write_zip, lambda reader: _read_zip(reader, list(_members()))),
    "tar, all members": Case(_write_tar, _read_tar),
    "Parquet, 1 of 8 columns": Case(_write_parquet, _read_parquet),
    "HDF5, a slice of 300 rows": Case(_write_hdf5, _read_hdf5),
    "npy": Case(lambda file: np.save(file, _floats()), lambda reader: [np.load(reader)]),
    "npz, 1 of 8 arrays": Case(
        lambda file: np.savez(file, *np.split(_floats(), 8)), lambda reader: [np.load(reader)["arr_3"]]
    ),
    "TIFF, the image": Case(lambda file: _image().save(file, "TIFF"), _read_image),
    "TIFF, its size": Case(lambda file: _image().save(file, "TIFF"), _read_header),
    "JPEG of 74 kB": Case(lambda file: _image().crop((0, 0, 400, 300)).save(file, "JPEG"), _read_image),
}

READERS = {
    "sequential": S3ReaderConfig.sequential(),
    "range_based": S3ReaderConfig.range_based(),
    "adaptive": S3ReaderConfig.adaptive(),
}

# Requests that adaptive may need in any case, for head and tail, and bytes that it may fetch for nothing: in a row of
# tiny reads twice the bytes is nothing, and a request for each of them the worst of all.
HEAD_AND_TAIL = 2
SLACK = 64 * KiB
# What the head of an answer takes at most, as received bytes include it.
ANSWER = KiB


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_costs_of_formats(client, case, request):
    """Adaptive is at most twice as bad as the better of the two other readers, in requests and in bytes.

    The better one is another one for each: mostly sequential sends fewer requests, and range_based receives fewer
    bytes. Added to twice its number are the requests for head and tail, and 64 KiB.
    """
    file = io.BytesIO()
    case.write(file)
    _put(client, "file", file.getvalue())
    file.seek(0)
    expected = case.read(file)
    traffic = {}
    for name, config in READERS.items():
        before = client.stats
        with client.get_object(BUCKET, "file", reader_config=config) as reader:
            found = case.read(reader)
        after = client.stats
        traffic[name] = (after.requests - before.requests, after.bytes_received - before.bytes_received)
        assert all(np.array_equal(left, right) for left, right in zip(found, expected, strict=True))
    if "FORMAT_COSTS" in os.environ:  # a file that gets the rows of the table in docs/design.md
        with Path(os.environ["FORMAT_COSTS"]).open("a") as table:
            table.write(json.dumps({"format": request.node.callspec.id, **traffic}) + "\n")
    requests, received = traffic.pop("adaptive")
    assert requests <= 2 * min(requests for requests, _ in traffic.values()) + HEAD_AND_TAIL
    assert received - requests * ANSWER <= 2 * min(received for _, received in traffic.values()) + SLACK
