"""S3Storage: what torch_checkpointing asks of a storage, done with objects. Nothing is ever copied to commit.

The library writes into ``run/tmp_step-1`` and renames that to ``run/step-1``. Here the files go to keys of their own at
once (``names.py``), and the rename is one conditional PUT: of the marker that names them. Until then nobody sees them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from torch_checkpointing.storage.base_storage import ReadArgs, Storage

from s3torch._objects.remote import RemoteObject
from s3torch._progress import new_byte_bar
from s3torch.checkpoint.torch_checkpointing.commit import commit, remove_folder
from s3torch.checkpoint.torch_checkpointing.files import Files
from s3torch.checkpoint.torch_checkpointing.fill import KeptMemory
from s3torch.checkpoint.torch_checkpointing.identity import Identity
from s3torch.checkpoint.torch_checkpointing.names import MARKER, Place, StoredFile, place_of
from s3torch.checkpoint.torch_checkpointing.watched import WatchedFile
from s3torch.client import S3Client
from s3torch.config import S3ReaderConfig
from s3torch.errors import ArgumentError, ObjectChangedError, ObjectExistsError, ObjectNotFoundError
from s3torch.readers import open_reader

if TYPE_CHECKING:
    from torch_checkpointing.storage.torch_serialization import MmapFill, MmapLike
    from typing_extensions import Buffer

    from s3torch.checkpoint.uploads import OnUpload
    from s3torch.writer import S3Writer

__all__ = ["S3Storage", "native_fill"]

_PathLike = str | os.PathLike[str]


class S3Storage(Storage):
    """The objects of a bucket as the files of ``torch_checkpointing``; made by ``S3StorageConfig.create_storage``.

    Every path is ``s3://bucket/key``, as a str or as what ``pathlib.Path`` makes of it (``s3:/bucket/key``). It can be
    shared by threads, and used after a fork.

    - A folder is there when it has a marker, or something below it that is there. A file that was written into a
      temporary folder (``temp_dir_prefix``) is seen in that folder only, and by the ranks of this save only.
    - What a marker names is read without asking for its size, and cannot be replaced or deleted alone.
    - Other files are objects at their own keys.

    Args:
        client: Sends the requests.
        identify: Returns the identity of the saves of this process; asked when something is written.
        reader_config: Which reader ``stream_read`` returns.
        temp_dir_prefix: What the names of temporary folders begin with.
        memory: Of ``mmap_fill``.
        progress: Whether ``mmap_fill`` and what is written show a bar; None shows one of ``mmap_fill`` on a terminal.
        on_upload: Is told of each file that is stored.
    """

    def __init__(
        self,
        client: S3Client,
        identify: Callable[[], Identity],
        *,
        reader_config: S3ReaderConfig,
        temp_dir_prefix: str,
        memory: KeptMemory,
        progress: bool | None,
        on_upload: OnUpload | None = None,
    ) -> None:
        self.client = client
        self._reader_config = reader_config
        self._temp_dir_prefix = temp_dir_prefix
        self._memory = memory
        self._progress = progress
        self._on_upload = on_upload
        self._files = Files(client, identify, temp_dir_prefix)

    def __repr__(self) -> str:
        return f"S3Storage({self.client!r})"

    @property
    def mmap_fill_workers(self) -> int:
        """One: a single read takes all connections by itself."""
        return 1

    def stream_read(self, path: _PathLike, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """Return a file to read.

        Args:
            path: Of the file.
            read_args: By default all of it is read at once, as the library has it, and always with
                ``checksums="strict"``; ``direct_io`` and the timeout are of other storages, and change nothing.

        Raises:
            ObjectNotFoundError: There is no such file.
            ObjectChangedError: It has another size than ``known_size_bytes``.
            S3Error: Any other failure.
        """
        args = read_args or ReadArgs()
        remote = self._remote(path, args.known_size_bytes)
        is_read = args.pre_read_full_file or remote.is_strict  # what is read in pieces is not verified
        file = io.BytesIO(remote.read(0)) if is_read else open_reader(remote, self._reader_config)
        return cast("io.RawIOBase", file)  # has all that a raw file has; the library's own returns a BytesIO, too

    def read(self, path: _PathLike, read_args: ReadArgs | None = None) -> bytes:
        """Return all of a file; see ``stream_read``."""
        return self._remote(path, None if read_args is None else read_args.known_size_bytes).read(0)

    def mmap_fill(self, expected: int, path: _PathLike, workers: int, chunk_bytes: int) -> MmapLike:
        """Receive a whole file by one read over all connections, into memory that the library makes tensors of.

        Args:
            expected: Its size in bytes.
            path: Of the file.
            workers: Of other storages; there are no threads here.
            chunk_bytes: Of other storages; the client's configuration says how large parts are.

        Returns:
            The memory. It serves another file when nothing refers to it any more.

        Raises:
            ObjectNotFoundError: There is no such file.
            ObjectChangedError: It has another size.
            S3Error: Any other failure.
        """
        del workers, chunk_bytes
        remote = self._remote(path, expected)
        mapped, view = self._memory.take(expected)
        try:
            with view, new_byte_bar(f"Loading {place_of(path).uri}", expected, is_wanted=self._progress) as bar:
                remote.read_ranges([(0, expected)], [view], 0, bar.update)
        except BaseException:
            del mapped  # whoever keeps the error keeps this frame
            raise
        return mapped

    def stream_write(self, path: _PathLike) -> io.IOBase:
        """Return a file to write, which is there when it is closed, and not if ``with`` is left by an exception.

        Raises:
            ObjectExistsError: It is a file of a complete checkpoint.
            InvalidURIError: The path names no file in a bucket.
        """
        return cast("io.IOBase", self._written(place_of(path), None))  # has all of one

    def write(self, path: _PathLike, data: Buffer) -> None:
        """Write a file; see ``stream_write``."""
        with self._written(place_of(path), len(memoryview(data).cast("B"))) as file:
            file.write(data)

    def _written(self, place: Place, size: int | None) -> S3Writer | WatchedFile:
        """Return a file to write, of which bars and ``on_upload`` are told if there are any."""
        key = self._files.key_to_write(place)  # which may ask for markers

        def opened() -> S3Writer:
            return self.client.put_object(place.bucket, key)

        if not self._progress and self._on_upload is None:
            return opened()
        return WatchedFile(self.client, opened, f"Saving {place.uri}", size, self._progress, self._on_upload)

    def mkdir(self, path: _PathLike, recursive: bool = True) -> None:  # noqa: FBT001, FBT002  # the library's
        """Do nothing but look at the path: S3 has no folders."""
        del recursive
        place_of(path)

    def delete(self, path: _PathLike) -> None:
        """Delete a file.

        Raises:
            ObjectNotFoundError: There is none.
            ObjectExistsError: It is a file of a complete checkpoint, which only ``rmdir`` deletes.
        """
        place = place_of(path)
        self._files.refuse_part_of_checkpoint(place)
        self._files.forget_written(place)
        stored = self._files.find(place)
        self._files.forget(place)
        self.client.delete_object(stored.bucket, stored.key)

    def rmdir(self, path: _PathLike) -> None:
        """Delete a folder and all in it, first what makes it a checkpoint.

        Of a temporary folder that is what no marker names. What is being saved under the name of this folder stays.

        Raises:
            ObjectNotFoundError: There is nothing.
            S3Error: Something could not be deleted; to call it again goes on.
        """
        place = place_of(path)
        self._files.forget(place)
        self._files.forget_written(place)
        staged = place.renamed(self._temp_dir_prefix)
        if staged is not None and remove_folder(self.client, staged, is_staged=True):
            return
        if not remove_folder(self.client, place, is_staged=False):
            raise self._files.not_found(place)

    def rename(
        self,
        src_path: _PathLike,
        dst_path: _PathLike,
        is_directory: bool = False,  # noqa: FBT001, FBT002  # the library's
        background_cleanup: bool = False,  # noqa: FBT001, FBT002  # the library's
    ) -> None:
        """Make the files of a temporary folder a checkpoint, or give a file another name.

        The first is one PUT, on the condition that there is no checkpoint yet. Afterwards what earlier saves of this
        name have left is deleted; that it could not be is logged only. The second copies the object.

        Args:
            src_path: The temporary folder, or the file.
            dst_path: The folder without the prefix, or the new name.
            is_directory: Tells nothing new.
            background_cleanup: Nothing is copied that would have to be cleaned up.

        Raises:
            ObjectExistsError: There is a checkpoint, or anything else, under that name. It is unchanged.
            ObjectNotFoundError: There is nothing to rename.
            ArgumentError: It is a folder that is no temporary one, or is to get another name than it was made for.
            S3Error: Any other failure. There may be a checkpoint then, if the answer to the PUT was lost; if there is
                one, it is complete.
        """
        del is_directory, background_cleanup
        source, destination = place_of(src_path), place_of(dst_path)
        self._files.forget(destination)
        folder = source.renamed(self._temp_dir_prefix)
        if folder is not None and self._files.is_staged(source):
            if folder != destination:
                raise ArgumentError(
                    f"{source.uri} can become {folder.uri} only, not {destination.uri}: its files are there already."
                )
            written = self._files.written(folder)
            self._files.remember(commit(self.client, source, folder, self._files.identity, written))
            self._files.forget_written(source)
            return
        try:
            stored = self._files.find(source)
        except ObjectNotFoundError:
            if self.isdir(source.uri):
                raise ArgumentError(
                    f"{source.uri} cannot be renamed: S3 has no folders. Only what was written below one whose name "
                    f"begins with {self._temp_dir_prefix!r} (temp_dir_prefix) can become a checkpoint without a copy."
                ) from None
            raise
        self._rename_file(stored, source, destination)

    def _rename_file(self, stored: StoredFile, source: Place, destination: Place) -> None:
        if source == destination:
            return  # to delete it would lose it
        self._files.refuse_part_of_checkpoint(source)
        if self.isdir(destination.uri):
            raise ObjectExistsError(f"{destination.uri} is a folder, and {source.uri} a file: it was not renamed.")
        self.client.copy_object(stored.bucket, stored.key, destination.bucket, self._files.key_to_write(destination))
        self._files.forget(source)
        self._files.forget_written(source)
        self.client.delete_object(stored.bucket, stored.key)

    def ls(self, path: _PathLike) -> list[str]:
        """Return the names of what is right below a folder.

        Raises:
            ObjectNotFoundError: There is no such folder.
        """
        place = place_of(path)
        names = set(self._files.staged(place)) - {""}
        if not names:
            manifest = self._files.look_up(place)
            # That of the marker counts: there may be no other file.
            names = self._files.inner_names(place) - {""} if manifest is None else {*manifest.files, MARKER}
            names.update(info.key[len(place.prefix) :] for info in self._files.visible(place))
        if not names:
            raise self._files.not_found(place)
        return sorted({name.partition("/")[0] for name in names} - {MARKER})

    def exists(self, path: _PathLike) -> bool:
        """Whether there is such a file or folder. A folder of a save that was not completed is not there.

        Raises:
            S3Error: It cannot be told, as when access is denied.
        """
        place = place_of(path)
        return (
            self._files.known(place) is not None
            or self._files.is_staged(place)
            or bool(self._files.staged(place))
            or self._files.look_up(place) is not None
            or self._files.head(place, is_fresh=True) is not None
            or bool(self._files.inner_names(place))
            or self._files.is_visible(place)
        )

    def getsize(self, path: _PathLike) -> int:
        """Return the size of a file in bytes.

        Raises:
            ObjectNotFoundError: There is no such file.
        """
        return self._files.find(place_of(path)).size

    def isdir(self, path: _PathLike) -> bool:
        """Whether it is a folder; see ``exists``."""
        place = place_of(path)
        return (
            self._files.is_staged(place)
            or bool(self._files.staged(place).keys() - {""})
            or self._files.look_up(place) is not None
            or bool(self._files.inner_names(place) - {""})
            or self._files.is_visible(place)
        )

    def remap_path(self, path: _PathLike) -> str:
        """Return a path as a URI, ``s3://bucket/key``. A file of a checkpoint is not an object of that key."""
        return place_of(path).uri

    def _remote(self, path: _PathLike, known_size: int | None) -> RemoteObject:
        place = place_of(path)
        stored = self._files.find(place)
        if known_size is not None and known_size != stored.size:
            raise ObjectChangedError(
                f"{place.uri} has {stored.size} bytes, and was said to have {known_size}: it was replaced."
            )
        return RemoteObject(
            self.client._access,  # the same package
            stored.bucket,
            stored.key,
            size=stored.size,
            etag=stored.etag,
        )


def native_fill(storage: Storage) -> MmapFill | None:
    """Return what fills the memory of loaded files, for ``CheckpointReader(..., mmap_fill_factory=native_fill)``.

    Args:
        storage: Of the reader.

    Returns:
        None for the storages of others: the library fills the memory itself then.
    """
    return storage.mmap_fill if isinstance(storage, S3Storage) else None
