"""Hugging Face accelerate, which divides the batches of what it prepares."""

from __future__ import annotations

import json
import sys
import types

import pytest
from torch.utils.data import DataLoader

from s3torch import S3BatchSampler, S3DataLoader
from s3torch.datasets.divided import check_divided_once
from s3torch.errors import ArgumentError, LoaderStateError
from tests.engines.launching import ROOT, check, torchrun, train

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes saw."""
    folder = tmp_path_factory.mktemp("accelerate")
    code, output = torchrun(2, str(ROOT / "tests/engines/accelerating.py"), str(folder))
    assert code == 0, output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_prepared_loader_loses_nothing(told):
    """Each sample comes to one of the processes, once."""
    assert sorted(told[0]["loader"] + told[1]["loader"]) == list(range(41))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_its_own_checkpoints_carry_the_state(told, num_workers):
    """What was received before ``save_state`` and after ``load_state`` is each sample once; the next epoch is whole."""
    runs = [each[f"resumed {num_workers}"] for each in told]
    assert [len(run["before"]) for run in runs] == [8, 8]
    assert sorted(sample for run in runs for sample in run["before"] + run["rest"]) == list(range(41))
    assert sorted(sample for run in runs for sample in run["next"]) == list(range(41))


def test_a_sampler_is_not_divided_twice(told):
    """Where accelerate divides, a sampler that divides as well is an error; one that does not is right."""
    for each in told:
        for what in ("sampler", "length"):
            assert "BatchSamplerShard would divide once more what S3BatchSampler has divided among 2" in each[what]
    assert set(told[0]["whole sampler"] + told[1]["whole sampler"]) == set(range(41))


def test_a_stream_is_not_divided_twice(told):
    """So is a stream with shares of its own, in both ways that accelerate has."""
    dispatched, sharded = told[0]["streams"]
    assert "DataLoaderDispatcher would divide once more what S3IterableDataset has divided" in dispatched
    assert "IterableDatasetShard would divide once more what S3IterableDataset has divided" in sharded
    assert told[1]["streams"] == [sharded]


def test_who_else_iterates_is_looked_at(monkeypatch):
    """Only classes of accelerate that divide are refused, however deep, and only if there are several ranks."""
    module = types.ModuleType("accelerate.data_loader")
    source = "class {}:\n    def go(self, call):\n        return call()\n"
    for name in ("BatchSamplerShard", "SkipBatchSampler"):
        exec(source.format(name), module.__dict__)
    monkeypatch.setitem(sys.modules, "accelerate.data_loader", module)

    def divide(world_size: int = 2) -> None:
        check_divided_once(world_size, "A", "b=1")

    divide()
    module.SkipBatchSampler().go(divide)
    module.BatchSamplerShard().go(lambda: divide(1))
    with pytest.raises(
        ArgumentError, match=r"BatchSamplerShard would divide .* what A has .* or make the A with b=1\."
    ):
        module.BatchSamplerShard().go(divide)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_does_not_tell_what_another_one_receives(num_workers):
    """A loader made of its batch sampler is none of its own: no stale state. Its sampler counts what it yields."""
    loader = S3DataLoader(range(20), 4, num_workers=num_workers)
    begin = loader.state_dict()
    other = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)
    iterator = iter(other)
    next(iterator)
    with pytest.raises(LoaderStateError, match="Another DataLoader, made of this one's batch_sampler"):
        loader.state_dict()
    assert loader.batch_sampler.state_dict() == {**begin, "consumed": 4}
    loader.set_epoch(0)
    assert loader.state_dict() == begin
    next(iter(loader))
    assert loader.state_dict() == {**begin, "consumed": 4}


def test_a_loader_that_could_not_start(monkeypatch):
    """After an error at its start, an iteration by another loader is still told from its own."""
    loader = S3DataLoader(range(20), 4)

    def failing(_: object) -> None:
        raise OSError("no processes")

    with monkeypatch.context() as patch:
        patch.setattr(DataLoader, "__iter__", failing)
        with pytest.raises(OSError, match="no processes"):
            next(iter(loader))
    next(iter(loader.batch_sampler))
    with pytest.raises(LoaderStateError):
        loader.state_dict()


def test_a_sampler_of_its_own_counts():
    """One that belongs to no loader counts what it yields."""
    sampler = S3BatchSampler(range(20), 4)
    next(iter(sampler))
    assert sampler.state_dict()["consumed"] == 4


def test_the_example_goes_on(data, tmp_path):
    """Two processes of accelerate are killed, and three go on, by accelerate's own checkpoints."""
    name, *arguments = ["train_accelerate.py", data, str(tmp_path / "run")]
    killed = train(name, tmp_path / "killed", 2, *arguments, kill=True)
    check(killed, train(name, tmp_path / "later", 3, *arguments, "--save-every=1000"))


def test_the_example_of_transformers_goes_on(data, tmp_path):
    """Two processes of a Trainer are killed, and two go on where it was, by the Trainer's own checkpoints."""
    pytest.importorskip("transformers")
    name, *arguments = ["train_transformers.py", data, str(tmp_path / "run")]
    killed = train(name, tmp_path / "killed", 2, *arguments, kill=True)
    check(killed, train(name, tmp_path / "later", 2, *arguments))
