"""Tests of whether a request is sent again, and when."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch import errors
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import (
    ConnectionFailedError,
    DeadlineError,
    ProtocolError,
    S3Error,
    ServerError,
    ThrottledError,
    TransientError,
    TruncatedBodyError,
)

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, S3Error)]
TRANSIENT = [kind for kind in CLASSES if issubclass(kind, TransientError)]
FINAL = [kind for kind in CLASSES if not issubclass(kind, TransientError)]


def _attempts(policy: RetryPolicy, kind: type[S3Error], *, was_reached: bool) -> int:
    """Return how often a request is sent whose every attempt meets this error."""
    attempts = 1
    while policy.pause(kind("It broke."), attempts, was_reached=was_reached, jitter=0.5) is not None:
        attempts += 1
        assert attempts <= 1000
    return attempts


def test_defaults():
    """Ten attempts, with pauses of up to 0.1 s that grow to up to 20 s."""
    assert dataclasses.asdict(RetryPolicy()) == {"max_attempts": 10, "base": 0.1, "cap": 20.0}


@pytest.mark.parametrize("kind", FINAL)
@pytest.mark.parametrize("was_reached", [True, False])
def test_final_errors(kind: type[S3Error], was_reached: bool):
    """An error that is not transient ends the request at its first attempt."""
    assert _attempts(RetryPolicy(), kind, was_reached=was_reached) == 1


@pytest.mark.parametrize("was_reached", [True, False])
@pytest.mark.parametrize("kind", [TransientError, ServerError, ThrottledError, TruncatedBodyError])
def test_transient_errors(kind: type[S3Error], was_reached: bool):
    """A transient error that only an endpoint in reach can cause is met as often as configured."""
    assert _attempts(RetryPolicy(), kind, was_reached=was_reached) == 10
    assert _attempts(RetryPolicy(max_attempts=3), kind, was_reached=was_reached) == 3
    assert _attempts(RetryPolicy(max_attempts=1), kind, was_reached=was_reached) == 1


@pytest.mark.parametrize(
    ("max_attempts", "was_reached", "attempts"),
    [(10, True, 10), (3, True, 3), (10, False, 4), (3, False, 3), (1, False, 1)],
)
@pytest.mark.parametrize("kind", [ConnectionFailedError, DeadlineError])
def test_an_endpoint_that_never_answered(kind: type[S3Error], max_attempts: int, was_reached: bool, attempts: int):
    """An endpoint that never answered is tried four times at most; one that did, as often as configured."""
    assert _attempts(RetryPolicy(max_attempts=max_attempts), kind, was_reached=was_reached) == attempts


@pytest.mark.parametrize(("max_attempts", "attempts"), [(10, 3), (3, 3), (2, 2), (1, 1)])
@pytest.mark.parametrize("was_reached", [True, False])
def test_a_server_that_speaks_nonsense(max_attempts: int, attempts: int, was_reached: bool):
    """An answer that is none is tried three times at most."""
    policy = RetryPolicy(max_attempts=max_attempts)
    assert _attempts(policy, ProtocolError, was_reached=was_reached) == attempts


def test_a_mistyped_endpoint_is_reported_within_about_a_second():
    """However the jitter falls, an endpoint that refuses connections is given up within a second of pauses."""
    policy = RetryPolicy()
    error = ConnectionFailedError("It broke.")
    pauses = [policy.pause(error, attempts, was_reached=False, jitter=0.999999) for attempts in (1, 2, 3, 4)]
    assert pauses.pop() is None
    assert sum(pauses) < 1.0


def test_pauses():
    """The longest pause doubles with each attempt until the cap; the jitter takes its share of it."""
    policy = RetryPolicy(max_attempts=20, base=0.1, cap=20.0)
    error = TransientError("It broke.")
    whole = [policy.pause(error, attempts, was_reached=True, jitter=1.0) for attempts in range(1, 13)]
    assert whole == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0, 20.0, 20.0])
    half = [policy.pause(error, attempts, was_reached=True, jitter=0.5) for attempts in range(1, 13)]
    assert half == pytest.approx([pause / 2 for pause in whole])


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_broken_connection_is_retried_at_once(kind: type[S3Error]):
    """What ends one connection says nothing of load: its first retry has no pause, but for an outage."""
    policy, error = RetryPolicy(), kind("It broke.")
    is_connection = issubclass(kind, (ConnectionFailedError, TruncatedBodyError, ProtocolError))
    assert (policy.pause(error, 1, was_reached=True, jitter=0.5) == 0.0) is is_connection
    assert policy.pause(error, 2, was_reached=True, jitter=0.5) == 0.1
    assert policy.pause(error, 1, was_reached=False, jitter=0.5) == 0.05
    longest = 15.0 if kind is ThrottledError else 10.0
    assert policy.pause(error, 1, was_reached=True, is_in_budget=False, jitter=0.5) == longest
    assert RetryPolicy(max_attempts=1).pause(error, 1, was_reached=True, jitter=0.5) is None


def test_a_failure_of_the_service_is_retried_soon():
    """One failure of the service says little of load: its first pause is short, unless Retry-After or an outage is."""
    policy, error = RetryPolicy(), ServerError("It broke.")
    assert policy.pause(error, 1, was_reached=True, jitter=0.5) == pytest.approx(0.01)
    assert policy.pause(error, 2, was_reached=True, jitter=0.5) == 0.1
    assert policy.pause(error, 1, was_reached=True, jitter=0.5, is_in_budget=False) == 10.0
    error.retry_after = 3.0
    assert policy.pause(error, 1, was_reached=True, jitter=0.5) == 3.0


@given(
    kind=st.sampled_from(TRANSIENT),
    attempts=st.integers(1, 10**6),
    was_reached=st.booleans(),
    jitter=st.floats(0, 1, exclude_max=True),
    max_attempts=st.integers(1, 10**6),
)
def test_a_pause_is_within_its_bounds(
    kind: type[S3Error], attempts: int, was_reached: bool, jitter: float, max_attempts: int
):
    """Whatever happened however often, a pause is a number from 0 to the cap, and there is none after the last."""
    policy = RetryPolicy(max_attempts=max_attempts)
    pause = policy.pause(kind("It broke."), attempts, was_reached=was_reached, jitter=jitter)
    if attempts >= max_attempts:
        assert pause is None
    else:
        assert pause is None or 0 <= pause <= policy.cap


def test_a_policy_is_a_value():
    """A policy is frozen and equal to its like."""
    assert RetryPolicy(max_attempts=3) == RetryPolicy(max_attempts=3) != RetryPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().cap = 1.0


def test_out_of_budget():
    """When retries are many beside successes each waits for its share of the longest pause."""
    error = TransientError("It broke.")
    assert RetryPolicy().pause(error, 1, was_reached=True, jitter=0.5) == 0.05
    assert RetryPolicy().pause(error, 1, was_reached=True, jitter=0.5, is_in_budget=False) == 10.0
    assert RetryPolicy().pause(error, 10, was_reached=True, jitter=0.5, is_in_budget=False) is None


def test_refused():
    """What is refused waits for a second at most while others are answered; else for half of the longest or more."""
    policy, error = RetryPolicy(max_attempts=20), ThrottledError("Slow down.")
    whole = [policy.pause(error, attempts, was_reached=True, jitter=1.0) for attempts in range(1, 8)]
    assert whole == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    for jitter, pause in ((0.0, 10.0), (0.5, 15.0), (1.0, 20.0)):
        assert policy.pause(error, 1, was_reached=True, jitter=jitter, is_in_budget=False) == pause


def test_retry_after():
    """A retry goes out no sooner than the service asked for, up to the longest pause."""
    for asked, pause in ((None, 0.05), (0.01, 0.05), (3.0, 3.0), (1000.0, 20.0)):
        error = ThrottledError("Slow down.", retry_after=asked)
        assert RetryPolicy().pause(error, 1, was_reached=True, jitter=0.5) == pause
