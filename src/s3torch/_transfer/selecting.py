"""The selector that tells which sockets can move: the best of the system's, which bears to have nothing to do."""

from __future__ import annotations

import selectors
import time

__all__ = ["new_selector"]


class _PatientSelector(selectors.SelectSelector):
    """Sleeps while nothing is registered: Windows refuses to select nothing."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until something can move."""
        if self.get_map():
            return super().select(timeout)
        time.sleep(timeout or 0.0)
        return []


def new_selector() -> selectors.BaseSelector:
    """Return a selector: epoll, kqueue, or on Windows select."""
    selector = selectors.DefaultSelector()
    if isinstance(selector, selectors.SelectSelector):
        selector.close()
        return _PatientSelector()
    return selector
