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
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

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
# Records up to this size are fetched together, in bytes. Not tuned.
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

    def check_header(self, header: memoryview) -> None:
        """Compare the header, as it was read, with what was taken for granted.

        Raises:
            CheckpointFormatError: The record lies elsewhere.
        """
        if _start(self.name, self.header, header) != self.start:
            raise CheckpointFormatError(f"The record {self.name!r} does not lie where the directory has it.")


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
        size = file.seek(0, io.SEEK_END)
        if size < _SMALLEST_ARCHIVE:
            raise zipfile.BadZipFile("too small")
        try:
            with zipfile.ZipFile(file) as directory:
                infos = sorted(directory.infolist(), key=lambda info: info.header_offset)
                ends = [info.header_offset for info in infos[1:]] + [directory.start_dir]
        except zipfile.BadZipFile as error:
            if isinstance(error.__context__, S3Error):  # zipfile takes a failed read for a damaged archive
                raise error.__context__ from None
            raise
        except (NotImplementedError, OverflowError, UnicodeDecodeError, struct.error) as error:
            raise CheckpointFormatError(f"Its directory is damaged: {error}") from error
        if any(info.filename.endswith("/constants.pkl") for info in infos):
            raise CheckpointFormatError("It is a TorchScript program: use torch.jit.load(checkpoint.reader(uri)).")
        self.storages: dict[int, Record] = {}
        self._small: dict[str, bytes] = {}
        self._starts: list[int] = []
        self._blocks: list[bytes] = []
        to_read = [pair for pair in zip(infos, ends, strict=True) if not self._guess(*pair)]
        ranges = [
            (info.header_offset, end if end - info.header_offset <= _SMALL else info.header_offset + _HEADER.size)
            for info, end in to_read
        ]
        if any(not 0 <= start <= stop - _HEADER.size or stop > size for start, stop in ranges):
            raise CheckpointFormatError("Records of the archive overlap, or lie outside of it: it is damaged.")
        for (info, end), (start, _), block in zip(to_read, ranges, read_ranges(ranges) or (), strict=True):
            self._add(info, end, start, block)
        if self.pickle is None and not any(name.endswith("/data.pkl") for name in (info.filename for info in infos)):
            raise CheckpointFormatError("It is an archive without data.pkl, which torch.save did not write.")
        if not self._is_native:
            self.storages.clear()  # torch swaps bytes as soon as it has them
        blocks = sorted(zip(self._starts, self._blocks, strict=True))
        self._starts, self._blocks = [start for start, _ in blocks], [block for _, block in blocks]

    def fetched(self, start: int, stop: int) -> memoryview | None:
        """Return the bytes ``[start, stop)`` of the file, if they were fetched with the directory."""
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return None
        begin = start - self._starts[index]
        block = self._blocks[index]
        return memoryview(block)[begin : begin + stop - start] if begin + stop - start <= len(block) else None

    @property
    def pickle(self) -> bytes | None:
        """The pickle that tells what the storages are; None if it is not small."""
        return next((data for name, data in self._small.items() if name.endswith("/data.pkl")), None)

    @property
    def _is_native(self) -> bool:
        """Whether numbers are stored in this machine's byte order."""
        order = next((data for name, data in self._small.items() if name.endswith("/byteorder")), None)
        return (order or b"little") == sys.byteorder.encode()

    def _guess(self, info: zipfile.ZipInfo, end: int) -> bool:
        """Take a large storage to lie where torch.save puts it, which saves reading its header first."""
        if end - info.header_offset <= _SMALL or _STORAGE.fullmatch(info.filename) is None:
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
            self._small[name] = block[start - begin : record.stop - begin]
        elif _STORAGE.fullmatch(name):
            self.storages[start] = record


def _check_stored(info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise CheckpointFormatError(f"The record {info.filename!r} is compressed, which torch.save never does.")


def _start(name: str, offset: int, header: bytes | memoryview) -> int:
    """Return where the bytes of a record begin whose header begins at ``offset``."""
    signature, *_, name_length, extra_length = _HEADER.unpack_from(header)
    if signature != _SIGNATURE:
        raise CheckpointFormatError(f"The record {name!r} has no header: the file is damaged.")
    return offset + _HEADER.size + int(name_length) + int(extra_length)


def reads_no_values(pickle: bytes) -> bool:
    """Whether unpickling cannot look at the values of a tensor, so that they may come later."""
    others = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in others or (opcode.name == "GLOBAL" and not _BLIND.fullmatch(str(argument))):
                return False
    except ValueError:  # it is damaged: whoever unpickles it says how
        return False
    return True
