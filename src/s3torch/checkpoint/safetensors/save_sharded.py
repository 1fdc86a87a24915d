"""save_sharded: a model whose tensors are spread over ranks, saved as safetensors files by all of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.group_timeout import GROUP_TIMEOUT, check_group_timeout
from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.safetensors.format import shard_names
from s3torch.checkpoint.safetensors.load import ClientContext, client_for
from s3torch.checkpoint.safetensors.model_plan import Item, ModelPlan, estimate_plan, plan_model
from s3torch.checkpoint.safetensors.save import check_tensors
from s3torch.checkpoint.safetensors.save_together import complete, write_parts
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentError, ArgumentTypeError
from s3torch.uri import parse_checkpoint_uri

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.planner import SavePlan, WriteItem

    from s3torch._objects.shared_upload import SharedUpload
    from s3torch.checkpoint.uploads import OnUpload, UploadEstimate
    from s3torch.client import S3Client

__all__ = ["check_export_dtype", "check_tensor", "estimate_sharded", "items_of", "new_shard_key", "save_sharded"]


def save_sharded(
    tensors: Mapping[str, torch.Tensor],
    uri: str,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    *,
    group: ProcessGroup | None = None,
    export_dtype: torch.dtype | None = None,
    group_timeout: float = GROUP_TIMEOUT,
    client: S3Client | None = None,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool | None = False,
    on_upload: OnUpload | None = None,
) -> None:
    """Save the tensors of all ranks as a safetensors file, or several: each rank sends what it has of each of them.

    The parts of all ranks are one multipart upload of each file. Nothing is written to a disk or put together
    afterwards, and all files appear when all parts of all are there. A failure before leaves what was there before.

    Args:
        tensors: By name: DTensors, of which each rank has a part, and others, which are the same on all ranks.
        uri: Of the file: ``s3://bucket/model.safetensors``.
        metadata: Text by name, kept in each header; None for none.
        max_shard_size: Bytes of tensors in one file at most. The files have names that no other save has
            (``model-3f2a9c01-00001-of-00002.safetensors``), and the index (``model.safetensors.index.json``) is written
            when all of them are there, so it never names a mixture. None: one file without an index.
        group: Of torch.distributed, whose ranks all call this; None for this process alone.
        export_dtype: What floating-point tensors of 16 bits and more are converted to, such as ``torch.bfloat16``,
            part by part: the tensors themselves are left as they are. None converts nothing.
        group_timeout: Seconds that a rank waits for the others, at each step, while none of them sends anything.
        client: Sends the requests; None makes one of the following.
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        progress: Whether this rank shows a bar of what it sends; None shows one on a terminal.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took all ranks, once for each file of
            tensors that is stored; on the first rank alone, which stores them. What it raises is logged.

    Raises:
        ArgumentError: A tensor cannot be saved, or the ranks disagree; tensor and rank are named. Nothing was written.
        InvalidURIError: ``uri`` is not of the form ``s3://bucket/key``, or names a folder.
        DeadlineError: A rank did not come, or does not answer any more; it is named. If it was killed while the first
            rank made the files appear, the new model may be there.
        S3Error: Any other failure.
    """

    def prepare() -> tuple[dict[str, str], tuple[_Model, ClientContext]]:
        model = _Model(tensors, uri, metadata, max_shard_size, export_dtype)
        return model.arguments(), (model, client_for(client, region, endpoint, s3client_config))

    from torch.distributed.checkpoint.utils import find_state_dict_object

    with Ranks(group, check_group_timeout(group_timeout), f"save to {uri}") as ranks:
        model, context = ranks.meet(prepare)
        with context as own:
            bucket = model.bucket
            plan = model.plan(ranks, own.s3client_config.part_size)
            uploads: list[SharedUpload] = []

            def tensor_of(number: int) -> torch.Tensor:
                item = model.own_plan.items[number]
                return check_tensor(item, find_state_dict_object(dict(tensors), item.index))

            try:
                with new_byte_bar(f"Saving {uri}", plan.bytes_of_rank(ranks.rank), is_wanted=progress) as bar:
                    parts = write_parts(ranks, own, bucket, plan, tensor_of, uploads, bar.update)
                if ranks.rank == 0:
                    ranks.attempt(lambda: complete(own, bucket, plan, parts, uploads, on_upload, ranks.tell))
                else:
                    ranks.settle()
            except BaseException:
                for upload in uploads if ranks.rank == 0 else ():
                    upload.abort()
                raise


def estimate_sharded(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    *,
    group: ProcessGroup | None = None,
    export_dtype: torch.dtype | None = None,
    group_timeout: float = GROUP_TIMEOUT,
    s3client_config: S3ClientConfig | None = None,
) -> UploadEstimate:
    """Return what ``save_sharded`` would send to Amazon S3 if there is no model of that name, without sending anything.

    It is what all ranks together would send; all of them call this, and get the same. See ``estimate_file`` for what
    counts beside the files.

    Args:
        tensors: As for ``save_sharded``, like the others.
        metadata: Text by name, kept in each header; None for none.
        max_shard_size: Bytes of tensors in one file at most; None for one file without an index.
        group: Of torch.distributed, whose ranks all call this; None for this process alone.
        export_dtype: What floating-point tensors are converted to.
        group_timeout: Seconds that a rank waits for the others, at each step.
        s3client_config: See S3ClientConfig; its ``part_size`` counts.

    Raises:
        ArgumentError: ``save_sharded`` would raise it.
        DeadlineError: A rank did not come, or does not answer any more; it is named.
    """

    def prepare() -> tuple[dict[str, str], _Model]:
        model = _Model(tensors, "s3://bucket/model.safetensors", metadata, max_shard_size, export_dtype)
        return model.arguments(), model

    with Ranks(group, check_group_timeout(group_timeout), "estimate") as ranks:
        model = ranks.meet(prepare)
        return estimate_plan(model.plan(ranks, (s3client_config or S3ClientConfig()).part_size))


class _Model:
    """What one rank has of a model that all save.

    Args: see ``save_sharded``.

    Attributes:
        bucket: Of the files.
        own_plan: Of this rank.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        uri: str,
        metadata: Mapping[str, str] | None,
        max_shard_size: int | None,
        export_dtype: torch.dtype | None,
    ) -> None:
        self.bucket, self._key = parse_checkpoint_uri(uri)
        if max_shard_size is not None and (type(max_shard_size) is not int or max_shard_size < 1):
            raise ArgumentError(f"max_shard_size={max_shard_size!r} cannot be: it must be an integer of 1 or more.")
        check_export_dtype(export_dtype)
        self._uri = uri
        self._metadata = metadata
        self._max_shard_size = max_shard_size
        self._export_dtype = export_dtype
        self.own_plan = _plan(tensors)
        self._items = items_of(self.own_plan.items)

    def arguments(self) -> dict[str, str]:
        """Return what must be the same on all ranks."""
        return {
            "uri": repr(self._uri),
            "metadata": repr(self._metadata),
            "max_shard_size": repr(self._max_shard_size),
            "export_dtype": repr(self._export_dtype),
        }

    def plan(self, ranks: Ranks, part_size: int) -> ModelPlan:
        """Decide who sends what, on all ranks in the same way.

        Raises:
            ArgumentError: The ranks disagree on a tensor, or it cannot be saved.
        """
        token = ranks.from_first(lambda: secrets.token_hex(8))
        is_sharded, key = self._max_shard_size is not None, self._key
        return plan_model(
            ranks.all_of(self._items),
            lambda number, count: new_shard_key(key, number, count, token) if is_sharded else key,
            metadata=self._metadata,
            export_dtype=self._export_dtype,
            part_size=part_size,
            max_shard_size=self._max_shard_size,
            index_key=f"{key}.index.json" if is_sharded else None,
        )


