"""Random objects: S3Checkpoint beside torch.save and torch.load of the same bytes."""

from __future__ import annotations

import io
import pickle
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from s3torch import S3Checkpoint, S3ClientConfig
from s3torch.errors import S3Error
from s3torch.testing import FaultyServer
from s3torch.testing.faulty.objects import checksum_fields
from tests.checkpoint.objects import SAFE_CLASSES, change, described, one_rank, states

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch, about prototypes and what it calls deprecated
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
_URI = "s3://bucket/key"
# What looks at the values of a tensor while it is unpickled. The legacy format has them behind the pickle: torch.load
# makes these of whatever the memory held before, so what comes of them there is chance.
_LOOKS = ("looking", "nested", "jagged")
_relaxed = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    with one_rank(), torch.serialization.safe_globals(SAFE_CLASSES):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """A server that loses nothing."""
    with FaultyServer() as server:
        yield server


def _checkpoint(server: FaultyServer, checksums: Any = "on") -> S3Checkpoint:
    options = {name: getattr(server.config, name) for name in server.config.__dataclass_fields__}
    config = S3ClientConfig(**{**options, "checksums": checksums})
    return S3Checkpoint("us-east-1", endpoint=server.endpoint, s3client_config=config)


def _saved(state: object, **options: Any) -> bytes | None:
    """Return what torch.save writes; None if it refuses."""
    file = io.BytesIO()
    try:
        torch.save(state, file, **options)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError, pickle.PicklingError):
        return None
    return file.getvalue()


def _doubled(storage: Any, location: str) -> Any:
    assert location == "cpu"
    return torch.cat([torch.empty(0, dtype=torch.uint8).set_(storage)]).untyped_storage()


_LOCATIONS: list[Any] = [
    None,
    "cpu",
    torch.device("cpu"),
    {},
    {"cuda:0": "cpu"},
    {"cpu": "meta"},
    "meta",
    torch.device("meta"),
    lambda storage, location: storage,
    lambda storage, location: None,
    _doubled,
]


def _looks(drawn: Any) -> bool:
    return any(made.endswith(_LOOKS) for made in drawn.recipe)


def _outcome(load: Callable[[], Any]) -> Any:
    """Return what is loaded, described; or the error."""
    try:
        return described(load())
    except (S3Error, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError) as error:
        return error
    except (pickle.UnpicklingError, NotImplementedError) as error:
        return error


@_relaxed
@given(
    drawn=states(),
    location=st.sampled_from(_LOCATIONS),
    weights_only=st.booleans(),
    checksums=st.sampled_from(["on", "strict"]),
    is_legacy=st.integers(0, 5).map(lambda number: number == 0),
    protocol=st.sampled_from([2, 2, 4]),
)
def test_load_is_torch_load(server, drawn, location, weights_only, checksums, is_legacy, protocol):
    """Whatever torch.load makes of a file, load makes of it."""
    content = _saved(drawn.state, _use_new_zipfile_serialization=not is_legacy, pickle_protocol=protocol)
    assume(content is not None)
    assume(not (is_legacy and _looks(drawn)))
    server.objects["key"] = content
    expected = _outcome(lambda: torch.load(io.BytesIO(content), location, weights_only=weights_only))
    checkpoint = _checkpoint(server, checksums)
    found = _outcome(lambda: checkpoint.load(_URI, location, weights_only=weights_only))
    if isinstance(expected, Exception):
        assert isinstance(found, type(expected)) or "is no checkpoint that can be loaded" in str(found)
    else:
        assert found == expected


@_relaxed
@given(drawn=states())
def test_what_save_writes_is_what_torch_writes(server, drawn):
    """What save stores is loaded as what torch.save writes."""
    content = _saved(drawn.state)
    assume(content is not None)
    _checkpoint(server).save(drawn.state, _URI)
    load = torch.load
    assert described(load(io.BytesIO(server.objects["key"]), weights_only=False)) == described(
        load(io.BytesIO(content), weights_only=False)
    )


class _Held(S3Checkpoint):
    """Writes nothing before it may."""

    may_write = threading.Event()

    def writer(self, s3_uri: str) -> Any:
        assert self.may_write.wait(60)
        return super().writer(s3_uri)


@_relaxed
@given(drawn=states())
def test_save_async_is_save(server, drawn):
    """What save_async stores is what save would have stored at the time of the call, whatever happens afterwards."""
    content = _saved(drawn.state)
    assume(content is not None)
    checkpoint = _Held("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
    checkpoint.may_write.clear()
    try:
        future = checkpoint.save_async(drawn.state, _URI)
        change(drawn.state)
    finally:
        checkpoint.may_write.set()
    future.result(60)
    found = server.objects["key"]
    assert _without_id(found) == _without_id(content)
    assert described(torch.load(io.BytesIO(found), weights_only=False)) == described(
        torch.load(io.BytesIO(content), weights_only=False)
    )


def _without_id(content: bytes) -> dict[str, bytes]:
    """Return the records of a file but its serialization_id, which torch makes of the CRC-32s while it writes them."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/.data/serialization_id")}


@settings(_relaxed, max_examples=25)
@given(
    drawn=states(),
    is_legacy=st.integers(0, 4).map(lambda number: number == 0),
    weights_only=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_strict_finds_a_flipped_bit(server, drawn, is_legacy, weights_only, seed):
    """With checksums="strict" a bit that flipped anywhere in a file is an error, or makes no difference."""
    content = _saved(drawn.state, _use_new_zipfile_serialization=not is_legacy)
    assume(content is not None)
    assume(not (is_legacy and _looks(drawn)))
    expected = _outcome(lambda: torch.load(io.BytesIO(content), weights_only=weights_only))
    assume(not isinstance(expected, Exception))
    checkpoint = _checkpoint(server, "strict")
    chance = random.Random(seed)
    places = {chance.randrange(len(content)) for _ in range(8)}
    if not is_legacy:  # what is around the storages is small, and would be met by chance alone too rarely
        archive = zipfile.ZipFile(io.BytesIO(content))
        for info in archive.infolist():
            places |= {info.header_offset + chance.randrange(64), chance.randrange(archive.start_dir, len(content))}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        server.objects["key"] = bytes(damaged)
        server.objects.checksums_of("key").clear()
        if is_legacy:  # nothing in such a file proves it: the server must
            server.objects.checksums_of("key").update(checksum_fields(content))
        found = _outcome(lambda: checkpoint.load(_URI, weights_only=weights_only))
        assert isinstance(found, Exception) or found == expected, place
