"""How written files become a checkpoint, and how what never became one is deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import NamedTuple

from s3torch._aws.operations import DeleteObject
from s3torch.checkpoint import unfinished
from s3torch.checkpoint.torch_checkpointing.identity import Identity
from s3torch.checkpoint.torch_checkpointing.marker import read_marker, store_marker
from s3torch.checkpoint.torch_checkpointing.names import (
    MARKER,
    Manifest,
    Place,
    Saved,
    StoredFile,
    place_of,
    saves_prefix,
)
from s3torch.client import MultipartUploadInfo, S3Client
from s3torch.errors import ArgumentError, NotFoundError, ObjectExistsError, S3Error

__all__ = ["clean", "commit", "delete_all", "own_files", "remove_folder"]

_log = logging.getLogger(__name__)

_AT_A_TIME = 100  # deletions that are under way together


class _Survey(NamedTuple):
    """What lies below a folder.

    Attributes:
        files: Of this save, by their names in the checkpoint; of several with one name the last one.
        others: The other files of saves, of this folder.
        foreign: Everything else, the marker included.
    """

    files: dict[str, StoredFile]
    others: list[tuple[str, Saved]]
    foreign: list[str]


def own_files(client: S3Client, folder: Place, identity: Identity) -> Mapping[str, StoredFile]:
    """Return the files that the ranks of this save have written, and that are no checkpoint yet, by their names."""
    found = _survey(client, folder, identity, f"{saves_prefix(folder)}{identity.name}/").files
    if not found:
        return found
    named = _named(client, folder)
    return {name: file for name, file in found.items() if file.key not in named}


def _survey(client: S3Client, folder: Place, identity: Identity, prefix: str) -> _Survey:
    found: dict[str, tuple[int, str, str, int]] = {}
    others: list[tuple[str, Saved]] = []
    foreign: list[str] = []
    for page in client.list_objects(folder.bucket, prefix):
        for info in page.object_info:
            saved = Saved.parse(info.key)
            if saved is None or saved.folder != folder.key:
                foreign.append(info.key)
                continue
            others.append((info.key, saved))
            if saved.save == identity.name:
                # Of one rank, so the server's clock tells the later, and within a second the rank's own.
                this = (info.last_modified, saved.token, info.key, info.size)
                found[saved.name] = max(found.get(saved.name, this), this)
    files = {name: StoredFile(folder.bucket, key, size) for name, (_, _, key, size) in found.items()}
    used = {file.key for file in files.values()}
    return _Survey(files, [(key, saved) for key, saved in others if key not in used], foreign)


def commit(client: S3Client, source: Place, folder: Place, identity: Identity, written: AbstractSet[str]) -> Manifest:
    """Make the files of this save a checkpoint, and delete what earlier saves of its name have left.

    Args:
        client: Sends the requests.
        source: The temporary folder.
        folder: The checkpoint.
        identity: Of the save.
        written: The names of files that must be there, as this process has written them.

    Returns:
        What the marker says.

    Raises:
        ObjectExistsError: There is something under that name, which is unchanged.
        S3Error: Any other failure.
    """
    survey = _survey(client, folder, identity, folder.prefix)
    _check_free(client, folder, survey)
    _check_whole(client, source, identity, survey, written)
    manifest = Manifest(folder, survey.files)
    store_marker(client, manifest)
    size = sum(file.size for file in survey.files.values())
    _log.info("%s is complete: %d files, %d bytes", folder.uri, len(survey.files), size)
    try:
        # Nobody else can complete a save of this name any more, so what others have written is of no use to them.
        delete_all(client, folder.bucket, [key for key, _ in survey.others])
        _abort(client, folder.bucket, client.list_multipart_uploads(folder.bucket, saves_prefix(folder)))
    except S3Error as error:
        _log.warning("What earlier saves of %s have left could not be deleted: %s", folder.uri, error)
    return manifest


def _check_free(client: S3Client, folder: Place, survey: _Survey) -> None:
    if folder.marker in survey.foreign:
        raise ObjectExistsError(
            f"{folder.uri} is a complete checkpoint already, and was not replaced. Delete it by rmdir, or save under "
            "another name.",
            bucket=folder.bucket,
            key=folder.marker,
        )
    foreign = [key for key in survey.foreign if key != folder.prefix]
    if foreign:
        raise ObjectExistsError(
            f"{folder.uri} is no empty folder: there is s3://{folder.bucket}/{foreign[0]}. Save under another name.",
            bucket=folder.bucket,
            key=foreign[0],
        )
    try:
        client.head_object(folder.bucket, folder.key)
    except NotFoundError:
        return
    raise ObjectExistsError(f"{folder.uri} is a file. Save under another name.", bucket=folder.bucket, key=folder.key)


def _check_whole(
    client: S3Client, source: Place, identity: Identity, survey: _Survey, written: AbstractSet[str]
) -> None:
    """Refuse to complete a checkpoint without files that may be a part of it."""
    for page in client.list_objects(source.bucket, source.prefix):
        for info in page.object_info:
            raise ArgumentError(
                f"s3://{source.bucket}/{info.key} would be missing from the checkpoint: no folder within {source.uri} "
                "may have a name that begins like that of a temporary folder (temp_dir_prefix)."
            )
    missing = sorted(written - survey.files.keys())
    if missing:
        raise S3Error(
            f"{source.uri} was not made a checkpoint: {', '.join(missing)} could not be written, or was deleted "
            "meanwhile. Save it again; what may be missing, delete."
        )
    if identity.is_shared:
        return
    unknown = sorted({saved.name for _, saved in survey.others} - survey.files.keys())
    if unknown:
        raise S3Error(
            f"{source.uri} was not made a checkpoint: {', '.join(unknown)} may be of another rank of this save, or "
            "left from an earlier one. In the first case give all ranks the same S3StorageConfig(save_id=...); in the "
            "second delete it by rmdir or s3torch.torch_checkpointing.clean."
        )


def remove_folder(client: S3Client, folder: Place, *, is_staged: bool) -> bool:
    """Delete what is in a folder, first what makes it a checkpoint.

    Args:
        client: Sends the requests.
        folder: Which.
        is_staged: Whether to delete what is not a part of a checkpoint yet; otherwise that is what stays.

    Returns:
        Whether there was anything.
    """
    keys = [info.key for page in client.list_objects(folder.bucket, folder.prefix) for info in page.object_info]
    named = _named(client, folder) if folder.marker in keys else set()
    unfinished = {
        key
        for key in keys
        if key not in named and (saved := Saved.parse(key)) is not None and saved.folder == folder.key
    }
    if is_staged:
        uploads = client.list_multipart_uploads(folder.bucket, saves_prefix(folder))
        delete_all(client, folder.bucket, unfinished)
        _abort(client, folder.bucket, uploads)
        return bool(unfinished or uploads)
    doomed = [key for key in keys if key not in unfinished]
    markers = [key for key in doomed if _is_marker(key)]
    delete_all(client, folder.bucket, markers)
    delete_all(client, folder.bucket, set(doomed).difference(markers))
    return bool(doomed)


def clean(
    prefix: str,
    *,
    older_than: timedelta | float = unfinished.DAY,
    dry_run: bool = False,
    client: S3Client | None = None,
) -> list[str]:
    """Delete what saves have left that were never completed: files that no marker names, and parts of files.

    Args:
        prefix: Only below this folder, such as ``s3://bucket/run``; a checkpoint or what holds some.
        older_than: Only what was begun so long ago, by the server's clock and this machine's, a timedelta or seconds.
            What is being saved now must not be among it.
        dry_run: Whether to delete nothing, and only return what would be.
        client: Sends the requests; None is a new one.

    Returns:
        The URIs of the objects that were deleted, or whose parts were.

    Raises:
        ArgumentError: ``older_than`` is negative.
        ArgumentTypeError: It is neither a timedelta nor a number.
        InvalidURIError: ``prefix`` leads elsewhere than to S3.
        CheckpointFormatError: The marker of a folder cannot be read, so nobody knows what it names.
        S3Error: Something could not be listed or deleted.
    """
    age = unfinished.as_age(older_than)
    client = client or S3Client()
    root = place_of(prefix)
    saved: dict[str, list[tuple[str, int]]] = {}
    for page in client.list_objects(root.bucket, root.prefix):
        for info in page.object_info:
            parsed = Saved.parse(info.key)
            if parsed is not None:
                saved.setdefault(parsed.folder, []).append((info.key, info.last_modified))
    limit = unfinished.long_ago(client, root.bucket, age)  # behind the listing, which may have told the server's clock
    doomed: list[str] = []
    for key, objects in saved.items():
        folder = Place(root.bucket, key)
        old = [name for name, modified in objects if modified <= limit]
        # Read after the listing: what was completed since is named.
        named = _named(client, folder) if old else set()
        doomed += [name for name in old if name not in named]
    uploads = [
        upload
        for upload in client.list_multipart_uploads(root.bucket, root.prefix)
        if upload.initiated <= limit and Saved.parse(upload.key) is not None
    ]
    if not dry_run:
        delete_all(client, root.bucket, doomed)
        _abort(client, root.bucket, uploads)
    return [f"s3://{root.bucket}/{name}" for name in (*doomed, *(upload.key for upload in uploads))]


def _named(client: S3Client, folder: Place) -> set[str]:
    """Return the keys that the marker of a folder names; none if it has no marker."""
    manifest = read_marker(client, folder)
    return set() if manifest is None else {file.key for file in manifest.files.values()}


def _is_marker(key: str) -> bool:
    return key.rpartition("/")[2] == MARKER


def delete_all(client: S3Client, bucket: str, keys: Iterable[str]) -> None:
    """Delete objects, many at a time."""
    access = client._access  # the same package
    due = list(keys)
    for start in range(0, len(due), _AT_A_TIME):
        access.run([DeleteObject(access.bucket(bucket), key) for key in due[start : start + _AT_A_TIME]])
        _log.info("Deleted %d objects of s3://%s, such as %s", min(_AT_A_TIME, len(due) - start), bucket, due[start])


def _abort(client: S3Client, bucket: str, uploads: Iterable[MultipartUploadInfo]) -> None:
    for upload in uploads:
        client.abort_multipart_upload(bucket, upload.key, upload.upload_id)
        _log.info("Aborted an upload of s3://%s/%s", bucket, upload.key)
