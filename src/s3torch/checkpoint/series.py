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
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import NamedTuple

from s3torch import _buffer
from s3torch._aws.listing import ObjectInfo
from s3torch._aws.operations import HeadObject
from s3torch._objects.deleting import Known, delete_unchanged
from s3torch.checkpoint import pointer, unfinished
from s3torch.checkpoint.pointer import folder_of_uri, read_pointer, read_target
from s3torch.checkpoint.safetensors.format import INDEX_SUFFIX, is_shard_name, parse_index
from s3torch.client import MultipartUploadInfo, S3Client
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    InvalidURIError,
)

__all__ = ["FORMATS", "clean", "keep_last", "latest", "mark_complete"]

#: How the names of objects end that are checkpoints: those of torch, Lightning and safetensors.
FORMATS = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")

# What a file of torch.save begins with: a zip archive, or in the legacy form a pickled number.
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
_MARKER = "_COMPLETE"
_MARKERS = (".metadata", _MARKER)


class _Checkpoint(NamedTuple):
    """A complete checkpoint; they compare by age.

    Attributes:
        completed: When, in seconds since the epoch.
        order: Of those completed in the same second: its name, with numbers compared as such.
        key: Of the object or the index; of a folder it ends in ``/``.
        marks: The objects that make it complete, which are deleted first.
        others: Its other objects.
    """

    completed: int
    order: tuple[tuple[str, int], ...]
    key: str
    marks: tuple[Known, ...]
    others: tuple[Known, ...] = ()


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
    counts = _Counts(pattern, formats)
    _check_flag("by_pointer", by_pointer)
    if by_pointer:
        return read_pointer(prefix, client=client).uri
    bucket, folder = folder_of_uri(prefix)
    found = _Run(client or S3Client(), bucket, folder).checkpoints(counts)
    return _uri(bucket, found[-1].key) if found else None


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
    counts = _Counts(pattern, formats)
    client = client or S3Client()
    bucket, folder = folder_of_uri(prefix)
    run = _Run(client, bucket, folder)
    day_ago = unfinished.long_ago(client, bucket, unfinished.DAY)
    deleted = [_uri(bucket, key) for key in run.finish(day_ago, dry_run=dry_run)[0]]
    target = run.target()
    old = [each for each in run.checkpoints(counts)[:-count] if each.key.removesuffix("/") != target]
    old = [each for each in old if not run.is_written_anew(each, day_ago)]
    return deleted + [_uri(bucket, checkpoint.key) for checkpoint in old if dry_run or run.delete(checkpoint)]


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
    with (client or S3Client()).put_object(bucket, f"{folder}{_MARKER}") as writer:
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
    age = _as_timedelta(older_than)
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
    left = _Run(client, bucket, folder).finish(limit, dry_run=dry_run)[1] if notes.object_info else []
    return [*old, *left]


class _Counts:
    """Which names are checkpoints.

    Args:
        pattern: See ``latest``.
        formats: See ``latest``.
    """

    def __init__(self, pattern: str, formats: Sequence[str]) -> None:
        self._check(pattern, formats)
        self._pattern = pattern
        self._formats = tuple(each.lower() for each in formats)

    @staticmethod
    def _check(pattern: object, formats: object) -> None:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(f"pattern must be a str, such as 'step-*', got {pattern!r}.")
        endings = list(formats) if isinstance(formats, Iterable) and not isinstance(formats, str) else [None]
        if not all(isinstance(each, str) and each for each in endings):
            raise ArgumentTypeError(f"formats must be endings of names, such as ['.pt', '.ckpt'], got {formats!r}.")

    def __call__(self, name: str) -> bool:
        """Whether a name counts, whatever it is of."""
        return fnmatchcase(name, self._pattern)

    def has_format(self, name: str) -> bool:
        """Whether an object that is called so is a checkpoint of its own, by its ending."""
        return name.lower().endswith(self._formats) and not is_shard_name(name)


