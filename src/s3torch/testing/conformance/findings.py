"""How a check says what it has seen.

A check returns if the server does what the check's sentence says. Else it raises `UnfulfilledError` with what was
seen, `UnsupportedError` where the server lacks the feature, or `UnavailableError` where this installation lacks a
package. Any other exception is a failure, too: it is what a user would meet.
"""

from __future__ import annotations

from collections.abc import Callable

from s3torch.errors import S3Error

__all__ = [
    "UnavailableError",
    "UnfulfilledError",
    "UnsupportedError",
    "equal",
    "raises",
    "same_bytes",
    "that",
]

_SHOWN = 200  # characters of a value in a message


class UnfulfilledError(Exception):
    """The server does something else than the check's sentence says; the message is what was seen."""


class UnsupportedError(Exception):
    """The server, or the bucket, does not have the feature; the message is what shows it."""


class UnavailableError(Exception):
    """The check cannot be made by this installation; the message says what is missing."""


def that(condition: object, seen: str) -> None:
    """Raise UnfulfilledError with what was seen unless a condition holds."""
    if not condition:
        raise UnfulfilledError(seen)


def equal(seen: object, wanted: object, what: str) -> None:
    """Raise UnfulfilledError unless two values are equal.

    Args:
        seen: What the server answered.
        wanted: What it should have.
        what: Names the value, such as ``the status of a GET``.
    """
    if seen != wanted:
        raise UnfulfilledError(f"{what} is {_shown(seen)}, and should be {_shown(wanted)}")


def raises(kind: type[Exception], ask: Callable[[], object], what: str) -> None:
    """Raise UnfulfilledError unless a call raises an exception of a kind.

    Args:
        kind: Of the exception that is due.
        ask: The call.
        what: Names the call.
    """
    try:
        ask()
    except kind:
        return
    except S3Error as error:
        raise UnfulfilledError(f"{what} is a {type(error).__name__}: {error}") from None
    raise UnfulfilledError(f"{what} raises nothing")


def same_bytes(seen: bytes | bytearray | memoryview, wanted: bytes, what: str) -> None:
    """Raise UnfulfilledError unless bytes are those that were stored; says where they differ first."""
    seen = bytes(seen)
    if seen == wanted:
        return
    if len(seen) != len(wanted):
        raise UnfulfilledError(f"{what} has {len(seen)} bytes, and should have {len(wanted)}")
    first = next(index for index, pair in enumerate(zip(seen, wanted, strict=True)) if pair[0] != pair[1])
    raise UnfulfilledError(f"{what} has other bytes than were stored, from byte {first} on")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
