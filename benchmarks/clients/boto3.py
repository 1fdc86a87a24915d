"""boto3: the AWS SDK for Python, over urllib3."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.clients.work import (
    IN_FLIGHT,
    PART_SIZE,
    OneByOne,
    Ranges,
    in_threads,
    load,
    ranges_at_once,
    ranges_in_turn,
    read_once,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import Effort, Site

__all__: list[str] = []

_NEEDS = "boto3"


@enter("boto3, readinto()", "large", needs=_NEEDS)
def large(site: Site, _: Effort) -> Work:
    """One GET, its body read into a reused buffer."""
    s3 = _client(site)
    view = memoryview(touched(site.large.size))

    def work() -> Done:
        body = s3.get_object(Bucket=site.bucket, Key=site.large.key)["Body"]
        filled = 0
        while count := body.readinto(view[filled:]):
            filled += count
        return Done(items=1, bytes=filled)

    return work


@enter("boto3, download_fileobj()", "large", needs=_NEEDS)
def large_parts(site: Site, _: Effort) -> Work:
    """Parts of 8 MiB in 32 threads, written into a file in memory."""
    from boto3.s3.transfer import TransferConfig

    s3 = _client(site)
    config = TransferConfig(
        max_concurrency=IN_FLIGHT, multipart_chunksize=PART_SIZE, preferred_transfer_client="classic"
    )
    file = io.BytesIO(touched(site.large.size))

    def work() -> Done:
        file.seek(0)
        s3.download_fileobj(site.bucket, site.large.key, file, Config=config)
        return Done(items=1, bytes=file.tell())

    return work


@enter("boto3, 32 threads", "small", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """``get_object`` and ``read()`` in threads."""
    s3 = _client(site)
    return in_threads(site, effort, lambda key: len(_read(s3, site, key)))


@enter("boto3, get_object().read()", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """``read()`` of everything."""
    s3 = _client(site)
    return read_once(site, lambda key: len(_read(s3, site, key)))


@enter("boto3 in a dataset by hand", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """``__getitem__`` with ``get_object``: one object after the other."""

    def make() -> OneByOne:
        s3 = _client(site)
        return OneByOne(lambda key: _read(s3, site, key), site)

    return load(site, effort, make)


@enter("boto3", "ranges", needs=_NEEDS)
def ranges(site: Site, effort: Effort) -> Work:
    """``get_object`` of one range after the other."""
    s3 = _client(site)
    return ranges_in_turn(site, effort, lambda start, stop: _read_range(s3, site, start, stop))


@enter("boto3, 32 threads", "ranges", needs=_NEEDS)
def ranges_threads(site: Site, effort: Effort) -> Work:
    """``get_object`` of a range in threads."""
    s3, pool = _client(site), ThreadPoolExecutor(IN_FLIGHT)

    def fetch(wanted: Ranges) -> list[bytes]:
        return list(pool.map(lambda place: _read_range(s3, site, *place), wanted))

    return ranges_at_once(site, effort, fetch)


@enter("boto3", "listing", needs=_NEEDS)
def listing(site: Site, _: Effort) -> Work:
    """The paginator over a tenth of the keys, keys and sizes kept."""
    paginator = _client(site).get_paginator("list_objects_v2")
    list(paginator.paginate(Bucket=site.bucket, Prefix="nothing"))

    def work() -> Done:
        pages = paginator.paginate(Bucket=site.bucket, Prefix=site.part_prefix)
        return Done(items=len([(item["Key"], item["Size"]) for page in pages for item in page["Contents"]]))

    return work


def _client(site: Site) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=IN_FLIGHT, s3={"addressing_style": "path" if site.path_style else "auto"})
    return boto3.client("s3", endpoint_url=site.endpoint, region_name=site.region, verify=site.authority, config=config)


def _read(s3: Any, site: Site, key: str) -> bytes:  # noqa: ANN401 - as above
    content: bytes = s3.get_object(Bucket=site.bucket, Key=key)["Body"].read()
    return content


def _read_range(s3: Any, site: Site, start: int, stop: int) -> bytes:  # noqa: ANN401 - as above
    place = f"bytes={start}-{stop - 1}"
    content: bytes = s3.get_object(Bucket=site.bucket, Key=site.wide.key, Range=place)["Body"].read()
    return content
