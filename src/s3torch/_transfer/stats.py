"""What went over the wire, counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TransferStats"]


@dataclass(slots=True)
class TransferStats:
    """What went over the wire.

    Attributes:
        requests: Requests sent, retries included.
        retries: Requests sent again after an error.
        bytes_received: Bytes of answers, heads included.
        bytes_sent: Bytes of requests, heads included.
        connections_opened: Connections that were begun.
        hedges: Second requests that were begun because a first byte was late.
    """

    requests: int = 0
    retries: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    connections_opened: int = 0
    hedges: int = 0

    def __add__(self, other: TransferStats) -> TransferStats:
        return TransferStats(
            self.requests + other.requests,
            self.retries + other.retries,
            self.bytes_received + other.bytes_received,
            self.bytes_sent + other.bytes_sent,
            self.connections_opened + other.connections_opened,
            self.hedges + other.hedges,
        )
