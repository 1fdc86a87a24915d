"""The S3 connector of AWS for PyTorch: Rust and C."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.clients.checkpoints import loading, saving
from benchmarks.clients.compute import epoch, releases_gil
from benchmarks.clients.dcp import all_layers, loading_sharded, one_layer, saving_sharded
from benchmarks.clients.work import (
    IN_FLIGHT,
    Ranges,
    in_threads,
    interpreter,
    load,
    ranges_at_once,
    ranges_in_turn,
    read_once,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import PART, Effort, Site, Stored
from benchmarks.state import SAFETENSORS

__all__: list[str] = []

_NEEDS = "s3torchconnector"


@enter("s3torchconnector, sequential read()", "large", needs=_NEEDS)
def large_sequential(site: Site, _: Effort) -> Work:
    """The sequential reader's ``read()``; it has no way into the caller's memory that is cheaper."""
    s3 = _client(site)
    return lambda: Done(items=1, bytes=len(s3.get_object(site.bucket, site.large.key).read()))


@enter("s3torchconnector, range-based readinto()", "large", "integrity", needs=_NEEDS)
def large_ranged(site: Site, _: Effort) -> Work:
    """The range-based reader without its own buffer: its best way into the caller's memory."""
    s3, constructor = _client(site), _range_based()
    buffer = touched(site.large.size)

    def work() -> Done:
        reader = s3.get_object(site.bucket, site.large.key, reader_constructor=constructor)
        return Done(items=1, bytes=reader.readinto(buffer))

    return work


