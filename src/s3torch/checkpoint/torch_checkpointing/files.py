"""What a path leads to: which object, of which version, or whether it is a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from s3torch.checkpoint.torch_checkpointing.commit import own_files
from s3torch.checkpoint.torch_checkpointing.identity import Identity
from s3torch.checkpoint.torch_checkpointing.marker import read_marker
from s3torch.checkpoint.torch_checkpointing.names import Manifest, Place, Saved, StoredFile
from s3torch.client import S3Client
from s3torch.errors import ArgumentError, NotFoundError, ObjectExistsError, ObjectNotFoundError

if TYPE_CHECKING:
    from s3torch._aws.listing import ObjectInfo

__all__ = ["Files"]

# Seconds for which the answer to a HEAD stands: the library asks whether a file exists, for its size and for its bytes,
# one right after the other. It is pinned by its ETag, so an object that was replaced meanwhile is an error.
_HEAD_STANDS = 10.0
# Checkpoints whose files are known at a time: a load reads from one.
_KNOWN = 16


class Files:
    """Finds files and folders. Threads may share it.

    Args:
        client: Sends the requests.
        identify: Returns the identity of the saves of this process; asked when something is written, so that who only
            reads needs no other rank.
        temp_dir_prefix: What the names of temporary folders begin with.
    """

    def __init__(self, client: S3Client, identify: Callable[[], Identity], temp_dir_prefix: str) -> None:
        self._client = client
        self._identify = identify
        self._identity: Identity | None = None
        self._written: dict[Place, set[str]] = {}
        self._temp_dir_prefix = temp_dir_prefix
        self._known: tuple[Manifest, ...] = ()  # the newest first; replaced whole, as threads share it
        self._heads: dict[Place, tuple[float, StoredFile]] = {}

    @property
    def identity(self) -> Identity:
        """Of the saves of this process."""
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    def written(self, folder: Place) -> set[str]:
        """Return the names of the files of a checkpoint that this process has begun to write, and not deleted."""
        return self._written.get(folder, set())

    def key_to_write(self, place: Place) -> str:
        """Return the key of the object that a file will be, if it is written now.

        Raises:
            ObjectExistsError: It is a file of a complete checkpoint.
            ArgumentError: The path names no file in a bucket.
        """
        staged = place.staged(self._temp_dir_prefix)
        if staged is not None:
            self._written.setdefault(staged.folder, set()).add(staged.name)
            return staged.new_key(self.identity.name)
        if not place.key:
            raise ArgumentError(f"{place.uri} is a bucket, and no file. Write 's3://bucket/folder/file'.")
        self.refuse_part_of_checkpoint(place)
        self._heads.pop(place, None)
        return place.key

    def refuse_part_of_checkpoint(self, place: Place) -> None:
        """Raise ObjectExistsError where a path leads to a file of a complete checkpoint."""
        if self.named(place) is not None:
            raise ObjectExistsError(
                f"{place.uri} is a file of a complete checkpoint, and can neither be replaced nor deleted alone. "
                "Delete the checkpoint by rmdir."
            )

    def known(self, place: Place) -> StoredFile | None:
        """Return the file of a complete checkpoint that a path leads to, if it is known without asking."""
        return next((found for manifest in self._known if (found := manifest.find(place))), None)

    def find(self, place: Place) -> StoredFile:
        """Return the file that a path leads to, by one HEAD at most.

        Raises:
            ObjectNotFoundError: There is none.
        """
        known = self.known(place)
        if known is not None:
            return known
        found = self.staged(place).get("") or self.head(place, is_fresh=False) or self.named(place)
        if found is None:
            raise self.not_found(place)
        return found

    def head(self, place: Place, *, is_fresh: bool) -> StoredFile | None:
        """Return the object of this very key; None if there is none.

        Args:
            place: Where.
            is_fresh: Whether an earlier HEAD does not count.
        """
        if not place.key:
            return None
        at, known = self._heads.get(place, (0.0, None))
        if known is not None and not is_fresh and time.monotonic() - at < _HEAD_STANDS:
            return known
        self._heads.pop(place, None)
        try:
            head = self._client.head_object(place.bucket, place.key)
        except NotFoundError:
            return None
        found = StoredFile(place.bucket, place.key, head.size, head.etag or None)
        if len(self._heads) > _KNOWN:
            self._heads.clear()
        self._heads[place] = time.monotonic(), found
        return found

    def named(self, place: Place) -> StoredFile | None:
        """Return the file of a complete checkpoint that a path leads to."""
        manifest = self._around(place)
        return None if manifest is None else manifest.find(place)

    def inner_names(self, place: Place) -> set[str]:
        """Return the names of files below a folder within a complete checkpoint; empty for a path that is a file."""
        around = self._around(place)
        if around is None:
            return set()
        inner = place.below(around.folder) or ""
        return {name[len(inner) + 1 :] for name in around.files if name == inner or name.startswith(f"{inner}/")}

    def _around(self, place: Place) -> Manifest | None:
        """Return the complete checkpoint that a path leads into; looks for markers in all folders above."""
        for parent in place.parents:
            manifest = next((each for each in self._known if each.folder == parent), None) or self.look_up(parent)
            if manifest is not None:
                return manifest
        return None

    def is_visible(self, place: Place) -> bool:
        """Whether anybody sees an object below a folder."""
        return next(self.visible(place), None) is not None

    def is_staged(self, place: Place) -> bool:
        """Whether a path is that of a temporary folder.

        It is, even if all files are gone that this process has written there: the library would take a save for done.
        """
        folder = place.renamed(self._temp_dir_prefix)
        return folder is not None and bool(self.written(folder) or own_files(self._client, folder, self.identity))

    def staged(self, place: Place) -> dict[str, StoredFile]:
        """Return the files of this save below a temporary folder, or a folder within it, by their names in there.

        The name is empty of the file that the path itself leads to.
        """
        for temporary in (place, *place.parents):
            folder = temporary.renamed(self._temp_dir_prefix)
            if folder is None:
                continue
            inner = place.below(temporary)
            found = {
                name[len(inner or "") :].lstrip("/"): file
                for name, file in own_files(self._client, folder, self.identity).items()
                if inner is None or name == inner or name.startswith(f"{inner}/")
            }
            if found:
                return found
        return {}

    def look_up(self, folder: Place) -> Manifest | None:
        """Read the marker of a folder anew, and remember it; None if there is none."""
        if not folder.key:
            return None
        manifest = read_marker(self._client, folder)
        if manifest is None:
            self._known = tuple(each for each in self._known if each.folder != folder)
        else:
            self.remember(manifest)
        return manifest

    def remember(self, manifest: Manifest) -> None:
        """Know what a marker says."""
        others = tuple(each for each in self._known if each.folder != manifest.folder)
        self._known = (manifest, *others[: _KNOWN - 1])

    def forget_written(self, place: Place) -> None:
        """Expect no more what this process has written into a temporary folder, or to a file within it."""
        folder, staged = place.renamed(self._temp_dir_prefix), place.staged(self._temp_dir_prefix)
        if folder is not None:
            self._written.pop(folder, None)
        if staged is not None:
            self.written(staged.folder).discard(staged.name)

    def forget(self, folder: Place) -> None:
        """Know nothing any more of what lies in a folder."""
        self._known = tuple(each for each in self._known if each.folder != folder and each.folder.below(folder) is None)
        self._heads.clear()

    def visible(self, place: Place) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder that anybody sees: not the files of saves, which only markers name."""
        for page in self._client.list_objects(place.bucket, place.prefix):
            for info in page.object_info:
                if Saved.parse(info.key) is None and info.key != place.prefix:
                    yield info

    def not_found(self, place: Place) -> ObjectNotFoundError:
        """Return the error of a path that leads nowhere."""
        return ObjectNotFoundError(
            f"{place.uri} does not exist, or its save was not completed.", bucket=place.bucket, key=place.key
        )
