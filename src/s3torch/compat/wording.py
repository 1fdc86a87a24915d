"""Errors in the words of s3torchconnector, as programs compare them.

The class stays that of s3torch, and what s3torch has to say is the error's cause.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    BucketNotFoundError,
    CredentialsError,
    NotFoundError,
    S3Error,
)

__all__ = ["raise_worded", "text_of", "worded"]

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = ("Service error: ", "Client error: ")


def text_of(error: S3Error, *, is_head: bool = False) -> str | None:
    """Return what s3torchconnector says of such an error; None if it stays as it is.

    Args:
        error: Of s3torch.
        is_head: Whether s3torchconnector asks by HeadObject, whose answer to what does not exist says less.
    """
    message = str(error)
    if isinstance(error, ArgumentError) or message.startswith(_WORDS):
        return None
    if isinstance(error, NotFoundError):
        if is_head:
            return "Service error: The object was not found"
        missing = "bucket" if isinstance(error, BucketNotFoundError) else "key"
        return f"Service error: The {missing} does not exist"
    if isinstance(error, AccessDeniedError):
        return f"Client error: Forbidden: {message}"
    if isinstance(error, CredentialsError) and error.code is None:
        return f"Client error: No signing credentials available: {message}"
    return f"Client error: {message}"


def raise_worded(error: S3Error, *, is_head: bool = False) -> NoReturn:
    """Raise an error in the words of s3torchconnector."""
    text = text_of(error, is_head=is_head)
    if text is None:
        raise error
    raise type(error)(text, bucket=error.bucket, key=error.key) from error


def worded(function: Callable[P, R], *, is_head: bool = False) -> Callable[P, R]:
    """Return a function whose errors have the words of s3torchconnector."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except S3Error as error:
            raise_worded(error, is_head=is_head)

    return call
