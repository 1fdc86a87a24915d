"""A scope: what one call has begun, and nobody else may wait for, take or cancel.

The rule of ownership: a call owns what it began. It submits inside the ``try`` whose ``except`` or ``finally`` cancels,
and whatever ends the call (a return, an error, an interrupt, the end of a generator, the garbage collector) ends its
exchanges before their memory goes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3torch._transfer.engine import Engine
    from s3torch._transfer.exchange import Exchange

__all__ = ["LastingScope", "Scope"]


class Scope:
    """Exchanges of one call, on one engine.

    Args:
        engine: Of the calling thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._exchanges: list[Any] = []  # each of the kind that the subclass submits

    @property
    def is_here(self) -> bool:
        """Whether the caller may wait for it: its engine is the calling thread's, and not in the middle of a turn."""
        return self._engine.is_free

    def submit(self, exchange: Exchange) -> None:
        """Queue an exchange; it moves when somebody waits. It must be called inside the ``try`` that cancels."""
        self._exchanges.append(exchange)  # first: what is in the list is cancelled
        self._engine.submit(exchange)

    def wait(self, deadline: float | None = None) -> None:
        """Wait until all of them are done; see ``Engine.wait``."""
        self._engine.wait(self._exchanges, deadline)

    def cancel(self) -> None:
        """Cancel all that is not done; safe from any thread and from the garbage collector.

        In the thread that began it, connections are closed and memory is given back before this returns, unless it
        comes in the middle of a turn: then the next turn does it first of all.
        """
        exchanges = self._exchanges
        if exchanges and not all(exchange.is_done for exchange in exchanges):
            self._engine.cancel(exchanges)
        self._exchanges = []


class LastingScope(Scope):
    """A scope that may outlive the call that began it: if its owner is dropped, the collector ends it."""

    def __del__(self) -> None:
        # The collector may come anywhere, so this turns no loop: see Engine.cancel.
        if getattr(self, "_exchanges", None):  # none if it is over, or its constructor was interrupted
            self.cancel()
