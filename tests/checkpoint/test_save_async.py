"""S3Checkpoint.save_async: the copy that is saved while training goes on."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
import zipfile
import zlib
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
import torch
from torch import nn

from s3torch import S3Checkpoint
from s3torch.checkpoint.staging import Snapshot, Staging
from s3torch.errors import AccessDeniedError, InvalidURIError
from s3torch.testing import FaultyServer, faults
from tests.checkpoint.objects import OwnDict, Pair, Shared, change
from tests.checkpoint.test_outline import without_id


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


def test_training_goes_on(s3, uri):
    """What is saved is the state of the moment of the call."""
    checkpoint = S3Checkpoint()
    model = nn.Linear(300, 300)
    expected = copy.deepcopy(model.state_dict())
    future = checkpoint.save_async(model.state_dict(), uri)
    with torch.no_grad():
        model.weight.zero_()
    assert future.result(60) is None
    assert torch.equal(checkpoint.load(uri)["weight"], expected["weight"])


def test_one_at_a_time(s3, uri):
    """The next call waits for the one before, whose memory it uses again."""
    checkpoint = S3Checkpoint()
    futures = [checkpoint.save_async({"step": torch.full((100_000,), step)}, f"{uri}-{step}") for step in range(5)]
    assert all(future.done() for future in futures[:-1])
    futures[-1].result(60)
    for step in range(5):
        assert checkpoint.load(f"{uri}-{step}")["step"].unique().tolist() == [step]


def test_two_threads(s3, uri):
    """Two threads may save at the same time: each future is that of its own state, and none is mixed with another."""
    checkpoint = S3Checkpoint()
    both_begin = threading.Barrier(2)
    failed: list[str] = []

    def save(name: int) -> None:
        state = {"a": torch.zeros(300_000), "b": torch.zeros(1000)}
        both_begin.wait(60)
        for step in range(5):
            for tensor in state.values():
                tensor.fill_(10 * name + step)
            checkpoint.save_async(state, f"{uri}-{name}-{step}").result(60)
            loaded = checkpoint.load(f"{uri}-{name}-{step}")
            if not all(torch.equal(loaded[key], tensor) for key, tensor in state.items()):
                failed.append(f"{name}-{step}")

    threads = [threading.Thread(target=save, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed


class _Watched(S3Checkpoint):
    """Notes whether a state is copied while its memory is in use, by a copy or by a save; the first save waits."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.is_there = threading.Event(), threading.Event()
        self.in_use = 0
        self.was_in_use: list[bool] = []
        watched = self

        class Watching(Staging):
            def copy(self, state: object) -> Snapshot:
                watched.was_in_use.append(watched.in_use > 0)
                watched.in_use += 1
                if len(watched.was_in_use) > 1:
                    watched.is_there.wait(0.2)  # for another thread, which must not come
                    watched.is_there.set()
                return super().copy(state)

        self._staging = Watching()

    def save(self, *args: Any, **options: Any) -> None:
        self.may_go.wait(60)
        super().save(*args, **options)
        self.in_use -= 1


