"""LookAheadBatchSampler: the batches of another sampler, each with what comes next."""

from __future__ import annotations

import copy
import importlib
import pickle
from pathlib import Path

import lightning
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from s3torch.datasets.sampling import Batch, LookAheadBatchSampler
from s3torch.errors import ArgumentError, ArgumentTypeError


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


@pytest.mark.parametrize("numbers", [{"num_workers": "2"}, {"batches_ahead": 1.5}])
def test_no_numbers(numbers: dict[str, object]):
    """What is no whole number is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError, match=f"{next(iter(numbers))} must be an integer"):
        LookAheadBatchSampler(batches(), **numbers)


def test_no_batches():
    """What yields nothing at all is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError, match="batch_sampler must yield lists of indices, got 5"):
        LookAheadBatchSampler(5)


# --- Attributes, and frameworks that look for them -------------------------------------------------------------------


class Counted(DistributedSampler):
    """A sampler of the first of two ranks, which notes the epochs that it is told."""

    def __init__(self, samples: range = range(20)) -> None:
        super().__init__(samples, num_replicas=2, rank=0, seed=7)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)
        super().set_epoch(epoch)


def test_attributes_are_those_of_the_wrapped_sampler():
    """What the wrapped sampler has can be read and set; what it has not is named."""
    inner = batches()
    sampler = LookAheadBatchSampler(inner)
    assert (sampler.sampler, sampler.batch_size, sampler.drop_last) == (inner.sampler, 2, False)
    sampler.sampler = range(3)
    assert list(inner) == list(sampler) == [[0, 1], [2]]
    with pytest.raises(AttributeError, match="'BatchSampler' object has no attribute 'set_epoch'"):
        _ = sampler.set_epoch
    with pytest.raises(AttributeError, match="'LookAheadBatchSampler' object has no attribute '__pl_saved_args'"):
        getattr(sampler, "__pl_saved_args")  # else it were mangled in a class
    for again in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert list(again) == [[0, 1], [2]]


class Order(lightning.LightningModule):
    """Notes the batches that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[list[int]]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: torch.Tensor, _number: int) -> torch.Tensor:
        self.seen[-1].append(batch.tolist())
        return self.weight.sum()

    def predict_step(self, batch: torch.Tensor, _number: int) -> list[int]:
        return batch.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _trainer(folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches
def test_lightning_tells_the_sampler_each_epoch(tmp_path: Path):
    """Lightning finds the distributed sampler: epochs come in different orders, those of the sampler alone."""
    samples = list(range(20))
    distributed = Counted()
    sampler = LookAheadBatchSampler(BatchSampler(distributed, 2, drop_last=False))
    order = Order()
    _trainer(tmp_path).fit(order, DataLoader(samples, batch_sampler=sampler))
    expected = []
    for epoch in (0, 1):
        alone = Counted()
        alone.set_epoch(epoch)
        expected.append(list(BatchSampler(alone, 2, drop_last=False)))
    assert distributed.epochs == [0, 1]
    assert order.seen == expected
    assert expected[0] != expected[1]


@pytest.mark.filterwarnings("ignore")
def test_lightning_predicts(tmp_path: Path):
    """Predictions of Lightning, which makes the batch sampler anew for them, are those of all samples."""
    sampler = LookAheadBatchSampler(BatchSampler(SequentialSampler(range(7)), 2, drop_last=True))
    loader = DataLoader(list(range(7)), batch_sampler=sampler)
    assert _trainer(tmp_path).predict(Order(), loader) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("module", ["lightning.pytorch.utilities.data", "lightning.fabric.utilities.data"])
def test_lightning_divides_samples_among_ranks(module: str):
    """Lightning makes it anew of a distributed sampler: its batches come, nothing ahead of them, and a warning."""
    sampler = LookAheadBatchSampler(batches(2, 20), num_workers=2)
    loader = DataLoader(range(20), batch_sampler=sampler, num_workers=2)
    with pytest.warns(UserWarning, match=r"without num_workers, as Lightning does: nothing is begun ahead"):
        again = importlib.import_module(module)._update_dataloader(loader, Counted())
    assert type(again.batch_sampler) is LookAheadBatchSampler
    assert list(again.batch_sampler) == list(BatchSampler(Counted(), 2, drop_last=False))
    assert all(batch.upcoming == [] for batch in again.batch_sampler)


def test_of_a_sampler():
    """Made of a sampler and a batch size, with the number of workers, it begins ahead as ever."""
    sampler = LookAheadBatchSampler(range(7), batch_size=2, drop_last=True, num_workers=0)
    assert [(list(batch), batch.upcoming) for batch in sampler] == [([0, 1], [2, 3]), ([2, 3], [4, 5]), ([4, 5], [])]


def test_no_length():
    """Without a length of the wrapped sampler there is none."""
    with pytest.raises(TypeError, match="no length"):
        len(LookAheadBatchSampler(iter([[0], [1]])))
