"""S3Checkpoint.load: what torch.load would return, by few requests, straight into the tensors."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor, Shard
from torch.utils.serialization import config as serialization_config

from s3torch import S3Checkpoint, S3ClientConfig
from s3torch.checkpoint.archive import reads_no_values
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    IntegrityError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
    UnverifiedError,
)
from s3torch.testing import FaultyServer, faults
from tests.checkpoint.objects import WrapperTensor, described, one_rank

MiB = 1024 * 1024
BIG = 200_000  # bytes of a storage that is not fetched with the directory


def _state() -> dict[str, Any]:
    torch.manual_seed(1)
    weight = torch.rand(300, 500)
    return {
        "weight": weight,
        "view": weight[3:200:2, 7:],
        "transposed": weight.t(),
        "parameter": nn.Parameter(torch.rand(BIG)),
        "frozen": nn.Parameter(torch.rand(BIG), requires_grad=False),
        "half": torch.rand(BIG).half(),
        "bfloat16": torch.rand(BIG).bfloat16(),
        "int8": torch.randint(-9, 9, (BIG,), dtype=torch.int8),
        "bool": torch.rand(BIG) > 0.5,
        "complex": torch.rand(BIG // 4, dtype=torch.complex64),
        "small": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "nested": [1, "two", None, (torch.rand(BIG), {"three": torch.rand(BIG)})],
        "ordered": OrderedDict(a=torch.rand(BIG)),
    }


def _saved(state: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def _assert_equal(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape, left.device) == (right.dtype, right.shape, right.device)
        assert (left.stride(), left.requires_grad, left.is_conj()) == (
            right.stride(),
            right.requires_grad,
            right.is_conj(),
        )
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            _assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _assert_equal(one, other)
    else:
        assert left == right


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


@pytest.fixture
def checkpoint(s3) -> S3Checkpoint:
    """A checkpoint of small parts."""
    return S3Checkpoint(s3client_config=S3ClientConfig(part_size=5 * MiB))


def test_save_and_load(checkpoint, uri):
    """What was saved is loaded: types, shapes, strides, and who shares memory with whom."""
    state = _state()
    checkpoint.save(state, uri)
    loaded = checkpoint.load(uri)
    _assert_equal(loaded, state)
    assert loaded["view"].untyped_storage().data_ptr() == loaded["weight"].untyped_storage().data_ptr()


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("map_location", [None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, {}])
def test_map_location(checkpoint, uri, map_location, weights_only):
    """Whatever leads to the CPU loads the same."""
    checkpoint.save(_state(), uri)
    _assert_equal(checkpoint.load(uri, map_location, weights_only=weights_only), _state())


def test_another_device(checkpoint, uri):
    """A storage for another device is read before it goes there."""
    checkpoint.save({"weight": torch.rand(BIG)}, uri)
    assert checkpoint.load(uri, "meta")["weight"].device.type == "meta"


def test_map_location_of_a_function(checkpoint, uri):
    """A function gets storages that hold what was saved, and what it returns is used."""
    state = {"weight": torch.rand(BIG), "bias": torch.rand(BIG)}
    checkpoint.save(state, uri)
    seen = []

    def twice(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        seen.append((torch.tensor([]).set_(storage), location))
        return (torch.tensor([]).set_(storage) * 2).untyped_storage()

    loaded = checkpoint.load(uri, twice)
    assert [location for _, location in seen] == ["cpu", "cpu"]
    assert torch.equal(seen[0][0], state["weight"])
    assert torch.equal(loaded["bias"], state["bias"] * 2)


def test_map_location_of_a_function_that_fails(checkpoint, uri):
    """What a user's function raises is not taken for damage of the file."""
    checkpoint.save({"weight": torch.rand(BIG)}, uri)
    with pytest.raises(KeyError, match="mine"):
        checkpoint.load(uri, lambda storage, location: {}["mine"])


