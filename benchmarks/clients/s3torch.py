"""s3torch itself."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.clients.checkpoints import loading, rest, saving
from benchmarks.clients.compute import Decode, epoch, in_python, releases_gil
from benchmarks.clients.dcp import all_layers, loading_sharded, one_layer, saving_sharded
from benchmarks.clients.work import (
    BATCH,
    IN_FLIGHT,
    Ranges,
    batch_size,
    each_sample,
    in_threads,
    interpreter,
    load,
    ranges_at_once,
    read_once,
    table_of,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import KIB, MIB, Effort, Site, Stored
from benchmarks.state import CHECKPOINT, SAFETENSORS, make_state
from s3torch import S3Client, S3ClientConfig, S3Reader

if TYPE_CHECKING:
    from s3torch import S3Checkpoint
    from s3torch._transfer.http1 import ContentRange

__all__: list[str] = []

_SMALL_BATCH = 256
# Enough that all connections stay busy while the oldest request is waited for.
_WINDOW = 2 * IN_FLIGHT
_BOUND = 64 * MIB
_FLIGHT_RANGES = ((100_000, 1 * MIB, 3 * MIB, 100_000, 8 * MIB) * 8)[:32]


# --- Large objects ----------------------------------------------------------------------------------------------------


@enter("s3torch, 1 connection", "large")
def large_one_connection(site: Site, _: Effort) -> Work:
    """``read_range`` into a reused buffer: parts of 8 MiB, one after the other."""
    return _read_range(site, _client(site, max_connections=1))


@enter("s3torch", "large")
def large(site: Site, _: Effort) -> Work:
    """``read_range`` into a reused buffer: parts of 8 MiB at once."""
    return _read_range(site, _client(site))


@enter("s3torch, get_object().read()", "memory")
def memory(site: Site, _: Effort) -> Work:
    """The sequential reader's ``read()`` of everything."""
    s3 = _client(site)
    return read_once(site, lambda key: len(s3.get_object(site.bucket, key).read()))


@enter("import s3torch", "import")
def import_it(_: Site, __: Effort) -> Work:
    """What ``import s3torch`` adds to a program's start."""
    return interpreter("import s3torch")


def _read_range(site: Site, s3: S3Client) -> Work:
    buffer = touched(site.large.size)

    def work() -> Done:
        before = s3.stats
        count = s3.read_range(site.bucket, site.large.key, 0, site.large.size, into=buffer)
        return _done(s3, before, items=1, received=count)

    return work


# --- Small objects ----------------------------------------------------------------------------------------------------


@enter("s3torch map, batches of 256", "small")
def small_map(site: Site, effort: Effort) -> Work:
    """``S3MapDataset.__getitems__`` in batches of 256, each sample read by the transform; 32 connections."""
    return _batches(site, effort)


def _batches(site: Site, effort: Effort, **settings: Any) -> Work:  # noqa: ANN401 - fields of S3ClientConfig
    from s3torch import S3MapDataset

    samples = each_sample(site, effort)
    options = _options(site, max_connections=IN_FLIGHT, **settings)
    dataset = S3MapDataset.from_table(table_of(site, samples), **options, transform=_read)
    batches = [range(start, min(start + _SMALL_BATCH, len(samples))) for start in range(0, len(samples), _SMALL_BATCH)]

    def work() -> Done:
        received = sum(sum(map(len, dataset.__getitems__(batch))) for batch in batches)
        return Done(items=len(samples), bytes=received)

    return work


@enter("s3torch iterable", "small")
def small_iterable(site: Site, effort: Effort) -> Work:
    """``S3IterableDataset``, each sample read by the transform; 32 connections."""
    from s3torch import S3IterableDataset

    samples = each_sample(site, effort)
    options = _options(site, max_connections=IN_FLIGHT)
    dataset = S3IterableDataset.from_table(table_of(site, samples), **options, transform=_read)
    return lambda: Done(items=len(samples), bytes=sum(map(len, dataset)))


