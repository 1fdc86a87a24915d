"""The addresses of hosts: how they are looked up, in which order they are tried, and which of them are dead.

**A dead address swallows packets**, and says nothing: broken IPv6, one node of a gateway. So the addresses of a host
race, as in RFC 8305 (see ``racing``). One that a later one has overtaken counts as dead, and is tried last for a
minute, by all engines of the process: a fact of the server.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # what looks a name up would import it, where a fork may come between
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from s3torch._log import LOG

__all__ = ["PROCESS_ADDRESSES", "Address", "AddressBook", "Origin", "Resolve", "resolve"]


# How long the addresses of a host are used before its name is looked up again, in seconds: S3 moves traffic by DNS,
# with a time to live of a few seconds; each look-up blocks the loop.
_ADDRESS_LIFETIME = 30.0
# An address that took no connection is tried after all others for so long, in seconds. Not tuned.
_DEAD_LIFETIME = 60.0

# How long an address is waited for before the next is tried beside it, in seconds (RFC 8305 5: 250 ms). Once it is
# known how long connections to the host take, so many times that is enough, and never less than the lesser bound: the
# next batch is not to wait for the dead addresses of this one. RFC 8305 permits 10 ms.
_HEAD_START = 0.25
_HEAD_START_FACTOR = 4.0
_LEAST_HEAD_START = 0.02
# How fast the quickest connection is forgotten: by this factor with each that takes longer. Not tuned.
_FORGETTING = 1.1


class Origin(NamedTuple):
    """Where connections go: scheme (``http`` or ``https``), host and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


Address = tuple[int, Any]  # address family, and what socket.connect takes for it
Resolve = Callable[[str, int], Sequence[Address]]


def resolve(host: str, port: int) -> list[Address]:
    """Look a host's addresses up; blocks."""
    return [(family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class AddressBook:
    """The addresses of hosts, and which of them took no connection lately.

    They are facts of servers: one book serves all threads and clients of a process, and a forked child inherits it.
    """

    def __init__(self) -> None:
        self._known: dict[Origin, tuple[float, Sequence[Address]]] = {}
        self._dead: dict[Address, float] = {}
        self._quickest: dict[Origin, float] = {}
        self._turns = itertools.count()

    def find(self, origin: Origin, now: float) -> list[Address]:
        """Return the addresses of an origin in the order in which to try them.

        Each time another one is the first, families take turns, so that one which leads nowhere costs one attempt (RFC
        8305 4), and dead addresses come last.

        Returns:
            The addresses; none if they must be looked up.
        """
        looked_up, addresses = self._known.get(origin, (now, ()))
        if not addresses or now - looked_up >= _ADDRESS_LIFETIME:
            return []
        first = next(self._turns) % len(addresses)
        turned = _by_turns_of_families([*addresses[first:], *addresses[:first]])
        if self._dead:
            turned.sort(key=lambda address: now - self._dead.get(address, -_DEAD_LIFETIME) < _DEAD_LIFETIME)
        return turned

    def head_start(self, origin: Origin) -> float:
        """Return for how many seconds an address of an origin is waited for before the next is tried beside it."""
        quickest = self._quickest.get(origin)
        if quickest is None:
            return _HEAD_START
        return min(_HEAD_START, max(_LEAST_HEAD_START, _HEAD_START_FACTOR * quickest))

    def note(self, origin: Origin, addresses: Sequence[Address], now: float) -> None:
        """Note what a look-up has found."""
        self._known[origin] = (now, tuple(addresses))

    def note_alive(self, origin: Origin, address: Address, seconds: float) -> None:
        """Note that an address of an origin took a connection within some seconds."""
        known = self._quickest.get(origin)
        self._quickest[origin] = seconds if known is None else min(known * _FORGETTING, seconds)
        if address in self._dead:
            self._dead = {each: since for each, since in self._dead.items() if each != address}

    def note_dead(self, address: Address, now: float) -> None:
        """Note that an address took no connection, or was overtaken by one that was tried later."""
        since = self._dead.get(address)
        if since is None or now - since >= _DEAD_LIFETIME:
            LOG.info("The address %s takes no connection, and is tried last for %g s", address[1], _DEAD_LIFETIME)
        self._dead = {each: since for each, since in self._dead.items() if now - since < _DEAD_LIFETIME} | {
            address: now
        }

    def forget(self) -> None:
        """Forget everything, as a test wants it that begins."""
        self._known.clear()
        self._dead.clear()
        self._quickest.clear()


def _by_turns_of_families(addresses: list[Address]) -> list[Address]:
    """Return addresses so that their families take turns; within a family the order stays."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    if len(families) < 2:
        return addresses
    turns = itertools.chain.from_iterable(itertools.zip_longest(*families.values()))
    return [address for address in turns if address is not None]


# One for all clients and threads of the process.
PROCESS_ADDRESSES = AddressBook()
