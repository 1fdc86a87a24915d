"""A service that refuses for a while: how much gets through, how much is wasted, and when it is over.

Clients that are in step wait for the slowest of them, so what gets through is what a training loop gets.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.fleet.job import GETS_PER_SECOND
from benchmarks.fleet.service import Behaviour, Course, Limit, simulate
from s3torch._transfer.retry import RetryPolicy

__all__ = ["BEHAVIOURS", "CLIENTS", "Outage", "outage", "share_of_the_limit"]

CLIENTS = 64
# What is compared: the library, and it without one of its parts.
BEHAVIOURS = {
    "s3torch": Behaviour(),
    "s3torch, max_attempts=20": Behaviour(policy=RetryPolicy(max_attempts=20)),
    "without the retry budget": Behaviour(has_budget=False),
    "without the window": Behaviour(has_window=False),
    "without jitter": Behaviour(has_jitter=False),
    "without any of the three": Behaviour(has_window=False, has_budget=False, has_jitter=False),
}
_BATCH = 64
_STEADY = 0.9  # of the goodput before


class Outage(NamedTuple):
    """What a limit and an outage came to.

    Attributes:
        limited: Answers a second at the limit, before the outage.
        wasted: Share of the requests before the outage that were refused.
        in_outage: Requests a second while all are refused.
        recovered: Seconds from the end of the outage until five seconds in a row have 0.9 of the answers of before;
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


def share_of_the_limit(clients: int = CLIENTS) -> float:
    """Return what one client of so many gets of the limit of a prefix, in GETs a second."""
    return GETS_PER_SECOND / clients


def _recovered(course: Course, end: int, after: int, due: float) -> int | None:
    for second in range(end, end + after - 5):
        if all(course.served[each] >= _STEADY * due for each in range(second, second + 5)):
            return second - end
    return None
