"""Whether Hugging Face accelerate divides samples that were divided already.

What it wraps is not told: a sampler and a stream see only that somebody iterates over them. Dividing twice loses all
but one in ``num_processes`` of the samples, without an error, so this looks at who iterates.
"""

from __future__ import annotations

import sys

from s3torch.errors import ArgumentError

__all__ = ["check_divided_once"]

_MODULES = ("accelerate.data_loader", "transformers.trainer_pt_utils")
_DIVIDERS = ("BatchSamplerShard", "DataLoaderDispatcher", "IterableDatasetShard")


def check_divided_once(world_size: int, what: str, undivided: str) -> None:
    """Raise an error if samples of one of several ranks are about to be divided once more.

    Args:
        world_size: Among how many ranks the samples are divided here.
        what: Divides them: the name of a class.
        undivided: Arguments by which it does not.

    Raises:
        ArgumentError: The caller, or one of its callers, is a class of accelerate that divides.
    """
    if world_size == 1 or not any(module in sys.modules for module in _MODULES):
        return
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in _MODULES:
            divider = type(frame.f_locals.get("self")).__name__  # its __class__ is that of a DataLoader
            if divider in _DIVIDERS:
                raise ArgumentError(
                    f"accelerate's {divider} would divide once more what {what} has divided among {world_size} ranks, "
                    "and samples would be lost. Pass an S3DataLoader to Accelerator.prepare, which leaves it as it is; "
                    f"or make the {what} with {undivided}."
                )
        frame = frame.f_back  # type: ignore[assignment]  # None behind the last one
