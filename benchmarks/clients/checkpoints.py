"""Work that clients share where a state dict is saved or loaded.

Each process does it once, as a job does when it begins: the memory of the tensors is new. That modules are imported and
credentials found is seen to by a small one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.registry import Done, Work
from benchmarks.site import Site
from benchmarks.state import CHECKPOINT, WARM_UP, check_state, make_state

if TYPE_CHECKING:
    import torch

__all__ = ["loading", "rest", "saving"]

_SAVED = "saved.pt"
_REST_SECONDS = 0.5


def rest() -> None:
    """Let the server end what it does behind an upload, as it shares the cores: steps that save lie minutes apart."""
    time.sleep(_REST_SECONDS)


def saving(site: Site, save: Callable[[dict[str, torch.Tensor], str], object]) -> Work:
    """Return work that saves the state dict.

    Args:
        site: Where.
        save: Gets what is to be saved and the key.
    """
    state = make_state(site.tensors, site.tensor)
    save({"warm-up": state["layer0.weight"][:1].clone()}, f"{WARM_UP}{_SAVED}")

    def work() -> Done:
        save(state, _SAVED)
        return Done(items=1, bytes=site.state_bytes)

    return work


def loading(site: Site, load: Callable[[str], Mapping[str, torch.Tensor]], name: str = CHECKPOINT) -> Work:
    """Return work that loads the state dict and looks at both ends of each tensor.

    Args:
        site: From where.
        load: Gets the key.
        name: The key.
    """
    load(f"{WARM_UP}{name}")

    def work() -> Done:
        check_state(load(name), site.tensors, site.tensor)
        return Done(items=1, bytes=site.state_bytes)

    return work
