"""What a save of torch_checkpointing would send, found out by a save to nowhere."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import SyncCheckpointSaverConfig
from torch_checkpointing.storage.base_storage import StorageConfig

from s3torch.checkpoint.saving import Sink
from s3torch.checkpoint.torch_checkpointing.config import S3StorageConfig
from s3torch.checkpoint.torch_checkpointing.fill import KeptMemory
from s3torch.checkpoint.torch_checkpointing.identity import new_identity
from s3torch.checkpoint.torch_checkpointing.storage import S3Storage
from s3torch.checkpoint.uploads import UploadEstimate, estimate_upload, sum_of
from s3torch.errors import ArgumentTypeError
from s3torch.readers import check_reader_config

if TYPE_CHECKING:
    from torch_checkpointing.storage.base_storage import Storage
    from typing_extensions import Buffer

__all__ = ["estimate"]

_URI = "s3://nowhere/checkpoint"
_PathLike = str | os.PathLike[str]


def estimate(config: CheckpointManager.Config, checkpoint: Mapping[str, Any]) -> UploadEstimate:
    """Return what this process would send for its files, without sending anything.

    The library writes them to nowhere, which takes as long as to copy the tensors. The marker, and what the process
    that stores it asks for, are not among them. If there is a process group, all its ranks call this, as they call
    ``save``.

    Args:
        config: Of the manager that would save; its ``storage_config`` is an S3StorageConfig.
        checkpoint: As for ``CheckpointManager.save``.

    Raises:
        ArgumentTypeError: ``storage_config`` is another one.
    """
    storage_config = config.storage_config
    if not isinstance(storage_config, S3StorageConfig):
        raise ArgumentTypeError(f"config.storage_config must be an S3StorageConfig, got {storage_config!r}.")
    nowhere = _Nowhere(storage_config)
    manager = CheckpointManager(
        dataclasses.replace(
            config,
            storage_config=_Leading(nowhere),
            save=SyncCheckpointSaverConfig(
                writer_config=config.save.writer_config, wait_timeout_secs=config.save.wait_timeout_secs
            ),
            pre_finalize_callback=None,
            finalize_callback=None,
        )
    )
    try:
        manager.save(_URI, checkpoint)
    finally:
        manager.close()
    part_size = nowhere.client.s3client_config.part_size
    return sum_of(estimate_upload(size, part_size, is_known=False) for size in nowhere.sizes)


class _Leading(StorageConfig):
    """Leads to a storage that is there."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def create_storage(self) -> Storage:
        return self._storage


class _Nowhere(S3Storage):
    """Has no files, and of those that are written keeps the sizes alone.

    Attributes:
        sizes: In bytes, as they were written, by several threads.
    """

    def __init__(self, config: S3StorageConfig) -> None:
        super().__init__(
            config._client(),
            new_identity,
            reader_config=check_reader_config(config.reader_config),
            temp_dir_prefix=config.temp_dir_prefix,
            memory=KeptMemory(0),
            progress=False,
        )
        self.sizes: list[int] = []

    def stream_write(self, path: _PathLike) -> io.IOBase:
        del path
        return _Noted(self.sizes)

    def write(self, path: _PathLike, data: Buffer) -> None:
        with self.stream_write(path) as file:
            file.write(data)

    def exists(self, path: _PathLike) -> bool:
        del path
        return False


class _Noted(Sink):
    """Notes its size when it is closed."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes

    def close(self) -> None:
        if not self.closed:
            self._sizes.append(self.size)
        super().close()