def test_a_program(checkpoint, put, key, uri):
    """A TorchScript program is no checkpoint, and the error says what loads it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"program/{name}", b"...")
    put(key, content.getvalue())
    with pytest.raises(CheckpointFormatError, match=rf"{uri} .*torch\.jit\.load"):
        checkpoint.load(uri)


def test_few_requests(checkpoint, uri):
    """A hundred tensors are loaded by a few requests beside those of their bytes."""
    state = {str(number): torch.rand(BIG // 4) for number in range(100)}
    checkpoint.save(state, uri)
    client = checkpoint._client
    before = client.stats
    _assert_equal(checkpoint.load(uri), state)
    sent = client.stats.requests - before.requests
    received = client.stats.bytes_received - before.bytes_received
    size = len(_saved(state))
    assert sent <= 8 + size // MiB  # parts of 4 MiB hold tensors of 200 kB, and headers are read side by side
    assert size * 0.98 <= received < size * 1.1


def _requests(state: object, load: Callable[[S3Checkpoint], Any], **options: Any) -> int:
    """Return how many requests it takes to load a state, which is compared with what torch.load returns."""
    content = _saved(state)
    with FaultyServer({"key": content}) as server:
        config = replace(server.config, **{"part_size": 5 * MiB, **options})
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=config)
        loaded = load(checkpoint)
        expected = torch.load(io.BytesIO(content), weights_only=False)
        assert described(loaded) == described(expected)
        return checkpoint._client.stats.requests


def _load(checkpoint: S3Checkpoint, map_location: Any = None, **options: Any) -> Any:
    return checkpoint.load("s3://bucket/key", map_location, **options)


def test_a_large_pickle():
    """A thousand tensors, whose pickle is above 64 KiB, take few requests."""
    state = {f"layers.{number}.weight": torch.full((17_000,), float(number)) for number in range(1000)}
    assert _requests(state, _load) <= 25  # parts of 4 MiB, directory and pickle


@pytest.mark.parametrize("count", [10, 200])
def test_distributed_tensors(count):
    """DTensors take few requests, however many there are."""
    with one_rank() as mesh:
        state = {str(number): DTensor.from_local(torch.rand(BIG), mesh, [Shard(0)]) for number in range(count)}
        size = count * BIG * 4
        assert _requests(state, _load) <= 8 + size // MiB // 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about some of its tensors
@pytest.mark.parametrize(
    "make",
    [
        lambda number: WrapperTensor(torch.full((BIG,), float(number))),
        lambda number: _Curious(torch.full((BIG,), float(number))),
        lambda number: torch.full((300, 300), number + 1.0).to_sparse(),
        lambda number: torch.quantize_per_tensor(torch.rand(BIG), 0.1, number, torch.qint8),
        lambda number: torch.nested.nested_tensor([torch.rand(BIG), torch.rand(number)]),
    ],
    ids=["wrapper", "curious", "sparse", "quantized", "nested"],
)
def test_other_tensors_take_few_requests(make):
    """What looks at its values while it is made is read ahead."""
    state = [make(number) for number in range(1, 50)]
    size = len(_saved(state))
    assert _requests(state, lambda checkpoint: _load(checkpoint, weights_only=False)) <= 8 + size // MiB


@pytest.mark.parametrize(
    "location", [lambda storage, location: storage, lambda storage, location: None], ids=["itself", "none"]
)
def test_a_function_takes_few_requests(location):
    """A function gets storages that were read ahead."""
    state = [torch.full((BIG,), float(number)) for number in range(50)]
    assert _requests(state, lambda checkpoint: _load(checkpoint, location)) <= 8 + len(_saved(state)) // MiB


def test_what_is_held_is_bounded():
    """No more is read ahead than may be in flight; a storage larger than that goes alone."""
    sizes = [BIG, BIG, 20 * MiB // 4, BIG, BIG, BIG]
    state = [_Curious(torch.full((size,), float(number))) for number, size in enumerate(sizes)]
    parts = {"part_size": 5 * MiB, "max_bytes_in_flight": 10 * MiB, "max_connections": 2}
    assert _requests(state, lambda checkpoint: _load(checkpoint, weights_only=False), **parts) < 30


@pytest.mark.parametrize("location", ["meta", torch.device("meta")])
def test_the_meta_device_needs_no_values(location):
    """To the meta device nothing but the directory and the pickle is read."""
    state = [torch.rand(BIG) for _ in range(30)]
    content = _saved(state)
    with FaultyServer({"key": content}) as server:
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        loaded = _load(checkpoint, location)
        assert [(each.device.type, each.shape) for each in loaded] == [("meta", (BIG,))] * 30
        assert checkpoint._client.stats.bytes_received < MiB


def test_fake_tensors(checkpoint, uri):
    """Under FakeTensorMode tensors have no values, as with torch.load."""
    state = {"a": torch.rand(BIG), "b": nn.Parameter(torch.rand(3))}
    checkpoint.save(state, uri)
    with FakeTensorMode():
        loaded = checkpoint.load(uri)
    assert isinstance(loaded["a"], FakeTensor)
    assert (loaded["a"].shape, loaded["a"].device.type, loaded["b"].requires_grad) == ((BIG,), "cpu", True)


@pytest.mark.parametrize("number", [0, 1, True])
def test_a_number_as_map_location(checkpoint, uri, number):
    """A number names no device to torch.load, and the error says what does."""
    checkpoint.save({"a": torch.rand(BIG)}, uri)
    with pytest.raises(ArgumentTypeError, match=rf"map_location must be .*, got {number}\."):
        checkpoint.load(uri, number)


@pytest.mark.parametrize("location", [1.5, ["cpu"], b"cpu", ("cpu",)])
def test_other_map_locations(checkpoint, uri, location):
    """What torch.load takes for no location is refused by name."""
    with pytest.raises(ArgumentTypeError, match="map_location must be"):
        checkpoint.load(uri, location)


@pytest.mark.parametrize("location", ["nonsense", torch.device("cuda:0")])
def test_a_device_that_is_not_there(checkpoint, uri, location):
    """A device that torch does not have is torch's error, and no damage of the file."""
    checkpoint.save({"a": torch.rand(BIG)}, uri)
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        checkpoint.load(uri, location)
    assert "no checkpoint that can be loaded" not in str(caught.value)


