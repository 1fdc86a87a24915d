"""The readers of s3torchconnector and their constructors, which read as those of s3torch do.

A constructor is any callable of ``(bucket, key, get_object_info, get_stream)`` that returns a reader. The classes here
are such callables; what a client passes them as ``get_stream`` leads to the object itself, and no stream is opened.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, SupportsIndex, TypeVar, runtime_checkable

from s3torch import readers
from s3torch._buffer import as_index
from s3torch.compat.streams import GetObjectInfo, GetStreamCallable, ObjectStreams, WholeStream, remote_object
from s3torch.compat.wording import raise_worded, worded
from s3torch.config import ReaderType, S3ReaderConfig
from s3torch.errors import ArgumentError, ArgumentTypeError, S3Error
from s3torch.readers import AdaptiveS3Reader

__all__ = [
    "DEFAULT_MAX_GAP_SIZE",
    "DCPOptimizedConstructor",
    "DCPOptimizedS3Reader",
    "DCPS3ReaderConstructorProtocol",
    "GetStreamCallable",
    "ItemRange",
    "RangeGroup",
    "RangedS3Reader",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "SequentialS3Reader",
    "choose_constructor",
    "is_own",
]

if TYPE_CHECKING:
    from typing_extensions import Buffer

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MAX_GAP_SIZE = 32 * 1024 * 1024
_LEAST_WINDOW = 16 * 1024
_DEFAULT_WINDOW = S3ReaderConfig.adaptive().window_limit


class S3Reader(ABC, io.BufferedIOBase):
    """What a reader of a program's own derives from; all readers of s3torch count as such."""

    @property
    @abstractmethod
    def bucket(self) -> str:
        """The object's bucket."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The object's key."""

    @abstractmethod
    def read(self, size: int | None = None) -> bytes:
        """Read ``size`` bytes, or to the end."""

    @abstractmethod
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position."""

    @abstractmethod
    def tell(self) -> int:
        """Return the position."""

    @abstractmethod
    def readinto(self, buf: Any) -> int:  # noqa: ANN401  # any buffer
        """Read into memory."""

    def seekable(self) -> bool:
        """Whether the position can be changed: yes."""
        return True

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def writable(self) -> bool:
        """Whether it can be written: no."""
        return False


S3Reader.register(readers.S3Reader)  # type: ignore[type-abstract]  # what may be registered is no less abstract


def _worded_read(read: Callable[Concatenate[_WordedReader, P], R]) -> Callable[Concatenate[_WordedReader, P], R]:
    """Return a way to read whose errors have the words of s3torchconnector."""

    @wraps(read)
    def call(self: _WordedReader, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(self, *args, **kwargs)
        except S3Error as error:
            raise_worded(error, is_head=self._begins_with_head and self._remote.size is None)

    return call


class _WordedReader(readers.S3Reader):
    """Stands before a reader of s3torch and words its errors."""

    _begins_with_head = False  # whether s3torchconnector asks for the size before it reads

    @_worded_read
    def _read_at(self, start: int, stop: int | None) -> bytes:
        return super()._read_at(start, stop)  # type: ignore[safe-super]  # of the reader behind this

    @_worded_read
    def _readinto_at(self, start: int, view: memoryview) -> int:
        return super()._readinto_at(start, view)  # type: ignore[safe-super]  # of the reader behind this

    @_worded_read
    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        return super()._chunk_at(start)  # type: ignore[safe-super]  # of the reader behind this

    def read(self, size: SupportsIndex | None = None) -> bytes:
        """Read ``size`` bytes, or to the end."""
        return _expecting("argument should be integer or None", super().read, size)

    def readinto(self, buf: Buffer) -> int:
        """Read into memory until it is full or the object ends."""
        return _expecting("argument must be a writable bytes-like object", super().readinto, buf)

    def seek(self, offset: SupportsIndex, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; beyond the end stays at the end."""
        return _expecting("integer argument expected", super().seek, offset, whence)

    def _learn_size(self) -> int:
        return worded(super()._learn_size, is_head=True)()


