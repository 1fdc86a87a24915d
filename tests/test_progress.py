"""Bars of progress."""

from __future__ import annotations

import threading

from tqdm import tqdm

from s3torch._progress import new_byte_bar


def test_a_bar_has_a_lock_of_its_own():
    """A bar needs no lock that a killed process may have left taken: tqdm's is shared with all that are forked."""
    holds, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with tqdm.get_lock():
            holds.set()
            is_over.wait(60)

    def draw() -> None:
        with new_byte_bar("Loading", 10, is_wanted=True) as bar:
            bar.update(5)

    holder, drawer = threading.Thread(target=hold), threading.Thread(target=draw)
    holder.start()
    holds.wait(60)
    drawer.start()
    drawer.join(30)
    was_stuck = drawer.is_alive()
    is_over.set()
    drawer.join()
    holder.join()
    assert not was_stuck
