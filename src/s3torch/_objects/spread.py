"""One large read, spread over threads.

Receiving lets go of the interpreter: the kernel's copy, the pages it makes, and OpenSSL's decryption run beside each
other. One thread decrypts 1 GB/s whatever the machine, so a read that is large enough is shared by several. They are
started in the call and have ended when it returns, whatever ends it: nothing writes into the caller's memory then. Each
has an engine of its own, so nothing of what is in flight is shared. Nobody but the call knows of them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch._access.node import local_ranks, workers
from s3torch._transfer import pages, plan
from s3torch._transfer.exchange import without_frames

if TYPE_CHECKING:
    from s3torch._access.access import Access
    from s3torch._aws.operations import GetObject
    from s3torch._transfer.engine import Engine

__all__ = ["Crew", "crew_for", "run"]

# How long to wait for a thread before it is told again to end, in seconds.
_PATIENCE = 0.25
# How much time of cores a container gets, as "200000 100000" for two, or "max 100000" for all:
# https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files.
_QUOTA = "/sys/fs/cgroup/cpu.max"
# Of the threads, for whoever lists those of a process.
_NAME = "s3torch: a share of a read"


def run(access: Access, gets: Sequence[GetObject], progress: Callable[[int], object] | None = None) -> None:
    """Send the requests of one call, and wait for all of them.

    Args:
        access: Sends them.
        gets: The requests; all of their memory is known.
        progress: Is told how many bytes more have arrived.

    Raises:
        S3Error: The first error among them; nothing is in flight any more.
    """
    engine = access.engine()
    deadline = engine.deadline()
    crew = crew_for(access, engine, gets)
    own, others = crew.own, deque(crew.others)

    def wait() -> None:
        if progress is None:
            engine.wait(own, deadline)
            return
        for get in own:
            engine.wait([get], deadline)
            count = get.filled
            while others and others[0].is_done:
                count += others.popleft().filled
            progress(count)

    try:
        try:
            for get in own:
                engine.submit(get)
            crew.run(wait, deadline)
            if progress is not None and others:
                progress(sum(get.filled for get in others))
        except BaseException:
            engine.cancel(own)
            raise
    except BaseException:
        engine.cancel(own)  # again: an interrupt may have come before the one above
        raise


class Crew:
    """Threads that send some of the requests of one call, beside the caller, who sends the rest.

    Args:
        access: Lends each thread an engine.
        engine: The caller's.
        own: The requests that the caller sends.
        shares: The requests of each thread.
        claim: The cores that they take, as long as this refers to it.

    Attributes:
        own: As given.
    """

    def __init__(
        self,
        access: Access,
        engine: Engine,
        own: Sequence[GetObject],
        shares: Sequence[Sequence[GetObject]] = (),
        claim: object = None,
    ) -> None:
        self.own = own
        self._access = access
        self._engine = engine
        self._claim = claim
        self._helpers = [_Helper(share) for share in shares]
        self._pid = os.getpid()
        self._is_over = False
        self._error: BaseException | None = None

    @property
    def others(self) -> list[GetObject]:
        """The requests that the caller does not send."""
        return [get for helper in self._helpers for get in helper.gets]

    def run(self, wait: Callable[[], object], deadline: float | None) -> None:
        """Do what waits for the caller's own requests, while the threads send theirs.

        The caller's requests were submitted before.

        Args:
            wait: Returns when the caller's own requests are done.
            deadline: Of the call, on the caller's engine.

        Raises:
            S3Error: The first error of a thread. Whatever is raised, no thread moves anything any more.
        """
        try:
            try:
                self._run(wait, deadline)
            except BaseException:
                self._end()
                raise
        except BaseException as error:
            self._end()  # again: an interrupt may have come before the one above
            if self._error is not None and isinstance(error, Exception):
                raise self._take_error() from None
            raise
        finally:
            self._claim = None  # whoever keeps an error keeps this frame

    def _run(self, wait: Callable[[], object], deadline: float | None) -> None:
        seconds = None if deadline is None else self._engine.seconds_to(deadline)
        left = []
        for helper in self._helpers:
            try:
                threading.Thread(target=self._help, args=(helper, seconds), name=_NAME, daemon=True).start()
            except RuntimeError:  # there are too many threads
                left.append(helper)
        wait()
        for helper in left:
            self._engine.run(helper.gets, deadline)
            helper.end()
        while self._error is None and (running := self._running()):
            running[0].wait()
        if self._error is not None:
            raise self._take_error()

    def _help(self, helper: _Helper, seconds: float | None) -> None:
        """Send a share; what a thread does."""
        helper.has_begun = True  # before it looks whether all is over: see ``_end``
        try:
            if not self._is_over:
                with self._access.lent_engine() as helper.engine:
                    helper.engine.run(helper.gets, helper.engine.deadline(seconds))
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            self._fail(error)
        finally:
            helper.engine = None
            helper.end()

    def _running(self) -> list[_Helper]:
        """Return those that have not ended; none in the process of a fork, to which no other thread is copied."""
        return [helper for helper in self._helpers if not helper.is_done] if self._pid == os.getpid() else []

    def _fail(self, error: BaseException) -> None:
        """Note a thread's error, and end all that the call has begun."""
        if self._error is None and not self._is_over:
            without_frames(error)
            self._error = error
        self._is_over = True
        self._engine.cancel(self.own)
        self._cancel()

    def _cancel(self) -> None:
        for helper in self._helpers:
            engine = helper.engine  # a thread that ends at this moment takes it back
            if engine is not None:
                engine.cancel(helper.gets)

    def _end(self) -> None:
        """End all threads; an interrupt comes out of this when nothing moves any more."""
        self._is_over = True
        interrupt: BaseException | None = None
        while True:
            try:
                running = [helper for helper in self._running() if helper.has_begun]
                if not running:
                    break
                self._cancel()  # each time: a thread may have looked before, and begun after
                running[0].wait()
            except BaseException as error:  # noqa: BLE001  # raised below
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _take_error(self) -> BaseException:
        error, self._error = self._error, None
        if error is None:
            raise AssertionError("no error to take")
        return error


