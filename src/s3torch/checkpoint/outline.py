"""What torch.save writes, without the bytes of the storages: they can be sent from where they are.

``torch.serialization.skip_data`` has torch.save leave holes where the storages belong. Everything around them is small:
headers, the pickle, the directory. Only the CRC-32 of each storage is missing there, in the descriptor behind it and in
its entry of the directory; it is known once the storage was sent. What is pickled is pickled before that begins: an
object may well call torch.save for its own state, whose bytes must be there.

The last record, ``.data/serialization_id``, is torch's fingerprint of the file: twenty digits of the names of the
records, and twenty of their CRC-32s. With holes, those of all states of the same shapes would be equal. So the second
half is made again when the CRC-32s are known, as torch makes it.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html#torch.serialization.skip_data, APPNOTE.TXT 4.3.9
and 4.3.12 for the two places of the CRC-32, and PyTorchStreamWriter::writeSerializationId of torch's
caffe2/serialize/inline_container.cc for the fingerprint.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch

from s3torch.checkpoint.storages import memory

__all__ = ["File", "Outline", "torch_save"]

_DESCRIPTOR = b"PK\x07\x08"
_ENTRY = struct.Struct("<4s6H3I5H2I")
_ENTRY_SIGNATURE = b"PK\x01\x02"
_CRC32_OF_DESCRIPTOR, _CRC32_OF_ENTRY = 4, 16  # where it stands
# How torch's errors begin that are about the archive, not about what is saved.
_UNFINISHED = "inline_container.cc"
_STORAGE = re.compile(rb"[^/]+/data/([^/]+)")
_ID = re.compile(rb"[^/]+/\.data/serialization_id")
_DIGITS = re.compile(rb"\d{40}")  # of the id: twenty of the names, twenty of the CRC-32s


class _Entry(NamedTuple):
    """What the directory says of a record, and where its CRC-32 stands there."""

    name: bytes
    size: int
    crc32: int
    place: int


class File(Protocol):
    """What an outline is written to: an S3Writer."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401  # any buffer
        """Write a copy of bytes."""

    def write_lasting(self, data: Any, /) -> int:  # noqa: ANN401  # any buffer
        """Write bytes that stay as they are; returns their CRC-32."""


