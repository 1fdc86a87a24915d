"""The outline of a checkpoint: what torch.save writes, with the storages sent from where they are."""

from __future__ import annotations

import gc
import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3torch import S3Checkpoint, S3ClientConfig
from s3torch.checkpoint import outline as outline_module
from s3torch.checkpoint.outline import Outline, torch_save
from s3torch.checkpoint.staging import Staging
from s3torch.checkpoint.storages import memory
from s3torch.errors import IntegrityError, S3Error
from s3torch.safetensors import save_file
from s3torch.testing import FaultyServer

MiB = 1024 * 1024
GiB = 1024 * MiB

has_skip_data = pytest.mark.skipif(not hasattr(torch.serialization, "skip_data"), reason="torch 2.6 has it")


class File:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.lasting = 0

    def write(self, data):
        self.content += bytes(data)
        return len(data)

    def write_lasting(self, data):
        self.lasting += 1
        self.write(data)
        return zlib.crc32(data)

    def flush(self):
        pass


class Log(File):
    """Keeps small writes, and of large ones length and CRC-32."""

    def write(self, data):
        if len(data) < MiB:
            return super().write(data)
        self.content += f"<{len(data)} {zlib.crc32(data)}>".encode()
        return len(data)


class Saver:
    """Saves its state by itself, as an object that is pickled may."""

    def __init__(self, state: object) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        torch.save(self.state, file)
        return _load, (type(self), file.getvalue())


class Pickled(Saver):
    """Pickles its state by itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), pickle.dumps(self.state))


def _load(kind: type[Saver], content: bytes) -> Saver:
    return kind(torch.load(io.BytesIO(content)))


def _unpickle(kind: type[Saver], content: bytes) -> Saver:
    return kind(pickle.loads(content))


def quietly(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return a tensor of a kind that torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def states() -> dict[str, object]:
    """Return what is saved, by name."""
    base = torch.arange(100_000.0)
    return {
        "nothing": {},
        "no tensors": {"a": 1, "b": ["text", None, 2.5, {3}]},
        "one": torch.ones(3),
        "many": {f"{number}": torch.full((1000 + number,), float(number)) for number in range(30)},
        "large": {"a": torch.arange(3 * MiB), "b": torch.ones(7)},
        "views": {"whole": base, "part": base[10:20], "again": base, "strided": base[::7]},
        "empty": {"none": torch.empty(0), "some": torch.ones(2), "no rows": torch.empty(0, 5)},
        "dtypes": {
            str(dtype): torch.ones(9).to(dtype)
            for dtype in (torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn)
        },
        "kinds": OrderedDict(
            parameter=torch.nn.Parameter(torch.ones(3)),
            sparse=torch.eye(4).to_sparse(),
            storage=torch.ones(4).untyped_storage(),
            conjugate=torch.ones(3, dtype=torch.complex64).conj(),
            model=torch.nn.Linear(3, 4).state_dict(),
        ),
        "meta": {"meta": torch.empty(5, device="meta"), "real": torch.ones(2)},
        "quantized": quietly(lambda: torch.quantize_per_tensor(torch.arange(9.0), 0.1, 0, torch.qint8)),
        "nested": quietly(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "lazy": {"a": (base := torch.arange(1000.0)), "b": torch._lazy_clone(base)},
        "savers": {"a": Saver(torch.arange(9.0)), "b": torch.ones(3), "c": Pickled(torch.arange(9.0))},
    }


def without_id(content: bytes) -> bytes:
    """Return a file without its serialization_id, which torch makes of the CRC-32s while it writes them."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    [info] = [info for info in archive.infolist() if info.filename.endswith("/.data/serialization_id")]
    found = archive.read(info)
    crc32 = info.CRC.to_bytes(4, "little")
    assert content.count(found) == 1
    return content.replace(found, b"").replace(crc32, b"")


