"""With checksums="strict" each byte that a load returns is proven, whatever it reads and whoever uploaded that."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from s3torch import S3Client, S3ClientConfig, S3ReaderConfig
from s3torch.checkpoint.proven_file import ProvenFile
from s3torch.dcp import S3HuggingFaceStorageReader, S3StorageReader, S3StorageWriter
from s3torch.errors import CheckpointFormatError, IntegrityError, S3Error, UnverifiedError
from s3torch.safetensors import load_file, safe_open, save_file
from s3torch.testing import FaultyServer
from s3torch.torch_checkpointing import S3StorageConfig, native_fill
from tests.checkpoint.objects import one_rank
from tests.conftest import MiB
from tests.test_composite import always, asked, flip, refuse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_PART = 300_000  # bytes; nothing that is loaded begins or ends where a part does
_MODEL = "model.safetensors"
_ROWS = 600


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "large": torch.randn(_ROWS, 700, generator=generator),
        "half": torch.randn(300, 301, generator=generator).bfloat16(),
        "small": torch.arange(7),
        "other": torch.randn(90_001, generator=generator),
    }


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    with one_rank():
        yield


def _config(server: FaultyServer, **options: Any) -> S3ClientConfig:
    return replace(server.config, **{"hedging": False, "checksums": "strict", **options})


_clients: list[S3Client] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _clients:
        _clients.pop().close()


def _client(server: FaultyServer, **options: Any) -> S3Client:
    _clients.append(S3Client("us-east-1", endpoint=server.endpoint, s3client_config=_config(server, **options)))
    return _clients[-1]


class _Rows(LoadPlanner):
    """Asks for some rows of one tensor, in memory that nobody else knows."""

    def __init__(self, name: str, first: int, count: int, width: int) -> None:
        self.tensor = torch.zeros(count, width)
        index = MetadataIndex(name, torch.Size([0, 0]))
        origin = torch.Size([0, 0])
        self.plan = LoadPlan(
            [ReadItem(LoadItemType.TENSOR, index, origin, index, torch.Size([first, 0]), self.tensor.size())]
        )

    def set_up_planner(self, *_: Any) -> None: ...

    def create_local_plan(self) -> LoadPlan:
        return self.plan

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, *_: Any) -> None: ...

    def resolve_tensor(self, *_: Any) -> torch.Tensor:
        return self.tensor

    def commit_tensor(self, *_: Any) -> None: ...


Loaded = dict[str, Any]


def _whole(server: FaultyServer, **options: Any) -> Loaded:
    return load_file(f"s3://bucket/{_MODEL}", client=_client(server, **options))


def _by_group(server: FaultyServer, **options: Any) -> Loaded:
    return load_file(f"s3://bucket/{_MODEL}", client=_client(server, **options), group=dist.group.WORLD)


def _some(server: FaultyServer, **options: Any) -> Loaded:
    return load_file(f"s3://bucket/{_MODEL}", keys=["half", "small"], client=_client(server, **options))


def _some_by_group(server: FaultyServer, **options: Any) -> Loaded:
    client = _client(server, **options)
    return load_file(f"s3://bucket/{_MODEL}", keys=["half", "small"], client=client, group=dist.group.WORLD)


def _opened(server: FaultyServer, **options: Any) -> Loaded:
    with safe_open(f"s3://bucket/{_MODEL}", client=_client(server, **options)) as file:
        return {**{name: file.get_tensor(name) for name in file.keys()}, "metadata": file.metadata()}  # noqa: SIM118


def _slices(server: FaultyServer, **options: Any) -> Loaded:
    with safe_open(f"s3://bucket/{_MODEL}", client=_client(server, **options)) as file:
        large = file.get_slice("large")
        return {"rows": large[100:250], "columns": large[:, 3:300], "of small": file.get_slice("small")[1:3]}


def _save_model(server: FaultyServer, **more: torch.Tensor) -> None:
    save_file({**_state(), **more}, f"s3://bucket/{_MODEL}", metadata={"format": "pt"}, client=_client(server))


def _save_sharded(server: FaultyServer) -> None:
    save_file(_state(), f"s3://bucket/{_MODEL}", max_shard_size=900_000, client=_client(server))


def _sharded(server: FaultyServer, **options: Any) -> Loaded:
    return load_file(f"s3://bucket/{_MODEL}.index.json", client=_client(server, **options))


def _reader(server: FaultyServer, **options: Any) -> S3StorageReader:
    reader = S3StorageReader(
        "us-east-1", "s3://bucket/dcp", endpoint=server.endpoint, s3client_config=_config(server, **options)
    )
    _clients.append(reader.fs.client)
    return reader


def _dcp_state() -> dict[str, Any]:
    return {**_state(), "transposed": _state()["large"].t(), "step": 5, "names": ["a"] * 3}


def _save_dcp(form: SerializationFormat) -> Callable[..., None]:
    def save(server: FaultyServer, **more: torch.Tensor) -> None:
        writer = S3StorageWriter(
            "us-east-1",
            "s3://bucket/dcp",
            endpoint=server.endpoint,
            s3client_config=_config(server),
            serialization_format=form,
        )
        state = _dcp_state() if form is SerializationFormat.TORCH_SAVE else _state()
        dcp.save({**state, **more}, storage_writer=writer, no_dist=True)

    return save


def _load_dcp(state: dict[str, Any], reader: Any) -> Loaded:
    blank = {name: torch.zeros_like(each) if isinstance(each, torch.Tensor) else None for name, each in state.items()}
    dcp.load(blank, storage_reader=reader, no_dist=True)
    return blank


def _dcp(server: FaultyServer, **options: Any) -> Loaded:
    return _load_dcp(_dcp_state(), _reader(server, **options))


def _dcp_safetensors(server: FaultyServer, **options: Any) -> Loaded:
    return _load_dcp(_state(), _reader(server, **options))


def _dcp_rows(server: FaultyServer, **options: Any) -> Loaded:
    reader, planner = _reader(server, **options), _Rows("large", 200, 100, 700)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    reader.read_data(planner.plan, planner)
    return {"rows": planner.tensor}


def _model_reader(server: FaultyServer, name: str = _MODEL, **options: Any) -> S3HuggingFaceStorageReader:
    reader = S3HuggingFaceStorageReader(
        "us-east-1", f"s3://bucket/{name}", endpoint=server.endpoint, s3client_config=_config(server, **options)
    )
    _clients.append(reader.client)
    return reader


def _hugging_face(server: FaultyServer, **options: Any) -> Loaded:
    return _load_dcp(_state(), _model_reader(server, **options))


def _hugging_face_rows(server: FaultyServer, **options: Any) -> Loaded:
    reader, planner = _model_reader(server, **options), _Rows("large", 200, 100, 700)
    reader.read_metadata()
    reader.read_data(planner.plan, planner)
    return {"rows": planner.tensor}


def _hugging_face_sharded(server: FaultyServer, **options: Any) -> Loaded:
    return _load_dcp(_state(), _model_reader(server, name=f"{_MODEL}.index.json", **options))


def _storage(server: FaultyServer, **options: Any) -> Any:
    storage = S3StorageConfig(
        region="us-east-1", endpoint=server.endpoint, s3client_config=_config(server, **options)
    ).create_storage()
    _clients.append(storage.client)
    return storage


def _save_file_of_torch(server: FaultyServer) -> None:
    file = io.BytesIO()
    torch.save(_state(), file)
    with _client(server).put_object("bucket", "file.pt") as writer:
        writer.write(file.getvalue())


def _filled(server: FaultyServer, **options: Any) -> Loaded:
    storage, size = _storage(server, **options), len(server.objects["file.pt"])
    fill = native_fill(storage)
    assert fill is not None
    return {"content": bytes(fill(size, "s3://bucket/file.pt", 1, 1)[:size])}


def _streamed(server: FaultyServer, **options: Any) -> Loaded:
    from torch_checkpointing.storage.base_storage import ReadArgs

    storage = _storage(server, **options)
    return {
        "pieces": storage.stream_read("s3://bucket/file.pt", ReadArgs(pre_read_full_file=False)).read(1000),
        "all": storage.read("s3://bucket/file.pt"),
    }


_WAYS: dict[str, tuple[Callable[..., None], Callable[..., Loaded]]] = {
    "load_file": (_save_model, _whole),
    "load_file, keys": (_save_model, _some),
    "load_file, group": (_save_model, _by_group),
    "load_file, group, keys": (_save_model, _some_by_group),
    "safe_open": (_save_model, _opened),
    "slices": (_save_model, _slices),
    "sharded": (_save_sharded, _sharded),
    "dcp": (_save_dcp(SerializationFormat.TORCH_SAVE), _dcp),
    "dcp, rows": (_save_dcp(SerializationFormat.TORCH_SAVE), _dcp_rows),
    "dcp of safetensors": (_save_dcp(SerializationFormat.SAFETENSORS), _dcp_safetensors),
    "dcp of safetensors, rows": (_save_dcp(SerializationFormat.SAFETENSORS), _dcp_rows),
    "hugging face": (_save_model, _hugging_face),
    "hugging face, rows": (_save_model, _hugging_face_rows),
    "hugging face, sharded": (_save_sharded, _hugging_face_sharded),
    "torch_checkpointing, fill": (_save_file_of_torch, _filled),
    "torch_checkpointing, streams": (_save_file_of_torch, _streamed),
}


def _in_parts(server: FaultyServer) -> None:
    """Store all objects as others do: in parts, with a checksum of these."""
    for key in list(server.objects):
        content = server.objects[key]
        server.objects.store_in_parts(key, [content[at : at + _PART] for at in range(0, len(content), _PART)])


def _in_parts_without_list(server: FaultyServer) -> None:
    _in_parts(server)
    always(server, refuse("GetObjectAttributes"))


_STORED: dict[str, Callable[[FaultyServer], None]] = {
    "ours": lambda server: None,
    "composite": _in_parts,
    "composite, no list": _in_parts_without_list,
}


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), bytes(value.contiguous().view(-1).view(torch.uint8).numpy())
    return {name: _described(each) for name, each in value.items()} if isinstance(value, dict) else value


def _outcome(load: Callable[[], Loaded]) -> Any:
    """Return what is loaded, described; or the error."""
    try:
        return _described(load())
    except S3Error as error:
        return error
    except CheckpointException as error:
        (failure,) = (failure for failure, _ in error.failures.values())
        if isinstance(failure, S3Error):
            return failure
        # torch quotes ours, or does not find in the checkpoint what it looks for.
        assert "metadata read failed: s3://bucket/" in str(failure) or "Missing key" in str(failure), failure
        return CheckpointFormatError(str(failure))


@pytest.mark.parametrize("stored", _STORED)
@pytest.mark.parametrize("way", _WAYS)
def test_a_flipped_bit(faulty: FaultyServer, way: str, stored: str):
    """A bit that is flipped where it is stored, anywhere, is an error or makes no difference."""
    save, load = _WAYS[way]
    save(faulty)
    expected = _described(load(faulty, checksums="on"))
    _STORED[stored](faulty)
    assert _outcome(lambda: load(faulty)) == expected
    chance = random.Random(11)
    found = 0
    for key in list(faulty.objects):
        size = len(faulty.objects[key])
        ends = {0, 3, 8, 100, size - 1, size - 30, size // 2}
        for place in {place for place in ends if 0 <= place < size} | {chance.randrange(size) for _ in range(8)}:
            faulty.objects.damage(key, place)
            outcome = _outcome(lambda: load(faulty))
            assert isinstance(outcome, S3Error) or outcome == expected, (key, place)
            found += isinstance(outcome, S3Error)
            faulty.objects.damage(key, place)
    assert found
    assert _outcome(lambda: load(faulty)) == expected


@pytest.mark.parametrize("way", _WAYS)
def test_a_bit_that_flips_on_its_way(faulty: FaultyServer, way: str):
    """A bit that is flipped in one answer is fetched again; where the load was misled before that, it is an error."""
    save, load = _WAYS[way]
    save(faulty)
    expected = _described(load(faulty, checksums="on"))
    _in_parts(faulty)
    key = max(faulty.objects, key=lambda key: len(faulty.objects[key]))
    size = len(faulty.objects[key])
    chance = random.Random(12)
    for place in [9, 12, 40, 60, 200_000, *(chance.randrange(size) for _ in range(10))]:
        always(faulty, flip(place))
        outcome = _outcome(lambda: load(faulty))
        assert isinstance(outcome, (IntegrityError, CheckpointFormatError)) or outcome == expected, place
        if place > 300_000:  # no header is there
            assert outcome == expected, place


@pytest.mark.parametrize("way", _WAYS)
def test_without_checksums(faulty: FaultyServer, way: str):
    """What nothing proves is not loaded; the error says what to do."""
    save, load = _WAYS[way]
    save(faulty)
    expected = _described(load(faulty, checksums="on"))
    for key in list(faulty.objects):
        if key != "dcp/.metadata":
            faulty.objects.checksums_of(key).clear()
    outcome = _outcome(lambda: load(faulty))
    if way.startswith("dcp") and "safetensors" not in way:
        assert outcome == expected  # each record has its CRC-32
    else:
        assert isinstance(outcome, UnverifiedError) or "cannot be verified" in str(outcome)  # quoted by torch
        assert "use S3ClientConfig(checksums='on')" in str(outcome)


@pytest.mark.parametrize("way", ["load_file, keys", "safe_open", "dcp of safetensors, rows"])
def test_a_part_of_what_has_one_checksum(faulty: FaultyServer, way: str):
    """Where more than the bytes in flight would have to be read for a proof, the error says so, before it is read."""
    save, load = _WAYS[way]
    save(faulty, more=torch.zeros(6 * MiB, dtype=torch.uint8))
    large = max(faulty.objects, key=lambda key: len(faulty.objects[key]))
    load(faulty, max_bytes_in_flight=16 * MiB)
    options = {"part_size": 5 * MiB, "max_bytes_in_flight": 5 * MiB}
    outcome = _outcome(lambda: load(faulty, **options))
    assert isinstance(outcome, UnverifiedError)
    assert f"of the whole object, {len(faulty.objects[large])} bytes" in str(outcome)
    assert "max_bytes_in_flight" in str(outcome)


def test_requests(faulty: FaultyServer):
    """A model that is loaded whole takes a HEAD more where no answer has told the checksum, and no list of parts."""
    _save_model(faulty)
    content = faulty.objects[_MODEL]
    for parts in ([content], [content[: 2 * MiB], content[2 * MiB :]]):
        faulty.objects.store_in_parts(_MODEL, parts)
        asked(faulty)
        _whole(faulty, checksums="on")
        expected = sorted(asked(faulty))
        _whole(faulty)
        assert sorted(asked(faulty)) == sorted([*expected, "HeadObject"])


def test_only_the_parts_around_are_read(faulty: FaultyServer):
    """Of a part of which something is loaded the rest is read as well, and of others nothing."""
    _save_model(faulty)
    _in_parts(faulty)
    client = _client(faulty)
    load_file(f"s3://bucket/{_MODEL}", keys=["half"], client=client)
    assert client.stats.bytes_received < 4 * _PART + 300_000


def test_the_metadata_is_read_whole(faulty: FaultyServer):
    """The metadata of a checkpoint are proven, whatever reader was asked for."""
    _save_dcp(SerializationFormat.TORCH_SAVE)(faulty)
    faulty.objects.damage("dcp/.metadata", len(faulty.objects["dcp/.metadata"]) // 2)
    for config in (S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()):
        reader = S3StorageReader(
            "us-east-1",
            "s3://bucket/dcp",
            endpoint=faulty.endpoint,
            s3client_config=_config(faulty),
            reader_config=config,
        )
        with pytest.raises(IntegrityError):
            reader.read_metadata()


def test_records_in_memory():
    """A file of torch.save in memory is read as it is, and a read of half a record is refused."""
    file = io.BytesIO()
    torch.save(_state(), file)
    content = memoryview(file.getvalue())
    proven = ProvenFile.of(content, "it")
    assert proven is not None
    assert _described(torch.load(proven, weights_only=True)) == _described(_state())
    place = bytes(content).index(bytes(_state()["small"].numpy()))
    proven.seek(place)
    with pytest.raises(CheckpointFormatError, match="as if they were a record"):
        proven.read(8)
    assert ProvenFile.of(content[:-1], "it") is None
    damaged = bytearray(content)
    damaged[place] ^= 1
    with pytest.raises(IntegrityError, match=r"of it does not have the CRC-32"):
        ProvenFile.of(memoryview(damaged), "it")


def test_what_botocore_uploads(s3, client: S3Client, boto: Any, bucket: str, prefix: str):
    """What botocore uploads in parts, with a checksum of these, is loaded from a real server, whole and in part."""
    tensors = {**_state(), "more": torch.arange(6 * MiB // 4)}
    save_file(tensors, f"s3://{bucket}/{prefix}ours.safetensors", client=client)
    content = client.read_range(bucket, f"{prefix}ours.safetensors", 0)
    key = f"{prefix}theirs.safetensors"
    names = {"Bucket": bucket, "Key": key}
    upload = boto.create_multipart_upload(**names, ChecksumAlgorithm="CRC32")["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(content), 5 * MiB), 1):
        body = content[start : start + 5 * MiB]
        told = boto.upload_part(**names, UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": told["ETag"], "ChecksumCRC32": told["ChecksumCRC32"]})
    boto.complete_multipart_upload(**names, UploadId=upload, MultipartUpload={"Parts": parts})
    assert "-" in boto.head_object(**names, ChecksumMode="ENABLED")["ChecksumCRC32"]
    strict = S3Client(s3client_config=S3ClientConfig(checksums="strict", hedging=False))
    _clients.append(strict)
    for uri in (f"s3://{bucket}/{key}", f"s3://{bucket}/{prefix}ours.safetensors"):
        assert _described(load_file(uri, client=strict)) == _described(tensors)
        assert _described(load_file(uri, keys=["half"], client=strict)) == _described({"half": tensors["half"]})
