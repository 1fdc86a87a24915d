"""Distributed checkpoints of s3torchconnector's programs: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from tests.compat.connector import importable

with importable():
    from s3torchconnector import S3Exception, S3ReaderConstructor
    from s3torchconnector._s3client import S3Client
    from s3torchconnector.dcp import (
        BinaryPrefixStrategy,
        DefaultPrefixStrategy,
        HexPrefixStrategy,
        S3FileSystem,
        S3PrefixStrategyBase,
        S3StorageReader,
        S3StorageWriter,
    )
    from s3torchconnector.dcp.s3_prefix_strategy import NumericPrefixStrategy, RoundRobinPrefixStrategy
    from s3torchconnector.s3reader import SequentialS3Reader

pytestmark = pytest.mark.usefixtures("found")

REGION = "us-east-1"
ODD = "test_[+re.name]!@$%^&*_(src)"


@pytest.fixture
def path(bucket, prefix) -> str:
    """A URI under which no other test saves."""
    return f"s3://{bucket}/{prefix}step"


@pytest.fixture
def fs() -> S3FileSystem:
    """A file system as programs make it."""
    return S3FileSystem(REGION)


def _save(path: str, value: float, **options: Any) -> None:
    writer = S3StorageWriter(region=REGION, path=path, **options)
    dcp.save({"weight": torch.full((10,), value)}, storage_writer=writer, no_dist=True)


def _load(path: str, **options: Any) -> torch.Tensor:
    state = {"weight": torch.zeros(10)}
    dcp.load(state, storage_reader=S3StorageReader(region=REGION, path=path, **options), no_dist=True)
    return state["weight"]


def test_example(path, names):
    """The example of the documentation: a model is saved, and loaded into another."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    s3_storage_writer = S3StorageWriter(region=REGION, path=f"{path}/", thread_count=8)
    dcp.save(state_dict=model.state_dict(), storage_writer=s3_storage_writer, no_dist=True)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    model_state_dict = other.state_dict()
    s3_storage_reader = S3StorageReader(region=REGION, path=f"{path}/")
    dcp.load(state_dict=model_state_dict, storage_reader=s3_storage_reader, no_dist=True)
    other.load_state_dict(model_state_dict)
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other[1].running_var, model[1].running_var)
    assert ".metadata" in names(path)
    assert ".metadata.tmp" not in names(path)


def test_overwrite(path):
    """A checkpoint is replaced, with a warning of torch's; ``overwrite=False`` refuses, and leaves it."""
    _save(path, 1.0)
    with pytest.warns(UserWarning, match="Detected an existing checkpoint"):
        _save(path, 2.0)
    assert torch.equal(_load(path), torch.full((10,), 2.0))
    with pytest.raises(CheckpointException, match="already exists"):
        _save(path, 3.0, overwrite=False)
    assert torch.equal(_load(path), torch.full((10,), 2.0))


def test_options_of_torch(path, names):
    """Arguments of torch's FileSystemWriter are passed on."""
    writer = S3StorageWriter(REGION, path, single_file_per_rank=False, per_thread_copy_ahead=1000)
    dcp.save({"a": torch.ones(3), "b": torch.ones(4)}, storage_writer=writer, no_dist=True)
    assert names(path) == [".metadata", "__0_0.distcp", "__0_1.distcp"]


@pytest.mark.parametrize("kind", [DefaultPrefixStrategy, RoundRobinPrefixStrategy])
def test_strategies_of_one_rank(path, names, kind: Any):
    """A strategy is asked for each rank's prefix."""
    strategy = kind() if kind is DefaultPrefixStrategy else kind(user_prefixes=["shard1", "shard2"], epoch_num=5)
    _save(path, 1.0, prefix_strategy=strategy)
    begin = "__0_" if kind is DefaultPrefixStrategy else "shard1/epoch_5/__0_"
    assert names(path) == sorted([".metadata", f"{begin}0.distcp"])
    assert torch.equal(_load(path), torch.ones(10))


def test_missing(path):
    """A checkpoint that is not there is an error that begins with the words of the service."""
    with pytest.raises(CheckpointException, match="Service error: The "):
        _load(path)


def test_readers_of_files(path, fs, bucket):
    """``create_stream`` writes and reads files, by the reader that was chosen; nothing else."""
    constructors = [None, S3ReaderConstructor.range_based(), S3ReaderConstructor.sequential()]
    for constructor in constructors:
        given = S3FileSystem(region=REGION, s3_client=S3Client(REGION), reader_constructor=constructor)
        with given.create_stream(f"{path}/file", "wb") as stream:
            stream.write(b"content")
            assert stream.tell() == 7
        with given.create_stream(f"{path}/file", "rb") as stream:
            assert (stream.read(3), stream.seek(1), stream.read()) == (b"con", 1, b"ontent")
            assert (stream.bucket, f"s3://{bucket}/{stream.key}") == (bucket, f"{path}/file")
    for mode in ("r", "w", "x", ""):
        with pytest.raises(ValueError, match=f"Invalid mode='{mode}' mode argument: create_stream only supports rb"):
            fs.create_stream(f"{path}/file", mode).__enter__()


