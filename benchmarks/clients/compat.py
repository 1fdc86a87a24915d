"""s3torch as programs of s3torchconnector get it: the datasets that stand for its own."""

from __future__ import annotations

from typing import Any

from benchmarks.clients.work import load, table_of
from benchmarks.registry import Work, enter
from benchmarks.site import Effort, Site

__all__: list[str] = []


@enter("s3torch.compat map", "loader")
def loader_map(site: Site, effort: Effort) -> Work:
    """``s3torchconnector.S3MapDataset``, which is s3torch's."""
    return load(site, effort, lambda: _dataset("S3MapDataset", site))


@enter("s3torch.compat iterable", "loader")
def loader_iterable(site: Site, effort: Effort) -> Work:
    """``s3torchconnector.S3IterableDataset``, which is s3torch's."""
    return load(site, effort, lambda: _dataset("S3IterableDataset", site))


def _dataset(kind: str, site: Site) -> Any:  # noqa: ANN401 - any dataset
    """Return a dataset of objects whose sizes are known, as by a listing."""
    from s3torch.compat.packages import s3torchconnector
    from s3torch.datasets import Table

    return getattr(s3torchconnector, kind)(
        site.region,
        Table(table_of(site, site.samples)),
        site.endpoint,
        transform=_read,
        s3client_config=s3torchconnector.S3ClientConfig(force_path_style=site.path_style),
    )


def _read(reader: Any) -> bytes:  # noqa: ANN401 - any reader
    content: bytes = reader.read()
    return content
