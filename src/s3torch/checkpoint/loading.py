"""What torch.load does, with all storages read at once and straight into the memory of their tensors.

torch.load gets a file that serves the zip directory, the pickle and small storages from memory, and only notes where
each large storage is to go. When all tensors are made, one vectored read fills them. A storage is read on the spot
where that would be too late: if it goes to another device, or if the pickle names something that might look at values.
Tensors that torch does not make where ``map_location`` is a function, as it is here, are left to torch.load alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from s3torch import _buffer
from s3torch._aws.checksums import crc32
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch._progress import new_byte_bar
from s3torch.checkpoint.archive import Archive, Record, reads_no_values
from s3torch.checkpoint.storages import memory
from s3torch.config import S3ReaderConfig
from s3torch.errors import CheckpointFormatError, IntegrityError, InvalidURIError, S3Error
from s3torch.readers import S3Reader, open_reader

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch.checkpoint.shared_file import SharedFile
    from s3torch.client import S3Client

__all__ = ["MapLocation", "load_object", "load_opened"]

# What refuses a function: torch._utils._get_restore_location says so. The first makes DTensors, among others.
_REFUSES_FUNCTIONS = (b"_rebuild_wrapper_subclass", b"_rebuild_device_tensor_from_numpy")

# What torch says of a file whose ``readinto`` has raised something.
_TORCH_ASKS_FOR_READ = "object has no attribute 'read'"

MapLocation = Callable[[Any, str], Any] | torch.device | str | dict[str, str] | None
# Fills memory with ranges of the object, and tells how many bytes more have arrived.
Receive = Callable[[Sequence[tuple[int, int]], Sequence[memoryview], Callable[[int], object] | None], None]


if TYPE_CHECKING:

    class _File(io.RawIOBase, BinaryIO):
        """A binary file, as type checkers are to see it."""

else:
    _File = io.RawIOBase


class _Later(_File):
    """The file that torch.load reads.

    Attributes:
        due: The storage that was asked for last and is not read yet, and the address where it is to go.
    """

    def __init__(self, reader: S3Reader | SharedFile, archive: Archive, size: int) -> None:
        super().__init__()
        self.due: tuple[Record, int] | None = None
        self._reader = reader
        self._archive = archive
        self._error: BaseException | None = None
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

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
        start, stop = self._position, min(self._position + len(view), self._size)
        record = self._archive.storages.get(start)
        if record is not None and record.stop == start + len(view):
            if self.due is not None:
                raise AssertionError(f"{self.due[0].name} was read and never used")
            self.due = record, ctypes.addressof(ctypes.c_char.from_buffer(view))
            self._position = stop
            return len(view)
        known = self._archive.fetched(start, stop) if stop > start else None
        if known is None:
            self._reader.seek(start)
            count = self._reader.readinto(view)
        else:
            count = len(known)
            view[:count] = known
        self._position = start + count
        return count


class _Filler:
    """The storages to fill: gets each from torch.load as its ``map_location``.

    Args:
        file: That torch.load reads.
        remote: The object.
        receive: Receives its storages.
        map_location: The user's.
        fills_later: Whether storages that stay on the CPU may be filled when all are there.
        checks: Whether to compare what arrives with the CRC-32 of the zip directory.

    Attributes:
        file: That torch.load reads.
        users_error: What the user's function has raised.
    """

    def __init__(
        self,
        file: _Later,
        remote: RemoteObject,
        receive: Receive,
        map_location: MapLocation,
        *,
        fills_later: bool,
        checks: bool,
    ) -> None:
        self.file = file
        self._remote = remote
        self._receive = receive
        self._map_location = map_location
        self._fills_later = fills_later
        self._checks = checks
        self.users_error: BaseException | None = None
        self._waiting: list[tuple[Record, torch.UntypedStorage]] = []

    def __call__(self, storage: Any, location: str) -> Any:  # noqa: ANN401  # torch's types name another class
        """Fill a storage, or put it on the list, and map it as the user wants."""
        due, self.file.due = self.file.due, None
        if due is not None:
            record, address = due
            if (storage.data_ptr(), storage.nbytes()) != (address, record.stop - record.start):
                raise AssertionError(f"{record.name} was read into other memory than its storage's")
            self._waiting.append((record, storage))
            if not self._fills_later or self._destination(location) != "cpu":
                self.fill(None)
        return self._mapped(storage, location)

    def forget(self) -> None:
        """Drop all that it refers to."""
        self.__dict__.clear()

    def fill(self, progress: Callable[[int], object] | None) -> None:
        """Read all storages on the list.

        Args:
            progress: Is told of bytes as they have arrived.
        """
        waiting, self._waiting = self._waiting, []
        guessed = [record for record, _ in waiting if record.is_guess]
        headers = [memoryview(bytearray(record.start - record.header)) for record in guessed]
        views = [memory(storage) for _, storage in waiting]
        ranges = [(record.header, record.start) for record in guessed]
        ranges += [(record.start, record.stop) for record, _ in waiting]
        self._receive(ranges, [*headers, *views], progress)
        for record, header in zip(guessed, headers, strict=True):
            record.check_header(header)
        for (record, _), view in zip(waiting, views, strict=True):
            if self._checks and crc32(view) != record.crc32:
                raise IntegrityError(
                    f"{record.name!r} in s3://{self._remote.bucket}/{self._remote.key} does not have the CRC-32 that "
                    "torch.save noted: it was damaged where it is stored, or saved without.",
                    bucket=self._remote.bucket,
                    key=self._remote.key,
                )

    @property
    def waiting_bytes(self) -> int:
        """Bytes that ``fill`` will read."""
        return sum(record.stop - record.start for record, _ in self._waiting)

    def _destination(self, location: str) -> str | None:
        """Return the device that a storage goes to; None if only the user's function knows."""
        wanted = self._map_location
        if isinstance(wanted, dict):
            wanted = wanted.get(location, location)
        if wanted is None:
            return location
        return str(wanted) if isinstance(wanted, (str, torch.device)) else None

    def _mapped(self, storage: torch.UntypedStorage, location: str) -> Any:  # noqa: ANN401
        if callable(self._map_location):
            try:
                return self._map_location(storage, location)
            except BaseException as error:
                self.users_error = error
                raise
        destination = self._destination(location)
        if destination == "cpu":
            return storage
        return torch.serialization.default_restore_location(storage, destination)  # type: ignore[no-untyped-call]


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
        ranges: Sequence[tuple[int, int]],
        views: Sequence[memoryview],
        progress: Callable[[int], object] | None,
    ) -> None:
        remote.read_ranges(ranges, views, DEFAULT_MAX_GAP, progress)

    with open_reader(remote, S3ReaderConfig.adaptive()) as reader:
        return load_opened(
            reader, remote, receive, map_location=map_location, weights_only=weights_only, progress=progress
        )


