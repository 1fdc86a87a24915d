"""Distributed checkpoints of one process: what dcp.save wrote, dcp.load reads, by few requests."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from s3torch.checkpoint.dcp import in_place
from s3torch.checkpoint.dcp import reader as reader_module
from s3torch.dcp import (
    BinaryPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
)
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    InvalidURIError,
    NotFoundError,
    S3Error,
)
from tests.conftest import Traffic

pytestmark = [
    pytest.mark.usefixtures("s3"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning"),
]

MiB = 1024 * 1024
SAFETENSORS = {"serialization_format": filesystem.SerializationFormat.SAFETENSORS}


@pytest.fixture
def path(bucket, prefix) -> str:
    """A checkpoint that no other test uses."""
    return f"s3://{bucket}/{prefix}checkpoint"


def _state() -> dict[str, object]:
    return {
        "large": torch.arange(3 * MiB // 4, dtype=torch.float32).reshape(768, -1),
        "small": torch.arange(7, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "float8": torch.ones(5).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "step": {"epoch": 3, "name": "run"},
    }


def _blank(state: dict[str, object]) -> dict[str, object]:
    return {name: torch.zeros_like(value) if torch.is_tensor(value) else {} for name, value in state.items()}


def _save(state: dict[str, object], path: str, **options: object) -> None:
    dcp.save(state, storage_writer=S3StorageWriter(None, path, **options), no_dist=True)


def _load(state: dict[str, object], path: str, **options: object) -> dict[str, object]:
    dcp.load(state, storage_reader=S3StorageReader(None, path), no_dist=True, **options)
    return state


def _assert_equal(loaded: dict[str, object], state: dict[str, object]) -> None:
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        if torch.is_tensor(value):
            assert loaded[name].dtype is value.dtype
            assert torch.equal(loaded[name].to(torch.complex64), value.to(torch.complex64)), name
        else:
            assert loaded[name] == value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"thread_count": 3},
        {"single_file_per_rank": False},
        {"prefix_strategy": BinaryPrefixStrategy(epoch_num=3)},
        {"prefix_strategy": HexPrefixStrategy()},
        {"prefix_strategy": RoundRobinPrefixStrategy(["a", "b"])},
        {"prefix_strategy": lambda rank: f"mine/{rank}-"},
        SAFETENSORS,
    ],
    ids=["default", "threads", "many files", "binary", "hex", "round robin", "custom", "safetensors"],
)
def test_round_trip(path, options):
    """Tensors of any dtype and shape, and what is no tensor, are loaded as they were saved."""
    state = _state()
    if options is SAFETENSORS:
        del state["transposed"]  # which the format cannot hold
    _save(state, path, **options)
    loaded = _blank(state)
    loaded["step"] = {"epoch": 0, "name": ""}
    _assert_equal(_load(loaded, path), state)


def test_names(client, bucket, path):
    """Files are where the strategy says; the metadata is at the checkpoint's path, and nothing else is left."""
    _save({"a": torch.ones(3)}, path, prefix_strategy=BinaryPrefixStrategy(3, prefix_count=1))
    prefix = f"{path.removeprefix(f's3://{bucket}/')}/"
    keys = {info.key.removeprefix(prefix) for page in client.list_objects(bucket, prefix) for info in page.object_info}
    assert keys == {".metadata", "0000000000/epoch_3/__0_0.distcp"}


def test_torch_reads_what_was_written(path, tmp_path):
    """The files are torch's own: its reader loads them from a directory."""
    state = {"large": torch.arange(MiB), "step": 5}
    _save(state, path)
    files = S3StorageReader(None, path).fs
    for uri in files.ls(path):
        with files.create_stream(uri, "rb") as stream:
            (tmp_path / uri.rpartition("/")[2]).write_bytes(stream.read())
    loaded = {"large": torch.zeros(MiB, dtype=torch.int64), "step": 0}
    dcp.load(loaded, storage_reader=filesystem.FileSystemReader(tmp_path), no_dist=True)
    assert torch.equal(loaded["large"], state["large"])
    assert loaded["step"] == 5


