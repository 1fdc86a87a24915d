"""The bar that shows how far a checkpoint is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["new_bar"]

_SECONDS_BEFORE_BAR = 1.0


def new_bar(what: str, total: int | None, *, is_wanted: bool | None) -> tqdm[None]:
    """Return a bar of bytes, which shows itself only if it takes more than a second.

    Args:
        what: Is happening, and to which object.
        total: Bytes; None if nobody knows.
        is_wanted: None shows it on a terminal only.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # tqdm has no type arguments at run time
        monitor_interval = 0  # without its thread

    hidden = None if is_wanted is None else not is_wanted
    return Bar(
        desc=what,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=_SECONDS_BEFORE_BAR,
        disable=hidden,
        leave=False,
    )
