"""minio: MinIO's client in Python, over urllib3."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients.credentials import found_credentials
from benchmarks.clients.work import (
    IN_FLIGHT,
    OneByOne,
    Ranges,
    fill,
    in_threads,
    load,
    ranges_at_once,
    read_once,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import MIB, Effort, Site

__all__: list[str] = []

_NEEDS = "minio"


@enter("minio, stream()", "large", needs=_NEEDS)
def large(site: Site, _: Effort) -> Work:
    """One GET, its chunks of 1 MiB copied into a reused buffer."""
    s3 = _client(site)
    view = memoryview(touched(site.large.size))

    def work() -> Done:
        answer = s3.get_object(site.bucket, site.large.key)
        try:
            return Done(items=1, bytes=fill(view, answer.stream(MIB)))
        finally:
            answer.release_conn()

    return work


@enter("minio, 32 threads", "small", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """``get_object`` and ``read()`` in threads."""
    s3 = _client(site)
    return in_threads(site, effort, lambda key: len(_read(s3, site, key)))


@enter("minio, get_object().read()", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """``read()`` of everything."""
    s3 = _client(site)
    return read_once(site, lambda key: len(_read(s3, site, key)))


@enter("minio in a dataset by hand", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """``__getitem__`` with ``get_object``: one object after the other."""

    def make() -> OneByOne:
        s3 = _client(site)
        return OneByOne(lambda key: _read(s3, site, key), site)

    return load(site, effort, make)


@enter("minio, 32 threads", "ranges", needs=_NEEDS)
def ranges(site: Site, effort: Effort) -> Work:
    """``get_object`` of a range in threads."""
    s3, pool = _client(site), ThreadPoolExecutor(IN_FLIGHT)

    def read(place: tuple[int, int]) -> bytes:
        return _read(s3, site, site.wide.key, offset=place[0], length=place[1] - place[0])

    def fetch(wanted: Ranges) -> list[bytes]:
        return list(pool.map(read, wanted))

    return ranges_at_once(site, effort, fetch)


@enter("minio", "listing", needs=_NEEDS)
def listing(site: Site, _: Effort) -> Work:
    """``list_objects`` of a tenth of the keys, keys and sizes kept."""
    s3 = _client(site)
    list(s3.list_objects(site.bucket, prefix="nothing"))

    def work() -> Done:
        found = s3.list_objects(site.bucket, prefix=site.part_prefix, recursive=True)
        return Done(items=len([(item.object_name, item.size) for item in found]))

    return work


def _client(site: Site) -> Any:  # noqa: ANN401 - typed by a package that need not be installed
    import urllib3
    from minio import Minio

    host = urlsplit(site.endpoint or "https://s3.amazonaws.com").netloc
    found = found_credentials()
    return Minio(
        host,
        access_key=found.access_key,
        secret_key=found.secret_key,
        session_token=found.token,
        region=site.region,
        secure=not site.is_plain,
        http_client=urllib3.PoolManager(maxsize=IN_FLIGHT, ca_certs=site.authority),
    )


def _read(s3: Any, site: Site, key: str, **place: int) -> bytes:  # noqa: ANN401 - as above
    answer = s3.get_object(site.bucket, key, **place)
    try:
        content: bytes = answer.read()
        return content
    finally:
        answer.release_conn()
