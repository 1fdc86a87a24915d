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

Every request that passes here can be sent twice without harm (GET, HEAD, PUT of the same bytes), so whether it is sent
again is for the retry policy alone. A read whose first byte is late, or whose body has stopped, is sent a second time
at once, on a new connection, for what is still missing: its flight gets a rival, and the one that brings the next byte
goes on alone.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from s3torch._transfer.connection import READ, Connection, Network, Origin
from s3torch._transfer.exchange import Exchange, without_frames
from s3torch._transfer.facts import Facts
from s3torch._transfer.flight import Flight, Limits
from s3torch._transfer.hedging import Hedging
from s3torch._transfer.pool import ConnectionPool
from s3torch._transfer.retry import RetryPolicy
from s3torch._transfer.stats import TransferStats
from s3torch.errors import ConnectionFailedError, DeadlineError, ProtocolError, S3Error, ThrottledError

__all__ = ["Engine"]

# Deadlines are seconds long; looking at them this often is precise enough and costs nothing.
_SWEEP_INTERVAL = 0.25
# One connection that brings bytes as fast as they are taken, as over TLS, must not keep the others waiting; in bytes.
_RECEIVED_AT_ONCE = 1024 * 1024
# What waits for a server that could not be reached is sent again within this, in seconds, when it answers something.
_CALLED_BACK_WITHIN = 1.0
# When a turn takes so many seconds more than it has waited for, the process was stopped, or a signal handler ran: that
# is no time that a server took.
_STOPPED = 1.0


