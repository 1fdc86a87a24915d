"""Checkpoints of torch.distributed.checkpoint as Hugging Face keeps models: safetensors files and an index.

All ranks write the files themselves, as parts of one upload of each; see ``safetensors/save_together.py``. Nothing is
put together afterwards. The reader reads ranges: each rank what it needs of each tensor, whatever wrote the files.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from s3torch._objects.spread import run
from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.dcp.in_place import aliases_state
from s3torch.checkpoint.group_timeout import GROUP_TIMEOUT, check_group_timeout
from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.safetensors.dtypes import bytes_of, empty
from s3torch.checkpoint.safetensors.load import File, kind_of, open_model
from s3torch.checkpoint.safetensors.save_sharded import check_export_dtype, check_tensor, items_of, new_shard_key
from s3torch.checkpoint.safetensors.save_together import ModelPlan, Parts, complete, plan_model, write_parts
from s3torch.checkpoint.safetensors.slices import ranges_of
from s3torch.client import S3Client
from s3torch.errors import ArgumentError, DeadlineError, S3Error
from s3torch.uri import parse_s3_uri

if TYPE_CHECKING:
    from s3torch._aws.operations import GetObject
    from s3torch._objects.shared_upload import SharedUpload
    from s3torch.config import S3ClientConfig

__all__ = ["S3HuggingFaceStorageReader", "S3HuggingFaceStorageWriter"]

_INDEX = "model.safetensors.index.json"
_MODEL = "model.safetensors"
# Of the bytes that a thread may wait for (S3ClientConfig.max_bytes_in_flight), what a load holds beside its tensors.
_SHARE_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a rank's plan tells its writer.

    Attributes:
        ranks: How many ranks save.
        plan: What this one must know.
    """

    ranks: int
    plan: ModelPlan


class _RankLostError(DeadlineError):
    """A rank is gone, which torch must not wait for.

    torch.distributed.checkpoint catches what a writer raises, and gathers it from all ranks. The one that is gone does
    not take part, so that waits for the timeout of the group, half an hour, or fails with what gloo says of a socket;
    this error, which names the rank, would be lost. So it is raised again when it is pickled for that, once.
    """

    _was_raised = False

    def __reduce__(self) -> tuple[type[DeadlineError], tuple[object, ...]]:
        if not self._was_raised:
            self._was_raised = True
            raise self
        return DeadlineError, self.args


