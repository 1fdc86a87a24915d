"""How many requests at a time, how many again, and when one is late. Pure: the engine tells it what happened."""

from __future__ import annotations

__all__ = ["ConcurrencyWindow", "FirstBytes", "RetryBudget"]

# A retry takes a token and a success gives a tenth of one back, as in gRPC's retry throttling (A6): in a long outage a
# tenth of the usual load goes out. Full at first, so that the faults of a start-up are retried as usual.
_RETRY_TOKENS = 100.0
_TOKENS_OF_A_SUCCESS = 0.1

# In a window of successes this share of the way to the last limit is made up for, and beyond it this share of the way
# from there is added. Of the pairs that were tried in the simulation of the tests (4, 8, 16, and none) these come back
# soonest (15 windows from a half instead of 64) while they use as much of the server, to 0.3 %, as steps of one do.
_WINDOWS_UP = 4.0
_WINDOWS_BEYOND = 16.0

# Late is what takes this many times as long as 95 % of the first bytes did, and at least so many seconds. A second
# request is worth it where lateness has another cause than load: one host, one lost packet. Not tuned.
_TIMES_THE_USUAL = 2.0
_LEAST_LATENESS = 0.02
_SAMPLES = 256
_FEWEST_SAMPLES = 32
_RECKONED_EVERY = 32
# Second requests are this share of the first ones at most, and so many in a row.
_HEDGED_SHARE = 0.02
_HEDGES_IN_A_ROW = 8.0


class RetryBudget:
    """Keeps retries from making an outage worse: without tokens a retry has to wait for its longest pause."""

    def __init__(self) -> None:
        self._tokens = _RETRY_TOKENS

    @property
    def has_tokens(self) -> bool:
        """Whether the next retry may go out as soon as any."""
        return self._tokens >= 1.0

    def note_retry(self) -> None:
        """Take a token, if there is one."""
        self._tokens = max(0.0, self._tokens - 1.0)

    def note_success(self) -> None:
        """Give a part of a token back."""
        self._tokens = min(_RETRY_TOKENS, self._tokens + _TOKENS_OF_A_SUCCESS)


class ConcurrencyWindow:
    """How many requests may be in flight: the service says when they are too many.

    Half as many when it does, and at least one more for each window of successes: additive increase and multiplicative
    decrease, by which clients that know nothing of each other come to share it (Chiu and Jain, 1989; RFC 5681 for TCP).
    What was too many last time is looked for as CUBIC does (RFC 9438): fast up to its neighbourhood, one by one there,
    and faster and faster beyond it, as the limit must have gone away.

    Args:
        most: Never more than this.

    Attributes:
        size: How many now.
    """

    def __init__(self, most: int) -> None:
        self.size = float(most)
        self._most = float(most)
        self._too_many = float(most)
        self._cut_at = float("-inf")

    def note_throttled(self, began: float, now: float) -> None:
        """Halve the window, once for all requests that were in flight together.

        Args:
            began: When the request was sent, in seconds.
            now: In seconds.
        """
        if began >= self._cut_at:
            self._too_many = self.size
            self.size = max(1.0, self.size / 2)
            self._cut_at = now

    def note_success(self) -> None:
        """Widen the window a little."""
        if self.size < self._most:
            lacking = self._too_many - self.size
            step = lacking / _WINDOWS_UP if lacking > 0.0 else -lacking / _WINDOWS_BEYOND
            self.size = min(self._most, self.size + max(1.0, step) / self.size)


class FirstBytes:
    """How long the first byte of an answer took lately, and from when on one is late.

    Attributes:
        late_after: Seconds after which a second request is sent; None while too little is known.
    """

    def __init__(self) -> None:
        self.late_after: float | None = None
        # Threads may note at the same time: then a slot is lost, and a list that never changes its length is no worse.
        self._seconds: list[float] = [0.0] * _SAMPLES
        self._noted = 0
        self._tokens = 1.0

    def note(self, seconds: float) -> None:
        """Learn what one answer took."""
        self._seconds[self._noted % _SAMPLES] = seconds
        self._tokens = min(_HEDGES_IN_A_ROW, self._tokens + _HEDGED_SHARE)
        self._noted += 1
        if self._noted % _RECKONED_EVERY == 0 and self._noted >= _FEWEST_SAMPLES:
            known = sorted(self._seconds[: self._noted])
            usual = known[len(known) * 95 // 100]
            self.late_after = max(_LEAST_LATENESS, _TIMES_THE_USUAL * usual)

    def least(self) -> float | None:
        """Return how many seconds the fastest tenth took at most: the way there and back, without waiting in a line."""
        known = sorted(self._seconds[: self._noted])
        return known[len(known) // 10] if known else None

    @property
    def may_hedge(self) -> bool:
        """Whether a second request is within the share of them."""
        return self._tokens >= 1.0

    def note_hedge(self) -> None:
        """Count a second request."""
        self._tokens -= 1.0
