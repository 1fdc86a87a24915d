"""What must hold, each with its name, whatever a program does and whatever happens in the middle of it.

| name | what holds |
|---|---|
| results | each call returns what the bucket holds, as much of it as was asked for |
| documented errors | or it raises a documented error, for a reason that the program has |
| memory | nobody writes into memory whose call is over |
| in flight | nothing is in flight or queued that nobody owns |
| connections | no more of them than allowed, none left behind; a forked child leaves its parent's alone |
| budget | adaptive readers have given their memory back |
| look-ahead | the bytes that a look-ahead counts are those of what it has begun |
| uploads | no upload is open whose writer has ended |
| threads | no thread is left |
| locks | no lock of the process is locked |
| time | each call ends within bounded virtual time, an interrupted one at once |
| statistics | what a client counts is what the server saw, in as many records as there are engines |
| errors | nothing is left to the garbage collector: an error that is dropped drops all that it holds |
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from s3torch import S3Reader, S3Writer
from s3torch.errors import S3Error
from s3torch.testing.simulate import probe
from s3torch.testing.simulate.scheduler import locks_of

if TYPE_CHECKING:
    from s3torch.testing.simulate.play import Play

__all__ = ["AFTER_ALL", "AFTER_A_TURN", "AT_ONCE", "IN_CHILD", "NAMES", "Finding", "look_ahead_is_given_back"]


# Cycles of anything else cost little, and wait for the collector without harm.
_HOLDERS = (S3Error, S3Reader, S3Writer, memoryview)


class Finding(NamedTuple):
    """An invariant that does not hold.

    Attributes:
        invariant: Its name.
        detail: What was seen.
    """

    invariant: str
    detail: str


NAMES = (
    "results",
    "documented errors",
    "memory",
    "in flight",
    "connections",
    "budget",
    "look-ahead",
    "uploads",
    "threads",
    "locks",
    "time",
    "statistics",
    "errors",
)


def nothing_left_to_the_collector(play: Play) -> None:
    """Check that cycles of garbage hold nothing of s3torch's; the collector was off while the program ran."""
    if play.has_lost or play.has_interrupted:
        return  # the program made cycles of its own, or an interrupt left its frames behind
    before = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(each) for each in gc.garbage}
        found = {kind.__name__ for kind in kinds if issubclass(kind, _HOLDERS)}
    finally:
        gc.set_debug(before)
        gc.garbage.clear()
    if found:
        play.find("errors", f"only the garbage collector frees {', '.join(sorted(found))}")


def nothing_in_flight(play: Play) -> None:
    """Check that nothing is in flight, queued or counted as such."""
    for client in play.clients:
        count, memory = probe.in_flight(client), probe.memory_in_flight(client)
        if count or memory:
            play.find("in flight", f"{count} exchanges and {memory} bytes are in flight that nobody owns")
            return


def look_ahead_is_given_back(play: Play) -> None:
    """Check that look-ahead windows count what they hold."""
    for number, dataset in enumerate(play.datasets):
        counted, held = probe.ahead(dataset)
        if counted != held:
            play.find("look-ahead", f"dataset {number} counts {counted} bytes ahead, and has begun {held}")


def budget_is_given_back(play: Play) -> None:
    """Check that adaptive readers that are gone hold nothing."""
    if held := probe.budget_held() - play.budget_before:
        play.find("budget", f"adaptive readers that are gone hold {held} bytes")


def no_uploads(play: Play) -> None:
    """Check that no upload is open that the client knows of."""
    may_fail = play.program.has_faults  # its abort may have failed, which a warning says
    known = [upload.key for upload in play.world.server.uploads.values() if upload.is_known]
    known = [key for key in known if key not in play.resumed]  # there what arrived stays, for the next writer
    if known and not may_fail:
        play.find("uploads", f"uploads of {known} are open, and their writers have ended")


def statistics_add_up(play: Play) -> None:
    """Check that clients have counted what went over the wire."""
    world, stats = play.world, [client.stats for client in play.clients]
    for client in play.clients:
        if (count := probe.records(client)) > 0:
            play.find("statistics", f"a client keeps {count} records of engines that are gone")
            break
    if play.has_interrupted:
        return  # an interrupt may come between what is done and what is counted
    told = (
        sum(each.requests for each in stats),
        sum(each.bytes_sent for each in stats),
        sum(each.bytes_received for each in stats),
        sum(each.connections_opened for each in stats),
    )
    seen = world.requests_begun, world.bytes_sent, world.bytes_received, world.connections_opened
    if told[0] != seen[0] or told[3] != seen[3] or (not play.program.has_faults and told[1:3] != seen[1:3]):
        play.find("statistics", f"requests, bytes sent and received, connections: {told} were counted, {seen} seen")


def no_connections(play: Play) -> None:
    """Check that no connection outlives the clients."""
    if count := len(play.world.open_connections):
        play.find("connections", f"{count} connections are open, and no client is left")


def no_threads(play: Play) -> None:
    """Check that no thread is left."""
    if (count := threading.active_count()) > 1:
        play.find("threads", f"{count - 1} threads are left")


def no_locks(play: Play) -> None:
    """Check that no lock of the process is locked: an interrupt that came behind ``acquire`` leaves it so for ever."""
    for lock in locks_of(len(sys.modules)):
        is_locked = lock._is_owned() if hasattr(lock, "_is_owned") else lock.locked()
        if is_locked:
            play.find("locks", f"{lock!r} is locked, and nobody is about it")


def no_trespass(play: Play) -> None:
    """Check that a forked child has left alone what is its parent's."""
    for what in play.world.trespasses[:1]:
        play.find("connections", f"of a parent's connections and what selects them: {what}")


Invariant = Callable[["Play"], None]

# Once everything that the program made is dropped, and nothing else was done.
AT_ONCE: tuple[Invariant, ...] = (nothing_left_to_the_collector, nothing_in_flight)
# Once each client has made another call.
AFTER_A_TURN: tuple[Invariant, ...] = (nothing_in_flight, budget_is_given_back, no_uploads, statistics_add_up)
# At the end of a forked child, once it has dropped all, and each client has made a call.
IN_CHILD: tuple[Invariant, ...] = (no_trespass, nothing_in_flight, no_uploads, statistics_add_up)
# Once the clients are dropped, too.
AFTER_ALL: tuple[Invariant, ...] = (no_connections, no_locks)