class Kept(io.BytesIO):
    """A file whose content can be read after torch has closed it."""

    def close(self) -> None:
        pass


class Upside(S3FileSystem):
    """A file system of the program's own, which stores each byte the other way round."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            if mode == "wb":
                buffer = Kept()
                yield buffer
                stream.write(bytes(255 - each for each in buffer.getvalue()))
            else:
                yield io.BytesIO(bytes(255 - each for each in stream.read()))


class CountedReader(SequentialS3Reader):
    """A reader that derives from the package's."""

    opened: ClassVar[list[str]] = []

    def __init__(self, bucket: str, key: str, get_object_info: Any, get_stream: Any) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        CountedReader.opened.append(key.rpartition("/")[2])


def test_file_system_of_its_own(path):
    """All of a checkpoint goes through a file system that a program puts in its place."""
    writer = S3StorageWriter(REGION, path)
    writer.fs = Upside(REGION)
    dcp.save({"weight": torch.full((10,), 3.0)}, storage_writer=writer, no_dist=True)
    state = {"weight": torch.zeros(10)}
    reader = S3StorageReader(REGION, path)
    reader.fs = Upside(REGION)
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert torch.equal(state["weight"], torch.full((10,), 3.0))
    with pytest.raises(CheckpointException):
        _load(path)


def test_readers_of_its_own(path):
    """All of a checkpoint is read by readers that derive from the package's."""
    _save(path, 1.0)
    CountedReader.opened.clear()
    assert torch.equal(_load(path, reader_constructor=partial(CountedReader)), torch.ones(10))
    assert set(CountedReader.opened) == {".metadata", "__0_0.distcp"}


# The file system


@pytest.mark.parametrize("name", [ODD, "a b/c+d", "é/ü", "100%", "a=b&c?d#e", "plain"])
def test_rename(path, fs, names, name: str):
    """Renaming takes any key to any other, whatever is in them."""
    with fs.create_stream(f"{path}/{name}", "wb") as stream:
        stream.write(b"content")
    fs.rename(f"{path}/{name}", f"{path}/{name}-new")
    assert names(path) == [f"{name}-new"]
    fs.rename(f"{path}/{name}-new", f"{path}/new")
    assert _content(f"{path}/new", fs) == b"content"


def test_files(path, fs, names):
    """Files exist or do not, are removed or were not there; folders are nothing."""
    with fs.create_stream(f"{path}/file", "wb") as stream:
        stream.write(b"content")
    assert (fs.exists(f"{path}/file"), fs.exists(f"{path}/other"), fs.exists(path)) == (True, False, False)
    fs.mkdir(f"{path}/folder")
    fs.rm_file(f"{path}/other")
    assert names(path) == ["file"]
    fs.rm_file(f"{path}/file")
    assert names(path) == []


def test_paths(fs):
    """Paths are URIs, joined by slashes."""
    assert [fs.concat_path(base, "x") for base in ("s3://b/k", "s3://b/k/")] == ["s3://b/k/x"] * 2
    assert fs.concat_path("s3://b/k//", "x") == "s3://b/k//x"
    assert [fs.init_path(each) for each in ("s3://b/k", "s3://b/k/")] == ["s3://b/k", "s3://b/k/"]
    valid = ("s3://b/k", "s3://b", Path("any"))
    assert [S3FileSystem.validate_checkpoint_id(each) for each in valid] == [True] * 3
    assert [S3FileSystem.validate_checkpoint_id(each) for each in ("b/k", "s3:///k", "")] == [False] * 3


def _content(path: str, fs: S3FileSystem) -> bytes:
    with fs.create_stream(path, "rb") as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda fs: fs.rename("s3://a/k", "s3://b/k"),
            ValueError,
            r"Source and destination buckets cannot be different \(rename does not support cross-buckets operations\)",
        ),
        (lambda fs: fs.rename("a/k", "s3://b/k"), ValueError, "Only s3:// URIs are supported"),
        (lambda fs: fs.exists("b/k"), ValueError, "Only s3:// URIs are supported"),
        (lambda fs: fs.exists("s3:///k"), ValueError, "Bucket name must be non-empty"),
        (lambda fs: fs.rm_file("b/k"), ValueError, "Only s3:// URIs are supported"),
        (lambda fs: fs.rename("s3://tests/no", "s3://tests/k"), S3Exception, "Service error: The object was not found"),
        (lambda fs: _content("s3://tests/no", fs), S3Exception, "Service error: The key does not exist"),
    ],
)
def test_bad_files(fs, act: Callable[[Any], object], error: type[Exception], message: str):
    """What cannot be done is refused by the same types and texts."""
    with pytest.raises(error, match=f"^{message}"):
        act(fs)


