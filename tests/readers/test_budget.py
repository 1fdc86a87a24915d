"""Tests of the memory that adaptive readers share."""

from __future__ import annotations

import os
import threading

import pytest

from s3torch.readers.budget import BUDGET, MemoryBudget


def test_take_and_give_back():
    """As much is given as is left, and what is no longer held can be taken again."""
    budget = MemoryBudget(100)
    one, other = budget.share(), budget.share()
    assert [one.take(70), other.take(70), other.take(70), one.take(0)] == [70, 30, 0, 0]
    one.held = 20
    assert other.take(51) == 50
    assert repr(budget) == "MemoryBudget(held=100, limit=100)"


def test_what_a_holder_held_that_is_gone():
    """What a holder held that was collected can be taken again."""
    budget = MemoryBudget(100)
    gone = budget.share()
    gone.take(70)
    del gone
    assert budget.share().take(100) == 100


def test_threads():
    """Threads that take and give back at the same time never pass the limit, and nothing is lost."""
    budget = MemoryBudget(50)
    most = []

    def work() -> None:
        share = budget.share()
        for _ in range(2000):
            share.take(20)
            most.append(budget.held)
            share.held = 0

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.held == 0
    assert max(most) <= 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_the_lock_is_held():
    """A forked child counts on from what it inherited, also if another thread was counting at that moment."""
    budget = MemoryBudget(100)
    share, others = budget.share(), budget.share()
    share.take(10)
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with budget._lock:
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    child = os.fork()
    if not child:
        os._exit(others.take(1000))
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 90
    assert budget.held == 10


def test_while_another_counts(monkeypatch):
    """Who cannot count within the patience of a reader takes nothing."""
    monkeypatch.setattr("s3torch.readers.budget._PATIENCE", 0.0)
    budget = MemoryBudget(100)
    share = budget.share()
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with budget._lock:
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    taken = share.take(10)
    done.set()
    thread.join()
    assert taken == 0
    assert budget.held == 0
    assert share.take(10) == 10


def test_the_budget_of_a_process():
    """There is one, of 256 MiB."""
    assert BUDGET.limit == 256 * 1024**2