def test_torch_is_told_to_map_files(checkpoint, uri):
    """There is no file to map, so torch's setting for files is none for us."""
    state = _state()
    checkpoint.save(state, uri)
    with serialization_config.patch("load.mmap", True):
        _assert_equal(checkpoint.load(uri), state)
        with pytest.raises(ValueError, match="f must be a file path in order to use the mmap argument"):
            torch.load(checkpoint.reader(uri))
    with pytest.raises(ValueError, match="f must be a file path in order to use the mmap argument"):
        torch.load(checkpoint.reader(uri), mmap=True)


class _Curious:
    """Looks at a tensor as soon as it is unpickled."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.total = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.total = self.tensor.sum().item()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about some of its tensors
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(500, 300).state_dict(),
        lambda: torch.eye(500).to_sparse(),
        lambda: torch.eye(500).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.rand(BIG), 0.1, 0, torch.qint8),
    ],
    ids=["module", "sparse", "csr", "quantized"],
)
def test_other_tensors(checkpoint, uri, make):
    """Tensors whose making looks at values load as well."""
    state = make()
    checkpoint.save(state, uri)
    expected = torch.load(io.BytesIO(_saved(state)), weights_only=True)
    loaded = checkpoint.load(uri)
    if isinstance(loaded, dict):
        _assert_equal(loaded, expected)
    elif loaded.is_quantized:
        assert torch.equal(loaded.int_repr(), expected.int_repr())
    else:
        assert torch.equal(loaded.to_dense(), expected.to_dense())


class _Wrapper(torch.Tensor):
    """A tensor whose bytes are in another, as a DTensor's are."""

    def __new__(cls, inner: torch.Tensor) -> torch.Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(arguments[0].inner)
        raise NotImplementedError(function)


@pytest.mark.parametrize("map_location", [None, "cpu"])
def test_tensors_around_others(checkpoint, uri, map_location):
    """Tensors that torch makes only where it is told no function load as well."""
    inner = torch.rand(BIG)
    checkpoint.save({"a": _Wrapper(inner), "b": inner}, uri)
    loaded = checkpoint.load(uri, map_location, weights_only=False)
    assert type(loaded["a"]) is _Wrapper
    assert torch.equal(loaded["a"].inner, inner)
    assert torch.equal(loaded["b"], inner)


def test_values_are_there_when_somebody_looks(checkpoint, uri):
    """An object that reads its tensor while it is unpickled reads what was saved."""
    checkpoint.save(_Curious(torch.ones(BIG)), uri)
    assert checkpoint.load(uri, weights_only=False).total == BIG


def test_weights_only(checkpoint, uri):
    """What could run code is refused unless it is asked for."""
    checkpoint.save({"curious": _Curious(torch.ones(3))}, uri)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load(uri)


def test_old_format(checkpoint, put, bucket, key, uri):
    """The format of torch before 1.6 loads, too."""
    state = {"weight": torch.rand(BIG)}
    put(key, _saved(state, _use_new_zipfile_serialization=False))
    _assert_equal(checkpoint.load(uri), state)


