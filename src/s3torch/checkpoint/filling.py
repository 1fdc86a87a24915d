"""How the memory of large storages is filled while torch.load makes tensors of them; see ``loading``."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from s3torch._objects.remote import RemoteObject
from s3torch._transfer.buffers import BytesBuffer
from s3torch.checkpoint.archive import Record
from s3torch.checkpoint.storages import memory
from s3torch.errors import IntegrityError

__all__ = ["Ahead", "AtOnce", "ElsewhereError", "Fetcher", "Location", "Receive", "check_crc32s"]

# What names a device, or devices by other devices; None is the device that a storage was saved from.
Location = torch.device | str | dict[str, str] | None
# Fills memory with ranges of the object, and tells how many bytes more have arrived.
Receive = Callable[[Sequence[tuple[int, int]], Sequence[memoryview], Callable[[int], object] | None], None]


class ElsewhereError(Exception):
    """A storage goes to another device than the CPU: it cannot be filled later."""


class Fetcher:
    """Reads storages into memory.

    Args:
        remote: The object.
        receive: Receives ranges of it.
        progress: Is told of bytes as they have arrived.
    """

    def __init__(self, remote: RemoteObject, receive: Receive, progress: Callable[[int], object]) -> None:
        self._remote = remote
        self._receive = receive
        self._progress = progress

    def fetch(self, records: Sequence[Record], views: Sequence[memoryview]) -> None:
        """Read storages, all at once.

        Raises:
            CheckpointFormatError: One does not lie where it was guessed to.
            IntegrityError: One does not have its CRC-32, and ``checksums`` are "strict".
        """
        guessed = [record for record in records if record.is_guess]
        headers = [memoryview(bytearray(record.start - record.header)) for record in guessed]
        ranges = [(record.header, record.start) for record in guessed]
        ranges += [(record.start, record.stop) for record in records]
        self._receive(ranges, [*headers, *views], self._progress)
        for record, header in zip(guessed, headers, strict=True):
            record.check_header(header)
        check_crc32s(zip(records, views, strict=True), self._remote)


def check_crc32s(contents: Iterable[tuple[Record, memoryview]], remote: RemoteObject) -> None:
    """Compare records with the CRC-32 that was noted, if ``checksums`` are "strict".

    Raises:
        IntegrityError: One has another.
    """
    if not remote.is_strict:
        return
    for record, content in contents:
        if not record.is_intact(content):
            raise IntegrityError(
                f"{record.name!r} in s3://{remote.bucket}/{remote.key} does not have the CRC-32 that "
                "torch.save noted: it was damaged where it is stored, or saved without.",
                bucket=remote.bucket,
                key=remote.key,
            )


class AtOnce:
    """Notes which storages are to be read, and reads them when all are there: is torch.load's ``map_location``.

    Args:
        map_location: The user's.
    """

    def __init__(self, map_location: Location) -> None:
        self._map_location = map_location
        self._due: tuple[Record, int] | None = None
        self._waiting: list[tuple[Record, torch.UntypedStorage]] = []

    def read(self, record: Record, view: memoryview) -> None:
        """Note that a storage was asked for, and where it is to go."""
        self._check_none_is_due()
        self._due = record, ctypes.addressof(ctypes.c_char.from_buffer(view))

    def __call__(self, storage: Any, location: str) -> Any:  # noqa: ANN401  # torch's types name another class
        """Keep a storage that was asked for.

        Raises:
            ElsewhereError: It goes to another device.
        """
        due, self._due = self._due, None
        if self._destination(location) != "cpu":
            raise ElsewhereError
        if due is not None:
            record, address = due
            if (storage.data_ptr(), storage.nbytes()) != (address, record.size):
                raise AssertionError(f"{record.name} was read into other memory than its storage's")
            self._waiting.append((record, storage))
        return storage

    def fill(self, fetcher: Fetcher) -> None:
        """Read all storages that were asked for."""
        self._check_none_is_due()
        waiting, self._waiting = self._waiting, []
        fetcher.fetch([record for record, _ in waiting], [memory(storage) for _, storage in waiting])

    def forget(self) -> None:
        """Drop all that it refers to."""
        self.__dict__.clear()

    def _check_none_is_due(self) -> None:
        if self._due is not None:
            raise AssertionError(f"{self._due[0].name} was read and never used")

    def _destination(self, location: str) -> str:
        """Return the device that a storage goes to."""
        wanted = self._map_location
        if isinstance(wanted, dict):
            wanted = wanted.get(location, location)
        return location if wanted is None else str(wanted)


class Ahead:
    """Reads storages in the order of the file, ahead of who asks for them.

    Args:
        fetcher: Reads them.
        records: All of them.
        size: Bytes that are held at most, beside the storage that was asked for.
    """

    def __init__(self, fetcher: Fetcher, records: Iterable[Record], size: int) -> None:
        self._fetcher = fetcher
        self._records = sorted(records, key=lambda record: record.start)
        self._starts = [record.start for record in self._records]
        self._size = size
        self._held = _Held([])

    def read(self, record: Record, view: memoryview) -> None:
        """Fill the memory of a storage."""
        if self._held.take(record, view):
            return
        self._held = _Held([])  # what nobody asked for goes before more is read
        held = _Held(self._following(record))
        self._fetcher.fetch([record, *held.records], [view, *held.views()])
        self._held = held

    def forget(self) -> None:
        """Drop all that it refers to."""
        self.__dict__.clear()

    def _following(self, record: Record) -> list[Record]:
        """Return the storages behind one that there is room for."""
        found: list[Record] = []
        room = self._size
        for each in self._records[bisect_right(self._starts, record.start) :]:
            room -= each.size
            if room < 0:
                break
            found.append(each)
        return found


class _Held:
    """Storages in memory of ours, each until it is taken.

    Args:
        records: Of the storages.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self._buffers = {record.start: BytesBuffer(record.size) for record in records}

    def views(self) -> list[memoryview]:
        """Return the memory of each."""
        return [self._buffers[record.start].view for record in self.records]

    def take(self, record: Record, into: memoryview) -> bool:
        """Copy a storage, which is held no longer; returns whether it was held."""
        buffer = self._buffers.pop(record.start, None)
        if buffer is None:
            return False
        into[:] = buffer.view
        return True