def _expecting(expectation: str, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what a method returns; an argument of another type is refused in the words of s3torchconnector."""
    try:
        return act(*args, **kwargs)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{expectation}: {error}") from error.__cause__


class SequentialS3Reader(_WordedReader, readers.SequentialS3Reader):
    """s3torch's sequential reader, made of the four arguments of a reader constructor."""

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> None:
        if not isinstance(get_stream, ObjectStreams):
            get_stream = WholeStream(get_stream)
        super().__init__(remote_object(bucket, key, get_object_info, get_stream))


class _MaybeExact(AdaptiveS3Reader):
    """The adaptive reader, or one whose reads are exactly their ranges; lines are read ahead in any case."""

    _is_exact = False

    def _read_at(self, start: int, stop: int | None) -> bytes:
        return self._remote.read(start, stop) if self._is_exact else super()._read_at(start, stop)

    def _readinto_at(self, start: int, view: memoryview) -> int:
        return self._remote.read_into(start, view) if self._is_exact else super()._readinto_at(start, view)


class RangedS3Reader(_WordedReader, _MaybeExact):
    """s3torch's adaptive reader, which begins with exact ranges; without a buffer all are exact.

    Args:
        bucket: Of the object.
        key: Of the object.
        get_object_info: As in the protocol.
        get_stream: As in the protocol.
        buffer_size: Bytes that are read ahead at most, where reads follow each other; None is 64 MiB. 0 and less read
            nothing ahead.

    Raises:
        ArgumentTypeError: ``buffer_size`` is no integer.
    """

    _begins_with_head = True

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: GetObjectInfo,
        get_stream: GetStreamCallable,
        buffer_size: int | None = None,
    ) -> None:
        window = _DEFAULT_WINDOW if buffer_size is None else as_index("buffer_size", buffer_size)
        super().__init__(remote_object(bucket, key, get_object_info, get_stream), max(window, _LEAST_WINDOW))
        self._is_exact = window <= 0

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_is_exact": self._is_exact}


@dataclass
class ItemRange:
    """The bytes ``[start, end)`` that one item of a load plan needs."""

    start: int
    end: int


@dataclass
class RangeGroup:
    """Ranges that s3torchconnector reads by one stream; s3torch makes none."""

    start: int
    end: int
    item_ranges: list[ItemRange]


