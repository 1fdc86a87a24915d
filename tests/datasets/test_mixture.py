"""S3Mixture: exact proportions, whole passes, and the same samples whoever reads them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch import S3DataLoader, S3IterableDataset, S3MapDataset
from s3torch.datasets import S3Mixture, Skip
from s3torch.datasets.cursor import Cursor, share_of
from s3torch.datasets.order import Shuffled
from s3torch.errors import ArgumentError, ArgumentTypeError, EmptyDatasetError, LoaderStateError
from s3torch.testing import FaultyServer

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch, about few cores


def named(name: str, count: int) -> list[str]:
    """Return a dataset of samples that tell where they come from."""
    return [f"{name}{number}" for number in range(count)]


parts = st.lists(st.tuples(st.integers(1, 25), st.integers(0, 6)), min_size=1, max_size=4).filter(
    lambda parts: any(weight for _, weight in parts)
)


def mixed(parts: list[tuple[int, int]], **options: object) -> S3Mixture[str]:
    """Return a mixture of datasets of these lengths and weights."""
    return S3Mixture([(named("abcd"[at], count), weight) for at, (count, weight) in enumerate(parts)], **options)


def counts_of(samples: list[str], parts: list[tuple[int, int]]) -> list[int]:
    """Return how many samples came of each dataset."""
    found = Counter(sample[0] for sample in samples)
    return [found["abcd"[at]] for at in range(len(parts))]


@given(parts, st.sampled_from(["first", "longest", "never"]), st.booleans(), st.integers())
def test_proportions_and_passes(parts, stop, shuffle, seed):
    """Each beginning has the proportions; each pass over a dataset has each sample once, also over epochs."""
    mixture = mixed(parts, stop=stop, shuffle=shuffle, seed=seed)
    length, total = len(mixture), sum(weight for _, weight in parts)
    epochs = [mixture.__getitems__(mixture.order(epoch).at(range(length))) for epoch in range(3)]
    for epoch in epochs:
        for places in range(length + 1):
            for (_, weight), count in zip(parts, counts_of(epoch[:places], parts), strict=True):
                assert abs(count * total - places * weight) < total
    everything = list(itertools.chain(*epochs))
    for at, (count, _) in enumerate(parts):
        own = [sample for sample in everything if sample[0] == "abcd"[at]]
        for first in range(0, len(own) - count + 1, count):
            assert sorted(own[first : first + count]) == sorted(named("abcd"[at], count))


@given(parts)
def test_where_an_epoch_ends(parts):
    """With "first" one dataset is through at the last sample and none was before; with "longest" all are, just then."""
    for stop in ("first", "longest"):
        samples = list(mixed(parts, stop=stop))
        due = any if stop == "first" else all

        def is_through(samples: list[str], due=due) -> bool:
            found = counts_of(samples, parts)
            return due(count >= length for count, (length, weight) in zip(found, parts, strict=True) if weight)

        assert is_through(samples)
        assert not is_through(samples[:-1])
    assert len(mixed(parts, stop="never")) == sum(length for length, _ in parts)
    assert len(mixed(parts, stop="never", samples=7)) == 7


@given(parts, st.data())
def test_who_reads_it_does_not_matter(parts, data):
    """Jobs of any number of ranks, one after the other, read each sample of an epoch exactly once."""
    mixture = mixed(parts, stop="longest")
    epoch = data.draw(st.integers(0, 5))
    order, begin, found = mixture.order(epoch), Cursor(epoch), []
    while begin.consumed < len(mixture):
        world, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
        shares = [share_of(begin, len(mixture), rank=rank, world_size=world, batch_size=batch) for rank in range(world)]
        steps = data.draw(st.integers(1, len(shares[0])))
        found += [order[place] for share in shares for place in share.places[: steps * batch]]
        begin = shares[0].after(steps)
    assert sorted(found) == [epoch * len(mixture) + place for place in range(len(mixture))]
    assert mixture.__getitems__(found) == [mixture[index] for index in found]


def test_indices():
    """Indices count from the end of an epoch, too, and go on behind it; an iteration is one epoch."""
    mixture = S3Mixture([(named("a", 3), 1), (named("b", 5), 1)], shuffle=False)
    assert list(mixture) == ["a0", "b0", "a1", "b1", "a2"]
    assert mixture[-1] == mixture[4] == "a2"
    assert [mixture[index] for index in range(5, 10)] == ["a0", "b2", "a1", "b3", "a2"]
    with pytest.raises(IndexError, match="there are 5 samples"):
        mixture[-6]


def test_each_pass_has_an_order_of_its_own():
    """A dataset is shuffled by seed and pass, and not as its neighbour."""
    mixture = S3Mixture([(list(range(50)), 1), (list(range(50)), 1)], stop="longest", seed=3)
    samples = mixture.__getitems__(list(range(400)))
    assert samples[0:100:2] == Shuffled(50, 3, 0, 0).at(range(50))
    assert samples[100:200:2] == Shuffled(50, 3, 1, 0).at(range(50))
    assert samples[1:100:2] == Shuffled(50, 3, 0, 1).at(range(50)) != samples[0:100:2]


# --- Of objects ------------------------------------------------------------------------------------------------------


def text(reader) -> str:
    """Return what an object says."""
    return reader.read().decode()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """Two folders of objects that say their keys."""
    names = [*named("a/", 40), *named("b/", 20)]
    with FaultyServer({name: name.encode() for name in names}) as server:
        yield server


def dataset_of(server: FaultyServer, folder: str, count: int, transform=text, **options: object) -> S3MapDataset[str]:
    """Return a dataset of a folder."""
    return S3MapDataset.from_objects(
        [f"s3://bucket/{name}" for name in named(folder, count)],
        region="us-east-1",
        endpoint=server.endpoint,
        s3client_config=replace(server.config, hedging=False),  # requests are counted
        transform=transform,
        **options,
    )


@pytest.fixture
def datasets(server) -> Iterator[list[S3MapDataset[str]]]:
    """A dataset of each folder."""
    datasets = [dataset_of(server, "a/", 40), dataset_of(server, "b/", 20)]
    yield datasets
    for each in datasets:
        each.client.close()


def mixture_of(datasets: list[S3MapDataset[str]], **options: object) -> S3Mixture[str]:
    """Return three of one with one of the other."""
    return S3Mixture(zip(datasets, (3, 1), strict=True), **{"stop": "longest", **options})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_is_loaded_and_resumed(datasets, num_workers):
    """Workers read it; another number of them and another batch size go on with the very next sample, over epochs."""
    mixture = mixture_of(datasets)
    due = [mixture.__getitems__(mixture.order(epoch).at(range(len(mixture)))) for epoch in range(2)]
    assert len(due[0]) >= 60
    loader = S3DataLoader(mixture, batch_size=7, num_workers=num_workers)
    batches = iter(loader)
    assert [each for _ in range(3) for each in next(batches)] == due[0][:21]
    state = json.loads(json.dumps(loader.state_dict()))
    later = S3DataLoader(mixture_of(datasets), batch_size=4, num_workers=1)
    later.load_state_dict(state)
    assert [each for batch in later for each in batch] == due[0][21:]
    assert [each for batch in later for each in batch] == due[1]


def test_ranks_share_it(datasets):
    """Over all ranks each sample comes once."""
    mixture = mixture_of(datasets)
    loaders = [S3DataLoader(mixture, batch_size=5, rank=rank, world_size=3) for rank in range(3)]
    found = [each for loader in loaders for batch in loader for each in batch]
    assert Counter(found) == Counter(mixture)


def test_the_next_batch_is_begun(server, datasets):
    """While a sample of one dataset is made, the next samples of the other have been asked for, each once."""
    seen = []

    def transform(reader) -> str:
        seen.append(datasets[1].client.stats.requests)
        return text(reader)

    first = dataset_of(server, "a/", 40, transform)
    mixture = mixture_of([first, datasets[1]], shuffle=False)
    loader = S3DataLoader(mixture, batch_size=8)
    batches = iter(loader)
    next(batches)
    begun = datasets[1].client.stats.requests
    assert begun > 2  # more than this batch had of it
    seen.clear()
    next(batches)
    assert seen
    assert min(seen) == begun
    list(batches)
    assert first.client.stats.requests + datasets[1].client.stats.requests == len(mixture)
    first.client.close()


def test_samples_that_are_skipped(server, datasets):
    """What a dataset of it does with bad samples holds; a batch is short by them, or filled."""
    server.objects["b/3"] = b"\xff"
    for fill in (False, True):
        lenient = dataset_of(server, "b/", 20, on_error=Skip(fill=fill))
        mixture = mixture_of([datasets[0], lenient])
        found = [each for batch in S3DataLoader(mixture, batch_size=16) for each in batch]
        assert len(found) == len(mixture) - (0 if fill else lenient.skipped)
        assert lenient.skipped > 0
        assert "b/3" not in found
        lenient.client.close()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"stop": "first"},
        {"shuffle": False},
    ],
)
def test_the_state_of_another_mixture(datasets, other):
    """A state of other options, or of other data, is refused."""
    state = S3DataLoader(mixture_of(datasets)).state_dict()
    assert len(json.dumps(state)) < 1000
    for mixture in (mixture_of(datasets, **other), mixture_of(datasets[::-1]), S3Mixture([(datasets[0], 1)])):
        with pytest.raises(LoaderStateError, match="digest"):
            S3DataLoader(mixture).load_state_dict(state)


# --- What cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "options", "error", "message"),
    [
        ([], {}, ArgumentError, "at least 1 dataset, got 0"),
        ([([1], -1), ([2], 1)], {}, ArgumentError, r"got -1 among \[-1, 1\]"),
        ([([1], 0)], {}, ArgumentError, r"above 0, got \[0\]"),
        ([([1], 1)], {"stop": "last"}, ArgumentError, "'first', 'longest', 'never', got 'last'"),
        ([([1], 1)], {"samples": 5}, ArgumentError, "samples=5 and stop='first' do not fit"),
        ([([1], 1)], {"samples": 0, "stop": "never"}, ArgumentError, "samples=0"),
        ([([1], 1)], {"shuffle": 1}, ArgumentTypeError, "shuffle must be a bool"),
        ([([1], 1)], {"seed": "1"}, ArgumentTypeError, "seed must be an integer"),
        ([[1]], {}, ArgumentTypeError, "pairs"),
        (5, {}, ArgumentTypeError, "pairs"),
        ([(S3IterableDataset.from_objects([]), 1)], {}, ArgumentTypeError, "sharding off"),
        ([(5, 1)], {}, ArgumentTypeError, "got 5"),
    ],
)
def test_wrong_arguments(parts, options, error, message):
    """What cannot be mixed is refused with its value."""
    with pytest.raises(error, match=message):
        S3Mixture(parts, **options)


def test_a_dataset_without_samples():
    """A dataset without samples can only have the weight 0."""
    with pytest.raises(EmptyDatasetError, match="Dataset 1 of the mixture has no sample, and weight 1 of 3"):
        len(S3Mixture([([1], 2), ([], 1)]))
    assert list(S3Mixture([([1], 2), ([], 0)])) == [1]


def test_a_loader_does_not_shuffle_it():
    """To shuffle it as a whole would lose the proportions."""
    with pytest.raises(ArgumentError, match="an order of its own"):
        S3DataLoader(S3Mixture([([1, 2], 1)]), shuffle=True)
