"""S3StorageConfig: what makes the storage, in this process or in the one that saves in the background."""

from __future__ import annotations

from dataclasses import dataclass

from torch_checkpointing.storage.base_storage import StorageConfig

from s3torch import _buffer
from s3torch.checkpoint.torch_checkpointing.fill import KeptMemory
from s3torch.checkpoint.torch_checkpointing.identity import Identity, agree, new_identity
from s3torch.checkpoint.torch_checkpointing.storage import S3Storage
from s3torch.checkpoint.uploads import OnUpload
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.errors import ArgumentError, ArgumentTypeError
from s3torch.readers import check_reader_config

__all__ = ["S3StorageConfig"]

_GIB = 1024**3


@dataclass
class S3StorageConfig(StorageConfig):
    """Keeps the checkpoints of ``torch_checkpointing`` in S3.

    It pickles as what it says: client, connections and credentials are made in the process that uses them.

    Args:
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``stream_read`` returns; None is adaptive, which suits whole files and slices.
        save_id: What names this run of the job, the same on all ranks, and another one when the job is started again.
            None agrees on it by the store of ``torch.distributed``; a job of one process needs none. Ranks that know of
            each other in another way must be given one.
        temp_dir_prefix: The one of CheckpointWriterConfig.
        kept_memory: Bytes of memory to keep for the next file, when what ``native_fill`` has loaded is dropped. The
            system may take its pages back at any time. 0 keeps none.
        reclaimable: Whether it may. False holds the memory, and saves a third of the CPU time of a transfer.
        progress: Whether a bar shows how far ``native_fill`` is, or a file that is saved. None shows one of
            ``native_fill`` on a terminal, and none of what many ranks save.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took, once for each file that this process
            has stored, by the thread that has; but for the marker. What it raises is logged. For a save in the
            background it must be picklable, and is called in that process.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ArgumentError: An argument is empty or negative.
        ConfigError: The endpoint is not an http or https URL.
    """

    region: str | None = None
    endpoint: str | None = None
    s3client_config: S3ClientConfig | None = None
    reader_config: S3ReaderConfig | None = None
    save_id: str | None = None
    temp_dir_prefix: str = "tmp_"
    kept_memory: int = 4 * _GIB
    reclaimable: bool = True
    progress: bool | None = None
    on_upload: OnUpload | None = None

    def __post_init__(self) -> None:
        """Check what can be checked before anything is sent."""
        _buffer.check_text(save_id=self.save_id, temp_dir_prefix=self.temp_dir_prefix)
        if self.save_id == "":
            raise ArgumentError("save_id is empty: leave it out, or name the run of the job.")
        if not self.temp_dir_prefix or "/" in self.temp_dir_prefix:
            raise ArgumentError(f"temp_dir_prefix={self.temp_dir_prefix!r} must be the beginning of a folder's name.")
        if _buffer.as_index("kept_memory", self.kept_memory) < 0:
            raise ArgumentError(f"kept_memory={self.kept_memory} must be 0 or more bytes.")
        if not isinstance(self.reclaimable, bool):
            raise ArgumentTypeError(f"reclaimable must be a bool, got {self.reclaimable!r}.")
        if self.progress is not None and not isinstance(self.progress, bool):
            raise ArgumentTypeError(f"progress must be a bool or None, got {self.progress!r}.")
        if self.on_upload is not None and not callable(self.on_upload):
            raise ArgumentTypeError(f"on_upload must be a function or None, got {self.on_upload!r}.")
        self.reader_config = check_reader_config(self.reader_config or S3ReaderConfig.adaptive())
        self._identity = new_identity()
        self._client()

    def __getstate__(self) -> dict[str, object]:
        # The process that gets it is no part of the group that agrees.
        return {**self.__dict__, "_identity": self._identify()}

    def create_storage(self) -> S3Storage:
        """Return a storage for this process."""
        return S3Storage(
            self._client(),
            self._identify,
            reader_config=check_reader_config(self.reader_config),
            temp_dir_prefix=self.temp_dir_prefix,
            memory=KeptMemory(self.kept_memory, is_reclaimable=self.reclaimable),
            progress=self.progress,
            on_upload=self.on_upload,
        )

    def _client(self) -> S3Client:
        return S3Client(
            self.region,
            endpoint=self.endpoint,
            user_agent_comments=["torch_checkpointing"],
            s3client_config=self.s3client_config,
        )

    def _identify(self) -> Identity:
        return agree(self.save_id, self._identity)