@enter("s3torch read_ranges", "small")
def small_ranges(site: Site, effort: Effort) -> Work:
    """``read_ranges``: as many bytes of one large object, 64 ranges at a time, into memory that is used again."""
    s3 = _client(site, max_connections=IN_FLIGHT)
    sizes = [sample.size for sample in each_sample(site, effort)]
    stops = list(itertools.accumulate(sizes, lambda stop, size: stop + 1 + size))  # apart, so that none are joined
    ranges = [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True) if stop <= site.large.size]
    slabs = [touched(max(sizes)) for _ in range(_WINDOW)]

    def work() -> Done:
        for start in range(0, len(ranges), _WINDOW):
            some = ranges[start : start + _WINDOW]
            into = [memoryview(slab)[: stop - begin] for slab, (begin, stop) in zip(slabs, some, strict=False)]
            s3.read_ranges(site.bucket, site.large.key, some, into, max_gap=0)
        return Done(items=len(ranges), bytes=sum(stop - start for start, stop in ranges))

    return work


@enter("s3torch engine, recycled memory", "small")
def small_recycled(site: Site, effort: Effort) -> Work:
    """The engine, as a dataset drives it: a window of GetObjects, received into memory that is used again."""
    slabs = [_Slab(max(sample.size for sample in site.samples)) for _ in range(_WINDOW)]
    return _window(site, effort, itertools.cycle(slabs))


@enter("s3torch engine, fresh bytes", "small")
def small_fresh(site: Site, effort: Effort) -> Work:
    """The same, but each object becomes a new ``bytes`` whose size the answer tells, as the sequential reader does."""
    return _window(site, effort, (_FreshBytes() for _ in itertools.repeat(None)))


@enter("s3torch get_object, 32 threads", "small")
def small_threads(site: Site, effort: Effort) -> Work:
    """The client in threads, as the other clients are used: each thread has a connection of its own."""
    s3 = _client(site)
    return in_threads(site, effort, lambda key: len(s3.get_object(site.bucket, key).read()))


class _Target(Protocol):
    """Where one small object is received.

    Attributes:
        reach: How many bytes GetObject is to ask for.
    """

    reach: int

    @property
    def into(self) -> Any:  # noqa: ANN401 - memory, or what returns it
        """What GetObject takes."""

    def collect(self) -> int:
        """Take what was received; returns its size."""


class _Slab:
    """Memory that is used again and again, for objects of known size."""

    def __init__(self, size: int) -> None:
        self.reach = size
        self.into: Any = memoryview(touched(size))

    def collect(self) -> int:
        return len(self.into)


class _FreshBytes:
    """Memory that is allocated when the answer tells the size, and becomes ``bytes``."""

    reach = 8 * MIB

    def into(self, content_range: ContentRange) -> memoryview:
        from s3torch._transfer.buffers import BytesBuffer

        self._buffer = BytesBuffer(content_range.stop - content_range.start)
        return self._buffer.view

    def collect(self) -> int:
        return len(self._buffer.to_bytes())


def _window(site: Site, effort: Effort, targets: Iterable[_Target]) -> Work:
    """Keep a window of requests submitted and wait for the oldest of them.

    Targets that repeat after _WINDOW steps are free again by then.
    """
    from s3torch._aws.operations import GetObject

    s3 = _client(site, max_connections=IN_FLIGHT)
    engine, bucket = s3._access.engine(), s3._access.bucket(site.bucket)
    keys = [sample.key for sample in each_sample(site, effort)]
    waiting: deque[tuple[GetObject, _Target]] = deque()

    def finish_oldest() -> int:
        get, target = waiting.popleft()
        engine.wait([get])
        return target.collect()

    def work() -> Done:
        received = 0
        for key, target in zip(keys, targets, strict=False):
            if len(waiting) == _WINDOW - 1:
                received += finish_oldest()
            get = GetObject(bucket, key, 0, target.reach, target.into)
            engine.submit(get)
            waiting.append((get, target))
        while waiting:
            received += finish_oldest()
        return Done(items=len(keys), bytes=received)

    return work


# --- Loaders ----------------------------------------------------------------------------------------------------------


@enter("s3torch map", "loader")
def loader_map(site: Site, effort: Effort) -> Work:
    """``S3MapDataset`` in a DataLoader: the objects of a batch are fetched at the same time."""
    return _load(site, effort, "S3MapDataset")


@enter("s3torch map + LookAheadBatchSampler", "loader")
def loader_look_ahead(site: Site, effort: Effort) -> Work:
    """The same with the next batch in flight while this one is used."""
    return _load(site, effort, "S3MapDataset", batch_sampler=_look_ahead(batch_size(site, effort)))


@enter("s3torch S3DataLoader, shuffled", "loader")
def loader_own(site: Site, effort: Effort) -> Work:
    """``S3DataLoader``: samples in shuffled order, with the next batches in flight while this one is used."""
    from s3torch import S3DataLoader

    return _load(site, effort, "S3MapDataset", loader=S3DataLoader, shuffle=True)


