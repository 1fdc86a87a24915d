"""Which flights are late, so that a second request goes out beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s3torch._transfer.flight import Flight

__all__ = ["Hedging"]

# How often it is looked whether a first byte is late, in seconds: as long as the least lateness.
_INTERVAL = 0.02
# A body that has begun has stopped after so many seconds without a byte, or after the lateness if that is longer. A
# lost packet that TCP sends again may take more (Linux: 0.2 s): to go on elsewhere is faster then, too.
_LEAST_SILENCE = 0.1


class Hedging:
    """Finds reads whose first byte is late, or whose body has stopped.

    Attributes:
        due: When to look next, in seconds of the engine's clock.
    """

    def __init__(self) -> None:
        self.due = 0.0

    def late(self, flights: Iterable[Flight], now: float, receive: Callable[[Flight], bool]) -> Iterator[Flight]:
        """Yield the flights that are late and may have a second request.

        Args:
            flights: All that are under way.
            now: In seconds.
            receive: Receives what has arrived on a flight and was not reported; returns whether the flight goes on.
        """
        self.due = now + _INTERVAL
        for flight in flights:
            known = flight.lane.facts.first_bytes
            is_waiting = flight.connection.is_open and not flight.outgoing
            if known.late_after is None or not (is_waiting and flight.exchange.is_read):
                continue
            due = _next_byte_due(flight, known.late_after)
            if due <= now and flight.connection.awaited > 1:  # more may have come than select has told
                if not receive(flight):
                    continue
                due = _next_byte_due(flight, known.late_after)
            if due > now:
                self.due = min(self.due, due)
            elif not flight.is_hedged and known.may_hedge:
                yield flight


def _next_byte_due(flight: Flight, late_after: float) -> float:
    if not flight.received:
        return flight.mark + late_after
    return flight.heard + max(late_after, _LEAST_SILENCE)
