"""Arguments that callers hand in: memory as plain bytes, whole numbers, text, what is known of an object."""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Any, SupportsIndex

from s3torch.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3torch._aws.listing import KnownObject

__all__ = ["as_index", "check_range", "check_text", "modified_at", "readable_bytes", "size_and_etag", "writable_bytes"]


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
        view = memoryview(_numpy_view(buffer))
    except (TypeError, ValueError, BufferError) as error:
        raise ArgumentTypeError(
            f"A bytes-like object (bytearray, memoryview, numpy array, ...) is needed, got {type(buffer).__name__}. "
            "A torch tensor must be on the CPU."
        ) from error
    if not view.c_contiguous:
        raise ArgumentError(f"A C-contiguous buffer is needed; this {type(buffer).__name__} has gaps or another order.")
    return view


def _as_bytes(view: memoryview) -> memoryview:
    # memoryview.cast refuses shapes that contain a zero.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _numpy_view(buffer: Any) -> Any:  # noqa: ANN401  # whatever a caller may hand in
    """Return a CPU tensor as an array of its bytes, since torch has no buffer protocol; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(buffer, torch.Tensor) or buffer.device.type != "cpu":
        return buffer
    if not buffer.is_contiguous():
        raise ArgumentError("A contiguous tensor is needed: call tensor.contiguous() first.")
    return buffer.detach().reshape(-1).view(torch.uint8).numpy()


def as_index(name: str, value: SupportsIndex) -> int:
    """Return a whole number: an int, or what converts to one without loss, such as numpy's integers.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError as error:
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}.") from error


def size_and_etag(known: KnownObject) -> tuple[int, str | None]:
    """Return size and ETag of an object; None for an ETag that is not known.

    Raises:
        ArgumentTypeError: There is no whole number ``size``, or no text ``etag``.
        ArgumentError: The size is negative.
    """
    try:
        size, etag = known.size, known.etag
    except AttributeError as error:
        raise ArgumentTypeError(
            "object_info must be of a listing or of head_object, or have a size and an etag as these do, "
            f"got {known!r}."
        ) from error
    size = as_index("size of object_info", size)
    if etag is not None and not isinstance(etag, str):
        raise ArgumentTypeError(f"etag of object_info must be a str, got {etag!r}.")
    if size < 0:
        raise ArgumentError(f"size of object_info is negative: {size}.")
    return size, etag or None


def modified_at(known: KnownObject) -> int | None:
    """Return when an object was changed, in seconds since the epoch; None where that is not known."""
    told = getattr(known, "last_modified", None)
    return told if type(told) is int and told > 0 else None


def check_range(start: SupportsIndex, stop: SupportsIndex | None) -> tuple[int, int | None]:
    """Return a half-open range of bytes; None means the end.

    Raises:
        ArgumentError: It is negative or backwards.
        ArgumentTypeError: It is not made of integers.
    """
    first, end = as_index("start", start), None if stop is None else as_index("stop", stop)
    if first < 0 or (end is not None and end < first):
        raise ArgumentError(f"The range [{start}, {stop}) cannot be read: it must be 0 <= start <= stop.")
    return first, end


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
