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


def test_its_data_loader_goes_on(source):
    """The DataLoader of Grain reads all once, and a state of it leads another one on."""

    def loader() -> object:
        sampler = grain.samplers.IndexSampler(SAMPLES, grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=1)
        return grain.DataLoader(data_source=source, sampler=sampler, read_options=grain.ReadOptions(num_threads=16))

    iterator = iter(loader())
    before = [next(iterator) for _ in range(20)]
    state = iterator.get_state()
    later = iter(loader())
    later.set_state(state)
    rest = list(later)
    assert rest == list(iterator)
    assert sorted(before + rest) == list(range(SAMPLES))


def test_shards_of_grain_are_disjoint(source):
    """Grain divides a source itself: each process takes a slice."""
    parts = [list(grain.MapDataset.source(source)[rank::3]) for rank in range(3)]
    assert sorted(sum(parts, [])) == list(range(SAMPLES))


def test_the_example(data):
    """It runs as it is, and reads each sample once."""
    program = [sys.executable, str(ROOT / "examples/read_grain.py"), data]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{SAMPLES} samples of {SAMPLES} in {SAMPLES // 4} batches\n", done.stderr