@has_skip_data
@pytest.mark.parametrize("name", states())
def test_the_same_file(name):
    """It is byte for byte what torch.save writes, but for an identifier; all its CRC-32s are right."""
    state = states()[name]
    found = Outline.of(state)
    file, plain, counts = File(), File(), []
    found.write_to(file, counts.append)
    torch.save(state, plain)
    assert without_id(bytes(file.content)) == without_id(bytes(plain.content))
    assert zipfile.ZipFile(io.BytesIO(file.content)).testzip() is None
    assert sum(counts) == len(file.content)


@has_skip_data
@pytest.mark.parametrize("name", states())
def test_the_id(name):
    """The identifier is the one that torch makes of the CRC-32s, so that of two states it is not the same."""
    state = states()[name]
    file, plain = File(), File()
    Outline.of(state).write_to(file, len([]).__add__)
    torch.save(state, plain)
    assert bytes(file.content) == bytes(plain.content)


@has_skip_data
def test_the_ids_of_two_states():
    """States of the same shapes and other values are told apart by it, whether they were copied or not."""

    def identifier(state: object, *, is_copied: bool) -> bytes:
        file = File()
        (Staging().copy(state) if is_copied else Outline.of(state)).write_to(file, len([]).__add__)
        archive = zipfile.ZipFile(io.BytesIO(file.content))
        return archive.read("archive/.data/serialization_id")

    states_of_two = [{"a": torch.full((300,), value), "b": torch.ones(3)} for value in (1.0, 2.0)]
    found = [identifier(state, is_copied=is_copied) for state in states_of_two for is_copied in (False, True)]
    assert found[0] == found[1] != found[2] == found[3]
    assert found[0][:20] == found[2][:20]


@has_skip_data
def test_storages_of_more_than_four_gigabytes():
    """Sizes and descriptors that need 64 bits have their CRC-32 where the others have it."""
    state = {"small": torch.ones(3), "huge": torch.empty(4 * GiB + 64, dtype=torch.uint8), "last": torch.ones(3)}
    file, plain = Log(), Log()
    Outline.of(state).write_to(file, len([]).__add__)
    torch.save(state, plain)

    def without_ids(content: bytes) -> list[bytes]:
        [found] = re.findall(rb"serialization_id.{0,40}?FB..Z*(\d{40})PK\x07\x08(....)", content, re.DOTALL)
        return re.split(b"|".join(map(re.escape, found)), content)

    assert b"<4294967360 " in file.content
    assert without_ids(bytes(file.content)) == without_ids(bytes(plain.content))


@has_skip_data
def test_each_storage_is_written_once_from_where_it_is():
    """Storages are not copied, and what shares one is written once."""
    base = torch.arange(100_000)
    seen = []

    class Watch(File):
        def write_lasting(self, data):
            seen.append(torch.frombuffer(data, dtype=torch.uint8).data_ptr())
            return super().write_lasting(data)

    Outline.of({"a": base, "b": base[5:], "c": torch.ones(2)}).write_to(Watch(), lambda count: None)
    assert len(seen) == 2
    assert seen[0] == base.data_ptr()


class Odd:
    """Raises when it is pickled."""

    def __reduce__(self):
        raise pickle.PicklingError("not this one")


@pytest.mark.parametrize("save", [S3Checkpoint.save, lambda _, obj, uri: save_file({"a": obj}, uri)])
def test_tensors_can_be_resized_afterwards(s3, bucket, key, save):
    """What was saved is as it was before: it can be resized."""
    tensor = torch.arange(100_000)
    save(S3Checkpoint(), tensor, f"s3://{bucket}/{key}")
    assert tensor.resize_(200_000)[99_999] == 99_999


