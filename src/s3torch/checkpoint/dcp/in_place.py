"""Items that are received where they belong: straight into the memory of the tensor that is loaded.

Rows whose place in the file is known are received as they are. A whole stored tensor lies in an archive of which only
the size is known: that its elements begin where torch.save puts them is guessed, what is around them is received beside
the tensor, and tells afterwards whether that was right. If it was not, the archive is put together again.
"""

from __future__ import annotations

import functools
import io

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlanner

from s3torch.checkpoint.dcp import layout
from s3torch.checkpoint.storages import memory

__all__ = ["InPlace", "aliases_state", "usual_start"]


def aliases_state(planner: LoadPlanner) -> bool:
    """Whether a planner's tensors are parts of what is loaded, so that all can be filled at the same time.

    Others may stage what is loaded, and expect that a tensor is committed before they are asked for the next.
    """
    kind = type(planner)
    return (
        isinstance(planner, DefaultLoadPlanner)
        and kind.resolve_tensor is DefaultLoadPlanner.resolve_tensor
        and kind.commit_tensor is DefaultLoadPlanner.commit_tensor
    )


@functools.cache
def usual_start() -> int | None:
    """Return where this torch puts the elements of a tensor in its archive; None if that cannot be told."""
    file = io.BytesIO()
    torch.save(torch.empty(1), file)
    archive = file.getvalue()
    found = layout.archive_layout(archive[: layout.ENDS], archive[-layout.ENDS :], len(archive))
    return None if found is None else found.start


class InPlace:
    """Memory for the bytes of one item, its elements' being that of the target.

    Args:
        target: Contiguous, in the memory of the CPU.
        before: Bytes of the item before its elements.
        behind: Bytes of the item behind them.

    Attributes:
        target: As given.
        views: The memory, in order.
    """

    def __init__(self, target: torch.Tensor, before: int, behind: int) -> None:
        self.target = target
        start = target.storage_offset() * target.itemsize
        elements = memory(target.untyped_storage())[start : start + target.nbytes]
        self.views = [memoryview(bytearray(before)), elements, memoryview(bytearray(behind))]

    @classmethod
    def of(cls, target: torch.Tensor, size: int, rows: layout.Layout | None) -> InPlace | None:
        """Return memory for an item whose elements may be those of a tensor.

        Args:
            target: Of the same shape as the elements that are needed.
            size: Bytes of the item.
            rows: What the item is, if it is elements alone.

        Returns:
            None if the item cannot be received there.
        """
        is_plain = (
            type(target) is torch.Tensor
            and target.device.type == "cpu"
            and target.layout is torch.strided
            and target.is_contiguous()
            and not (target.is_conj() or target.is_neg())
        )
        if not is_plain:
            return None
        if rows is not None:
            return cls(target, 0, 0) if (rows.dtype, rows.shape) == (target.dtype, tuple(target.shape)) else None
        before = usual_start()
        if before is None:
            return None
        behind = size - before - target.nbytes
        return cls(target, before, behind) if 0 < behind <= layout.ENDS else None

    @property
    def has_arrived(self) -> bool:
        """Whether the elements are where they were guessed, now that all bytes are there."""
        before, _, behind = self.views
        if not len(before):
            return True
        size = sum(map(len, self.views))
        found = layout.archive_layout(bytes(before), bytes(behind), size)
        return found == layout.Layout(len(before), self.target.dtype, tuple(self.target.shape))

    def content(self) -> memoryview:
        """Return the bytes of the item, copied together."""
        return memoryview(bytearray().join(self.views))  # writable, as torch wants it
