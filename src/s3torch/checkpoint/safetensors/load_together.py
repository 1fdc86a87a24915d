"""A model that all ranks of a group load: one rank reads the headers, each a share of the tensors' bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from s3torch._objects.remote import RemoteObject
from s3torch._progress import new_byte_bar
from s3torch.checkpoint.group_timeout import check_group_timeout
from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.safetensors.dtypes import bytes_of, empty
from s3torch.checkpoint.safetensors.load import (
    ClientContext,
    File,
    choose,
    client_for,
    device_of,
    kind_of,
    names_of,
    open_model,
)
from s3torch.checkpoint.together import Target, bytes_in, read_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from s3torch.checkpoint.safetensors.format import Header
    from s3torch.client import S3Client
    from s3torch.config import S3ClientConfig

    ClientArguments = tuple[S3Client | None, str | None, str | None, S3ClientConfig | None]

__all__ = ["load_file_together"]


class _Opened(NamedTuple):
    """A file, as the rank that has read its header tells the others of it."""

    bucket: str
    key: str
    version_id: str | None
    size: int | None
    etag: str | None
    modified: str | None
    header: Header
    head: bytes
    data_start: int


def load_file_together(
    group: ProcessGroup,
    group_timeout: float,
    uri: str,
    device: torch.device | str | int,
    keys: Iterable[str] | None,
    client: ClientArguments,
    progress: bool | None,  # noqa: FBT001  # of load_file
) -> dict[str, torch.Tensor]:
    """Load what ``load_file`` loads, with its arguments, on all ranks of a group."""

    def prepare() -> tuple[dict[str, str], tuple[torch.device, list[str] | None, ClientContext]]:
        target = device_of(device)
        wanted = None if keys is None else names_of(keys)
        context = client_for(*client)
        checked = context.client.s3client_config.checksums
        arguments = {"uri": repr(uri), "keys": _short(wanted), "device": target.type, "checksums": checked}
        return arguments, (target, wanted, context)

    with Ranks(group, check_group_timeout(group_timeout), f"load of {uri}") as ranks:
        target, wanted, context = ranks.meet(prepare)
        with context as own:
            opened = ranks.from_first(lambda: [_opened(file) for file in open_model(own, uri, wanted)])
            files = [_file(own, each) for each in opened]
            chosen = choose(files, wanted, uri)
            loaded, targets = ranks.attempt(lambda: _places(chosen, target))
            size = sum(each.memory.numel() for each in targets)
            with new_byte_bar(f"Loading {uri}", size, is_wanted=progress) as bar:
                read_together(ranks, targets, bar.update)
            if own.s3client_config.checksums == "strict":
                ranks.attempt(lambda: _verify(chosen, loaded))
            ranks.settle()
            return loaded


def _short(names: Sequence[str] | None) -> str:
    """Return names as text that can be compared, of a bounded length."""
    if names is None:
        return "None"
    digest = hashlib.sha256("\n".join(map(repr, names)).encode()).hexdigest()
    return f"{len(names)} names ({', '.join(map(ascii, names[:3]))}, ..., {digest[:16]})"


def _opened(file: File) -> _Opened:
    remote = file.remote
    return _Opened(
        remote.bucket,
        remote.key,
        remote.version_id,
        remote.size,
        remote.etag,
        remote.modified,
        file.header,
        file.head,
        file.data_start,
    )


def _file(client: S3Client, opened: _Opened) -> File:
    remote = RemoteObject(
        client._access,
        opened.bucket,
        opened.key,
        size=opened.size,
        etag=opened.etag,
        version_id=opened.version_id,
    )
    remote.modified = opened.modified
    return File(remote, opened.header, opened.head, opened.data_start)


def _places(chosen: Sequence[tuple[File, str]], device: torch.device) -> tuple[dict[str, torch.Tensor], list[Target]]:
    """Return memory for the tensors, with what the heads of their files have of them, and what is still to be read."""
    loaded: dict[str, torch.Tensor] = {}
    targets: list[Target] = []
    for file, name in chosen:
        info = file.header.tensors[name]
        kind = kind_of(info, name)
        tensor = empty(*kind) if device.type == "cpu" else torch.empty(kind[1], dtype=kind[0], device=device)
        loaded[name] = tensor
        content = bytes_in(tensor)
        known = max(0, min(info.stop, len(file.head)) - info.start)
        if known:
            head = bytearray(file.head[info.start : info.start + known])
            content[:known].copy_(torch.frombuffer(head, dtype=torch.uint8))
        if info.start + known < info.stop:
            targets.append(Target(file.remote, info.start + known, content[known:]))
    return loaded, targets


def _verify(chosen: Sequence[tuple[File, str]], loaded: dict[str, torch.Tensor]) -> None:
    """Compare what was loaded with the checksums that it is stored with, file by file.

    Each rank does so for itself: what is damaged is fetched again, into the memory of the rank that has found it.
    """
    by_file: dict[File, list[str]] = {}
    for file, name in chosen:
        by_file.setdefault(file, []).append(name)
    for file, names in by_file.items():
        copies = {name: loaded[name].cpu() for name in names}  # none where they are on the CPU
        file.prove((file.header.tensors[name].start, bytes_of(copy)) for name, copy in copies.items())
        for name, copy in copies.items():
            if copy.device != loaded[name].device:
                loaded[name].copy_(copy)
