"""s3fs: fsspec's file system over aiobotocore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.clients.checkpoints import loading, saving
from benchmarks.clients.work import OneByOne, Ranges, each_sample, load, ranges_at_once, read_once
from benchmarks.registry import Done, Work, enter
from benchmarks.site import Effort, Site

__all__: list[str] = []

_NEEDS = "s3fs"


@enter("s3fs, cat_file()", "large", needs=_NEEDS)
def large(site: Site, _: Effort) -> Work:
    """The whole object into memory of its own."""
    fs = _file_system(site)
    return lambda: Done(items=1, bytes=len(fs.cat_file(f"{site.bucket}/{site.large.key}")))


@enter("s3fs, cat()", "small", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """All objects by one ``cat``, 32 at a time."""
    fs = _file_system(site)
    paths = list(dict.fromkeys(f"{site.bucket}/{sample.key}" for sample in each_sample(site, effort)))

    def work() -> Done:
        found = fs.cat(paths, batch_size=32)
        return Done(items=len(found), bytes=sum(map(len, found.values())))

    return work


@enter("s3fs, cat_file()", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """The whole object."""
    fs = _file_system(site)
    return read_once(site, lambda key: len(fs.cat_file(f"{site.bucket}/{key}")))


@enter("s3fs in a dataset by hand", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """``__getitem__`` with ``cat_file``: one object after the other."""

    def make() -> OneByOne:
        fs = _file_system(site)
        return OneByOne(lambda key: fs.cat_file(f"{site.bucket}/{key}"), site)

    return load(site, effort, make)


@enter("s3fs cat_ranges", "ranges", needs=_NEEDS)
def ranges(site: Site, effort: Effort) -> Work:
    """All ranges by one ``cat_ranges``, 32 at a time."""
    fs = _file_system(site)
    path = f"{site.bucket}/{site.wide.key}"

    def fetch(wanted: Ranges) -> Sequence[Any]:
        starts, ends = zip(*wanted, strict=True)
        found: Sequence[Any] = fs.cat_ranges([path] * len(wanted), list(starts), list(ends), batch_size=32)
        return found

    return ranges_at_once(site, effort, fetch)


@enter("s3fs", "listing", needs=_NEEDS)
def listing(site: Site, _: Effort) -> Work:
    """``find`` of a tenth of the keys, keys and sizes kept."""
    fs = _file_system(site)
    fs.find(site.bucket, prefix="nothing")
    folder, prefix = f"{site.bucket}/{site.part_prefix}".rsplit("/", 1)

    def work() -> Done:
        found = fs.find(folder, prefix=prefix, detail=True)
        return Done(items=len([(item["Key"], item["size"]) for item in found.values()]))

    return work


@enter("s3fs, open()", "save", needs=_NEEDS)
def save(site: Site, _: Effort) -> Work:
    """``torch.save`` to a file of fsspec."""
    import torch

    fs = _file_system(site)

    def save_to(state: object, key: str) -> None:
        with fs.open(f"{site.bucket}/{key}", "wb") as file:
            torch.save(state, file)

    return saving(site, save_to)


@enter("s3fs, open()", "load", needs=_NEEDS)
def load_checkpoint(site: Site, _: Effort) -> Work:
    """``torch.load`` from a file of fsspec."""
    import torch

    fs = _file_system(site)

    def load_from(key: str) -> Any:  # noqa: ANN401 - what torch.load returns
        with fs.open(f"{site.bucket}/{key}", "rb") as file:
            return torch.load(file, weights_only=True)

    return loading(site, load_from)


def _file_system(site: Site) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
    import s3fs

    given = {"endpoint_url": site.endpoint, "region_name": site.region, "verify": site.authority}
    options = {name: value for name, value in given.items() if value is not None}
    style = {"s3": {"addressing_style": "path"}} if site.path_style else {}
    return s3fs.S3FileSystem(
        client_kwargs=options, config_kwargs={"max_pool_connections": 64, **style}, skip_instance_cache=True
    )
