"""Grain, whose data source a map dataset is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s3torch import S3MapDataset, S3Reader
from tests.engines.launching import ROOT, SAMPLES

grain = pytest.importorskip("grain")


def number(reader: S3Reader) -> int:
    """Return which sample an object is."""
    return int.from_bytes(reader.read()[:2], "big")


@pytest.fixture
def source(data):
    """The samples."""
    return S3MapDataset.from_prefix(data, transform=number)


def test_a_map_dataset_is_a_data_source(source):
    """By Grain's own protocol; and its text says the same in each process, as checkpoints of Grain compare it."""
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert len(source) == SAMPLES


def test_threads_of_grain_read_each_sample_once(source):
    """Sixteen threads share a dataset; the samples come in Grain's order, each once."""
    pipeline = grain.MapDataset.source(source).shuffle(seed=1)
    read = list(pipeline.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=64)))
    assert sorted(read) == list(range(SAMPLES))
    order = list(grain.MapDataset.range(SAMPLES).shuffle(seed=1))
    assert read == order


def loader_of(source: S3MapDataset[int]) -> object:
    """Return a DataLoader of Grain."""
    sampler = grain.samplers.IndexSampler(len(source), grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=1)
    return grain.DataLoader(data_source=source, sampler=sampler, read_options=grain.ReadOptions(num_threads=16))


def test_its_data_loader_goes_on(data):
    """The DataLoader of Grain reads all once, and a state of it leads another one on, whose dataset lists anew."""

    def loader() -> object:
        return loader_of(S3MapDataset.from_prefix(data, transform=number))

    iterator = iter(loader())
    before = [next(iterator) for _ in range(20)]
    state = iterator.get_state()
    later = iter(loader())
    later.set_state(state)
    rest = list(later)
    assert rest == list(iterator)
    assert sorted(before + rest) == list(range(SAMPLES))


def test_its_data_loader_refuses_the_state_of_other_data(data):
    """Grain compares the text of its source, which says which objects they are, and not only how many."""
    uris = [f"{data}{place:03}" for place in range(10)]
    iterator = iter(loader_of(S3MapDataset.from_objects(uris, transform=number)))
    next(iterator)
    state = iterator.get_state()
    other = iter(loader_of(S3MapDataset.from_objects(uris[::-1], transform=number)))
    with pytest.raises(ValueError, match="DataSource in checkpoint does not match"):
        other.set_state(state)


def test_shards_of_grain_are_disjoint(source):
    """Grain divides a source itself: each process takes a slice."""
    parts = [list(grain.MapDataset.source(source)[rank::3]) for rank in range(3)]
    assert sorted(sample for part in parts for sample in part) == list(range(SAMPLES))


def test_the_example(data):
    """It runs as it is, and reads each sample once."""
    program = [sys.executable, str(ROOT / "examples/read_grain.py"), data]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{SAMPLES} samples of {SAMPLES} in {SAMPLES // 4} batches\n", done.stderr