class S3HuggingFaceStorageWriter(StorageWriter):
    """Saves safetensors files and an index, for ``torch.distributed.checkpoint.save`` and ``async_save``.

    The files have names that no other save has, such as ``model-3f2a9c01-00001-of-00002.safetensors``, and appear when
    all parts of all ranks are there; the index ``model.safetensors.index.json``, by which they are found, is written
    last. So what was there before stays until then. Files that an older index named are not deleted.

    Args:
        region: Of the bucket; None finds it.
        path: Of the folder, ``s3://bucket/prefix``.
        fqn_to_index_mapping: The number of the file of each tensor, from 1 on. None: as ``max_shard_size`` asks.
        s3client_config: See S3ClientConfig.
        max_shard_size: Bytes of tensors in one file at most; None for one file.
        export_dtype: What floating-point tensors of 16 bits and more are converted to, part by part; the tensors that
            are saved stay as they are. None converts nothing.
        metadata: Text by name, kept in each header; None for ``{"format": "pt"}``, which transformers asks for.
        process_group: The one that ``save`` is given: ranks exchange by it what is less than a part. None is the
            default one.
        group_timeout: Seconds that a rank waits for the others, at each step, while none of them sends anything.
        endpoint: URL of the server; None finds it.

    Raises:
        InvalidURIError: ``path`` is not of the form ``s3://bucket/key``.
        ArgumentError: Another argument cannot be.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        fqn_to_index_mapping: Mapping[str, int] | None = None,
        s3client_config: S3ClientConfig | None = None,
        *,
        max_shard_size: int | None = None,
        export_dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
        process_group: dist.ProcessGroup | None = None,
        group_timeout: float = GROUP_TIMEOUT,
        endpoint: str | None = None,
    ) -> None:
        super().__init__()
        if max_shard_size is not None and (type(max_shard_size) is not int or max_shard_size < 1):
            raise ArgumentError(f"max_shard_size={max_shard_size!r} cannot be: it must be an integer of 1 or more.")
        if max_shard_size is not None and fqn_to_index_mapping is not None:
            raise ArgumentError("Give fqn_to_index_mapping or max_shard_size: both say which file a tensor goes to.")
        check_export_dtype(export_dtype)
        self.client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self.export_dtype = export_dtype
        self._bucket, self._folder = _place(path)
        self._shard_of = _checked(fqn_to_index_mapping)
        self._max_shard_size = max_shard_size
        self._metadata = {"format": "pt"} if metadata is None else dict(metadata)
        self._group = process_group
        self._timeout = check_group_timeout(group_timeout)
        self._plan: ModelPlan | None = None
        self._parts: Parts = {}
        self._uploads: list[SharedUpload] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another checkpoint; at another path, if one is given."""
        if checkpoint_id is not None:
            self._bucket, self._folder = _place(checkpoint_id)
        self._abort()

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, FBT001
        """Do nothing: what is to be known comes with the plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Check that this rank's plan can be saved.

        Raises:
            ArgumentError: It has something else than dense tensors.
        """
        items_of(plan.items)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Decide which rank sends which bytes.

        Raises:
            ArgumentError: The ranks disagree on a tensor, or it cannot be saved; both are named.
        """
        token = secrets.token_hex(8)
        self._plan = plan_model(
            [items_of(plan.items) for plan in plans],
            lambda number, count: new_shard_key(f"{self._folder}{_MODEL}", number, count, token),
            metadata=self._metadata,
            export_dtype=self.export_dtype,
            part_size=self.client.s3client_config.part_size,
            max_shard_size=self._max_shard_size,
            shard_of=self._shard_of,
            index_key=f"{self._folder}{_INDEX}",
        )
        return [
            dataclasses.replace(plan, storage_data=_Task(len(plans), self._plan.of_rank(rank)))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Send this rank's parts, and wait for those of all others.

        Raises:
            DeadlineError: A rank did not come, or does not answer any more; it is named. ``save`` raises it at once.
            S3Error: A rank could not send its parts; it is named.
        """
        task: _Task = plan.storage_data

        def tensor_of(number: int) -> torch.Tensor:
            item = plan.items[number]
            return check_tensor(item, planner.resolve_data(item))

        group = None if task.ranks == 1 else self._group or dist.group.WORLD
        self._uploads = []
        try:
            with Ranks(group, self._timeout, f"save to s3://{self._bucket}/{self._folder}") as ranks:
                try:
                    ranks.meet(lambda: (self._arguments(task, ranks), None))
                    self._parts = write_parts(ranks, self.client, self._bucket, task.plan, tensor_of, self._uploads)
                except S3Error as error:
                    if ranks.is_whole:
                        raise
                    raise _RankLostError(*error.args) from error
        except BaseException:
            self._abort()
            raise
        done: Future[list[WriteResult]] = Future()
        results = []
        for item, about in zip(plan.items, items_of(plan.items), strict=True):
            size = torch.Size(about.sizes).numel() * about.dtype.itemsize
            results.append(WriteResult(index=item.index, size_in_bytes=size, storage_data=None))
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002  # all is in the parts
        """Make the files appear, and then the index; on the coordinator.

        Raises:
            S3Error: A part is missing, or a file could not be completed; what the index named before is still there.
        """
        if self._plan is None:
            raise AssertionError("finish without a plan")
        try:
            complete(self.client, self._bucket, self._plan, self._parts, self._uploads)
        except BaseException:
            self._abort()
            raise
        self._forget()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a checkpoint."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    def _arguments(self, task: _Task, ranks: Ranks) -> dict[str, str]:
        if ranks.size != task.ranks:
            raise ArgumentError(
                f"{task.ranks} ranks save, and process_group has {ranks.size}: give the writer the group of the save."
            )
        return {"path": f"s3://{self._bucket}/{self._folder}"}

    def _abort(self) -> None:
        """Abort what this rank has begun; others' uploads are those of the first rank."""
        for upload in self._uploads if self._plan is not None else ():
            upload.abort()
        self._forget()

    def _forget(self) -> None:
        self._plan, self._parts, self._uploads = None, {}, []


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
    """

    item: ReadItem
    memory: torch.Tensor
    target: torch.Tensor
    part: torch.Tensor
    file: File
    gets: list[GetObject]
    ranges: list[tuple[int, int]]


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
        """
        ahead = self.client.s3client_config.max_bytes_in_flight // _SHARE_AHEAD if aliases_state(planner) else 0
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


def _requests(
    file: File, start: int, ranges: Sequence[tuple[int, int]], memory: memoryview
) -> tuple[list[GetObject], list[tuple[int, int]]]:
    """Return the requests for ranges of a tensor, which follow one another in memory; what is known is copied."""
    wanted, views, begin = [], [], 0
    for left, right in ranges:
        place = memory[begin : begin + right - left]
        begin += right - left
        if start + right <= len(file.head):
            place[:] = file.head[start + left : start + right]
        else:
            wanted.append((start + left, start + right))
            views.append(place)
    return file.remote.vector(wanted, views), wanted


def _place(path: str | os.PathLike[str]) -> tuple[str, str]:
    bucket, key = parse_s3_uri(os.fspath(path) if isinstance(path, os.PathLike) else path)
    return bucket, f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _checked(shard_of: Mapping[str, int] | None) -> dict[str, int] | None:
    """Return the files of tensors, if they can be numbers of files."""
    if shard_of is None:
        return None
    for name, number in shard_of.items():
        if type(number) is not int or number < 1:
            raise ArgumentError(f"fqn_to_index_mapping[{name!r}]={number!r} cannot be: files are numbered from 1 on.")
    return dict(shard_of)
