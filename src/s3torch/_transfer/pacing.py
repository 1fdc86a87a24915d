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
# A small window grows by such a part of itself, so that one of two or three requests is not refused every other time:
# above one request for each window of successes, and below one for each success.
_PART_ABOVE_ONE = 8.0
_PART_BELOW_ONE = 16.0
# Below one request at a time it shrinks by less than half: where each client may send little, halves would soon leave
# some far behind the others, and those that are in step wait for them. As in CUBIC (RFC 9438).
_SHRINKS_BELOW_ONE = 0.7
# A window below this only shrinks by refusals in a row. Some services refuse a share of what comes, however little this
# client sends: another one's load. Then it must not come to a stand: up to a third may be refused.
_SMALL = 0.25
# A window below one is a rest after each answer. Half a request at a time is a rest of so many seconds.
_REST = 0.02
# The least window: a rest of 2.5 s in the mean. AWS's adaptive retry mode goes down to a request in 2 s.
_LEAST = 1 / 128
# A window that was made smaller so often in a row, without a success, is that of a service that refuses all. Where one
# request in five is refused at random, that is so once in 15,000 times; then its next success ends it.
_SHUT_AFTER = 6

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
    """Keeps retries from making an outage worse: without tokens a retry has to wait for its longest pause.

    It pays for what follows failures. A service that asks for fewer requests gets fewer (``ConcurrencyWindow``), first
    ones and retries alike: were it retries alone, those that wait for each other would starve, since their successes
    end where the retries do.
    """

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

    Where a thousand clients share a limit, one request at a time is too many for each. So the window goes below one:
    then one request is in flight at most, and the client rests after its answer. When all is refused, that is one
    request in 2.5 s soon. Once something is answered the window doubles, up to near where it was before.

    Args:
        most: Never more than this.

    Attributes:
        size: How many now; below one, how much of the time.
    """

    def __init__(self, most: int) -> None:
        self.size = float(most)
        self._most = float(most)
        self._too_many = float(most)
        self._cut_at = float("-inf")
        self._cuts = 0  # since the last success

    @property
    def is_shut(self) -> bool:
        """Whether all was refused lately: what is refused now may wait for long, until something is answered."""
        return self._cuts >= _SHUT_AFTER

    def rest(self, jitter: float) -> float:
        """Return for how many seconds nothing is to be sent after an answer.

        Args:
            jitter: A random number in [0, 1): clients that were refused together are not to come back together.
        """
        return (0.5 + jitter) * _REST * (1.0 / self.size - 1.0) if self.size < 1.0 else 0.0

    def note_throttled(self, began: float, now: float) -> None:
        """Make the window smaller, from one on by half, once for all requests that were in flight together.

        Args:
            began: When the request was sent, in seconds.
            now: In seconds.
        """
        if began >= self._cut_at:
            is_first = not self._cuts
            if is_first:  # else it is not this size that was too many: all is refused
                # One that was cut too often is to come back fast: what is known of the limit is forgotten slowly.
                self._too_many = max(self.size, (self._too_many + self.size) / 2)
            if self.size >= 1.0:
                self.size /= 2
            elif self.size >= _SMALL or not is_first:
                self.size = max(_LEAST, self.size * _SHRINKS_BELOW_ONE)
            self._cut_at = now
            self._cuts += 1

    def note_success(self) -> None:
        """Widen the window a little."""
        self._cuts = 0
        size = self.size
        if size < self._most:
            lacking = self._too_many - size
            step = lacking / _WINDOWS_UP if lacking > 0.0 else -lacking / _WINDOWS_BEYOND
            least = min(1.0, size / (_PART_ABOVE_ONE if size >= 1.0 else _PART_BELOW_ONE))
            step = min(size, max(least, step))  # twice as many at most: after an outage, all begin to send
            self.size = min(self._most, size + step / max(1.0, size))


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
