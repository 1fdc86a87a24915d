"""S3DataLoader: real DataLoaders over real objects, left in the middle and gone on with."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch import S3BatchSampler, S3DataLoader, S3MapDataset, S3Reader
from s3torch.datasets.order import Shuffled
from s3torch.errors import ArgumentError, ArgumentTypeError, LoaderStateError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch, about few cores
_COUNT = 100


def number(reader: S3Reader) -> int:
    """Return what an object says."""
    return int(reader.read())


@pytest.fixture(scope="module")
def folder(client, bucket) -> str:
    """The URI of 100 objects, each of which holds its number."""
    for index in range(_COUNT):
        with client.put_object(bucket, f"loader/{index:03}") as writer:
            writer.write(b"%d" % index)
    return f"s3://{bucket}/loader/"


@pytest.fixture
def dataset(s3, folder) -> Iterator[S3MapDataset[int]]:
    """The numbers."""
    dataset = S3MapDataset.from_prefix(folder, region=s3.region, endpoint=s3.endpoint, transform=number)
    yield dataset
    dataset.client.close()


def numbers(batches: Iterator[torch.Tensor]) -> list[int]:
    """Return the samples of some batches."""
    return [int(sample) for batch in batches for sample in batch]


def some(iterator: Iterator[torch.Tensor], count: int) -> list[int]:
    """Return the samples of the next batches."""
    return numbers(next(iterator) for _ in range(count))


def in_order(epoch: int, seed: int = 0) -> list[int]:
    """Return the samples of an epoch, shuffled."""
    return Shuffled(_COUNT, seed, epoch).at(range(_COUNT))


def test_it_is_a_dataloader(dataset):
    """It is a DataLoader, with the attributes that programs look at."""
    loader = S3DataLoader(dataset, 8)
    assert isinstance(loader, DataLoader)
    assert len(loader) == 13
    assert (loader.batch_size, loader.drop_last) == (8, False)
    assert numbers(iter(loader)) == list(range(_COUNT))
    assert "epoch 1, 0 samples consumed" in repr(loader)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_epochs_advance(dataset, persistent_workers: bool):
    """Each epoch has an order of its own, without set_epoch."""
    loader = S3DataLoader(
        dataset, batch_size=16, shuffle=True, num_workers=2, persistent_workers=persistent_workers, seed=5
    )
    assert [numbers(iter(loader)) for _ in range(3)] == [in_order(epoch, 5) for epoch in range(3)]
    assert loader.epoch == 3


def test_it_resumes_where_the_loop_was(dataset):
    """Four workers read ahead; another number of workers and another batch size go on with the very next sample."""
    loader = S3DataLoader(dataset, batch_size=4, shuffle=True, num_workers=4, prefetch_factor=4)
    iterator = iter(loader)
    assert some(iterator, 7) == in_order(0)[:28]
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["consumed"]) == (0, 28)
    later = S3DataLoader(dataset, batch_size=9, shuffle=True, num_workers=3)
    later.load_state_dict(state)
    assert later.state_dict() == state
    iterator = iter(later)
    assert some(iterator, 2) == in_order(0)[28:46]
    again = S3DataLoader(dataset, batch_size=5, shuffle=True)
    again.load_state_dict(later.state_dict())
    assert numbers(iter(again)) == in_order(0)[46:]
    assert numbers(iter(again)) == in_order(1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_break_ends_an_epoch(dataset, num_workers: int):
    """To leave an epoch is to be done with it."""
    loader = S3DataLoader(dataset, batch_size=10, shuffle=True, num_workers=num_workers)
    for _ in loader:
        break
    assert loader.state_dict()["consumed"] == 10
    assert loader.epoch == 1
    assert numbers(iter(loader)) == in_order(1)
    assert loader.state_dict()["epoch"] == 2


def test_the_end_of_an_epoch(dataset):
    """After its last batch nothing is left of an epoch; the next one is the next."""
    loader = S3DataLoader(dataset, batch_size=50, shuffle=True)
    iterator = iter(loader)
    some(iterator, 2)
    state = loader.state_dict()
    assert (state["epoch"], state["consumed"]) == (0, 100)
    later = S3DataLoader(dataset, batch_size=50, shuffle=True)
    later.load_state_dict(state)
    assert numbers(iter(later)) == []
    assert numbers(iter(later)) == in_order(1)
    assert next(iterator, None) is None
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 0)


def test_a_state_is_saved_before_anything_is_read(dataset):
    """A state of the beginning, and one that was just loaded, lead to the same samples."""
    loader = S3DataLoader(dataset, shuffle=True)
    later = S3DataLoader(dataset, shuffle=True)
    later.load_state_dict(loader.state_dict())
    later.load_state_dict(later.state_dict())
    assert some(iter(later), 3) == in_order(0)[:3]


def test_set_epoch(dataset):
    """It chooses an epoch, and does not begin a resumed one anew."""
    loader = S3DataLoader(dataset, batch_size=20, shuffle=True)
    loader.set_epoch(7)
    iterator = iter(loader)
    assert some(iterator, 2) == in_order(7)[:40]
    later = S3DataLoader(dataset, batch_size=20, shuffle=True)
    later.load_state_dict(loader.state_dict())
    later.set_epoch(7)
    assert numbers(iter(later)) == in_order(7)[40:]
    later.set_epoch(7)
    assert numbers(iter(later)) == in_order(7)
    with pytest.raises(ArgumentError, match="An epoch is at least 0, got -1"):
        loader.set_epoch(-1)


def test_an_iterator_that_was_left_tells_nothing(dataset):
    """The newest iteration decides what the state is."""
    loader = S3DataLoader(dataset, batch_size=10)
    old, new = iter(loader), iter(loader)
    assert some(old, 1) == list(range(10))
    some(new, 2)
    some(old, 5)
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 20)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iteration_begins_with_its_first_batch(dataset, num_workers: int):
    """Frameworks call iter() to see whether it works, and tell the epoch, or load a state, afterwards."""
    loader = S3DataLoader(dataset, batch_size=10, shuffle=True, num_workers=num_workers)
    iter(loader)
    assert loader.epoch == 0
    iterator = iter(loader)
    loader.sampler.set_epoch(3)
    assert some(iterator, 2) == in_order(3)[:20]
    state = loader.state_dict()
    numbers(iterator)
    iterator = iter(loader)
    loader.load_state_dict(state)
    assert numbers(iterator) == in_order(3)[20:]


def test_an_error_is_no_batch_to_come_again(dataset):
    """A program that goes on behind a batch that failed resumes behind it."""

    class Failing(S3MapDataset[int]):
        def __getitem__(self, index: int) -> int:
            if index == 25:
                raise ValueError("no such number")
            return super().__getitem__(index)

    failing = Failing(dataset.region, lambda _: dataset.objects, dataset.endpoint, transform=number)
    for num_workers in (0, 2):
        loader = S3DataLoader(failing, batch_size=10, num_workers=num_workers)
        iterator = iter(loader)
        some(iterator, 2)
        with pytest.raises(ValueError, match="no such number"):
            next(iterator)
        assert some(iterator, 1) == list(range(30, 40))
        assert loader.state_dict()["consumed"] == 40
        assert numbers(iterator) == list(range(40, _COUNT))  # else torch waits for the workers
    failing.client.close()


@pytest.mark.parametrize("even", [None, "drop", "pad", "wrap"])
def test_ranks(dataset, even):
    """Ranks share an epoch, and have one state."""
    loaders = [
        S3DataLoader(dataset, batch_size=4, shuffle=True, even=even, rank=rank, world_size=3) for rank in range(3)
    ]
    iterators = [iter(loader) for loader in loaders]
    met = [some(iterator, 5) for iterator in iterators]
    assert sorted(itertools.chain(*met)) == sorted(in_order(0)[:60])
    states = [json.dumps(loader.state_dict()) for loader in loaders]
    assert len(set(states)) == 1
    rest = [numbers(iterator) for iterator in iterators]
    assert sorted(map(len, rest)) == {None: [13, 13, 14], "drop": [13] * 3, "pad": [14] * 3, "wrap": [14] * 3}[even]
    extra = {None: [], "drop": [], "pad": in_order(0)[-1:] * 2, "wrap": in_order(0)[:2]}[even]
    due = in_order(0)[60:99] if even == "drop" else in_order(0)[60:] + extra
    assert sorted(itertools.chain(*rest)) == sorted(due)


def test_ranks_are_those_of_torchrun(dataset, monkeypatch):
    """Ranks come from the variables of torchrun."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert numbers(iter(S3DataLoader(dataset, batch_size=10))) == list(range(1, _COUNT, 2))


