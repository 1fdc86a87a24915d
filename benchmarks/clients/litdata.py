"""litData's StreamingRawDataset: objects as they are, over obstore.

It is told which objects there are. By itself it would list them by fsspec and store an index in the bucket, which a
benchmark must not do. It refuses servers without TLS; a setting turns that off where the other clients use plain HTTP,
so that it is not the only one that decrypts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.clients.work import load
from benchmarks.registry import Done, Work, enter
from benchmarks.site import Effort, Site, Stored

__all__: list[str] = []

_NEEDS = "litdata"


@enter("litData StreamingRawDataset", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """The batches of a DataLoader, with its own look-ahead."""
    return load(site, effort, lambda: _dataset(site, site.samples))


@enter("litData StreamingRawDataset", "in-flight", needs=_NEEDS)
def in_flight(site: Site, _: Effort) -> Work:
    """Batches of 16, each object read and dropped; it has no bound in bytes."""
    dataset = _dataset(site, site.mixed)
    batches = [range(start, min(start + 16, len(dataset))) for start in range(0, len(dataset), 16)]
    dataset.__getitems__([0])

    def work() -> Done:
        return Done(items=len(dataset), bytes=sum(sum(map(len, _batch(dataset, batch))) for batch in batches))

    return work


def _batch(dataset: Any, indices: range) -> Sequence[Any]:  # noqa: ANN401 - typed by a package that need not be installed
    found: Sequence[Any] = dataset.__getitems__(list(indices))
    return found


def _dataset(site: Site, samples: tuple[Stored, ...]) -> Any:  # noqa: ANN401 - as above
    from litdata.raw.dataset import StreamingRawDataset
    from litdata.raw.indexer import BaseIndexer, FileMetadata
    from litdata.streaming import downloader

    if site.is_plain:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"

    known = [FileMetadata(path=f"s3://{site.bucket}/{each.key}", size=each.size) for each in samples]
    indexer = type("Known", (BaseIndexer,), {"discover_files": _none, "build_or_load_index": lambda *_, **__: known})
    given = {"endpoint_url": site.endpoint, "region_name": site.region}
    return StreamingRawDataset(
        f"s3://{site.bucket}/{site.prefix}",
        cache_dir=tempfile.mkdtemp(prefix="s3torch-bench-litdata-"),
        indexer=indexer(),
        storage_options={name: value for name, value in given.items() if value is not None},
    )


def _none(*_: object) -> list[Any]:
    raise AssertionError("the objects are known")
