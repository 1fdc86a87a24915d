"""The object that makes a folder a checkpoint: read, and stored once."""

from __future__ import annotations

from s3torch._objects.remote import RemoteObject
from s3torch.checkpoint.torch_checkpointing.names import Manifest, Place
from s3torch.client import S3Client
from s3torch.errors import ObjectExistsError, ObjectNotFoundError

__all__ = ["read_marker", "store_marker"]


def read_marker(client: S3Client, folder: Place) -> Manifest | None:
    """Return what the marker of a folder says; None if it has none.

    Raises:
        CheckpointFormatError: It is of something else, of a newer version, or damaged.
        S3Error: It could not be read.
    """
    content = _content(client, folder)
    return None if content is None else Manifest.decode(folder, content)


def store_marker(client: S3Client, manifest: Manifest) -> None:
    """Make a folder a checkpoint, by one PUT, on the condition that it has no marker.

    Raises:
        ObjectExistsError: It has one, which is unchanged.
        S3Error: It could not be stored, or the answer that says so was lost.
    """
    folder, content = manifest.folder, manifest.encode()
    try:
        with client.put_object(
            folder.bucket, folder.marker, content_type="application/json", if_none_match=True
        ) as writer:
            writer.write(content)
    except ObjectExistsError:
        if _content(client, folder) != content:  # else it is our own: the answer to an earlier attempt was lost
            raise


def _content(client: S3Client, folder: Place) -> bytes | None:
    try:
        return RemoteObject(client._access, folder.bucket, folder.marker).read(0)
    except ObjectNotFoundError:
        return None
