"""The transfer engine: many exchanges over few connections, moved forward by whoever waits.

Theory of operation. An exchange is one request together with the reader of its answer (see ``http1``) and its
attempts. ``submit`` only queues it. ``wait`` turns the loop until the wanted exchanges are done, and each turn moves
*every* exchange that can move. Nothing runs when nobody waits: there is no thread, so there is no lock, nothing to
deadlock after ``fork``, and an interrupt (Ctrl-C) surfaces at once in the caller.

An engine belongs to one thread of one process; the client makes one for each. Time is counted only while the loop is
turned: a caller that computes for a minute between two waits does not run its transfers into their deadlines.

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
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from s3torch._transfer.connection import READ, Connection, Network, Origin
from s3torch._transfer.http1 import Head, Inbox
from s3torch._transfer.pacing import ConcurrencyWindow, FirstBytes, RetryBudget
from s3torch._transfer.retry import RetryPolicy
from s3torch._transfer.stats import TransferStats
from s3torch.errors import ConnectionFailedError, DeadlineError, ProtocolError, S3Error, ThrottledError

__all__ = ["Engine", "Exchange", "Limits"]

# Deadlines are seconds long; looking at them this often is precise enough and costs nothing.
_SWEEP_INTERVAL = 0.25
# How often it is looked whether a first byte is late, in seconds: as long as the least lateness.
_HEDGE_INTERVAL = 0.02
# A body that has begun has stopped after so many seconds without a byte, or after the lateness if that is longer. A
# lost packet that TCP sends again may take more (Linux: 0.2 s): to go on elsewhere is faster then, too.
_LEAST_SILENCE = 0.1
# Below this rate over a whole stall_timeout, in bytes per second, a transfer counts as stalled.
_SLOWEST_RATE = 1024
# One connection that brings bytes as fast as they are taken, as over TLS, must not keep the others waiting; in bytes.
_RECEIVED_AT_ONCE = 1024 * 1024
# What waits for a server that could not be reached is sent again within this, in seconds, when it answers something.
_CALLED_BACK_WITHIN = 1.0
# Idle connections are dropped before servers do it (S3 after 5-20 s, nginx after 75 s): a reuse that fails costs a
# round trip. Not tuned.
_IDLE_LIFETIME = 15.0


class Exchange(ABC):
    """One request, the reader of its answer, and how it went.

    Args:
        origin: Where it goes.
        memory: Bytes of memory that its answer fills; counts towards the limit of bytes in flight.

    Attributes:
        is_read: Whether it changes nothing, so that a second request may go out beside it.
        is_slow: Whether the server says by a byte now and then that it is at work: that is progress enough, and as much
            time may pass between two of them as before the first byte.
        attempts: How often it was sent; second requests do not count.
        is_done: Whether it has succeeded or failed.
        error: What it failed with.
        head: The head of the last answer.
    """

    is_read = False
    is_slow = False

    def __init__(self, origin: Origin, memory: int) -> None:
        self.origin = origin
        self.memory = memory
        self.attempts = 0
        self.is_done = False
        self.error: S3Error | None = None
        self.head: Head | None = None
        self.flight: _Flight | None = None
        self.rival: _Flight | None = None

    @abstractmethod
    def request(self) -> Sequence[memoryview]:
        """Return the bytes to send, signed anew for this attempt."""

    @abstractmethod
    def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        """Read one answer; returns the error that the answer stands for.

        An error that is raised, not returned, means that the connection can't be used any more.
        """

    def recover(self, error: S3Error) -> bool:
        """Correct what caused the error, if that is possible; returns whether to send the request again at once."""
        del error
        return False

    def explain(self, error: S3Error) -> S3Error:
        """Return the error as the caller is to see it."""
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds an engine; see S3ClientConfig for the meaning of each."""

    connections: int = 64
    bytes_in_flight: int = 256 * 1024 * 1024
    connect_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    stall_timeout: float = 20.0
    call_timeout: float | None = None
    hedging: bool = True


class _Waiting(NamedTuple):
    """An exchange that is sent again when it is due; they compare by that, and then by their order."""

    due: float
    order: int
    exchange: Exchange
    is_cut_off: bool


