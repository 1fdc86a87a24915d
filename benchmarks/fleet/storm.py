"""The start of a job: who asks for a listing, for credentials, for a name, and what the services make of it."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.fleet.job import DNS_PER_SECOND, GETS_PER_SECOND, KEYS_OF_A_PAGE, STS_PER_SECOND, Job
from benchmarks.fleet.service import Behaviour, Course, Limit, simulate
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import TransientError

__all__ = ["Storm", "credentials", "first_pages", "listing_seconds", "names"]

_RANGES = 32  # of keys, which one listing reads side by side
_LIST_LATENCY = 0.05
_STS_LATENCY = 0.05
_DNS_LATENCY = 0.001
# resolv.conf(5): a query that is not answered is sent again after 5 s, and twice at most.
_RESOLVER = RetryPolicy(max_attempts=2, base=5.0, cap=5.0)


class Storm(NamedTuple):
    """What a start was like.

    Attributes:
        asked: Requests that had to be answered.
        sent: With those that were refused.
        most: Requests in the worst second.
        failed: Requests that were given up.
        seconds: Until the last one was answered or given up.
        course: All of it.
    """

    asked: int
    sent: int
    most: int
    failed: int
    seconds: float
    course: Course


def credentials(askers: int, *, has_jitter: bool, spread: float = 0.0) -> Storm:
    """Let processes ask STS for credentials, once each, all at the same time or within ``spread`` seconds."""
    limit = Limit([(0.0, STS_PER_SECOND)])
    behaviour = Behaviour(has_jitter=has_jitter)
    course = simulate(limit, clients=askers, behaviour=behaviour, wanted=1, latency=_STS_LATENCY, spread=spread)
    return _storm(askers, course)


def first_pages(askers: int, *, has_jitter: bool) -> Storm:
    """Let processes begin to list a prefix: the first page of 32 ranges of keys."""
    limit = Limit([(0.0, GETS_PER_SECOND)])
    behaviour = Behaviour(has_jitter=has_jitter)
    course = simulate(limit, clients=askers, behaviour=behaviour, wanted=_RANGES, latency=_LIST_LATENCY)
    return _storm(askers * _RANGES, course)


def listing_seconds(job: Job, askers: int) -> tuple[int, float]:
    """Return the LIST requests if so many processes list all objects, and the seconds that takes at least.

    One listing has 32 requests in flight, and all together no more than the limit of a prefix.
    """
    pages = askers * -(-job.objects // KEYS_OF_A_PAGE)
    return pages, pages / min(GETS_PER_SECOND, askers * _RANGES / _LIST_LATENCY)


def names(job: Job, tries: int, *, spread: float = 0.0) -> Storm:
    """Let the processes of a node look a host up, by an A and an AAAA query for each name that is tried.

    Args:
        job: The job.
        tries: Names that are tried for a host: 1, or 5 in Kubernetes with ``ndots:5`` and its search list.
        spread: Processes start within so many seconds.
    """
    limit = Limit([(0.0, DNS_PER_SECOND)])
    # Nobody says that it is too much: a query is not answered.
    behaviour = Behaviour(policy=_RESOLVER, error=TransientError, has_jitter=False, has_window=False, has_rests=False)
    processes = job.local_ranks * (job.workers + 1)
    course = simulate(
        limit,
        clients=processes,
        behaviour=behaviour,
        wanted=2 * tries,
        connections=2,
        ahead=2,
        latency=_DNS_LATENCY,
        spread=spread,
    )
    return _storm(processes * 2 * tries, course)


def _storm(asked: int, course: Course) -> Storm:
    seconds = course.served | course.refused
    most = max((course.served[second] + course.refused[second] for second in seconds), default=0)
    sent = course.served.total() + course.refused.total()
    return Storm(asked, sent, most, course.failed, course.ended, course)
