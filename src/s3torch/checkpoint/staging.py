"""A snapshot of a state, so that training may go on and change the original.

What torch.save would write is made at once, but for the bytes of the storages: an outline. Whatever is not in a storage
is in its pickle, as torch.save has it. So only storages are left to copy, whoever holds their tensors.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import torch

from s3torch.checkpoint.outline import File, Outline, torch_save

__all__ = ["Snapshot", "Staging", "copy_bytes"]


class Snapshot:
    """The file that torch.save would have written of a state.

    Args:
        content: The outline, whose storages are copies; or the whole file.
    """

    def __init__(self, content: Outline | bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self._content.size if isinstance(self._content, Outline) else len(self._content)

    def write_to(self, file: File, count: Callable[[int], object]) -> None:
        """Write the whole file.

        Args:
            file: Keeps the storages where they are.
            count: Is told how many bytes more were written.
        """
        if isinstance(self._content, Outline):
            self._content.write_to(file, count)
        else:
            count(file.write(self._content))


class Staging:
    """Makes snapshots, always in the same memory: fresh pages would cost more than the copy.

    Each storage is copied once, into memory of the CPU, pinned for those of a GPU.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}

    def copy(self, state: object) -> Snapshot:
        """Return a snapshot of what can be saved. It is valid until the next one."""
        outline = Outline.of(state)
        if outline is None:
            file: Any = io.BytesIO()  # torch's types name another class
            torch_save(state, file)
            return Snapshot(file.getvalue())
        free = {kind: list(storages) for kind, storages in self._kept.items()}
        used: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        copies = []
        for storage in outline.storages:
            kind = storage.nbytes(), storage.device.type == "cuda"
            ours = free[kind].pop() if free.get(kind) else _new_storage(*kind)
            used.setdefault(kind, []).append(ours)
            copies.append((storage, ours))
        self._kept = used
        copy_bytes(copies)
        return Snapshot(outline.with_storages([ours for _, ours in copies]))


def copy_bytes(copies: Iterable[tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> None:
    """Copy all storages, one right after the other: what else is done in between finds the caches empty."""
    is_any_on_gpu = False
    for original, ours in copies:
        is_on_gpu = original.device.type == "cuda"
        ours.copy_(original, non_blocking=is_on_gpu)
        is_any_on_gpu |= is_on_gpu
    if is_any_on_gpu:
        torch.cuda.synchronize()


def _new_storage(size: int, is_pinned: bool) -> torch.UntypedStorage:  # noqa: FBT001  # as a kind has it
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=is_pinned).untyped_storage()