class _Flight:
    """One attempt of an exchange on a connection."""

    __slots__ = (
        "began",
        "connection",
        "exchange",
        "heard",
        "is_hedged",
        "mark",
        "moved",
        "moved_at_mark",
        "outgoing",
        "received",
        "response",
        "want",
    )

    def __init__(self, exchange: Exchange, connection: Connection, now: float) -> None:
        self.exchange = exchange
        self.connection = connection
        self.response: Generator[memoryview, int, S3Error | None] | None = None
        self.want: memoryview | None = None
        self.outgoing: list[memoryview] = []
        self.received = 0
        self.moved = 0
        self.began = now
        self.heard = now
        self.is_hedged = False
        self.mark = now
        self.moved_at_mark = 0

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Return what took too long, or None; moves the mark from which a stall is counted."""
        waited = now - self.mark
        if not self.connection.is_open:
            if waited >= limits.connect_timeout:
                return f"No connection to {self.connection.origin} within {limits.connect_timeout:g} s"
            return None
        if not self.outgoing and not self.received:
            if waited >= limits.first_byte_timeout:
                return f"No answer from {self.connection.origin} within {limits.first_byte_timeout:g} s"
            return None
        timeout, least = limits.stall_timeout, _SLOWEST_RATE * limits.stall_timeout
        if self.exchange.is_slow:
            timeout, least = max(timeout, limits.first_byte_timeout), 1
        if waited < timeout:
            return None
        progress = self.moved - self.moved_at_mark
        if progress < least:
            return f"Only {progress} bytes moved to or from {self.connection.origin} in {waited:.3g} s"
        self.mark, self.moved_at_mark = now, self.moved
        return None


class Engine:
    """Runs exchanges; see the module's theory of operation.

    Args:
        network: Opens connections; the engine closes it.
        policy: Decides on retries.
        limits: Bounds and deadlines.
        jitter: Returns random numbers in [0, 1).

    Attributes:
        stats: What it has sent and received.
        is_turning: Whether it is in the middle of a turn, where only ``give_up`` may be called.
    """

    def __init__(
        self,
        network: Network,
        policy: RetryPolicy | None = None,
        limits: Limits | None = None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.stats = TransferStats()
        self.is_turning = False
        self._network = network
        self._policy = policy or RetryPolicy()
        self._limits = limits or Limits()
        self._jitter = jitter
        self._queue: deque[Exchange] = deque()
        self._later: list[_Waiting] = []
        self._order = itertools.count()
        self._idle: dict[Origin, list[Connection]] = {}
        self._connections: set[Connection] = set()
        self._memory_in_flight = 0
        self._flights: set[_Flight] = set()
        self._given_up: deque[Sequence[Exchange]] = deque()
        self._failures = 0
        self._reached: set[Origin] = set()
        self._is_down: set[Origin] = set()
        self._left_at = network.clock()
        self._time_away = 0.0
        self._now = self._left_at
        self._next_sweep = 0.0
        self._next_hedge = 0.0
        self._window = ConcurrencyWindow(self._limits.connections)
        self._retry_budget = RetryBudget()
        self._first_bytes: dict[Origin, FirstBytes] = {}

    def __repr__(self) -> str:
        return (
            f"<Engine {len(self._flights)} in flight, {len(self._queue) + len(self._later)} queued, "
            f"{len(self._connections)} connections, {self.stats.requests} requests>"
        )

    def __del__(self) -> None:
        self.abandon()

    @property
    def pending(self) -> int:
        """How many exchanges are in flight or queued."""
        return len(self._flights) + len(self._queue) + len(self._later)

    def run(self, exchanges: Sequence[Exchange]) -> None:
        """Submit exchanges and wait for all of them; see ``wait``."""
        try:
            for exchange in exchanges:
                self.submit(exchange)
            self._wait(exchanges, None)
        except BaseException:
            self.cancel(exchanges)
            raise

    def submit(self, exchange: Exchange) -> None:
        """Queue an exchange; it moves when somebody waits."""
        self._queue.append(exchange)

    def deadline(self) -> float | None:
        """Return when a call that begins now must have ended, for ``wait``; None if it may take as long as it takes."""
        limit = self._limits.call_timeout
        return None if limit is None else self._now + limit

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
                self._raise_first_error(exchanges)
            while not exchange.is_done:
                self.turn(deadline)
                if self._failures != failures:
                    failures = self._failures
                    self._raise_first_error(exchanges)

    def turn(self, deadline: float | None = None) -> None:
        """Move everything that can move; waits for that if need be.

        Whatever interrupts this (Ctrl-C, a bug) leaves an engine without connections, which can be used again; all
        that was queued or in flight has failed then.

        Args:
            deadline: Of the call that turns the loop.

        Raises:
            DeadlineError: It has passed; everything goes on if the loop is turned again.
        """
        if deadline is not None and self._now >= deadline:
            limit = f"{self._limits.call_timeout:g} s"
            raise DeadlineError(f"The call was not done within {limit}, as S3ClientConfig(call_timeout=...) asks.")
        self._guarded_turn()

    def nudge(self, interval: float = 0.0) -> None:
        """Move what can be moved without waiting, and send what is queued; see ``turn`` for interrupts.

        Args:
            interval: Do nothing if the loop was turned within so many seconds; for those who call this often.
        """
        if interval and self._network.clock() - self._left_at < interval:
            return
        self._guarded_turn(block=False)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Give exchanges up; the connections of those in flight are closed."""
        was_queued = False
        for exchange in exchanges:
            if exchange.is_done:
                continue
            was_queued |= exchange.flight is None
            while exchange.flight is not None:
                self._land(exchange.flight, keep=False)
            self._finish(exchange, ConnectionFailedError("The transfer was cancelled."))
        if was_queued:  # and holds memory that its owner wants back
            self._queue = deque(exchange for exchange in self._queue if not exchange.is_done)
            self._later = [waiting for waiting in self._later if not waiting.exchange.is_done]
            heapq.heapify(self._later)

    def give_up(self, exchanges: Sequence[Exchange]) -> None:
        """Cancel exchanges before the loop turns again; safe from any thread and from the garbage collector."""
        self._given_up.append(exchanges)

    def reset(self) -> None:
        """Close all connections and fail all that is not done."""
        unfinished = [flight.exchange for flight in self._flights]
        unfinished += self._queue
        unfinished += [waiting.exchange for waiting in self._later]
        self._queue.clear()
        self._later.clear()
        for connection in list(self._connections):
            self._discard(connection)
        for flight in self._flights:
            flight.exchange.flight = flight.exchange.rival = None
        self._flights.clear()
        self._memory_in_flight = 0
        for exchange in unfinished:
            exchange.error = exchange.error or ConnectionFailedError("The transfer was cancelled.")
            exchange.is_done = True

    def close(self) -> None:
        """Close everything. The engine can't be used afterwards."""
        self.reset()
        self._network.close()

    def abandon(self) -> None:
        """Close this process's descriptors of everything, whichever process it belongs to."""
        self._network.close()
        for connection in self._connections:
            connection.abandon()
        self._connections.clear()
        self._idle.clear()

    def _raise_first_error(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            if exchange.error is not None:
                raise exchange.error

    def _guarded_turn(self, *, block: bool = True) -> None:
        self.is_turning = True
        try:
            self._turn(block=block)
        except BaseException:
            self.reset()
            raise
        finally:
            self.is_turning = False

    def _turn(self, *, block: bool) -> None:
        self._come_back()
        while self._given_up:
            self.cancel(self._given_up.popleft())
            block = False  # it may be what is waited for
        while self._later and self._later[0].due <= self._now:
            self._queue.appendleft(heapq.heappop(self._later).exchange)
        events = self._network.select(self._patience() if block and not self._can_start() else 0.0)
        self._now = self._network.clock() - self._time_away
        busy = [event for event in events if event[0].flight is not None or self._drop_unless_quiet(event[0])]
        self._start_queued()
        for connection, ready in busy:
            self._advance(connection, ready)
        if self._now >= self._next_hedge and self._limits.hedging:
            self._hedge_late_ones()
        if self._now >= self._next_sweep:
            self._sweep()
        self._left_at = self._network.clock()  # what a turn has to do takes its time, too

    def _come_back(self) -> None:
        """Leave the time since the last turn out of account: nobody waited."""
        clock = self._network.clock()
        self._time_away += clock - self._left_at
        self._left_at = clock
        self._now = clock - self._time_away

    def _patience(self) -> float:
        """Return for how many seconds nothing needs to be done unless a connection can move."""
        if not self._flights and not self._later and not self._queue:
            raise AssertionError("waiting for an exchange that was never submitted")
        moment = min(self._next_sweep, self._next_hedge) if self._limits.hedging else self._next_sweep
        if self._later:
            moment = min(moment, self._later[0].due)
        return max(0.0, moment - self._now)

    def _can_start(self) -> bool:
        if not self._queue or len(self._flights) >= int(self._window.size):
            return False
        return not self._flights or self._memory_in_flight + self._queue[0].memory <= self._limits.bytes_in_flight

    def _start_queued(self) -> None:
        while self._can_start():
            exchange = self._queue[0]
            try:
                connection = self._connection_to(exchange.origin)  # looks names up: until then it stays in the queue
            except S3Error as error:
                self._queue.popleft()
                exchange.attempts += 1
                self._retry_or_fail(exchange, error)
                continue
            self._queue.popleft()
            self._take_off(exchange, connection)

    def _connection_to(self, origin: Origin) -> Connection:
        """Return an idle connection, of which select has just told that nothing has come there, or a new one."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if self._now + self._time_away - connection.idle_since < _IDLE_LIFETIME:
                return connection
            self._discard(connection)
        return self._open(origin)

    def _open(self, origin: Origin) -> Connection:
        if len(self._connections) >= self._limits.connections:
            self._close_one_idle()
        connection = self._network.open(origin)
        self._connections.add(connection)
        self.stats.connections_opened += 1
        return connection

    def _close_one_idle(self) -> None:
        for connections in self._idle.values():
            if connections:
                self._discard(connections.pop(0))
                return

    def _drop_unless_quiet(self, connection: Connection) -> bool:
        """Drop an idle connection on which its end came, or bytes that would pass for the next answer."""
        try:
            is_quiet = connection.recv_into(connection.inbox.view[:1]) is None
        except S3Error:
            is_quiet = False
        if not is_quiet:
            self._discard(connection)
        return False

    def _take_off(self, exchange: Exchange, connection: Connection) -> None:
        exchange.attempts += 1
        flight = _Flight(exchange, connection, self._now)
        exchange.flight = flight
        connection.flight = flight
        self._flights.add(flight)
        self._memory_in_flight += exchange.memory
        if connection.is_open:
            self._guarded(flight, self._begin)

    def _advance(self, connection: Connection, events: int) -> None:
        flight: _Flight | None = connection.flight
        if flight is None:
            return  # it was given up in this turn
        if not connection.is_open:
            self._guarded(flight, self._establish)
            return
        if events & READ:
            self._guarded(flight, self._receive)
        if flight.outgoing and connection.flight is flight:
            self._guarded(flight, self._send)

    def _guarded(self, flight: _Flight, step: Callable[[_Flight], None]) -> None:
        try:
            step(flight)
        except S3Error as error:
            self._break(flight, error)

    def _establish(self, flight: _Flight) -> None:
        if flight.connection.establish():
            self._begin(flight)

    def _begin(self, flight: _Flight) -> None:
        """Send the request; most fit into the socket's buffer at once."""
        exchange = flight.exchange
        flight.outgoing = list(exchange.request())
        flight.response = exchange.response(flight.connection.inbox)
        flight.want = next(flight.response)
        flight.mark = self._now
        self.stats.requests += 1
        self._send(flight)

    def _send(self, flight: _Flight) -> None:
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

    def _receive(self, flight: _Flight) -> None:
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

    def _count_received(self, flight: _Flight, count: int) -> None:
        self.stats.bytes_received += count
        if count and not flight.received:
            if flight.exchange.is_read:
                self._first_bytes_of(flight.exchange.origin).note(self._now - flight.mark)
            flight.mark, flight.moved_at_mark = self._now, flight.moved
        if count:
            flight.heard = self._now
        flight.received += count
        flight.moved += count

    def _complete(self, flight: _Flight, error: S3Error | None) -> None:
        exchange, head = flight.exchange, flight.exchange.head
        if head is None:
            raise AssertionError("an exchange ended without an answer")
        if error is None and flight.outgoing:
            error = ProtocolError("The server answered that it has everything before everything was sent.")
        self._reached.add(exchange.origin)
        if exchange.rival is not None:  # the end of a connection may end an answer without another byte
            self._let_win(flight)
        self._land(flight, keep=head.keeps_alive and not head.ends_with_connection and not flight.outgoing)
        if error is None:
            self._window.note_success()
            self._retry_budget.note_success()
            if exchange.origin in self._is_down:
                self._call_back(exchange.origin)
            self._finish(exchange, None)
            return
        if isinstance(error, ThrottledError):
            self._window.note_throttled(flight.began, self._now)
        self._retry_or_fail(exchange, error)

    def _break(self, flight: _Flight, error: S3Error) -> None:
        exchange = flight.exchange
        was_stale = flight.connection.was_used and not flight.received and isinstance(error, ConnectionFailedError)
        if flight.received:
            self._reached.add(exchange.origin)
        self._land(flight, keep=False)
        if exchange.flight is not None:
            return  # its rival goes on
        if was_stale:
            exchange.attempts -= 1
            self._queue.appendleft(exchange)
        else:
            self._retry_or_fail(exchange, error)

    def _land(self, flight: _Flight, *, keep: bool) -> None:
        """Take the exchange off its connection; a rival of the flight takes its place."""
        connection, exchange = flight.connection, flight.exchange
        self._flights.discard(flight)
        if flight is exchange.flight:
            exchange.flight = exchange.rival
        exchange.rival = None
        if exchange.flight is None:
            self._memory_in_flight -= exchange.memory
        connection.flight = None
        # The reader holds slices of the destination; they must be gone before its owner can take the memory back.
        flight.response = flight.want = None
        if keep and not len(connection.inbox) and connection.is_drained:
            connection.was_used = True
            connection.idle_since = self._now + self._time_away
            if connection.awaited > 1:
                connection.expect(1)
            self._idle.setdefault(exchange.origin, []).append(connection)
        else:
            self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

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
        except BaseException:
            self._queue.appendleft(exchange)  # where a reset finds it
            raise
        pause = self._policy.pause(
            error,
            exchange.attempts,
            was_reached=exchange.origin in self._reached,
            is_in_budget=self._retry_budget.has_tokens,
            jitter=self._jitter(),
        )
        if pause is None:
            self._finish(exchange, exchange.explain(error))
        else:
            self.stats.retries += 1
            self._retry_budget.note_retry()
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

    def _finish(self, exchange: Exchange, error: S3Error | None) -> None:
        exchange.is_done = True
        exchange.error = error
        if error is not None:
            self._failures += 1

    def _sweep(self) -> None:
        self._next_sweep = self._now + _SWEEP_INTERVAL
        for flight in list(self._flights):
            if flight.connection.awaited > 1:  # more may have come than select has told
                self._guarded(flight, self._receive)
            what = flight.overdue(self._now, self._limits) if flight in self._flights else None
            if what is not None:
                self._break(flight, DeadlineError(f"{what}."))

    def _first_bytes_of(self, origin: Origin) -> FirstBytes:
        known = self._first_bytes.get(origin)
        if known is None:
            known = self._first_bytes[origin] = FirstBytes()
        return known

    def _hedge_late_ones(self) -> None:
        """Send a second request for each read whose first byte is late, or whose body has stopped."""
        self._next_hedge = self._now + _HEDGE_INTERVAL
        for flight in list(self._flights):
            exchange = flight.exchange
            known = self._first_bytes.get(exchange.origin)
            is_waiting = flight.connection.is_open and not flight.outgoing
            if known is None or known.late_after is None or not (is_waiting and exchange.is_read):
                continue
            due = self._next_byte_due(flight, known.late_after)
            if due <= self._now and flight.connection.awaited > 1:  # more may have come than select has told
                self._guarded(flight, self._receive)
                due = self._next_byte_due(flight, known.late_after)
            if flight not in self._flights:
                continue
            if due > self._now:
                self._next_hedge = min(self._next_hedge, due)
            elif not flight.is_hedged and known.may_hedge and len(self._flights) < int(self._window.size):
                known.note_hedge()
                self._start_rival(flight)

    def _next_byte_due(self, flight: _Flight, late_after: float) -> float:
        if not flight.received:
            return flight.mark + late_after
        return flight.heard + max(late_after, _LEAST_SILENCE)

    def _start_rival(self, flight: _Flight) -> None:
        """Send an exchange a second time; if that is late as well, a third time, and the first one is given up."""
        exchange = flight.exchange
        flight.is_hedged = True
        if exchange.flight is not flight and exchange.flight is not None:
            self._land(exchange.flight, keep=False)
        try:
            connection = self._open(exchange.origin)
        except S3Error:
            return  # the first request may still be answered
        self.stats.hedges += 1
        exchange.rival = rival = _Flight(exchange, connection, self._now)
        connection.flight = rival
        self._flights.add(rival)

    def _let_win(self, flight: _Flight) -> None:
        """Give up the other flight of an exchange: this one has brought the next byte, or the end."""
        exchange = flight.exchange
        flight.is_hedged = False  # it may stop again
        loser = exchange.flight if flight is exchange.rival else exchange.rival
        if loser is not None:
            self._land(loser, keep=False)