@enter("s3torch iterable", "loader")
def loader_iterable(site: Site, effort: Effort) -> Work:
    """``S3IterableDataset`` in a DataLoader."""
    return _load(site, effort, "S3IterableDataset")


@enter("s3torch iterable, decode releases the GIL", "epoch")
def epoch_iterable(site: Site, effort: Effort) -> Work:
    """An iterable dataset whose transform reads and decodes."""
    return _epoch(site, effort, "S3IterableDataset", releases_gil)


@enter("s3torch map + LookAheadBatchSampler, decode releases the GIL", "epoch")
def epoch_look_ahead(site: Site, effort: Effort) -> Work:
    """A map dataset whose transform reads and decodes, with the next batch in flight."""
    return _epoch(site, effort, "S3MapDataset", releases_gil, batch_sampler=_look_ahead(BATCH))


@enter("s3torch iterable, decode in Python", "epoch")
def epoch_iterable_python(site: Site, effort: Effort) -> Work:
    """As above, with work that holds the interpreter."""
    return _epoch(site, effort, "S3IterableDataset", in_python)


@enter("s3torch map + LookAheadBatchSampler, decode in Python", "epoch")
def epoch_look_ahead_python(site: Site, effort: Effort) -> Work:
    """As above, with work that holds the interpreter."""
    return _epoch(site, effort, "S3MapDataset", in_python, batch_sampler=_look_ahead(BATCH))


def _load(site: Site, effort: Effort, kind: str, **options: Any) -> Work:  # noqa: ANN401 - a DataLoader's
    import s3torch.datasets  # noqa: F401 - so that the clock does not count it

    datasets: list[Any] = []

    def make() -> Any:  # noqa: ANN401 - any dataset
        datasets.append(_dataset(kind, site, site.samples, _read))
        return datasets[0]

    work = load(site, effort, make, **options)
    s3: S3Client = datasets[0].client

    def counted() -> Done:
        before = s3.stats
        done = work()
        return _done(s3, before, items=done.items, received=done.bytes, extra=dict(done.extra))

    return counted


def _epoch(
    site: Site,
    effort: Effort,
    kind: str,
    decode: Callable[[], Decode],
    **options: Any,  # noqa: ANN401 - a DataLoader's
) -> Work:
    def make(samples: tuple[Stored, ...], transform: Any) -> Any:  # noqa: ANN401 - any dataset
        return _dataset(kind, site, samples, transform)

    return epoch(site, make, effort.items, decode, **options)


def _look_ahead(size: int) -> Callable[[Any], Any]:
    """Return what makes the batch sampler of a dataset."""
    from torch.utils.data import BatchSampler, SequentialSampler

    from s3torch.datasets import LookAheadBatchSampler

    return lambda dataset: LookAheadBatchSampler(BatchSampler(SequentialSampler(dataset), size, drop_last=False))


# --- Ranges -----------------------------------------------------------------------------------------------------------


@enter("s3torch read_ranges", "ranges")
def ranges(site: Site, effort: Effort) -> Work:
    """All ranges by one ``read_ranges``."""
    s3 = _client(site)

    def fetch(wanted: Ranges) -> list[bytes]:
        return s3.read_ranges(site.bucket, site.wide.key, wanted)

    work = ranges_at_once(site, effort, fetch)

    def counted() -> Done:
        before = s3.stats
        done = work()
        return _done(s3, before, items=done.items, received=done.bytes)

    return counted


# --- Memory in flight -------------------------------------------------------------------------------------------------


@enter("s3torch map, batches of 16", "in-flight")
def in_flight_map(site: Site, _: Effort) -> Work:
    """``__getitems__`` in batches of 16, each object read and dropped; at most 64 MiB in flight."""
    dataset = _dataset("S3MapDataset", site, site.mixed, _length, max_bytes_in_flight=_BOUND)
    batches = [range(start, min(start + 16, len(dataset))) for start in range(0, len(dataset), 16)]
    _open_connections(dataset.client, site)

    def work() -> Done:
        return Done(items=len(dataset), bytes=sum(sum(dataset.__getitems__(batch)) for batch in batches))

    return work


def _open_connections(s3: S3Client, site: Site) -> None:
    """Open as many as the client will: they are not what is in flight."""
    ranges = [(start, start + KIB) for start in range(0, 128 * MIB, MIB)]
    s3.read_ranges(site.bucket, site.wide.key, ranges, max_gap=0)


