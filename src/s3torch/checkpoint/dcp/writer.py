"""S3StorageWriter: saves a distributed checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.dcp.prefixes import DefaultPrefixStrategy, S3PrefixStrategyBase
from s3torch.checkpoint.saving import Counted, Sink
from s3torch.checkpoint.storages import contiguous
from s3torch.checkpoint.uploads import OnUpload, UploadEstimate, estimate_upload, sum_of, writing
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentError, ArgumentTypeError, S3Error
from s3torch.uri import parse_s3_uri
from s3torch.writer import S3Writer

__all__ = ["S3StorageWriter", "StoragePrefix", "WatchedFileSystem"]


@dataclasses.dataclass(frozen=True)
class StoragePrefix:
    """What a rank's plan tells its writer."""

    prefix: str


class S3StorageWriter(FileSystemWriter):
    """Saves a distributed checkpoint, for ``torch.distributed.checkpoint.save`` and ``async_save``.

    Each rank writes ``{prefix}{number}.distcp`` files below the path, one a thread. ``.metadata``, without which there
    is no checkpoint, is written when all of them are complete, by one request: it appears whole, or not at all.

    Args:
        region: Of the bucket; None finds it.
        path: Of the checkpoint, ``s3://bucket/prefix``.
        s3client_config: See S3ClientConfig.
        prefix_strategy: What the names of a rank's files begin with; None is ``DefaultPrefixStrategy()``.
        thread_count: Files that a rank writes at the same time.
        endpoint: URL of the server; None finds it.
        progress: Whether to show a bar while this rank writes its files; None shows one on a terminal.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took, once for each file that this rank has
            stored (``.metadata`` is one), by the thread that has stored it. What it raises is logged.
        **kwargs: Of torch's FileSystemWriter: ``single_file_per_rank``, ``overwrite``, ``serialization_format``, ...

    Raises:
        InvalidURIError: ``path`` is not of the form ``s3://bucket/key``.
        ArgumentError: ``thread_count`` is less than 1.
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        *,
        endpoint: str | None = None,
        progress: bool | None = False,
        on_upload: OnUpload | None = None,
        **kwargs: Any,  # noqa: ANN401  # torch's own, which differ between its versions
    ) -> None:
        parse_s3_uri(os.fspath(path) if isinstance(path, os.PathLike) else path)
        if isinstance(thread_count, bool) or not isinstance(thread_count, int):
            raise ArgumentTypeError(f"thread_count must be an int, got {thread_count!r}.")
        if thread_count < 1:
            raise ArgumentError(f"thread_count={thread_count} cannot be: it must be at least 1.")
        if prefix_strategy is not None and not callable(prefix_strategy):
            raise ArgumentTypeError(f"prefix_strategy must be an S3PrefixStrategyBase, got {prefix_strategy!r}.")
        kwargs["sync_files"] = False  # there is nothing to sync: what S3 has confirmed is stored
        super().__init__(path, thread_count=thread_count, **kwargs)
        self.fs: WatchedFileSystem = WatchedFileSystem(  # type: ignore[assignment]  # torch declares its own
            region, s3client_config=s3client_config, endpoint=endpoint
        )
        self.path = self.fs.init_path(path)
        self._progress = progress
        self._on_upload = on_upload
        self.prefix_strategy = prefix_strategy or DefaultPrefixStrategy()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Check that nothing is overwritten that must not be, and name the files of a rank that saves alone.

        Raises:
            RuntimeError: There is a checkpoint and ``overwrite`` is False.
        """
        plan = super().prepare_local_plan(plan)
        return plan if self._collective else self._named(plan, self.rank or 0)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the files of all ranks."""
        if not self._collective:
            return plans
        return [self._named(plan, rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files.

        torch forgets an exception in one of its threads, and would save a checkpoint that lacks its files.

        Raises:
            S3Error: A file could not be written, or tensors are missing from what was.
            ArgumentError: A safetensors file would have two tensors of the same name, or one that it cannot hold.
        """
        resolving: Any = planner
        if self._is_safetensors:
            _check_names(plan)
            _check_dtypes(plan)
            resolving = _AsBytes(planner)
        self.fs.failures.clear()
        self.fs.on_upload = self._on_upload
        with new_byte_bar(f"Saving {self.path}", None, is_wanted=self._progress) as bar:
            self.fs.count = None if self._progress is False else _locked(bar.update)
            try:
                future: Future[list[WriteResult]] = super().write_data(plan, resolving)
            finally:
                self.fs.count = None
        written = {result.index for result in future.value()}
        missing = sorted({item.index.fqn for item in plan.items if item.index not in written})
        if self.fs.failures:
            raise self.fs.failures[0]
        if missing:
            raise S3Error(f"{', '.join(missing)} could not be saved to {self.path}: see the error of the thread above.")
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what makes the files a checkpoint.

        Raises:
            S3Error: It could not be written; a checkpoint that was there is still there.
        """
        if hasattr(filesystem, "CURRENT_DCP_VERSION"):
            metadata.version = filesystem.CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for of_rank in results for result in of_rank}
        if hasattr(self, "storage_meta"):
            metadata.storage_meta = self.storage_meta()
        self.fs.on_upload = self._on_upload
        name = ".metadata" if self._collective else f"__{self.rank}.metadata"
        with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb") as stream:
            pickle.dump(metadata, stream)

    def estimate(self, state_dict: dict[str, Any], planner: SavePlanner | None = None) -> UploadEstimate:
        """Return what this process would send to save its part of a state, without sending anything.

        Its files are written to nowhere, which takes as long as to copy the tensors. ``.metadata`` is not among them,
        which one rank writes. Where ranks have the same tensors, each of these is counted by each rank, though one of
        them saves it. It asks no other rank.

        Args:
            state_dict: As for ``torch.distributed.checkpoint.save``.
            planner: As for that; None is ``DefaultSavePlanner()``.

        Raises:
            ArgumentError: ``write_data`` would raise it.
        """
        planner = planner or DefaultSavePlanner()
        planner.set_up_planner(state_dict, is_coordinator=True)
        nowhere = _Nowhere(self.fs)
        dry = copy.copy(self)
        dry.fs = nowhere  # type: ignore[assignment]  # of which the writer uses what it has
        dry._progress, dry._on_upload = False, None
        dry.write_data(dry._named(planner.create_local_plan(), self.rank or 0), planner)
        part_size = self.fs.client.s3client_config.part_size
        return sum_of(estimate_upload(size, part_size, is_known=False) for size in nowhere.sizes)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a checkpoint."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    @property
    def _collective(self) -> bool:
        """Whether ranks save one checkpoint together; older versions of torch know nothing else."""
        return getattr(self, "use_collectives", True) or getattr(self, "rank", None) is None

    @property
    def _is_safetensors(self) -> bool:
        form = getattr(self, "serialization_format", None)
        return getattr(form, "value", None) == "safetensors"

    def _named(self, plan: SavePlan, rank: int) -> SavePlan:
        return dataclasses.replace(plan, storage_data=StoragePrefix(self.prefix_strategy(rank)))


class WatchedFileSystem(S3FileSystem):
    """Remembers what went wrong while files were written in threads, and tells what did not.

    Attributes:
        failures: Of all streams, since it was made or the list was cleared.
        on_upload: Is told of each file that is stored; None: nobody is.
        count: Is told how many bytes more were written, by several threads; None: nobody is.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # of S3FileSystem
        super().__init__(*arguments, **options)
        self.failures: list[BaseException] = []
        self.on_upload: OnUpload | None = None
        self.count: Callable[[int], object] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "count": None}  # of a call

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open an object for ``with``, as S3FileSystem does."""
        try:
            with super().create_stream(path, mode) as stream:
                yield stream if self.count is None else Counted(stream, self.count)
        except BaseException as error:
            self.failures.append(error)
            raise

    def _writing(self, bucket: str, key: str) -> AbstractContextManager[S3Writer]:
        return writing(self.client, lambda: self.client.put_object(bucket, key), self.on_upload)


class _Nowhere:
    """What a writer asks of a file system while it writes its files, and keeps their sizes alone.

    Args:
        fs: Knows how paths are put together.

    Attributes:
        failures: As of a WatchedFileSystem, like ``on_upload`` and ``count``.
        sizes: Of the files that were written, in bytes.
    """

    def __init__(self, fs: S3FileSystem) -> None:
        self.failures: list[BaseException] = []
        self.on_upload: OnUpload | None = None
        self.count: Callable[[int], object] | None = None
        self.sizes: list[int] = []
        self.concat_path = fs.concat_path

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Sink]:  # noqa: ARG002  # torch's
        """Open a file for ``with`` that keeps nothing."""
        sink = Sink()
        try:
            yield sink
        except BaseException as error:
            self.failures.append(error)
            raise
        self.sizes.append(sink.size)


class _AsBytes:
    """A planner whose tensors are what their bytes in a safetensors file say.

    Such a file holds no strides, and does not say that numbers are still to be conjugated or negated.

    Args:
        planner: Does the planning.
    """

    def __init__(self, planner: SavePlanner) -> None:
        self._planner = planner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a planner has
        return getattr(self._planner, name)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return what is to be written.

        Raises:
            ArgumentError: It is no dense tensor.
        """
        data = self._planner.resolve_data(write_item)
        if not isinstance(data, torch.Tensor):
            return data
        if data.layout is not torch.strided or data.is_nested or data.is_meta:
            kind = "on the meta device" if data.is_meta else "sparse or nested"
            raise ArgumentError(f"Tensor {write_item.index.fqn!r} is {kind}, which a safetensors file cannot hold.")
        return contiguous(data.detach())