def test_the_other_byte_order(checkpoint, put, key, uri):
    """A checkpoint of a machine with the other byte order is swapped, as by torch.load."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved({"weight": torch.arange(BIG)}))) as old,
        zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else old.read(info))
    put(key, content.getvalue())
    expected = torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    _assert_equal(checkpoint.load(uri), expected)


def test_missing(checkpoint, uri):
    """What is not there is said so."""
    with pytest.raises(ObjectNotFoundError, match=uri):
        checkpoint.load(uri)


@pytest.mark.parametrize("call", [lambda c: c.load("model.pt"), lambda c: c.save({}, "model.pt")])
def test_bad_uri(checkpoint, call):
    """A URI that is none is refused."""
    with pytest.raises(InvalidURIError, match=r"model\.pt"):
        call(checkpoint)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bucket(checkpoint, bucket, slash):
    """A bucket is no checkpoint: its listing is not taken for one."""
    with pytest.raises(InvalidURIError, match=f"s3://{bucket} is a bucket"):
        checkpoint.load(f"s3://{bucket}{slash}")


CONTENT = _saved({"weight": torch.rand(BIG), "bias": torch.rand(10)})


@pytest.mark.parametrize("size", [0, 3, 100, 1000, BIG, len(CONTENT) - 1000, len(CONTENT) - 30, len(CONTENT) - 1])
def test_cut_off(checkpoint, put, key, uri, size):
    """A file that is cut off is said to be so."""
    put(key, CONTENT[:size])
    with pytest.raises(CheckpointFormatError, match=f"{uri} .*(cut off|damaged|no checkpoint)"):
        checkpoint.load(uri)


def _compressed() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(CONTENT)) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _another_zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("readme.txt", b"text" * 10)
    return content.getvalue()


@pytest.mark.parametrize("make", [_compressed, _another_zip], ids=["compressed", "another"])
def test_archives_of_others(checkpoint, put, key, uri, make: Callable[[], bytes]):
    """A zip archive that torch.save did not write is refused by name."""
    put(key, make())
    with pytest.raises(CheckpointFormatError, match=uri):
        checkpoint.load(uri)


def test_damaged_in_many_places():
    """Whatever byte of the records' headers or of the directory is another one, there is an error or the same state."""
    chance = random.Random(3)
    expected = torch.load(io.BytesIO(CONTENT), weights_only=True)
    weight = CONTENT.index(expected["weight"].numpy().tobytes())
    places = [*range(weight), *range(weight + 4 * BIG, len(CONTENT))]
    with FaultyServer() as server:
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        for number, place in enumerate(chance.sample(places, 300)):
            damaged = bytearray(CONTENT)
            damaged[place] ^= 1 << chance.randrange(8)
            server.objects[f"key{number}"] = bytes(damaged)
            ours = _outcome(checkpoint.load, f"s3://bucket/key{number}")
            theirs = _outcome(torch.load, io.BytesIO(damaged))
            if not isinstance(ours, Exception):
                _assert_equal(ours, theirs)


def _outcome(load: Callable[..., Any], file: object) -> Any:
    try:
        return load(file, weights_only=True)
    except (CheckpointFormatError, RuntimeError, pickle.UnpicklingError) as error:
        return error
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        assert load is torch.load
        return error


def test_strict_checks_what_torch_noted(put, key, uri, s3):
    """With checksums="strict" a byte that is another one than was saved is noticed by the zip directory."""
    weight = torch.load(io.BytesIO(CONTENT), weights_only=True)["weight"].numpy().tobytes()
    damaged = bytearray(CONTENT)
    damaged[CONTENT.index(weight) + 1000] ^= 1
    put(key, bytes(damaged))
    S3Checkpoint().load(uri)
    with pytest.raises(IntegrityError, match=f"data/0' in {uri} does not have the CRC-32"):
        S3Checkpoint(s3client_config=S3ClientConfig(checksums="strict")).load(uri)


def _files() -> dict[str, bytes]:
    """Return files with records of all kinds: small, large, in an order of bytes that torch swaps."""
    with one_rank() as mesh:
        state = {
            "lr": 0.125,
            "small": torch.arange(1024.0),
            "large": torch.rand(BIG),
            "wrapped": DTensor.from_local(torch.arange(1024.0), mesh, [Shard(0)]),
        }
        wrapped = _saved(state)
        del state["wrapped"]
        return {"plain": _saved(state), "distributed": wrapped, "many": _saved({**state, "x": ["y" * 99] * 999})}


@pytest.mark.parametrize("name", ["plain", "distributed", "many"])
def test_strict_checks_each_record(name):
    """With checksums="strict" a bit that flipped in any record is noticed, wherever it is."""
    content = _files()[name]
    with one_rank(), FaultyServer() as server:
        checkpoint = S3Checkpoint(
            "us-east-1", endpoint=server.endpoint, s3client_config=replace(server.config, checksums="strict")
        )
        server.objects["key"] = content
        expected = described(_load(checkpoint))
        archive = zipfile.ZipFile(io.BytesIO(content))
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", content, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            for place in {start, start + info.file_size // 2, start + info.file_size - 1}:
                damaged = bytearray(content)
                damaged[place] ^= 4
                server.objects["key"] = bytes(damaged)
                server.objects.checksums_of("key").clear()
                with pytest.raises(IntegrityError, match="does not have the CRC-32"):
                    _load(checkpoint)
        server.objects["key"] = content
        assert described(_load(checkpoint)) == expected


