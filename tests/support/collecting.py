"""What other tests of the same worker have left to the garbage collector."""

from __future__ import annotations

import gc
import warnings

__all__ = ["collect_what_others_left"]


def collect_what_others_left() -> None:
    """Collect what lies in cycles, for a test that counts descriptors, or memory, from here on.

    Something unclosed among it is not that test's fault: the end of its own file fails for it (see ``conftest.py``).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
