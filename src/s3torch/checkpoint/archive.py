"""Where things lie in a file that torch.save wrote: a zip archive of stored records, one for each storage.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format-for-torch-save.
"""

from __future__ import annotations

import pickletools
import re
import struct
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from s3torch.errors import CheckpointFormatError

__all__ = ["Archive", "Record", "reads_no_values"]

# Of the header before each record: its fixed part, in which the lengths of name and extra field stand last
# (APPNOTE.TXT 4.3.7).
_HEADER = 30
_LENGTHS = struct.Struct("<HH")
_SIGNATURE = b"PK\x03\x04"
# Records up to this size are fetched together with the headers, in bytes. Not tuned.
_SMALL = 64 * 1024
_STORAGE = re.compile(r"[^/]+/data/[^/]+")

# What a pickle of tensors may name: nothing of this looks at the values of a tensor while it is being made.
_BLIND = re.compile(
    r"collections OrderedDict|torch (\w+Storage|Size|device|u?int\d+|b?float\d+\w*|complex\d+|bool|bfloat16)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
)

ReadRanges = Callable[[Sequence[tuple[int, int]]], Sequence[bytes] | None]


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its bytes are ``[start, stop)`` of the file, and its CRC-32 is what the directory says."""

    name: str
    start: int
    stop: int
    crc32: int


class Archive:
    """The records of a file.

    Args:
        file: Over the whole file.
        read_ranges: Reads many half-open ranges of it at once.

    Attributes:
        storages: Records of storages that were not fetched, by where they start.

    Raises:
        zipfile.BadZipFile: It is no zip archive.
        CheckpointFormatError: It is one, but none that torch.save wrote, or it is damaged.
    """

    def __init__(self, file: BinaryIO, read_ranges: ReadRanges) -> None:
        with zipfile.ZipFile(file) as directory:
            infos = sorted(directory.infolist(), key=lambda info: info.header_offset)
            ends = [info.header_offset for info in infos[1:]] + [directory.start_dir]
        ranges = [
            (info.header_offset, end if end - info.header_offset <= _SMALL else info.header_offset + _HEADER)
            for info, end in zip(infos, ends, strict=True)
        ]
        if any(start + _HEADER > stop for start, stop in ranges):
            raise CheckpointFormatError("Records of the archive overlap: it is damaged.")
        self._blocks = list(read_ranges(ranges) or ())
        self._starts = [start for start, _ in ranges]
        self.storages: dict[int, Record] = {}
        self._small: dict[str, bytes] = {}
        for info, block, end in zip(infos, self._blocks, ends, strict=True):
            self._add(info, block, end)

    def fetched(self, start: int, stop: int) -> memoryview | None:
        """Return the bytes ``[start, stop)`` of the file, if they were fetched with the directory."""
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return None
        begin = start - self._starts[index]
        block = self._blocks[index]
        return memoryview(block)[begin : begin + stop - start] if begin + stop - start <= len(block) else None

    @property
    def is_native(self) -> bool:
        """Whether numbers are stored in this machine's byte order."""
        order = next((data for name, data in self._small.items() if name.endswith("/byteorder")), None)
        return (order or b"little") == sys.byteorder.encode()

    @property
    def pickle(self) -> bytes | None:
        """The pickle that tells what the storages are; None if it is not small."""
        return next((data for name, data in self._small.items() if name.endswith("/data.pkl")), None)

    def _add(self, info: zipfile.ZipInfo, block: bytes, end: int) -> None:
        name = info.filename
        if block[:4] != _SIGNATURE or info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointFormatError(f"The record {name!r} is not stored as torch.save does, or damaged.")
        start = info.header_offset + _HEADER + sum(_LENGTHS.unpack_from(block, _HEADER - _LENGTHS.size))
        record = Record(name, start, start + info.file_size, info.CRC)
        if record.stop > end:
            raise CheckpointFormatError(f"The record {name!r} reaches into the next one: the file is damaged.")
        data = self.fetched(record.start, record.stop) if len(block) > _HEADER else None
        if data is not None:
            self._small[name] = bytes(data)
        elif _STORAGE.fullmatch(name):
            self.storages[record.start] = record


def reads_no_values(pickle: bytes) -> bool:
    """Whether unpickling cannot look at the values of a tensor, so that they may come later."""
    strings = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in strings or (opcode.name == "GLOBAL" and not _BLIND.fullmatch(str(argument))):
            return False
    return True