class _Waiting(NamedTuple):
    """An exchange that is sent again when it is due; they compare by that, and then by their order."""

    due: float
    order: int
    exchange: Exchange
    is_cut_off: bool


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
        self._policy = policy or RetryPolicy()
        self._limits = limits or Limits()
        self._facts = facts or Facts()
        self._jitter = jitter
        self._pool = ConnectionPool(network, self._limits.connections, self.stats)
        # All that was submitted and is not done, in order. What is queued below may also be done by now.
        self._exchanges: dict[Exchange, None] = {}
        self._queue: deque[Exchange] = deque()
        self._later: list[_Waiting] = []
        self._order = itertools.count()
        self._flights: set[Flight] = set()
        self._loads: dict[Origin, int] = {}
        self._memory_in_flight = 0
        # What is to be cancelled before the loop turns on; None: everything is to be sent anew.
        self._notes: deque[Sequence[Exchange] | None] = deque()
        self._failures = 0
        self._is_down: set[Origin] = set()
        self._left_at = network.clock()
        self._time_away = 0.0
        self._now = self._left_at
        self._next_sweep = 0.0
        self._hedging = Hedging()

    def __repr__(self) -> str:
        return (
            f"<Engine {len(self._flights)} in flight, {self.pending - len(self._flights)} queued, "
            f"{len(self._pool)} connections, {self.stats.requests} requests>"
        )

    def __del__(self) -> None:
        self.abandon()

    @property
    def pending(self) -> int:
        """How many exchanges are in flight or queued."""
        return len(self._exchanges)

    @property
    def is_free(self) -> bool:
        """Whether the caller may turn it: it is this thread's, in this process, and not in the middle of a turn."""
        return not self.is_entered and self._owner == (os.getpid(), threading.get_ident())

    def run(self, exchanges: Sequence[Exchange], deadline: float | None = None) -> None:
        """Submit exchanges and wait for all of them; see ``wait``."""
        try:
            for exchange in exchanges:
                self.submit(exchange)
            self._wait(exchanges, deadline)
        except BaseException:
            self.cancel(exchanges)
            raise

    def submit(self, exchange: Exchange) -> None:
        """Queue an exchange; it moves when somebody waits. Whoever submits cancels: see ``scope``."""
        self._exchanges[exchange] = None
        self._queue.append(exchange)

    def deadline(self, within: float | None = None) -> float | None:
        """Return when a call that begins now must have ended, for ``wait``; None if it may take as long as it takes.

        Args:
            within: Seconds that it may take at most; None: as long as the configuration allows.
        """
        limits = [limit for limit in (within, self._limits.call_timeout) if limit is not None]
        return self._now + min(limits) if limits else None

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
            self._wait(exchanges, deadline)
        except BaseException:
            self.cancel(exchanges)
            raise

    def _wait(self, exchanges: Sequence[Exchange], deadline: float | None) -> None:
        failures = self._failures
        deadline = deadline or self.deadline()
        for exchange in exchanges:
            if exchange.error is not None:
                _raise_first_error(exchanges)
            while not exchange.is_done:
                self.turn(deadline)
                if self._failures != failures:
                    failures = self._failures
                    _raise_first_error(exchanges)

    def turn(self, deadline: float | None = None) -> None:
        """Move everything that can move; waits for that if need be.

        Whatever interrupts this (Ctrl-C, a bug), the engine can be used again: see the module's theory of operation.

        Args:
            deadline: Of the call that turns the loop.

        Raises:
            DeadlineError: It has passed; everything goes on if the loop is turned again.
        """
        if deadline is not None and self._now >= deadline:
            timeout = self._limits.call_timeout
            limit = "its time" if timeout is None else f"{timeout:g} s, as S3ClientConfig(call_timeout=...) asks"
            raise DeadlineError(f"The call was not done within {limit}.")
        self._enter(self._turn)

    def nudge(self, interval: float = 0.0) -> None:
        """Move what can be moved without waiting, and send what is queued; see ``turn`` for interrupts.

        Args:
            interval: Do nothing if the loop was turned within so many seconds; for those who call this often.
        """
        if interval and self._network.clock() - self._left_at < interval:
            return
        self._enter(self._turn_at_once)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Cancel exchanges; the connections of those in flight are closed.

        It may come from anywhere: another thread, a signal handler, the garbage collector. In the engine's own thread,
        outside of a turn, all is over when this returns. Elsewhere the next turn begins with it.
        """
        self._notes.append(tuple(exchanges))  # first of all: what interrupts the rest finds it
        if self.is_free:
            self._enter(self._read_notes)

    def reset(self) -> None:
        """Close all connections. What is not done is sent again, on new ones, when somebody waits for it."""
        self._notes.append(None)
        if self.is_free:
            self._enter(self._read_notes)

    def close(self) -> None:
        """Close everything. The engine can't be used afterwards."""
        self.cancel(list(self._exchanges))
        self.reset()
        self._network.close()

    def abandon(self) -> None:
        """Close this process's descriptors of everything, whichever process it belongs to."""
        self._network.close()
        self._pool.abandon()
        for flight in self._flights:  # flights, exchanges and answers refer to each other
            flight.response = flight.want = None
            flight.exchange.flight = flight.exchange.rival = None
        self._flights.clear()
        self._exchanges.clear()

    def _enter(self, act: Callable[[], object]) -> None:
        """Do something that nobody else may come into the middle of."""
        if self.is_entered:
            raise AssertionError("an engine is entered in the middle of its turn")
        try:
            try:
                self.is_entered = True
                if self._is_torn:
                    self._begin_anew()
                self._is_torn = True  # until it has gone well: an interrupt passes by every other way to say so
                act()
                self._is_torn = False
            finally:
                self.is_entered = False
        finally:
            self.is_entered = False  # again: an interrupt may have come just before the one above

    def _begin_anew(self) -> None:
        """Close all connections, and queue what is not done. It can be interrupted, and begin again."""
        self._pool.close()
        self._flights.clear()
        self._loads.clear()
        self._memory_in_flight = 0
        self._queue.clear()
        self._later.clear()
        for exchange in list(self._exchanges):
            exchange.flight = exchange.rival = None
            if exchange.is_done or exchange.error is not None:
                exchange.is_done = True
                del self._exchanges[exchange]
            else:
                self._queue.append(exchange)

    def _read_notes(self) -> None:
        while self._notes:
            note = self._notes[0]
            if note is None:
                self._begin_anew()
            else:
                self._end(note)
            self._notes.popleft()  # only now: a note that was interrupted is read again

    def _end(self, exchanges: Sequence[Exchange]) -> None:
        """End exchanges that are not done, and drop what refers to their memory."""
        is_queued = False
        for exchange in exchanges:
            if exchange.is_done:
                continue
            is_queued |= exchange.flight is None
            while exchange.flight is not None:
                self._land(exchange.flight, keep=False)
            self._finish(exchange, ConnectionFailedError("The transfer was cancelled."))
        if is_queued:
            left = [exchange for exchange in self._queue if not exchange.is_done]
            self._queue.clear()  # the same deque: a finaliser may come between the two steps of ``self._queue.append``
            self._queue.extend(left)
            self._later = [waiting for waiting in self._later if not waiting.exchange.is_done]
            heapq.heapify(self._later)

    def _turn_at_once(self) -> None:
        self._turn(block=False)

    def _turn(self, *, block: bool = True) -> None:
        self._come_back()
        if self._notes:
            self._read_notes()
            block = False  # it may be what is waited for
        while self._later and self._later[0].due <= self._now:
            self._queue.appendleft(heapq.heappop(self._later).exchange)
        patience = self._patience() if block and not self._can_start() else 0.0
        events = self._network.select(patience)
        self._look_at_clock(patience)
        busy = []
        for connection, ready in events:
            if connection.flight is not None:
                busy.append((connection, ready))
            else:
                self._pool.drop_unless_quiet(connection)
        self._start_queued()
        for connection, ready in busy:
            self._advance(connection, ready)
        if self._now >= self._hedging.due and self._limits.hedging:
            self._hedge_late_ones()
        if self._now >= self._next_sweep:
            self._sweep()
        self._left_at = self._network.clock()  # what a turn has to do takes its time, too
        if self._left_at - self._time_away > self._now + _STOPPED:
            self._time_away = self._left_at - self._now

    def _come_back(self) -> None:
        """Leave the time since the last turn out of account: nobody waited."""
        clock = self._network.clock()
        self._time_away += clock - self._left_at
        self._left_at = clock
        self._now = clock - self._time_away

    def _look_at_clock(self, waited: float) -> None:
        """Note the time; what is far more than the turn has waited for is left out of account."""
        now = self._network.clock() - self._time_away
        if now > self._now + waited + _STOPPED:
            self._time_away += now - self._now - waited
            now = self._now + waited
        self._now = now

    def _patience(self) -> float:
        """Return for how many seconds nothing needs to be done unless a connection can move."""
        if not self._exchanges:
            raise AssertionError("waiting for an exchange that was never submitted")
        moment = min(self._next_sweep, self._hedging.due) if self._limits.hedging else self._next_sweep
        if self._later:
            moment = min(moment, self._later[0].due)
        return max(0.0, moment - self._now)

    def _can_start(self) -> bool:
        """Whether the first exchange of the queue may be sent; drops those from its front that are not to be."""
        queue = self._queue
        while queue and (queue[0].is_done or queue[0].flight is not None):
            queue.popleft()
        if not queue:
            return False
        exchange, most = queue[0], self._limits.connections
        if len(self._flights) >= most:
            return False
        origin = exchange.origin
        if self._loads.get(origin, 0) >= int(self._facts.of(origin).window(most).size):
            return False
        return not self._flights or self._memory_in_flight + exchange.memory <= self._limits.bytes_in_flight

    def _start_queued(self) -> None:
        while self._can_start():
            exchange = self._queue[0]
            try:
                # Looks names up: until then it stays in the queue.
                connection = self._pool.take(exchange.origin, self._now + self._time_away)
            except S3Error as error:
                self._queue.popleft()
                exchange.attempts += 1
                self._retry_or_fail(exchange, error)
                continue
            except Exception as error:  # noqa: BLE001  # a bug: its owner's, not of whoever turns
                self._fail(exchange, error)
                continue
            self._queue.popleft()
            exchange.attempts += 1
            exchange.flight = flight = self._take_off(exchange, connection)
            if connection.is_open:
                self._guarded(flight, self._begin)

    def _take_off(self, exchange: Exchange, connection: Connection) -> Flight:
        origin = exchange.origin
        flight = Flight(exchange, connection, self._facts.of(origin), self._now, self._now + self._time_away)
        connection.flight = flight
        self._flights.add(flight)
        self._loads[origin] = self._loads.get(origin, 0) + 1
        if exchange.flight is None:
            self._memory_in_flight += flight.memory
        return flight

    def _advance(self, connection: Connection, events: int) -> None:
        flight: Flight | None = connection.flight
        if flight is None:
            return  # it was cancelled in this turn
        if not connection.is_open:
            self._guarded(flight, self._establish)
            return
        if events & READ:
            self._guarded(flight, self._receive)
        if flight.outgoing and connection.flight is flight:
            self._guarded(flight, self._send)

    def _guarded(self, flight: Flight, step: Callable[[Flight], None]) -> None:
        try:
            step(flight)
        except S3Error as error:
            self._break(flight, error)
        except Exception as error:  # noqa: BLE001  # no memory for a body, or a bug: its owner's, not of whoever turns
            self._fail(flight.exchange, error)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        while exchange.flight is not None:
            self._land(exchange.flight, keep=False)
        self._finish(exchange, error)

    def _establish(self, flight: Flight) -> None:
        if flight.connection.establish():
            self._begin(flight)

    def _begin(self, flight: Flight) -> None:
        """Send the request; most fit into the socket's buffer at once."""
        exchange = flight.exchange
        flight.outgoing = list(exchange.request())
        flight.response = exchange.response(flight.connection.inbox)
        flight.want = next(flight.response)
        flight.mark = self._now
        self.stats.requests += 1
        self._send(flight)

    def _send(self, flight: Flight) -> None:
        connection, outgoing = flight.connection, flight.outgoing
        while outgoing:
            try:
                count = connection.send(outgoing[0])
            except ConnectionFailedError:
                self._receive(flight)  # a server that refuses a body may have said why before it hung up
                if connection.flight is not flight:
                    return
                raise
            if not count:
                break
            flight.moved += count
            self.stats.bytes_sent += count
            if count == len(outgoing[0]):
                del outgoing[0]
            else:
                outgoing[0] = outgoing[0][count:]
        else:
            flight.mark = self._now
        connection.watch_writing(wanted=bool(outgoing))

    def _receive(self, flight: Flight) -> None:
        connection, response, want = flight.connection, flight.response, flight.want
        if response is None or want is None:
            raise AssertionError("receiving before the request was sent")
        received = 0
        try:
            while True:
                count = connection.recv_into(want)
                if count is None:
                    break
                if count and flight.exchange.rival is not None:
                    self._let_win(flight)
                received += count
                is_empty = count < len(want) and not connection.holds_more
                want = response.send(count)
                if is_empty and count:  # asking again would only cost a system call
                    break
                if received >= _RECEIVED_AT_ONCE and connection.is_drained:
                    break
        except StopIteration as stop:
            self._count_received(flight, received)
            self._complete(flight, stop.value)
            return
        except S3Error:
            self._count_received(flight, received)
            raise
        self._count_received(flight, received)
        flight.want = want
        connection.expect(len(want))

    def _count_received(self, flight: Flight, count: int) -> None:
        self.stats.bytes_received += count
        if count and not flight.received:
            if flight.exchange.is_read:
                flight.facts.first_bytes.note(self._now - flight.mark)
            flight.mark, flight.moved_at_mark = self._now, flight.moved
        if count:
            flight.heard = self._now
        flight.received += count
        flight.moved += count

    def _complete(self, flight: Flight, error: S3Error | None) -> None:
        exchange, head, facts = flight.exchange, flight.exchange.head, flight.facts
        if head is None:
            raise AssertionError("an exchange ended without an answer")
        if error is None and flight.outgoing:
            error = ProtocolError("The server answered that it has everything before everything was sent.")
        facts.is_reached = True
        if exchange.rival is not None:  # the end of a connection may end an answer without another byte
            self._let_win(flight)
        self._land(flight, keep=head.keeps_alive and not head.ends_with_connection and not flight.outgoing)
        window = facts.window(self._limits.connections)
        if error is None:
            window.note_success()
            facts.retry_budget.note_success()
            if exchange.origin in self._is_down:
                self._call_back(exchange.origin)
            self._finish(exchange, None)
            return
        if isinstance(error, ThrottledError):
            window.note_throttled(flight.began, self._now + self._time_away)
        self._retry_or_fail(exchange, error)

    def _break(self, flight: Flight, error: S3Error) -> None:
        exchange = flight.exchange
        was_stale = flight.connection.was_used and not flight.received and isinstance(error, ConnectionFailedError)
        if flight.received:
            flight.facts.is_reached = True
        self._land(flight, keep=False)
        if exchange.flight is not None:
            return  # its rival goes on
        if was_stale:
            exchange.attempts -= 1
            self._queue.appendleft(exchange)
        else:
            self._retry_or_fail(exchange, error)

    def _land(self, flight: Flight, *, keep: bool) -> None:
        """Take the exchange off its connection; a rival of the flight takes its place."""
        connection, exchange = flight.connection, flight.exchange
        self._flights.discard(flight)
        self._loads[connection.origin] -= 1
        if flight is exchange.flight:
            exchange.flight = exchange.rival
        exchange.rival = None
        if exchange.flight is None:
            self._memory_in_flight -= flight.memory
        connection.flight = None
        # The reader holds slices of the destination; they must be gone before its owner can take the memory back.
        flight.response = flight.want = None
        if keep:
            self._pool.keep(connection, self._now + self._time_away)
        else:
            self._pool.discard(connection)

    def _retry_or_fail(self, exchange: Exchange, error: S3Error) -> None:
        error.attempts = exchange.attempts
        try:
            if exchange.recover(error):
                self.stats.retries += 1
                self._queue.appendleft(exchange)
                return
        except S3Error as failure:
            self._finish(exchange, exchange.explain(failure))
            return
        facts = self._facts.of(exchange.origin)
        pause = self._policy.pause(
            error,
            exchange.attempts,
            was_reached=facts.is_reached,
            is_in_budget=facts.retry_budget.has_tokens,
            jitter=self._jitter(),
        )
        if pause is None:
            self._finish(exchange, exchange.explain(error))
        else:
            self.stats.retries += 1
            facts.retry_budget.note_retry()
            is_cut_off = isinstance(error, ConnectionFailedError)
            if is_cut_off:
                self._is_down.add(exchange.origin)
            heapq.heappush(self._later, _Waiting(self._now + pause, next(self._order), exchange, is_cut_off))

    def _call_back(self, origin: Origin) -> None:
        """Shorten the pauses of what could not reach an origin: it answers again."""
        self._is_down.discard(origin)
        for index, waiting in enumerate(self._later):
            if waiting.is_cut_off and waiting.exchange.origin == origin:
                soon = self._now + self._jitter() * _CALLED_BACK_WITHIN
                self._later[index] = waiting._replace(due=min(waiting.due, soon))
        heapq.heapify(self._later)

    def _finish(self, exchange: Exchange, error: Exception | None) -> None:
        if error is not None:
            without_frames(error)
            exchange.error = error
            exchange.release()
            self._failures += 1
        exchange.is_done = True
        self._exchanges.pop(exchange, None)

    def _sweep(self) -> None:
        self._next_sweep = self._now + _SWEEP_INTERVAL
        for flight in list(self._flights):
            if flight.connection.awaited > 1:  # more may have come than select has told
                self._guarded(flight, self._receive)
            what = flight.overdue(self._now, self._limits) if flight in self._flights else None
            if what is not None:
                flight.connection.note_timeout()
                self._break(flight, DeadlineError(f"{what}."))

    def _hedge_late_ones(self) -> None:
        """Send a second request for each read whose first byte is late, or whose body has stopped."""
        most = self._limits.connections
        for flight in self._hedging.late(list(self._flights), self._now, self._receive_unreported):
            room = min(most - len(self._flights), flight.facts.window(most).size - self._loads[flight.exchange.origin])
            if room >= 1:
                flight.facts.first_bytes.note_hedge()
                self._start_rival(flight)

    def _receive_unreported(self, flight: Flight) -> bool:
        if flight in self._flights:
            self._guarded(flight, self._receive)
        return flight in self._flights

    def _start_rival(self, flight: Flight) -> None:
        """Send an exchange a second time; if that is late as well, a third time, and the first one is cancelled."""
        exchange = flight.exchange
        flight.is_hedged = True
        if exchange.flight is not flight and exchange.flight is not None:
            self._land(exchange.flight, keep=False)
        try:
            connection = self._pool.open(exchange.origin)
        except S3Error:
            return  # the first request may still be answered
        self.stats.hedges += 1
        exchange.rival = self._take_off(exchange, connection)

    def _let_win(self, flight: Flight) -> None:
        """Cancel the other flight of an exchange: this one has brought the next byte, or the end."""
        exchange = flight.exchange
        flight.is_hedged = False  # it may stop again
        loser = exchange.flight if flight is exchange.rival else exchange.rival
        if loser is not None:
            self._land(loser, keep=False)


def _raise_first_error(exchanges: Sequence[Exchange]) -> None:
    for exchange in exchanges:
        if exchange.error is not None:
            raise exchange.take_error()
