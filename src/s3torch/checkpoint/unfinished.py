"""Notes of what is not finished: a checkpoint of several objects that is being written, or deleted.

Several objects do not change as one. A checkpoint of many is complete by one of them: a folder by its mark, a sharded
model by its index, which names the others. That one is written last and deleted first, so nobody loads a part. But a
process that dies in between leaves objects that nothing names, and that look like those of a save that is under way.
So whoever writes or deletes such a checkpoint stores a note first, which lists the objects, and deletes it in the end.
Who finds a note finishes what it says:

- what was to be deleted is, unless it was replaced meanwhile, or something names it again;
- what was written goes if nothing names it a day later.

Notes lie beside the checkpoint, in the folder ``.s3torch/``, each under a name that nobody else has: two processes that
delete the same checkpoint do not disturb each other.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from s3torch._objects.beginnings import Beginning, read_beginnings
from s3torch._objects.deleting import Known, delete_unchanged
from s3torch._objects.remote import RemoteObject
from s3torch.errors import ArgumentError, ArgumentTypeError, CheckpointFormatError, ObjectNotFoundError

if TYPE_CHECKING:
    from s3torch.client import S3Client

__all__ = [
    "DAY",
    "FOLDER",
    "Note",
    "as_age",
    "delete_note",
    "finish",
    "leftovers",
    "long_ago",
    "read_all",
    "read_notes",
    "write_note",
]

FOLDER = ".s3torch/"
# After which nobody is at work any more, if nothing else is said.
DAY = timedelta(days=1)

_VERSION = 1
_MOST = 100_000_000  # bytes of a note or an index

clock = time.time


def as_age(older_than: timedelta | float) -> timedelta:
    """Return an age that was given, as a timedelta or in seconds.

    Raises:
        ArgumentError: It is negative, or no number.
        ArgumentTypeError: It is neither.
    """
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


def long_ago(client: S3Client, bucket: str, age: timedelta) -> float:
    """Return what time it was so long ago, in seconds since the epoch, by the server's clock as far as it is known."""
    return clock() + client._access.bucket(bucket).clock_offset - age.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is not finished.

    Attributes:
        checkpoint: Key of the index of a sharded model, or of a folder, which ends in ``/``.
        old: Objects that are to be deleted, as they were listed.
        new: Keys of objects that are being written, and that nobody else writes.
        known: The note itself, as it was listed.
    """

    checkpoint: str
    old: tuple[Known, ...]
    new: tuple[str, ...]
    known: Known


def write_note(
    client: S3Client, bucket: str, folder: str, checkpoint: str, old: Iterable[Known], new: Iterable[str] = ()
) -> str:
    """Store a note.

    Args:
        client: Sends the request.
        bucket: Of the checkpoint.
        folder: That it lies in; empty, or ends in ``/``.
        checkpoint: See ``Note``, like the others.
        old: To be deleted.
        new: Being written.

    Returns:
        The note's key.
    """
    key = f"{folder}{FOLDER}{secrets.token_hex(8)}.json"
    document = {"version": _VERSION, "checkpoint": checkpoint, "old": list(old), "new": list(new)}
    with client.put_object(bucket, key) as writer:
        writer.write(json.dumps(document).encode())
    return key


def delete_note(client: S3Client, bucket: str, key: str) -> None:
    """Delete a note: what it says is done."""
    client.delete_object(bucket, key)


def read_notes(client: S3Client, bucket: str, folder: str, known: Sequence[Known]) -> list[Note]:
    """Return the notes of a folder, without those that are gone meanwhile and those that are none.

    Args:
        client: Sends the requests.
        bucket: Of the notes.
        folder: That their checkpoints lie in: a note that speaks of other objects is none.
        known: Them, as they were listed.
    """
    texts = read_all(client, bucket, [note.key for note in known])
    notes = [_parse(text, folder, note) for text, note in zip(texts, known, strict=True) if text is not None]
    return [note for note in notes if note is not None]


def _parse(text: bytes, folder: str, known: Known) -> Note | None:
    try:
        said = json.loads(text)
        if said["version"] != _VERSION:
            return None
        old = tuple(Known(str(key), str(etag), int(modified)) for key, etag, modified in said["old"])
        note = Note(checkpoint=str(said["checkpoint"]), old=old, new=tuple(map(str, said["new"])), known=known)
    except (ValueError, KeyError, TypeError):
        return None
    keys = [note.checkpoint, *note.new, *(each.key for each in note.old)]
    return note if all(key.startswith(folder) and key > folder for key in keys) else None


def leftovers(note: Note, *, there: Iterable[Known], named: frozenset[str], limit: float) -> list[Known]:
    """Return which objects are to be deleted by a note. Pure.

    Args:
        note: What is not finished.
        there: The objects that there are, as they were listed.
        named: Keys of those that belong to a complete checkpoint.
        limit: What was being written is given up if its note is not younger, in seconds since the epoch.
    """
    old, new = set(note.old), set(note.new) if note.known.modified <= limit else set()
    return [known for known in there if known.key not in named and (known in old or known.key in new)]


def finish(
    client: S3Client,
    bucket: str,
    note: Note,
    left: Sequence[Known],
    *,
    named: frozenset[str],
    limit: float,
) -> None:
    """Do what a note says, and delete it if nobody may be at work any more on what it speaks of.

    Args:
        client: Sends the requests.
        bucket: Of the checkpoint.
        note: What is not finished.
        left: What ``leftovers`` returned.
        named: See ``leftovers``, like the other.
        limit: See ``leftovers``.
    """
    delete_unchanged(client._access, bucket, left)
    is_at_work = not named.issuperset(note.new) or not named.isdisjoint(known.key for known in note.old)
    if note.known.modified <= limit or not is_at_work:
        delete_note(client, bucket, note.known.key)


def _finish(read: Beginning) -> bytes | None:
    try:
        text = read.finish()
    except ObjectNotFoundError:
        return None
    if len(text) > _MOST:
        raise CheckpointFormatError(f"s3://{read.remote.bucket}/{read.remote.key} has over {_MOST} bytes.")
    return text


def read_all(client: S3Client, bucket: str, keys: Iterable[str], stop: int = _MOST + 1) -> list[bytes | None]:
    """Return the contents of small objects, which are read at the same time; None for one that is not there.

    Args:
        client: Sends the requests.
        bucket: Of the objects.
        keys: Of the objects.
        stop: Only the bytes before this one of each.

    Raises:
        CheckpointFormatError: One is larger than any index.
        S3Error: One could not be read.
    """
    return read_beginnings([RemoteObject(client._access, bucket, key) for key in keys], stop, _finish)
