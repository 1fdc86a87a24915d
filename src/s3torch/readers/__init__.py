"""File-like readers of objects: one base, one file for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.config import ReaderType, S3ReaderConfig
from s3torch.errors import ArgumentTypeError
from s3torch.readers.adaptive import AdaptiveS3Reader
from s3torch.readers.base import S3Reader
from s3torch.readers.ranged import RangedS3Reader
from s3torch.readers.sequential import SequentialS3Reader

if TYPE_CHECKING:
    from s3torch._objects.remote import RemoteObject

__all__ = [
    "AdaptiveS3Reader",
    "RangedS3Reader",
    "S3Reader",
    "SequentialS3Reader",
    "check_reader_config",
    "open_reader",
]


_DEFAULT = S3ReaderConfig.sequential()


def check_reader_config(reader_config: S3ReaderConfig | None) -> S3ReaderConfig:
    """Return the configuration, or the default for None.

    Raises:
        ArgumentTypeError: It is anything else.
    """
    if reader_config is None:
        return _DEFAULT
    if not isinstance(reader_config, S3ReaderConfig):
        raise ArgumentTypeError(
            f"reader_config must be an instance of S3ReaderConfig, got {reader_config!r}. "
            "Use S3ReaderConfig.sequential(), .range_based() or .adaptive()."
        )
    return reader_config


def open_reader(remote: RemoteObject, reader_config: S3ReaderConfig | None) -> S3Reader:
    """Return a reader of the kind that is configured; sends nothing."""
    config = check_reader_config(reader_config)
    if config.reader_type is ReaderType.RANGE_BASED:
        return RangedS3Reader(remote, config.buffer_size or 0)
    if config.reader_type is ReaderType.ADAPTIVE:
        return AdaptiveS3Reader(remote, config.window_limit)
    return SequentialS3Reader(remote)