def test_a_state_is_of_its_data(dataset, folder, s3):
    """A state of other data, of another order or of a newer version is refused: both sides are named."""
    state = S3DataLoader(dataset, shuffle=True, seed=1).state_dict()
    with pytest.raises(LoaderStateError, match=re.escape("it was saved with seed 1 (here 2)")):
        S3DataLoader(dataset, shuffle=True, seed=2).load_state_dict(state)
    with pytest.raises(
        LoaderStateError, match=re.escape("it was saved with shuffle True (here False), seed 1 (here 0)")
    ):
        S3DataLoader(dataset).load_state_dict(state)
    fewer = S3MapDataset.from_prefix(folder + "01", region=s3.region, endpoint=s3.endpoint, transform=number)
    with pytest.raises(
        LoaderStateError, match=r"samples 100 \(here 10\), digest '[0-9a-f]{32}' \(here '[0-9a-f]{32}'\)"
    ):
        S3DataLoader(fewer, shuffle=True, seed=1).load_state_dict(state)
    fewer.client.close()
    loader = S3DataLoader(dataset, shuffle=True, seed=1)
    with pytest.raises(LoaderStateError, match="The state has version 2, and this s3torch reads up to 1"):
        loader.load_state_dict({**state, "version": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "The state is damaged: epoch -1"),
        ({"epoch": True}, "The state is damaged: epoch True"),
        ({"consumed": 101}, "consumed 101 of 100 samples"),
        ({"consumed": "3"}, "consumed '3' of 100"),
        ({"consumed": None}, "consumed None of 100"),
        ({"samples": 100.0}, r"samples 100.0 \(here 100\)"),
        ({"digest": None}, "digest None"),
        ({"version": None}, "no state of an S3DataLoader"),
        ({"version": "1"}, "no state of an S3DataLoader"),
    ],
)
def test_a_damaged_state(dataset, change, message: str):
    """What cannot be a state is refused by the name of what is wrong, and changes nothing."""
    loader = S3DataLoader(dataset)
    state = loader.state_dict()
    with pytest.raises(LoaderStateError, match=message):
        loader.load_state_dict({**state, **change})
    assert loader.state_dict() == state


