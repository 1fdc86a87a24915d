"""The user's own bucket: what is read there, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from s3torch.bench.site import Site, Stored
from s3torch.client import S3Client
from s3torch.errors import ArgumentError
from s3torch.uri import parse_s3_uri

__all__ = ["choose", "find_site"]


def find_site(
    uri: str, *, endpoint: str | None, region: str | None, max_objects: int, max_bytes: int
) -> tuple[Site, Mapping[str, str]]:
    """List the prefix and choose what is read; returns that, and the variables of who reads it.

    Args:
        uri: ``s3://bucket/prefix``.
        endpoint: URL of the server; None finds it as the AWS tools do.
        region: Of the bucket; None finds it.
        max_objects: To list.
        max_bytes: Of one object that is read whole.

    Raises:
        ArgumentError: There is nothing under the prefix.
        S3Error: It could not be listed.
    """
    bucket, prefix = parse_s3_uri(uri)
    client = S3Client(region, endpoint=endpoint)
    listed: list[Stored] = []
    for page in client.list_objects(bucket, prefix):
        listed += [Stored(info.key, info.size) for info in page.object_info if info.size]
        if len(listed) >= max_objects:
            break
    if not listed:
        raise ArgumentError(f"There are no objects with content under {uri}.")
    samples, large = choose(listed[:max_objects], max_bytes)
    address = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    host = urlsplit(address).hostname if address else None
    site = Site(
        bucket=bucket,
        region=client.region,
        endpoint=address,
        path_style=host is not None and (host == "localhost" or "." not in host or host.replace(".", "").isdigit()),
        prefix=prefix,
        samples=samples,
        large=large,
        wide=max(listed[:max_objects], key=lambda each: each.size),
    )
    client.close()
    return site, dict(os.environ)


def choose(listed: list[Stored], max_bytes: int) -> tuple[tuple[Stored, ...], Stored]:
    """Return the samples, and the largest object that is read whole.

    Args:
        listed: At least one object.
        max_bytes: That an object may have to be read whole; if all have more, the smallest is chosen.
    """
    fitting = tuple(each for each in listed if each.size <= max_bytes)
    smallest = min(listed, key=lambda each: each.size)
    samples = fitting or (smallest,)
    return samples, max(samples, key=lambda each: each.size)
