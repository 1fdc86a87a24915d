"""The memory of torch's storages."""

from __future__ import annotations

import ctypes

import torch

from s3torch import _buffer

__all__ = ["memory"]


def memory(storage: torch.UntypedStorage) -> memoryview:
    """Return the bytes of a storage in the memory of the CPU, without a copy; they live as long as the view.

    ``Tensor.numpy`` would give the same, but leaves a storage that can never be resized again. So nothing here keeps
    the storage from being resized while the view is there, which must not be done.
    """
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    array.storage = storage  # type: ignore[attr-defined]  # keeps it alive
    return _buffer.writable_bytes(array)
