"""Safetensors files in S3: read as the safetensors package reads them, and no byte more than is needed."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import s3torch
from s3torch import S3Client, S3ClientConfig
from s3torch.checkpoint.safetensors import load as load_module
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    ClosedError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
)
from s3torch.safetensors import load_file, safe_open, save_file
from s3torch.testing import FaultyServer, faults

MiB = 1024 * 1024
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.uint32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
]


def _tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    content = (torch.arange(size) % 2 if dtype is torch.bool else torch.arange(size) % 251).to(torch.uint8)
    return content.view(dtype).reshape(shape)


def _model() -> dict[str, torch.Tensor]:
    model = {str(dtype): _tensor(dtype, 3, 5) for dtype in DTYPES}
    return {
        **model,
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "large": _tensor(torch.float32, 1000, 700),
    }


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    left, right = (each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
    return torch.equal(left, right)


def _assert_same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == expected.keys()
    assert [name for name in expected if not _same(loaded[name], expected[name])] == []


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}.safetensors"


@pytest.fixture
def stored(client, bucket, uri) -> dict[str, torch.Tensor]:
    """What the safetensors package has written to ``uri``."""
    model = _model()
    with client.put_object(bucket, uri.removeprefix(f"s3://{bucket}/")) as writer:
        writer.write(safetensors.torch.save(model, {"format": "pt"}))
    return model


def test_reads_what_the_package_wrote(client, uri, stored):
    """Tensors of each dtype, scalars and empty ones are those that were saved."""
    _assert_same(load_file(uri, client=client), stored)


@pytest.fixture
def read_by_the_package(client, bucket, key, tmp_path):
    """Reads what lies at ``uri`` by the safetensors package, which reads files."""

    def read() -> dict[str, torch.Tensor]:
        path = tmp_path / "model.safetensors"
        path.write_bytes(client.get_object(bucket, f"{key}.safetensors").read())
        return safetensors.torch.load_file(path)

    return read


def test_the_package_reads_what_was_written(client, uri, read_by_the_package):
    """The safetensors package reads our files, with their metadata."""
    save_file(_model(), uri, {"format": "pt", "é": "日"}, client=client)
    _assert_same(read_by_the_package(), _model())
    with safe_open(uri, client=client) as file:
        assert file.metadata() == {"format": "pt", "é": "日"}


def test_packed_items(client, uri, read_by_the_package):
    """Two items of F4 lie in a byte: the package and we agree about their shapes."""
    packed = torch.arange(12, dtype=torch.uint8).reshape(3, 4).view(torch.float4_e2m1fn_x2)
    save_file({"packed": packed}, uri, client=client)
    theirs = read_by_the_package()["packed"]
    ours = load_file(uri, client=client)["packed"]
    assert theirs.shape == ours.shape == packed.shape
    assert torch.equal(ours.view(torch.uint8), packed.view(torch.uint8))


def test_requests(client, uri, stored, traffic):
    """A file costs one request for its head and one for each part of its tensors, and no byte twice but the head's."""
    with safe_open(uri, client=client) as file:
        assert traffic.requests == 1
        file.get_tensor("large")
    assert traffic.requests == 2


def test_keys(client, uri, stored, traffic):
    """Only what is asked for is read."""
    loaded = load_file(uri, keys=["scalar", "torch.bool", "scalar"], client=client)
    _assert_same(loaded, {name: stored[name] for name in ("scalar", "torch.bool")})
    assert traffic.bytes_received < MiB
    with pytest.raises(ArgumentError, match=r"has no tensor 'missing' \(1 of the keys"):
        load_file(uri, keys=["scalar", "missing"], client=client)
    for keys in ("scalar", [1]):
        with pytest.raises(ArgumentTypeError, match="keys must be names"):
            load_file(uri, keys=keys, client=client)


def test_tensors_own_their_memory(client, uri, stored):
    """No tensor keeps another's memory alive."""
    for tensor in load_file(uri, client=client).values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_header_beyond_the_first_request(client, uri):
    """A header longer than the first request is read to its end."""
    model = {f"{number:06d}" + "x" * 100: torch.tensor([number]) for number in range(3000)}
    save_file(model, uri, client=client)
    _assert_same(load_file(uri, client=client), model)


def test_large_tensors_come_in_parts(small_parts, uri):
    """A tensor of several parts is whole."""
    model = {"a": _tensor(torch.int32, 3 * MiB), "b": _tensor(torch.int16, 6 * MiB + 1)}
    save_file(model, uri, client=small_parts)
    _assert_same(load_file(uri, client=small_parts), model)


SLICES = [
    ...,
    0,
    -1,
    slice(1, 3),
    slice(None),
    slice(5, 2),
    slice(-100, 100),
    (slice(None), 2),
    (..., slice(1, 2)),
    (0, ..., 3),
    (slice(1, 3), slice(2, 4), slice(0, 1)),
    (1, 2, 3),
    (slice(2, 2), 1),
]


