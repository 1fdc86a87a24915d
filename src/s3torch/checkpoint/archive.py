"""Where things lie in a file that torch.save wrote: a zip archive of stored records, one for each storage.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format-for-torch-save.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import sys
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from s3torch._aws.checksums import crc32
from s3torch._objects.remote import DEFAULT_MAX_GAP
from s3torch.errors import CheckpointFormatError, S3Error

__all__ = ["Archive", "Record", "reads_no_values"]

# The header before each record: signature, version, flags, method, time, date, CRC-32, sizes, and the lengths of name
# and extra field, which follow (APPNOTE.TXT 4.3.7).
_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE = b"PK\x03\x04"
# torch.save sets this flag, and has CRC-32 and sizes follow the record, as 16 bytes or, of large ones, 24 (4.3.9).
_HAS_DESCRIPTOR = 0x0008
_DESCRIPTORS = (16, 24)
_ALIGNMENT = 64  # of a record's first byte
_SMALLEST_ARCHIVE = 22
# Of the attributes in a zip directory: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.4.15, and FAT's.
_FOLDER = 0x10
# Storages up to this size, header included, may be read with the directory, in bytes. Not tuned.
_SMALL = 64 * 1024
_PICKLE = "/data.pkl"
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
    """One record of a file.

    Attributes:
        name: Its name.
        header: Where its header begins.
        start: Where its bytes begin.
        stop: Where they end.
        crc32: Of its bytes, as the directory says.
        is_guess: Whether ``start`` is where torch.save would have put it: then the header must be compared.
    """

    name: str
    header: int
    start: int
    stop: int
    crc32: int
    is_guess: bool = False

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.stop - self.start

    @property
    def has_crc32(self) -> bool:
        """Whether its CRC-32 was noted: torch.save can be told to leave it out, and notes 0 then.

        One record in four billion has the CRC-32 0, and counts as one without.
        """
        return self.crc32 != 0 or not self.size

    def is_intact(self, content: memoryview) -> bool:
        """Whether bytes have the CRC-32 that was noted."""
        return crc32(content) == self.crc32

    def check_header(self, header: memoryview) -> None:
        """Compare the header, as it was read, with what was taken for granted.

        Raises:
            CheckpointFormatError: The record lies elsewhere.
        """
        if _start(self.name, self.header, header) != self.start:
            raise CheckpointFormatError(f"The record {self.name!r} does not lie where the directory has it.")


class Archive:
    """The records of a file. Those that are no storages, and small ones near them, are read with the directory.

    Args:
        file: Over the whole file.
        read_ranges: Reads many half-open ranges of it at once.

    Attributes:
        directory: Where the directory begins.
        read: Records that were read, with their bytes.
        storages: Records of storages that were not, by where they start.

    Raises:
        zipfile.BadZipFile: It is no zip archive.
        CheckpointFormatError: It is one, but none that torch.save wrote, or it is damaged.
    """

    def __init__(self, file: BinaryIO, read_ranges: ReadRanges) -> None:
        size = file.seek(0, io.SEEK_END)
        if size < _SMALLEST_ARCHIVE:
            raise zipfile.BadZipFile("too small")
        infos, self.directory = _read_directory(file)
        _check_are_files(infos)
        ends = [info.header_offset for info in infos[1:]] + [self.directory]
        _check_is_checkpoint([info.filename for info in infos])
        self.storages: dict[int, Record] = {}
        self.read: list[tuple[Record, memoryview]] = []
        self._starts: list[int] = []
        self._blocks: list[bytes] = []
        entries = list(zip(infos, ends, strict=True))
        first = _read_first(entries)
        to_read = [pair for pair in entries if pair[0].header_offset in first or not self._guess(*pair)]
        ranges = [
            (info.header_offset, end if _is_read_whole(info, end) else info.header_offset + _HEADER.size)
            for info, end in to_read
        ]
        if any(not 0 <= start <= stop - _HEADER.size or stop > size for start, stop in ranges):
            raise CheckpointFormatError("Records of the archive overlap, or lie outside of it: it is damaged.")
        for (info, end), (start, _), block in zip(to_read, ranges, read_ranges(ranges) or (), strict=True):
            self._add(info, end, start, block)
        blocks = sorted(zip(self._starts, self._blocks, strict=True))
        self._starts, self._blocks = [start for start, _ in blocks], [block for _, block in blocks]
        records = [*self.storages.values(), *(record for record, _ in self.read)]
        self._records = sorted(records, key=lambda record: (record.start, record.stop))
        self._record_starts = [record.start for record in self._records]

    def fetched(self, start: int, stop: int) -> memoryview | None:
        """Return the bytes ``[start, stop)`` of the file, if they were fetched with the directory."""
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return None
        begin = start - self._starts[index]
        block = self._blocks[index]
        return memoryview(block)[begin : begin + stop - start] if begin + stop - start <= len(block) else None

    def is_whole(self, start: int, stop: int) -> bool:
        """Whether the bytes ``[start, stop)`` are of no record, or all of one: then a CRC-32 proves them."""
        index = bisect_left(self._record_starts, stop) - 1
        if index < 0 or self._records[index].stop <= start:
            return True
        record = self._records[index]
        return (record.start, record.stop) == (start, stop)

    def records(self) -> list[Record]:
        """Return the records that torch.load may read, in the order of their bytes."""
        return list(self._records)

    def forget(self) -> None:
        """Drop all that it refers to."""
        self.__dict__.clear()

    @property
    def pickle(self) -> memoryview:
        """The pickle that tells what the storages are."""
        return next(content for record, content in self.read if record.name.endswith(_PICKLE))

    @property
    def is_native(self) -> bool:
        """Whether numbers are stored in this machine's byte order; torch swaps others as soon as it has them."""
        found = (content for record, content in self.read if record.name.endswith("/byteorder"))
        return bytes(next(found, b"little")) == sys.byteorder.encode()

    def _guess(self, info: zipfile.ZipInfo, end: int) -> bool:
        """Take a storage to lie where torch.save puts it, which saves reading its header first."""
        if not info.file_size or not _is_storage(info):
            return False
        _check_stored(info)
        least = info.header_offset + _HEADER.size + len(info.filename.encode())
        for descriptor in _DESCRIPTORS if info.flag_bits & _HAS_DESCRIPTOR else (0,):
            start = end - descriptor - info.file_size
            if start % _ALIGNMENT == 0 and least <= start < least + 0x10000:
                record = Record(info.filename, info.header_offset, start, start + info.file_size, info.CRC, True)
                self.storages[start] = record
                self._starts.append(info.header_offset)
                name = len(info.filename.encode())
                lengths = name, start - info.header_offset - _HEADER.size - name
                self._blocks.append(_HEADER.pack(_SIGNATURE, 0, info.flag_bits, 0, 0, 0, 0, 0, 0, *lengths))
                return True
        return False

    def _add(self, info: zipfile.ZipInfo, end: int, begin: int, block: bytes) -> None:
        name = info.filename
        _check_stored(info)
        start = _start(name, info.header_offset, block)
        record = Record(name, info.header_offset, start, start + info.file_size, info.CRC)
        if record.stop > end:
            raise CheckpointFormatError(f"The record {name!r} reaches into the next one: the file is damaged.")
        self._starts.append(begin)
        self._blocks.append(block)
        if begin + len(block) >= record.stop:
            self.read.append((record, memoryview(block)[start - begin : record.stop - begin]))
        elif _STORAGE.fullmatch(name):
            self.storages[start] = record


