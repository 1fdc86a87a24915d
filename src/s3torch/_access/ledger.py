"""The statistics of a client: those of its engines, and one sum of those that are gone."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING

from s3torch._transfer.stats import TransferStats

if TYPE_CHECKING:
    from s3torch._transfer.engine import Engine

__all__ = ["Ledger"]


class Ledger:
    """Adds up what engines have counted. Engines come and go with threads; what they counted stays, as one sum."""

    def __init__(self) -> None:
        self._records: dict[int, tuple[weakref.ref[Engine], TransferStats]] = {}
        self._numbers = itertools.count()
        self._gone = TransferStats()
        self._folding = threading.Lock()

    def add(self, engine: Engine) -> None:
        """Count an engine from now on."""
        self._fold()
        self._records[next(self._numbers)] = (weakref.ref(engine), engine.stats)

    @property
    def records(self) -> int:
        """How many records are kept."""
        self._fold()
        return len(self._records)

    def total(self) -> TransferStats:
        """Return the sum over all engines that there were."""
        self._fold()
        return sum([stats for _, stats in list(self._records.values())], self._gone)

    def _fold(self) -> None:
        """Add the engines that are gone to their sum, unless somebody is about it: another thread, or our caller."""
        if not self._folding.acquire(blocking=False):
            return
        try:
            for number, (engine, stats) in list(self._records.items()):
                if engine() is None:
                    self._gone += stats
                    del self._records[number]
        finally:
            self._folding.release()
