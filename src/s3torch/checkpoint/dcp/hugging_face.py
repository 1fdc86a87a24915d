"""Checkpoints of torch.distributed.checkpoint as Hugging Face keeps models: safetensors files and an index.

All ranks write the files themselves, as parts of one upload of each; see ``safetensors/save_together.py``. Nothing is
put together afterwards.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    Metadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.group_timeout import GROUP_TIMEOUT, check_group_timeout
from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.safetensors.model_plan import Item, ModelPlan, estimate_plan, plan_model
from s3torch.checkpoint.safetensors.save_sharded import check_export_dtype, check_tensor, items_of, new_shard_key
from s3torch.checkpoint.safetensors.save_together import Parts, complete, write_parts
from s3torch.client import S3Client
from s3torch.errors import ArgumentError, DeadlineError, S3Error
from s3torch.uri import parse_s3_uri

if TYPE_CHECKING:
    from s3torch._objects.shared_upload import SharedUpload
    from s3torch.checkpoint.uploads import OnUpload, UploadEstimate
    from s3torch.config import S3ClientConfig

__all__ = ["S3HuggingFaceStorageWriter"]

_INDEX = "model.safetensors.index.json"
_MODEL = "model.safetensors"


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
        progress: Whether to show a bar while this rank sends its parts; None shows one on a terminal.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took all ranks, once for each file of
            tensors that is stored; on the coordinator alone, which stores them. What it raises is logged.

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
        progress: bool | None = False,
        on_upload: OnUpload | None = None,
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
        self._progress = progress
        self._on_upload = on_upload
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
        self._plan = self._planned([items_of(plan.items) for plan in plans])
        return [
            dataclasses.replace(plan, storage_data=_Task(len(plans), self._plan.of_rank(rank)))
            for rank, plan in enumerate(plans)
        ]

    def estimate(
        self,
        state_dict: dict[str, Any],
        planner: SavePlanner | None = None,
        *,
        no_dist: bool = False,
    ) -> UploadEstimate:
        """Return what all ranks together would send to Amazon S3 if the folder is empty, without sending anything.

        All ranks of the group call it, and get the same. See ``s3torch.safetensors.estimate_file`` for what counts
        beside the files.

        Args:
            state_dict: As for ``torch.distributed.checkpoint.save``.
            planner: As for that; None is ``DefaultSavePlanner()``.
            no_dist: As for that: whether this process saves alone.

        Raises:
            ArgumentError: The save would raise it.
            DeadlineError: A rank did not come, or does not answer any more; it is named.
        """
        group = None if no_dist or not dist.is_initialized() else self._group or dist.group.WORLD
        planner = planner or DefaultSavePlanner()
        with Ranks(group, self._timeout, f"estimate for s3://{self._bucket}/{self._folder}") as ranks:

            def prepare() -> tuple[dict[str, str], list[Item]]:
                planner.set_up_planner(state_dict, is_coordinator=ranks.rank == 0)
                return {}, items_of(planner.create_local_plan().items)

            return estimate_plan(self._planned(ranks.all_of(ranks.meet(prepare))))

    def _planned(self, items: Sequence[Sequence[Item]]) -> ModelPlan:
        """Decide which rank sends which bytes of the tensors that each rank has."""
        token = secrets.token_hex(8)
        return plan_model(
            items,
            lambda number, count: new_shard_key(f"{self._folder}{_MODEL}", number, count, token),
            metadata=self._metadata,
            export_dtype=self.export_dtype,
            part_size=self.client.s3client_config.part_size,
            max_shard_size=self._max_shard_size,
            shard_of=self._shard_of,
            index_key=f"{self._folder}{_INDEX}",
        )

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
                place, size = f"s3://{self._bucket}/{self._folder}", task.plan.bytes_of_rank(ranks.rank)
                try:
                    ranks.meet(lambda: (self._arguments(task, ranks), None))
                    with new_byte_bar(f"Saving {place}", size, is_wanted=self._progress) as bar:
                        self._parts = write_parts(
                            ranks, self.client, self._bucket, task.plan, tensor_of, self._uploads, bar.update
                        )
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
            complete(self.client, self._bucket, self._plan, self._parts, self._uploads, self._on_upload)
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
