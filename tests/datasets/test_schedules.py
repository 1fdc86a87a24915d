"""Jobs that are killed and resumed at random: each sample comes exactly once an epoch, whatever changes in between."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch import S3BatchSampler


@dataclass
class Run:
    """What one job does until it is killed.

    Attributes:
        world_size: Its ranks.
        batch_size: Of a rank.
        num_workers: Of a rank.
        batches: How many each rank receives, over all epochs; a rank stops where the epoch ends before.
        teller: The rank whose state is saved.
    """

    world_size: int
    batch_size: int
    num_workers: int
    batches: int
    teller: int


runs = st.builds(
    Run,
    world_size=st.one_of(st.integers(1, 4), st.integers(1, 64)),
    batch_size=st.one_of(st.integers(1, 8), st.integers(1, 512)),
    num_workers=st.integers(0, 16),
    batches=st.integers(0, 12),
    teller=st.integers(0, 63),
)


def samplers_of(run: Run, samples: int, state: dict[str, Any] | None, **options: Any) -> list[S3BatchSampler]:
    """Return the sampler of each rank."""
    made = [
        S3BatchSampler(
            range(samples),  # type: ignore[arg-type]
            run.batch_size,
            num_workers=run.num_workers,
            rank=rank,
            world_size=run.world_size,
            **options,
        )
        for rank in range(run.world_size)
    ]
    for sampler in made:
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
    return made


def received(run: Run, samplers: list[S3BatchSampler], met: dict[int, Counter[int]]) -> None:
    """Let the ranks receive their batches in step; counts the samples by epoch."""
    left = run.batches
    while True:
        epoch = samplers[0].epoch
        assert {sampler.epoch for sampler in samplers} == {epoch}
        iterators = [iter(sampler) for sampler in samplers]
        for _ in range(left):
            batches = [next(iterator, None) for iterator in iterators]
            if not any(batches):
                break
            met.setdefault(epoch, Counter()).update(index for batch in batches if batch for index in batch)
            left -= 1
        else:
            return


JOBS = {
    "samples": st.one_of(st.integers(1, 40), st.integers(1, 3000)),
    "shuffle": st.booleans(),
    "seed": st.integers(-3, 3),
    "schedule": st.lists(runs, min_size=1, max_size=6),
}


@settings(max_examples=60)
@given(**JOBS)
def test_each_sample_comes_once_an_epoch(samples: int, shuffle: bool, seed: int, schedule: list[Run]):
    """Whatever ranks, batches and workers a job has: each sample comes exactly once in each epoch that is over."""
    check(samples, shuffle, seed, schedule)


@pytest.mark.soak
@settings(max_examples=10_000)
@given(**JOBS)
def test_each_sample_comes_once_an_epoch_of_many_jobs(samples: int, shuffle: bool, seed: int, schedule: list[Run]):
    """The same for ten thousand jobs."""
    check(samples, shuffle, seed, schedule)


def check(samples: int, shuffle: bool, seed: int, schedule: list[Run]) -> None:
    """Play some jobs that follow each other, and count what they received."""
    state: dict[str, Any] | None = None
    met: dict[int, Counter[int]] = {}
    for run in schedule:
        samplers = samplers_of(run, samples, state, shuffle=shuffle, seed=seed)
        if run.batches:
            received(run, samplers, met)
        states = [sampler.state_dict() for sampler in samplers]
        furthest = max(states, key=lambda each: (each["epoch"], each["consumed"]))
        assert len(json.dumps(furthest)) < 1000
        # Where the last batch of an epoch is short, some ranks may have none, and say that the epoch is over.
        over = {**furthest, "epoch": furthest["epoch"] - 1, "consumed": samples}
        assert all(each in (furthest, over) for each in states)
        state = states[run.teller % run.world_size]
    assert state is not None
    last = Run(1, 7, 0, 10**9, 0)
    (sampler,) = samplers_of(last, samples, state, shuffle=shuffle, seed=seed)
    met.setdefault(sampler.epoch, Counter()).update(index for batch in sampler for index in batch)
    for epoch in range(sampler.epoch):
        assert met[epoch] == dict.fromkeys(range(samples), 1), epoch


@settings(max_examples=200)
@given(
    samples=st.integers(1, 300),
    world_size=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    even=st.sampled_from(["drop", "pad", "wrap"]),
    drop_last=st.booleans(),
    consumed=st.integers(0, 300),
    shuffle=st.booleans(),
)
def test_ranks_are_made_even(samples, world_size, batch_size, even, drop_last, consumed, shuffle):
    """All ranks have as many samples and batches; little is left out, and little comes twice."""
    if samples < world_size:
        return
    run = Run(world_size, batch_size, 0, 0, 0)
    consumed = min(consumed, samples)
    samplers = samplers_of(run, samples, None, shuffle=shuffle, even=even, drop_last=drop_last)
    state = {**samplers[0].state_dict(), "consumed": consumed}
    for sampler in samplers:
        sampler.load_state_dict(state)
    batches = [list(sampler) for sampler in samplers]
    assert len({tuple(map(len, each)) for each in batches}) == 1
    if not consumed:
        assert {len(sampler) for sampler in samplers} == {len(batches[0])}
    met = Counter(index for each in batches for batch in each for index in batch)
    left = samples - consumed
    if drop_last:
        assert met.total() == left - left % (world_size * batch_size)
        assert all(len(batch) == batch_size for each in batches for batch in each)
    elif even == "drop":
        assert met.total() == left - left % world_size
    else:
        assert met.total() == left + -left % world_size
    if drop_last or even == "drop" or not consumed:
        assert sum(times - 1 for times in met.values()) == max(0, met.total() - left)