class DCPOptimizedS3Reader(_WordedReader, AdaptiveS3Reader):
    """s3torch's adaptive reader. It needs no ranges: any part can be read, in any order and more than once.

    Args:
        bucket: Of the object.
        key: Of the object.
        item_ranges: Checked, and not needed.
        get_object_info: As in the protocol.
        get_stream: As in the protocol.
        max_gap_size: Checked, and not needed.

    Raises:
        ArgumentError: Bucket or key is empty, there is no range of any length, or one is negative or backwards.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        item_ranges: list[ItemRange],
        get_object_info: GetObjectInfo,
        get_stream: GetStreamCallable,
        max_gap_size: float = DEFAULT_MAX_GAP_SIZE,
    ) -> None:
        if not bucket:
            raise ArgumentError("Bucket should be specified")
        if not key:
            raise ArgumentError("Key should be specified")
        if not item_ranges:
            raise ArgumentError("item_ranges must be a non-empty List[ItemRange] object")
        for each in item_ranges:
            if not 0 <= each.start <= each.end:
                raise ArgumentError(f"Invalid range: {each.start}-{each.end}")
        if all(each.start == each.end for each in item_ranges):
            raise ArgumentError("No non-empty ranges to read (all ranges were length 0)")
        _check_gap(max_gap_size)
        super().__init__(remote_object(bucket, key, get_object_info, get_stream), _DEFAULT_WINDOW)


def _check_gap(max_gap_size: float) -> None:
    if not isinstance(max_gap_size, (int, float)):
        raise ArgumentTypeError(f"max_gap_size must be a number, got {max_gap_size!r}")
    if max_gap_size < 0:
        raise ArgumentError("max_gap_size must be non-negative")


class DCPOptimizedConstructor:
    """Makes readers of the files of a distributed checkpoint.

    Args:
        max_gap_size: Checked, and not needed.
    """

    def __init__(self, max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> None:
        _check_gap(max_gap_size)
        self._max_gap_size = max_gap_size
        self._item_ranges_by_file: dict[str, list[ItemRange]] = {}

    def set_item_ranges_by_file(
        self, plan_items: Iterable[Any], storage_data: Mapping[Any, Any], base_path: str | os.PathLike[str]
    ) -> None:
        """Take down which ranges of which files a load plan needs, in place of those of the plan before.

        Raises:
            ArgumentError: There are items, and nothing says where they are.
        """
        items = list(plan_items)
        if items and not storage_data:
            raise ArgumentError("storage_data must not be empty; required to map ReadItems to file ranges.")
        self._item_ranges_by_file = {}
        for item in items:
            stored = storage_data[item.storage_index]
            ranges = self._item_ranges_by_file.setdefault(os.path.join(base_path, stored.relative_path), [])  # noqa: PTH118  # a URI
            ranges.append(ItemRange(stored.offset, stored.offset + stored.length))

    def __call__(
        self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable
    ) -> SequentialS3Reader | DCPOptimizedS3Reader:
        """Return a reader.

        Raises:
            ArgumentError: No plan says what is needed of this file.
        """
        if key.endswith(".metadata"):
            return SequentialS3Reader(bucket, key, get_object_info, get_stream)
        ranges = self._item_ranges_by_file.get(f"s3://{bucket}/{key}")
        if ranges is None:
            raise ArgumentError(
                f"No ranges found for s3://{bucket}/{key}. Make sure range injection is used in "
                "'S3StorageReader.prepare_local_plan', or use S3ReaderConstructor.default()."
            )
        return DCPOptimizedS3Reader(bucket, key, ranges, get_object_info, get_stream, self._max_gap_size)


@runtime_checkable
class S3ReaderConstructorProtocol(Protocol):
    """What makes a reader of an object."""

    def __call__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> Any:  # noqa: ANN401  # whatever reads
        """Return a reader."""


@runtime_checkable
class DCPS3ReaderConstructorProtocol(S3ReaderConstructorProtocol, Protocol):
    """What makes a reader of an object, and wants to know which of its ranges a load plan needs."""

    _item_ranges_by_file: dict[str, list[ItemRange]]

    def set_item_ranges_by_file(
        self, plan_items: Iterable[Any], storage_data: Mapping[Any, Any], base_path: str | os.PathLike[str]
    ) -> None:
        """Take down a load plan."""


class S3ReaderConstructor:
    """Makes the constructors of readers."""

    @staticmethod
    def sequential() -> S3ReaderConstructorProtocol:
        """Return what makes sequential readers."""
        return partial(SequentialS3Reader)

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:
        """Return what makes range-based readers; see RangedS3Reader."""
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def dcp_optimized(max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> DCPOptimizedConstructor:
        """Return what makes readers of the files of a distributed checkpoint."""
        return DCPOptimizedConstructor(max_gap_size)

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:
        """Return what makes sequential readers."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def get_reader_type_string(constructor: S3ReaderConstructorProtocol | None) -> str:
        """Return the name of the kind of readers that a constructor makes; ``unknown`` if it is the program's own."""
        if isinstance(constructor, DCPOptimizedConstructor):
            return "dcp_optimized"
        kinds = {SequentialS3Reader: "sequential", RangedS3Reader: "range_based"}
        made: object = SequentialS3Reader if constructor is None else getattr(constructor, "func", None)
        return kinds.get(made, "unknown")  # type: ignore[call-overload, no-any-return]  # whatever a partial calls


def is_own(constructor: S3ReaderConstructorProtocol) -> bool:
    """Return whether a constructor makes readers of s3torch, or such as derive from them."""
    made = getattr(constructor, "func", constructor)
    return isinstance(made, DCPOptimizedConstructor) or (isinstance(made, type) and issubclass(made, readers.S3Reader))


def choose_constructor(
    reader_constructor: S3ReaderConstructorProtocol | None,
    reader_config: S3ReaderConfig | None = None,
    reader_type: ReaderType | None = None,
) -> S3ReaderConstructorProtocol:
    """Return the constructor that is meant by one of the three ways to choose a reader; sequential for none.

    Raises:
        ArgumentTypeError: What was given is of the wrong type.
        ArgumentError: More than one was given.
    """
    given = {"reader_constructor": reader_constructor, "reader_config": reader_config, "reader_type": reader_type}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ArgumentError(f"{' and '.join(names)} both choose the reader: give one of them.")
    if reader_type is not None:
        reader_config = S3ReaderConfig(reader_type)
    if reader_config is not None:
        return _of_config(readers.check_reader_config(reader_config))
    if reader_constructor is None:
        return S3ReaderConstructor.default()
    if not callable(reader_constructor):
        raise ArgumentTypeError(
            f"reader_constructor must be callable as S3ReaderConstructorProtocol says, got {reader_constructor!r}."
        )
    return reader_constructor


def _of_config(config: S3ReaderConfig) -> S3ReaderConstructorProtocol:
    if config.reader_type is ReaderType.RANGE_BASED:
        return S3ReaderConstructor.range_based(config.buffer_size or 0)
    if config.reader_type is ReaderType.ADAPTIVE:
        return S3ReaderConstructor.range_based(config.window_limit)
    return S3ReaderConstructor.sequential()
