"""obstore: Rust's object_store for Python."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.clients.work import (
    IN_FLIGHT,
    OneByOne,
    Ranges,
    each_sample,
    fill,
    in_threads,
    load,
    parts,
    ranges_at_once,
    read_once,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import MIB, Effort, Site

__all__: list[str] = []

_NEEDS = "obstore"


@enter("obstore, get().bytes()", "large", needs=_NEEDS)
def large_bytes(site: Site, _: Effort) -> Work:
    """One GET into memory of obstore's own."""
    store = _store(site)
    return lambda: Done(items=1, bytes=len(store.get(site.large.key).bytes()))


@enter("obstore, get().stream()", "large", needs=_NEEDS)
def large_stream(site: Site, _: Effort) -> Work:
    """One GET, its chunks copied into a reused buffer."""
    store = _store(site)
    view = memoryview(touched(site.large.size))
    return lambda: Done(items=1, bytes=fill(view, store.get(site.large.key).stream(min_chunk_size=MIB)))


@enter("obstore, get_range_async() of parts", "large", needs=_NEEDS)
def large_parts(site: Site, _: Effort) -> Work:
    """All parts of 8 MiB at once, copied into a reused buffer."""
    store, loop = _store(site), asyncio.new_event_loop()
    view = memoryview(touched(site.large.size))

    async def read(start: int, stop: int) -> int:
        part = await store.get_range_async(site.large.key, start=start, end=stop)
        view[start:stop] = memoryview(part)
        return len(part)

    async def read_all() -> int:
        return sum(await asyncio.gather(*[read(*place) for place in parts(site.large.size)]))

    return lambda: Done(items=1, bytes=loop.run_until_complete(read_all()))


@enter("obstore, 32 threads", "small", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """``get().bytes()`` in threads."""
    store = _store(site)
    return in_threads(site, effort, lambda key: len(store.get(key).bytes()))


@enter("obstore, asyncio", "small", needs=_NEEDS)
def small_async(site: Site, effort: Effort) -> Work:
    """``get_async`` in 32 tasks."""
    store, loop = _store(site), asyncio.new_event_loop()
    wanted = [sample.key for sample in each_sample(site, effort)]

    async def read_all(keys: Iterable[str]) -> int:
        received = 0
        for key in keys:
            answer = await store.get_async(key)
            received += len(await answer.bytes_async())
        return received

    async def run() -> int:
        keys = iter(wanted)  # shared: each task takes the next one
        return sum(await asyncio.gather(*[read_all(keys) for _ in range(IN_FLIGHT)]))

    return lambda: Done(items=len(wanted), bytes=loop.run_until_complete(run()))


@enter("obstore, get().bytes()", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """One GET into memory of obstore's own."""
    store = _store(site)
    return read_once(site, lambda key: len(store.get(key).bytes()))


@enter("obstore in a dataset by hand", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """``__getitem__`` with ``get().bytes()``: one object after the other."""

    def make() -> OneByOne:
        store = _store(site)
        return OneByOne(lambda key: store.get(key).bytes(), site)

    return load(site, effort, make)


@enter("obstore, __getitems__ by hand", "loader", needs=_NEEDS)
def loader_batches(site: Site, effort: Effort) -> Work:
    """``__getitems__`` with ``get_async`` of a whole batch: what a user can write who knows of it."""

    def make() -> OneByOne:
        return _InBatches(site)

    return load(site, effort, make)


@enter("obstore get_ranges", "ranges", needs=_NEEDS)
def ranges(site: Site, effort: Effort) -> Work:
    """All ranges by one ``get_ranges``, which joins those that lie within a MiB."""
    store = _store(site)

    def fetch(wanted: Ranges) -> Sequence[Any]:
        starts, ends = zip(*wanted, strict=True)
        parts_of: Sequence[Any] = store.get_ranges(site.wide.key, starts=starts, ends=ends)
        return parts_of

    return ranges_at_once(site, effort, fetch)


@enter("obstore", "listing", needs=_NEEDS)
def listing(site: Site, _: Effort) -> Work:
    """``list``, keys and sizes kept; its prefixes end at a slash, so all keys."""
    store = _store(site)
    list(store.list(f"{site.prefix}nothing"))

    def work() -> Done:
        return Done(items=len([(item["path"], item["size"]) for page in store.list(site.prefix) for item in page]))

    return work


class _InBatches(OneByOne):
    def __init__(self, site: Site) -> None:
        self._store, self._loop = _store(site), asyncio.new_event_loop()
        super().__init__(lambda key: self._loop.run_until_complete(self._read(key)), site)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return self._loop.run_until_complete(self._read_all([self._keys[index] for index in indices]))

    async def _read_all(self, keys: list[str]) -> list[Any]:
        return list(await asyncio.gather(*[self._read(key) for key in keys]))

    async def _read(self, key: str) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
        return await (await self._store.get_async(key)).bytes_async()


def _store(site: Site) -> Any:  # noqa: ANN401 - as above
    from obstore.store import S3Store

    given = {"endpoint": site.endpoint, "region": site.region}
    chosen = {name: value for name, value in given.items() if value is not None}
    style = {} if site.endpoint else {"virtual_hosted_style_request": True}
    return S3Store(site.bucket, **chosen, **style, client_options={"allow_http": site.is_plain})
