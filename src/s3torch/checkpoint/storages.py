"""The memory of torch's storages, and copies that torch does not make."""

from __future__ import annotations

import ctypes

import torch

from s3torch import _buffer

__all__ = ["contiguous", "copy_into", "memory"]


def memory(storage: torch.UntypedStorage) -> memoryview:
    """Return the bytes of a storage in the memory of the CPU, without a copy; they live as long as the view.

    ``Tensor.numpy`` would give the same, but leaves a storage that can never be resized again. So nothing here keeps
    the storage from being resized while the view is there, which must not be done.
    """
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    array.storage = storage  # type: ignore[attr-defined]  # keeps it alive
    return _buffer.writable_bytes(array)


def copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor into another of the same shape, of any dtype and strides."""
    if _is_opaque(target) and target.dtype == source.dtype:
        target, source = target.view(torch.uint8), source.view(torch.uint8)
    target.copy_(source)


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, or a copy, whose memory is what its elements say, in C order: nothing is left to be negated."""
    if _is_opaque(tensor):
        return tensor.view(torch.uint8).contiguous().view(tensor.dtype)
    return tensor.resolve_conj().resolve_neg().contiguous()


def _is_opaque(tensor: torch.Tensor) -> bool:
    """Whether torch may have no arithmetic for a tensor, as for float4: its bytes can be copied all the same."""
    return tensor.is_floating_point() and tensor.itemsize == 1
