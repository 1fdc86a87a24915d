"""The checkpoints of one training run, side by side under one prefix: the latest, those to keep, what is left over.

An object is complete as soon as it is there. A folder is complete when it holds ``.metadata``, which a distributed
checkpoint writes last, or the object that ``mark_complete`` stores.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from s3torch import _buffer
from s3torch.client import MultipartUploadInfo, S3Client
from s3torch.errors import ArgumentError
from s3torch.uri import parse_s3_uri

__all__ = ["clean", "keep_last", "latest", "mark_complete"]

_MARKER = "_COMPLETE"
_MARKERS = (".metadata", _MARKER)


class _Checkpoint(NamedTuple):
    """A complete checkpoint; they compare by age.

    Attributes:
        completed: When, in seconds since the epoch.
        order: Of those completed in the same second: its name, with numbers compared as such.
        key: Of the object; of a folder it ends in ``/``.
        keys: Of all its objects, the one first that makes it complete.
    """

    completed: int
    order: tuple[tuple[str, int], ...]
    key: str
    keys: tuple[str, ...]


def latest(prefix: str, *, client: S3Client | None = None) -> str | None:
    """Return the URI of the checkpoint that was completed last; None if there is none.

    Args:
        prefix: Such as ``s3://bucket/run-7/``. Each object and each folder right below it is one checkpoint; one that
            is not complete does not count.
        client: Lists them; None is a new one.

    Returns:
        The URI of an object, or of a folder, without ``/`` at its end.

    Raises:
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: They could not be listed.
    """
    bucket, folder = _bucket_and_folder(prefix)
    found = _complete(client or S3Client(), bucket, folder)
    return f"s3://{bucket}/{found[-1].key.rstrip('/')}" if found else None


def keep_last(prefix: str, count: int, *, client: S3Client | None = None) -> list[str]:
    """Delete all complete checkpoints but the last ones.

    What makes a folder complete is deleted first, so that nobody loads what is half deleted. What is not complete is
    left alone: it may be about to be written.

    Args:
        prefix: See ``latest``.
        count: How many to keep, 1 or more.
        client: Sends the requests; None is a new one.

    Returns:
        The URIs of those that were deleted, the oldest first.

    Raises:
        ArgumentError: ``count`` is less than 1.
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: They could not be listed or deleted.
    """
    if _buffer.as_index("count", count) < 1:
        raise ArgumentError(f"count={count!r} must be an integer of at least 1: the latest checkpoint is kept.")
    client = client or S3Client()
    bucket, folder = _bucket_and_folder(prefix)
    old = _complete(client, bucket, folder)[:-count]
    for checkpoint in old:
        for key in checkpoint.keys:
            client.delete_object(bucket, key)
    return [f"s3://{bucket}/{checkpoint.key.rstrip('/')}" for checkpoint in old]


def mark_complete(s3_uri: str, *, client: S3Client | None = None) -> None:
    """Say that a folder is a complete checkpoint, when all its objects are written.

    Args:
        s3_uri: Of the folder.
        client: Sends the request; None is a new one.

    Raises:
        InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/folder``.
        S3Error: The mark could not be stored.
    """
    bucket, key = parse_s3_uri(s3_uri)
    (client or S3Client()).put_object(bucket, f"{key.rstrip('/')}/{_MARKER}").close()


def clean(prefix: str, *, older_than: float = 0.0, client: S3Client | None = None) -> list[MultipartUploadInfo]:
    """Abort the uploads that a killed process has left: their parts are invisible, and paid for.

    Args:
        prefix: Only uploads of keys that begin with it.
        older_than: Only uploads that were begun so many seconds ago, by the server's clock and this machine's; those
            of processes that still run must not be among them.
        client: Sends the requests; None is a new one.

    Returns:
        The uploads that were aborted.

    Raises:
        ArgumentError: ``older_than`` is negative.
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: They could not be listed or aborted.
    """
    if not older_than >= 0:
        raise ArgumentError(f"older_than={older_than!r} must be 0 or more seconds.")
    client = client or S3Client()
    bucket, begin = parse_s3_uri(prefix)
    limit = time.time() - older_than
    old = [upload for upload in client.list_multipart_uploads(bucket, begin) if upload.initiated <= limit]
    for upload in old:
        client.abort_multipart_upload(bucket, upload.key, upload.upload_id)
    return old


def _bucket_and_folder(prefix: str) -> tuple[str, str]:
    bucket, key = parse_s3_uri(prefix)
    return bucket, f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _complete(client: S3Client, bucket: str, folder: str) -> list[_Checkpoint]:
    """Return the complete checkpoints, the oldest first."""
    return sorted(_checkpoints(client, bucket, folder))


def _checkpoints(client: S3Client, bucket: str, folder: str) -> Iterator[_Checkpoint]:
    folders: dict[str, list[tuple[str, int]]] = {}
    for page in client.list_objects(bucket, folder):
        for info in page.object_info:
            child, slash, _ = info.key[len(folder) :].partition("/")
            if slash:
                folders.setdefault(f"{folder}{child}/", []).append((info.key, info.last_modified))
            elif child:
                yield _Checkpoint(info.last_modified, _natural(child), info.key, (info.key,))
    for key, objects in folders.items():
        marks = [(modified, name) for name, modified in objects if name[len(key) :] in _MARKERS]
        if marks:
            names = [name for _, name in marks]
            others = [name for name, _ in objects if name not in names]
            yield _Checkpoint(max(marks)[0], _natural(key), key, (*names, *others))


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a name by which ``step-9`` comes before ``step-10``."""
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))
