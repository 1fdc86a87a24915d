"""Exchanges that pause: when each is due, and what cuts a pause short."""

from __future__ import annotations

from typing import Any

import pytest

from s3torch._transfer.connection import Origin
from s3torch._transfer.pauses import Pauses

HERE, THERE = Origin("http", "here.test", 80), Origin("http", "there.test", 80)


class Paused:
    """Stands for an exchange."""

    def __init__(self, name: str, origin: Origin = HERE) -> None:
        self.name = name
        self.origin = origin
        self.is_done = False


def paused(pauses: Pauses, name: str, due: float, origin: Origin = HERE, *, is_cut_off: bool = False) -> Any:
    """Let a new exchange pause, and return it."""
    exchange: Any = Paused(name, origin)
    pauses.add(exchange, due, is_cut_off=is_cut_off)
    return exchange


def due(pauses: Pauses, now: float) -> list[str]:
    """Return the names of those that are due."""
    return [exchange.name for exchange in pauses.take_due(now)]


def test_each_in_its_time():
    """They come in the order in which they are due, and of equal ones the first first; each comes once."""
    pauses = Pauses(lambda: 0.5)
    assert pauses.next_due == float("inf")
    for name, moment in (("c", 3.0), ("a", 1.0), ("d", 3.0), ("b", 2.0)):
        paused(pauses, name, moment)
    assert (pauses.next_due, due(pauses, 0.9)) == (1.0, [])
    assert due(pauses, 2.0) == ["a", "b"]
    assert pauses.next_due == 3.0
    assert due(pauses, 9.0) == ["c", "d"]
    assert list(pauses) == []


def test_a_server_that_answers_again():
    """What could not reach it comes within a second, but never later than it would have; others wait on."""
    pauses = Pauses(lambda: 0.25)
    paused(pauses, "late", 50.0, is_cut_off=True)
    paused(pauses, "soon", 10.1, is_cut_off=True)
    paused(pauses, "refused", 40.0)
    paused(pauses, "elsewhere", 30.0, THERE, is_cut_off=True)
    pauses.call_back(HERE, 10.0)
    assert pauses.next_due == 10.1
    assert due(pauses, 10.25) == ["soon", "late"]
    pauses.call_back(HERE, 10.0)
    assert due(pauses, 29.0) == []
    assert due(pauses, 30.0) == ["elsewhere"]
    assert due(pauses, 40.0) == ["refused"]


def test_the_first_of_many_is_known():
    """However many wait, what is called back is the first one if it is due before them."""
    pauses = Pauses(lambda: 0.25)
    for moment in (11.0, 13.0, 12.0):
        paused(pauses, str(moment), moment)
    paused(pauses, "called", 50.0, is_cut_off=True)
    pauses.call_back(HERE, 10.0)
    assert pauses.next_due == 10.25
    assert due(pauses, 20.0) == ["called", "11.0", "12.0", "13.0"]


@pytest.mark.parametrize("dropped", range(6))
def test_what_is_done_is_dropped(dropped: int):
    """What was cancelled is not held any longer, and the others come in order."""
    pauses = Pauses(lambda: 0.5)
    moments = [0.0, 5.0, 1.0, 7.0, 6.0, 2.0]
    exchanges = [paused(pauses, str(moment), moment) for moment in moments]
    exchanges[dropped].is_done = True
    pauses.drop_done()
    assert exchanges[dropped] not in list(pauses)
    left = sorted(moment for moment in moments if moment != moments[dropped])
    assert pauses.next_due == left[0]
    assert due(pauses, 9.0) == [str(moment) for moment in left]


def test_all_are_dropped():
    """After ``clear`` nothing is held."""
    pauses = Pauses(lambda: 0.5)
    paused(pauses, "a", 1.0)
    pauses.clear()
    assert (list(pauses), pauses.next_due, due(pauses, 9.0)) == ([], float("inf"), [])
