"""What lies right below the prefix of a run, as it was listed: which of it are checkpoints, and what is left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from s3torch._aws.listing import ObjectInfo
from s3torch._aws.operations import HeadObject
from s3torch._objects.deleting import Known, delete_unchanged
from s3torch.checkpoint import pointer, unfinished
from s3torch.checkpoint.pointer import read_target
from s3torch.checkpoint.safetensors.format import INDEX_SUFFIX, is_shard_name, parse_index
from s3torch.client import S3Client
from s3torch.errors import ArgumentTypeError, CheckpointFormatError

__all__ = ["FORMATS", "MARKER", "Checkpoint", "Counts", "Run", "uri_of"]

#: How the names of objects end that are checkpoints: those of torch, Lightning and safetensors.
FORMATS = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")

# What a file of torch.save begins with: a zip archive, or in the legacy form a pickled number.
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
MARKER = "_COMPLETE"
_MARKERS = (".metadata", MARKER)


class Checkpoint(NamedTuple):
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


class Counts:
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


class Run:
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

    def checkpoints(self, counts: Counts) -> list[Checkpoint]:
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

    def is_written_anew(self, checkpoint: Checkpoint, day_ago: float) -> bool:
        """Whether it may be a folder that is: something in it is newer than its mark, and not older than a day."""
        stored = [known.modified for known in checkpoint.others if checkpoint.key.endswith("/")]
        newest = max(stored, default=0)
        return newest > checkpoint.completed and newest > day_ago

    def delete(self, checkpoint: Checkpoint) -> bool:
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
                files = parse_index(text, uri_of(self._bucket, info.key))
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

    def _of_file(self, name: str, info: ObjectInfo) -> Checkpoint:
        return Checkpoint(info.last_modified, _natural(name), info.key, (_known(info),))

    def _of_model(self, key: str, files: Sequence[str]) -> Checkpoint:
        elsewhere = {file for other, named in self._models.items() if other != key for file in named}
        others = [self._objects[file] for file in files if file in self._objects and file not in elsewhere]
        name = key[len(self._folder) :].removesuffix(INDEX_SUFFIX)
        return self._new(name, key, [self._objects[key]], others)

    def _of_folder(self, key: str, marks: Sequence[ObjectInfo]) -> Checkpoint:
        others = [info for info in self._folders[key] if info not in marks]
        return self._new(key[len(self._folder) : -1], key, marks, others)

    def _new(self, name: str, key: str, marks: Sequence[ObjectInfo], others: Sequence[ObjectInfo]) -> Checkpoint:
        completed = max(info.last_modified for info in marks)
        return Checkpoint(completed, _natural(name), key, tuple(map(_known, marks)), tuple(map(_known, others)))


def _known(info: ObjectInfo) -> Known:
    return Known(info.key, info.etag, info.last_modified)


def uri_of(bucket: str, key: str) -> str:
    """Return the URI of an object or of a folder, without the slash at its end."""
    return f"s3://{bucket}/{key.removesuffix('/')}"


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a name by which ``step-9`` comes before ``step-10``."""
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))