def load_opened(
    reader: S3Reader | SharedFile,
    remote: RemoteObject,
    receive: Receive,
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
        map_location: See ``S3Checkpoint.load``.
        weights_only: See ``S3Checkpoint.load``; None is what torch makes of it.
        progress: See ``S3Checkpoint.load``.
    """
    try:
        archive = Archive(reader, reader.read_ranges)
    except zipfile.BadZipFile:
        return _load_other(reader, map_location, weights_only)
    except CheckpointFormatError as error:
        raise _named(error, remote) from None
    if any(name in (archive.pickle or b"") for name in _REFUSES_FUNCTIONS):
        reader.seek(0)
        return torch.load(reader, map_location=map_location, weights_only=weights_only)
    file = _Later(reader, archive, remote.learn_size())
    is_blind = archive.pickle is not None and reads_no_values(archive.pickle)
    del archive  # whoever keeps an error keeps this frame
    filler = _Filler(
        file, remote, receive, map_location, fills_later=is_blind, checks=remote.client_config.checksums == "strict"
    )
    try:
        with _damage_named(remote, filler, weights_only=weights_only):
            loaded = torch.load(file, map_location=filler, weights_only=weights_only)
            if file.due is not None:
                raise AssertionError(f"{file.due[0].name} was read and never used")
            uri = f"s3://{remote.bucket}/{remote.key}"
            with new_byte_bar(f"Loading {uri}", filler.waiting_bytes, is_wanted=progress) as bar:
                filler.fill(bar.update)
    finally:
        for each in (file, filler):  # torch keeps them for ever if it was interrupted in the middle of a read
            each.forget()
    return loaded


def _load_other(reader: S3Reader | SharedFile, map_location: MapLocation, weights_only: bool | None) -> Any:  # noqa: ANN401, FBT001
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
    reader.seek(0)
    return torch.load(reader, map_location=map_location, weights_only=weights_only)


@contextlib.contextmanager
def _damage_named(remote: RemoteObject, filler: _Filler, *, weights_only: bool | None) -> Iterator[None]:
    """Name the object in what torch raises for a damaged file; whatever else its pickle might call raises as it is.

    If torch decides (None), nothing else is called since torch 2.6, unless its variables in the environment allow it.
    """
    try:
        yield
    except CheckpointFormatError as error:
        raise _named(error, remote) from error
    except S3Error:
        raise
    except RuntimeError as error:
        if filler.file.has_failed_before(error):
            raise filler.file.taken_error() from None
        if "PytorchStreamReader" not in str(error):
            raise
        raise _named(error, remote) from error
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        if filler.file.has_failed_before(error):
            raise filler.file.taken_error() from None
        if weights_only is False or error is filler.users_error:
            raise
        raise _named(error, remote) from error


def _named(error: Exception, remote: RemoteObject) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"s3://{remote.bucket}/{remote.key} is no checkpoint that can be loaded: {error}",
        bucket=remote.bucket,
        key=remote.key,
    )
