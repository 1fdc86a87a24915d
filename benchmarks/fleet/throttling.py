"""A service that refuses for a while: how much gets through, how much is wasted, and when it is over.

Clients that are in step wait for the slowest of them, so what gets through is what a training loop gets.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.fleet.job import GETS_PER_SECOND
from benchmarks.fleet.service import Behaviour, Course, Limit, simulate
from s3torch._transfer.retry import RetryPolicy

__all__ = ["BEHAVIOURS", "CLIENTS", "AtTheLimit", "Outage", "at_the_limit", "outage", "share_of_the_limit"]

CLIENTS = 64
# What is compared: the library, and it without one of its parts.
BEHAVIOURS = {
    "s3torch": Behaviour(),
    "s3torch, max_attempts=20": Behaviour(policy=RetryPolicy(max_attempts=20)),
    "without rests": Behaviour(has_rests=False),
    "without window and rests": Behaviour(has_window=False, has_rests=False),
    "without jitter": Behaviour(has_jitter=False),
    "without any of the three": Behaviour(has_window=False, has_rests=False, has_jitter=False),
}
_BATCH = 64
_STEADY = 0.9  # of the answers before
_IN_A_ROW = 10  # seconds
_SETTLED = range(20, 60)  # seconds that count where nothing changes


class Outage(NamedTuple):
    """What a limit and an outage came to.

    Attributes:
        limited: Answers a second at the limit, before the outage.
        wasted: Share of the requests before the outage that were refused.
        in_outage: Requests a second while all are refused.
        recovered: Seconds from the end of the outage until ten seconds begin that have 0.9 of the answers of before;
            None if that never comes.
        lost: Seconds after the outage for which the service could have been used and was not, in all.
        failed: Requests that were given up.
        course: All of it.
    """

    limited: float
    wasted: float
    in_outage: float
    recovered: int | None
    lost: float
    failed: int
    course: Course


def outage(
    behaviour: Behaviour,
    *,
    clients: int,
    connections: int,
    in_step: bool,
    per_client: float,
    before: int,
    lasts: int,
    after: int,
) -> Outage:
    """Simulate a limit, then an outage, then the limit again.

    Args:
        behaviour: Of the clients.
        clients: How many.
        connections: Of each.
        in_step: Whether they wait for the slowest of them.
        per_client: Requests a second that the service takes, for each of them.
        before: Seconds until the outage; the first third of them is not counted.
        lasts: Seconds in which all is refused.
        after: Seconds that are simulated after it.
    """
    rate = clients * per_client
    limit = Limit([(0.0, rate), (float(before), 0.0), (float(before + lasts), rate)])
    course = simulate(
        limit,
        clients=clients,
        behaviour=behaviour,
        connections=connections,
        in_step=_BATCH if in_step else None,
        until=float(before + lasts + after),
    )
    settled = range(before // 3, before)
    served, refused = (sum(counts[second] for second in settled) for counts in (course.served, course.refused))
    down = range(before + 1, before + lasts)
    limited = served / len(settled)
    later = sum(course.served[second] for second in range(before + lasts, before + lasts + after))
    return Outage(
        limited,
        refused / (served + refused),
        sum(course.refused[second] for second in down) / len(down),
        _recovered(course, before + lasts, after, limited),
        max(0.0, after - later / rate),
        course.failed,
        course,
    )


class AtTheLimit(NamedTuple):
    """What clients make of a limit that is all that is in their way.

    Attributes:
        used: Share of it.
        wasted: Share of the requests that were refused.
        failed: Requests that were given up.
    """

    used: float
    wasted: float
    failed: int


def at_the_limit(
    behaviour: Behaviour, *, clients: int, connections: int, rate: float, latency: float, burst: float
) -> AtTheLimit:
    """Let clients that are in step ask for more than a service takes.

    Args:
        behaviour: Of the clients.
        clients: How many.
        connections: Of each.
        rate: Requests a second that the service takes.
        latency: Of an answer in seconds, at the median.
        burst: For how many seconds the service saves up what nobody asks for.
    """
    course = simulate(
        Limit([(0.0, rate)], burst),
        clients=clients,
        behaviour=behaviour,
        connections=connections,
        in_step=_BATCH,
        latency=latency,
        until=float(_SETTLED.stop),
    )
    served, refused = (sum(counts[second] for second in _SETTLED) for counts in (course.served, course.refused))
    return AtTheLimit(served / len(_SETTLED) / rate, refused / (served + refused), course.failed)


def share_of_the_limit(clients: int = CLIENTS) -> float:
    """Return what one client of so many gets of the limit of a prefix, in GETs a second."""
    return GETS_PER_SECOND / clients


def _recovered(course: Course, end: int, after: int, due: float) -> int | None:
    for second in range(end, end + after - _IN_A_ROW + 1):
        answers = sum(course.served[each] for each in range(second, second + _IN_A_ROW))
        if answers >= _STEADY * due * _IN_A_ROW:
            return second - end
    return None
