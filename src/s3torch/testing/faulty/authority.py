"""A throw-away certificate authority, and certificates of it, good and bad."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = ["Authority", "FaultyServerError", "check_installed"]

_NAMES = ("localhost", "127.0.0.1")
_LONG_AGO = datetime(2001, 1, 1, tzinfo=timezone.utc)


class FaultyServerError(RuntimeError):
    """The server is not running, or lacks a package that it needs."""


class Authority:
    """A certificate authority that exists as long as its object.

    Args:
        directory: Where its certificate is written.

    Attributes:
        path: The PEM file that a client has to trust.

    Raises:
        FaultyServerError: If trustme is not installed.
    """

    def __init__(self, directory: Path) -> None:
        self._authority = _trustme().CA()
        self.path = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.path))

    def context(self, *names: str, is_expired: bool = False) -> ssl.SSLContext:
        """Returns the TLS context of a server.

        Args:
            names: Whom its certificate is for; none means `localhost` and `127.0.0.1`.
            is_expired: Whether the certificate ended long ago.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        validity = {"not_after": _LONG_AGO} if is_expired else {}
        self._authority.issue_cert(*(names or _NAMES), **validity).configure_cert(context)
        return context


def check_installed() -> None:
    """Raises `FaultyServerError` if what makes certificates is not installed."""
    _trustme()


def _trustme() -> Any:  # noqa: ANN401 - a module that need not be installed where types are checked
    try:
        import trustme
    except ImportError as error:
        raise FaultyServerError(
            "FaultyServer(tls=True) needs trustme, which is not installed: pip install 's3torch[faults]'"
        ) from error
    return trustme
