"""Hugging Face models, loaded by torch.distributed.checkpoint: each rank reads ranges, whatever wrote the files."""

from __future__ import annotations

import math
import os
import secrets
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from s3torch._objects.spread import run
from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.dcp.in_place import aliases_state
from s3torch.checkpoint.safetensors.dtypes import bytes_of, empty
from s3torch.checkpoint.safetensors.load import File, kind_of, open_model
from s3torch.checkpoint.safetensors.slices import ranges_of
from s3torch.client import S3Client
from s3torch.errors import S3Error
from s3torch.uri import parse_s3_uri

if TYPE_CHECKING:
    from s3torch._aws.operations import GetObject
    from s3torch.config import S3ClientConfig

__all__ = ["S3HuggingFaceStorageReader"]

# Of the bytes that a thread may wait for (S3ClientConfig.max_bytes_in_flight), what a load holds beside its tensors.
_SHARE_AHEAD = 2


class _Read(NamedTuple):
    """A part of a tensor that is being received.

    Attributes:
        item: Of the plan.
        memory: Gets it: of the target, or beside it.
        target: Of the planner.
        part: Of ``memory``, what is wanted.
        file: That it comes from.
        gets: The requests.
        ranges: Of the file.
        contents: Places in the file, and what is read there, by requests or with its header.
    """

    item: ReadItem
    memory: torch.Tensor
    target: torch.Tensor
    part: torch.Tensor
    file: File
    gets: list[GetObject]
    ranges: list[tuple[int, int]]
    contents: list[tuple[int, memoryview]]


class S3HuggingFaceStorageReader(StorageReader):
    """Loads safetensors files, for ``torch.distributed.checkpoint.load``: each rank reads what it needs.

    Args:
        region: Of the bucket; None finds it.
        path: Of the folder (``s3://bucket/prefix``: its ``model.safetensors.index.json``, or ``model.safetensors``), of
            an index or of a file.
        s3client_config: See S3ClientConfig.
        endpoint: URL of the server; None finds it.

    Raises:
        InvalidURIError: ``path`` is not of the form ``s3://bucket/key``.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        *,
        endpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self.load_id: str | None = None
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin to load another checkpoint; at another path, if one is given."""
        if checkpoint_id is not None:
            path = os.fspath(checkpoint_id) if isinstance(checkpoint_id, os.PathLike) else checkpoint_id
            parse_s3_uri(path)
            self.path = path
        self.load_id = secrets.token_hex(8)
        self._files: dict[str, File] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401, ARG002  # of torch's versions
        """Read the headers of all files.

        Raises:
            NotFoundError: There is no such model, or a file that its index names is not there.
            CheckpointFormatError: A file is damaged.
        """
        is_file = self.path.endswith((".safetensors", ".json"))
        files = open_model(self.client, self.path if is_file else f"{self.path.rstrip('/')}/", None)
        self._files = {name: file for file in files for name in file.header.tensors}
        tensors: dict[str, Any] = {}
        for name, file in self._files.items():
            dtype, shape = kind_of(file.header.tensors[name], name)
            size = torch.Size(shape)
            chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=size)
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, [chunk])
        metadata = Metadata(state_dict_metadata=tensors)
        metadata.storage_data = {
            MetadataIndex(name, torch.Size([0] * len(about.size))): str(self._files[name])
            for name, about in tensors.items()
        }
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, FBT001
        """Do nothing: the headers were read with the metadata."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Receive what the plan needs, from all files at the same time.

        Raises:
            S3Error: It could not be read, or does not fit the plan.
            UnverifiedError: ``checksums`` are "strict", and nothing proves what was read.
        """
        ahead: float = self.client._access.share.bytes_in_flight // _SHARE_AHEAD if aliases_state(planner) else 0
        if ahead and self.client.s3client_config.checksums == "strict":
            ahead = math.inf  # files that are read whole are proven as a whole
        waiting = deque(plan.items)
        while waiting:  # a window after the other: what is beside the tensors stays small
            reads: list[_Read] = []
            size = 0
            taken: set[int] = set()  # memory of several items gets that of the last, as if they came in order
            while waiting and (not reads or size < ahead):
                read = self._begin(waiting.popleft(), planner, taken)
                reads.append(read)
                size += read.memory.nbytes if read.memory is not read.target else 0
            run(self.client._access, [get for read in reads for get in read.gets])
            for read in reads:
                read.file.remote.conclude_vector(read.gets, read.ranges)
            _prove(reads)
            for read in reads:
                if read.memory is not read.target:
                    read.target.copy_(read.part)
                planner.commit_tensor(read.item, read.target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a checkpoint."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    def _begin(self, item: ReadItem, planner: LoadPlanner, taken: set[int]) -> _Read:
        name = item.storage_index.fqn
        if item.type is LoadItemType.BYTE_IO:
            raise S3Error(f"{name!r} is no tensor, and {self.path} has nothing else.")
        if name not in self._files:
            raise S3Error(f"{self.path} has no tensor {name!r}.")
        file = self._files[name]
        info = file.header.tensors[name]
        dtype, shape = kind_of(info, name)
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise S3Error(
                f"{name!r} of {self.path} has the size {tuple(item.lengths)} where the plan has a tensor of "
                f"{tuple(target.shape)}."
            )
        bounds = [(begin, begin + count) for begin, count in zip(item.storage_offsets, item.lengths, strict=True)]
        ranges, fetched = ranges_of(shape, bounds, dtype.itemsize)
        fetched_shape = [stop - start for start, stop in fetched]
        is_there = (
            type(target) is torch.Tensor
            and target.device.type == "cpu"
            and target.dtype == dtype
            and target.is_contiguous()
            and fetched_shape == list(target.shape)
            and not (target.is_conj() or target.is_neg())
            and target.data_ptr() not in taken
        )
        taken.add(target.data_ptr())
        memory = target if is_there else empty(dtype, fetched_shape)
        part = memory
        for dimension, ((start, stop), (begin, _)) in enumerate(zip(bounds, fetched, strict=True)):
            part = part.narrow(dimension, start - begin, stop - start)
        return _Read(item, memory, target, part, file, *_requests(file, info.start, ranges, bytes_of(memory)))


def _prove(reads: Sequence[_Read]) -> None:
    """Verify what was read of each file, with ``checksums="strict"``."""
    by_file: dict[File, list[tuple[int, memoryview]]] = {}
    for read in reads:
        by_file.setdefault(read.file, []).extend(read.contents)
    for file in list(by_file):
        file.prove(by_file.pop(file))


def _requests(
    file: File, start: int, ranges: Sequence[tuple[int, int]], memory: memoryview
) -> tuple[list[GetObject], list[tuple[int, int]], list[tuple[int, memoryview]]]:
    """Return the requests for ranges of a tensor, which follow one another in memory; what is known is copied.

    Returns:
        The requests, their ranges, and where all of the memory lies in the file.
    """
    wanted, views, contents, begin = [], [], [], 0
    for left, right in ranges:
        place = memory[begin : begin + right - left]
        contents.append((start + left, place))
        begin += right - left
        if start + right <= len(file.head):
            place[:] = file.head[start + left : start + right]
        else:
            wanted.append((start + left, start + right))
            views.append(place)
    return file.remote.vector(wanted, views), wanted, contents
