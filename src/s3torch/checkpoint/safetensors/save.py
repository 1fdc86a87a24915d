"""Tensors written as safetensors files, straight from their memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.safetensors.dtypes import bytes_of, name_of, shape_in_file
from s3torch.checkpoint.safetensors.format import build_header, shard_names, split_into_shards
from s3torch.checkpoint.safetensors.load import client_for
from s3torch.checkpoint.safetensors.replacing import OneFile, Sharded
from s3torch.checkpoint.storages import contiguous
from s3torch.checkpoint.uploads import OnUpload, UploadEstimate, estimate_upload, sum_of, writing
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentError, ArgumentTypeError
from s3torch.uri import parse_checkpoint_uri

__all__ = ["check_tensors", "estimate_file", "save_file"]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    uri: str,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    *,
    client: S3Client | None = None,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool | None = None,
    on_upload: OnUpload | None = None,
) -> None:
    """Save tensors as a safetensors file, or several, as ``safetensors.torch.save_file`` does to a file.

    A file appears when it is complete. If there are several, they have names that no other save has, such as
    ``model-3f2a9c1d0b5e7a64-00001-of-00002.safetensors``, and the model appears with the index
    (``model.safetensors.index.json`` for ``model.safetensors``), which is written last. So a model that has the name
    already, in one file or in several, is there until the new one is, and is deleted then: weights of two saves are
    never mixed, whatever fails. Who loads the old one at that moment gets all of it, or an error.

    If it fails, the files that were written are deleted. What a killed process leaves is noted in the folder
    ``.s3torch/`` beside the model while it is at work, for ``s3torch.checkpoint.clean``.

    Args:
        tensors: By name: dense, contiguous, and no two in the same memory. Those that are not on the CPU are copied
            there, one at a time.
        uri: Of the file: ``s3://bucket/model.safetensors``.
        metadata: Text by name, kept in the header; None for none.
        max_shard_size: Bytes of tensors in one file at most; a larger tensor has a file of its own. None, or enough for
            all: one file without an index.
        client: Sends the requests; None makes one of the following.
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        progress: Whether to show a bar; None shows one on a terminal.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took, once for each file of tensors that is
            stored. What it raises is logged.

    Raises:
        ArgumentError: A tensor cannot be saved as it is, or another argument cannot be. Nothing was written.
        ArgumentTypeError: A tensor is none.
        InvalidURIError: ``uri`` is not of the form ``s3://bucket/key``, or names a folder.
        S3Error: Any other failure. Nothing of the new model is visible, or, if only what it replaces could not be
            deleted, the message says so.
    """
    bucket, key = parse_checkpoint_uri(uri)
    shards = _plan(tensors, metadata, max_shard_size)
    total = sum(tensor.nbytes for tensor in tensors.values())
    with (
        client_for(client, region, endpoint, s3client_config) as own,
        new_byte_bar(f"Saving {uri}", total, is_wanted=progress) as bar,
    ):

        def put(shard_key: str, shard: _Shard) -> None:
            opened = partial(own.put_object, bucket, shard_key, size=shard.size)
            with writing(own, opened, on_upload) as writer:
                writer.write(shard.header)
                for name in shard.in_order:
                    writer.write_lasting(bytes_of(contiguous(tensors[name].detach().cpu())))
                    bar.update(tensors[name].nbytes)

        if len(shards) == 1:
            model = OneFile(own, bucket, key)
            put(key, shards[0])
            model.take_over()
            return
        sharded = Sharded(own, bucket, key, shard_names(key, len(shards), secrets.token_hex(8)))
        try:
            sharded.begin()
            for shard_key, shard in zip(sharded.keys, shards, strict=True):
                put(shard_key, shard)
            sharded.commit(_build_index(sharded.keys, shards, total))
        except BaseException:
            sharded.give_up()
            raise


def estimate_file(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    *,
    s3client_config: S3ClientConfig | None = None,
) -> UploadEstimate:
    """Return what ``save_file`` would send to Amazon S3 if there is no model of that name, without sending anything.

    The requests include that which asks for an index, and of a model in several files its index, the note that is there
    while it is at work, and what deletes that. Names in the index are those of a model that is called
    ``model.safetensors``. A server that is not Amazon S3 gets one request more for an index, before that is stored.

    Args:
        tensors: As for ``save_file``, like the others.
        metadata: Text by name, kept in the header; None for none.
        max_shard_size: Bytes of tensors in one file at most; None for one file.
        s3client_config: See S3ClientConfig; its ``part_size`` counts.

    Raises:
        ArgumentError: ``save_file`` would raise it.
        ArgumentTypeError: A tensor is none.
    """
    part_size = (s3client_config or S3ClientConfig()).part_size
    shards = _plan(tensors, metadata, max_shard_size)
    files = [estimate_upload(shard.size, part_size) for shard in shards]
    if len(shards) == 1:
        return sum_of(files, other_requests=1)
    keys = shard_names("model.safetensors", len(shards), secrets.token_hex(8))
    index = _build_index(keys, shards, sum(tensor.nbytes for tensor in tensors.values()))
    # Beside the files: is there an index, is there a model in one file, the note (which is gone in the end), its end.
    return sum_of([*files, estimate_upload(len(index), part_size, is_known=False)], other_requests=4)


class _Shard(NamedTuple):
    """A file that is to be written.

    Args:
        header: What it begins with.
        in_order: The names of its tensors, in the order of the file.
        names: The same, in the order in which they were given.
        size: Of the file, in bytes.
    """

    header: bytes
    in_order: list[str]
    names: list[str]
    size: int


def _plan(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None, max_shard_size: int | None
) -> list[_Shard]:
    """Check what is to be saved, and return the files."""
    if max_shard_size is not None and (type(max_shard_size) is not int or max_shard_size < 1):
        raise ArgumentError(f"max_shard_size={max_shard_size!r} cannot be: it must be an integer of 1 or more.")
    _check(tensors)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    parted = [list(tensors)] if max_shard_size is None else split_into_shards(sizes, max_shard_size) or [[]]
    shards = []
    for names in parted:
        header, in_order = build_header({name: _describe(name, tensors[name]) for name in names}, metadata)
        shards.append(_Shard(header, in_order, names, len(header) + sum(sizes[name] for name in names)))
    return shards


def _build_index(keys: Sequence[str], shards: Sequence[_Shard], size: int) -> bytes:
    """Return the index of a model in several files, as Hugging Face's libraries read it."""
    files = [key.rpartition("/")[2] for key in keys]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard.names}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2).encode()