@pytest.mark.parametrize("index", SLICES, ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 20, 5000)], ids=str)
def test_slices(client, uri, index, shape):
    """A slice is what torch's is."""
    whole = _tensor(torch.int32, *shape)
    save_file({"before": torch.zeros(3), "whole": whole}, uri, client=client)
    with safe_open(uri, client=client) as file:
        piece = file.get_slice("whole")
        assert (piece.get_shape(), piece.get_dtype()) == (list(shape), "I32")
        assert _same(piece[index], whole[index])
        assert piece[index].is_contiguous()


def test_a_slice_reads_its_bytes_only(client, uri, stored, traffic):
    """Rows are read, and nothing else."""
    with safe_open(uri, client=client) as file:
        traffic.restart()
        assert torch.equal(file.get_slice("large")[10:13], stored["large"][10:13])
    assert traffic.requests == 1
    assert 3 * 700 * 4 <= traffic.bytes_received < 3 * 700 * 4 + 4096


def test_safe_open(client, uri, stored):
    """It names what it has; closed, it reads nothing."""
    with safe_open(uri, client=client) as file:
        assert file.keys() == sorted(stored)
        assert sorted(file.offset_keys()) == sorted(stored)
        assert repr(file) == f"<SafeOpen {uri} open tensors={len(stored)}>"
        with pytest.raises(ArgumentError, match="has no tensor 'nothing'"):
            file.get_tensor("nothing")
        with pytest.raises(ArgumentError, match="has no tensor 'nothing'"):
            file.get_slice("nothing")
    with pytest.raises(ClosedError, match="was closed"):
        file.get_tensor("scalar")


@pytest.mark.parametrize("where", ["index", "folder"])
def test_sharded(client, bucket, prefix, where):
    """A model in several files is loaded by its index, or by its folder; only the files of the keys are touched."""
    model = {f"t{number}": _tensor(torch.float32, 1000) + number for number in range(5)}
    save_file(model, f"s3://{bucket}/{prefix}model.safetensors", max_shard_size=8000, client=client)
    uri = f"s3://{bucket}/{prefix}" + ("model.safetensors.index.json" if where == "index" else "")
    _assert_same(load_file(uri, client=client), model)
    index = json.loads(client.read_range(bucket, f"{prefix}model.safetensors.index.json", 0))
    lost = index["weight_map"]["t4"]
    client.delete_object(bucket, prefix + lost)
    _assert_same(load_file(uri, keys=["t0", "t3"], client=client), {name: model[name] for name in ("t0", "t3")})
    with pytest.raises(ObjectNotFoundError, match=rf"names 3 files, of which 1 are not there: {lost}\. "):
        load_file(uri, client=client)


def test_a_folder_of_one_file(client, bucket, prefix):
    """A folder without an index holds one file."""
    save_file({"a": torch.ones(3)}, f"s3://{bucket}/{prefix}model.safetensors", client=client)
    assert load_file(f"s3://{bucket}/{prefix}", client=client)["a"].tolist() == [1, 1, 1]


def test_an_index_that_names_what_is_not_there(client, put, bucket, prefix):
    """An index of another model than its files is refused."""
    save_file({"a": torch.ones(3)}, f"s3://{bucket}/{prefix}m.safetensors", client=client)
    put(f"{prefix}i.json", json.dumps({"weight_map": {"b": "m.safetensors"}}).encode())
    with pytest.raises(CheckpointFormatError, match=r"has no tensor 'b', which should be there by s3://.*i\.json"):
        load_file(f"s3://{bucket}/{prefix}i.json", client=client)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}x"])
def test_a_damaged_file_allocates_nothing(client, put, bucket, key, content, monkeypatch):
    """What is no safetensors file is refused before there is a tensor."""
    monkeypatch.setattr(load_module, "empty", lambda *_: pytest.fail("allocated"))
    put(key, content)
    with pytest.raises(CheckpointFormatError, match=f"s3://{bucket}/{key} is no safetensors file"):
        load_file(f"s3://{bucket}/{key}", client=client)


def test_replaced_while_open(client, uri, stored):
    """Header and tensors are of one version: another one is not read."""
    with safe_open(uri, client=client) as file:
        save_file({"large": stored["large"] + 1}, uri, client=client)
        with pytest.raises(ObjectChangedError):
            file.get_tensor("large")