@pytest.mark.parametrize("size", [1, 5000])
def test_memory_lives_as_long_as_it_is_looked_at(size):
    """A view of a storage, or a part of one, keeps it; without one it is let go."""
    storage = torch.full((size,), 7, dtype=torch.uint8).untyped_storage()
    kept = storage._weak_ref()
    view = memory(storage)[size // 2 :]
    del storage
    gc.collect()
    assert not torch.UntypedStorage._expired(kept)
    assert bytes(view) == bytes([7]) * (size - size // 2)
    del view
    gc.collect()
    assert torch.UntypedStorage._expired(kept)
    torch.UntypedStorage._free_weak_ref(kept)


@has_skip_data
def test_objects_that_save_for_themselves():
    """What calls torch.save or pickles tensors while it is pickled has all its bytes."""
    file = File()
    Outline.of(states()["savers"]).write_to(file, lambda count: None)
    loaded = torch.load(io.BytesIO(file.content), weights_only=False)
    assert loaded["a"].state.tolist() == loaded["c"].state.tolist() == list(range(9))


@has_skip_data
def test_what_cannot_be_saved():
    """What torch refuses raises as torch has it."""
    with pytest.raises(pickle.PicklingError, match="not this one"):
        Outline.of({"a": Odd()})
    same = torch.ones(4)
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        Outline.of({"a": same, "b": same.view(torch.int32)})


@has_skip_data
@pytest.mark.parametrize(
    "replaced",
    [
        {"_STORAGE": re.compile(rb"[^/]+/other/([^/]+)")},
        {"_DESCRIPTOR": b"PK\x01\x01"},
        {"_ENTRY_SIGNATURE": b"PK\x01\x01"},
    ],
    ids=lambda replaced: next(iter(replaced)),
)
def test_another_format(monkeypatch, replaced):
    """If torch writes something else than is known there is no outline."""
    for name, value in replaced.items():
        monkeypatch.setattr(outline_module, name, value)
    assert Outline.of({"a": torch.ones(3), "b": torch.ones(5)}) is None


def test_save_without_an_outline(monkeypatch):
    """Where torch has no outlines torch.save writes."""
    monkeypatch.delattr(torch.serialization, "skip_data", raising=False)
    state = torch.arange(5)
    with FaultyServer() as server:
        S3Checkpoint(endpoint=server.endpoint, s3client_config=server.config).save(state, "s3://bucket/key")
        assert torch.equal(torch.load(io.BytesIO(server.objects["key"])), state)


@has_skip_data
def test_a_state_that_changes_while_it_is_saved(monkeypatch):
    """Bytes that change between their CRC-32 and their sending are refused by the server, and nothing appears."""
    state = {"a": torch.zeros(2 * MiB)}
    real = S3Checkpoint.writer

    def writer(self, uri):
        found = real(self, uri)
        write = found.write_lasting

        def write_and_change(data):
            crc32 = write(data)
            state["a"] += 1
            return crc32

        found.write_lasting = write_and_change
        return found

    monkeypatch.setattr(S3Checkpoint, "writer", writer)
    with FaultyServer() as server:
        config = S3ClientConfig(**{**vars_of(server.config), "part_size": 64 * MiB, "max_attempts": 2})
        with pytest.raises(IntegrityError):
            S3Checkpoint(endpoint=server.endpoint, s3client_config=config).save(state, "s3://bucket/key")
        assert "key" not in server.objects


def vars_of(config: S3ClientConfig) -> dict[str, object]:
    """Return the fields of a configuration."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


class _Failing:
    """A file whose n-th write raises.

    Args:
        when: Which write, from 1.
        error: What it raises.
    """

    def __init__(self, when, error):
        self._left = when
        self._error = error

    def write(self, data):
        self._left -= 1
        if not self._left:
            raise self._error
        return len(data)

    def flush(self):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt(), S3Error("no room")])
@pytest.mark.parametrize("when", [1, 2, 5, 8])
def test_what_a_write_raises_is_raised(error, when):
    """Torch ends an archive in whose middle something was raised, and says that it cannot."""
    with pytest.raises(type(error)) as caught:
        torch_save({"a": torch.zeros(100)}, _Failing(when, error))
    assert caught.value is error
    assert error.__context__ is None


def test_an_error_of_an_object_is_raised_as_it_is():
    """What an object raises while it is pickled is no matter of the archive."""

    class Odd:
        def __reduce__(self):
            try:
                raise KeyError("first")
            except KeyError:
                raise RuntimeError("odd")  # noqa: B904

    with pytest.raises(RuntimeError, match="odd"):
        torch_save(Odd(), io.BytesIO())
