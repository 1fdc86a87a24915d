"""Tensors written as safetensors files, straight from their memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence

import torch

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.safetensors.dtypes import bytes_of, name_of, shape_in_file
from s3torch.checkpoint.safetensors.format import build_header, shard_names, split_into_shards
from s3torch.checkpoint.safetensors.load import client_for
from s3torch.checkpoint.safetensors.replacing import OneFile, Sharded
from s3torch.checkpoint.storages import contiguous
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentError, ArgumentTypeError
from s3torch.uri import parse_checkpoint_uri

__all__ = ["save_file"]


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

    Raises:
        ArgumentError: A tensor cannot be saved as it is, or another argument cannot be. Nothing was written.
        ArgumentTypeError: A tensor is none.
        InvalidURIError: ``uri`` is not of the form ``s3://bucket/key``, or names a folder.
        S3Error: Any other failure. Nothing of the new model is visible, or, if only what it replaces could not be
            deleted, the message says so.
    """
    bucket, key = parse_checkpoint_uri(uri)
    if max_shard_size is not None and (type(max_shard_size) is not int or max_shard_size < 1):
        raise ArgumentError(f"max_shard_size={max_shard_size!r} cannot be: it must be an integer of 1 or more.")
    _check(tensors)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = [list(tensors)] if max_shard_size is None else split_into_shards(sizes, max_shard_size) or [[]]
    headers = [build_header({name: _describe(name, tensors[name]) for name in shard}, metadata) for shard in shards]
    with (
        client_for(client, region, endpoint, s3client_config) as own,
        new_byte_bar(f"Saving {uri}", sum(sizes.values()), is_wanted=progress) as bar,
    ):

        def put(shard_key: str, header: tuple[bytes, list[str]]) -> None:
            size = len(header[0]) + sum(sizes[name] for name in header[1])
            with own.put_object(bucket, shard_key, size=size) as writer:
                writer.write(header[0])
                for name in header[1]:
                    writer.write_lasting(bytes_of(contiguous(tensors[name].detach().cpu())))
                    bar.update(sizes[name])

        if len(shards) == 1:
            model = OneFile(own, bucket, key)
            put(key, headers[0])
            model.take_over()
            return
        sharded = Sharded(own, bucket, key, shard_names(key, len(shards), secrets.token_hex(8)))
        try:
            sharded.begin()
            for shard_key, header in zip(sharded.keys, headers, strict=True):
                put(shard_key, header)
            sharded.commit(_build_index(sharded.keys, shards, sum(sizes.values())))
        except BaseException:
            sharded.give_up()
            raise


def _build_index(keys: Sequence[str], shards: Sequence[Sequence[str]], size: int) -> bytes:
    """Return the index of a model in several files, as Hugging Face's libraries read it."""
    files = [key.rpartition("/")[2] for key in keys]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2).encode()


def _describe(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...], int]:
    dtype = name_of(tensor.dtype, name)
    return dtype, shape_in_file(dtype, tensor.shape, name), tensor.nbytes


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what would be another model when it is loaded, as the safetensors package does."""
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
