"""S3FileSystem: what torch's checkpoints ask of a file system, done with objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemBase

from s3torch._file import S3File
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.errors import ArgumentError, ArgumentTypeError, NotFoundError, S3Error
from s3torch.readers import check_reader_config
from s3torch.uri import parse_s3_uri
from s3torch.writer import S3Writer

__all__ = ["S3FileSystem"]

_log = logging.getLogger(__name__)


class S3FileSystem(FileSystemBase):
    """Objects as the files of a distributed checkpoint.

    Args:
        region: Of the bucket; None finds it.
        s3_client: Sends the requests; None makes one of the other arguments.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``create_stream`` returns; None is sequential.
        endpoint: URL of the server; None finds it.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        region: str | None = None,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_config: S3ReaderConfig | None = None,
        *,
        endpoint: str | None = None,
    ) -> None:
        if s3_client is not None and not isinstance(s3_client, S3Client):
            raise ArgumentTypeError(f"s3_client must be an S3Client, got {s3_client!r}.")
        self.reader_config = check_reader_config(reader_config)
        comments = ["dcp", torch.__version__, f"md/reader_type#{self.reader_config.get_reader_type_string()}"]
        self.client = s3_client or S3Client(
            region, endpoint=endpoint, user_agent_comments=comments, s3client_config=s3client_config
        )
        self._path: str | os.PathLike[str] = ""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[S3File]:
        """Open an object for ``with``.

        Args:
            path: Its ``s3://`` URI.
            mode: ``rb`` reads; ``wb`` writes an object that appears when the block ends, or not at all if it raises.

        Raises:
            ArgumentError: The mode is another.
            InvalidURIError: ``path`` is no URI.
        """
        bucket, key = _parse(path)
        if mode == "rb":
            with self.client.get_object(bucket, key, reader_config=self.reader_config) as reader:
                yield reader
        elif mode == "wb":
            with self._writing(bucket, key) as writer:
                yield writer
        else:
            raise ArgumentError(
                f"Invalid {mode=} mode argument: create_stream only supports rb (read mode) & wb (write mode)"
            )

    def _writing(self, bucket: str, key: str) -> AbstractContextManager[S3Writer]:
        return self.client.put_object(bucket, key)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Return the path of a file below a path."""
        return f"{_text(path).rstrip('/')}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """Remember the path of the checkpoint, and return it."""
        self._path = path
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy an object within its bucket, and delete it at its old place.

        Raises:
            ArgumentError: The buckets differ.
            NotFoundError: There is no such object.
            S3Error: Any other failure; both objects may exist then.
        """
        (bucket, key), (new_bucket, new_key) = _parse(path), _parse(new_path)
        if bucket != new_bucket:
            raise ArgumentError(
                "Source and destination buckets cannot be different (rename does not support cross-buckets operations)"
            )
        if key == new_key:
            return  # to delete it would lose it
        self._copy(bucket, key, new_key)
        self.client.delete_object(bucket, key)

    def _copy(self, bucket: str, key: str, new_key: str) -> None:
        self.client.copy_object(bucket, key, bucket, new_key)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Do nothing: S3 has no directories."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is such an object.

        Raises:
            S3Error: It cannot be told, as when access is denied.
        """
        try:
            self.client.head_object(*_parse(path))
        except NotFoundError:
            return False
        return True

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete an object. A failure is logged only, since what torch deletes is replaced or not needed."""
        bucket, key = _parse(path)
        try:
            self.client.delete_object(bucket, key)
        except S3Error:
            _log.exception("s3://%s/%s could not be deleted", bucket, key)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """Return the URIs of the objects directly below a path."""
        bucket, key = _parse(path)
        prefix = f"{key.rstrip('/')}/" if key else ""
        pages = self.client.list_objects(bucket, prefix, "/")
        return [f"s3://{bucket}/{info.key}" for page in pages for info in page.object_info]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a checkpoint: an ``s3://`` URI, or a Path, as the reference connector has it."""
        if isinstance(checkpoint_id, Path):
            return True
        try:
            _parse(checkpoint_id)
        except ArgumentError:
            return False
        return True


def _parse(path: str | os.PathLike[str]) -> tuple[str, str]:
    return parse_s3_uri(_text(path))


def _text(path: str | os.PathLike[str]) -> str:
    return os.fspath(path) if isinstance(path, os.PathLike) else path
