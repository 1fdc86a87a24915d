"""s3torch feeds PyTorch from S3, in pure Python.

Names that need torch are imported when they are first used, so that ``import s3torch`` is quick and the client and
the readers work without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from s3torch import errors
from s3torch._transfer.stats import TransferStats
from s3torch._version import __version__
from s3torch.client import S3Client
from s3torch.config import ReaderType, S3ClientConfig, S3ReaderConfig
from s3torch.errors import S3Error
from s3torch.readers import S3Reader
from s3torch.writer import S3Writer

if TYPE_CHECKING:
    from s3torch import safetensors
    from s3torch.checkpoint import S3Checkpoint
    from s3torch.datasets import LookAheadBatchSampler, S3BatchSampler, S3DataLoader, S3IterableDataset, S3MapDataset

__all__ = [
    "LookAheadBatchSampler",
    "ReaderType",
    "S3BatchSampler",
    "S3Checkpoint",
    "S3Client",
    "S3ClientConfig",
    "S3DataLoader",
    "S3Error",
    "S3IterableDataset",
    "S3MapDataset",
    "S3Reader",
    "S3ReaderConfig",
    "S3Writer",
    "TransferStats",
    "__version__",
    "errors",
    "safetensors",
]

_NEED_TORCH = {
    "LookAheadBatchSampler": "s3torch.datasets",
    "S3BatchSampler": "s3torch.datasets",
    "S3Checkpoint": "s3torch.checkpoint",
    "S3DataLoader": "s3torch.datasets",
    "S3IterableDataset": "s3torch.datasets",
    "S3MapDataset": "s3torch.datasets",
}


def __getattr__(name: str) -> object:
    if name == "safetensors":
        return import_module("s3torch.safetensors")
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
