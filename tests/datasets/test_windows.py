"""Which call may use which window of objects that were begun ahead."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from s3torch.datasets.windows import Windows


class Window:
    """Stands for a LookAhead that has begun some objects."""

    def __init__(self, *places: int) -> None:
        self.places = list(places)
        self.is_cancelled = False

    def __len__(self) -> int:
        return len(self.places)

    def cancel(self) -> None:
        self.is_cancelled = True


def keep(windows: Windows, *places: int) -> Any:
    """Leave a window with these objects, and return it."""
    window: Any = Window(*places)
    windows.give_back(window, object())
    return window


@pytest.mark.parametrize(
    ("places", "plan", "is_found"),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 2, 3], True),
        ([1, 2], [1], False),
        ([1, 2], [2, 1], False),
        ([1, 2], [3, 1, 2], False),
        ([1, 2], [], False),
    ],
)
def test_claims(places: list[int], plan: list[int], is_found: bool):
    """The window that has begun the first objects of a batch is claimed, and no other."""
    windows = Windows()
    window = keep(windows, *places)
    assert windows.claim(plan, "call") is (window if is_found else None)
    assert not window.is_cancelled


def test_a_claimed_window_is_not_claimed_again():
    """A call that comes in the middle of another one gets no window of that."""
    windows = Windows()
    window = keep(windows, 1)
    assert windows.claim([1], "first") is window
    assert windows.claim([1], "second") is None
    windows.cancel("second")
    assert not window.is_cancelled


def test_what_a_failed_call_has_claimed_is_cancelled():
    """A failed call ends its own window and no other, and the window is not found again."""
    windows = Windows()
    claimed, other = keep(windows, 1), keep(windows, 2)
    windows.claim([1], "call")
    windows.cancel("call")
    assert (claimed.is_cancelled, other.is_cancelled) == (True, False)
    assert [kept.window for kept in windows] == [other]


def test_a_window_is_given_back():
    """After a call that went well its window is free for the next one; one that has begun nothing is dropped."""
    windows = Windows()
    window = keep(windows, 1)
    windows.claim([1], "call")
    window.places = [5, 6]
    windows.give_back(window, "call")
    assert windows.claim([5, 6], "next") is window
    window.places = []
    windows.give_back(window, "next")
    assert list(windows) == []
    assert not window.is_cancelled


def test_of_two_windows_with_the_same_objects_one_is_claimed():
    """Two sequences of batches may be at the same place; each call gets one window."""
    windows = Windows()
    one, two = keep(windows, 1), keep(windows, 1)
    assert windows.claim([1], "first") is one
    assert windows.claim([1], "second") is two


def test_unclaimed_windows_are_cancelled():
    """A window that four batches in a row did not want is cancelled; loaders that take turns lose none."""
    windows = Windows()
    wanted, left = keep(windows, 1), keep(windows, 9)
    for _ in range(3):
        assert windows.claim([1], "call") is wanted
        windows.give_back(wanted, "call")
        assert not left.is_cancelled
    assert windows.claim([5], "call") is None
    assert left.is_cancelled
    assert not wanted.is_cancelled
    assert [kept.window for kept in windows] == [wanted]


def test_threads_have_windows_of_their_own():
    """What one thread has begun is never claimed by another one."""
    windows = Windows()
    keep(windows, 1)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(windows.claim([1], "call")))
    thread.start()
    thread.join()
    assert found == [None]
