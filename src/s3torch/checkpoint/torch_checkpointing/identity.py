"""Which save a file is a part of, so that one of several ranks can tell the files of the others from what is left over.

The ranks of a job write into one folder, and only one of them makes it a checkpoint. So what they write carries an
identity that they share, and that no other job has, nor the same job when it is started again.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

__all__ = ["Identity", "agree", "new_identity"]

_STORE_KEY = "s3torch.torch_checkpointing/save"
_DIGITS = 16


class Identity(NamedTuple):
    """Names the saves of one job.

    Attributes:
        name: 16 hexadecimal digits.
        is_shared: Whether all ranks are known to have the same; otherwise this process may be the only one that has it.
    """

    name: str
    is_shared: bool


def new_identity() -> Identity:
    """Return an identity that no other process has, unless it is given to it."""
    return Identity(secrets.token_hex(_DIGITS // 2), is_shared=False)


def agree(given: str | None, own: Identity) -> Identity:
    """Return the identity of this process' saves. Threads that ask get the same.

    Args:
        given: What the user has named the job; None asks the store of ``torch.distributed``, if that is initialized:
            the first rank that asks decides, and none waits for another.
        own: What counts where there is no store; of a background process what it was given.
    """
    if given is not None:
        return Identity(hashlib.sha256(given.encode()).hexdigest()[:_DIGITS], is_shared=True)
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        from torch.distributed.distributed_c10d import _get_default_store

        said = _get_default_store().compare_set(_STORE_KEY, "", new_identity().name)
        return Identity(said.decode(), is_shared=True)
    return own
