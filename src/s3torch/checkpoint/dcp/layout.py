"""Where the elements of a stored tensor lie in its file, so that a part of it can be read alone.

``torch.save`` writes a zip archive in which nothing is compressed: ``data.pkl`` says what the tensor is, ``data/0`` has
its elements, and the directory is at the end. So the first and the last 2 KiB of an archive tell where each row is. The
pickle is read by an unpickler that knows three names, and whatever is not exactly a contiguous tensor of this machine's
byte order has no layout: it is read as a whole by ``torch.load``.

The safetensors format has a header of JSON: a 64-bit little-endian length, and for each tensor dtype, shape and place.
Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from s3torch.errors import CheckpointFormatError, S3Error

__all__ = ["ENDS", "Layout", "archive_layout", "safetensors_header_size", "safetensors_layout"]

# Bytes of an archive's head and tail that are read: its records beside data/0 take 1.6 KB together.
ENDS = 2048
_HAS_DESCRIPTOR = 1 << 3  # APPNOTE.TXT 4.4.4


@dataclass(frozen=True, slots=True)
class Layout:
    """A contiguous tensor in a file.

    Attributes:
        start: Its first byte in the file.
        dtype: Of its elements.
        shape: Of the whole tensor.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def rows(self, first: int, count: int) -> Layout:
        """Return the layout of ``count`` rows, indices of the first dimension."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return Layout(self.start + first * row, self.dtype, (count, *self.shape[1:]))

    @property
    def size(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """The byte after the last."""
        return self.start + self.size

    def tensor(self, content: memoryview) -> torch.Tensor:
        """Return memory with the bytes ``[start, stop)`` as a tensor."""
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        elements = torch.frombuffer(content, dtype=torch.uint8)
        if elements.data_ptr() % self.dtype.itemsize:  # not every processor can compute with what is not aligned
            elements = elements.clone()
        return elements.view(self.dtype).view(self.shape)


def archive_layout(head: bytes, tail: bytes, size: int) -> Layout | None:
    """Return where the elements are in an archive that torch.save wrote of one tensor.

    Args:
        head: The first bytes of the archive.
        tail: The last bytes.
        size: Bytes of the whole archive.

    Returns:
        The layout, counted from the archive's first byte; None if it is anything but a plain contiguous tensor.
    """
    try:
        file = _Ends(head, tail, size)
        with zipfile.ZipFile(file) as archive:
            return _layout(archive, file, head)
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        _OutOfReachError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        struct.error,
        NotImplementedError,
    ):
        return None


def _layout(archive: zipfile.ZipFile, file: _Ends, head: bytes) -> Layout | None:
    root = archive.namelist()[0].partition("/")[0]
    records = [info for info in archive.infolist() if info.filename.startswith(f"{root}/data/")]
    if len(records) != 1 or records[0].compress_type != zipfile.ZIP_STORED:
        return None
    if archive.read(f"{root}/byteorder") != sys.byteorder.encode():
        return None
    tensor = _Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
    if not isinstance(tensor, _Tensor) or records[0].filename != f"{root}/data/{tensor.storage.name}":
        return None
    begin = records[0].header_offset
    if head[begin : begin + 4] != b"PK\x03\x04":
        return None
    name_length, extra_length = struct.unpack_from("<HH", head, begin + 26)
    layout = Layout(begin + 30 + name_length + extra_length, tensor.storage.dtype, tensor.shape)
    plain = tensor.offset == 0 and tensor.stride == _contiguous_stride(tensor.shape)
    if not plain or layout.size != records[0].file_size or not _ends_at(archive, file, records[0], layout.stop):
        return None
    return layout


def _ends_at(archive: zipfile.ZipFile, file: _Ends, record: zipfile.ZipInfo, stop: int) -> bool:
    """Whether what follows a record follows there: lengths in the header before it have no checksum."""
    if record.flag_bits & _HAS_DESCRIPTOR:
        file.seek(stop)
        return file.read(4) == b"PK\x07\x08"
    offsets = [each.header_offset for each in archive.infolist() if each.header_offset > record.header_offset]
    return stop == min(offsets, default=archive.start_dir)


def safetensors_header_size(content: bytes, place: str) -> int:
    """Return the bytes of the header behind its eight bytes of length.

    Raises:
        S3Error: No header is that long.
    """
    size = int.from_bytes(content, "little")
    if not 2 <= size <= _MAX_HEADER:
        raise S3Error(f"{place} should have a safetensors header and has none: the checkpoint is damaged.")
    return size


# Bytes: what the safetensors library itself accepts.
_MAX_HEADER = 100_000_000


def safetensors_layout(header: bytes, name: str, start: int, place: str) -> Layout:
    """Return where a tensor is in a safetensors file.

    Args:
        header: The JSON.
        name: Of the tensor.
        start: The byte after the header.
        place: Names the file in errors.

    Raises:
        S3Error: The header is damaged, has no such tensor, or one of a dtype that this torch lacks.
    """
    from s3torch.checkpoint.safetensors.dtypes import shape_in_items, torch_dtype  # not for big-endian machines
    from s3torch.checkpoint.safetensors.format import BITS

    try:
        entry = json.loads(header)[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in BITS or not _are_counts((begin, end, *entry["shape"])):
            raise ValueError(f"{entry!r} does not describe a tensor")
        shape = shape_in_items(entry["dtype"], entry["shape"], name)
        layout = Layout(start + begin, torch_dtype(entry["dtype"], name), shape)
    except CheckpointFormatError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise S3Error(
            f"The safetensors header of {place} says nothing of {name}: the checkpoint is damaged."
        ) from error
    if layout.size != end - begin:
        raise S3Error(f"The safetensors header of {place} contradicts itself about {name}: the checkpoint is damaged.")
    return layout


class _OutOfReachError(Exception):
    """A read of what lies between head and tail."""


class _Ends(io.RawIOBase):
    """A file of which only the first and the last bytes are there."""

    def __init__(self, head: bytes, tail: bytes, size: int) -> None:
        super().__init__()
        self._head, self._tail, self._size = head, tail, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        if self._position < 0:
            raise ValueError(f"position {self._position}")
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        tail_start = self._size - len(self._tail)
        if stop <= len(self._head):
            content = self._head[start:stop]
        elif start >= tail_start:
            content = self._tail[start - tail_start : stop - tail_start]
        else:
            raise _OutOfReachError(f"bytes [{start}, {stop})")
        self._position += len(content)
        return content


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    name: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: object,
    _hooks: object,
    flags: object = None,
) -> _Tensor:
    if flags:  # such as conj: the elements are still to be computed with
        raise pickle.UnpicklingError(f"{flags!r} is no part of a plain tensor")
    if not _are_counts(shape):
        raise pickle.UnpicklingError(f"{shape!r} is no shape")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def _are_counts(numbers: Iterable[object]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


class _Unpickler(pickle.Unpickler):
    """Reads the pickle of one tensor without making it; any other name than those of a plain tensor is refused."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # whatever stands there
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        dtype = _LEGACY_STORAGES.get(name) if module == "torch" else None
        if dtype is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a plain tensor")
        return dtype

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401  # whatever stands there
        kind, dtype, name, _location, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(name, str):
            raise pickle.UnpicklingError(f"{pid!r} is no storage")
        return _Storage(dtype, name)


_LEGACY_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    stride = [1] * len(shape)
    for index in range(len(shape) - 2, -1, -1):
        stride[index] = stride[index + 1] * max(1, shape[index + 1])
    return tuple(stride)
