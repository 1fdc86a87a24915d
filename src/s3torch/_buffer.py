"""Arguments that callers hand in: memory as plain bytes, whole numbers, text."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, SupportsIndex

from s3torch.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["as_index", "check_text", "readable_bytes", "writable_bytes"]


def writable_bytes(buffer: Buffer) -> memoryview:
    """Return memory as writable bytes, whatever its items are.

    Raises:
        ArgumentTypeError: It is no buffer, or read-only.
        ArgumentError: It is not C-contiguous.
    """
    view = _view(buffer)
    if view.readonly:
        raise ArgumentTypeError(f"A writable buffer is needed, and {type(buffer).__name__} is read-only.")
    return _as_bytes(view)


def readable_bytes(buffer: Buffer) -> memoryview:
    """Return memory as bytes, whatever its items are.

    Raises:
        ArgumentTypeError: It is no buffer.
        ArgumentError: It is not C-contiguous.
    """
    return _as_bytes(_view(buffer))


def _view(buffer: Buffer) -> memoryview:
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError, BufferError) as error:
        raise ArgumentTypeError(
            f"A bytes-like object (bytearray, memoryview, numpy array, ...) is needed, got {type(buffer).__name__}. "
            "Pass a torch tensor as tensor.numpy()."
        ) from error
    if not view.c_contiguous:
        raise ArgumentError(f"A C-contiguous buffer is needed; this {type(buffer).__name__} has gaps or another order.")
    return view


def _as_bytes(view: memoryview) -> memoryview:
    # memoryview.cast refuses shapes that contain a zero.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def as_index(name: str, value: SupportsIndex) -> int:
    """Return a whole number: an int, or what converts to one without loss, such as numpy's integers.

    Raises:
        ArgumentTypeError: It is something else.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}.") from error


def check_text(**values: str | None) -> None:
    """Check arguments that must be text or None.

    Raises:
        ArgumentTypeError: One is something else.
        ArgumentError: One cannot be encoded as UTF-8.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, str):
            raise ArgumentTypeError(f"{name} must be a str, got {value!r}.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"{name}={value!r} cannot be sent: {error.reason}. It must be valid Unicode."
            ) from error
