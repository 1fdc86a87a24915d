"""One listing for all ranks of a job.

Theory of operation. Who reads what is arithmetic on positions in the table of objects, so ranks whose tables differ
lose samples and read others twice. A listing takes seconds, and a key may be added meanwhile. So ranks do not list each
by itself: they meet in the store of their process group (a TCPStore), or in torchrun's, which is there before any
group. Whoever comes first lists, and leaves the table there; the others wait for it.

- No collective is used: a rank that has the dataset for itself lists, and nobody waits for it.
- A dataset has a name that it has on all ranks: what it lists, and how many datasets of that its process made before.
  So ranks have to make their datasets in the same order, as they do with models. The worst that a wrong order does is
  that a table comes from another dataset of the same prefix in the same job.
- Each meeting has a connection of its own. The group's must not be used by a DataLoader worker that was forked with it.
- An error of the listing is everybody's error, and each who asks again begins another attempt.
- The table goes through the store compressed, in pieces that the store takes. For a table of more than some millions of
  objects and many nodes a saved table (``from_table``) is the better way: nothing goes through one process then.

Where there is no such store (a group over a file, ranks that were started by other means) each rank lists by itself.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from typing import NamedTuple

import torch.distributed

from s3torch import errors
from s3torch.datasets.objects import ObjectTable
from s3torch.errors import DeadlineError, S3Error

__all__ = ["Address", "JobListing"]

_PIECE = 4 * 1024 * 1024  # bytes of a value; the store refuses more than 8 MiB
_CONNECT_TIMEOUT = timedelta(seconds=60)
_PATIENCE = 1800.0  # seconds without a table after which a rank gives up, as long as torch's groups wait by default
_FIRST_LOOK, _LAST_LOOK = 0.01, 0.5  # seconds between two looks into the store


class Address(NamedTuple):
    """Where the ranks of a job meet.

    Attributes:
        host: Of the store.
        port: Of the store.
        run: What tells this run of the job from one that was restarted.
    """

    host: str
    port: int
    run: str


# How many datasets of each source this process has made.
_made: Counter[str] = Counter()


class JobListing:
    """Where the ranks of a job agree on the table of one dataset.

    Args:
        source: What is listed, as text that is the same on all ranks.
    """

    def __init__(self, source: str) -> None:
        _made[source] += 1
        self._name = f"s3torch/{blake2b(source.encode(), digest_size=16).hexdigest()}/{_made[source]}"
        self._known = _address()
        self._attempts: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, object]:
        # A process that is not forked has no process group: it is told where it meets.
        return {**self.__dict__, "_known": _address() or self._known}

    def agree(self, name: str, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """Return the table on which all ranks agree that ask for this name.

        Args:
            name: Of the table, among those of the dataset.
            list_objects: Returns the table, if no other rank makes it.

        Raises:
            S3Error: The listing failed, here or on the rank that came first.
            DeadlineError: The rank that came first has left nothing for 30 minutes.
        """
        address = _address() or self._known
        if address is None:
            return list_objects()
        attempt = self._attempts[name]
        meeting = _Meeting(address, f"{self._name}/{name}/{attempt}")
        try:
            table = meeting.lead(list_objects) if meeting.is_first else meeting.follow()
        except Exception:
            self._attempts[name] = attempt + 1
            raise
        return table


class _Meeting:
    """One listing, in a store."""

    def __init__(self, address: Address, name: str) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # there are builds without

        try:
            store = TCPStore(
                address.host, address.port, is_master=False, wait_for_workers=False, timeout=_CONNECT_TIMEOUT
            )
        except RuntimeError as error:
            raise S3Error(
                f"The ranks of this job cannot meet at {address.host}:{address.port} to list the objects once: "
                f"{error}. Save the table and pass it to all ranks: from_table."
            ) from error
        self._store = PrefixStore(f"{name}/{address.run}", store)
        self.is_first = self._store.add("asked", 1) == 1

    def lead(self, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """List, and leave the table or the error for the others."""
        try:
            table = list_objects()
        except BaseException as error:
            told = error if isinstance(error, S3Error) else S3Error(f"{type(error).__name__}: {error}")
            self._store.set("error", json.dumps([type(told).__name__, str(told)]))
            raise
        content = zlib.compress(b"".join(table._to_bytes()), 1)
        pieces = [content[first : first + _PIECE] for first in range(0, len(content), _PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"piece {number}", piece)  # type: ignore[arg-type]  # bytes are fine
        self._store.set("pieces", str(len(pieces)))
        return table

    def follow(self) -> ObjectTable:
        """Return what the first rank has left."""
        began = time.monotonic()
        pause = _FIRST_LOOK
        while True:
            if self._store.check(["pieces"]):
                pieces = [self._store.get(f"piece {number}") for number in range(int(self._store.get("pieces")))]
                return ObjectTable._from_bytes(zlib.decompress(b"".join(pieces)), "the store of the job")
            if self._store.check(["error"]):
                kind, message = json.loads(self._store.get("error"))
                raise getattr(errors, kind, S3Error)(f"The rank that lists for all has failed: {message}")
            if time.monotonic() - began > _PATIENCE:
                raise DeadlineError(
                    f"Another rank lists the objects for all, and has left no table in {_PATIENCE:.0f} s. It may have "
                    "been killed. For very large prefixes save the table once and pass it to all ranks: from_table."
                )
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)


def _address() -> Address | None:
    """Return where the ranks of this job meet; None if there is only one, or no place."""
    run = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        if distributed.get_world_size() == 1:
            return None
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # there are builds without

        try:
            store = distributed.distributed_c10d._get_default_store()
        except ValueError:  # a test of a program has patched in its ranks, and there is no group
            return None
        while isinstance(store, PrefixStore):
            store = store.underlying_store
        return Address(store.host, store.port, run) if isinstance(store, TCPStore) else None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), run)
    return None