@enter("s3torch iterable", "in-flight")
def in_flight_iterable(site: Site, _: Effort) -> Work:
    """The stream, each object read and dropped; at most 64 MiB in flight."""
    dataset = _dataset("S3IterableDataset", site, site.mixed, _length, max_bytes_in_flight=_BOUND)
    _open_connections(dataset.client, site)
    return lambda: Done(items=len(site.mixed), bytes=sum(dataset))


@enter("s3torch read_ranges", "in-flight")
def in_flight_ranges(site: Site, _: Effort) -> Work:
    """Ranges of 100 kB to 8 MiB by one ``read_ranges`` into memory that is there; at most 64 MiB in flight."""
    s3 = _client(site, max_bytes_in_flight=_BOUND)
    into = [touched(size) for size in _FLIGHT_RANGES]
    step = site.wide.size // len(into)
    wanted = [(number * step, number * step + min(step, len(memory))) for number, memory in enumerate(into)]
    views = [memoryview(memory)[: stop - start] for memory, (start, stop) in zip(into, wanted, strict=True)]
    _open_connections(s3, site)

    def work() -> Done:
        s3.read_ranges(site.bucket, site.wide.key, wanted, into=views)
        return Done(items=len(wanted), bytes=sum(map(len, views)))

    return work


# --- Listing ----------------------------------------------------------------------------------------------------------


@enter("s3torch", "listing")
def listing(site: Site, _: Effort) -> Work:
    """The listing of a map dataset."""
    from s3torch import S3MapDataset

    uri = f"s3://{site.bucket}/{site.prefix}"
    dataset = S3MapDataset.from_prefix(uri, region=site.region, endpoint=site.endpoint, transform=_key)
    _warm(dataset.client, site)
    return lambda: Done(items=len(dataset))


@enter("s3torch, stream", "listing")
def listing_stream(site: Site, _: Effort) -> Work:
    """The listing of an iterable dataset of a tenth of the keys, a page ahead of who reads it."""
    from s3torch.datasets.objects import list_prefix

    s3 = _client(site)
    _warm(s3, site)
    return lambda: Done(items=sum(1 for _ in list_prefix(s3, site.bucket, site.part_prefix)))


@enter("s3torch's table", "listing")
def listingtable_of(site: Site, _: Effort) -> Work:
    """What the table of a map dataset costs: bytes of each key beside the key, microseconds of a look-up."""
    import random
    import sys
    import time

    from s3torch import S3MapDataset
    from s3torch.datasets import ObjectTable

    uri = f"s3://{site.bucket}/{site.prefix}"

    def work() -> Done:
        dataset = S3MapDataset.from_prefix(uri, region=site.region, endpoint=site.endpoint, transform=_key)
        table = dataset.objects
        indices = random.Random(0).choices(range(len(table)), k=100_000)
        start = time.perf_counter()
        for index in indices:
            table[index]
        lookup_s = time.perf_counter() - start
        held = sum(sys.getsizeof(getattr(table, name)) for name in ObjectTable.__slots__)
        beside = held / len(table) - len(table[0].key)
        return Done(items=len(table), extra={"lookup_us": lookup_s / len(indices) * 1e6, "bytes_beside_key": beside})

    return work


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def _checkpoint(site: Site) -> S3Checkpoint:
    from s3torch import S3Checkpoint  # torch brings threads, which take signals while the command starts a process

    return S3Checkpoint(**_options(site))


@enter("s3torch", "save")
def save(site: Site, _: Effort) -> Work:
    """``S3Checkpoint.save``."""
    checkpoint = _checkpoint(site)
    return saving(site, lambda state, key: checkpoint.save(state, f"s3://{site.bucket}/{key}", progress=False))


@enter("s3torch, writer", "save")
def save_by_writer(site: Site, _: Effort) -> Work:
    """``torch.save`` to ``S3Checkpoint.writer``."""
    import torch

    checkpoint = _checkpoint(site)

    def save(state: object, key: str) -> None:
        with checkpoint.writer(f"s3://{site.bucket}/{key}") as writer:
            torch.save(state, writer)

    return saving(site, save)


