"""The transfer engine: many exchanges over few connections, moved forward by whoever waits.

Theory of operation. An exchange is one request together with the reader of its answer (see ``http1``) and its
attempts. ``submit`` only queues it. ``wait`` turns the loop until the wanted exchanges are done, and each turn moves
*every* exchange that can move. Nothing runs when nobody waits: there is no thread, so there is no lock, nothing to
deadlock after ``fork``, and an interrupt (Ctrl-C) surfaces at once in the caller.

An engine belongs to one thread of one process. Time is counted only while the loop is turned: a caller that computes
for a minute between two waits does not run its transfers into their deadlines.

**Who may come in the middle.** A signal handler, a finaliser or a nested call may run between any two bytecodes of a
turn. So an engine that is in a turn cannot be entered again: the access layer hands out another engine of the same
thread (``is_free`` says which), and whoever only wants to end something leaves a note, which the next turn reads before
it moves a byte. An interrupt in a turn leaves the engine torn; the next one to enter closes all connections, and queues
what is not done anew. Nothing is lost by that, and nobody's transfer fails because somebody else was interrupted.

**What ends an exchange is one assignment**: of ``is_done`` for a success, of ``error`` for a failure. An interrupt
before it leaves an exchange that is sent again, one behind it an exchange that is over.

A connection that meets anything unexpected is closed and never used again. One that the server closed while it was
idle shows that on its next use, by ending before a single byte of an answer: then the exchange moves to another
connection at once, which does not count as an attempt.

Every request that passes here may be sent twice: reads and a PUT of the same bytes do no harm, and whoever completes an
upload, or stores an object that must be new, asks what has become of it (see ``_aws/multipart.py``). So whether it is
sent again is for the retry policy alone. A read whose first byte is late, or whose body has stopped, is sent a second
time at once, on a new connection, for what is still missing: its flight gets a rival, and the one that brings the next
byte goes on alone.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from s3torch._transfer.facts import Facts
from s3torch._transfer.flight import Limits
from s3torch._transfer.loop import Loop
from s3torch._transfer.retry import RetryPolicy
from s3torch._transfer.stats import TransferStats
from s3torch.errors import DeadlineError

if TYPE_CHECKING:
    from s3torch._transfer.connection import Network
    from s3torch._transfer.exchange import Exchange

__all__ = ["Engine"]


class Engine:
    """Runs exchanges; see the module's theory of operation.

    Args:
        network: Opens connections; the engine closes it.
        policy: Decides on retries.
        limits: Bounds and deadlines.
        facts: What is known of servers; None begins with nothing.
        jitter: Returns random numbers in [0, 1).

    Attributes:
        stats: What it has sent and received.
        is_entered: Whether it is in the middle of a turn, or of ending something.
    """

    def __init__(
        self,
        network: Network,
        policy: RetryPolicy | None = None,
        limits: Limits | None = None,
        *,
        facts: Facts | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.stats = TransferStats()
        self._owner = os.getpid(), threading.get_ident()
        self.is_entered = False
        self._is_torn = False
        self._network = network
        self._limits = limits or Limits()
        self._loop = Loop(network, policy or RetryPolicy(), self._limits, facts or Facts(), jitter, self.stats)
        # What is to be cancelled before the loop turns on; None: everything is to be sent anew.
        self._notes: deque[Sequence[Exchange] | None] = deque()
        self._deadline: float | None = None  # of the call that turns the loop

    def __repr__(self) -> str:
        flights, connections = len(self._loop.flights), len(self._loop.pool)
        return (
            f"<Engine {flights} in flight, {self.pending - flights} queued, {connections} connections, "
            f"{self.stats.requests} requests>"
        )

    def __del__(self) -> None:
        if hasattr(self, "_loop"):  # not after an interrupted constructor
            self.abandon()

    @property
    def pending(self) -> int:
        """How many exchanges are in flight or queued."""
        return len(self._loop.exchanges)

    @property
    def is_free(self) -> bool:
        """Whether the caller may turn it: it is this thread's, in this process, and not in the middle of a turn."""
        return not self.is_entered and self._owner == (os.getpid(), threading.get_ident())

    def take_over(self) -> None:
        """Make it the calling thread's: the one that it belonged to has ended, or has given it away."""
        self._owner = os.getpid(), threading.get_ident()

    def run(self, exchanges: Sequence[Exchange], deadline: float | None = None) -> None:
        """Submit exchanges and wait for all of them; see ``wait``."""
        try:
            for exchange in exchanges:
                self.submit(exchange)
            self.wait(exchanges, deadline)
        except BaseException:
            self.cancel(exchanges)  # again: ``wait`` may have been interrupted before it had cancelled
            raise

    def submit(self, exchange: Exchange, *, is_first: bool = False) -> None:
        """Queue an exchange; it moves when somebody waits. Whoever submits cancels: see ``scope``.

        Args:
            exchange: Not sent yet.
            is_first: Whether it comes before all that is queued.
        """
        if self._notes and self.is_free:  # of other threads: what they cancelled is not to wait for a turn
            self._enter(self._read_notes)
        self._loop.submit(exchange, is_first=is_first)

    def deadline(self, within: float | None = None) -> float | None:
        """Return when a call that begins now must have ended, for ``wait``; None if it may take as long as it takes.

        Args:
            within: Seconds that it may take at most; None: as long as the configuration allows.
        """
        limit = self._limits.call_timeout
        if within is not None:
            limit = within if limit is None else min(within, limit)
        return None if limit is None else self._loop.now + self._loop.unmoved + limit

    def time_left(self) -> float | None:
        """Return for how many seconds its turn may go on; None for as long as it takes."""
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.moment())

    def seconds_to(self, deadline: float) -> float:
        """Return how many seconds are left until a deadline; another engine may work for the same call."""
        return max(0.0, deadline - self._loop.now - self._loop.unmoved)

    def wait(self, exchanges: Sequence[Exchange], deadline: float | None = None) -> None:
        """Turn the loop until all of these are done.

        Whatever is raised, none of them is in flight afterwards: nothing writes into their memory any more.

        Args:
            exchanges: That were submitted.
            deadline: Of the call that they are for; None begins one of its own.

        Raises:
            S3Error: The first error among them; the others are cancelled and their connections closed.
        """
        try:
            loop = self._loop
            failures = loop.failures
            if deadline is None and self._limits.call_timeout is not None:
                deadline = self.deadline()
            for exchange in exchanges:
                while True:
                    if exchange.is_done or exchange.error is not None:
                        break
                    if exchange not in loop.exchanges and not exchange.is_done:
                        raise AssertionError("waiting for an exchange that was never submitted")
                    self.turn(deadline)
                    if loop.failures != failures:
                        failures = loop.failures
                        _raise_first_error(exchanges)
                if exchange.error is not None:  # such as one that a signal handler's turn has met
                    _raise_first_error(exchanges)
        except BaseException:
            self.cancel(exchanges)
            raise

    def turn(self, deadline: float | None = None) -> None:
        """Move everything that can move; waits for that if need be.

        Whatever interrupts this (Ctrl-C, a bug), the engine can be used again: see the module's theory of operation.

        Args:
            deadline: Of the call that turns the loop.

        Raises:
            DeadlineError: It has passed; everything goes on if the loop is turned again.
        """
        if deadline is not None and self._loop.now + self._loop.unmoved >= deadline:
            timeout = self._limits.call_timeout
            limit = "its time" if timeout is None else f"{timeout:g} s, as S3ClientConfig(call_timeout=...) asks"
            raise DeadlineError(f"The call was not done within {limit}.")
        self._deadline = deadline
        self._enter_turn(block=True)

    def nudge(self, interval: float = 0.0) -> None:
        """Move what can be moved without waiting, and send what is queued; see ``turn`` for interrupts.

        Args:
            interval: Do nothing if the loop was turned within so many seconds; for those who call this often.
        """
        if interval and self._network.clock() - self._loop.left_at < interval:
            return
        self._deadline = self.deadline()
        self._enter_turn(block=False)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Cancel exchanges; the connections of those in flight are closed.

        It may come from anywhere: another thread, a signal handler, the garbage collector. In the engine's own thread,
        outside of a turn, all is over when this returns, and when an interrupt leaves it. Elsewhere the next turn
        begins with it.
        """
        ended = tuple(exchanges)
        try:
            self._end(ended)
        except BaseException:
            self._end(ended)  # again: an interrupt came in its middle, and who was to cancel may have no other layer
            raise

    def reset(self) -> None:
        """Close all connections. What is not done is sent again, on new ones, when somebody waits for it."""
        self._notes.append(None)
        if self.is_free:
            self._enter(self._read_notes)

    def close(self) -> None:
        """Close everything. The engine can't be used afterwards."""
        self.cancel(list(self._loop.exchanges))
        self.reset()
        self._network.close()

    def abandon(self) -> None:
        """Close this process's descriptors of everything, whichever process it belongs to."""
        self._network.close()
        self._loop.abandon()

    def _end(self, exchanges: Sequence[Exchange]) -> None:
        self._notes.append(exchanges)  # first of all: what interrupts the rest finds it
        if self.is_free:
            self._enter(self._read_notes)

    def _enter_turn(self, *, block: bool) -> None:
        """Turn the loop; see ``_enter``, of which this is a copy for the sake of two calls in each turn."""
        if self.is_entered:
            raise AssertionError("an engine is entered in the middle of its turn")
        try:
            try:
                self.is_entered = True
                if self._is_torn:
                    self._loop.begin_anew()
                self._is_torn = True
                if self._notes:
                    self._read_notes()
                    block = False  # a note may be of what is waited for
                self._loop.turn(block=block)
                self._is_torn = False
            finally:
                self.is_entered = False
        finally:
            self.is_entered = False

    def _enter(self, act: Callable[[], object]) -> None:
        """Do something that nobody else may come into the middle of."""
        if self.is_entered:
            raise AssertionError("an engine is entered in the middle of its turn")
        try:
            try:
                self.is_entered = True
                if self._is_torn:
                    self._loop.begin_anew()
                self._is_torn = True  # until it has gone well: an interrupt passes by every other way to say so
                act()
                self._is_torn = False
            finally:
                self.is_entered = False
        finally:
            self.is_entered = False  # again: an interrupt may have come just before the one above

    def _read_notes(self) -> None:
        """Do what notes say."""
        while self._notes:
            note = self._notes[0]
            if note is None:
                self._loop.begin_anew()
            else:
                self._loop.end(note)
            self._notes.popleft()  # only now: a note that was interrupted is read again


def _raise_first_error(exchanges: Sequence[Exchange]) -> None:
    for exchange in exchanges:
        if exchange.error is not None:
            raise exchange.take_error()
