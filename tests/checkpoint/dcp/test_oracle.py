"""Distributed checkpoints of random tensors, beside torch's own writer and reader, and the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.utils.serialization import config as serialization_config

from s3torch.checkpoint.safetensors.format import parse_header
from s3torch.checkpoint.storages import contiguous
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.safetensors import load_file, save_file
from s3torch.testing import FaultyServer
from tests.checkpoint.objects import bytes_of, dtypes, tensor_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_PATH = "s3://bucket/checkpoint"
_FORMATS = [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS]
_IN_SAFETENSORS = [dtype for dtype in dtypes() if dtype not in (torch.complex32, torch.complex128)]
_relaxed = settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """A server that loses nothing."""
    with FaultyServer() as server:
        yield server


def _writer(server: FaultyServer, form: SerializationFormat) -> S3StorageWriter:
    return S3StorageWriter(
        "us-east-1",
        _PATH,
        endpoint=server.endpoint,
        s3client_config=server.config,
        serialization_format=form,
        thread_count=2,
    )


def _reader(server: FaultyServer) -> S3StorageReader:
    return S3StorageReader("us-east-1", _PATH, endpoint=server.endpoint, s3client_config=server.config)


_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda tensor: tensor,
    "part": lambda tensor: tensor[1:],
    "rows": lambda tensor: tensor[: len(tensor) // 2 * 2].view(2, -1),
    "transposed": lambda tensor: tensor[: len(tensor) // 2 * 2].view(2, -1).t(),
    "scalar": lambda tensor: tensor[0] if len(tensor) else tensor,
    "conjugate": lambda tensor: tensor.conj(),
    "negative": lambda tensor: (
        torch._neg_view(tensor) if tensor.is_floating_point() and tensor.itemsize > 1 else tensor
    ),
    "imaginary": lambda tensor: tensor.conj().imag if tensor.dtype is torch.complex64 else tensor,
}


@st.composite
def _states(draw: st.DrawFn, among: list[torch.dtype]) -> dict[str, torch.Tensor]:
    """Draw tensors, each in memory of its own: shared memory is refused by safetensors files."""
    state = {}
    for number in range(draw(st.integers(1, 5))):
        dtype, size = draw(st.sampled_from(among)), draw(st.sampled_from([0, 1, 6, 1000, 300_000]))
        view = draw(st.sampled_from(sorted(_VIEWS)))
        tensor = _VIEWS[view](tensor_of(dtype, size, number))
        if dtype.itemsize == 1 and not tensor.dim() and "float4" in str(dtype):
            tensor = tensor.view(1)  # is refused, which is another test
        state[f"{number} {view} {dtype} {size}"] = tensor
    return state


def _blank(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of the same shapes to load into, each byte of which is another one."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).view(torch.uint8).zero_().view(tensor.dtype)
        if tensor.dim() and tensor.dtype is not torch.bool
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in state.items()
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = contiguous(tensor).view(-1).clone()
    return bytes_of(plain.untyped_storage()) if plain.numel() else b""


def _assert_same(loaded: dict[str, Any], state: dict[str, Any]) -> None:
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert (loaded[name].shape, loaded[name].dtype) == (tensor.shape, tensor.dtype)
        assert _bytes(loaded[name]) == _bytes(tensor), name


def _all_states() -> st.SearchStrategy[tuple[SerializationFormat, dict[str, torch.Tensor]]]:
    return st.sampled_from(_FORMATS).flatmap(
        lambda form: st.tuples(
            st.just(form), _states(_IN_SAFETENSORS if form is SerializationFormat.SAFETENSORS else dtypes())
        )
    )


@_relaxed
@given(drawn=_all_states())
def test_what_is_saved_is_loaded(server, drawn):
    """Tensors of each dtype are loaded as they were saved, in both formats."""
    form, state = drawn
    dcp.save(state, storage_writer=_writer(server, form), no_dist=True)
    loaded = _blank(state)
    dcp.load(loaded, storage_reader=_reader(server), no_dist=True)
    _assert_same(loaded, state)


@_relaxed
@given(state=_states([dtype for dtype in dtypes() if "float4" not in str(dtype)]))  # which torch's reader cannot copy
def test_torch_reads_it(server, state, tmp_path_factory):
    """What is written here, torch's own reader loads."""
    server.objects.clear()
    dcp.save(state, storage_writer=_writer(server, SerializationFormat.TORCH_SAVE), no_dist=True)
    folder = tmp_path_factory.mktemp("read")
    for key in list(server.objects):
        (folder / key.removeprefix("checkpoint/")).write_bytes(server.objects[key])
    loaded = _blank(state)
    dcp.load(loaded, storage_reader=FileSystemReader(folder), no_dist=True)
    _assert_same(loaded, state)


