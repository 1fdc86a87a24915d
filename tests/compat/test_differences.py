"""What s3torch does otherwise than s3torchconnector, on purpose: docs/migrate.md has a row for each test.

Run on s3torchconnector itself, by ``make compare``, each of these must fail.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from s3torch.compat.installing import PACKAGES, real_version
from s3torch.testing import FaultyServer, faults

IS_REAL = real_version() is not None
_FAILURES = (AssertionError, pytest.fail.Exception, RuntimeError, TypeError, ValueError)
pytestmark = [
    pytest.mark.xfail(IS_REAL, reason="s3torchconnector does otherwise", raises=_FAILURES, strict=True),
]

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "migrate.md"
CONTENT = bytes(range(256)) * 400
REGION = "us-east-1"
MiB = 1024 * 1024


@pytest.fixture(autouse=True)
def drop_in() -> Iterator[None]:
    """This process with the drop-in, if s3torchconnector itself is not installed."""
    if IS_REAL:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGES))
        yield
        for name in [name for name in sys.modules if name.startswith("s3torchconnector")]:
            del sys.modules[name]


@pytest.fixture
def package(drop_in: None) -> Any:
    """What ``import s3torchconnector`` gives."""
    return importlib.import_module("s3torchconnector")


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A server with one object."""
    with FaultyServer({"p/key": CONTENT}) as server:
        yield server


@pytest.fixture
def options(server: FaultyServer, package: Any) -> dict[str, Any]:
    """The arguments by which datasets and clients reach the server."""
    config = package.S3ClientConfig(unsigned=True, force_path_style=True, max_attempts=2)
    return {"endpoint": server.endpoint, "s3client_config": config}


@pytest.fixture
def client(drop_in: None, options: dict[str, Any]) -> Any:
    """A client of the server."""
    return importlib.import_module("s3torchconnector._s3client").S3Client(REGION, **options)


