"""A copy of a state in memory of its own, so that training may go on and change the original."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any

import torch
from torch.nn import Parameter

__all__ = ["Staging"]


class Staging:
    """Copies states, always into the same memory: fresh pages would cost more than the copy.

    Tensors that share a storage share it in the copy, too, and each storage is copied once. What is neither a tensor
    nor a dict, list or tuple of them is copied by ``copy.deepcopy``.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._free: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._used: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def copy(self, state: Any) -> Any:  # noqa: ANN401  # whatever can be saved
        """Return a copy, in memory of the CPU. It is valid until the next one."""
        self._free = {kind: list(storages) for kind, storages in self._kept.items()}
        self._copies, self._used = {}, {}
        memo: dict[int, Any] = {}
        try:
            copied = self._copy(state, memo)
            self._copy_bytes()
            used = self._used
        finally:
            self._copies, self._used = {}, {}
        self._kept, self._free = used, {}
        return copied

    def _copy(self, value: Any, memo: dict[int, Any]) -> Any:  # noqa: ANN401
        known = memo.get(id(value))
        if known is not None:
            return known
        made: Any
        if isinstance(value, torch.Tensor):
            made = self._copy_tensor(value, memo)
        elif isinstance(value, (dict, UserDict)):  # a shallow copy of another mapping might share its items
            made = memo[id(value)] = copy.copy(value)
            for key, each in value.items():
                made[key] = self._copy(each, memo)
        elif type(value) is list:
            made = memo[id(value)] = []
            made += [self._copy(each, memo) for each in value]
        elif type(value) is tuple:
            made = tuple(self._copy(each, memo) for each in value)
        else:
            made = copy.deepcopy(value, memo)
        memo[id(value)] = made
        memo.setdefault(id(memo), []).append(value)  # keeps it alive, as deepcopy does: its id must stay its own
        return made

    def _copy_tensor(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        """Return a copy with all that torch.save keeps: attributes, too."""
        if tensor.is_meta:  # there is nothing that could change
            return tensor
        kind = type(tensor)
        if kind in (torch.Tensor, Parameter) and _is_plain(tensor):
            made = self._copy_plain(tensor)
        elif kind is not Parameter and issubclass(kind, Parameter):
            made = copy.deepcopy(tensor, memo)  # detach would lose its class
        else:
            made = tensor.detach().cpu().clone()
        if kind is Parameter:
            made = Parameter(made, requires_grad=tensor.requires_grad)
        elif tensor.requires_grad and not made.requires_grad:
            made.requires_grad_()
        memo[id(tensor)] = made
        for name, value in vars(tensor).items():
            if name not in vars(made):
                setattr(made, name, self._copy(value, memo))
        return made

    def _copy_plain(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = self._copy_storage(tensor.untyped_storage())
        made = torch.empty(0, dtype=tensor.dtype)
        made.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        if tensor.is_conj():
            made = made.conj()
        if tensor.is_neg():
            made = torch._neg_view(made)  # the only way to say so
        return made

    def _copy_storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        known = self._copies.get(storage._cdata)  # what identifies a storage, as torch.save has it
        if known is not None:
            return known[1]
        is_pinned = storage.device.type == "cuda"
        free = self._free.get((storage.nbytes(), is_pinned))
        ours = free.pop() if free else _new_storage(storage.nbytes(), is_pinned=is_pinned)
        self._copies[storage._cdata] = storage, ours
        self._used.setdefault((storage.nbytes(), is_pinned), []).append(ours)
        return ours

    def _copy_bytes(self) -> None:
        """Copy all storages, one right after the other: what else is done in between finds the caches empty."""
        copies = self._copies.values()
        for original, ours in copies:
            ours.copy_(original, non_blocking=original.device.type == "cuda")
        if any(original.device.type == "cuda" for original, _ in copies):
            torch.cuda.synchronize()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of one storage, and nothing else."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested


def _new_storage(size: int, *, is_pinned: bool) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned).untyped_storage()