def _without_crc32s() -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return _saved({"weight": torch.rand(BIG), "bias": torch.rand(10)})
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize(
    "make",
    [_without_crc32s, lambda: _saved({"weight": torch.rand(BIG)}, _use_new_zipfile_serialization=False)],
    ids=["without", "legacy"],
)
def test_strict_without_crc32s(make):
    """A file that proves nothing by itself is proven by the object's checksum, or not loaded."""
    content = make()
    with FaultyServer({"key": content}) as server:
        checkpoint = S3Checkpoint(
            "us-east-1", endpoint=server.endpoint, s3client_config=replace(server.config, checksums="strict")
        )
        _assert_equal(_load(checkpoint), torch.load(io.BytesIO(content)))
        noted = dict(server.objects.checksums_of("key"))
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 1
        server.objects["key"] = bytes(damaged)
        server.objects.checksums_of("key").update(noted)
        with pytest.raises(IntegrityError):
            _load(checkpoint)
        server.objects.checksums_of("key").clear()
        with pytest.raises(UnverifiedError, match="s3://bucket/key was read but cannot be verified"):
            _load(checkpoint)


def test_replaced_while_it_is_loaded(monkeypatch):
    """Bytes of two versions are never mixed."""
    with FaultyServer({"key": CONTENT}) as server:
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        original = torch.load

        def load(*arguments: Any, **keywords: Any) -> Any:
            state = original(*arguments, **keywords)
            server.objects["key"] = _saved({"weight": torch.zeros(BIG), "bias": torch.rand(10)})
            return state

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(ObjectChangedError, match="s3://bucket/key"):
            checkpoint.load("s3://bucket/key")


def test_faults_are_outlasted():
    """Requests that fail in passing are sent again."""
    with FaultyServer({"key": CONTENT}, seed=1) as server:
        server.rates({faults.status(503): 0.2, faults.reset_mid_body(): 0.2})
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        expected = torch.load(io.BytesIO(CONTENT), weights_only=True)
        for _ in range(20):
            _assert_equal(checkpoint.load("s3://bucket/key"), expected)
        assert server.injected.total() > 5


def test_progress(checkpoint, uri, capsys, monkeypatch):
    """A bar is shown if it is asked for and takes a while, and not otherwise."""
    monkeypatch.setattr("s3torch._progress._SECONDS_BEFORE_BAR", 0.0)
    checkpoint.save(_state(), uri, progress=True)
    checkpoint.load(uri, progress=True)
    shown = capsys.readouterr().err
    assert f"Saving {uri}" in shown
    assert f"Loading {uri}" in shown
    checkpoint.save(_state(), uri)
    checkpoint.load(uri)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("state", "is_blind"),
    [
        ({"a": torch.rand(3), "b": [nn.Parameter(torch.rand(2))], "c": OrderedDict(d=torch.rand(1).half())}, True),
        ({"a": torch.Size([1, 2]), "b": torch.float32, "c": torch.device("cpu")}, True),
        (torch.eye(3).to_sparse(), False),
        (_Curious(torch.rand(2)), False),
    ],
)
def test_which_pickles_read_no_values(state, is_blind):
    """Only pickles that name nothing but tensors and plain containers are taken for blind."""
    with zipfile.ZipFile(io.BytesIO(_saved(state))) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("data.pkl")]
        assert reads_no_values(archive.read(name)) == is_blind


def test_a_load_is_an_argument_error_for_nobody():
    """The error of a damaged file can be caught with other bad input."""
    assert issubclass(CheckpointFormatError, ArgumentError)


def test_a_record_that_is_called_a_folder(checkpoint, put, key, uri):
    """Of such a record torch reads nothing: its tensor would be whatever lay in its memory."""
    file = io.BytesIO()
    torch.save({"large": torch.arange(100_000.0), "small": torch.ones(3)}, file)
    content = file.getvalue()
    entry, found = 0, []
    while (entry := content.find(b"PK\x01\x02", entry + 1)) > 0:
        damaged = bytearray(content)
        damaged[entry + 38] ^= 0x10  # of its attributes
        put(key, bytes(damaged))
        with pytest.raises(CheckpointFormatError, match=f"{uri} .*a folder"):
            checkpoint.load(uri)
        found.append(entry)
    assert len(found) >= 5