@pytest.fixture
def dataset(package: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """Makes a map dataset of all that is there."""
    return lambda **more: package.S3MapDataset.from_prefix("s3://bucket/p/", region=REGION, **options, **more)


def test_closed_readers_refuse(client: Any):
    """A closed reader raises ValueError, and so does a writer."""
    reader = client.get_object("bucket", "p/key")
    reader.read(1)
    reader.close()
    with pytest.raises(ValueError, match="closed file"):
        reader.read(1)
    writer = client.put_object("bucket", "new")
    writer.close()
    with pytest.raises(ValueError, match="closed file"):
        writer.flush()


def test_exception_aborts_the_upload(server: FaultyServer, client: Any):
    """An exception inside ``with`` leaves what was there, and no upload."""
    with contextlib.suppress(ZeroDivisionError), client.put_object("bucket", "p/key") as writer:
        writer.write(b"half")
        _ = 1 / 0
    del writer
    gc.collect()
    assert server.objects["p/key"] == CONTENT
    assert not server.objects.uploads


@pytest.mark.filterwarnings("ignore:.*never closed:ResourceWarning")
def test_abandoned_writers_discard(server: FaultyServer, client: Any):
    """A writer that was never closed leaves what was there."""
    writer = client.put_object("bucket", "p/key")
    writer.write(b"half")
    del writer
    gc.collect()
    assert server.objects["p/key"] == CONTENT


def test_writers_send_nothing_at_first(server: FaultyServer, client: Any):
    """put_object sends nothing; a small object is one PUT when it is closed."""
    with client.put_object("bucket", "small") as writer:
        assert server.requests == []
        writer.write(b"content")
    assert [request.method for request in server.requests] == ["PUT"]


def _items(*ranges: tuple[int, int]) -> tuple[list[Any], dict[int, Any]]:
    """Return items of a load plan, and where they are stored."""
    items = [SimpleNamespace(storage_index=number) for number in range(len(ranges))]
    places = [SimpleNamespace(relative_path="key", offset=start, length=stop - start) for start, stop in ranges]
    return items, dict(enumerate(places))


def test_overlapping_ranges_load(package: Any, client: Any):
    """Ranges of a load plan may overlap and repeat."""
    constructor = package.S3ReaderConstructor.dcp_optimized()
    constructor.set_item_ranges_by_file(*_items((0, 100), (50, 200), (50, 200)), "s3://bucket/p")
    reader = client.get_object("bucket", "p/key", reader_constructor=constructor)
    reader.seek(50)
    assert reader.read(150) == CONTENT[50:200]


def test_dcp_readers_go_anywhere(package: Any, client: Any):
    """The reader of a distributed checkpoint reads outside of the plan, backwards, and to the end."""
    constructor = package.S3ReaderConstructor.dcp_optimized()
    constructor.set_item_ranges_by_file(*_items((1000, 1100)), "s3://bucket/p")
    reader = client.get_object("bucket", "p/key", reader_constructor=constructor)
    reader.seek(2000)
    assert reader.read(10) == CONTENT[2000:2010]
    reader.seek(5)
    assert reader.read() == CONTENT[5:]


@pytest.mark.parametrize("buffer_size", [None, 4 * MiB])
def test_range_based_readers_fetch_what_is_read(
    server: FaultyServer, package: Any, client: Any, buffer_size: int | None
):
    """A small read fetches 64 KiB at most beside its bytes, not a buffer of 8 MiB; ``buffer_size`` is a limit."""
    server.objects["p/large"] = bytes(6 * MiB)
    constructor = package.S3ReaderConstructor.range_based(buffer_size=buffer_size)
    reader = client.get_object(
        "bucket", "p/large", object_info=client.head_object("bucket", "p/large"), reader_constructor=constructor
    )
    reader.seek(3 * MiB)
    reader.read(100)
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", "")) for request in server.requests]
    assert sum(int(match[2]) - int(match[1]) + 1 for match in asked if match) <= 100 + 64 * 1024


@pytest.mark.parametrize("now", [b"0123456789", CONTENT * 2], ids=["smaller", "larger"])
def test_replaced_objects_are_errors(server: FaultyServer, package: Any, dataset: Callable[..., Any], now: bytes):
    """An object whose size is another than the listing said is an error."""
    items = dataset(
        reader_constructor=package.S3ReaderConstructor.range_based(), transform=lambda reader: reader.read()
    )
    assert len(items) == 1
    server.objects["p/key"] = now
    with pytest.raises(package.S3Exception, match="was replaced since it was listed"):
        items[0]


def test_directory_markers_are_no_samples(server: FaultyServer, dataset: Callable[..., Any]):
    """Empty objects whose keys end in a slash are left out."""
    server.objects["p/folder/"] = b""
    assert len(dataset()) == 1


def test_bad_uris_are_refused_at_once(package: Any):
    """What has a bad URI is refused when it is made, not when it is first used."""
    dcp = importlib.import_module("s3torchconnector.dcp")
    for make in (package.S3MapDataset.from_prefix, dcp.S3StorageReader, dcp.S3StorageWriter):
        with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
            make(**{"s3_uri" if make == package.S3MapDataset.from_prefix else "path": "/a/path"}, region=REGION)


@pytest.mark.parametrize("wrong", [{"part_size": 1}, {"max_attempts": 0}, {"max_attempts": -1}])
def test_bad_configurations_are_refused_at_once(package: Any, wrong: dict[str, Any]):
    """A configuration that cannot work is a ValueError when it is made; it never panics."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        package.S3ClientConfig(**wrong)


def test_empty_endpoints_are_refused(package: Any):
    """An empty endpoint, such as a variable that was not set, does not lead to Amazon's."""
    with pytest.raises(ValueError, match="endpoint"):
        package.S3Checkpoint(REGION, endpoint="")


def test_bad_arguments_are_s3_exceptions_too(package: Any, client: Any):
    """What is a ValueError or a TypeError is an S3Exception as well, and a TypeError is a ValueError."""
    with pytest.raises(package.S3Exception):
        client.get_object("bucket", "p/key").seek(-1)
    with pytest.raises(ValueError, match="integer"):
        client.get_object("bucket", "p/key").read("1")


def test_messages_have_causes(package: Any, client: Any):
    """An error's text is that of s3torchconnector, and its cause says which object and what to do."""
    with pytest.raises(package.S3Exception) as caught:
        client.get_object("bucket", "nothing").read()
    assert isinstance(caught.value, FileNotFoundError)
    assert str(caught.value) == "Service error: The key does not exist"
    assert "s3://bucket/nothing" in str(caught.value.__cause__)


def test_duplicates_are_warned_of(package: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """An iterable dataset that several workers read without sharding warns."""
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", SimpleNamespace(id=0, num_workers=2))
    stream = package.S3IterableDataset.from_prefix("s3://bucket/p/", region=REGION, transform=_read, **options)
    with pytest.warns(UserWarning, match="enable_sharding=True"):
        iter(stream)


def _read(reader: Any) -> bytes:
    content: bytes = reader.read()
    return content


def test_ranks_of_torchrun(
    server: FaultyServer, package: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """With sharding, ranks that torchrun has started share the objects without a process group, too."""
    server.objects["p/other"] = b"other"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = package.S3IterableDataset.from_prefix(
        "s3://bucket/p/", region=REGION, transform=_read, enable_sharding=True, **options
    )
    assert list(stream) == [b"other"]


def test_ranks_are_asked_for_when_they_count(
    server: FaultyServer, package: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """A dataset that was made before its process group shares the objects among its ranks."""
    server.objects["p/other"] = b"other"
    stream = package.S3IterableDataset.from_prefix(
        "s3://bucket/p/", region=REGION, transform=_read, enable_sharding=True, **options
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert list(stream) == [b"other"]


def test_more_is_accepted(server: FaultyServer, client: Any):
    """Sizes may be numpy's integers, and any buffer can be written."""
    numpy = pytest.importorskip("numpy")
    assert client.get_object("bucket", "p/key").read(numpy.int64(3)) == CONTENT[:3]
    with client.put_object("bucket", "new") as writer:
        writer.write(bytearray(b"ab"))
    assert server.objects["new"] == b"ab"


def test_memory_is_contiguous(client: Any):
    """Memory that is not contiguous is not written: io refuses it, too."""
    with pytest.raises(ValueError, match="contiguous"), client.put_object("bucket", "new") as writer:
        writer.write(memoryview(b"abcd")[::2])


def test_checkpoints_are_no_folders(package: Any, options: dict[str, Any]):
    """A checkpoint is not saved as the marker of a folder."""
    with pytest.raises(ValueError, match="folder"):
        package.S3Checkpoint(REGION, **options).writer("s3://bucket/p/")


def test_damaged_checkpoints(server: FaultyServer, options: dict[str, Any]):
    """A checkpoint of Lightning that is cut off is an error that names it."""
    pytest.importorskip("lightning")
    plugin = importlib.import_module("s3torchconnector.lightning").S3LightningCheckpoint(REGION, **options)
    plugin.save_checkpoint({"weight": torch.arange(100)}, "s3://bucket/a.ckpt")
    server.objects["a.ckpt"] = server.objects["a.ckpt"][:500]
    with pytest.raises(ValueError, match=r"s3://bucket/a\.ckpt"):
        plugin.load_checkpoint("s3://bucket/a.ckpt")


def test_environment(server: FaultyServer, package: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """AWS_ENDPOINT_URL_S3 names the endpoint, and AWS_MAX_ATTEMPTS does nothing."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    kind = importlib.import_module("s3torchconnector._s3client").S3Client
    found = kind(REGION, s3client_config=options["s3client_config"])
    server.script(faults.status(500, "InternalError"))
    with contextlib.suppress(Exception):
        assert found.get_object("bucket", "p/key").read() == CONTENT
    assert len(server.requests) == 2


def test_loggers(client: Any, caplog: pytest.LogCaptureFixture):
    """Each request is one record of the logger ``s3torch``, at the level DEBUG; above it reading logs nothing."""
    caplog.set_level(logging.DEBUG)
    client.get_object("bucket", "p/key").read()
    ours = [record for record in caplog.records if record.name.startswith("s3torch")]
    assert {(record.name, record.levelno) for record in ours} == {("s3torch", logging.DEBUG)}
    caplog.clear()
    caplog.set_level(logging.INFO)
    client.get_object("bucket", "p/key").read()
    assert [record for record in caplog.records if record.name.startswith("s3torch")] == []


def test_user_agent(server: FaultyServer, client: Any):
    """Requests name s3torch."""
    client.get_object("bucket", "p/key").read()
    assert server.requests[0].headers["user-agent"].startswith("s3torch/")


def test_writers_are_made_by_clients(package: Any, client: Any):
    """An S3Writer is made of a client, and has no ``stream``."""
    with client.put_object("bucket", "key") as writer:
        assert isinstance(writer, package.S3Writer)
        assert not hasattr(writer, "stream")


def test_restore_status_is_not_listed(server: FaultyServer, client: Any):
    """A listing does not ask for the restore status of archived objects; head_object tells it."""
    page = next(client.list_objects("bucket", "p/"))
    assert page.object_info[0].restore_status is None
    assert "x-amz-optional-object-attributes" not in server.requests[-1].headers


@pytest.mark.skipif(IS_REAL, reason="says nothing of s3torchconnector")
def test_every_difference_is_documented():
    """The table in docs/migrate.md names exactly the tests of this file."""
    rows = re.findall(r"`test_differences\.py::(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    here = {name for name in globals() if name.startswith("test_")} - {"test_every_difference_is_documented"}
    assert sorted(rows) == sorted(here)
