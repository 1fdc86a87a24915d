"""The loop of an engine: each turn moves every exchange that can move, over its connections, to its end.

Only the engine turns it, and sees to it that nobody comes into the middle (see ``engine``). What is here may be
interrupted between any two bytecodes nevertheless. Then ``begin_anew`` makes a whole of it again: ``exchanges`` says
what is not done, and all else is dropped.

It is one file of over 450 lines: what a turn does to a flight, from its take-off to its landing, is one story.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from s3torch._log import DEBUG, LOG, printable
from s3torch._transfer.connection import READ
from s3torch._transfer.exchange import Exchange, without_frames
from s3torch._transfer.flight import Flight, Lane, Limits
from s3torch._transfer.hedging import Hedging
from s3torch._transfer.pauses import Pauses
from s3torch._transfer.pool import ConnectionPool
from s3torch.errors import ConnectionFailedError, DeadlineError, ProtocolError, S3Error, ThrottledError

if TYPE_CHECKING:
    from s3torch._transfer.connection import Connection, Network, Origin
    from s3torch._transfer.facts import Facts
    from s3torch._transfer.retry import RetryPolicy
    from s3torch._transfer.stats import TransferStats

__all__ = ["Loop"]

# Deadlines are seconds long; looking at them this often is precise enough and costs nothing.
_SWEEP_INTERVAL = 0.25
# One connection that brings bytes as fast as they are taken, as over TLS, must not keep the others waiting; in bytes.
_RECEIVED_AT_ONCE = 1024 * 1024
# When a turn takes so many seconds more than it has waited for, the process was stopped, or a signal handler ran: that
# is no time that a server took.
_STOPPED = 1.0


class Loop:
    """Moves exchanges.

    Args:
        network: Opens connections.
        policy: Decides on retries.
        limits: Bounds and deadlines.
        facts: What is known of servers.
        jitter: Returns random numbers in [0, 1).
        stats: Counts what is sent and received.

    Attributes:
        exchanges: All that was submitted and is not done, in order.
        flights: Those of them that are on a connection.
        pool: The connections.
        now: Seconds, without the time in which nobody turned the loop.
        unmoved: Seconds for which signing has waited, and nothing could move: they count for calls, and not in ``now``.
        left_at: When it was turned last, by the clock.
        failures: How many exchanges have failed so far.
    """

    def __init__(
        self,
        network: Network,
        policy: RetryPolicy,
        limits: Limits,
        facts: Facts,
        jitter: Callable[[], float],
        stats: TransferStats,
    ) -> None:
        self.exchanges: dict[Exchange, None] = {}
        self.flights: set[Flight] = set()
        self._connecting: dict[Flight, None] = {}  # those whose connection is not open, in order
        self.pool = ConnectionPool(network, limits.connections, stats)
        self.left_at = self.now = network.clock()
        self.unmoved = self._signing = 0.0
        self.failures = 0
        self._network = network
        self._policy = policy
        self._limits = limits
        self._facts = facts
        self._jitter = jitter
        self._stats = stats
        self._queue: deque[Exchange] = deque()  # some may be done by now
        self._pauses = Pauses(jitter)
        self._lanes: dict[Origin, Lane] = {}
        self._recent_lane: Lane | None = None
        self._memory_in_flight = 0
        self._time_away = 0.0
        self._next_sweep = 0.0
        self._hedging = Hedging()
        self._is_logged = False  # whether each request is

    def submit(self, exchange: Exchange, *, is_first: bool = False) -> None:
        """Queue an exchange, behind all others or before them."""
        if not self.exchanges:
            self._is_logged = LOG.isEnabledFor(DEBUG)
        self.exchanges[exchange] = None
        if is_first:
            self._queue.appendleft(exchange)
        else:
            self._queue.append(exchange)

    def moment(self) -> float:
        """Return the time that counts for calls, in the middle of a turn, too."""
        return self._network.clock() - self._time_away + self.unmoved

    def begin_anew(self) -> None:
        """Close all connections, and queue what is not done. It may be interrupted, and is called again then."""
        self.pool.close()
        self.flights.clear()
        self._connecting.clear()
        self._lanes.clear()
        self._recent_lane = None
        self._memory_in_flight = 0
        self._queue.clear()
        self._pauses.clear()
        self._next_sweep = self._hedging.due = 0.0  # the clock may have been interrupted, too
        for exchange in list(self.exchanges):
            if exchange.flight is not None and exchange.is_read:
                exchange.attempts -= 1  # that it was cut off says nothing of the server
            exchange.flight = exchange.rival = None
            if exchange.is_done or exchange.error is not None:
                exchange.is_done = True
                del self.exchanges[exchange]
            else:
                self._queue.append(exchange)

    def end(self, exchanges: Sequence[Exchange]) -> None:
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
            self._pauses.drop_done()

    def abandon(self) -> None:
        """Close this process's descriptors, whichever process they belong to, and drop everything."""
        self.pool.abandon()
        for flight in self.flights:  # flights, exchanges and answers refer to each other
            flight.response = flight.want = None
            flight.exchange.flight = flight.exchange.rival = None
        self.flights.clear()
        self._connecting.clear()
        self.exchanges.clear()

    def turn(self, *, block: bool) -> None:
        """Move everything that can move.

        Args:
            block: Whether to wait until something can.
        """
        self._come_back()
        if self._pauses.next_due <= self.now:
            self._queue_again(list(self._pauses.take_due(self.now)))
        patience = self._patience() if block and not (self._queue and self._can_start()) else 0.0
        events = self._network.select(patience)
        self._look_at_clock(patience)
        busy = []
        for connection, ready in events:
            if connection.flight is not None:
                busy.append((connection, ready))
            else:
                self.pool.drop_unless_quiet(connection)
        if self._queue:
            self._start_queued()
        for connection, ready in busy:
            self._advance(connection, ready)
        if self._connecting:
            self._move_to_open()
        if self.now >= self._hedging.due and self._limits.hedging:
            self._hedge_late_ones()
        if self.now >= self._next_sweep:
            self._sweep()
        self.left_at = self._network.clock()  # what a turn has to do takes its time, too
        blocked, self.pool.seconds = self.pool.seconds, 0.0  # looking names up is time that the call has waited
        excess = self.left_at - self._time_away - self.now - blocked
        if excess > _STOPPED:
            self._time_away += excess
            self.unmoved += min(excess, self._signing)
        self._signing = 0.0

    def _come_back(self) -> None:
        """Leave the time since the last turn out of account: nobody waited."""
        clock = self._network.clock()
        away = self._time_away + clock - self.left_at
        self._time_away, self.left_at = away, clock
        self.now = clock - away

    def _look_at_clock(self, waited: float) -> None:
        """Note the time; what is far more than the turn has waited for is left out of account."""
        now = self._network.clock() - self._time_away
        if now > self.now + waited + _STOPPED:
            self._time_away += now - self.now - waited
            now = self.now + waited
        self.now = now

    def _patience(self) -> float:
        """Return for how many seconds nothing needs to be done unless a connection can move."""
        if not self.exchanges:
            return 0.0  # a signal handler has turned the loop, and what is waited for is done
        moment = min(self._next_sweep, self._pauses.next_due)
        if self._limits.hedging:
            moment = min(moment, self._hedging.due)
        if self._queue:
            for lane in self._lanes.values():
                if lane.rests_until - self._time_away > self.now:
                    moment = min(moment, lane.rests_until - self._time_away)
        return max(0.0, moment - self.now)

    def _queue_again(self, exchanges: list[Exchange]) -> None:
        """Queue what has paused before what was never sent, and first what was sent most often: others wait for it."""
        queue = self._queue
        for exchange in exchanges:
            exchange.aim()
        before = []
        while queue and queue[0].attempts:
            before.append(queue.popleft())
        queue.extendleft(sorted(before + exchanges, key=lambda exchange: -exchange.attempts)[::-1])

    def _can_start(self) -> bool:
        """Whether the first exchange of the queue may be sent; drops those from its front that are not to be."""
        self._drop_from_front()
        if not self._queue or len(self.flights) >= self._limits.connections:
            return False
        exchange = self._queue[0]
        lane = self._lane_to(exchange.origin)
        if lane.rests_until - self._time_away > self.now or lane.load + 1 > max(1.0, lane.window.size):
            return False
        return not self.flights or self._memory_in_flight + exchange.memory <= self._limits.bytes_in_flight

    def _drop_from_front(self) -> None:
        """Drop what is not to be sent from the front of the queue, and let what goes to a server that rests pause."""
        queue = self._queue
        while queue:
            exchange = queue[0]
            if exchange.is_done or exchange.flight is not None:
                queue.popleft()
                continue
            rests_until = self._lane_to(exchange.origin).rests_until - self._time_away
            if rests_until <= self.now or len(self._lanes) == 1:  # else those that go elsewhere would wait for it
                return
            self._pauses.add(queue.popleft(), rests_until, is_cut_off=False)

    def _lane_to(self, origin: Origin) -> Lane:
        """Return what is known of an origin, and in flight there; mostly it is the one that was asked for last."""
        lane = self._recent_lane
        if lane is None or lane.origin is not origin:
            lane = self._lanes.get(origin)
            if lane is None:
                lane = self._lanes[origin] = Lane(origin, self._facts.of(origin), self._limits.connections)
            self._recent_lane = lane
        return lane

    def _start_queued(self) -> None:
        while self._can_start():
            exchange = self._queue[0]
            try:
                # Looks names up: until then it stays in the queue.
                connection = self.pool.take(exchange.origin, self.now + self._time_away)
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

    def _move_to_open(self) -> None:
        """Let requests whose connection is not open go by one that has become free: theirs may never be open."""
        for flight in list(self._connecting):
            if flight not in self._connecting:
                continue  # what came before it has ended it
            connection = self.pool.take_open(flight.exchange.origin)
            if connection is not None:
                del self._connecting[flight]
                late, flight.connection = flight.connection, connection
                late.flight, connection.flight = None, flight
                self.pool.keep_coming(late, self.now + self._time_away)
                self._guarded(flight, self._begin)

    def _take_off(self, exchange: Exchange, connection: Connection) -> Flight:
        lane = self._lane_to(exchange.origin)
        flight = Flight(exchange, connection, lane, self.now, self.now + self._time_away)
        connection.flight = flight
        self.flights.add(flight)
        if not connection.is_open:
            self._connecting[flight] = None
        lane.load += 1
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
            flight.exchange.aim()
            if flight.exchange.origin == flight.connection.origin:
                self._begin(flight)
            else:
                self._redirect(flight)

    def _begin(self, flight: Flight) -> None:
        """Send the request; most fit into the socket's buffer at once."""
        exchange = flight.exchange
        if self._connecting:
            self._connecting.pop(flight, None)
        began = self._network.clock()
        try:
            flight.outgoing = list(exchange.request())
        except S3Error as error:
            if isinstance(error, DeadlineError) and not error.attempts:
                # The call that turns the loop has no time left to wait for what signs; this request may be another's.
                if self._put_back(flight):
                    self._pauses.add(exchange, self.now, is_cut_off=False)
                return
            if not error.attempts:
                raise  # of this request: it is tried again as if it had been sent
            # What signing has asked for was sent as often as a request is: nothing of it is sent again.
            self._land(flight, keep=False)
            if exchange.flight is None:
                self._finish(exchange, exchange.explain(error))
            return
        finally:
            self._signing += self._network.clock() - began
        flight.response = exchange.response(flight.connection.inbox)
        flight.want = next(flight.response)
        flight.mark = self.now
        self._stats.requests += 1
        self._send(flight)

    def _redirect(self, flight: Flight) -> None:
        """Queue an exchange anew that goes elsewhere since its connection was begun."""
        if self._put_back(flight):
            self._queue.appendleft(flight.exchange)

    def _put_back(self, flight: Flight) -> bool:
        """End a flight of which nothing was sent; returns whether its exchange is to be queued anew."""
        flight.connection.watch_writing(wanted=False)  # else it would be reported for ever
        self._land(flight, keep=True)
        if flight.exchange.flight is not None:
            return False  # a rival of it goes on
        flight.exchange.attempts -= 1
        return True

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
            self._stats.bytes_sent += count
            if count == len(outgoing[0]):
                del outgoing[0]
            else:
                outgoing[0] = outgoing[0][count:]
        else:
            flight.mark = self.now
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
        self._stats.bytes_received += count
        if count and not flight.received:
            if flight.exchange.is_read:
                flight.lane.facts.first_bytes.note(self.now - flight.mark)
            flight.mark, flight.moved_at_mark = self.now, flight.moved
        if count:
            flight.heard = self.now
        flight.received += count
        flight.moved += count

    def _complete(self, flight: Flight, error: S3Error | None) -> None:
        exchange, head, lane = flight.exchange, flight.exchange.head, flight.lane
        if head is None:
            raise AssertionError("an exchange ended without an answer")
        if error is None and flight.outgoing:
            error = ProtocolError("The server answered that it has everything before everything was sent.")
        lane.facts.is_reached = True
        if self._is_logged:
            self._log(flight, error)
        if exchange.rival is not None:  # the end of a connection may end an answer without another byte
            self._let_win(flight)
        self._land(flight, keep=head.keeps_alive and not head.ends_with_connection and not flight.outgoing)
        if error is None:
            lane.window.note_success()
            lane.facts.retry_budget.note_success()
            self._pauses.call_back(exchange.origin, self.now)
            self._rest(lane)
            self._finish(exchange, None)
            return
        if isinstance(error, ThrottledError):
            lane.window.note_throttled(flight.began, self.now + self._time_away)
            self._rest(lane)
            if lane.facts.is_to_tell_of_throttling(self.now + self._time_away):
                LOG.info("%s asks for fewer requests: %d at a time now.", lane.origin, max(1, int(lane.window.size)))
        self._retry_or_fail(exchange, error)

    def _rest(self, lane: Lane) -> None:
        """Leave a server alone for a while, if one request at a time is too much for it."""
        if lane.window.size < 1.0:
            lane.rests_until = self.now + self._time_away + lane.window.rest(self._jitter())

    def _break(self, flight: Flight, error: S3Error) -> None:
        exchange = flight.exchange
        was_stale = flight.connection.was_used and not flight.received and isinstance(error, ConnectionFailedError)
        if flight.received:
            flight.lane.facts.is_reached = True
        if self._is_logged:
            self._log(flight, error)
        self._land(flight, keep=False)
        if exchange.flight is not None:
            return  # its rival goes on
        if was_stale:
            exchange.attempts -= 1
            self._queue.appendleft(exchange)
        else:
            self._retry_or_fail(exchange, error)

    def _log(self, flight: Flight, error: S3Error | None) -> None:
        """Log how an attempt went: of a request that is not answered, why."""
        exchange, head = flight.exchange, flight.exchange.head if flight.received else None
        LOG.debug(
            "%s: %s, %d bytes received, %d sent, %.1f ms, attempt %d, connection %d, request %s%s",
            printable(exchange.label),
            "no answer" if head is None else head.status,
            flight.received,
            flight.moved - flight.received,
            (self._network.clock() - flight.began) * 1000,
            exchange.attempts,
            flight.connection.serial,
            "-" if head is None else printable(head.fields.get("x-amz-request-id", "-")),
            "" if error is None else f": {type(error).__name__}: {printable(str(error.args[0]))}",
        )

    def _land(self, flight: Flight, *, keep: bool) -> None:
        """Take the exchange off its connection; a rival of the flight takes its place."""
        connection, exchange = flight.connection, flight.exchange
        self.flights.discard(flight)
        if self._connecting:
            self._connecting.pop(flight, None)
        flight.lane.load -= 1
        if flight is exchange.flight:
            exchange.flight = exchange.rival
        exchange.rival = None
        if exchange.flight is None:
            self._memory_in_flight -= flight.memory
        connection.flight = None
        # The reader holds slices of the destination; they must be gone before its owner can take the memory back.
        flight.response = flight.want = None
        if keep:
            self.pool.keep(connection, self.now + self._time_away)
        else:
            self.pool.discard(connection)

    def _retry_or_fail(self, exchange: Exchange, error: S3Error) -> None:
        error.attempts = exchange.attempts
        origin = exchange.origin
        try:
            if exchange.recover(error):
                self._stats.retries += 1
                if exchange.origin != origin:  # others in the queue go elsewhere now, too
                    for queued in self._queue:
                        queued.aim()
                self._queue.appendleft(exchange)
                return
        except S3Error as failure:
            self._finish(exchange, exchange.explain(failure))
            return
        facts = self._facts.of(exchange.origin)
        is_throttled = isinstance(error, ThrottledError)  # then the window sees to it that less is sent
        is_shut = is_throttled and self._lane_to(exchange.origin).window.is_shut
        pause = self._policy.pause(
            error,
            exchange.attempts,
            was_reached=facts.is_reached,
            is_in_budget=not is_shut if is_throttled else facts.retry_budget.has_tokens,
            jitter=self._jitter(),
        )
        if pause is None:
            self._finish(exchange, exchange.explain(error))
        else:
            self._stats.retries += 1
            # The first retry of a broken connection says nothing of load, and all threads share the budget.
            if pause > 0.0 and not is_throttled:
                facts.retry_budget.note_retry()
            is_down = isinstance(error, ConnectionFailedError) or (is_shut and error.retry_after is None)
            self._pauses.add(exchange, self.now + pause, is_cut_off=is_down)

    def _finish(self, exchange: Exchange, error: Exception | None) -> None:
        if error is not None:
            without_frames(error)
            exchange.error = error
            self.failures += 1
        exchange.is_done = True
        self.exchanges.pop(exchange, None)
        exchange.release()  # only now: what is interrupted before is sent again, into its memory

    def _sweep(self) -> None:
        self._next_sweep = self.now + _SWEEP_INTERVAL
        self._is_logged = LOG.isEnabledFor(DEBUG)
        for flight in list(self.flights):
            if flight.connection.awaited > 1:  # more may have come than select has told
                self._guarded(flight, self._receive)
            what = flight.overdue(self.now, self._limits) if flight in self.flights else None
            if what is not None:
                self._break(flight, flight.connection.note_timeout() or DeadlineError(f"{what}."))

    def _hedge_late_ones(self) -> None:
        """Send a second request for each read whose first byte is late, or whose body has stopped."""
        most = self._limits.connections
        for flight in self._hedging.late(list(self.flights), self.now, self._receive_unreported):
            room = min(most - len(self.flights), flight.lane.window.size - flight.lane.load)
            if room >= 1:
                flight.lane.facts.first_bytes.note_hedge()
                self._start_rival(flight)

    def _receive_unreported(self, flight: Flight) -> bool:
        if flight in self.flights:
            self._guarded(flight, self._receive)
        return flight in self.flights

    def _start_rival(self, flight: Flight) -> None:
        """Send an exchange a second time; if that is late as well, a third time, and the first one is cancelled."""
        exchange = flight.exchange
        flight.is_hedged = True
        if exchange.flight is not flight and exchange.flight is not None:
            self._land(exchange.flight, keep=False)
        try:
            connection = self.pool.open(exchange.origin)
        except S3Error:
            return  # the first request may still be answered
        self._stats.hedges += 1
        exchange.rival = self._take_off(exchange, connection)

    def _let_win(self, flight: Flight) -> None:
        """Cancel the other flight of an exchange: this one has brought the next byte, or the end."""
        exchange = flight.exchange
        flight.is_hedged = False  # it may stop again
        loser = exchange.flight if flight is exchange.rival else exchange.rival
        if loser is not None:
            self._land(loser, keep=False)
