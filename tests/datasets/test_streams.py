"""Streams that are shuffled and resumed, by themselves and by S3DataLoader."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch import S3DataLoader, S3IterableDataset, S3Reader
from s3torch.datasets.cursor import Cursor
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import Selection
from s3torch.datasets.order import Shuffled
from s3torch.datasets.samples import _Items
from s3torch.datasets.sharding import Position
from s3torch.datasets.stream_cursor import StreamCursor
from s3torch.errors import ArgumentError, ArgumentTypeError, LoaderStateError

_COUNT = 40


def number(reader: S3Reader) -> int:
    """Return what an object says."""
    return int(reader.read())


@pytest.fixture(scope="module")
def folder(client, bucket) -> str:
    """The URI of 40 objects, each of which holds its number."""
    for index in range(_COUNT):
        with client.put_object(bucket, f"streams/{index:03}") as writer:
            writer.write(b"%d" % index)
    return f"s3://{bucket}/streams/"


@pytest.fixture
def stream(s3, folder):
    """Makes streams of the numbers."""
    made = []

    def make(**options: object) -> S3IterableDataset[int]:
        made.append(
            S3IterableDataset.from_prefix(folder, region=s3.region, endpoint=s3.endpoint, transform=number, **options)
        )
        return made[-1]

    yield make
    for each in made:
        each.client.close()


def in_order(epoch: int, seed: int = 0) -> list[int]:
    """Return the samples of an epoch, shuffled."""
    return Shuffled(_COUNT, seed, epoch).at(range(_COUNT))


def some(iterator: Iterator[int], count: int) -> list[int]:
    """Return the next samples."""
    return list(itertools.islice(iterator, count))


# --- By itself -------------------------------------------------------------------------------------------------------


def test_epochs_are_shuffled(stream):
    """Each iteration is an epoch, with an order of its own; a seed chooses others."""
    shuffled = stream(shuffle=True)
    assert [list(shuffled) for _ in range(3)] == [in_order(epoch) for epoch in range(3)]
    assert list(stream(shuffle=True, seed=7)) == in_order(0, 7)
    assert list(stream(seed=7)) == list(range(_COUNT))


def test_set_epoch(stream):
    """It chooses an epoch, in workers too."""
    shuffled = stream(shuffle=True, enable_sharding=True)
    shuffled.set_epoch(5)
    assert sorted(DataLoader(shuffled, None, num_workers=2)) == list(range(_COUNT))
    assert list(DataLoader(shuffled, None, num_workers=1)) == in_order(5)
    assert list(shuffled) == in_order(5)
    assert list(shuffled) == in_order(6)
    with pytest.raises(ArgumentError, match="at least 0, got -1"):
        shuffled.set_epoch(-1)


def test_workers_share_an_epoch(stream):
    """Each sample comes once over all workers."""
    for num_workers in (1, 2):
        shuffled = stream(shuffle=True, enable_sharding=True)
        assert sorted(DataLoader(shuffled, None, num_workers=num_workers)) == list(range(_COUNT))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 13, 39, 40])
def test_it_resumes(stream, shuffle: bool, taken: int):
    """A state, as JSON, leads to the sample that was next; two times in a row, and by a pickle of the dataset."""
    expected = in_order(0) if shuffle else list(range(_COUNT))
    first = stream(shuffle=shuffle)
    begin = first.state_dict()
    assert (begin["epoch"], begin["consumed"]) == (0, 0)
    assert some(iter(first), taken) == expected[:taken]
    state = json.dumps(first.state_dict())
    assert len(state) < 1000
    for _ in range(2):
        later = stream(shuffle=shuffle)
        later.load_state_dict(json.loads(state))
        assert json.dumps(later.state_dict()) == state
        assert list(pickle.loads(pickle.dumps(later))) == list(later) == expected[taken:]
        assert list(later) == (in_order(1) if shuffle else expected)


def test_after_the_end_the_next_epoch_is_due(stream):
    """The state of a stream that was read to its end begins the next epoch."""
    first = stream(shuffle=True)
    assert list(first) == in_order(0)
    state = first.state_dict()
    assert (state["epoch"], state["consumed"]) == (1, 0)
    later = stream(shuffle=True)
    later.load_state_dict(state)
    assert list(later) == in_order(1)


def test_a_state_of_a_listing_that_was_not_kept(stream):
    """What is read page by page has no state, and the error says how to have one."""
    plain = stream()
    iterator = iter(plain)
    assert next(iterator) == 0
    with pytest.raises(ArgumentError, match="page by page and has no state"):
        plain.state_dict()
    assert some(iter(plain), 2) == [0, 1]  # it knows now that it will be asked
    assert plain.state_dict()["consumed"] == 2


def test_another_stream(stream):
    """A state of another order or of other data is refused, and both sides are named."""
    state = stream(shuffle=True, seed=1).state_dict()
    with pytest.raises(LoaderStateError, match=r"seed 1 \(here 2\)"):
        stream(shuffle=True, seed=2).load_state_dict(state)
    with pytest.raises(LoaderStateError, match=r"shuffle True \(here False\)"):
        stream().load_state_dict(state)


def test_bad_options(stream):
    """What is no option is refused by name."""
    with pytest.raises(ArgumentTypeError, match="shuffle must be a bool, got 1"):
        stream(shuffle=1)
    with pytest.raises(ArgumentTypeError, match="seed"):
        stream(seed="x")


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")  # of torch, about torchdata
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader(stream, num_workers: int):
    """Torchdata's loader asks the stream in each worker, and resumes at the next batch."""

    def loader() -> StatefulDataLoader[torch.Tensor]:
        return StatefulDataLoader(stream(shuffle=True, enable_sharding=True), 4, num_workers=num_workers)

    first = loader()
    iterator = iter(first)
    seen = [next(iterator).tolist() for _ in range(3)]
    state = first.state_dict()
    rest = [batch.tolist() for batch in iterator]
    assert sorted(sample for batch in seen + rest for sample in batch) == list(range(_COUNT))
    later = loader()
    later.load_state_dict(state)
    assert [batch.tolist() for batch in later] == rest


