"""What ranks that write a model together send: decided from what each of them has, before a byte is written. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from s3torch.checkpoint.safetensors.dtypes import name_of
from s3torch.checkpoint.safetensors.format import build_header, split_into_shards
from s3torch.checkpoint.safetensors.layout import (
    Chunk,
    FilePlan,
    TensorPlan,
    plan_file,
    with_exchanges,
    without_copies,
)
from s3torch.checkpoint.uploads import UploadEstimate, sum_of
from s3torch.errors import ArgumentError

__all__ = ["Item", "ModelPlan", "estimate_plan", "exported", "plan_model"]

# Bytes that ranks exchange at once, for each of them. Not tuned.
_EXCHANGED = 16 * 1024**2
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Item:
    """A chunk of a tensor, as the rank that has it describes it to the others.

    Attributes:
        name: Of the tensor.
        dtype: Of the tensor.
        shape: Of the whole tensor.
        offsets: Where the chunk begins in it.
        sizes: Of the chunk.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What is written.

    Attributes:
        files: With their parts.
        index: Key and text of the index; None if there is none.
        export_dtype: What floating-point tensors are converted to; None for what they are.
        exchanges: How often ranks exchange what is less than a part.
    """

    files: list[FilePlan]
    index: tuple[str, bytes] | None
    export_dtype: torch.dtype | None
    exchanges: int

    def bytes_of_rank(self, rank: int) -> int:
        """Return how many bytes one rank sends."""
        return sum(part.size for file in self.files for part in file.parts if part.owner == rank)

    def of_rank(self, rank: int) -> ModelPlan:
        """Return what one rank must know."""
        files = []
        for file in self.files:
            parts = tuple(part for part in file.parts if part.owner == rank or rank in part.bytes_by_rank())
            files.append(FilePlan(file.key, parts))
        return ModelPlan(files, None, self.export_dtype, self.exchanges)


def exported(dtype: torch.dtype, export_dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype that a tensor is written with: floating-point ones of 16 bits and more are converted."""
    return export_dtype if export_dtype is not None and dtype in _FLOATS else dtype


def plan_model(
    items: Sequence[Sequence[Item]],
    key_of: Callable[[int, int], str],
    *,
    metadata: Mapping[str, str] | None,
    export_dtype: torch.dtype | None,
    part_size: int,
    max_shard_size: int | None = None,
    shard_of: Mapping[str, int] | None = None,
    index_key: str | None = None,
) -> ModelPlan:
    """Decide who sends which bytes of which file.

    Args:
        items: Of each rank.
        key_of: Returns the key of a file, from 1 on, of so many.
        metadata: Text by name, for each header.
        export_dtype: What floating-point tensors are converted to; None for nothing.
        part_size: Bytes of a part, as far as the chunks allow.
        max_shard_size: Bytes of tensors in one file at most; None for one file.
        shard_of: The file of each tensor, from 1 on, instead.
        index_key: Of the index; None for no index.

    Raises:
        ArgumentError: The ranks disagree on a tensor, or it cannot be saved; it is named, and the rank.
    """
    found: dict[str, tuple[int, Item]] = {}
    chunks: dict[str, list[Chunk]] = {}
    for rank, of_rank in enumerate(items):
        for number, item in enumerate(of_rank):
            first, known = found.setdefault(item.name, (rank, item))
            if (known.dtype, known.shape) != (item.dtype, item.shape):
                raise ArgumentError(
                    f"The ranks disagree on tensor {item.name!r}: {known.dtype} of {list(known.shape)} on rank "
                    f"{first}, {item.dtype} of {list(item.shape)} on rank {rank}."
                )
            chunks.setdefault(item.name, []).append(Chunk(rank, number, item.offsets or (0,), item.sizes or (1,)))
    described = {name: _described(rank, item, export_dtype) for name, (rank, item) in found.items()}
    sizes = {name: size for name, (_, _, size) in described.items()}
    shards = _shards(sizes, max_shard_size, shard_of)
    plans = []
    for name, (_, item) in found.items():
        item_size = exported(item.dtype, export_dtype).itemsize
        plans.append(TensorPlan(name, item.shape or (1,), item_size, tuple(chunks[name])))
    tensors = {tensor.name: tensor for tensor in without_copies(plans)}
    files = []
    load: dict[int, int] = {}
    for number, shard in enumerate(shards, 1):
        head, order = build_header({name: described[name] for name in shard}, metadata)
        key = key_of(number, len(shards))
        files.append(plan_file(key, head, [tensors[name] for name in order], part_size, load))
    index = None
    if index_key is not None:
        names = [file.key.rpartition("/")[2] for file in files]
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        index = index_key, json.dumps(document, indent=2).encode()
    files, exchanges = with_exchanges(files, _EXCHANGED * len(items))
    return ModelPlan(files, index, export_dtype, exchanges)


def estimate_plan(plan: ModelPlan) -> UploadEstimate:
    """Return what all ranks together would send, as ``estimate_file`` says it of one."""
    files = [
        UploadEstimate(size=sum(part.size for part in file.parts), objects=1, requests=len(file.parts) + 2)
        for file in plan.files
    ]
    if plan.index is None:
        return sum_of(files, other_requests=1)  # whether there is an index
    _, text = plan.index
    # Beside the files: is there an index, is there a model in one file, the note (which is gone in the end), its end.
    return sum_of([*files, UploadEstimate(size=len(text), objects=1, requests=1)], other_requests=4)


def _described(rank: int, item: Item, export_dtype: torch.dtype | None) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and size of a tensor, as its header has them."""
    try:
        item.name.encode()
        name = name_of(exported(item.dtype, export_dtype), item.name)
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"Rank {rank}: the name of tensor {item.name!a} cannot be written as UTF-8: {error.reason}."
        ) from error
    except ArgumentError as error:
        raise ArgumentError(f"Rank {rank}: {error}") from error
    shape = item.shape
    if name == "F4":  # torch counts two items as one
        if not shape:
            raise ArgumentError(f"Rank {rank}: tensor {item.name!r} of {item.dtype} has no dimension.")
        shape = (*shape[:-1], shape[-1] * 2)
    return name, shape, prod(item.shape) * exported(item.dtype, export_dtype).itemsize


def _shards(
    sizes: Mapping[str, int], max_shard_size: int | None, shard_of: Mapping[str, int] | None
) -> list[list[str]]:
    """Return the names of each file's tensors."""
    if shard_of is None:
        return split_into_shards(sizes, max_shard_size) or [[]] if max_shard_size is not None else [list(sizes)]
    missing = [name for name in sizes if name not in shard_of]
    if missing:
        raise ArgumentError(f"fqn_to_index_mapping has no file for tensor {missing[0]!r}.")
    count = max(shard_of.values(), default=1)
    return [[name for name in sizes if shard_of[name] == number] for number in range(1, count + 1)]