@pytest.mark.parametrize(("device", "pinned"), [("cpu", []), ("cuda", [True])])
def test_memory_is_pinned_for_cuda(client, uri, device, pinned, monkeypatch):
    """What is copied to CUDA is received into pinned memory, what stays on the CPU is not."""
    save_file({"a": torch.ones(3)}, uri, client=client)
    asked = []

    def empty(dtype: torch.dtype, shape: tuple[int, ...], *, pinned: bool = False) -> torch.Tensor:
        asked.extend([True] if pinned else [])
        return torch.empty(shape, dtype=dtype)

    class Stream:
        def synchronize(self) -> None:
            asked.append("synchronized")

    monkeypatch.setattr(load_module, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    assert load_file(uri, device=device, client=client)["a"].tolist() == [1, 1, 1]
    assert asked == (pinned and [True, "synchronized"])


@pytest.mark.parametrize("device", ["meta", "abacus", 1.5])
def test_bad_devices(uri, device):
    """A device that holds no tensors is refused before a request."""
    with pytest.raises(ArgumentError, match=r"device="):
        load_file(uri, device=device)


def test_bad_arguments(client, bucket, uri):
    """Bad arguments are refused, by name."""
    for call in (load_file, safe_open):
        with pytest.raises(InvalidURIError):
            call("/tmp/model", client=client)
        with pytest.raises(ArgumentError, match="is a bucket and no safetensors file"):
            call(f"s3://{bucket}", client=client)
        with pytest.raises(ArgumentError, match="client was given"):
            call(uri, client=client, region="eu-west-1")
        with pytest.raises(ArgumentTypeError, match="client must be an S3Client"):
            call(uri, client="client")
    with pytest.raises(ArgumentError, match="framework='np'"):
        safe_open(uri, "np", client=client)
    for nowhere in (f"s3://{bucket}", f"s3://{bucket}/folder/"):
        with pytest.raises(InvalidURIError, match="an object and no"):
            save_file({}, nowhere, client=client)


def test_own_client(server, s3, uri):
    """Without a client one is made of the other arguments."""
    options = {"region": server.region, "endpoint": server.endpoint, "s3client_config": S3ClientConfig()}
    save_file({"a": torch.ones(2)}, uri, **options)
    assert load_file(uri, **options)["a"].tolist() == [1, 1]
    with safe_open(uri, **options) as file:
        assert file.get_tensor("a").tolist() == [1, 1]


def test_it_is_an_attribute():
    """``s3torch.safetensors`` needs no import of its own."""
    assert s3torch.safetensors.load_file is load_file


@pytest.mark.parametrize(
    "fault",
    [faults.reset_mid_body, faults.truncate, faults.status(503, "SlowDown")],
    ids=["reset", "truncate", "status"],
)
@pytest.mark.parametrize("healthy", [0, 1], ids=["header", "tensors"])
def test_faults(fault, healthy):
    """A fault while the header or the tensors come costs a retry, and no byte is wrong."""
    model = {"a": _tensor(torch.float32, MiB), "b": _tensor(torch.bfloat16, 33)}
    with FaultyServer({"m": safetensors.torch.save(model)}, seed=1) as server:
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        server.script(*[faults.none()] * healthy, fault)
        _assert_same(load_file("s3://bucket/m", client=client), model)
        assert sum(server.injected.values()) >= 1
        client.close()


def test_replaced_while_it_is_loaded():
    """Header and tensors of two versions are never put together."""
    first, second = (safetensors.torch.save({"a": torch.full((MiB,), value)}) for value in (1.0, 2.0))
    with FaultyServer({"m": first}, seed=1) as server:
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        server.script(faults.none(), faults.replaced(second))
        with pytest.raises(ObjectChangedError):
            load_file("s3://bucket/m", client=client)
        client.close()


class _Wrapper(torch.Tensor):
    """A tensor whose bytes are in another, as a DTensor's are."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> torch.Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, *_: object) -> object:
        raise NotImplementedError


def _unsaveable() -> dict[str, tuple[object, str]]:
    base = torch.zeros(4, 4)
    return {
        "shared": ({"a": base, "b": base[0]}, "'a' and 'b' share memory"),
        "transposed": ({"a": torch.zeros(2, 3).t()}, "'a' is not contiguous"),
        "sparse": ({"a": base.to_sparse()}, "'a' is sparse"),
        "meta": ({"a": torch.zeros(2, device="meta")}, "'a' is on the meta device"),
        "dtype": ({"a": torch.zeros(2, dtype=torch.complex128)}, "the safetensors format lacks"),
        "no tensor": ({"a": [1]}, "must map str to tensors"),
        "wrapper": ({"a": _Wrapper(base)}, "'a' is a _Wrapper without memory of its own"),
        "no dict": ([base], "must be a dict"),
    }


@pytest.mark.parametrize("name", _unsaveable())
def test_what_is_not_saved(client, bucket, key, uri, name):
    """What would be another model when it is loaded is refused, and nothing is written."""
    tensors, message = _unsaveable()[name]
    with pytest.raises(ArgumentError, match=message):
        save_file(tensors, uri, client=client)
    with pytest.raises(ObjectNotFoundError):
        client.head_object(bucket, f"{key}.safetensors")


def test_progress(client, uri, capsys, monkeypatch):
    """A bar of all bytes is shown if it is asked for and takes a while, and not otherwise."""
    monkeypatch.setattr("s3torch._progress._SECONDS_BEFORE_BAR", 0.0)
    tensors = {"a": torch.ones(300_000), "b": torch.zeros(200_000), "empty": torch.empty(0)}
    save_file(tensors, uri, client=client, progress=True)
    load_file(uri, client=client, progress=True)
    shown = capsys.readouterr().err
    assert f"Saving {uri}:   0%|          | 0.00/1.91M" in shown
    assert f"Loading {uri}:   0%|          | 0.00/1.91M" in shown
    save_file(tensors, uri, client=client)
    load_file(uri, client=client)
    assert capsys.readouterr().err == ""