def _locked(count: Callable[[int], object]) -> Callable[[int], object]:
    """Return what may be called by several threads."""
    lock = threading.Lock()

    def counted(number: int) -> None:
        with lock:
            count(number)

    return counted


def _check_names(plan: SavePlan) -> None:
    """Refuse a plan of which torch would keep only the last chunk of a tensor in a safetensors file."""
    names = Counter(item.index.fqn for item in plan.items)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ArgumentError(
            f"{', '.join(sorted(twice))} would be saved in several chunks by one rank, which the safetensors format "
            "cannot hold. Use the default serialization_format."
        )


def _check_dtypes(plan: SavePlan) -> None:
    """Refuse tensors that a safetensors file, or the package as it is installed, cannot hold.

    Raises:
        ArgumentError: There is one.
    """
    from s3torch.checkpoint.safetensors.dtypes import name_of, shape_in_file  # not for big-endian machines

    of_tensors = {item.index.fqn: item.tensor_data for item in plan.items if item.tensor_data is not None}
    for name, facts in of_tensors.items():
        dtype = facts.properties.dtype
        shape_in_file(name_of(dtype, name), facts.chunk.sizes, name)
        if not _has_dtype(dtype):
            raise ArgumentError(
                f"Tensor {name!r} has the dtype {dtype}, which the installed safetensors package cannot write. "
                "pip install -U safetensors"
            )


@functools.cache
def _has_dtype(dtype: torch.dtype) -> bool:
    from safetensors.torch import save  # as torch does, and as late

    try:
        save({"tensor": torch.empty(2, dtype=dtype, device="cpu")})
    except Exception:  # noqa: BLE001  # versions of the package differ in how they refuse one
        return False
    return True