class _Run:
    """What is below a prefix, as it was listed.

    Args:
        client: Lists it.
        bucket: Of the run.
        folder: Of the run; empty, or ends in ``/``.
    """

    def __init__(self, client: S3Client, bucket: str, folder: str) -> None:
        self._client = client
        self._bucket = bucket
        self._folder = folder
        self._objects: dict[str, ObjectInfo] = {}
        for page in client.list_objects(bucket, folder):
            self._objects.update((info.key, info) for info in page.object_info)
        self._folders: dict[str, list[ObjectInfo]] = {}
        self._files: dict[str, ObjectInfo] = {}
        for key, info in self._objects.items():
            child, slash, _ = key[len(folder) :].partition("/")
            if child and slash and child != unfinished.FOLDER[:-1]:
                self._folders.setdefault(f"{folder}{child}/", []).append(info)
            elif child and not slash:
                self._files[child] = info
        self._models = self._read_indexes([info for name, info in self._files.items() if name.endswith(INDEX_SUFFIX)])

    def checkpoints(self, counts: _Counts) -> list[_Checkpoint]:
        """Return the complete checkpoints, the oldest first."""
        shards = self._shards
        files = {name: info for name, info in self._files.items() if counts(name) and info.key not in shards}
        chosen = [name for name in files if counts.has_format(name)]
        chosen += self._written_by_torch([name for name in files if "." not in name])
        found = [self._of_file(name, files[name]) for name in chosen]
        names = {key: key[len(self._folder) :] for key in (*self._models, *self._folders)}
        found += [
            self._of_model(key, files)
            for key, files in self._models.items()
            if counts(names[key].removesuffix(INDEX_SUFFIX)) and self._are_there(files)
        ]
        marked = {key: self._marks(infos) for key, infos in self._folders.items() if counts(names[key].rstrip("/"))}
        found += [self._of_folder(key, marks) for key, marks in marked.items() if marks]
        return sorted(found)

    def target(self) -> str | None:
        """Return the key that the pointer of the run names, without a slash at its end; None if there is no pointer."""
        has_pointer = pointer.NAME in self._files  # it is asked for only if it was listed
        return read_target(self._client, self._bucket, self._folder) if has_pointer else None

    def is_written_anew(self, checkpoint: _Checkpoint, day_ago: float) -> bool:
        """Whether it may be a folder that is: something in it is newer than its mark, and not older than a day."""
        stored = [known.modified for known in checkpoint.others if checkpoint.key.endswith("/")]
        newest = max(stored, default=0)
        return newest > checkpoint.completed and newest > day_ago

    def delete(self, checkpoint: _Checkpoint) -> bool:
        """Delete a checkpoint; returns whether that was done: one that was replaced meanwhile stays."""
        client, bucket = self._client, self._bucket
        note = None
        if len(checkpoint.marks) + len(checkpoint.others) > 1:
            old = (*checkpoint.marks, *checkpoint.others)
            note = unfinished.write_note(client, bucket, self._folder, checkpoint.key, old)
        kept = delete_unchanged(client._access, bucket, checkpoint.marks)
        if not kept:
            delete_unchanged(client._access, bucket, checkpoint.others)
        if note is not None:
            unfinished.delete_note(client, bucket, note)
        return not kept

    def finish(self, limit: float, *, dry_run: bool) -> tuple[list[str], list[ObjectInfo]]:
        """Finish what others have left.

        Args:
            limit: What was begun then or before is given up, in seconds since the epoch.
            dry_run: Whether to do nothing.

        Returns:
            The keys of the checkpoints whose deletion that ends, and the objects that are deleted.
        """
        there = list(map(_known, self._objects.values()))
        ended: list[str] = []
        gone: list[str] = []
        for note in self._notes():
            named = self._named(note)
            left = unfinished.leftovers(note, there=there, named=named, limit=limit)
            if left and not note.new:
                ended.append(note.checkpoint)
            gone += [known.key for known in left]
            if not dry_run:
                unfinished.finish(self._client, self._bucket, note, left, named=named, limit=limit)
        return list(dict.fromkeys(ended)), [self._objects[key] for key in dict.fromkeys(gone)]

    def _notes(self) -> list[unfinished.Note]:
        begin = self._folder + unfinished.FOLDER
        known = [_known(info) for key, info in self._objects.items() if key.startswith(begin)]
        return unfinished.read_notes(self._client, self._bucket, self._folder, known)

    def _named(self, note: unfinished.Note) -> frozenset[str]:
        """Return the keys of what belongs to a complete checkpoint, of those that a note may speak of."""
        infos = self._folders.get(note.checkpoint, [])
        marked = [info.key for info in infos] if self._marks(infos) else []
        return frozenset([*self._shards, *self._models, *marked])

    @property
    def _shards(self) -> set[str]:
        return {file for files in self._models.values() for file in files}

    def _read_indexes(self, infos: Sequence[ObjectInfo]) -> dict[str, list[str]]:
        """Return the keys of the files of each model, by the key of its index."""
        models: dict[str, list[str]] = {}
        texts = unfinished.read_all(self._client, self._bucket, [info.key for info in infos])
        for info, text in zip(infos, texts, strict=True):
            if text is None:
                continue  # deleted since it was listed
            try:
                files = parse_index(text, _uri(self._bucket, info.key))
            except CheckpointFormatError:
                continue  # of something else
            models[info.key] = [self._folder + file for file in files]
        return models

    def _written_by_torch(self, names: Sequence[str]) -> list[str]:
        """Return which objects begin as what torch.save writes."""
        begin = max(map(len, _BEGINNINGS))
        texts = unfinished.read_all(self._client, self._bucket, [self._folder + name for name in names], begin)
        return [
            name for name, text in zip(names, texts, strict=True) if text is not None and text.startswith(_BEGINNINGS)
        ]

    def _are_there(self, files: Iterable[str]) -> bool:
        """Whether objects are there. An index that was replaced since the listing names some that were not listed."""
        missing = [
            HeadObject(self._client._access.bucket(self._bucket), file, is_lenient=True)
            for file in files
            if file not in self._objects
        ]
        self._client._access.run(missing)
        return not any(request.is_missing for request in missing)

    def _marks(self, infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        """Return the objects that make a folder complete."""
        return [info for info in infos if info.key[len(self._folder) :].partition("/")[2] in _MARKERS]

    def _of_file(self, name: str, info: ObjectInfo) -> _Checkpoint:
        return _Checkpoint(info.last_modified, _natural(name), info.key, (_known(info),))

    def _of_model(self, key: str, files: Sequence[str]) -> _Checkpoint:
        elsewhere = {file for other, named in self._models.items() if other != key for file in named}
        others = [self._objects[file] for file in files if file in self._objects and file not in elsewhere]
        name = key[len(self._folder) :].removesuffix(INDEX_SUFFIX)
        return self._new(name, key, [self._objects[key]], others)

    def _of_folder(self, key: str, marks: Sequence[ObjectInfo]) -> _Checkpoint:
        others = [info for info in self._folders[key] if info not in marks]
        return self._new(key[len(self._folder) : -1], key, marks, others)

    def _new(self, name: str, key: str, marks: Sequence[ObjectInfo], others: Sequence[ObjectInfo]) -> _Checkpoint:
        completed = max(info.last_modified for info in marks)
        return _Checkpoint(completed, _natural(name), key, tuple(map(_known, marks)), tuple(map(_known, others)))


def _known(info: ObjectInfo) -> Known:
    return Known(info.key, info.etag, info.last_modified)


def _uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key.removesuffix('/')}"


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a name by which ``step-9`` comes before ``step-10``."""
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))


def _as_timedelta(older_than: timedelta | float) -> timedelta:
    given: object = older_than
    if isinstance(given, bool) or not isinstance(given, (timedelta, int, float)):
        raise ArgumentTypeError(f"older_than must be a timedelta, or seconds, got {older_than!r}.")
    try:
        age = given if isinstance(given, timedelta) else timedelta(seconds=given)
    except (ValueError, OverflowError):  # not a number, or more than a timedelta holds
        age = timedelta(seconds=-1)
    if age < timedelta():
        raise ArgumentError(f"older_than={older_than!r} must be 0 or more seconds, or a timedelta.")
    return age


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a bool, got {value!r}.")