# Strategies


class Custom(S3PrefixStrategyBase):
    """A strategy of a program's own, as the documentation shows it."""

    def __init__(self, custom_param: str) -> None:
        super().__init__()
        self.custom_param = custom_param

    def generate_prefix(self, rank: int) -> str:
        return f"custom_{self.custom_param}/{rank}/"


class LargeHex(HexPrefixStrategy):
    """A strategy that writes numbers in its own way."""

    def _format_number(self, number: int, length: int) -> str:
        return f"{number:0{length}X}"


class Letters(NumericPrefixStrategy):
    """A strategy with a base of its own."""

    def __init__(self) -> None:
        super().__init__(base=26, min_prefix_length=2, prefix_count=30)

    def _format_number(self, number: int, length: int) -> str:
        return (chr(97 + number // 26) + chr(97 + number % 26)).rjust(length, "a")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (LargeHex(prefix_count=16, min_prefix_length=4), ["0000/__0_", "1000/__1_", "2000/__2_"]),
        (Letters(), ["aa/__0_", "ba/__1_", "ca/__2_"]),
        (DefaultPrefixStrategy(), ["__0_", "__1_", "__2_"]),
        (BinaryPrefixStrategy(prefix_count=4), ["0000000000/__0_", "1000000000/__1_", "0100000000/__2_"]),
        (
            BinaryPrefixStrategy(epoch_num=3, prefix_count=2, min_prefix_length=1),
            ["0/epoch_3/__0_", "1/epoch_3/__1_", "0/epoch_3/__2_"],
        ),
        (BinaryPrefixStrategy(), ["0000000000/__0_", "0000000000/__1_", "0000000000/__2_"]),
        (HexPrefixStrategy(prefix_count=300, min_prefix_length=1), ["000/__0_", "100/__1_", "200/__2_"]),
        (
            HexPrefixStrategy(min_prefix_length=4, prefix_count=16, epoch_num=0),
            ["0000/epoch_0/__0_", "1000/epoch_0/__1_", "2000/epoch_0/__2_"],
        ),
        (RoundRobinPrefixStrategy(["a", "b"], epoch_num=5), ["a/epoch_5/__0_", "b/epoch_5/__1_", "a/epoch_5/__2_"]),
        (RoundRobinPrefixStrategy(["a"]), ["a/__0_", "a/__1_", "a/__2_"]),
        (Custom("x"), ["custom_x/0/", "custom_x/1/", "custom_x/2/"]),
    ],
)
def test_prefixes(strategy: Any, expected: list[str]):
    """Prefixes of the first three ranks."""
    assert [strategy(rank) for rank in range(3)] == expected
    assert [strategy.generate_prefix(rank) for rank in range(3)] == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: BinaryPrefixStrategy(min_prefix_length=0),
            ValueError,
            "Minimum prefix length must be positive, got 0",
        ),
        (lambda: HexPrefixStrategy(epoch_num="x"), ValueError, "Epoch number must be None or an integer, got x"),
        (lambda: HexPrefixStrategy(prefix_count=0), ValueError, "Prefix count must be a positive integer, got 0"),
        (lambda: HexPrefixStrategy(prefix_count="x"), ValueError, "Prefix count must be a positive integer, got x"),
        (lambda: RoundRobinPrefixStrategy([]), ValueError, "user_prefixes must not be empty"),
        (lambda: BinaryPrefixStrategy(min_prefix_len=10), TypeError, "unexpected keyword argument 'min_prefix_len'"),
        (S3PrefixStrategyBase, TypeError, "Can't instantiate abstract class S3PrefixStrategyBase"),
    ],
)
def test_bad_strategies(make: Callable[[], object], error: type[Exception], message: str):
    """What is no strategy is refused by the same types and texts."""
    with pytest.raises(error, match=message):
        make()


def test_numbers_in_its_own_way():
    """What a strategy says of a number is what it begins with, the last digit first."""
    assert LargeHex(prefix_count=16, min_prefix_length=4)(11) == "B000/__11_"
    assert Letters()(28) == "cb/__28_"


def test_strategies_are_of_one_base():
    """All are strategies, those that count are numeric."""
    for kind in (
        DefaultPrefixStrategy,
        NumericPrefixStrategy,
        BinaryPrefixStrategy,
        HexPrefixStrategy,
        RoundRobinPrefixStrategy,
    ):
        assert issubclass(kind, S3PrefixStrategyBase)
    assert issubclass(BinaryPrefixStrategy, NumericPrefixStrategy)