def _describe(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...], int]:
    dtype = name_of(tensor.dtype, name)
    return dtype, shape_in_file(dtype, tensor.shape, name), tensor.nbytes


def check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what has no bytes that a safetensors file could hold.

    Raises:
        ArgumentTypeError: It is no mapping of names to tensors.
        ArgumentError: A tensor is sparse, or on the meta device.
    """
    given: object = tensors
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(f"tensors must be a dict of tensors by name, got {type(given).__name__}.")
    for name, tensor in given.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ArgumentTypeError(f"tensors must map str to tensors, got {name!r}: {type(tensor).__name__}.")
        if tensor.layout is not torch.strided:
            raise ArgumentError(f"Tensor {name!r} is sparse ({tensor.layout}): call to_dense() first.")
        if tensor.is_meta:
            raise ArgumentError(f"Tensor {name!r} is on the meta device, and has no bytes to save.")


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what would be another model when it is loaded, as the safetensors package does."""
    check_tensors(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ArgumentError(f"Tensor {name!r} is not contiguous: call contiguous() first.")
    owners: dict[tuple[torch.device, int], str] = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        other = owners.setdefault((tensor.device, _address(name, tensor)), name)
        if other != name:
            raise ArgumentError(
                f"Tensors {other!r} and {name!r} share memory, and would not when they are loaded: save one of them, "
                "or clone() one first."
            )


def _address(name: str, tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError as error:
        raise ArgumentError(
            f"Tensor {name!r} is a {type(tensor).__name__} without memory of its own. Call full_tensor() of a DTensor, "
            "or save what it is made of."
        ) from error
