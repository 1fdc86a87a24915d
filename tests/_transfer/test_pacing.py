"""Tests of how many requests go out at a time, how many again, and when one is late."""

from __future__ import annotations

import itertools
import random

import pytest

from s3torch._transfer.pacing import ConcurrencyWindow, FirstBytes, RetryBudget


def test_a_budget_runs_out():
    """A hundred retries without a success empty the budget; ten successes make up for one."""
    budget = RetryBudget()
    for _ in range(100):
        assert budget.has_tokens
        budget.note_retry()
    assert not budget.has_tokens
    for _ in range(9):
        budget.note_success()
    assert not budget.has_tokens
    budget.note_success()
    budget.note_success()
    assert budget.has_tokens


def test_a_budget_is_bounded():
    """However many successes there were, an outage begins with a hundred retries."""
    budget = RetryBudget()
    for _ in range(100_000):
        budget.note_success()
    for _ in range(100):
        budget.note_retry()
    assert not budget.has_tokens


def test_a_window_is_halved_once_for_requests_that_flew_together():
    """Answers to requests that were sent before the window was halved do not halve it again."""
    window = ConcurrencyWindow(64)
    for _ in range(10):
        window.note_throttled(began=1.0, now=2.0)
    assert window.size == 32.0
    window.note_throttled(began=2.0, now=3.0)
    assert window.size == 16.0


def test_a_window_has_bounds():
    """A window is never below a hundredth of a request or so, and never above its most."""
    window = ConcurrencyWindow(8)
    for number in range(50):
        window.note_throttled(began=number, now=number + 0.5)
    assert window.size == 1 / 128
    for _ in range(1000):
        window.note_success()
    assert window.size == 8.0


def test_rests():
    """From one request on there is no rest; below, it is the longer the smaller the window is, by chance."""
    window = ConcurrencyWindow(2)
    rests = []
    for number in range(30):
        rests.append([window.rest(jitter) for jitter in (0.0, 0.5, 1.0)])
        window.note_throttled(number, number + 0.5)
    assert rests[0] == rests[1] == [0.0, 0.0, 0.0]
    assert all(0.0 < least < mean < most for least, mean, most in rests[2:])
    means = [mean for _, mean, _ in rests]
    assert means == sorted(means)
    assert means[-1] == 2.54


def test_a_service_that_refuses_all():
    """A window is shut by six cuts in a row; a success opens it, and soon makes it what it was."""
    window = ConcurrencyWindow(64)
    for number in range(5):
        window.note_throttled(number, number + 0.5)
        window.note_throttled(number, number + 0.5)
        assert not window.is_shut
    for number in range(5, 100):
        window.note_throttled(number, number + 0.5)
        assert window.is_shut
    window.note_success()
    assert not window.is_shut
    sizes = [window.size]
    while window.size < 64.0:
        window.note_success()
        sizes.append(window.size)
    assert len([size for size in sizes if size < 1.0]) < 10
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes))


def test_a_share_that_is_always_refused():
    """Where a quarter is refused however little is sent, a client goes on: its window stays near a quarter or above."""
    window, chance, sizes = ConcurrencyWindow(16), random.Random(1), []
    for number in range(20_000):
        if chance.random() < 0.25:
            window.note_throttled(number, number + 0.5)
        else:
            window.note_success()
        sizes.append(window.size)
    assert sum(sizes) / len(sizes) > 0.2
    assert sum(size < 0.1 for size in sizes) / len(sizes) < 0.05


def _succeed(window: ConcurrencyWindow) -> None:
    """Let all requests of a window succeed."""
    for _ in range(int(window.size)):
        window.note_success()


def test_a_window_recovers_fast_to_where_it_was():
    """After one refusal a window is what it was in some fifteen rounds; near that it widens by about one in each."""
    window = ConcurrencyWindow(128)
    window.note_throttled(0.0, 1.0)
    rounds = 0
    while window.size < 128.0:
        before = window.size
        _succeed(window)
        rounds += 1
        if before > 125.0:
            assert window.size - before <= 1.0
    assert 10 < rounds < 20


def test_a_window_feels_its_way_beyond_its_limit():
    """Beyond where it was refused a window widens by one for each round at first, and then faster."""
    window = ConcurrencyWindow(1024)
    for began in (0.0, 2.0, 4.0):
        window.note_throttled(began, began + 1.0)
        window.note_success()
    limit = window._too_many
    steps = []
    while window.size < 1024.0:
        before = window.size
        _succeed(window)
        steps.append((before, window.size - before))
    near = [step for before, step in steps if limit - 2.0 < before < limit + 14.0]
    assert len(near) > 5
    assert all(step <= 1.0 for step in near)
    assert max(step for _, step in steps) > 20.0
    assert len(steps) < 100


def _round(windows: list[ConcurrencyWindow], capacity: int, now: float, chance: random.Random) -> tuple[int, int]:
    """Let each client send its window; the server takes so many, whosever they are. Returns sent and taken."""
    sent = [
        number
        for number, window in enumerate(windows)
        for _ in range(int(window.size) or chance.random() < window.size)  # below one: so much of the time
    ]
    chance.shuffle(sent)
    for number in sent[:capacity]:
        windows[number].note_success()
    for number in sent[capacity:]:
        windows[number].note_throttled(now, now + 0.5)
    return len(sent), min(len(sent), capacity)


@pytest.mark.parametrize("capacity", [200, 640, 2000])
def test_clients_share_a_limited_server(capacity: int):
    """64 clients that send 128 requests each find out together what a server takes, use most of it, and share it."""
    chance = random.Random(capacity)
    windows = [ConcurrencyWindow(128) for _ in range(64)]
    rounds = [_round(windows, capacity, float(number), chance) for number in range(400)]
    assert rounds[0] == (64 * 128, capacity)
    settled = rounds[100:]
    refused = sum(sent - taken for sent, taken in settled) / sum(sent for sent, _ in settled)
    used = sum(taken for _, taken in settled) / (capacity * len(settled))
    shares = [window.size for window in windows]
    fairness = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))  # Jain's index
    assert refused < 0.15
    assert used > 0.7
    assert fairness > 0.7
    for number in range(400, 480):  # the limit goes away
        _round(windows, 10**9, float(number), chance)
    assert all(window.size == 128.0 for window in windows)


def test_late_is_learnt():
    """From 32 answers on, late is twice what 95 of a hundred took, and at least 20 ms."""
    known = FirstBytes()
    for number in range(31):
        known.note(0.1 + number / 1000)
        assert known.late_after is None
    known.note(0.2)
    assert known.late_after == pytest.approx(2 * 0.13)
    fast = FirstBytes()
    for _ in range(32):
        fast.note(0.001)
    assert fast.late_after == 0.02


def test_old_answers_are_forgotten():
    """A host that became faster or slower is judged by its last 256 answers."""
    known = FirstBytes()
    for _ in range(1000):
        known.note(1.0)
    for _ in range(256):
        known.note(0.1)
    assert known.late_after == pytest.approx(0.2)


def test_second_requests_are_few():
    """Second requests are 2 % of the first ones, and eight in a row at most."""
    known = FirstBytes()
    hedges = 0
    for _ in range(10_000):
        known.note(0.01)
        if known.may_hedge:
            known.note_hedge()
            hedges += 1
    assert 195 <= hedges <= 202
    for _ in range(10_000):
        known.note(0.01)
    in_a_row = 0
    while known.may_hedge:
        known.note_hedge()
        in_a_row += 1
    assert in_a_row == 8