class Outline:
    """The file that torch.save would write, with the storages in their places.

    Args:
        pieces: Bytes of the file, and storages, in order.
        keys: Of the storages, as their names in the file end.
    """

    def __init__(self, pieces: list[bytes | torch.UntypedStorage], keys: list[bytes]) -> None:
        self._pieces = pieces
        self._keys = keys

    @classmethod
    def of(cls, obj: object) -> Outline | None:
        """Return the outline of an object; None if torch has no such thing, or another one than is known here."""
        skip_data = getattr(torch.serialization, "skip_data", None)
        if skip_data is None:
            return None
        sparse = _SparseFile()
        with ExitStack() as skipping:
            pickling = _Pickling(lambda: skipping.enter_context(skip_data()))
            torch_save(obj, sparse, pickle_module=pickling.module)
        kept = [(key, storage) for key, storage in pickling.storages.items() if storage.nbytes()]
        if [storage.nbytes() for _, storage in kept] != sparse.holes:
            return None
        storages = iter([storage for _, storage in kept])
        pieces = [next(storages) if piece is None else piece for piece in sparse.pieces]
        outline = cls(pieces, [key.encode() for key, _ in kept])
        return outline if outline._is_understood() else None

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return sum(piece.nbytes() if isinstance(piece, torch.UntypedStorage) else len(piece) for piece in self._pieces)

    @property
    def storages(self) -> list[torch.UntypedStorage]:
        """The storages, in order."""
        return [piece for piece in self._pieces if isinstance(piece, torch.UntypedStorage)]

    def with_storages(self, storages: Iterable[torch.UntypedStorage]) -> Outline:
        """Return the outline of the same file with other storages of the same sizes."""
        others = iter(storages)
        return Outline([piece if isinstance(piece, bytes) else next(others) for piece in self._pieces], self._keys)

    def without_storages(self) -> tuple[list[bytes | int], list[bytes]]:
        """Return the pieces, with the size of each storage in its place, and the keys."""
        return [piece if isinstance(piece, bytes) else piece.nbytes() for piece in self._pieces], self._keys

    @classmethod
    def of_pieces(
        cls, pieces: Iterable[bytes | int], keys: list[bytes], storages: Iterable[torch.UntypedStorage]
    ) -> Outline:
        """Return the outline of what ``without_storages`` has returned, with storages of these sizes."""
        others = iter(storages)
        return cls([piece if isinstance(piece, bytes) else next(others) for piece in pieces], keys)

    def write_to(self, file: File, count: Callable[[int], object]) -> None:
        """Write the whole file.

        Args:
            file: Keeps the storages that are in the memory of the CPU where they are.
            count: Is told how many bytes more were written.
        """
        number_of_id = self._number_of_id()
        crc32s: list[int] = []
        awaited: int | None = None  # the CRC-32 of what the next piece describes
        for number, piece in enumerate(self._pieces):
            if isinstance(piece, torch.UntypedStorage):
                awaited = file.write_lasting(memory(piece if piece.device.type == "cpu" else piece.cpu()))  # type: ignore[no-untyped-call]
                crc32s.append(awaited)
                count(piece.nbytes())
                continue
            if awaited is not None:
                content = _with_crc32s(piece, [(_CRC32_OF_DESCRIPTOR, awaited)])
                awaited = None
            elif number == number_of_id:
                content = self._id(piece, crc32s)
                awaited = zlib.crc32(content)
                crc32s.append(awaited)
            elif piece.startswith(_ENTRY_SIGNATURE):
                content = _with_crc32s(piece, zip(self._places() or (), crc32s, strict=True))
            else:
                content = piece
            count(file.write(content))

    def _is_understood(self) -> bool:
        """Whether the CRC-32 of each storage, and of the id behind them, has its two places."""
        number = self._number_of_id()
        behind = [
            right
            for at, (left, right) in enumerate(pairwise(self._pieces))
            if isinstance(left, torch.UntypedStorage) or at == number
        ]
        return (
            number is not None
            and not any(isinstance(piece, torch.UntypedStorage) for piece in self._pieces[number:])
            and len(behind) == len(self._keys) + 1
            and all(isinstance(piece, bytes) and piece.startswith(_DESCRIPTOR) for piece in behind)
            and self._places() is not None
        )

    def _number_of_id(self) -> int | None:
        """Return which piece is the id: the one between its name, a few fields behind that, and its descriptor."""
        names = [at for at, piece in enumerate(self._pieces) if isinstance(piece, bytes) and _ID.fullmatch(piece)]
        if len(names) != 1:
            return None
        for at in range(names[0] + 1, len(self._pieces)):
            piece = self._pieces[at]
            if isinstance(piece, torch.UntypedStorage) or piece.startswith(_DESCRIPTOR):
                return None
            if _DIGITS.fullmatch(piece):
                return at
        return None

    def _id(self, piece: bytes, crc32s: Iterable[int]) -> bytes:
        """Return the id of the file, whose storages have these CRC-32s, as torch would have written it."""
        of_storages = iter(crc32s)
        combined = 0
        for entry in self._entries():
            if entry.size and not _ID.fullmatch(entry.name):
                crc32 = next(of_storages) if _STORAGE.fullmatch(entry.name) else entry.crc32
                combined = _hash_combine(combined, crc32)
        return piece[:20] + b"%020d" % combined

    def _places(self) -> list[int] | None:
        """Return where the CRC-32s of the storages stand in the directory, and of the id; None if not in order."""
        entries = self._entries()
        storages = [(match[1], entry) for entry in entries if entry.size and (match := _STORAGE.fullmatch(entry.name))]
        ids = [entry.place for entry in entries if _ID.fullmatch(entry.name)]
        if len(ids) != 1 or [key for key, _ in storages] != self._keys or any(entry.crc32 for _, entry in storages):
            return None
        return [entry.place for _, entry in storages] + ids

    def _entries(self) -> list[_Entry]:
        """Return what the directory says; nothing if there is none, or more than one."""
        found = [piece for piece in self._pieces if isinstance(piece, bytes) and piece.startswith(_ENTRY_SIGNATURE)]
        return list(_entries_of(found[0])) if len(found) == 1 else []


