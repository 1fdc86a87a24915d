"""The state dict that is saved and loaded: float32 tensors whose values tell where they belong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

__all__ = ["CHECKPOINT", "SAFETENSORS", "WARM_UP", "check_state", "make_state", "memory", "write_files"]

CHECKPOINT = "state.pt"
SAFETENSORS = "state.safetensors"
WARM_UP = "warm-up-"  # before the names of those that are loaded so that modules and credentials are there
_ITEM = 4  # bytes of a float32
_WARM_UP_TENSORS, _WARM_UP_TENSOR = 2, 4096


def make_state(tensors: int, size: int) -> State:
    """Return a state dict.

    Args:
        tensors: How many.
        size: Of each, in bytes, a multiple of 4; up to 64 MiB, as float32 counts no further.
    """
    import torch

    return {
        f"layer{number}.weight": torch.arange(size // _ITEM, dtype=torch.float32) + number for number in range(tensors)
    }


def check_state(loaded: Mapping[str, torch.Tensor], tensors: int, size: int) -> None:
    """Look at both ends of each tensor, which takes a millisecond for 200.

    Raises:
        AssertionError: What was loaded is not what ``make_state`` makes.
    """
    count = size // _ITEM
    if len(loaded) != tensors:
        raise AssertionError(f"{len(loaded)} tensors were loaded of {tensors}")
    for number in range(tensors):
        tensor = loaded[f"layer{number}.weight"]
        found = tuple(tensor.shape), float(tensor[0]), float(tensor[-1])
        if found != ((count,), number, number + count - 1):
            raise AssertionError(f"tensor {number} is not what was saved: shape, first and last are {found}")


def memory(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a tensor of the CPU as bytes."""
    array: Any = tensor.numpy()  # older versions of numpy do not call it a buffer
    return memoryview(array).cast("B")


def write_files(folder: Path, tensors: int, size: int) -> None:
    """Write the state dict, and a small one to warm up, by torch.save and as safetensors."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for prefix, state in (
        ("", make_state(tensors, size)),
        (WARM_UP, make_state(_WARM_UP_TENSORS, _WARM_UP_TENSOR)),
    ):
        torch.save(state, folder / f"{prefix}{CHECKPOINT}")
        _write_safetensors(folder / f"{prefix}{SAFETENSORS}", state)


def _write_safetensors(path: Path, state: State) -> None:
    """Write the format by hand (https://huggingface.co/docs/safetensors), as its package need not be installed."""
    header: dict[str, object] = {}
    stop = 0
    for name, tensor in state.items():
        start, stop = stop, stop + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, stop]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.writelines(memory(tensor) for tensor in state.values())
