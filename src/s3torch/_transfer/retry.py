"""Whether a failed request is sent again, and when. Pure: the engine acts on what this returns."""

from __future__ import annotations

from dataclasses import dataclass

from s3torch.errors import (
    ConnectionFailedError,
    DeadlineError,
    IntegrityError,
    ProtocolError,
    S3Error,
    ServerError,
    ThrottledError,
    TransientError,
    TruncatedBodyError,
)

__all__ = ["RetryPolicy"]

# An endpoint that never answered is more likely mistyped than down: say so within about a second.
_ATTEMPTS_WHEN_NEVER_REACHED = 4
# A server that speaks nonsense will mostly go on doing so, and bytes that are stored damaged stay so.
_ATTEMPTS_ON_PROTOCOL_ERROR = 3
# What ends one connection says nothing of load: the first retry needs no pause. A batch that waits for its last sample
# would otherwise pay for each broken connection with several times what it takes itself.
_RETRIED_AT_ONCE = (ConnectionFailedError, TruncatedBodyError, ProtocolError)
# Nor says one failure of the service much of load: the first pause is this share of the usual one.
_FIRST_SHARE_OF_SERVER_ERROR = 0.2
# Where a service refuses some requests and answers others, the window sees to it that it gets fewer (see ``pacing``). A
# long pause of one of them would add nothing, but all ranks of a job may wait for that sample. In seconds.
_LONGEST_WHILE_OTHERS_ARE_ANSWERED = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter; no sooner than the service asks for (Retry-After, up to ``cap``).

    After a broken connection to an endpoint that has answered before, the first retry is sent at once, and soon after a
    failure of the service. What is refused (503 SlowDown, 429) waits for a second at most, while the service answers
    other requests; when it answers none, for between half of ``cap`` and all of it, so that the attempts last.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

    Args:
        max_attempts: How often a request is sent at most.
        base: Seconds of the longest first pause; it doubles with each further attempt.
        cap: Seconds of the longest pause.
    """

    max_attempts: int = 10
    base: float = 0.1
    cap: float = 20.0

    def pause(
        self, error: S3Error, attempts: int, *, was_reached: bool, jitter: float, is_in_budget: bool = True
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None to send it no more.

        Args:
            error: What the last attempt met; its class decides.
            attempts: How often the request was sent so far.
            was_reached: Whether the endpoint ever answered this process.
            jitter: A random number in [0, 1).
            is_in_budget: Whether retries are few beside successes; of what is refused, whether other requests are
                answered. Else the pause is the longest.
        """
        if not isinstance(error, TransientError) or attempts >= self._limit(error, was_reached=was_reached):
            return None
        longest = min(self.cap, self.base * 2.0 ** min(attempts - 1, 30)) if is_in_budget else self.cap
        if isinstance(error, ThrottledError):
            if is_in_budget:
                longest = min(longest, _LONGEST_WHILE_OTHERS_ARE_ANSWERED)
            else:
                jitter = (1.0 + jitter) / 2.0
        if attempts == 1 and was_reached and is_in_budget:
            if isinstance(error, _RETRIED_AT_ONCE):
                return 0.0
            if isinstance(error, ServerError):
                longest *= _FIRST_SHARE_OF_SERVER_ERROR
        return max(jitter * longest, min(error.retry_after or 0.0, self.cap))

    def _limit(self, error: TransientError, *, was_reached: bool) -> int:
        if isinstance(error, (ProtocolError, IntegrityError)):
            return min(self.max_attempts, _ATTEMPTS_ON_PROTOCOL_ERROR)
        if isinstance(error, (ConnectionFailedError, DeadlineError)) and not was_reached:
            return min(self.max_attempts, _ATTEMPTS_WHEN_NEVER_REACHED)
        return self.max_attempts
