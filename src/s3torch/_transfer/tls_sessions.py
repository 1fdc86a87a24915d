"""What TLS has agreed on with an origin, so that its next connections need no whole handshake (RFC 8446 2.2).

A whole handshake takes the client a signature to verify and a chain of certificates; one that goes on from a session
takes neither. A session belongs to the context that verified its server, and is good for the same host and port only.
The tickets of TLS 1.3 come after the handshake: so a session is taken from a connection that has carried an answer.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    from s3torch._transfer.addresses import Origin

__all__ = ["WANTS_OUR_CERTIFICATE", "TlsSessions", "sessions_of"]

# What OpenSSL calls a server's alert that it wants a certificate of the client, or another one.
WANTS_OUR_CERTIFICATE = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)

# To take a session off a connection copies it, with the server's certificate: so one is used for so many seconds by
# all new connections. Servers accept them for minutes to hours, and have a whole handshake with whoever comes later.
# Not tuned.
_LIFETIME = 60.0


class TlsSessions:
    """The last session with each origin, of one context."""

    def __init__(self) -> None:
        self._found: dict[Origin, tuple[ssl.SSLSession, float]] = {}
        self._refused: set[Origin] = set()

    def find(self, origin: Origin) -> ssl.SSLSession | None:
        """Return the session to go on from, or None."""
        found = self._found.get(origin)
        return None if found is None else found[0]

    def note(self, origin: Origin, sock: ssl.SSLSocket, now: float) -> None:
        """Take the session of a connection, if the one that is known is getting old.

        Args:
            origin: Where it leads.
            sock: Over which an answer has come.
            now: In seconds.
        """
        known = self._found.get(origin)
        if origin in self._refused or (known is not None and now - known[1] < _LIFETIME):
            return
        session = sock.session
        if session is not None and (session.has_ticket or session.id):
            self._found[origin] = session, now

    def refuse(self, origin: Origin) -> None:
        """Go on from no session of an origin any more: a handshake that did has failed."""
        self._refused.add(origin)
        self._found.pop(origin, None)


_of_contexts: weakref.WeakKeyDictionary[ssl.SSLContext, TlsSessions] = weakref.WeakKeyDictionary()


def sessions_of(context: ssl.SSLContext) -> TlsSessions:
    """Return the sessions of a context: one set for all threads, which ends with the context."""
    found = _of_contexts.get(context)
    return found if found is not None else _of_contexts.setdefault(context, TlsSessions())