def test_async_save(path):
    """What async_save returns a future of is complete when that is done."""
    state = {"a": torch.arange(1000), "step": 7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", "0")
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
        try:
            dcp.async_save(state, storage_writer=S3StorageWriter(None, path)).result()
        finally:
            torch.distributed.destroy_process_group()
    loaded = _load({"a": torch.zeros(1000, dtype=torch.int64), "step": 0}, path)
    assert torch.equal(loaded["a"], state["a"])
    assert loaded["step"] == 7


def test_overwrite(path):
    """A checkpoint is replaced, unless that was forbidden: then it stays."""
    _save({"a": torch.zeros(3)}, path)
    _save({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointException, match=r"Checkpoint already exists and self\.overwrite=False"):
        _save({"a": torch.zeros(3)}, path, overwrite=False)
    assert torch.equal(_load({"a": torch.zeros(3)}, path)["a"], torch.ones(3))


class _FailingPlanner(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        if write_item.index.fqn == "bad":
            raise RuntimeError("out of luck")
        return super().resolve_data(write_item)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_leaves_no_checkpoint(path, threads):
    """A failure in any of the writing threads is raised, and there is no metadata: no half checkpoint."""
    state = {"bad": torch.ones(3), **{f"good {number}": torch.ones(100) for number in range(5)}}
    writer = S3StorageWriter(None, path, thread_count=threads)
    with pytest.raises(CheckpointException, match="out of luck"):
        dcp.save(state, storage_writer=writer, planner=_FailingPlanner(), no_dist=True)
    assert not writer.fs.exists(f"{path}/.metadata")


def _plan_and_reader(state: dict[str, object], path: str):
    reader = S3StorageReader(None, path)
    planner = DefaultLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    return planner.create_local_plan(), planner, reader


def test_small_items_are_joined(path):
    """A thousand small tensors of one file are loaded by one request."""
    state = {f"{number:04}": torch.full((10,), float(number)) for number in range(1000)}
    _save(state, path)
    loaded = _blank(state)
    plan, planner, reader = _plan_and_reader(loaded, path)
    traffic = Traffic(reader.fs.client)
    reader.read_data(plan, planner).wait()
    _assert_equal(loaded, state)
    assert traffic.requests == 1


def _rows(plan, first: int, count: int):
    """Return a plan for some rows of its only item."""
    (item,) = plan.items
    lengths = torch.Size((count, *item.lengths[1:]))
    return replace(item, storage_offsets=torch.Size((first, *item.storage_offsets[1:])), lengths=lengths)


@pytest.mark.parametrize("options", [{}, SAFETENSORS], ids=["torch_save", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_only_the_rows_that_are_needed(path, options, dtype):
    """Of a large tensor only the rows of the plan are received, and a column offset within them is heeded."""
    whole = torch.arange(4 * MiB).remainder(127).reshape(1024, -1).to(dtype)
    _save({"w": whole}, path, **options)
    loaded = {"w": torch.zeros(100, 50, dtype=dtype)}
    plan, planner, reader = _plan_and_reader({"w": torch.zeros_like(whole)}, path)
    planner.state_dict = planner.original_state_dict = loaded
    item = _rows(plan, 300, 100)
    item = replace(
        item,
        storage_offsets=torch.Size((300, 20)),
        lengths=torch.Size((100, 50)),
        dest_offsets=torch.Size((0, 0)),
    )
    traffic = Traffic(reader.fs.client)
    reader.read_data(replace(plan, items=[item]), planner).wait()
    assert torch.equal(loaded["w"], whole[300:400, 20:70])
    assert traffic.bytes_received < 100 * 4096 * dtype.itemsize + 16 * 1024
    assert traffic.requests <= 4


def test_duplicates_and_overlaps(path):
    """Items that lie over one another in storage are all loaded, and what they share is received once."""
    whole = torch.arange(MiB, dtype=torch.float32).reshape(1024, -1)
    _save({"w": whole}, path)
    loaded = {"w": torch.zeros_like(whole)}
    plan, planner, reader = _plan_and_reader(loaded, path)
    items = [
        replace(_rows(plan, first, 300), dest_offsets=torch.Size((first, 0))) for first in (0, 0, 200, 500, 700, 724)
    ]
    traffic = Traffic(reader.fs.client)
    reader.read_data(replace(plan, items=items), planner).wait()
    assert torch.equal(loaded["w"], whole)
    assert traffic.bytes_received < whole.nbytes * 1.1


@pytest.fixture
def copied(monkeypatch) -> list[int]:
    """The sizes of what is received beside the tensors."""
    sizes = []

    class Buffer(reader_module._Buffer):
        def __init__(self, size):
            sizes.append(size)
            super().__init__(size)

    monkeypatch.setattr(reader_module, "_Buffer", Buffer)
    return sizes


@pytest.mark.parametrize("options", [{}, SAFETENSORS], ids=["torch_save", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_large_tensors_are_received_in_place(path, options, dtype, copied):
    """A large tensor is received into its own memory, in one part or several; into a part of a tensor, too."""
    count = 12 * MiB // dtype.itemsize
    state = {
        "a": torch.arange(9 * MiB // dtype.itemsize).remainder(127).reshape(1024, -1).to(dtype),
        "b": torch.arange(count).remainder(113).reshape(16, 8, -1).to(dtype),
        "small": torch.arange(5).to(dtype),
    }
    _save(state, path, **options)
    around = torch.full((3 * count,), -1).to(dtype)
    loaded = {**_blank(state), "b": around[count : 2 * count].view(16, 8, -1)}
    _assert_equal(_load(loaded, path), state)
    assert all(bool((part == -1).all()) for part in (around[:count], around[2 * count :]))
    assert max(copied) < 64 * 1024


def test_needed_rows_are_received_in_place(path, copied):
    """Rows of a stored tensor are received into the memory of the tensor that they are all of."""
    whole = torch.arange(4 * MiB, dtype=torch.float32).reshape(1024, -1)
    _save({"w": whole}, path)
    loaded = {"w": torch.zeros(400, 4096)}
    plan, planner, reader = _plan_and_reader({"w": torch.zeros_like(whole)}, path)
    planner.state_dict = planner.original_state_dict = loaded
    item = replace(_rows(plan, 300, 400), dest_offsets=torch.Size((0, 0)))
    reader.read_data(replace(plan, items=[item]), planner).wait()
    assert torch.equal(loaded["w"], whole[300:700])
    assert max(copied) < 64 * 1024


@pytest.mark.parametrize("start", [None, 64, 640, 768])
def test_elements_are_elsewhere_than_guessed(path, start, monkeypatch):
    """An archive whose elements lie elsewhere than in those of this torch is loaded as well."""
    monkeypatch.setattr(in_place, "usual_start", lambda: start)
    state = {"w": torch.arange(MiB, dtype=torch.float32)}
    _save(state, path)
    _assert_equal(_load(_blank(state), path), state)


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(1024, 2048, dtype=torch.int32),
        torch.zeros(1024, 2048, dtype=torch.bfloat16),
        torch.zeros(1024, 2048, dtype=torch.float64),
        torch.zeros(2048, 1024).t(),
        torch.zeros(1024, 4096)[:, ::2],
        torch.nn.Parameter(torch.zeros(1024, 2048)),
    ],
    ids=["int32", "bfloat16", "float64", "transposed", "strided", "parameter"],
)
def test_targets_of_another_kind(path, target):
    """A target of another dtype or stride gets the values all the same."""
    whole = torch.arange(2 * MiB).remainder(128).reshape(1024, -1).float()
    _save({"w": whole}, path)
    assert torch.equal(_load({"w": target}, path)["w"].float(), whole)


def test_conjugated(path):
    """A tensor whose conjugation is still to be computed is loaded conjugated."""
    state = {"w": torch.full((MiB,), 1 + 2j).conj()}
    _save(state, path)
    loaded = _load({"w": torch.zeros(MiB, dtype=torch.complex64)}, path)
    assert torch.equal(loaded["w"], state["w"].resolve_conj())


def test_two_names_of_one_memory(path):
    """Two stored tensors that go to the same memory are not received there at the same time."""
    _save({"a": torch.zeros(4 * MiB), "b": torch.ones(4 * MiB), "c": torch.ones(4 * MiB)}, path)
    tied = torch.full((4 * MiB,), 2.0)
    plan, planner, reader = _plan_and_reader({"a": tied, "b": tied, "c": torch.zeros(4 * MiB)}, path)
    targets = reader._targets([reader._read(item) for item in plan.items], planner)
    assert [read.item.storage_index.fqn for read in targets] == ["c"]
    reader.read_data(plan, planner).wait()
    assert tied.unique().tolist() in ([0], [1])


class _StagingPlanner(DefaultLoadPlanner):
    """Has each item loaded into a tensor beside its target, which it remembers until that is filled."""

    def resolve_tensor(self, read_item):
        self.target = super().resolve_tensor(read_item)
        return torch.zeros_like(self.target)

    def commit_tensor(self, _read_item, tensor):
        self.target.copy_(tensor)


def test_a_planner_that_stages(path):
    """A planner that is not torch's own is asked for one tensor after the other."""
    state = {str(number): torch.full((3 * MiB,), float(number)) for number in range(5)}
    _save(state, path)
    _assert_equal(_load(_blank(state), path, planner=_StagingPlanner()), state)


def test_nothing_arrives_after_a_failure(client, bucket, path):
    """Once a load has failed its tensors are the caller's again, though requests were under way."""
    _save({"a": "text", "b": torch.ones(16 * MiB)}, path, single_file_per_rank=False)
    prefix = f"{path.removeprefix(f's3://{bucket}/')}/"
    loaded = {"a": "", "b": torch.zeros(16 * MiB)}
    plan, planner, reader = _plan_and_reader(loaded, path)
    (text,) = [item for item in plan.items if item.storage_index.fqn == "a"]
    stored = reader.storage_data[text.storage_index]
    with client.put_object(bucket, f"{prefix}!damaged") as writer:
        writer.write(bytes(stored.length))
    reader.storage_data[text.storage_index] = replace(stored, relative_path="!damaged", offset=0)
    with pytest.raises(CheckpointFormatError) as failure:
        reader.read_data(plan, planner)
    loaded["b"].fill_(5)
    for _ in range(100):
        reader.fs.client.head_object(bucket, f"{prefix}.metadata")
    assert loaded["b"].unique().tolist() == [5]
    assert failure.traceback


@pytest.mark.parametrize(("is_in_place", "least", "bound"), [(False, MiB, 3 * MiB), (True, 3 * MiB, 12 * MiB)])
def test_memory_is_bounded(path, monkeypatch, is_in_place: bool, least: int, bound: int):
    """No more is requested ahead than the bound, four times as much if it takes no memory, and all is loaded."""
    state = {str(number): torch.full((MiB // 4,), float(number)) for number in range(20)}
    _save(state, path)
    if not is_in_place:
        monkeypatch.setattr(reader_module, "_in_place", lambda span, targets: None)
    monkeypatch.setattr(reader_module, "_AHEAD", 3 * MiB)
    monkeypatch.setattr(reader_module, "_JOINED", MiB)
    held = most = 0
    new = reader_module.RemoteObject.new_range_fetch

    def counted(remote, start, *views):
        nonlocal held, most
        size = sum(map(len, views))
        held += size
        most = max(most, held)
        fetch = new(remote, start, *views)
        finish = fetch.finish

        def count_down():
            nonlocal held
            finish()
            held -= size

        fetch.finish = count_down
        return fetch

    monkeypatch.setattr(reader_module.RemoteObject, "new_range_fetch", counted)
    loaded = _load(_blank(state), path)
    _assert_equal(loaded, state)
    assert least < most <= bound


def test_no_checkpoint(path):
    """Loading what is not there names the metadata that is missing."""
    with pytest.raises(CheckpointException, match=r"checkpoint/\.metadata does not exist"):
        _load({"a": torch.zeros(3)}, path)


def test_a_file_is_missing(client, bucket, path):
    """A file that .metadata names and that is gone is named."""
    _save({"a": torch.zeros(3)}, path)
    client.delete_object(bucket, f"{path.removeprefix(f's3://{bucket}/')}/__0_0.distcp")
    plan, planner, reader = _plan_and_reader({"a": torch.zeros(3)}, path)
    with pytest.raises(NotFoundError, match=r"__0_0\.distcp does not exist"):
        reader.read_data(plan, planner)


def test_a_file_is_too_short(client, bucket, path):
    """A file that is shorter than .metadata says is named, and nothing of it is taken for a tensor."""
    state = {"a": torch.ones(MiB), "b": torch.ones(MiB)}
    _save(state, path)
    key = f"{path.removeprefix(f's3://{bucket}/')}/__0_0.distcp"
    content = client.read_range(bucket, key, 0)
    with client.put_object(bucket, key) as writer:
        writer.write(content[:-10])
    plan, planner, reader = _plan_and_reader(_blank(state), path)
    with pytest.raises(S3Error, match=r"reaches beyond the \d+ bytes of .*__0_0\.distcp"):
        reader.read_data(plan, planner)


@pytest.mark.parametrize("content", [b"", b"\0", b"\x80\x04", None], ids=["empty", "zero", "cut off", "garbled"])
def test_metadata_is_damaged(client, bucket, path, content):
    """Metadata that is empty, cut off or damaged is named, also in what torch makes of it."""
    _save({"a": torch.zeros(3)}, path)
    key = f"{path.removeprefix(f's3://{bucket}/')}/.metadata"
    with client.put_object(bucket, key) as writer:
        writer.write(bytes(octet ^ 0xFF for octet in client.read_range(bucket, key, 0)) if content is None else content)
    with pytest.raises(CheckpointFormatError, match=rf"its metadata cannot be read from the checkpoint {path}: "):
        S3StorageReader(None, path).read_metadata()
    with pytest.raises(CheckpointException, match=rf"its metadata cannot be read from the checkpoint {path}: "):
        _load({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize("state", [{"a": torch.ones(3)}, {"a": torch.ones(MiB)}, {"a": "text"}])
def test_an_item_is_damaged(client, bucket, path, state):
    """An item whose bytes are none of what torch saves is named, with its file."""
    _save(state, path)
    key = f"{path.removeprefix(f's3://{bucket}/')}/__0_0.distcp"
    size = client.head_object(bucket, key).size
    with client.put_object(bucket, key) as writer:
        writer.write(b"\xff" * size)
    plan, planner, reader = _plan_and_reader(_blank(state), path)
    with pytest.raises(CheckpointFormatError, match=r"a in __0_0\.distcp cannot be read from the checkpoint s3://"):
        reader.read_data(plan, planner)


def test_sizes_differ(path):
    """A tensor of another size than the plan's is refused with both sizes."""
    _save({"a": torch.zeros(3)}, path)
    plan, planner, reader = _plan_and_reader({"a": torch.zeros(3)}, path)
    item = replace(plan.items[0], lengths=torch.Size((2,)))
    planner.resolve_tensor = lambda _item: torch.zeros(3)
    with pytest.raises(S3Error, match=r"a of .* has the size \(2,\) where the plan has a tensor of \(3,\)"):
        reader.read_data(replace(plan, items=[item]), planner)


@pytest.mark.parametrize("kind", [S3StorageReader, S3StorageWriter])
def test_bad_arguments(kind):
    """What cannot be is refused when reader or writer is made."""
    with pytest.raises(InvalidURIError, match="got '/tmp/x'"):
        kind(None, "/tmp/x")
    with pytest.raises(ArgumentTypeError, match="s3client_config must be"):
        kind(None, "s3://bucket/x", s3client_config=5)
    with pytest.raises(ArgumentTypeError, match="endpoint must be"):
        kind(None, "s3://bucket/x", endpoint=5)


def test_bad_arguments_of_the_writer():
    """Threads and strategies that cannot be are refused by name."""
    with pytest.raises(ArgumentError, match="thread_count=0 cannot be"):
        S3StorageWriter(None, "s3://bucket/x", thread_count=0)
    with pytest.raises(ArgumentTypeError, match="thread_count must be an int, got '2'"):
        S3StorageWriter(None, "s3://bucket/x", thread_count="2")
    with pytest.raises(ArgumentTypeError, match="prefix_strategy must be an S3PrefixStrategyBase, got 'hex'"):
        S3StorageWriter(None, "s3://bucket/x", prefix_strategy="hex")


def test_pickling():
    """A reader and a writer travel to another process, as async_save by a process needs it."""
    for made in (S3StorageReader(None, "s3://bucket/x"), S3StorageWriter(None, "s3://bucket/x")):
        assert pickle.loads(pickle.dumps(made)).path == "s3://bucket/x"