@pytest.mark.parametrize("state", [None, {}, [], "state", 3])
def test_what_is_no_state(dataset, state):
    """What is no state at all is refused."""
    with pytest.raises(LoaderStateError, match="This is no state of an S3DataLoader"):
        S3DataLoader(dataset).load_state_dict(state)


def test_a_state_that_lacks_something(dataset):
    """What is missing is named."""
    loader = S3DataLoader(dataset)
    state = loader.state_dict()
    del state["seed"]
    with pytest.raises(LoaderStateError, match="The state is damaged: it has no seed"):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers at least 0"),
        ({"even": "all"}, "even must be one of 'drop', 'pad', 'wrap', or None, got 'all'"),
        ({"sampler": range(3)}, "takes no sampler"),
        ({"in_order": False}, "cannot say where a job is"),
        ({"rank": 3}, "rank=3 and world_size=None do not fit"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < world_size"),
        ({"batches_ahead": 0}, "batches_ahead must be at least 1, or None, got 0"),
    ],
)
def test_bad_arguments(dataset, options, message: str):
    """Numbers out of range, and options that it decides itself, are refused by name."""
    with pytest.raises(ArgumentError, match=message):
        S3DataLoader(dataset, **options)


@pytest.mark.parametrize("options", [{"shuffle": 1}, {"drop_last": None}, {"seed": 1.5}, {"batch_size": "3"}])
def test_arguments_of_another_type(dataset, options):
    """An argument of another type is refused by name."""
    with pytest.raises(ArgumentTypeError, match=next(iter(options))):
        S3DataLoader(dataset, **options)


def test_more_ranks_than_samples(dataset):
    """Ranks that cannot all have a sample cannot be made even; the error says the numbers."""
    loader = S3DataLoader(dataset, even="wrap", rank=0, world_size=101)
    with pytest.raises(ArgumentError, match="cannot make 101 ranks equal with 100 samples"):
        next(iter(loader))
    with pytest.raises(ArgumentError, match="cannot make 101 ranks equal with 100 samples"):
        len(loader)


def test_any_dataset_with_an_index():
    """Without a table the state knows the number of samples alone."""
    loader = S3DataLoader(list(range(7)), batch_size=3, shuffle=True)  # type: ignore[arg-type]
    assert sorted(numbers(iter(loader))) == list(range(7))
    assert loader.state_dict()["digest"] is None


def test_a_sampler_for_a_dataloader_of_torch(dataset):
    """Its state is what it has yielded."""
    sampler = S3BatchSampler(dataset, batch_size=6, shuffle=True)
    iterator = iter(DataLoader(dataset, batch_sampler=sampler))
    assert some(iterator, 3) == in_order(0)[:18]
    assert sampler.state_dict()["consumed"] == 18
    assert numbers(iterator) == in_order(0)[18:]
    assert sampler.state_dict()["epoch"] == 1


def test_objects_are_fetched_ahead(dataset, traffic):
    """The objects of the next batches are under way while a batch is used."""
    loader = S3DataLoader(dataset, batch_size=8)
    iterator = iter(loader)
    next(iterator)
    assert dataset.client.stats.requests > 8 + 1
    assert numbers(iterator) == list(range(8, _COUNT))
