"""A flight: one attempt of an exchange on one connection."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.errors import S3Error

if TYPE_CHECKING:
    from s3torch._transfer.connection import Connection, Origin
    from s3torch._transfer.exchange import Exchange
    from s3torch._transfer.facts import OriginFacts

__all__ = ["Flight", "Lane", "Limits"]

# Below this rate over a whole stall_timeout, in bytes per second, a transfer counts as stalled.
_SLOWEST_RATE = 1024


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


class Lane:
    """What an engine has in flight to one origin, and what is known of that.

    Attributes:
        origin: Where it leads.
        facts: Of the origin, for all engines of the process.
        window: How many requests may be in flight there.
        load: How many are.
        rests_until: Nothing is sent there before, in seconds of the process's clock.
    """

    __slots__ = ("facts", "load", "origin", "rests_until", "window")

    def __init__(self, origin: Origin, facts: OriginFacts, most: int) -> None:
        self.origin = origin
        self.facts = facts
        self.window = facts.window(most)
        self.load = 0
        self.rests_until = float("-inf")


class Flight:
    """One attempt of an exchange on a connection.

    Attributes:
        lane: To its origin.
        memory: Bytes of memory that it counts for.
        response: Reads the answer; None before the request is sent, and after the end.
        want: The memory that the answer fills next.
        outgoing: What is still to be sent.
        received: Bytes of the answer so far.
        moved: Bytes in both directions so far.
        began: When it began, in seconds of the process's clock.
        heard: When the last byte came, in seconds of the engine's clock, like the other times.
        is_hedged: Whether a second request was sent because this one is late.
        mark: From when on a first byte, or a stall, is waited for.
        moved_at_mark: What ``moved`` was then.
    """

    __slots__ = (
        "began",
        "connection",
        "exchange",
        "heard",
        "is_hedged",
        "lane",
        "mark",
        "memory",
        "moved",
        "moved_at_mark",
        "outgoing",
        "received",
        "response",
        "want",
    )

    def __init__(self, exchange: Exchange, connection: Connection, lane: Lane, now: float, clock: float) -> None:
        self.exchange = exchange
        self.connection = connection
        self.lane = lane
        self.memory = exchange.memory
        self.response: Generator[memoryview, int, S3Error | None] | None = None
        self.want: memoryview | None = None
        self.outgoing: list[memoryview] = []
        self.received = 0
        self.moved = 0
        self.began = clock
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
