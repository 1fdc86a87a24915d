"""The checkpoints of one training run, side by side under one prefix: the latest, those to keep, what is left over.

What lies right below the prefix is one checkpoint each:

- an object of a known format, which is complete as soon as it is there: its name ends as such objects do, or has no
  ending and the object begins as what ``torch.save`` writes;
- a model in several files (``save_file(..., max_shard_size=)``), which is complete when its index is there and all
  files that the index names. A shard is never a checkpoint, with an index or without;
- a folder, which is complete when it holds ``.metadata``, which a distributed checkpoint writes last, or the object
  that ``mark_complete`` stores.

The newest is the one that was completed last, by the Last-Modified of what completes it. That counts seconds; of those
completed in the same second it is the one whose name comes last, with numbers compared as such.

What is complete is deleted in the reverse order in which it is written, object by object, each only if it is what was
listed. What is not complete is left alone: it may be about to be written. ``unfinished.py`` says what becomes of what a
process that died has left.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import timedelta

from s3torch import _buffer
from s3torch._aws.listing import ObjectInfo
from s3torch.checkpoint import unfinished
from s3torch.checkpoint.pointer import folder_of_uri, read_pointer
from s3torch.checkpoint.run import FORMATS, MARKER, Counts, Run, uri_of
from s3torch.client import MultipartUploadInfo, S3Client
from s3torch.errors import ArgumentError, ArgumentTypeError, InvalidURIError

__all__ = ["FORMATS", "clean", "keep_last", "latest", "mark_complete"]


def latest(
    prefix: str,
    *,
    pattern: str = "*",
    formats: Sequence[str] = FORMATS,
    by_pointer: bool = False,
    client: S3Client | None = None,
) -> str | None:
    """Return the URI of the checkpoint that was completed last; None if there is none.

    Args:
        prefix: The folder of the run, such as ``s3://bucket/run-7/``, with or without the slash: ``s3://bucket/run``
            has nothing to do with ``run2/``. ``s3://bucket`` is the whole bucket. What lies right below it counts: each
            object of a known format, each model in several files by its index, and each folder that is complete.
        pattern: Which names count, as in a shell (``*``, ``?``, ``[...]``; upper and lower case differ): of an object,
            of a folder, of a model in several files that without ``.index.json``.
        formats: How the names of objects end that count. Others (``config.json``, ``train.log``) never do, but for
            those without a dot that begin as ``torch.save`` writes, which are looked at.
        by_pointer: Whether to return what the pointer of the run names (see ``set_pointer``), and list nothing.
        client: Lists them; None is a new one.

    Returns:
        The URI of an object, of the index of a model in several files, which ``load_file`` takes, or of a folder,
        without ``/`` at its end.

    Raises:
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        ArgumentTypeError: ``pattern`` is no str, or ``formats`` no sequence of str.
        S3Error: They could not be listed, or an index could not be read.
    """
    counts = Counts(pattern, formats)
    _check_flag("by_pointer", by_pointer)
    if by_pointer:
        return read_pointer(prefix, client=client).uri
    bucket, folder = folder_of_uri(prefix)
    found = Run(client or S3Client(), bucket, folder).checkpoints(counts)
    return uri_of(bucket, found[-1].key) if found else None


def keep_last(
    prefix: str,
    count: int,
    *,
    pattern: str = "*",
    formats: Sequence[str] = FORMATS,
    dry_run: bool = False,
    client: S3Client | None = None,
) -> list[str]:
    """Delete all complete checkpoints but the last ones, and finish what an earlier call has left.

    What makes a checkpoint complete is deleted first, so that nobody loads what is half deleted. An object that was
    replaced since it was listed stays. What is not complete is left alone: it may be about to be written. So is a
    folder in which something was stored after its mark, within a day: it may be written anew. What the pointer of the
    run names (see ``set_pointer``) is kept beside the last ones.

    A call that fails in the middle has deleted some of them. The next call finishes the one that it was at: the objects
    that were to be deleted are noted in the folder ``.s3torch/`` below the prefix until they are gone.

    Args:
        prefix: See ``latest``.
        count: How many to keep, 1 or more.
        pattern: Which names count, see ``latest``: others are neither deleted nor counted.
        formats: See ``latest``.
        dry_run: Whether to delete nothing, and only return what would be.
        client: Sends the requests; None is a new one. Beside s3:DeleteObject Amazon S3 wants s3:GetObject for deletes
            with a condition, and s3:PutObject for the note.

    Returns:
        The URIs of those that were deleted, or would be, the oldest first; before them those whose deletion an earlier
        call has begun.

    Raises:
        ArgumentError: ``count`` is less than 1.
        ArgumentTypeError: Another argument has the wrong type.
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: They could not be listed or deleted; some may have been. Call it again.
    """
    if _buffer.as_index("count", count) < 1:
        raise ArgumentError(f"count={count!r} must be an integer of at least 1: the latest checkpoint is kept.")
    _check_flag("dry_run", dry_run)
    counts = Counts(pattern, formats)
    client = client or S3Client()
    bucket, folder = folder_of_uri(prefix)
    run = Run(client, bucket, folder)
    day_ago = unfinished.long_ago(client, bucket, unfinished.DAY)
    deleted = [uri_of(bucket, key) for key in run.finish(day_ago, dry_run=dry_run)[0]]
    target = run.target()
    old = [each for each in run.checkpoints(counts)[:-count] if each.key.removesuffix("/") != target]
    old = [each for each in old if not run.is_written_anew(each, day_ago)]
    return deleted + [uri_of(bucket, checkpoint.key) for checkpoint in old if dry_run or run.delete(checkpoint)]


def mark_complete(s3_uri: str, *, client: S3Client | None = None) -> None:
    """Say that a folder is a complete checkpoint, when all its objects are written.

    Args:
        s3_uri: Of the folder, with or without a slash at its end.
        client: Sends the request; None is a new one.

    Raises:
        InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/folder``.
        S3Error: The mark could not be stored.
    """
    bucket, folder = folder_of_uri(s3_uri)
    if not folder:
        raise InvalidURIError(f"{s3_uri!r} is a bucket and no folder. Write 's3://bucket/folder'.")
    with (client or S3Client()).put_object(bucket, f"{folder}{MARKER}") as writer:
        # Each mark has an ETag of its own, by which whoever deletes an older one tells them apart.
        writer.write(json.dumps({"mark": secrets.token_hex(16)}).encode())


def clean(
    prefix: str,
    *,
    older_than: timedelta | float = unfinished.DAY,
    dry_run: bool = False,
    client: S3Client | None = None,
) -> list[MultipartUploadInfo | ObjectInfo]:
    """Delete what killed processes have left: parts of uploads, which are invisible and paid for, and shards.

    Shards are left by a ``save_file(..., max_shard_size=)`` that was killed before it wrote the index; those right
    below the prefix are found. So are the rests of what ``keep_last`` has begun to delete.

    Args:
        prefix: Of a folder, see ``latest``: uploads of all keys below it, and of the key itself.
        older_than: Only what was begun so long ago, by the server's clock and this machine's, a timedelta or seconds.
            What processes that still run have begun must not be among it.
        dry_run: Whether to delete nothing, and only return what would be.
        client: Sends the requests; None is a new one.

    Returns:
        The uploads that were aborted and the objects that were deleted, or would be; all have a ``key``.

    Raises:
        ArgumentError: ``older_than`` is negative.
        ArgumentTypeError: An argument has the wrong type.
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: They could not be listed, aborted or deleted; some may have been. Call it again.
    """
    age = unfinished.as_age(older_than)
    _check_flag("dry_run", dry_run)
    client = client or S3Client()
    bucket, folder = folder_of_uri(prefix)
    key = folder[:-1]
    uploads = client.list_multipart_uploads(bucket, key)
    limit = unfinished.long_ago(client, bucket, age)
    old = [
        upload
        for upload in uploads
        if upload.initiated <= limit and (upload.key == key or upload.key.startswith(folder))
    ]
    if not dry_run:
        for upload in old:
            client.abort_multipart_upload(bucket, upload.key, upload.upload_id)
    notes = next(client.list_objects(bucket, f"{folder}{unfinished.FOLDER}", max_keys=1))
    left = Run(client, bucket, folder).finish(limit, dry_run=dry_run)[1] if notes.object_info else []
    return [*old, *left]


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a bool, got {value!r}.")
