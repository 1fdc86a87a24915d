"""Where the files of a checkpoint lie, and what its marker says. Pure.

A file that is written below ``run/tmp_step-1``, the folder that the library is about to rename to ``run/step-1``, goes
to ``run/step-1/.save-{save}/{token}/{name}`` and stays there: no two files ever get the same key. The marker,
``run/step-1/_COMPLETE``, says which of these objects are the files of the checkpoint. What it does not name is no part
of it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import NamedTuple

from s3torch.errors import ArgumentTypeError, CheckpointFormatError, InvalidURIError
from s3torch.uri import parse_s3_uri

__all__ = ["MARKER", "Manifest", "Place", "Saved", "StagedFile", "StoredFile", "place_of"]

MARKER = "_COMPLETE"  # s3torch.checkpoint.latest and keep_last know a complete folder by it
_FORMAT = "s3torch.torch_checkpointing"
_VERSION = 1
_SAVED = re.compile(r"(?s)(.+?)/\.save-([0-9a-f]{16})/([0-9a-f]{24})/(.+)")
_ONE_SLASH = re.compile("s3:/(?!/)")


class Place(NamedTuple):
    """Where a path leads, whether or not anything is there."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The path as a URI."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def marker(self) -> str:
        """The key of what makes a folder at this place a checkpoint."""
        return f"{self.prefix}{MARKER}"

    @property
    def prefix(self) -> str:
        """What the keys of all objects below this place begin with."""
        return f"{self.key}/" if self.key else ""

    @property
    def parents(self) -> list[Place]:
        """The folders that it lies in, the innermost first; not the bucket."""
        parts = self.key.split("/")
        return [Place(self.bucket, "/".join(parts[:count])) for count in range(len(parts) - 1, 0, -1)]

    def below(self, folder: Place) -> str | None:
        """Return its name within a folder; None if it is not in there."""
        if folder.bucket != self.bucket or not self.key.startswith(folder.prefix):
            return None
        return self.key[len(folder.prefix) :] or None

    def renamed(self, prefix: str) -> Place | None:
        """Return the folder that a temporary folder will become; None if this is none.

        Args:
            prefix: What the names of temporary folders begin with.
        """
        head, slash, name = self.key.rpartition("/")
        if not name.startswith(prefix) or name == prefix:
            return None
        return Place(self.bucket, f"{head}{slash}{name[len(prefix) :]}")

    def staged(self, prefix: str) -> StagedFile | None:
        """Return what a file in a temporary folder will be; None if it is in none."""
        for parent in self.parents:
            folder = parent.renamed(prefix)
            if folder is not None:
                return StagedFile(folder, self.key[len(parent.prefix) :])
        return None


class StagedFile(NamedTuple):
    """A file of a checkpoint that is being saved.

    Attributes:
        folder: The checkpoint.
        name: Of the file, within it.
    """

    folder: Place
    name: str

    def new_key(self, save: str) -> str:
        """Return a key that no other file has, or will have.

        Args:
            save: Which save it is a part of, as 16 hexadecimal digits.
        """
        token = f"{time.time_ns() & 0xFFFF_FFFF_FFFF_FFFF:016x}{secrets.token_hex(4)}"
        return f"{saves_prefix(self.folder)}{save}/{token}/{self.name}"


def saves_prefix(folder: Place) -> str:
    """Return what the keys of all saved files of a checkpoint begin with."""
    return f"{folder.prefix}.save-"


class Saved(NamedTuple):
    """What the key of a saved file says.

    Attributes:
        folder: The key of the checkpoint.
        save: Which save it is a part of.
        token: Of files of one save with the same name, the later has the greater one.
        name: Of the file, within the checkpoint.
    """

    folder: str
    save: str
    token: str
    name: str

    @classmethod
    def parse(cls, key: str) -> Saved | None:
        """Take a key apart; None if it is of another object."""
        found = _SAVED.fullmatch(key)
        return None if found is None else cls(*found.groups())


class StoredFile(NamedTuple):
    """A file that is there.

    Attributes:
        bucket: Of its object.
        key: Of its object.
        size: In bytes.
        etag: None if it is not known, as of files that a marker names: nothing is ever written to their keys again, and
            a copy of the folder has other ETags.
    """

    bucket: str
    key: str
    size: int
    etag: str | None = None


class Manifest(NamedTuple):
    """What a marker says.

    Attributes:
        folder: The checkpoint.
        files: By their names within it. A marker that ``mark_complete`` has stored names none: then each object in the
            folder is what its key says.
    """

    folder: Place
    files: Mapping[str, StoredFile]

    def encode(self) -> bytes:
        """Return the content of a marker; no two are the same, so that one's own is known."""
        start = len(self.folder.prefix)
        files = {name: [file.key[start:], file.size] for name, file in sorted(self.files.items())}
        said = {"format": _FORMAT, "version": _VERSION, "nonce": secrets.token_hex(16), "files": files}
        return json.dumps(said, indent=1).encode()

    @classmethod
    def decode(cls, folder: Place, content: bytes) -> Manifest:
        """Read a marker.

        Raises:
            CheckpointFormatError: It is of something else, of a newer version, or damaged.
        """
        if not content:
            return cls(folder, {})
        try:
            said = json.loads(content)
            if said.keys() == {"mark"}:  # of ``mark_complete``
                return cls(folder, {})
            form, version = said["format"], said["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointFormatError(f"{folder.uri}/{MARKER} is no marker of s3torch: {error!r}.") from error
        if form != _FORMAT:
            raise CheckpointFormatError(f"{folder.uri} is a checkpoint of another kind: its marker says {form!r}.")
        if version != _VERSION:
            raise CheckpointFormatError(
                f"The marker of {folder.uri} has version {version!r}, and this s3torch reads {_VERSION}: "
                "install a newer one."
            )
        try:
            files = {name: _stored(folder, tail, size) for name, (tail, size) in said["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointFormatError(f"{folder.uri}/{MARKER} is damaged: {error!r}.") from error
        return cls(folder, files)

    def find(self, place: Place) -> StoredFile | None:
        """Return the file that a path leads to; None if the marker does not name it."""
        name = place.below(self.folder)
        return None if name is None else self.files.get(name)


def _stored(folder: Place, tail: object, size: object) -> StoredFile:
    if not isinstance(tail, str) or not tail or type(size) is not int or size < 0:
        raise ValueError(f"a file has the key {tail!r} and the size {size!r}")
    return StoredFile(folder.bucket, f"{folder.prefix}{tail}", size)


def place_of(path: str | os.PathLike[str]) -> Place:
    """Return where a path leads.

    Args:
        path: ``s3://bucket/key`` as a str, or as what ``pathlib.Path`` makes of it, ``s3:/bucket/key``. Of slashes in a
            row one counts, and ``.`` is left out, in both: pathlib knows no others.

    Raises:
        ArgumentTypeError: It is no path.
        InvalidURIError: It leads elsewhere.
    """
    if isinstance(path, PurePath):
        text = path.as_posix()
    elif isinstance(path, (str, os.PathLike)):
        text = os.fspath(path)
    else:
        raise ArgumentTypeError(f"A path must be a str or a Path such as 's3://bucket/key', got {path!r}.")
    if not isinstance(text, str):
        raise ArgumentTypeError(f"A path must be of str, got {text!r}.")
    bucket, key = parse_s3_uri(_ONE_SLASH.sub("s3://", text, count=1) if _ONE_SLASH.match(text) else text)
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidURIError(f"{text!r} has a '..', which S3 does not know. Write the key itself.")
    return Place(bucket, "/".join(parts))