def torch_save(obj: object, file: Any, **options: Any) -> None:  # noqa: ANN401  # as torch.save takes them
    """Run torch.save, and raise what a write or an interrupt has raised in its middle.

    Then torch ends the archive all the same, and raises that it cannot: "unexpected pos".
    """
    cause = None
    try:
        torch.save(obj, file, **options)
    except RuntimeError as error:
        cause = error.__context__ if _UNFINISHED in str(error) else None
        if cause is None:
            raise
    if cause is not None:
        try:
            raise cause
        finally:
            del cause  # a frame that raised one of its own variables would be a cycle


class _SparseFile:
    """A file that keeps what is written, and notes what is skipped.

    Attributes:
        pieces: What was written, one after the other; None stands for what was skipped.
        holes: How many bytes were skipped, each time.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes | None] = []
        self.holes: list[int] = []
        self._position = 0

    def write(self, data: Any, /) -> int:  # noqa: ANN401  # any buffer
        self.pieces.append(bytes(data))
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_CUR or offset <= 0:
            raise io.UnsupportedOperation(f"seek({offset}, {whence}) in a file that only grows")
        self.pieces.append(None)
        self.holes.append(offset)
        self._position += offset
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass


class _Pickling:
    """Notes the storages that torch.save puts beside its pickle.

    Args:
        then: Called when the pickle is complete.

    Attributes:
        module: For ``torch.save(pickle_module=...)``.
        storages: By their key, in the order in which they are saved.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        self.storages: dict[str, torch.UntypedStorage] = {}
        noting = self

        class Pickler(pickle.Pickler):
            def __init_subclass__(cls) -> None:
                told: Callable[[Any, Any], Any] = cls.persistent_id  # torch's, which names the storages

                def persistent_id(self: Any, obj: Any) -> Any:  # noqa: ANN401
                    found = told(self, obj)
                    if found is not None:
                        noting.storages[found[2]] = getattr(obj, "_untyped_storage", obj)
                    return found

                cls.persistent_id = persistent_id  # type: ignore[method-assign]

            def dump(self, obj: object) -> None:
                super().dump(obj)
                then()

        self.module = SimpleNamespace(__name__=pickle.__name__, Pickler=Pickler)


def _with_crc32s(piece: bytes, crc32s: Iterable[tuple[int, int]]) -> bytes:
    """Return bytes with CRC-32s at their places."""
    patched = bytearray(piece)
    for place, crc32 in crc32s:
        struct.pack_into("<I", patched, place, crc32)
    return bytes(patched)


def _entries_of(directory: bytes) -> Iterator[_Entry]:
    """Yield what a directory says of its records, in order."""
    offset = 0
    while directory[offset : offset + 4] == _ENTRY_SIGNATURE and offset + _ENTRY.size <= len(directory):
        *_, crc32, _, size, name, extra, comment, _, _, _, _ = _ENTRY.unpack_from(directory, offset)
        begin = offset + _ENTRY.size
        yield _Entry(directory[begin : begin + name], size, crc32, offset + _CRC32_OF_ENTRY)
        offset = begin + name + extra + comment


def _hash_combine(seed: int, value: int) -> int:
    """Combine two hashes of 64 bits, as at::hash_combine of torch's ATen/core does."""
    return (seed ^ (value + 0x9E3779B9 + (seed << 6) + (seed >> 2))) & 0xFFFF_FFFF_FFFF_FFFF
