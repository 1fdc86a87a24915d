"""A model that takes the place of another one of the same name: whole, or not at all.

A model is one object, ``model.safetensors``, or an index, ``model.safetensors.index.json``, which names its shards.
What is loaded by the folder is what the index names, if there is one. So the moment at which a new model counts is

- for a sharded one, that its index is stored: its shards have names that no other save has, so until then they are
  nobody's, and afterwards the old shards are;
- for one object, that it is stored, or, where there was an index, that this is deleted.

Then what was replaced is deleted. A reader has read either index, and finds all shards of it, or one is gone: that is
an error. What a killed process leaves behind is noted: see ``unfinished.py``. Two saves of one name at the same time do
not lose each other's shards, as the index is replaced by compare-and-swap: who comes second knows what it replaces.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from s3torch._access import leftovers
from s3torch._aws.answers import parse_http_date
from s3torch._aws.operations import DeleteObject, HeadObject
from s3torch._objects.deleting import Known, delete_unchanged
from s3torch.checkpoint import unfinished
from s3torch.checkpoint.safetensors.format import INDEX_SUFFIX, parse_index
from s3torch.errors import (
    AccessDeniedError,
    CheckpointFormatError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestError,
    S3Error,
)

if TYPE_CHECKING:
    from s3torch.client import S3Client

__all__ = ["OneFile", "Sharded"]

_log = logging.getLogger(__name__)

# Saves of the same name that come in between; more than ever are at work. Not tuned.
_MOST_SWAPS = 20


class _Model:
    """What has the name of a model until it is replaced.

    Args:
        client: Sends the requests.
        bucket: Of the model.
        key: Of the model as one object.

    Attributes:
        index: The index that was found; None if there is none.
        shards: The objects that the index names.
        may_ask: Whether the index may be asked for at all.
    """

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._index_key = f"{key}{INDEX_SUFFIX}"
        self._folder = key[: key.rfind("/") + 1]
        self.index: Known | None = None
        self.shards: list[Known] = []
        self.may_ask = True

    def find_index(self) -> None:
        """Ask for the index and for what it names."""
        self.index, self.shards = None, []
        try:
            found = self._find([self._index_key])
        except AccessDeniedError:
            self.may_ask = False
            # Amazon S3 answers so where there is none and the bucket may not be listed: a writer needs no more.
            _log.warning(
                "Whether there is an index s3://%s/%s may not be asked for. If there is one, it still names the model "
                "that it named before: delete it.",
                self._bucket,
                self._index_key,
            )
            return
        if not found:
            return
        (text,) = unfinished.read_all(self._client, self._bucket, [self._index_key])
        try:
            files = [] if text is None else list(parse_index(text, f"s3://{self._bucket}/{self._index_key}"))
        except CheckpointFormatError:
            files = []  # names nothing
        self.index = found[0]
        self.shards = self._find([self._folder + file for file in files if self._folder + file != self._key])

    def _find(self, keys: Sequence[str]) -> list[Known]:
        """Return those objects that are there."""
        access = self._client._access
        heads = [HeadObject(access.bucket(self._bucket), key, is_lenient=True) for key in keys]
        access.run(heads)
        found = []
        for key, request in zip(keys, heads, strict=True):
            if not request.is_missing and request.head is not None:
                fields = request.head.fields
                modified = parse_http_date(fields.get("last-modified", ""))
                found.append(Known(key, fields.get("etag", ""), int(modified or 0)))
        return found

    def _delete(self, objects: Sequence[Known]) -> list[str]:
        return delete_unchanged(self._client._access, self._bucket, objects)


class OneFile(_Model):
    """A model of one object that is about to be stored. Make it before that, and ``take_over`` behind it."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        super().__init__(client, bucket, key)
        self.find_index()

    def take_over(self) -> None:
        """Delete the sharded model that had the name before.

        Raises:
            S3Error: It could not be deleted. As long as its index is there, that is the model of the folder.
        """
        if self.index is None:
            return
        note = unfinished.write_note(self._client, self._bucket, self._folder, self._index_key, self.shards)
        if not self._delete([self.index]):  # else it is of another save
            self._delete(self.shards)
        unfinished.delete_note(self._client, self._bucket, note)


class Sharded(_Model):
    """A model of several objects that is about to be stored.

    ``begin`` it, store the objects of ``keys``, and ``commit`` the index; ``give_up`` if that fails.

    Args:
        client: Sends the requests.
        bucket: Of the model.
        key: Of the model if it were one object.
        keys: Of the shards: no other save has used them.

    Attributes:
        keys: As given.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, keys: Sequence[str]) -> None:
        super().__init__(client, bucket, key)
        self.keys = keys
        self._notes: list[str] = []
        self._may_be_named = False

    def begin(self) -> None:
        """Note what is about to be written."""
        self.find_index()
        self._note()

    def commit(self, index: bytes) -> None:
        """Store the index, and delete what it replaces.

        Args:
            index: Its content.

        Raises:
            S3Error: It could not be stored, or what was replaced could not be deleted.
        """
        singles = self._find_single()
        for _ in range(_MOST_SWAPS):
            self._may_be_named = True  # from now on
            try:
                self._swap(index)
                break
            except (ObjectChangedError, ObjectExistsError, ObjectNotFoundError):  # of another save, or deleted
                replaced = self.shards
                self.find_index()
                if any(shard.key in self.keys for shard in self.shards):
                    self.shards = replaced  # the index is this one: an answer was lost
                    break
                self._may_be_named = False
                self._note()
        else:
            raise S3Error(
                f"s3://{self._bucket}/{self._index_key} was replaced {_MOST_SWAPS} times while it was to be replaced: "
                "too many save one model at the same time.",
                bucket=self._bucket,
                key=self._index_key,
            )
        try:
            self._delete(singles)
            self._delete(self.shards)
            for note in self._notes:
                unfinished.delete_note(self._client, self._bucket, note)
        except S3Error as error:
            error.args = (f"{error.args[0]} The new model is stored; what it has replaced could not be deleted.",)
            raise

    def give_up(self) -> None:
        """Delete the shards, within two seconds or so, unless the index may name them.

        The note stays: a request that nobody waits for any more may store a shard yet.
        """
        if not self._may_be_named:
            leftovers.leave(partial(_delete_within, self._client, self._bucket, self.keys))
            leftovers.send()

    def _swap(self, content: bytes) -> None:
        """Replace the index that was found, or make the first one."""
        is_new = self.index is None and self.may_ask
        etag = None if self.index is None or self.index.etag.startswith("W/") else self.index.etag or None
        try:
            self._put(content, if_none_match=is_new, if_match=etag)
        except RequestError as error:
            if error.status != 501:  # a server that knows no conditions
                raise
            self._put(content)

    def _put(self, content: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> None:
        client, key = self._client, self._index_key
        with client.put_object(self._bucket, key, if_none_match=if_none_match, if_match=if_match) as writer:
            writer.write(content)

    def _note(self) -> None:
        made = unfinished.write_note(self._client, self._bucket, self._folder, self._index_key, self.shards, self.keys)
        self._notes.append(made)

    def _find_single(self) -> list[Known]:
        """Return the model of one object that has the name; an index beside it would be a second model."""
        try:
            return self._find([self._key])
        except AccessDeniedError:
            return []  # as for the index


def _delete_within(client: S3Client, bucket: str, keys: Sequence[str], within: float) -> None:
    access = client._access
    access.run([DeleteObject(access.bucket(bucket), key) for key in keys], within)
