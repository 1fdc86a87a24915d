"""The windows of a map dataset between two batches: who owns what is in flight then."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s3torch.datasets.look_ahead import LookAhead

__all__ = ["Windows"]

# A window that no batch has claimed for so many batches of its thread belongs to an epoch that was broken off. Fewer
# than so many loaders over one dataset may take turns in one thread. Not tuned.
_CLAIMED_WITHIN = 4


class _Kept:
    """A window that was left for the next batch.

    Attributes:
        window: Has begun the objects of that batch.
        claimed_by: The call that uses it; None while none does.
        age: How many batches came since.
    """

    __slots__ = ("age", "claimed_by", "window")

    def __init__(self, window: LookAhead) -> None:
        self.window = window
        self.claimed_by: object = None
        self.age = 0


class Windows(threading.local):
    """What batches have begun for the batches behind them, for each thread apart.

    A window belongs to one sequence of batches of one thread. The batch whose objects it has begun claims it; a call
    that comes meanwhile (a transform that reads another batch, a signal handler) finds it claimed, and uses another.
    """

    # Of the class, not made by a constructor: a handler that comes in the middle of that would find none.
    _kept: Sequence[_Kept] = ()

    def __iter__(self) -> Iterator[_Kept]:
        return iter(self._kept)

    def claim(self, plan: Sequence[int], call: object) -> LookAhead | None:
        """Return the window that has begun the first of these objects, if there is one.

        Args:
            plan: The indices that are wanted, in order.
            call: Who claims it.
        """
        found = None
        for kept in list(self._kept):
            if kept.claimed_by is not None:
                continue
            places = kept.window.places
            if found is None and places == list(plan[: len(places)]):
                kept.claimed_by = call  # it stays in the list, so that an interrupted call finds what it has claimed
                if kept in self._kept:  # no signal handler was faster
                    found = kept.window
            else:
                kept.age += 1
                if kept.age >= _CLAIMED_WITHIN:
                    self._end(kept)
        return found

    def give_back(self, window: LookAhead, call: object) -> None:
        """Leave a window for the batch whose objects it has begun.

        Args:
            window: Of a call that has gone well.
            call: That call.
        """
        if len(window):
            self.__dict__.setdefault("_kept", []).append(_Kept(window))
        self._kept = [kept for kept in self._kept if kept.claimed_by is not call]

    def cancel(self, call: object) -> None:
        """Cancel what a failed call has claimed."""
        for kept in [kept for kept in self._kept if kept.claimed_by is call]:
            self._end(kept)

    def _end(self, kept: _Kept) -> None:
        kept.window.cancel()
        self._kept = [each for each in self._kept if each is not kept]  # a signal handler may have ended it as well
