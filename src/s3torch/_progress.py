"""The bar that shows on a terminal how far something long is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["new_bar", "new_byte_bar"]

_SECONDS_BEFORE_BAR = 1.0


def new_bar(**options: Any) -> tqdm[None]:  # noqa: ANN401  # tqdm's
    """Return tqdm's bar, without the thread that it would start to watch its bars, and with a lock of its own.

    tqdm's lock is shared with forked processes: one that is killed while it holds it would hang all others for ever.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # tqdm has no type arguments at run time
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar(**options)


def new_byte_bar(what: str, total: int | None, *, is_wanted: bool | None) -> tqdm[None]:
    """Return a bar of bytes, which shows itself only if it takes more than a second.

    Args:
        what: Is happening, and to which object.
        total: Bytes; None if nobody knows.
        is_wanted: None shows it on a terminal only.
    """
    return new_bar(
        desc=what,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=_SECONDS_BEFORE_BAR,
        disable=None if is_wanted is None else not is_wanted,
        leave=False,
    )
