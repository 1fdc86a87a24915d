"""Iterating past errors, with a bound: an iterator that repeats an error for ever fails its test at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["taken"]

T = TypeVar("T")


def taken(
    iterator: Iterator[T],
    kind: type[BaseException],
    *,
    most: int = 1000,
    on_error: Callable[[], object] = lambda: None,
) -> tuple[list[T], list[BaseException]]:
    """Return what an iterator yields to one who goes on after its errors, and those errors.

    Args:
        iterator: Is asked until it ends.
        kind: Of the errors after which it is asked again.
        most: It yields and raises no more than this, in all.
        on_error: Is called after each error.
    """
    found: list[T] = []
    errors: list[BaseException] = []
    for _ in range(most + 1):
        try:
            found.append(next(iterator))
        except StopIteration:
            return found, errors
        except kind as error:
            errors.append(error)
            on_error()
    raise AssertionError(f"no end after {len(found)} items and {len(errors)} errors, the last of them {errors[-1:]}")