@enter("s3torchconnector, 32 threads", "small", "integrity", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """``get_object().read()`` in threads."""
    s3 = _client(site)
    return in_threads(site, effort, lambda key: len(s3.get_object(site.bucket, key).read()))


@enter("s3torchconnector, get_object().read()", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """The sequential reader's ``read()`` of everything."""
    s3 = _client(site)
    return read_once(site, lambda key: len(s3.get_object(site.bucket, key).read()))


@enter("import s3torchconnector", "import", needs=_NEEDS)
def import_it(_: Site, __: Effort) -> Work:
    """What ``import s3torchconnector`` adds to a program's start; it imports torch."""
    return interpreter("import s3torchconnector")


@enter("s3torchconnector map", "loader", needs=_NEEDS)
def loader_map(site: Site, effort: Effort) -> Work:
    """``S3MapDataset``, which reads one object after the other."""
    return load(site, effort, lambda: _dataset("S3MapDataset", site, site.samples, _read))


@enter("s3torchconnector iterable", "loader", needs=_NEEDS)
def loader_iterable(site: Site, effort: Effort) -> Work:
    """``S3IterableDataset``, which reads one object after the other."""
    return load(site, effort, lambda: _dataset("S3IterableDataset", site, site.samples, _read))


@enter("s3torchconnector, range-based reader", "ranges", needs=_NEEDS)
def ranges_one_reader(site: Site, effort: Effort) -> Work:
    """One range-based reader without its own buffer: ``seek`` and ``read``, range after range."""
    reader = _client(site).get_object(site.bucket, site.wide.key, reader_constructor=_range_based())

    def fetch(start: int, stop: int) -> bytes:
        reader.seek(start)
        part: bytes = reader.read(stop - start)
        return part

    return ranges_in_turn(site, effort, fetch)


@enter("s3torchconnector, range-based readers, 32 threads", "ranges", needs=_NEEDS)
def ranges_threads(site: Site, effort: Effort) -> Work:
    """A range-based reader for each range, in threads: not its own way, but one can write it."""
    s3, constructor, pool = _client(site), _range_based(), ThreadPoolExecutor(IN_FLIGHT)

    def read(place: tuple[int, int]) -> bytes:
        reader = s3.get_object(site.bucket, site.wide.key, reader_constructor=constructor)
        reader.seek(place[0])
        part: bytes = reader.read(min(PART, place[1] - place[0]))
        return part

    def fetch(ranges: Ranges) -> list[bytes]:
        return list(pool.map(read, ranges))

    return ranges_at_once(site, effort, fetch)


@enter("s3torchconnector iterable, decode releases the GIL", "epoch", needs=_NEEDS)
def epoch_iterable(site: Site, effort: Effort) -> Work:
    """An iterable dataset whose transform reads and decodes; a quarter of the samples, as it is slow."""

    def make(samples: tuple[Stored, ...], transform: Any) -> Any:  # noqa: ANN401 - a dataset of that package
        return _dataset("S3IterableDataset", site, samples, transform)

    return epoch(site, make, effort.items // 4, releases_gil)


@enter("s3torchconnector iterable", "in-flight", needs=_NEEDS)
def in_flight(site: Site, _: Effort) -> Work:
    """The stream, each object read and dropped: one is in flight."""
    dataset = _dataset("S3IterableDataset", site, site.mixed, lambda reader: len(reader.read()))
    next(iter(dataset))

    def work() -> Done:
        return Done(items=len(site.mixed), bytes=sum(dataset))

    return work


@enter("s3torchconnector", "listing", needs=_NEEDS)
def listing(site: Site, _: Effort) -> Work:
    """The listing of a map dataset."""
    from s3torchconnector import S3MapDataset

    def count(prefix: str) -> int:
        return len(
            S3MapDataset.from_prefix(
                f"s3://{site.bucket}/{prefix}",
                region=site.region,
                endpoint=site.endpoint,
                s3client_config=_config(site),
            )
        )

    count("nothing")
    return lambda: Done(items=count(site.prefix))


@enter("s3torchconnector", "save", "async-save", needs=_NEEDS)
def save(site: Site, _: Effort) -> Work:
    """``torch.save`` to ``S3Checkpoint.writer``."""
    import torch

    checkpoint = _checkpoint(site)

    def save_to(state: object, key: str) -> None:
        with checkpoint.writer(f"s3://{site.bucket}/{key}") as writer:
            torch.save(state, writer)

    return saving(site, save_to)


@enter("s3torchconnector", "load", "torch-checkpointing", needs=_NEEDS)
def load_checkpoint(site: Site, _: Effort) -> Work:
    """``torch.load`` from ``S3Checkpoint.reader``."""
    import torch

    checkpoint = _checkpoint(site)

    def load_from(key: str) -> Any:  # noqa: ANN401 - what torch.load returns
        with checkpoint.reader(f"s3://{site.bucket}/{key}") as reader:
            return torch.load(reader, weights_only=True)

    return loading(site, load_from)


@enter("s3torchconnector, safetensors.torch.load", "safetensors", needs=_NEEDS)
def load_safetensors(site: Site, _: Effort) -> Work:
    """``get_object().read()``, and the safetensors package takes the bytes; it has no call of its own."""
    from safetensors.torch import load as load_bytes

    s3 = _client(site)
    return loading(site, lambda key: load_bytes(s3.get_object(site.bucket, key).read()), SAFETENSORS)


def _load_sharded(reader: str, site: Site, _: Effort) -> Work:
    """``dcp.load`` with ``S3StorageReader``."""
    return loading_sharded(site, all_layers(site), lambda uri: _storage_reader(site, uri, reader))


def _load_layer(reader: str, site: Site, _: Effort) -> Work:
    """``dcp.load`` with ``S3StorageReader`` of one tensor."""
    return loading_sharded(site, one_layer(site), lambda uri: _storage_reader(site, uri, reader))


def _enter_dcp() -> None:
    for reader in ("dcp_optimized", "sequential"):  # the default, and that of versions before 1.5
        for task, prepare in (("dcp-load", _load_sharded), ("dcp-load-layer", _load_layer)):
            ready = functools.partial(prepare, reader)
            enter(f"s3torchconnector, {reader}", task, needs=_NEEDS)(functools.update_wrapper(ready, prepare))


_enter_dcp()


@enter("s3torchconnector", "dcp-save", needs=_NEEDS)
def save_sharded(site: Site, _: Effort) -> Work:
    """``dcp.save`` with ``S3StorageWriter``."""
    from s3torchconnector.dcp import S3StorageWriter

    _find_endpoint(site)
    return saving_sharded(site, lambda uri: S3StorageWriter(site.region, uri, s3client_config=_config(site)))


def _storage_reader(site: Site, uri: str, reader: str) -> Any:  # noqa: ANN401 - as below
    from s3torchconnector import S3ReaderConstructor
    from s3torchconnector.dcp import S3StorageReader

    _find_endpoint(site)
    constructor = getattr(S3ReaderConstructor, reader)()
    return S3StorageReader(site.region, uri, s3client_config=_config(site), reader_constructor=constructor)


def _find_endpoint(site: Site) -> None:
    """Name the server by a variable: nothing of its DCP takes an endpoint."""
    if site.endpoint is not None:
        os.environ["AWS_ENDPOINT_URL"] = site.endpoint


def _checkpoint(site: Site) -> Any:  # noqa: ANN401 - as below
    from s3torchconnector import S3Checkpoint

    return S3Checkpoint(site.region, endpoint=site.endpoint, s3client_config=_config(site))


def _client(site: Site) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
    from s3torchconnector._s3client import S3Client

    return S3Client(site.region, endpoint=site.endpoint, s3client_config=_config(site))


def _config(site: Site) -> Any:  # noqa: ANN401 - as above
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(force_path_style=site.path_style)


def _range_based() -> Any:  # noqa: ANN401 - as above
    from s3torchconnector import S3ReaderConstructor

    return S3ReaderConstructor.range_based(buffer_size=0)


def _dataset(kind: str, site: Site, samples: tuple[Stored, ...], transform: Any) -> Any:  # noqa: ANN401 - as above
    """Return a dataset of objects that are listed already."""
    import s3torchconnector

    uris = [f"s3://{site.bucket}/{sample.key}" for sample in samples]
    return getattr(s3torchconnector, kind).from_objects(
        uris, region=site.region, endpoint=site.endpoint, transform=transform, s3client_config=_config(site)
    )


def _read(reader: Any) -> bytes:  # noqa: ANN401 - as above
    content: bytes = reader.read()
    return content
