"""awscrt: the AWS Common Runtime's S3 client, in C, which s3torchconnector is built on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Semaphore
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients.work import (
    IN_FLIGHT,
    PART_SIZE,
    OneByOne,
    Ranges,
    each_sample,
    load,
    ranges_at_once,
    read_once,
    touched,
)
from benchmarks.registry import Done, Work, enter
from benchmarks.site import Effort, Site

__all__: list[str] = []

_NEEDS = "awscrt"


@enter("awscrt S3Client", "large", needs=_NEEDS)
def large(site: Site, _: Effort) -> Work:
    """One request, which it sends in parts of 8 MiB; its chunks are copied into a reused buffer."""
    crt = _Crt(site)
    view = memoryview(touched(site.large.size))

    def keep(chunk: bytes, offset: int, **_: object) -> None:
        view[offset : offset + len(chunk)] = chunk

    def work() -> Done:
        crt.get(site.large.key, keep).result()
        return Done(items=1, bytes=len(view))

    return work


@enter("awscrt S3Client, 32 in flight", "small", needs=_NEEDS)
def small(site: Site, effort: Effort) -> Work:
    """A request after the other, 32 of them at the same time."""
    crt = _Crt(site)
    keys = [sample.key for sample in each_sample(site, effort)]

    def work() -> Done:
        return Done(items=len(keys), bytes=sum(map(len, crt.read_all([(key, None) for key in keys]))))

    return work


@enter("awscrt S3Client", "memory", needs=_NEEDS)
def memory(site: Site, _: Effort) -> Work:
    """Chunks joined to ``bytes``."""
    crt = _Crt(site)
    return read_once(site, lambda key: len(crt.read(key)))


@enter("awscrt S3Client in a dataset by hand", "loader", needs=_NEEDS)
def loader(site: Site, effort: Effort) -> Work:
    """``__getitem__`` with one request: one object after the other."""

    def make() -> OneByOne:
        crt = _Crt(site)
        return OneByOne(crt.read, site)

    return load(site, effort, make)


@enter("awscrt S3Client, 32 in flight", "ranges", needs=_NEEDS)
def ranges(site: Site, effort: Effort) -> Work:
    """A request for each range, 32 of them at the same time."""
    crt = _Crt(site)

    def fetch(wanted: Ranges) -> list[bytes]:
        return crt.read_all([(site.wide.key, place) for place in wanted])

    return ranges_at_once(site, effort, fetch)


class _Crt:
    def __init__(self, site: Site) -> None:
        from awscrt.auth import AwsCredentialsProvider
        from awscrt.io import ClientBootstrap, ClientTlsContext, DefaultHostResolver, EventLoopGroup, TlsContextOptions
        from awscrt.s3 import S3Client, S3RequestTlsMode, create_default_s3_signing_config

        region = site.region or "us-east-1"
        group = EventLoopGroup()
        bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
        provider = AwsCredentialsProvider.new_default_chain(bootstrap)
        tls: dict[str, Any] = {"tls_mode": S3RequestTlsMode.DISABLED if site.is_plain else S3RequestTlsMode.ENABLED}
        if site.authority is not None:
            options = TlsContextOptions()
            options.override_default_trust_store_from_path(None, site.authority)
            tls["tls_connection_options"] = ClientTlsContext(options).new_connection_options()
        self._client = S3Client(
            bootstrap=bootstrap,
            region=region,
            signing_config=create_default_s3_signing_config(region=region, credential_provider=provider),
            part_size=PART_SIZE,
            **tls,
        )
        if site.endpoint is None:
            self._host, self._base = f"{site.bucket}.s3.{region}.amazonaws.com", ""
        else:
            self._host, self._base = urlsplit(site.endpoint).netloc, f"/{site.bucket}"

    def get(self, key: str, on_body: Callable[..., None], place: tuple[int, int] | None = None) -> Future[None]:
        """Send a request for an object or a range of it."""
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        fields = [("host", self._host)]
        if place is not None:
            fields.append(("Range", f"bytes={place[0]}-{place[1] - 1}"))
        request = HttpRequest("GET", f"{self._base}/{key}", HttpHeaders(fields))
        sent = self._client.make_request(type=S3RequestType.GET_OBJECT, request=request, on_body=on_body)
        finished: Future[None] = sent.finished_future
        return finished

    def read(self, key: str) -> bytes:
        """Return an object."""
        chunks: list[bytes] = []
        self.get(key, lambda chunk, **_: chunks.append(chunk)).result()
        return b"".join(chunks)

    def read_all(self, wanted: list[tuple[str, tuple[int, int] | None]]) -> list[bytes]:
        """Return objects or ranges, 32 at a time."""
        free = Semaphore(IN_FLIGHT)
        begun: list[tuple[Future[None], list[bytes]]] = []
        for key, place in wanted:
            free.acquire()
            chunks: list[bytes] = []
            finished = self.get(key, lambda chunk, chunks=chunks, **_: chunks.append(chunk), place)
            finished.add_done_callback(lambda _: free.release())
            begun.append((finished, chunks))
        for finished, _ in begun:
            finished.result()
        return [b"".join(chunks) for _, chunks in begun]
