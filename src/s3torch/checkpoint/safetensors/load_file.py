"""load_file: the tensors of a model, by one process or by a group of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from s3torch._progress import new_byte_bar
from s3torch.checkpoint.group_timeout import GROUP_TIMEOUT
from s3torch.checkpoint.safetensors.load import choose, client_for, device_of, load_tensors, names_of, open_model
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["load_file"]


def load_file(
    uri: str,
    device: torch.device | str | int = "cpu",
    keys: Iterable[str] | None = None,
    *,
    client: S3Client | None = None,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    progress: bool | None = None,
    group: ProcessGroup | None = None,
    group_timeout: float = GROUP_TIMEOUT,
) -> dict[str, torch.Tensor]:
    """Load the tensors of a safetensors file, or of a model in many, as ``safetensors.torch.load_file`` does of a file.

    Args:
        uri: Of a file (``s3://bucket/model.safetensors``), or of the index of a sharded model
            (``s3://bucket/model.safetensors.index.json``), whose files lie beside it; or of the folder that they lie in
            by these names (``s3://bucket/model/``).
        device: Where the tensors are to be. Other devices than the CPU get them by way of host memory, which is pinned
            for CUDA.
        keys: Names of the tensors to load, no others are read; None loads all.
        client: Sends the requests; None makes one of the following.
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        progress: Whether to show a bar; None shows one on a terminal.
        group: Of torch.distributed: all its ranks call this with the same ``uri`` and ``keys``, each reads a share of
            the bytes, and gets the others' by way of the group. If a rank fails, all raise its error, with the rank's
            number in front. None reads all by itself.
        group_timeout: Seconds that a rank waits for the others, at each step of a load by a group.

    Returns:
        The tensors by name, each contiguous in memory of its own.

    Raises:
        CheckpointFormatError: A file is damaged or of an unknown format; nothing was allocated.
        DeadlineError: A rank of the group did not come, or does not answer any more; it is named.
        ArgumentError: There is no tensor of one of the ``keys``, or a device cannot hold tensors.
        InvalidURIError: ``uri`` is not of the form ``s3://bucket/key``.
        ObjectNotFoundError: There is no such object.
        ObjectChangedError: A file was replaced while it was read.
        S3Error: Any other failure.
    """
    if group is not None:
        from s3torch.checkpoint.safetensors.load_together import load_file_together  # imports torch.distributed

        context = (client, region, endpoint, s3client_config)
        return load_file_together(group, group_timeout, uri, device, keys, context, progress)
    target = device_of(device)
    wanted = None if keys is None else names_of(keys)
    with client_for(client, region, endpoint, s3client_config) as own:
        files = open_model(own, uri, wanted)
        chosen = choose(files, wanted, uri)
        infos = [file.header.tensors[name] for file, name in chosen]
        size = sum(info.stop - info.start for info in infos)
        with new_byte_bar(f"Loading {uri}", size, is_wanted=progress) as bar:
            return load_tensors(chosen, target, bar.update)
