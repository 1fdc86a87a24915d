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


__all__ = ["exclusive", "in_use"]

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
                    raise in_use(self)
                return method(self, *args, **kwargs)
            finally:
                if 0 in users and users[0] is token:  # no call: CPython 3.11 and newer look for interrupts at calls
                    del users[0]
        finally:
            if 0 in users and users[0] is token:  # again: Python 3.10 looks for them nearly everywhere
                del users[0]

    return alone  # type: ignore[return-value]  # mypy takes the first parameter of a wrapped method for a named one


def in_use(thing: _Shared) -> ConcurrentUseError:
    """Return the error of whoever comes in the middle of another call."""
    return ConcurrentUseError(
        f"{thing._what_is_shared()} is used by two threads at the same time, or by a signal handler in the middle of a "
        "call. Give each its own."
    )
