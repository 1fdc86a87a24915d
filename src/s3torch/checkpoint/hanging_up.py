"""How a process leaves a group in which something was begun that others will not take part in any more.

Gloo has no way to take a collective back, and whoever destroys the group waits for it: until its timeout, in a
destructor and without a word. Three things are known of it (gloo/transport/tcp, all versions that torch has had):

1. If a receive is waited for in vain, gloo closes all connections of the group. What waits for the other end of one
   fails then, here and there: so a receive of what nobody sends ends nearly everything that was begun.
2. It forgets the transfer that a connection is in the middle of. Who waits for that waits for its timeout.
3. Only who owns the last reference to the group waits. So in that case it is kept for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["hang_up"]

_PATIENCE = 1.0  # seconds for what was begun to fail when the connections are closed; a moment is enough
_PAUSE = 0.005
_AT_ONCE = timedelta(milliseconds=1)  # the shortest that gloo has: 0 is none
_TAG = 0x53335448  # of a message that nobody sends


def hang_up(group: dist.ProcessGroup, device: torch.device, others: Iterable[int], begun: Iterable[dist.Work]) -> None:
    """End what was begun on a group that is not used any more, so that leaving the group waits for nothing.

    Args:
        group: The group. Only what was begun by gloo is ended; other backends have their own ways.
        device: Where its collectives find their tensors.
        others: Its other ranks, those that may live first.
        begun: What may not have ended.
    """
    pending = _pending(begun)
    if not pending:
        return
    if dict(pair.split(":") for pair in dist.get_backend_config(group).split(",")).get(device.type) != "gloo":
        return
    nothing = torch.empty(1, dtype=torch.uint8)
    for other in others:
        with contextlib.suppress(RuntimeError):  # it has closed all connections, or this one was closed before
            group.recv([nothing], other, _TAG).wait(_AT_ONCE)
    deadline = time.monotonic() + _PATIENCE
    while pending:
        if time.monotonic() > deadline:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group._get_backend(device)))  # by nobody: for good
            return
        time.sleep(_PAUSE)
        pending = _pending(pending)


def _pending(works: Iterable[dist.Work]) -> list[dist.Work]:
    return [work for work in works if not work.is_completed()]
