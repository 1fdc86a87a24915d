"""The memory of torch's storages."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["memory"]


def memory(storage: torch.UntypedStorage) -> memoryview:
    """Return the bytes of a storage in the memory of the CPU, without a copy; they live as long as the view."""
    array: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return memoryview(array)
