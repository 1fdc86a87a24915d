"""What torch.load does, with few requests and, where that can be, straight into the memory of the tensors.

torch.load gets a file that serves the zip directory, the pickle and small storages from memory. Large storages come in
one of two ways:

1. *All at once*, when all tensors are made. The file only notes where each storage is to go, and one vectored read
   fills them. That needs a pickle that looks at no values while it is loaded, and storages that stay on the CPU: those
   that go elsewhere would be copied before their values are there.
2. *Ahead*, in the order of the file, for all others: tensors around tensors, such as DTensors, sparse ones, objects of
   any class, other devices, a function as ``map_location``, the other byte order. torch.load does what it always does.
   The storage that it asks for is received straight into its memory; those that follow are requested at the same time,
   held in memory of ours, and copied when their turn comes.

With ``checksums="strict"`` each record is compared with its CRC-32, and what lies in none is not handed out. A file
without them, as those of torch before 1.6, is read as a whole and compared with the object's own checksum.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from s3torch import _buffer
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch._progress import new_byte_bar
from s3torch.checkpoint.archive import Archive, reads_no_values
from s3torch.checkpoint.filling import Ahead, AtOnce, ElsewhereError, Fetcher, Location, Receive, check_crc32s
from s3torch.checkpoint.positioned import PositionedFile
from s3torch.config import S3ReaderConfig
from s3torch.errors import ArgumentTypeError, CheckpointFormatError, InvalidURIError, S3Error
from s3torch.readers import S3Reader, open_reader

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch.checkpoint.shared_file import SharedFile
    from s3torch.client import S3Client

__all__ = ["MapLocation", "check_map_location", "load_object", "load_opened"]

# What torch says of a file whose ``readinto`` has raised something.
_TORCH_ASKS_FOR_READ = "object has no attribute 'read'"

# What torch says where it makes tensors without storages, as under a FakeTensorMode.
_REFUSES_FUNCTIONS = "Callable map_location not supported"

# What torch's errors about an archive name, where nothing is wrong with what is in it.
_TORCHS_ARCHIVE = ("PytorchStreamReader", "inline_container.cc", "hasRecord(", "record size (")

MapLocation = Callable[[Any, str], Any] | Location


class _Later(PositionedFile):
    """The file that torch.load reads.

    Args:
        reader: Reads what was not read with the directory, and is no storage.
        archive: The records.
        size: Bytes of the file.
        storages: Fills the memory of large storages, or notes it.
        is_strict: Whether to hand out only what is proven, and the directory, which proves it.
    """

    def __init__(
        self, reader: S3Reader | SharedFile, archive: Archive, size: int, storages: AtOnce | Ahead, *, is_strict: bool
    ) -> None:
        super().__init__(size)
        self._reader = reader
        self._archive = archive
        self._storages = storages
        self._is_strict = is_strict
        self._error: BaseException | None = None

    def readinto(self, buffer: Buffer, /) -> int:
        try:
            return self._readinto(buffer)
        except BaseException as error:
            self._error = error  # torch drops it, an interrupt too, and asks for ``read`` instead
            raise

    def has_failed_before(self, error: Exception) -> bool:
        """Whether this error is only what torch made of one that a read has raised."""
        if self._error is None and _TORCH_ASKS_FOR_READ in str(error):
            self._error = KeyboardInterrupt()  # it came before the first line of ``readinto``: nothing else does
        return self._error is not None

    def taken_error(self) -> BaseException:
        """Return the error of the read that failed, and keep it no longer: its frames refer to this."""
        error, self._error = self._error, None
        if error is None:
            raise AssertionError("no error to take")
        return error

    def forget(self) -> None:
        """Drop all that it refers to."""
        self.__dict__.clear()

    def _readinto(self, buffer: Buffer) -> int:
        view = _buffer.writable_bytes(buffer)
        start, stop = self._position, min(self._position + len(view), self.size)
        record = self._archive.storages.get(start)
        if record is not None and record.stop == start + len(view):
            self._storages.read(record, view)
            self._position = stop
            return len(view)
        known = self._archive.fetched(start, stop) if stop > start else None
        if self._is_strict and not self._is_proven(start, stop, is_known=known is not None):
            raise CheckpointFormatError(f"its bytes [{start}, {stop}) are read as if they were a record, and are none.")
        if known is None:
            self._reader.seek(start)
            count = self._reader.readinto(view)
        else:
            count = len(known)
            view[:count] = known
        self._position = start + count
        return count

    def _is_proven(self, start: int, stop: int, *, is_known: bool) -> bool:
        if start >= self._archive.directory or stop == self.size:  # the directory's end is searched from the file's
            return True
        return is_known and self._archive.is_whole(start, stop)


def load_object(
    client: S3Client,
    bucket: str,
    key: str,
    *,
    version_id: str | None = None,
    map_location: MapLocation,
    weights_only: bool | None,
    progress: bool | None,
) -> Any:  # noqa: ANN401  # whatever was saved
    """Load what torch.save wrote; see ``S3Checkpoint.load``.

    Args:
        client: Sends the requests.
        bucket: Of the object.
        key: Of the object.
        version_id: The version to load; None for the newest.
        map_location: See ``S3Checkpoint.load``.
        weights_only: See ``S3Checkpoint.load``; None is what torch makes of it.
        progress: See ``S3Checkpoint.load``.
    """
    if not key:
        raise InvalidURIError(f"s3://{bucket} is a bucket and no checkpoint. Write 's3://bucket/key'.")
    remote = RemoteObject(client._access, bucket, key, version_id=version_id)

    def receive(
        ranges: Sequence[tuple[int, int]], views: Sequence[memoryview], progress: Callable[[int], object] | None
    ) -> None:
        remote.read_ranges(ranges, views, DEFAULT_MAX_GAP, progress)

    with open_reader(remote, S3ReaderConfig.adaptive()) as reader:
        return load_opened(
            reader,
            remote,
            receive,
            lambda: remote.read(0),
            map_location=map_location,
            weights_only=weights_only,
            progress=progress,
        )


def load_opened(
    reader: S3Reader | SharedFile,
    remote: RemoteObject,
    receive: Receive,
    read_all: Callable[[], bytes],
    *,
    map_location: MapLocation,
    weights_only: bool | None,
    progress: bool | None,
) -> Any:  # noqa: ANN401  # whatever was saved
    """Load what torch.save wrote from an object that is open.

    Args:
        reader: Of the object, for all that is little.
        remote: The object.
        receive: Receives its storages.
        read_all: Returns all of it, where nothing in it proves its bytes.
        map_location: See ``S3Checkpoint.load``.
        weights_only: See ``S3Checkpoint.load``; None is what torch makes of it.
        progress: See ``S3Checkpoint.load``.
    """
    check_map_location(map_location)
    call = _TorchLoad(map_location, weights_only)
    try:
        archive = Archive(reader, reader.read_ranges)
    except zipfile.BadZipFile:
        return _load_other(reader, read_all if remote.is_strict else None, call)
    except CheckpointFormatError as error:
        raise _named(error, remote) from None
    with _forgotten(archive):
        if remote.is_strict and not all(record.has_crc32 for record in archive.records()):
            return _load_whole(read_all, call)
        check_crc32s(archive.read, remote)
        size = sum(record.size for record in archive.storages.values())
        with new_byte_bar(f"Loading s3://{remote.bucket}/{remote.key}", size, is_wanted=progress) as bar:
            return _load_archive(reader, archive, remote, Fetcher(remote, receive, bar.update), call)


@dataclass(frozen=True)
class _TorchLoad:
    """A call of torch.load, but for its file.

    Attributes:
        map_location: See ``S3Checkpoint.load``.
        weights_only: See ``S3Checkpoint.load``; None is what torch makes of it.
    """

    map_location: MapLocation
    weights_only: bool | None

    def __call__(self, file: BinaryIO) -> Any:  # noqa: ANN401
        """Call it."""
        # Whatever torch.utils.serialization.config says of mmap: there is no file to map.
        return torch.load(file, map_location=self.map_location, weights_only=self.weights_only, mmap=False)


class _UsersFunction:
    """A user's ``map_location``.

    Attributes:
        error: What it has raised.
    """

    def __init__(self, function: Callable[[Any, str], Any]) -> None:
        self._function = function
        self.error: BaseException | None = None

    def __call__(self, storage: Any, location: str) -> Any:  # noqa: ANN401  # torch's types name another class
        """Call it."""
        try:
            return self._function(storage, location)
        except BaseException as error:
            self.error = error
            raise


def _load_archive(
    reader: S3Reader | SharedFile, archive: Archive, remote: RemoteObject, fetcher: Fetcher, call: _TorchLoad
) -> Any:  # noqa: ANN401
    """Load a file whose directory was read: all storages at once if that can be, or ahead."""

    def new_file(storages: AtOnce | Ahead) -> _Later:
        return _Later(reader, archive, remote.learn_size(), storages, is_strict=remote.is_strict)

    if not callable(call.map_location) and archive.is_native and reads_no_values(archive.pickle):
        at_once = AtOnce(call.map_location)
        try:
            with _forgotten(at_once), _damage_named(remote):
                loaded = _load_file(new_file(at_once), replace(call, map_location=at_once))
                at_once.fill(fetcher)
                return loaded
        except ElsewhereError:
            pass  # only plain tensors were made, and nothing was read for them
    # Not a share of the node's: ranks that load together must read in the same order.
    ahead = Ahead(fetcher, archive.storages.values(), remote.client_config.bytes_in_flight)
    with _forgotten(ahead), _damage_named(remote):
        return _load_file(new_file(ahead), call)


def _load_file(file: _Later, call: _TorchLoad) -> Any:  # noqa: ANN401
    """Run torch.load, and have what it raises for damaged bytes be a CheckpointFormatError.

    With ``weights_only=False`` what a class of the user's raises is raised as it is. If torch decides (None), no such
    class is called since torch 2.6, unless torch's variables in the environment allow it.
    """
    users = _UsersFunction(call.map_location) if callable(call.map_location) else None
    with _forgotten(file):
        try:
            return (replace(call, map_location=users) if users else call)(file)
        except RuntimeError as error:
            if file.has_failed_before(error):
                raise file.taken_error() from None
            if _REFUSES_FUNCTIONS in str(error) and isinstance(call.map_location, AtOnce):
                raise ElsewhereError from error
            if not any(name in str(error) for name in _TORCHS_ARCHIVE):
                raise
            raise CheckpointFormatError(str(error)) from error
        except (EOFError, LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
            if isinstance(error, S3Error):
                raise
            if file.has_failed_before(error):
                raise file.taken_error() from None
            if call.weights_only is False or (users is not None and error is users.error):
                raise
            raise CheckpointFormatError(str(error)) from error
        finally:
            if users is not None:
                users.error = None  # whose frames keep the client, in a cycle that the collector does not see through


@contextlib.contextmanager
def _forgotten(each: Archive | _Later | AtOnce | Ahead) -> Iterator[None]:
    """Empty what is kept by whoever keeps an error, and by torch if it was interrupted in the middle of a read."""
    try:
        yield
    finally:
        each.forget()


@contextlib.contextmanager
def _damage_named(remote: RemoteObject) -> Iterator[None]:
    """Name the object in errors of its format."""
    try:
        yield
    except CheckpointFormatError as error:
        raise _named(error, remote) from error


def _load_other(reader: S3Reader | SharedFile, read_all: Callable[[], bytes] | None, call: _TorchLoad) -> Any:  # noqa: ANN401
    """Load what is no zip archive: the format of torch before 1.6, or something damaged."""
    reader.seek(0)
    head = reader.read(2)
    if not head:
        raise CheckpointFormatError(
            f"s3://{reader.bucket}/{reader.key} is no checkpoint that can be loaded: it is empty.",
            bucket=reader.bucket,
            key=reader.key,
        )
    if head == b"PK":
        raise CheckpointFormatError(
            f"s3://{reader.bucket}/{reader.key} has no zip directory at its end: it is cut off or damaged.",
            bucket=reader.bucket,
            key=reader.key,
        )
    if read_all is not None:
        return _load_whole(read_all, call)
    reader.seek(0)
    return call(reader)


def _load_whole(read_all: Callable[[], bytes], call: _TorchLoad) -> Any:  # noqa: ANN401
    """Load a file that nothing in it proves.

    Raises:
        IntegrityError: It does not have the checksum of the object.
        UnverifiedError: The object has none.
    """
    return call(io.BytesIO(read_all()))


def check_map_location(map_location: object) -> None:
    """Check the argument of that name.

    Raises:
        ArgumentTypeError: It is none of the forms that torch.load takes.
    """
    if map_location is None or callable(map_location) or isinstance(map_location, (str, torch.device, dict)):
        return
    hint = f" Write torch.device({map_location}) for the device of that number." if type(map_location) is int else ""
    raise ArgumentTypeError(
        f"map_location must be a torch.device, a str, a dict of them or a function, got {map_location!r}.{hint}"
    )


def _named(error: Exception, remote: RemoteObject) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"s3://{remote.bucket}/{remote.key} is no checkpoint that can be loaded: {error}",
        bucket=remote.bucket,
        key=remote.key,
    )
