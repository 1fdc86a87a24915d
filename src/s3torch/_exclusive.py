"""One call at a time: what a file says to whoever comes in the middle of another call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from s3torch.errors import ConcurrentUseError

if TYPE_CHECKING:

    class _Shared(Protocol):
        """What may be used by one call at a time."""

        _users: dict[int, object]

        def _what_is_shared(self) -> str:
            """Return what it is called in an error, such as ``the reader of s3://bucket/key``."""


__all__ = ["exclusive"]

S = TypeVar("S", bound="_Shared")
P = ParamSpec("P")
R = TypeVar("R")


def exclusive(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Refuse a call of a method while another thread, or the code that a signal handler interrupts, is inside one.

    Such methods must not call each other. The object has a dict ``_users``, which is empty while nobody uses it.

    Raises:
        ConcurrentUseError: The object is in use.
    """

    @functools.wraps(method)
    def alone(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        token: list[object] = []
        users = self._users
        try:
            try:
                if users.setdefault(0, token) is not token:  # one step for all threads, with and without a GIL
                    raise _shared(self)
                return method(self, *args, **kwargs)
            finally:
                if users.get(0) is token:
                    del users[0]
        finally:
            if users.get(0) is token:  # again: an interrupt may have come just before the one above
                del users[0]

    return alone  # type: ignore[return-value]  # mypy takes the first parameter of a wrapped method for a named one


def _shared(thing: _Shared) -> ConcurrentUseError:
    return ConcurrentUseError(
        f"{thing._what_is_shared()} is used by two threads at the same time, or by a signal handler in the middle of a "
        "call. Give each its own."
    )
