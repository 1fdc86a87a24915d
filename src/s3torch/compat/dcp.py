"""The distributed checkpoints of s3torchconnector: s3torch's, with its arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from s3torch.checkpoint import dcp
from s3torch.checkpoint.dcp.prefixes import S3PrefixStrategyBase
from s3torch.checkpoint.dcp.writer import WatchedFileSystem
from s3torch.client import S3Client as CoreClient
from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.readers import (
    DCPS3ReaderConstructorProtocol,
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    choose_constructor,
)
from s3torch.compat.wording import worded
from s3torch.config import ReaderType, S3ClientConfig, S3ReaderConfig
from s3torch.uri import parse_s3_uri

__all__ = ["S3FileSystem", "S3StorageReader", "S3StorageWriter", "StorageMetadata"]


@dataclass
class StorageMetadata:
    """What a plan of s3torchconnector tells its writer."""

    prefix: str


class S3FileSystem(WatchedFileSystem):
    """s3torch's file system with the arguments of s3torchconnector.

    Args:
        region: Of the bucket.
        s3_client: Sends the requests; None makes one.
        s3client_config: See S3ClientConfig.
        reader_constructor: Makes the readers; None is sequential.
        reader_config: An older way to choose them.
        reader_type: The oldest way.
        endpoint: URL of the server; None finds it.
    """

    def __init__(
        self,
        region: str,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._reader_constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        kind = S3ReaderConstructor.get_reader_type_string(self._reader_constructor)
        agent = UserAgent(["dcp", torch.__version__, f"md/reader_type#{kind}"])
        super().__init__(region, S3Client(region, endpoint=endpoint, user_agent=agent, s3client_config=s3client_config))
        if s3_client is not None:
            self.client = s3_client  # or what a program has put in its place

    @property
    def _client(self) -> Any:  # noqa: ANN401  # the core declares its own client
        return self.client

    @_client.setter
    def _client(self, client: S3Client) -> None:
        self.client = client

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open an object for ``with``: ``rb`` reads, ``wb`` writes."""
        if mode == "rb":
            bucket, key = parse_s3_uri(str(path))
            with self._client.get_object(bucket, key, reader_constructor=self._reader_constructor) as reader:
                yield reader
        else:
            with super().create_stream(path, mode) as stream:
                yield stream

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Return the path of a file below a path."""
        return os.path.join(path, suffix)  # noqa: PTH118  # a URI

    def rename(self, old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy an object within its bucket, and delete it at its old place."""
        super().rename(old_path, new_path)

    def _copy(self, bucket: str, key: str, new_key: str) -> None:
        self.client.copy_object(bucket, quote(key, safe=""), bucket, new_key)


class S3StorageWriter(dcp.S3StorageWriter):
    """s3torch's writer; see ``s3torch.dcp.S3StorageWriter``."""

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        *,
        endpoint: str | None = None,
        **kwargs: Any,  # noqa: ANN401  # torch's own, which differ between its versions
    ) -> None:
        super().__init__(region, path, s3client_config, prefix_strategy, thread_count, endpoint=endpoint, **kwargs)
        self.fs = S3FileSystem(region, s3client_config=s3client_config, endpoint=endpoint)
        self.path = self.fs.init_path(path)


class S3StorageReader(dcp.S3StorageReader):
    """s3torch's reader with the arguments of s3torchconnector; see ``s3torch.dcp.S3StorageReader``.

    The readers that S3ReaderConstructor makes are not needed: what a load plan names is read as ranges, concurrently.
    With a constructor or a file system of the program's own, even one derived from these, each file is read by one
    reader, item by item, as torch does it.

    Args:
        region: Of the bucket.
        path: Of the checkpoint.
        s3client_config: See S3ClientConfig.
        reader_constructor: Makes the readers; None is ``S3ReaderConstructor.dcp_optimized()``.
        reader_config: An older way to choose them.
        reader_type: The oldest way.
        endpoint: URL of the server; None finds it.
    """

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(region, path, s3client_config, endpoint=endpoint)
        if reader_constructor is None and reader_config is None and reader_type is None:
            reader_constructor = S3ReaderConstructor.dcp_optimized()
        self._reader_constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        if self._is_strict and S3ReaderConstructor.get_reader_type_string(self._reader_constructor) != "unknown":
            self._reader_constructor = S3ReaderConstructor.sequential()  # others hand out what is not verified yet
        self.fs = S3FileSystem(
            region, s3client_config=s3client_config, reader_constructor=self._reader_constructor, endpoint=endpoint
        )
        self.path = self.fs.init_path(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401  # torch's signature
        """Read ``.metadata``, or that of a rank."""
        return worded(super().read_metadata)(*args, **kwargs)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Sort the items of a plan by their places, and tell them to a constructor that wants to know."""
        plan.items.sort(key=lambda item: self.storage_data[item.storage_index].offset)
        if isinstance(self._reader_constructor, DCPS3ReaderConstructorProtocol):
            self._reader_constructor.set_item_ranges_by_file(plan.items, self.storage_data, self.path)
        return plan

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Load what a plan names."""
        if self._reads_ranges():
            return worded(super().read_data)(plan, planner)
        future: Future[None] = FileSystemReader.read_data(self, plan, planner)
        return future

    def _reads_ranges(self) -> bool:
        """Whether nothing of the program's own stands between the files and the plan."""
        return (
            S3ReaderConstructor.get_reader_type_string(self._reader_constructor) != "unknown"
            and getattr(self.fs.create_stream, "__func__", None) is S3FileSystem.create_stream
            and isinstance(self.fs.client, CoreClient)
        )