@_relaxed
@given(state=_states(dtypes()))
def test_it_reads_torchs(server, state, tmp_path_factory):
    """What torch's own writer wrote is loaded here."""
    folder: Path = tmp_path_factory.mktemp("written")
    dcp.save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    server.objects.clear()
    for file in folder.iterdir():
        server.objects[f"checkpoint/{file.name}"] = file.read_bytes()
    loaded = _blank(state)
    dcp.load(loaded, storage_reader=_reader(server), no_dist=True)
    _assert_same(loaded, state)


@_relaxed
@given(state=_states(_IN_SAFETENSORS))
def test_its_files_are_safetensors(server, state):
    """Each file says of its tensors what the safetensors package would, and has their bytes."""
    server.objects.clear()
    dcp.save(state, storage_writer=_writer(server, SerializationFormat.SAFETENSORS), no_dist=True)
    found = {}
    for key in server.objects:
        content = server.objects[key]
        if key.endswith(".distcp"):
            size = int.from_bytes(content[:8], "little")
            header = parse_header(content[8 : 8 + size], len(content), key)
            for name, info in header.tensors.items():
                found[name] = info.dtype, list(info.shape), content[info.start : info.stop]
    assert found == _by_the_package(state)


@_relaxed
@given(state=_states(_IN_SAFETENSORS))
def test_save_file_is_the_packages(server, state):
    """save_file says of tensors what the package says, and has their bytes; load_file returns them."""
    server.objects.clear()
    plain = {name: contiguous(tensor) for name, tensor in state.items()}
    options: dict[str, Any] = {"region": "us-east-1", "endpoint": server.endpoint, "s3client_config": server.config}
    save_file(plain, "s3://bucket/model.safetensors", **options)
    content = server.objects["model.safetensors"]
    size = int.from_bytes(content[:8], "little")
    header = parse_header(content[8 : 8 + size], len(content), "model.safetensors")
    found = {
        name: (info.dtype, list(info.shape), content[info.start : info.stop]) for name, info in header.tensors.items()
    }
    assert found == _by_the_package(state)
    _assert_same(load_file("s3://bucket/model.safetensors", **options), state)


def _by_the_package(state: dict[str, torch.Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    content = save({name: contiguous(tensor) for name, tensor in state.items()})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    data = content[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], data[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
    }


_ODD: dict[str, Callable[[], torch.Tensor]] = {
    "complex128": lambda: torch.ones(3, dtype=torch.complex128),
    "complex32": lambda: torch.empty(3, dtype=torch.complex32),
    "scalar float4": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)[0],
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
}
if not hasattr(torch, "float4_e2m1fn_x2"):
    del _ODD["scalar float4"]


@pytest.mark.parametrize("name", _ODD)
def test_what_the_format_lacks(server, name):
    """What a safetensors file cannot hold is refused by the name of its tensor, and no checkpoint is left."""
    tensor = _ODD[name]()
    server.objects.clear()
    with pytest.raises(CheckpointException, match="the_odd_one"):
        dcp.save(
            {"good": torch.ones(3), "the_odd_one": tensor},
            storage_writer=_writer(server, SerializationFormat.SAFETENSORS),
            no_dist=True,
        )
    assert "checkpoint/.metadata" not in server.objects


def test_torch_is_told_to_map_files(server):
    """Tensors are loaded where torch is told to map files: there is none."""
    state = {"transposed": torch.arange(6).view(2, 3).t(), "conjugate": torch.tensor([1 + 2j]).conj()}
    dcp.save(state, storage_writer=_writer(server, SerializationFormat.TORCH_SAVE), no_dist=True)
    loaded = _blank(state)
    with serialization_config.patch("load.mmap", True):
        dcp.load(loaded, storage_reader=_reader(server), no_dist=True)
    _assert_same(loaded, state)
