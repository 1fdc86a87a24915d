"""A service that refuses what is too much, and clients that ask again, in virtual time.

A client is a process of s3torch: it has the window and the retry policy of the library, and does with them what the
engine does. The retry budget is for failures, of which there are none here. Its requests are for samples in a row: of
the ``ahead`` that follow the oldest one which is not there yet, as many are under way as the window lets. So a sample
that waits for its retry holds up what comes behind it, as it does in a training loop. And where ranks are in step, as
in DistributedDataParallel, the clients that are ahead wait for the slowest one.

What is not simulated: connections, bytes, second requests for late answers, and what one slow answer does to the next.
An answer takes as long as it would on a service with nothing else to do, and a refusal a third of that.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s3torch._transfer.pacing import ConcurrencyWindow
from s3torch._transfer.pauses import CALLED_BACK_WITHIN
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import ThrottledError, TransientError

__all__ = ["Behaviour", "Course", "Limit", "simulate"]

_REFUSAL = 1 / 3  # of the time of an answer
_LATENCY_SPREAD = 0.3  # of its logarithm
_EVER = 10**12
_BATCHES_AHEAD = 2  # the prefetch_factor of a DataLoader


class Limit:
    """A bucket of tokens: a request takes one, and is refused if there is none.

    Args:
        rates: From when on it gets how many tokens a second, in seconds, in order.
        burst: It holds what it gets in so many seconds.
    """

    def __init__(self, rates: Sequence[tuple[float, float]], burst: float = 1.0) -> None:
        self._rates = list(rates)
        self._burst = burst
        self._tokens = rates[0][1] * burst
        self._now = 0.0

    def admits(self, now: float) -> bool:
        """Return whether a request is taken that comes now; each is later than the one before, or as late."""
        while len(self._rates) > 1 and self._rates[1][0] <= now:
            self._fill(self._rates[1][0])
            del self._rates[0]
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float) -> None:
        rate = self._rates[0][1]
        self._tokens = min(rate * self._burst, self._tokens + (now - self._now) * rate)
        self._now = now


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What clients do when they are refused.

    Attributes:
        policy: When they ask again.
        error: What a refusal is.
        has_jitter: Whether pauses are random; else each is as long as it may be.
        has_window: Whether they ask for less at a time; else always for as much as there are connections.
        has_rests: Whether they ask for less than one at a time, too, by resting after each answer.
    """

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    error: type[TransientError] = ThrottledError
    has_jitter: bool = True
    has_window: bool = True
    has_rests: bool = True


class Course(NamedTuple):
    """What happened.

    Attributes:
        served: Requests that were answered, by the second.
        refused: Likewise.
        failed: Requests that were given up.
        ended: When the last one was answered or given up, in seconds.
    """

    served: Counter[int]
    refused: Counter[int]
    failed: int
    ended: float


class _Client:
    def __init__(self, wanted: int, connections: int, ahead: int, wake: Callable[[float, int], None]) -> None:
        self.window = ConcurrencyWindow(connections)
        self.attempts: dict[int, int] = {}  # of what is not there yet
        self.again: list[int] = []
        self.pauses: dict[int, float] = {}  # when they end
        self.called_back: set[int] = set()  # what is, once the service answers
        self.rests_until = 0.0
        self._wake = wake
        self._is_woken = False
        self.in_flight = 0
        self.batches = 0
        self._wanted = wanted
        self._ahead = ahead
        self._next = 0

    @property
    def complete(self) -> int:
        """How many samples are there, of those before the first one that is not."""
        # The first key is the oldest: a dict keeps its order, and numbers go up.
        return next(iter(self.attempts), self._next)

    def take(self, stop: int) -> int | None:
        """Return the number of the request to be sent now, below ``stop``; or None."""
        if self.again:  # what was sent most often goes first
            return self.again.pop(max(range(len(self.again)), key=lambda index: self.attempts[self.again[index]]))
        if self._next < min(self._wanted, stop, self.complete + self._ahead):
            self.attempts[self._next] = 0
            self._next += 1
            return self._next - 1
        return None

    def pause(self, number: int, until: float) -> None:
        """Keep a request until its pause is over."""
        self.pauses[number] = until
        self._wake(until, number)

    def resume(self, number: int, now: float) -> None:
        """End a pause, unless it was made shorter since; or a rest, if the number is negative."""
        if number < 0:
            self._is_woken = False
        elif self.pauses.get(number) == now:
            del self.pauses[number]
            self.called_back.discard(number)
            self.again.append(number)

    def is_resting(self, now: float) -> bool:
        """Whether nothing may be sent; then it is asked again later."""
        if self.rests_until > now and not self._is_woken:
            self._is_woken = True
            self._wake(self.rests_until, -1)
        return self.rests_until > now

    def note_success(self, number: int, now: float, jitter: Callable[[], float]) -> None:
        """Go on after an answer: what waits since all was refused waits no longer."""
        self.window.note_success()
        del self.attempts[number]
        for paused in sorted(self.called_back):
            self.pause(paused, min(self.pauses[paused], now + jitter() * CALLED_BACK_WITHIN))
        self.called_back.clear()

    def note_refusal(
        self, number: int, began: float, now: float, behaviour: Behaviour, jitter: Callable[[], float]
    ) -> bool:
        """Let a request that was refused pause; returns whether it is given up."""
        self.window.note_throttled(began, now)
        is_shut = behaviour.has_rests and self.window.is_shut
        seconds = behaviour.policy.pause(
            behaviour.error(), self.attempts[number], was_reached=True, jitter=jitter(), is_in_budget=not is_shut
        )
        if seconds is None:
            del self.attempts[number]
            return True
        self.pause(number, now + seconds)
        if is_shut:
            self.called_back.add(number)
        return False