class _Helper:
    """One thread of a crew.

    Attributes:
        gets: What it sends.
        engine: By which it sends, while it does.
        has_begun: Whether the thread runs: one that was never started will not end.
        is_done: Whether it has ended.
    """

    def __init__(self, gets: Sequence[GetObject]) -> None:
        self.gets = gets
        self.engine: Engine | None = None
        self.has_begun = False
        self.is_done = False
        # Released at the end. Ctrl-C in the ``wait`` of an Event can leave it locked, and its ``set`` hangs then.
        self._bell = threading.Lock()
        self._bell.acquire()

    def end(self) -> None:
        """Note that it has ended, and wake who waits."""
        self.is_done = True
        self._bell.release()

    def wait(self) -> None:
        """Wait for its end, for a moment."""
        self._bell.acquire(timeout=_PATIENCE)


def crew_for(access: Access, engine: Engine, gets: Sequence[GetObject]) -> Crew:
    """Return who sends requests: the caller alone, or threads beside it where that pays.

    Args:
        access: Of the requests.
        engine: The caller's.
        gets: Whose memory is known.
    """
    size = sum(get.memory for get in gets)
    if size < plan.LEAST_TO_SPREAD:
        return Crew(access, engine, gets)
    most = min(access.config.max_threads, len(gets), _free_cores())
    is_tls = gets[0].origin.scheme == "https"
    count = plan.threads_for(size, most, is_tls=is_tls, is_new=most > 1 and _is_new(gets))
    own, *shares = _shares(gets, count)
    return Crew(access, engine, own, shares, _Claim(count))


def _is_new(gets: Sequence[GetObject]) -> bool:
    return pages.are_new([view for get in gets for view in get.views])


def _shares(gets: Sequence[GetObject], count: int) -> list[list[GetObject]]:
    """Divide requests into so many shares of about the same size, each in order."""
    shares: list[list[GetObject]] = [[] for _ in range(count)]
    sizes = [0] * count
    for get in gets:
        least = sizes.index(min(sizes))
        shares[least].append(get)
        sizes[least] += get.memory
    return shares


class _Claim:
    """The cores that one read keeps busy, as long as it is referred to: an interrupt cannot keep it from being dropped.

    Args:
        cores: How many.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.pid = os.getpid()  # what a fork has copied is told by its process
        number = id(self)
        _claims[number] = weakref.ref(self, lambda _: _claims.pop(number, None))


# Of all reads that are large enough.
_claims: dict[int, weakref.ref[_Claim]] = {}


def _free_cores() -> int:
    """Return how many cores this process may still keep busy.

    Those of a machine are shared by the ranks on it, by torchrun's ``LOCAL_WORLD_SIZE``, and by the workers of a
    DataLoader, each of which gets one. A container may have the time of fewer than it sees.
    """
    if workers():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, _quota() or cores) // local_ranks()
    claims = [reference() for reference in list(_claims.values())]
    return cores - sum([claim.cores for claim in claims if claim is not None and claim.pid == os.getpid()])


def _quota() -> int | None:
    """Return how many cores a container has the time of, rounded up; None if there is no limit."""
    try:
        time, period = map(int, Path(_QUOTA).read_bytes().split())
        return -(-time // period)
    except (OSError, ValueError, ZeroDivisionError):  # no container, another system, or "max"
        return None
