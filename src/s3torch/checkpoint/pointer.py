"""A pointer to the latest checkpoint of a run: one object, which is replaced by compare-and-swap.

Listing tells which checkpoint was completed last, to the second. Where that is not enough, as several processes save,
or an older checkpoint is to be gone back to, the run has a pointer: ``_LATEST`` in its folder. Whoever moves it says
which pointer it has read, and fails if that was moved meanwhile. Each pointer has an ETag of its own, also where two
name the same checkpoint, so one that was moved away and back is noticed, and a pointer whose answer was lost is
recognised as one's own.
"""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

from s3torch._objects.remote import RemoteObject
from s3torch.client import S3Client
from s3torch.errors import ArgumentError, ArgumentTypeError, CheckpointFormatError, ObjectNotFoundError
from s3torch.uri import parse_s3_uri

__all__ = ["NAME", "Pointer", "folder_of_uri", "read_pointer", "read_target", "set_pointer"]

#: Of the object, right below the prefix of the run.
NAME = "_LATEST"

_VERSION = 1
_MOST = 64 * 1024  # bytes: the name of an object has 1,024


class Pointer(NamedTuple):
    """What the pointer of a run says, and which version of it that is.

    Attributes:
        uri: Of the checkpoint; None if there is no pointer.
        etag: Of the pointer; None if there is none.
    """

    uri: str | None
    etag: str | None


def read_pointer(prefix: str, *, client: S3Client | None = None) -> Pointer:
    """Return which checkpoint the pointer of a run names.

    Args:
        prefix: Of the run, see ``latest``.
        client: Sends the request; None is a new one.

    Returns:
        The pointer; ``Pointer(None, None)`` if there is none.

    Raises:
        CheckpointFormatError: The object is no pointer.
        InvalidURIError: ``prefix`` is not of the form ``s3://bucket/prefix``.
        S3Error: It could not be read.
    """
    bucket, folder = folder_of_uri(prefix)
    name, etag = _read(client or S3Client(), bucket, folder)
    return Pointer(None if name is None else f"s3://{bucket}/{folder}{name}", etag)


def set_pointer(s3_uri: str, *, expected: Pointer, client: S3Client | None = None) -> Pointer:
    """Let the pointer of a run name a checkpoint, if it is what it was when it was read.

    Args:
        s3_uri: Of the checkpoint, which is complete and lies right below the prefix of the run: an object, an index or
            a folder.
        expected: What ``read_pointer`` or this have returned last.
        client: Sends the request; None is a new one.

    Returns:
        The new pointer.

    Raises:
        ArgumentError: The URI names no checkpoint, or ``expected`` is of another run.
        ArgumentTypeError: ``expected`` is no Pointer.
        ObjectChangedError: Somebody has moved the pointer since: read it again, and decide anew.
        ObjectExistsError: There was none, and somebody has made one since.
        ObjectNotFoundError: There was one, and somebody has deleted it since.
        S3Error: It could not be stored. Servers that heed no conditions are asked for the pointer just before; then the
            last of two at the same time wins.
    """
    given: object = expected
    if not isinstance(given, Pointer):
        raise ArgumentTypeError(f"expected must be a Pointer, as read_pointer returns it, got {expected!r}.")
    bucket, folder, name = _place_of(s3_uri)
    if expected.uri is not None and _place_of(expected.uri)[:2] != (bucket, folder):
        raise ArgumentError(f"{s3_uri!r} does not lie beside {expected.uri!r}: each run has a pointer of its own.")
    text = json.dumps({"version": _VERSION, "checkpoint": name, "token": secrets.token_hex(16)})
    is_new = expected.etag is None
    with (client or S3Client()).put_object(
        bucket, f"{folder}{NAME}", if_none_match=is_new, if_match=expected.etag
    ) as writer:
        writer.write(text.encode())
    return Pointer(f"s3://{bucket}/{folder}{name}", writer.etag)


def folder_of_uri(prefix: str) -> tuple[str, str]:
    """Return bucket and folder that a URI names: empty for the bucket, else what it says, with a slash at its end."""
    bucket, key = parse_s3_uri(prefix)
    return bucket, f"{key.removesuffix('/')}/" if key else ""


def read_target(client: S3Client, bucket: str, folder: str) -> str | None:
    """Return the key that the pointer of a folder names, without a slash at its end; None if there is no pointer."""
    name, _ = _read(client, bucket, folder)
    return None if name is None else f"{folder}{name}"


def _place_of(uri: str) -> tuple[str, str, str]:
    """Return bucket, folder and name of a checkpoint."""
    bucket, key = parse_s3_uri(uri)
    folder, slash, name = key.removesuffix("/").rpartition("/")
    if not name:
        raise ArgumentError(f"{uri!r} names no checkpoint. Write 's3://bucket/run/name'.")
    return bucket, f"{folder}{slash}", name


def _read(client: S3Client, bucket: str, folder: str) -> tuple[str | None, str | None]:
    remote = RemoteObject(client._access, bucket, f"{folder}{NAME}")
    try:
        text = remote.read(0, _MOST)
    except ObjectNotFoundError:
        return None, None
    try:
        said = json.loads(text)
        name = said["checkpoint"] if said["version"] == _VERSION else None
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name or "/" in name:
        raise CheckpointFormatError(f"s3://{bucket}/{folder}{NAME} is no pointer to a checkpoint of a known format.")
    return name, remote.etag