def simulate(
    limit: Limit,
    *,
    clients: int,
    behaviour: Behaviour,
    wanted: int | None = None,
    connections: int = 128,
    ahead: int = 128,
    in_step: int | None = None,
    latency: float = 0.03,
    spread: float = 0.0,
    until: float = math.inf,
    seed: int = 1,
) -> Course:
    """Let clients ask a service, and return what happened.

    Args:
        limit: Of the service.
        clients: How many.
        behaviour: Of all of them.
        wanted: Requests of each; None has no end.
        connections: Of each.
        ahead: How far the newest request may be ahead of the oldest one that is not answered.
        in_step: Samples of a batch, of which no client asks for more than the two that follow the last one that all
            clients have; None lets each go its own way.
        latency: Of an answer in seconds, at the median.
        spread: They start at random within so many seconds.
        until: When to stop, in seconds.
        seed: Of all chance.
    """
    chance = random.Random(seed)
    jitter: Callable[[], float] = chance.random if behaviour.has_jitter else lambda: 1.0
    served: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    failed = 0
    now = 0.0
    order = itertools.count()
    events: list[tuple[float, int, _Client, int, bool | None, float]] = []  # is it admitted? None: a pause may be over

    stop = _EVER if in_step is None else _BATCHES_AHEAD * in_step

    def send(client: _Client) -> None:
        most = max(1, int(client.window.size)) if behaviour.has_window else connections
        while client.in_flight < most:
            if client.is_resting(now) or (number := client.take(stop)) is None:
                return
            client.in_flight += 1
            client.attempts[number] += 1
            is_admitted = limit.admits(now)
            takes = latency * math.exp(chance.gauss(0.0, _LATENCY_SPREAD)) * (1.0 if is_admitted else _REFUSAL)
            heapq.heappush(events, (now + takes, next(order), client, number, is_admitted, now))

    def new_client() -> _Client:
        def wake(when: float, number: int) -> None:
            heapq.heappush(events, (when, next(order), client, number, None, 0.0))

        return (client := _Client(_EVER if wanted is None else wanted, connections, ahead, wake))

    everyone = [new_client() for _ in range(clients)]
    for client in everyone:
        heapq.heappush(events, (chance.random() * spread, next(order), client, -1, None, 0.0))
    while events and events[0][0] < until:
        now, _, client, number, is_admitted, began = heapq.heappop(events)
        if is_admitted is None:
            client.resume(number, now)
            send(client)
            continue
        client.in_flight -= 1
        if is_admitted:
            served[int(now)] += 1
            client.note_success(number, now, jitter)
        else:
            refused[int(now)] += 1
            failed += client.note_refusal(number, began, now, behaviour, jitter)
        if behaviour.has_rests:
            client.rests_until = now + client.window.rest(jitter())
        send(client)
        if in_step is not None and client.complete // in_step > client.batches:
            client.batches = client.complete // in_step
            due = (min(each.batches for each in everyone) + _BATCHES_AHEAD) * in_step
            if due > stop:
                stop = due
                for each in everyone:
                    send(each)
    return Course(served, refused, failed, now)
