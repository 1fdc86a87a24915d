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
- A signal handler may ask for the table in the middle of its listing, and so may a child that it starts. It lists, too,
  and whoever leaves a table first decides for both.
- A table that is the one before again, as in most epochs of a stream, is left as its name: a store forgets nothing.
- The table goes through the store compressed, in pieces that the store takes. For a table of more than some millions of
  objects and many nodes a saved table (``from_table``) is the better way: nothing goes through one process then.

Where there is no such store (a group over a file, ranks that were started by other means) each rank lists by itself,
unless the table is kept at a place (``stored_table``).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import torch.distributed

from s3torch import errors
from s3torch.datasets.objects import ObjectTable
from s3torch.errors import DeadlineError, S3Error

__all__ = ["Address", "JobListing"]

T = TypeVar("T")

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

# Which thread is in the middle of which listing. A signal handler, or a child that is forked there, may ask for the
# table: it must not wait for the one who waits for it.
_leading: set[tuple[int, str]] = set()


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
        self._last: tuple[str, object] = "", None  # the name and the identity of the newest table

    def __getstate__(self) -> dict[str, object]:
        # A process that is not forked has no process group: it is told where it meets.
        return {**self.__dict__, "_known": _address() or self._known}

    @property
    def has_store(self) -> bool:
        """Whether the ranks have a store in which they meet; else each lists by itself."""
        return (_address() or self._known) is not None

    def agree(self, name: str, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """Return the table on which all ranks agree that ask for this name.

        Args:
            name: Of the table, among those of the dataset.
            list_objects: Returns the table, if no other rank makes it.

        Raises:
            S3Error: The listing failed, here or on the rank that came first; or the ranks cannot meet.
            DeadlineError: The rank that came first has left nothing for 30 minutes.
        """
        address = _address() or self._known
        if address is None:
            return list_objects()
        attempt = self._attempts[name]
        meeting = _Meeting(address, f"{self._name}/{address.run}/{name}/{attempt}", self._last)
        try:
            table = meeting.table(list_objects)
        except BaseException:
            if not meeting.is_nested:  # else the listing around it still decides
                self._attempts[name] = attempt + 1
            raise
        self._last = meeting.holder, table._identity
        return table


class _Meeting:
    """One listing, in a store.

    Args:
        address: Of the store.
        name: Of the listing.
        last: Name and identity of the table before. One that is the same again is not left there again.

    Attributes:
        is_nested: Whether this thread is in the middle of this listing already.
        holder: Under which name the table was left.
    """

    def __init__(self, address: Address, name: str, last: tuple[str, object]) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # there are builds without

        self._name = name
        self._last = last
        self._leads = (threading.get_ident(), name)
        self.is_nested = self._leads in _leading
        self.holder = name
        self._where = f"{address.host}:{address.port}"
        self._store = self._asked(
            lambda: TCPStore(
                address.host, address.port, is_master=False, wait_for_workers=False, timeout=_CONNECT_TIMEOUT
            )
        )

    def table(self, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """Return the table: list if nobody did, else wait for it."""
        if self.is_nested:
            return self._lead(list_objects)
        may_lead = True
        try:
            may_lead = self._add("asked") == 1
            if not may_lead:
                return self._follow()
            _leading.add(self._leads)
            return self._lead(list_objects)
        except BaseException as error:
            if may_lead:  # also if an interrupt came before that was known
                self._tell_error(error)
            raise
        finally:
            _leading.discard(self._leads)

    def _lead(self, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """List, and leave the table for the others."""
        table = list_objects()
        if self._add("told") != 1:
            return self._follow()  # a signal handler was faster, in the middle of this
        try:
            self._leave(table)
        except BaseException as error:
            self._tell_error(error)
            raise
        return table

    def _leave(self, table: ObjectTable) -> None:
        if table._identity == self._last[1]:
            self.holder = self._last[0]
            self._set("same", self.holder)
            return
        content = zlib.compress(b"".join(table._to_bytes()), 1)
        pieces = [content[first : first + _PIECE] for first in range(0, len(content), _PIECE)]
        for number, piece in enumerate(pieces):
            self._set(f"piece {number}", piece)
        self._set("pieces", str(len(pieces)))

    def _tell_error(self, error: BaseException) -> None:
        told = error if isinstance(error, S3Error) else S3Error(f"{type(error).__name__}: {error}")
        with contextlib.suppress(S3Error):  # of the store: the error to be raised is the other one
            self._set("error", json.dumps([type(told).__name__, str(told)]))

    def _follow(self) -> ObjectTable:
        """Return what the first rank has left."""
        began = time.monotonic()
        pause = _FIRST_LOOK
        while True:
            if self._has("pieces"):
                return self._fetched()
            if self._has("same"):
                self.holder = self._get("same").decode()
                return self._fetched()
            if self._has("error"):
                kind, message = json.loads(self._get("error"))
                raise getattr(errors, kind, S3Error)(f"The rank that lists for all has failed: {message}")
            if time.monotonic() - began > _PATIENCE:
                raise DeadlineError(
                    f"Another rank lists the objects for all, and has left no table in {_PATIENCE:.0f} s. It may have "
                    "been killed. For very large prefixes save the table once and pass it to all ranks: from_table."
                )
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)

    def _fetched(self) -> ObjectTable:
        """Return the table that its holder has."""
        count = int(self._asked(lambda: self._store.get(f"{self.holder}/pieces")))
        keys = [f"{self.holder}/piece {number}" for number in range(count)]
        pieces = self._asked(lambda: [self._store.get(key) for key in keys])
        return ObjectTable._from_bytes(zlib.decompress(b"".join(pieces)), f"the store of the job at {self._where}")

    def _add(self, key: str) -> int:
        return self._asked(lambda: self._store.add(f"{self._name}/{key}", 1))

    def _set(self, key: str, value: str | bytes) -> None:
        self._asked(lambda: self._store.set(f"{self._name}/{key}", value))  # type: ignore[arg-type]  # bytes are fine

    def _has(self, key: str) -> bool:
        return self._asked(lambda: bool(self._store.check([f"{self._name}/{key}"])))

    def _get(self, key: str) -> bytes:
        return self._asked(lambda: self._store.get(f"{self._name}/{key}"))

    def _asked(self, ask: Callable[[], T]) -> T:
        """Return what the store answers.

        Raises:
            S3Error: It does not.
        """
        try:
            return ask()
        except RuntimeError as error:  # torch's errors of a store
            raise S3Error(
                f"The ranks of this job cannot meet at {self._where} to list the objects once: {error}. The process "
                "that has the store, mostly rank 0, may have ended. Or save the table, and pass it to all ranks: "
                "from_table."
            ) from error


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
