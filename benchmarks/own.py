"""The user's own bucket: what is read there, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from benchmarks.site import Site, Stored
from s3torch._own_bench import choose, find_objects
from s3torch.client import S3Client
from s3torch.uri import parse_s3_uri

__all__ = ["find_site"]


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
    listed = find_objects(client, uri, max_objects)
    client.close()
    samples, large = choose(listed, max_bytes)
    wide = max(listed, key=lambda each: each.size)
    address = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    host = urlsplit(address).hostname if address else None
    site = Site(
        bucket=bucket,
        region=client.region,
        endpoint=address,
        path_style=host is not None and (host == "localhost" or "." not in host or host.replace(".", "").isdigit()),
        prefix=prefix,
        samples=tuple(Stored(each.key, each.size) for each in samples),
        large=Stored(large.key, large.size),
        wide=Stored(wide.key, wide.size),
    )
    return site, dict(os.environ)