def new_shard_key(key: str, number: int, count: int, token: str) -> str:
    """Return the key of a file that no other save has written."""
    return shard_names(key, count, token)[number - 1]


def check_export_dtype(dtype: torch.dtype | None) -> None:
    """Check what tensors are to be converted to.

    Raises:
        ArgumentError: Not a floating-point dtype.
    """
    given: object = dtype
    if given is None:
        return
    if not isinstance(given, torch.dtype):
        raise ArgumentTypeError(f"export_dtype must be a dtype of torch, got {given!r}.")
    if not given.is_floating_point:
        raise ArgumentError(f"export_dtype={given} cannot be: only floating-point tensors are converted.")


def items_of(items: list[WriteItem]) -> list[Item]:
    """Describe what a plan writes.

    Raises:
        ArgumentError: It is no tensor.
    """
    found = []
    for item in items:
        about = item.tensor_data
        if about is None:
            raise ArgumentError(f"{item.index.fqn!r} is no tensor, and the safetensors format holds nothing else.")
        if about.properties.layout is not torch.strided:
            raise ArgumentError(f"Tensor {item.index.fqn!r} is sparse ({about.properties.layout}): call to_dense().")
        chunk = about.chunk
        found.append(
            Item(
                item.index.fqn,
                about.properties.dtype,
                tuple(about.size),
                tuple(chunk.offsets),
                tuple(chunk.sizes),
            )
        )
    return found


def check_tensor(item: WriteItem, found: object) -> torch.Tensor:
    """Return what a plan writes, if it has bytes.

    Raises:
        ArgumentError: It has none.
    """
    if not isinstance(found, torch.Tensor):
        raise ArgumentTypeError(f"{item.index.fqn!r} is no tensor: {type(found).__name__}.")
    if found.is_meta:
        raise ArgumentError(f"Tensor {item.index.fqn!r} is on the meta device, and has no bytes to save.")
    return found


def _plan(tensors: Mapping[str, torch.Tensor]) -> SavePlan:
    from torch.distributed.checkpoint.default_planner import create_default_local_save_plan  # takes a second

    check_tensors(tensors)
    for name, tensor in tensors.items():
        if tensor.is_quantized:
            raise ArgumentError(f"Tensor {name!r} is quantised ({tensor.dtype}), which the safetensors format lacks.")
    return create_default_local_save_plan(dict(tensors), is_coordinator=True)