class _Epochs:
    """A stream without objects, for arithmetic alone."""

    def __init__(self, samples: int, shuffle: bool, state: dict | None) -> None:
        self.table = ObjectTable(S3BucketKeyData("b", str(index)) for index in range(samples))
        self.cursor = StreamCursor(shuffle=shuffle, seed=3)
        if state is not None:
            self.cursor.load(state, self.table, Selection())

    def read(self, position: Position, count: int) -> tuple[list[int], dict]:
        items = _Items(lambda items: self.cursor.begin(lambda: self.table, items), position)
        read = [int(item.key) for _, item in itertools.islice(items, count)]
        items.delivered = len(read)
        return read, self.cursor.state(lambda: self.table, Selection())


@settings(max_examples=300)
@given(
    samples=st.integers(1, 300),
    shuffle=st.booleans(),
    runs=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), min_size=1, max_size=4),
)
def test_any_number_of_ranks_resumes(samples: int, shuffle: bool, runs: list[tuple[int, int]]):
    """Over runs of other sizes, which are all killed at some time, each sample comes exactly once an epoch."""
    state = None
    seen: list[int] = []
    for world_size, most in runs:
        left = samples - (0 if state is None else state["consumed"])
        count = min(most, left // world_size)  # all ranks have received as many
        answers = [
            _Epochs(samples, shuffle, state).read(Position(rank, world_size), count) for rank in range(world_size)
        ]
        seen += [sample for read, _ in answers for sample in read]
        states = [told for _, told in answers]
        assert all(told == states[0] for told in states)
        state = states[0]
    seen += _Epochs(samples, shuffle, state).read(Position(), samples)[0]
    assert sorted(seen) == list(range(samples))


def test_an_iteration_that_is_interrupted_as_it_begins_begins_once():
    """Whoever goes on after an interrupt there gets the samples of that epoch, and skips none."""
    epochs = _Epochs(10, True, None)
    begun: list[object] = []

    def begin(items: _Items):
        plan = epochs.cursor.begin(lambda: epochs.table, items)
        begun.append(plan)
        if len(begun) == 1:
            raise KeyboardInterrupt
        return plan

    items = _Items(begin, Position())
    with pytest.raises(KeyboardInterrupt):
        next(items)
    assert [int(item.key) for _, item in items] == Shuffled(10, 3, 0).at(range(10))
    assert epochs.cursor.due == Cursor(1)


def test_an_iteration_that_began_later_is_the_newest():
    """The state is that of the iteration that was begun last."""
    epochs = _Epochs(10, False, None)
    assert epochs.read(Position(), 4)[1]["consumed"] == 4
    _, state = epochs.read(Position(), 2)
    assert (state["epoch"], state["consumed"]) == (1, 2)
    assert epochs.cursor.due == Cursor(2)


# --- By S3DataLoader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_a_stream(stream, num_workers: int):
    """It divides a stream among workers, in its order, and resumes it; the states of both are the same."""
    loader = S3DataLoader(stream(shuffle=True, seed=4), batch_size=7, num_workers=num_workers)
    iterator = iter(loader)
    assert [int(sample) for _ in range(3) for sample in next(iterator)] == in_order(0, 4)[:21]
    state = loader.state_dict()
    alone = stream(shuffle=True, seed=4)
    alone.load_state_dict(state)
    assert list(alone) == [int(sample) for batch in iterator for sample in batch] == in_order(0, 4)[21:]
    assert [int(sample) for batch in loader for sample in batch] == in_order(1, 4)


def test_ranks_of_a_loader_of_a_stream(stream):
    """Ranks share it, though the stream does not say so."""
    loaders = [S3DataLoader(stream(), batch_size=5, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(int(sample) for loader in loaders for batch in loader for sample in batch) == list(range(_COUNT))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_its_stream_would(stream, num_workers: int):
    """A state that the stream has loaded before, or an epoch that it was set to, is where the loader begins."""
    before = stream(shuffle=True, seed=4)
    assert some(iter(before), 13) == in_order(0, 4)[:13]
    resumed = stream(shuffle=True, seed=4)
    resumed.load_state_dict(before.state_dict())
    loader = S3DataLoader(resumed, batch_size=7, num_workers=num_workers)
    assert loader.state_dict() == before.state_dict()
    assert [int(sample) for batch in loader for sample in batch] == in_order(0, 4)[13:]
    assert [int(sample) for batch in loader for sample in batch] == in_order(1, 4)
    later = stream(shuffle=True, seed=4)
    later.set_epoch(3)
    assert [int(sample) for batch in S3DataLoader(later, 7) for sample in batch] == in_order(3, 4)
    assert list(before) == in_order(1, 4)
    assert [int(sample) for batch in S3DataLoader(before, 7) for sample in batch] == in_order(0, 4)


def test_a_loader_of_another_order_than_its_stream(stream):
    """A state of samples in order is none of shuffled ones."""
    resumed = stream()
    state = {**resumed.state_dict(), "consumed": 13}
    resumed.load_state_dict(state)
    with pytest.raises(LoaderStateError, match="shuffle"):
        S3DataLoader(resumed, shuffle=True)


def test_a_loader_and_its_stream_have_one_seed(stream):
    """Two seeds contradict each other."""
    with pytest.raises(ArgumentError, match=r"seed=5\) contradicts its dataset, which shuffles by seed 4"):
        S3DataLoader(stream(shuffle=True, seed=4), seed=5)


class _Lines(S3IterableDataset):
    """A stream of several samples of each object."""

    def __iter__(self) -> Iterator[int]:
        return (digit for sample in super().__iter__() for digit in map(int, str(sample)))


def test_a_stream_that_makes_its_samples_itself(s3, folder):
    """It cannot be read by index, and is refused rather than read otherwise."""
    lines = _Lines.from_prefix(folder, region=s3.region, endpoint=s3.endpoint, transform=number)
    with pytest.raises(ArgumentTypeError, match="_Lines has an __iter__"):
        S3DataLoader(lines)
