"""Dtypes of the format as those of torch, and tensors as their bytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from s3torch.checkpoint.storages import memory
from s3torch.errors import ArgumentError, CheckpointFormatError

__all__ = ["bytes_of", "empty", "name_of", "shape_in_file", "shape_in_items", "torch_dtype"]

# Names in torch; older versions lack the last ones.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_TO_TORCH = {name: getattr(torch, theirs) for name, theirs in _NAMES.items() if hasattr(torch, theirs)}
_FROM_TORCH = {dtype: name for name, dtype in _TO_TORCH.items()}

if sys.byteorder != "little":
    raise ImportError("Tensors of the safetensors format are little-endian, and this machine is not.")


def torch_dtype(dtype: str, name: str) -> torch.dtype:
    """Return torch's dtype.

    Raises:
        CheckpointFormatError: This version of torch has none, as none has for F6.
    """
    if dtype not in _TO_TORCH:
        raise CheckpointFormatError(f"Tensor {name!r} has the dtype {dtype}, which torch {torch.__version__} lacks.")
    found: torch.dtype = _TO_TORCH[dtype]
    return found


def name_of(dtype: torch.dtype, name: str) -> str:
    """Return the format's name of a dtype.

    Raises:
        ArgumentError: The format has none.
    """
    if dtype not in _FROM_TORCH:
        raise ArgumentError(f"Tensor {name!r} has the dtype {dtype}, which the safetensors format lacks.")
    return _FROM_TORCH[dtype]


def shape_in_items(dtype: str, shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Return the shape that torch gives a tensor: it counts two items of F4 as one.

    Raises:
        CheckpointFormatError: The last dimension of F4 is odd, or there is none.
    """
    if dtype != "F4":
        return tuple(shape)
    if not shape or shape[-1] % 2:
        raise CheckpointFormatError(f"Tensor {name!r} of F4 has the shape {list(shape)}: torch packs two to a byte.")
    return (*shape[:-1], shape[-1] // 2)


def shape_in_file(dtype: str, shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Return the shape that a file gives a tensor: it counts the two items of a byte of F4.

    Raises:
        ArgumentError: F4 without a dimension.
    """
    if dtype != "F4":
        return tuple(shape)
    if not shape:
        raise ArgumentError(f"Tensor {name!r} of F4 has no dimension, and cannot be saved.")
    return (*shape[:-1], shape[-1] * 2)


def empty(dtype: torch.dtype, shape: Sequence[int], *, pinned: bool = False) -> torch.Tensor:
    """Return a contiguous CPU tensor whose bytes are not set.

    Raises:
        MemoryError: There is not enough memory.
    """
    try:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
    except RuntimeError as error:  # torch has no class of its own for memory of the host
        raise MemoryError(f"No memory for a tensor of {dtype} of shape {list(shape)}: {error}") from error


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    begin = tensor.storage_offset() * tensor.element_size()
    return memory(tensor.untyped_storage())[begin : begin + tensor.nbytes]