@enter("s3torch", "async-save")
def save_async(site: Site, _: Effort) -> Work:
    """``S3Checkpoint.save_async``: the time until it returns."""
    checkpoint = _checkpoint(site)
    state = make_state(site.tensors, site.tensor)

    def work() -> Done:
        rest()
        start = time.perf_counter()
        future = checkpoint.save_async(state, f"s3://{site.bucket}/saved.pt")
        stall = time.perf_counter() - start
        future.result()
        return Done(items=1, bytes=site.state_bytes, seconds=stall)

    return work


@enter("s3torch", "load")
def load_checkpoint(site: Site, _: Effort) -> Work:
    """``S3Checkpoint.load``."""
    checkpoint = _checkpoint(site)
    return loading(site, lambda key: checkpoint.load(f"s3://{site.bucket}/{key}", progress=False))


@enter("s3torch, reader", "load")
def load_by_reader(site: Site, _: Effort) -> Work:
    """``torch.load`` from ``S3Checkpoint.reader``."""
    import torch

    checkpoint = _checkpoint(site)

    def load(key: str) -> Any:  # noqa: ANN401 - what torch.load returns
        with checkpoint.reader(f"s3://{site.bucket}/{key}") as reader:
            return torch.load(reader, weights_only=True)

    return loading(site, load)


@enter("s3torch", "safetensors")
def load_safetensors(site: Site, _: Effort) -> Work:
    """``s3torch.safetensors.load_file``."""
    from s3torch.safetensors import load_file

    s3 = _client(site)
    return loading(site, lambda key: load_file(f"s3://{site.bucket}/{key}", client=s3), SAFETENSORS)


@enter("s3torch read_ranges, reused memory", "torch-checkpointing")
def fill_reused(site: Site, _: Effort) -> Work:
    """``read_ranges`` of the file into memory that is used again, and nothing made of it."""
    s3 = _client(site)
    size = s3.head_object(site.bucket, CHECKPOINT).size
    buffer = touched(size)

    def work() -> Done:
        s3.read_ranges(site.bucket, CHECKPOINT, [(0, size)], [buffer])
        return Done(items=1, bytes=site.state_bytes)

    return work


@enter("s3torch native_fill", "torch-checkpointing", needs="torch_checkpointing")
def load_filled(site: Site, _: Effort) -> Work:
    """``load_torch_serialized_from_storage`` with ``native_fill``, into memory of the load before that was held."""
    return _loading_for_torch_checkpointing(site, fills=True, reclaimable=False)


@enter("s3torch native_fill, reclaimable", "torch-checkpointing", needs="torch_checkpointing")
def load_filled_reclaimable(site: Site, _: Effort) -> Work:
    """The same with memory that the system may take in between, which is the default."""
    return _loading_for_torch_checkpointing(site, fills=True)


@enter("s3torch native_fill, new memory", "torch-checkpointing", needs="torch_checkpointing")
def load_filled_anew(site: Site, _: Effort) -> Work:
    """The same with ``kept_memory=0``."""
    return _loading_for_torch_checkpointing(site, fills=True, kept_memory=0)


@enter("s3torch stream_read", "torch-checkpointing", needs="torch_checkpointing")
def load_unfilled(site: Site, _: Effort) -> Work:
    """The same without ``native_fill``, as ``CheckpointManager`` loads: one ``readinto`` into new memory."""
    return _loading_for_torch_checkpointing(site, fills=False)


def _loading_for_torch_checkpointing(site: Site, *, fills: bool, **options: Any) -> Work:  # noqa: ANN401
    from pathlib import Path

    from torch_checkpointing.storage.torch_serialization import load_torch_serialized_from_storage

    from s3torch.torch_checkpointing import S3StorageConfig, native_fill

    config = S3StorageConfig(**_options(site), progress=False, **options)
    storage = config.create_storage()
    fill = native_fill(storage) if fills else None

    def load(key: str) -> Any:  # noqa: ANN401 - what was saved
        return load_torch_serialized_from_storage(Path(f"s3://{site.bucket}/{key}"), storage, mmap_fill=fill)

    return loading(site, load)


@enter("s3torch", "dcp-load")
def load_sharded(site: Site, _: Effort) -> Work:
    """``dcp.load`` with ``S3StorageReader``."""
    return loading_sharded(site, all_layers(site), lambda uri: _storage("Reader", site, uri))


@enter("s3torch", "dcp-load-layer")
def load_layer(site: Site, _: Effort) -> Work:
    """``dcp.load`` with ``S3StorageReader`` of one tensor."""
    return loading_sharded(site, one_layer(site), lambda uri: _storage("Reader", site, uri))


