"""LookAheadBatchSampler: the batches of another sampler, each with what comes next."""

from __future__ import annotations

import pickle

import pytest
from torch.utils.data import BatchSampler, SequentialSampler

from s3torch.datasets.sampling import Batch, LookAheadBatchSampler
from s3torch.errors import ArgumentError


def batches(size: int = 2, count: int = 7) -> BatchSampler:
    """Batches of consecutive indices."""
    return BatchSampler(SequentialSampler(range(count)), size, drop_last=False)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("batches_ahead", [1, 2, 5])
def test_batches_are_those_of_the_sampler(num_workers: int, batches_ahead: int):
    """Batches and their order are those of the wrapped sampler, and so is their number."""
    sampler = LookAheadBatchSampler(batches(), num_workers=num_workers, batches_ahead=batches_ahead)
    assert [list(batch) for batch in sampler] == [[0, 1], [2, 3], [4, 5], [6]]
    assert len(sampler) == 4


def test_upcoming():
    """A batch tells the indices of the batches that its worker gets next: every second one of two workers."""
    assert [batch.upcoming for batch in LookAheadBatchSampler(batches())] == [[2, 3], [4, 5], [6], []]
    by_two = LookAheadBatchSampler(batches(), num_workers=2)
    assert [batch.upcoming for batch in by_two] == [[4, 5], [6], [], []]
    farther = LookAheadBatchSampler(batches(), batches_ahead=2)
    assert [batch.upcoming for batch in farther] == [[2, 3, 4, 5], [4, 5, 6], [6], []]


def test_batches_pickle():
    """A batch keeps what is upcoming on its way to a worker."""
    batch = next(iter(LookAheadBatchSampler(batches())))
    copy = pickle.loads(pickle.dumps(batch))
    assert isinstance(copy, Batch)
    assert (copy, copy.upcoming) == ([0, 1], [2, 3])


@pytest.mark.parametrize("numbers", [{"num_workers": -1}, {"batches_ahead": 0}])
def test_bad_numbers(numbers: dict[str, int]):
    """Numbers that make no sense are refused by name."""
    with pytest.raises(ArgumentError, match=next(iter(numbers))):
        LookAheadBatchSampler(batches(), **numbers)


def test_no_length():
    """Without a length of the wrapped sampler there is none."""
    with pytest.raises(TypeError, match="no length"):
        len(LookAheadBatchSampler(iter([[0], [1]])))
