"""What a save tells of itself: statistics of each object that it has stored, and an estimate before it sends any."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from s3torch._transfer import plan

if TYPE_CHECKING:
    from s3torch.client import S3Client
    from s3torch.writer import S3Writer

__all__ = ["OnUpload", "UploadEstimate", "UploadStats", "Watch", "estimate_upload", "sum_of", "tell", "writing"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStats:
    """What it took to store one object.

    Args:
        bucket: Of the object.
        key: Of the object.
        size: Of the object, in bytes.
        seconds: From when its first byte was about to be written until the server had confirmed it.
        requests: That were sent for it, retries included, by the thread that wrote it, or by all ranks that did.
        retries: Those of them that were sent again after an error.
    """

    bucket: str
    key: str
    size: int
    seconds: float
    requests: int
    retries: int


# Is told of each object, once it is stored, by the thread that has stored it.
OnUpload = Callable[[UploadStats], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadEstimate:
    """What a save would send.

    Args:
        size: Of all its objects, in bytes. The heads of requests, and what completes an upload, are not in it: 1 kB a
            request or so.
        objects: That it would store.
        requests: That it would send if none has to be sent again, and the client knows the bucket already.
    """

    size: int
    objects: int
    requests: int


def estimate_upload(size: int, part_size: int, *, is_known: bool = True) -> UploadEstimate:
    """Return what one object takes: a PUT, or its parts and the two requests around them.

    Args:
        size: Of the object, in bytes.
        part_size: Of the configuration.
        is_known: Whether the writer is told the size; else parts grow.
    """
    number, capacity, room = 1, _part_size(1, size, part_size, is_known=is_known), size
    while room > capacity:
        room -= capacity
        number += 1
        capacity = _part_size(number, size, part_size, is_known=is_known)
    return UploadEstimate(size=size, objects=1, requests=1 if number == 1 else number + 2)


def sum_of(estimates: Iterable[UploadEstimate], *, other_requests: int = 0) -> UploadEstimate:
    """Return what several objects take, and some requests that store none."""
    every = list(estimates)
    return UploadEstimate(
        size=sum(each.size for each in every),
        objects=sum(each.objects for each in every),
        requests=sum(each.requests for each in every) + other_requests,
    )


@contextlib.contextmanager
def writing(client: S3Client, opened: Callable[[], S3Writer], on_upload: OnUpload | None) -> Iterator[S3Writer]:
    """Write an object for ``with``, and tell what it took.

    Args:
        client: That the writer is of.
        opened: Returns the writer.
        on_upload: Is told once the object is stored. What it raises is logged: a checkpoint that is stored is not to be
            reported as a failure, or taken back, because somebody could not note it.
    """
    if on_upload is None:
        with opened() as writer:
            yield writer
        return
    watch = Watch(client)
    with opened() as writer:
        yield writer
    tell(on_upload, watch.stats_of(writer))


class Watch:
    """Counts what it takes to store an object, by the thread that makes it, which sends nothing else meanwhile.

    Args:
        client: That sends the requests.
    """

    def __init__(self, client: S3Client) -> None:
        self._engine = client._access.engine()
        self._before = replace(self._engine.stats)
        self._begin = time.perf_counter()

    def stats_of(self, writer: S3Writer) -> UploadStats:
        """Return what it took, once the writer is closed."""
        return UploadStats(
            bucket=writer.bucket,
            key=writer.key,
            size=writer.tell(),
            seconds=time.perf_counter() - self._begin,
            requests=self._engine.stats.requests - self._before.requests,
            retries=self._engine.stats.retries - self._before.retries,
        )


def tell(on_upload: OnUpload | None, stats: UploadStats) -> None:
    """Tell what it took to store an object; what ``on_upload`` raises is logged."""
    if on_upload is None:
        return
    try:
        on_upload(stats)
    except Exception:  # noqa: BLE001  # the caller's code, which decides nothing here
        _log.exception("on_upload failed for s3://%s/%s, which is stored", stats.bucket, stats.key)


def _part_size(number: int, size: int, part_size: int, *, is_known: bool) -> int:
    if is_known:
        return plan.known_upload_part_size(size, part_size)
    return plan.upload_part_size(number, part_size)