def _read_directory(file: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """Return what the directory says of the records, in the order of their headers, and where it begins."""
    try:
        with zipfile.ZipFile(file) as directory:
            infos = sorted(directory.infolist(), key=lambda info: info.header_offset)
            return infos, directory.start_dir
    except zipfile.BadZipFile as error:
        if isinstance(error.__context__, S3Error):  # zipfile takes a failed read for a damaged archive
            raise error.__context__ from None
        raise
    except (NotImplementedError, OverflowError, UnicodeDecodeError, struct.error) as error:
        raise CheckpointFormatError(f"Its directory is damaged: {error}") from error


def _check_is_checkpoint(names: Sequence[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointFormatError("It is a TorchScript program: use torch.jit.load(checkpoint.reader(uri)).")
    if any(name.endswith("/archive_format") for name in names):
        raise CheckpointFormatError("It is an exported program: use torch.export.load(checkpoint.reader(uri)).")
    if not any(name.endswith(_PICKLE) for name in names):
        raise CheckpointFormatError("It is an archive without data.pkl, which torch.save did not write.")


def _check_are_files(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Check that no record is called a folder: torch reads nothing of one, and leaves its tensor's memory as it is."""
    for info in infos:
        if info.external_attr & _FOLDER or info.filename.endswith("/"):
            raise CheckpointFormatError(f"The directory calls the record {info.filename!r} a folder: it is damaged.")


def _is_read_whole(info: zipfile.ZipInfo, end: int) -> bool:
    """Whether more than the header of a record is read; a pickle is, whatever its size: nothing can begin before."""
    return end - info.header_offset <= _SMALL or info.filename.endswith(_PICKLE)


def _read_first(entries: Sequence[tuple[zipfile.ZipInfo, int]]) -> set[int]:
    """Return the headers of the records that are read with the directory: all but storages, and small ones nearby.

    A small storage that lies alone among large ones would take a request of its own; it is read when they are.

    Args:
        entries: The records in order, and where each ends.
    """
    groups: list[list[zipfile.ZipInfo]] = []  # each of what one request brings
    group_end = 0
    for info, end in entries:
        if _is_storage(info) and end - info.header_offset > _SMALL:
            continue
        if not groups or info.header_offset > group_end + DEFAULT_MAX_GAP:
            groups.append([])
        groups[-1].append(info)
        group_end = end
    return {info.header_offset for group in groups if not all(map(_is_storage, group)) for info in group}


def _is_storage(info: zipfile.ZipInfo) -> bool:
    return _STORAGE.fullmatch(info.filename) is not None


def _check_stored(info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise CheckpointFormatError(f"The record {info.filename!r} is compressed, which torch.save never does.")


def _start(name: str, offset: int, header: bytes | memoryview) -> int:
    """Return where the bytes of a record begin whose header begins at ``offset``."""
    signature, *_, name_length, extra_length = _HEADER.unpack_from(header)
    if signature != _SIGNATURE:
        raise CheckpointFormatError(f"The record {name!r} has no header: the file is damaged.")
    return offset + _HEADER.size + int(name_length) + int(extra_length)


def reads_no_values(pickle: bytes | memoryview) -> bool:
    """Whether unpickling cannot look at the values of a tensor, so that they may come later."""
    others = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
    try:
        for opcode, argument, _ in pickletools.genops(bytes(pickle)):
            if opcode.name in others or (opcode.name == "GLOBAL" and not _BLIND.fullmatch(str(argument))):
                return False
    except ValueError:  # it is damaged: whoever unpickles it says how
        return False
    return True