def test_two_threads_that_wait(s3, uri):
    """When two threads wait for the same save, one goes on, and the other waits for that one's."""
    checkpoint = _Watched()
    futures = {0: checkpoint.save_async({"a": torch.zeros(1000)}, f"{uri}-0")}

    def save(number: int) -> None:
        futures[number] = checkpoint.save_async({"a": torch.full((1000,), float(number))}, f"{uri}-{number}")

    threads = [threading.Thread(target=save, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.2)  # both are waiting now, unless this machine is very slow
    checkpoint.may_go.set()
    for thread in threads:
        thread.join(60)
    for number, future in futures.items():
        future.result(60)
        assert checkpoint.load(f"{uri}-{number}")["a"].unique().tolist() == [number]
    assert checkpoint.was_in_use == [False, False, False]


class _Nested:
    """Saves another state while it is pickled, as a signal handler might at any moment."""

    def __init__(self, save: Callable[[], object]) -> None:
        self._save = save

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self._save()
        return OrderedDict, ()


def test_a_call_in_the_middle_of_another(s3, uri):
    """A call by the thread that is in one already waits for nobody, and each state is its own."""
    checkpoint = S3Checkpoint()
    inner: list[Any] = []

    def save() -> None:
        inner.append(checkpoint.save_async({"a": torch.full((1000,), 2.0)}, f"{uri}-inner"))

    checkpoint.save_async({"a": torch.full((1000,), 1.0), "b": _Nested(save)}, f"{uri}-outer").result(60)
    for future in inner:
        future.result(60)
    assert inner
    assert checkpoint.load(f"{uri}-inner")["a"].unique().tolist() == [2]
    assert checkpoint.load(f"{uri}-outer")["a"].unique().tolist() == [1]


def test_a_failure_is_the_futures(caplog):
    """A failure is raised by the future and logged; the next save goes its own way."""
    with FaultyServer() as server:
        server.script(faults.status(403, "AccessDenied"))
        checkpoint = S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        with pytest.raises(AccessDeniedError):
            checkpoint.save_async({"a": 1}, "s3://bucket/key").result(60)
        assert "s3://bucket/key was not saved" in caplog.text
        checkpoint.save_async({"a": 2}, "s3://bucket/key").result(60)
        assert checkpoint.load("s3://bucket/key") == {"a": 2}


def test_no_thread(s3, uri, monkeypatch):
    """If no thread can be started that is raised, and the next call does not wait for it."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    checkpoint = S3Checkpoint()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            checkpoint.save_async({"a": 1}, uri)
    checkpoint.save_async({"a": 2}, uri).result(10)
    assert checkpoint.load(uri) == {"a": 2}


def test_the_interpreter_waits_for_it(s3, uri):
    """Whoever asks, a thread that nobody waits for or not: what is saved is saved to its end."""
    seen: list[bool] = []

    class Watched(S3Checkpoint):
        def save(self, *args: object, **options: object) -> None:
            seen.append(threading.current_thread().daemon)

    caller = threading.Thread(target=lambda: Watched().save_async({}, uri).result(10), daemon=True)
    caller.start()
    caller.join(60)
    assert seen == [False]


def test_bad_input(s3):
    """A URI that is none is refused at once, not by the future."""
    with pytest.raises(InvalidURIError):
        S3Checkpoint().save_async({}, "key")


def test_pickled_with_a_save_under_way(s3, uri):
    """What a checkpoint is doing stays behind when it is pickled."""
    checkpoint = S3Checkpoint()
    checkpoint.save_async({"a": torch.rand(10)}, uri).result(60)
    other = pickle.loads(pickle.dumps(checkpoint))
    assert other.load(uri)["a"].shape == (10,)


def test_its_thread_ends(s3, uri):
    """No thread is left behind."""
    before = threading.active_count()
    S3Checkpoint().save_async({"a": 1}, uri).result(60)
    for thread in threading.enumerate():
        if thread.name.startswith("saving"):
            thread.join(60)
    assert threading.active_count() == before


class _File:
    """Keeps what is written, and which memory was lent."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.lent: list[int] = []

    def write(self, data: Any, /) -> int:
        self.content += bytes(data)
        return len(data)

    def write_lasting(self, data: Any, /) -> int:
        self.lent.append(torch.frombuffer(data, dtype=torch.uint8).data_ptr())
        self.write(data)
        return zlib.crc32(data)


def _written(snapshot: Snapshot) -> _File:
    file = _File()
    snapshot.write_to(file, lambda count: None)
    return file


def _copied(state: object, staging: Staging | None = None) -> Any:
    """Return what a snapshot is loaded as."""
    content = bytes(_written((staging or Staging()).copy(state)).content)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    return torch.load(io.BytesIO(content), weights_only=False)


def test_shared_storages_stay_shared():
    """Tensors that share memory share it in the copy, and with nobody else; it is copied once."""
    weight = torch.rand(10, 10)
    expected = weight.clone()
    state = {"a": weight, "b": weight[2:4], "c": [weight.t(), (weight[0, 0],)]}
    snapshot = Staging().copy(state)
    weight.zero_()
    file = _written(snapshot)
    assert len(file.lent) == 1
    assert file.lent != [weight.data_ptr()]
    copied = torch.load(io.BytesIO(file.content))
    assert torch.equal(copied["b"], expected[2:4])
    assert copied["c"][0].stride() == weight.t().stride()
    pointers = {
        each.untyped_storage().data_ptr() for each in (copied["a"], copied["b"], copied["c"][0], copied["c"][1][0])
    }
    assert len(pointers) == 1


def test_memory_is_used_again():
    """The second copy of a state of the same sizes takes no new memory."""
    staging = Staging()
    first = _written(staging.copy({"a": torch.rand(1000), "b": torch.rand(1000), "c": torch.rand(500)}))
    second = _written(staging.copy({"c": torch.rand(500), "b": torch.ones(1000), "a": torch.rand(1000)}))
    assert sorted(second.lent) == sorted(first.lent)
    assert torch.load(io.BytesIO(second.content))["b"].unique().tolist() == [1]


class _Config:
    """Has an attribute."""

    def __init__(self) -> None:
        self.rates = [0.1]


def test_what_is_copied_as_it_is():
    """Parameters stay parameters, containers keep their class, and everything else is copied deeply."""
    config = _Config()
    cycle: list[object] = [1]
    cycle.append(cycle)
    parameter = nn.Parameter(torch.rand(3), requires_grad=False)
    state = {"p": parameter, "o": nn.Linear(2, 2).state_dict(), "c": config, "s": torch.eye(3).to_sparse(), "y": cycle}
    snapshot = Staging().copy(state)
    config.rates.append(0.2)
    copied = torch.load(io.BytesIO(_written(snapshot).content), weights_only=False)
    assert type(copied["p"]) is nn.Parameter
    assert not copied["p"].requires_grad
    assert type(copied["o"]) is type(state["o"])
    assert copied["c"].rates == [0.1]
    assert torch.equal(copied["s"].to_dense(), torch.eye(3))
    assert copied["y"][1] is copied["y"]
    assert torch.equal(_copied(torch.tensor([1 + 2j]).conj()), torch.tensor([1 - 2j]))


class _OwnParameter(nn.Parameter):
    """A parameter of a class of its own."""


def _with_note(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = [torch.ones(2)]
    return tensor


def _kinds() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():  # of what torch calls prototypes, or deprecated
        warnings.simplefilter("ignore")
        return {
            "tensor": _with_note(torch.rand(3)),
            "buffer": nn.Buffer(torch.rand(3)),
            "parameter": _with_note(nn.Parameter(torch.rand(3), requires_grad=False)),
            "own parameter": nn.ParameterDict({"a": _OwnParameter(torch.rand(3))})["a"],
            "uninitialized": nn.LazyLinear(3).weight,
            "result": torch.rand(3, requires_grad=True) * 2,
            "sparse": _with_note(torch.eye(3).to_sparse().requires_grad_()),
            "sparse parameter": nn.Parameter(torch.eye(3).to_sparse()),
            "quantized": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "conjugate": torch.rand(3, dtype=torch.complex64).conj(),
        }


@pytest.mark.parametrize("name", _kinds())
def test_tensors_of_all_kinds(name):
    """A copy is saved as the original is: with its class, its attributes, and whether it has gradients."""
    original = _kinds()[name]
    snapshot = Staging().copy(original)
    plain = io.BytesIO()
    torch.save(original, plain)
    for note in vars(original).get("note", []):
        note.zero_()
    assert without_id(bytes(_written(snapshot).content)) == without_id(plain.getvalue())


class _Wrapper(MutableMapping[str, Any]):
    """A mapping whose shallow copy shares its items with it."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.inner = items

    def __getitem__(self, key: str) -> Any:
        return self.inner[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.inner[key] = value

    def __delitem__(self, key: str) -> None:
        del self.inner[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def test_the_original_is_not_written_to():
    """A mapping of any class keeps its own tensors, and the copy has others."""
    weight = torch.ones(3)
    state = _Wrapper({"a": weight})
    snapshot = Staging().copy(state)
    assert state["a"] is weight
    weight.zero_()
    assert torch.load(io.BytesIO(_written(snapshot).content), weights_only=False)["a"].tolist() == [1, 1, 1]


def test_meta_tensors():
    """Tensors without values are saved as torch.save saves them."""
    copied = _copied({"a": torch.empty(3, device="meta")})
    assert (copied["a"].device.type, copied["a"].shape) == ("meta", (3,))


def test_without_an_outline(monkeypatch):
    """Where torch has no outlines, a snapshot is the whole file."""
    monkeypatch.delattr(torch.serialization, "skip_data", raising=False)
    weight = torch.ones(3)
    snapshot = Staging().copy({"a": weight})
    weight.zero_()
    assert torch.load(io.BytesIO(_written(snapshot).content))["a"].tolist() == [1, 1, 1]


def test_another_default_device():
    """The copies are in the memory of the CPU, whatever torch's default device is."""
    with torch.device("meta"):
        snapshot = Staging().copy({"a": torch.ones(3, device="cpu")})
    assert torch.load(io.BytesIO(_written(snapshot).content))["a"].tolist() == [1, 1, 1]


def test_what_cannot_be_saved(s3, uri, caplog):
    """What save refuses is raised by the future, and the next call does not wait for it."""
    checkpoint = S3Checkpoint()
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        checkpoint.save_async({"a": lambda: 1}, uri).result(10)
    assert f"{uri} was not saved" in caplog.text
    checkpoint.save_async({"a": 2}, uri).result(10)
    assert checkpoint.load(uri) == {"a": 2}


def _weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(nn.Linear(3, 2))


def _with_attribute(kind: type) -> Any:
    made = kind({"a": torch.ones(3)})
    made.note = [torch.ones(3), {"epoch": 1}]
    return made


def _sharing() -> list[Any]:
    shared = torch.ones(30)
    return [Shared(shared, [shared]), shared[1:]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: _with_attribute(OwnDict),
        lambda: _with_attribute(OrderedDict),
        lambda: _with_attribute(UserDict),
        lambda: Pair(torch.ones(3, requires_grad=True) * 2, 1),
        _weight_normed,
        _sharing,
    ],
    ids=["dict", "OrderedDict", "UserDict", "namedtuple", "weight_norm", "dataclass"],
)
def test_what_save_stores(make):
    """All that changes later is stored as it was, and what is shared stays shared."""
    state = make()
    plain = io.BytesIO()
    torch.save(state, plain)
    snapshot = Staging().copy(state)
    with torch.no_grad():
        change(state)
    assert without_id(bytes(_written(snapshot).content)) == without_id(plain.getvalue())