@enter("s3torch", "dcp-save")
def save_sharded(site: Site, _: Effort) -> Work:
    """``dcp.save`` with ``S3StorageWriter``."""
    return saving_sharded(site, lambda uri: _storage("Writer", site, uri))


def _storage(kind: str, site: Site, uri: str) -> Any:  # noqa: ANN401 - a reader or writer
    import s3torch.dcp

    return getattr(s3torch.dcp, f"S3Storage{kind}")(path=uri, **_options(site))


# --- Integrity --------------------------------------------------------------------------------------------------------


def _get_small(checksums: str, site: Site, effort: Effort) -> Work:
    """``S3MapDataset.__getitems__`` in batches of 256, of objects that carry a CRC32."""
    return _batches(site, effort, checksums=checksums)


def _get_large(checksums: str, site: Site, _: Effort) -> Work:
    """``read_range`` of 256 MiB in parts into a reused buffer, of an object that carries a CRC32."""
    return _read_range(site, _client(site, checksums=checksums))


def _put_small(checksums: str, site: Site, effort: Effort) -> Work:
    """``put_object`` of 100 kB, one after the other, by a PUT with the body's SHA-256, as there is no TLS."""
    content, keys = bytes(site.samples[0].size), [f"put/{number}" for number in range(min(effort.items, 128))]
    return _puts(site, checksums, content, keys)


def _put_parts(checksums: str, site: Site, _: Effort) -> Work:
    """``put_object`` of 64 MiB, a multipart upload in parts of 8 MiB with the body's SHA-256, as there is no TLS."""
    return _puts(site, checksums, bytes(64 * MIB), ["put/large"])


def _puts(site: Site, checksums: str, content: bytes, keys: list[str]) -> Work:
    s3 = _client(site, checksums=checksums)

    def work() -> Done:
        before = s3.stats
        for key in keys:
            with s3.put_object(site.bucket, key) as writer:
                writer.write(content)
        return _done(s3, before, items=len(keys), received=len(keys) * len(content))

    return work


def _enter_integrity() -> None:
    for what, prepare, modes in (
        ("GET 100 kB", _get_small, ("off", "on")),
        ("GET 256 MiB", _get_large, ("off", "on", "strict")),
        ("PUT 100 kB", _put_small, ("off", "on")),
        ("PUT parts of 8 MiB", _put_parts, ("off", "on")),
    ):
        for mode in modes:
            ready = functools.partial(prepare, mode)
            enter(f"s3torch {what}, {mode}", "integrity")(functools.update_wrapper(ready, prepare))


_enter_integrity()


def _warm(s3: S3Client, site: Site) -> None:
    """Ask for one key, which imports what lists and finds credentials."""
    next(s3.list_objects(site.bucket, site.part_prefix, max_keys=1))


# --- What they share --------------------------------------------------------------------------------------------------


def _config(site: Site, **settings: Any) -> S3ClientConfig:  # noqa: ANN401 - fields of S3ClientConfig
    verify = True if site.authority is None else site.authority
    return S3ClientConfig(force_path_style=site.path_style, verify=verify, **settings)


def _client(site: Site, **settings: Any) -> S3Client:  # noqa: ANN401 - fields of S3ClientConfig
    return S3Client(site.region, endpoint=site.endpoint, s3client_config=_config(site, **settings))


def _options(site: Site, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of S3ClientConfig
    return {"region": site.region, "endpoint": site.endpoint, "s3client_config": _config(site, **settings)}


def _dataset(kind: str, site: Site, samples: tuple[Stored, ...], transform: Any, **settings: int) -> Any:  # noqa: ANN401 - any dataset
    """Return a dataset of objects that are listed already."""
    import s3torch

    return getattr(s3torch, kind).from_table(table_of(site, samples), transform=transform, **_options(site, **settings))


def _done(s3: S3Client, before: Any, *, items: int, received: int, extra: dict[str, float] | None = None) -> Done:  # noqa: ANN401 - TransferStats
    """Return what was done, with what the client counted since."""
    after = s3.stats
    return Done(
        items=items,
        bytes=received,
        requests=after.requests - before.requests,
        wire_bytes=after.bytes_received - before.bytes_received,
        extra=extra or {},
    )


def _read(reader: S3Reader) -> bytes:
    return reader.read()


def _length(reader: S3Reader) -> int:
    return len(reader.read())


def _key(reader: S3Reader) -> str:
    return reader.key
