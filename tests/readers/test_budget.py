"""Tests of the memory that adaptive readers share."""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading

import pytest

from s3torch.readers.budget import BUDGET, MemoryBudget
from s3torch.testing.simulate.tracing import trace_bytecodes


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
    """Threads that take memory at the same time never have more of it than the limit."""
    budget = MemoryBudget(100)
    kept = [0] * 4  # of each thread, once it has it
    sums: set[int] = set()

    def take_often(number: int) -> None:
        share, chance = budget.share(), random.Random(number)
        for _ in range(2_000):
            kept[number] = share.take(chance.randrange(80))
            sums.add(sum(kept))
            kept[number] = 0
            share.held = 0

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take_often, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert 0 < max(sums) <= 100
    assert budget.held == 0


def test_an_interrupt_in_the_middle_of_taking_memory():
    """Wherever Ctrl-C comes, the memory is free when its reader is gone, and no other thread waits for anything."""
    for nth in itertools.count(1):
        budget = MemoryBudget(100)
        left = nth

        def trace(frame, event, _argument):
            nonlocal left
            if not frame.f_code.co_filename.endswith("budget.py"):
                return None
            trace_bytecodes(frame, trace)
            left -= event == "opcode"
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        share = budget.share()
        try:
            sys.settrace(trace)
            share.take(60)
        except KeyboardInterrupt:
            del share
        else:
            break
        finally:
            sys.settrace(None)
        taken: list[int] = []
        thread = threading.Thread(target=lambda budget=budget, taken=taken: taken.append(budget.share().take(100)))
        thread.start()
        thread.join()
        assert taken == [100]
    assert nth > 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork():
    """A forked child counts on from what it inherited, and what it takes is not its parent's."""
    budget = MemoryBudget(100)
    share, others = budget.share(), budget.share()
    share.take(10)
    child = os.fork()
    if not child:
        os._exit(others.take(1000))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 90
    assert budget.held == 10


def test_the_budget_of_a_process():
    """There is one, of 256 MiB."""
    assert BUDGET.limit == 256 * 1024**2
