"""What a process knows of origins."""

from __future__ import annotations

from s3torch._transfer.connection import Origin
from s3torch._transfer.facts import Facts

HERE, THERE = Origin("http", "here.test", 80), Origin("http", "there.test", 80)


def test_each_origin_has_its_own():
    """What is learned of one origin is known to all who ask for it, and says nothing of another."""
    facts = Facts()
    facts.of(HERE).is_reached = True
    assert facts.of(HERE).is_reached
    assert not facts.of(THERE).is_reached
    assert facts.of(HERE).retry_budget is facts.of(HERE).retry_budget is not facts.of(THERE).retry_budget


def test_engines_of_the_same_size_share_a_window():
    """How many requests may be in flight is learned apart for each number of connections."""
    facts = Facts().of(HERE)
    assert facts.window(5) is facts.window(5)
    assert facts.window(5) is not facts.window(6)


def test_forgetting():
    """What was forgotten is learned anew."""
    facts = Facts()
    facts.of(HERE).is_reached = True
    facts.forget()
    assert not facts.of(HERE).is_reached
