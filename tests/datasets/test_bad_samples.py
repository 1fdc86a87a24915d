"""What a bad sample does: its error names it, or it is skipped, counted and bounded; batches and windows go on."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, StackDataset, default_collate

from s3torch import LookAheadBatchSampler, S3DataLoader, S3IterableDataset, S3MapDataset
from s3torch.datasets import SKIP, Skip
from s3torch.datasets.bad_samples import BadSamples
from s3torch.datasets.objects import S3BucketKeyData
from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    ArgumentTypeError,
    BadSamplesError,
    BucketNotFoundError,
    ConnectionFailedError,
    IntegrityError,
    ObjectNotFoundError,
    S3Error,
)
from s3torch.testing import FaultyServer
from tests.support.collecting import collect_what_others_left
from tests.support.environment import forget_pauses
from tests.support.iterating import taken

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch, about few cores
_COUNT = 40
BAD = {3, 4, 17}
ALL_OF_A_BATCH = {8, 9, 10, 11, 12}
_SHOWN = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not show notes")


class BrokenError(Exception):
    """What the transform of these tests raises."""


def number(reader) -> int:
    """Return what an object says."""
    content = reader.read()
    if content.startswith(b"bad"):
        raise BrokenError(content.decode())
    return int(content)


class Stored:
    """A bucket of numbered objects, and datasets of it.

    Attributes:
        server: Where it is.
    """

    def __init__(self, server: FaultyServer) -> None:
        self.server = server
        self.datasets: list[Any] = []

    def break_(self, *numbers: int) -> None:
        """Make these objects such as no transform can read."""
        for each in numbers:
            self.server.objects[f"{each:03}"] = b"bad %d" % each

    def dataset(self, kind: Callable[..., Any] = S3MapDataset, **options: object) -> Any:
        """Return a dataset of the objects."""
        if kind is not Labelled:  # which makes its samples of readers itself
            options = {"transform": number, **options}
        self.datasets.append(
            kind.from_objects(
                [f"s3://bucket/{each:03}" for each in range(_COUNT)],
                region="us-east-1",
                endpoint=self.server.endpoint,
                s3client_config=replace(self.server.config, hedging=False),  # requests are counted
                **options,
            )
        )
        return self.datasets[-1]


@pytest.fixture
def stored() -> Iterator[Stored]:
    """40 objects, each of which holds its number, but for three that are broken."""
    with FaultyServer({f"{each:03}": b"%d" % each for each in range(_COUNT)}) as server:
        stored = Stored(server)
        stored.break_(*BAD)
        yield stored
        for dataset in stored.datasets:
            dataset.client.close()


def pending(dataset) -> int:
    """Return how many requests of a dataset are in flight or queued."""
    return sum(engine.pending for engine in dataset.client._access.engines)


GOOD = [each for each in range(_COUNT) if each not in BAD]


# --- Raise ------------------------------------------------------------------------------------------------------------


@_SHOWN
@pytest.mark.parametrize("make", [lambda dataset: dataset[3], lambda dataset: dataset.__getitems__([1, 3, 5])])
def test_an_error_names_the_sample(stored, make):
    """The error of a transform is the same object as it was, and is shown with object, index and its own lines."""
    with pytest.raises(BrokenError) as caught:
        make(stored.dataset())
    assert caught.value.args == ("bad 3",)
    text = "".join(traceback.format_exception(caught.value))
    assert text.endswith("BrokenError: bad 3\nSample 3, s3://bucket/003\n")
    assert "raise BrokenError(content.decode())" in text


def test_the_index_counts_from_the_front(stored):
    """So it does where a program has counted from the end."""
    with pytest.raises(BrokenError) as caught:
        stored.dataset()[3 - _COUNT]
    assert caught.value.__notes__ == ["Sample 3, s3://bucket/003"]


@_SHOWN
@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
def test_an_error_names_the_worker(stored, kind):
    """What arrives of it from a DataLoader worker has all of that, too."""
    dataset = stored.dataset(kind, transform=number)
    batches = iter(DataLoader(dataset, 4, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(BrokenError, match="Sample 3, s3://bucket/003, in DataLoader worker 0") as caught:
        list(batches)
    batches._shutdown_workers()  # the collector, to which the error would leave them, waits for each for 5 s
    assert "raise BrokenError(content.decode())" in str(caught.value)


def test_an_error_of_ours_is_named_too(stored):
    """An object that is missing is a sample with an index as well."""
    del stored.server.objects["005"]
    with pytest.raises(ObjectNotFoundError) as caught:
        stored.dataset().__getitems__([5])
    assert caught.value.__notes__ == ["Sample 5, s3://bucket/005"]


def test_where_notes_are_not_shown(stored, caplog, monkeypatch):
    """Python 3.10 does not print notes: there a line in the log names the sample, once."""
    monkeypatch.setattr("s3torch.datasets.bad_samples._SHOWS_NOTES", False)
    with pytest.raises(BrokenError):
        stored.dataset().__getitems__([3])
    assert caplog.messages == ["Sample 3, s3://bucket/003 cannot be made: BrokenError: bad 3"]


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that nothing can be set in."""

    message: str


def test_an_error_that_takes_no_note(stored, caplog):
    """An error that takes no note is raised as it is, and the log names the sample."""

    def transform(reader) -> None:
        raise FrozenError(reader.key)

    with contextlib.suppress(FrozenError):  # pytest would set its traceback
        stored.dataset(transform=transform)[0]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Sample 0, s3://bucket/000 cannot be made: FrozenError")


def test_an_error_that_is_kept(stored):
    """One error that is raised again and again has the note of the last time, beside those of the program."""
    error = BrokenError("always this one")
    error.__notes__ = ["mine"]

    def transform(reader) -> None:
        raise error

    dataset = stored.dataset(transform=transform)
    for index in range(3):
        with contextlib.suppress(BrokenError):
            dataset[index]
    assert error.__notes__ == ["mine", "Sample 2, s3://bucket/002"]
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == error.__notes__
    assert {type(note) for note in again.__notes__} == {str}


@pytest.mark.parametrize("index", [_COUNT, -_COUNT - 1])
@pytest.mark.parametrize("on_error", ["raise", "skip", lambda error, item, index: SKIP])
def test_an_index_that_is_none(stored, index, on_error):
    """An index out of range is no bad sample: it is raised, whatever happens to those."""
    dataset = stored.dataset(on_error=on_error)
    labelled = stored.dataset(Labelled, on_error=on_error)
    for make in (
        dataset.__getitem__,
        lambda index: dataset.__getitems__([index]),
        lambda index: labelled.__getitems__([index]),
    ):
        with pytest.raises(IndexError):
            make(index)
    assert dataset.skipped == labelled.skipped == 0


# --- Skip in batches --------------------------------------------------------------------------------------------------


def test_a_batch_is_short_by_what_was_skipped(stored, caplog):
    """A sample that cannot be made is left out, logged with object, index and error, and counted."""
    dataset = stored.dataset(on_error="skip")
    assert dataset.__getitems__([1, 2, 3, 4, 5]) == [1, 2, 5]
    assert dataset.skipped == 2
    assert caplog.messages == [
        "Sample 3, s3://bucket/003 was skipped (1 of 3 that this process has read): BrokenError: bad 3",
        "Sample 4, s3://bucket/004 was skipped (2 of 4 that this process has read): BrokenError: bad 4",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize("ahead", [1, 3])
def test_all_others_go_on(stored, ahead):
    """What was begun beside a bad sample goes on: each object is requested once, and nothing is left in flight."""
    dataset = stored.dataset(on_error="skip")
    batches = [list(range(first, first + 5)) for first in range(0, _COUNT, 5)]
    found = [dataset.__getitems__(batch) for batch in LookAheadBatchSampler(batches, batches_ahead=ahead)]
    assert [each for batch in found for each in batch] == GOOD
    assert dataset.client.stats.requests == _COUNT
    assert pending(dataset) == 0
    assert list(dataset._windows) == []


def test_another_fills_in(stored):
    """With ``fill`` the next good sample by index takes the place; behind the last comes the first."""
    stored.break_(_COUNT - 1, 0)
    dataset = stored.dataset(on_error=Skip(fill=True))
    assert dataset.__getitems__([2, 3, 6, _COUNT - 1]) == [2, 5, 6, 1]
    assert dataset[3] == 5
    assert dataset[-1] == 1


@pytest.mark.parametrize("fill", [False, True])
def test_a_batch_never_is_empty(stored, fill):
    """If no sample of a batch can be made, another takes the place of one: nobody can collate nothing."""
    stored.break_(*ALL_OF_A_BATCH)
    dataset = stored.dataset(on_error=Skip(share=1.0, fill=fill))
    assert dataset.__getitems__([8, 9, 10]) == [13] * (3 if fill else 1)
    assert dataset.__getitems__([]) == []
    loader = S3DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    sizes = [len(batch) for batch in loader]
    assert len(sizes) == 8
    assert min(sizes) >= 1
    assert sum(sizes) == _COUNT if fill else sum(sizes) < _COUNT


def test_an_index_is_one_sample(stored):
    """A single index cannot be shorter: without ``fill`` its error is raised."""
    with pytest.raises(BrokenError, match="bad 3"):
        stored.dataset(on_error="skip")[3]


def test_the_loop_resumes_behind_what_was_skipped(stored):
    """The cursor counts what was due, so a job goes on with exactly what was not, whatever was skipped."""
    dataset = stored.dataset(on_error="skip")
    first = S3DataLoader(dataset, batch_size=6, shuffle=True, seed=3)
    batches = iter(first)
    found = [each for _ in range(3) for each in next(batches).tolist()]
    later = S3DataLoader(dataset, batch_size=4, shuffle=True, seed=3)
    later.load_state_dict(first.state_dict())
    found += [each for batch in later for each in batch.tolist()]
    assert sorted(found) == GOOD


class Labelled(S3MapDataset):
    """A dataset that makes its samples of readers itself."""

    def __getitem__(self, index):
        return index, number(super().__getitem__(index))


class Halved(S3MapDataset):
    """A dataset whose indices are others than those of its objects, and whose transform may fail."""

    def __len__(self) -> int:
        return super().__len__() // 2

    def __getitem__(self, index):
        return super().__getitem__(2 * index)


@pytest.mark.parametrize("fill", [False, True])
def test_subclasses(stored, fill, caplog):
    """So it is with samples that a subclass makes, of readers or of what the transform made."""
    dataset = stored.dataset(Labelled, on_error=Skip(fill=fill))
    assert dataset.__getitems__([1, 3, 6]) == [(1, 1), *([(5, 5)] * fill), (6, 6)]
    assert dataset.__getitems__([3, 4])[0] == (5, 5)
    assert "Sample 3, s3://bucket/003 was skipped" in caplog.messages[0]
    caplog.clear()
    halved = stored.dataset(Halved, on_error=Skip(fill=fill))
    assert halved.__getitems__([1, 2, 3]) == [2, *([6] * fill), 6]  # 5 is none of its samples
    assert caplog.messages[0].startswith("Sample 4, s3://bucket/004 was skipped (1 of")
    assert len(caplog.messages) == 1


class Paired(S3MapDataset):
    """A dataset that adds to each sample what it knows of its index, such as a label."""

    def __getitem__(self, index):
        return super().__getitem__(index), index


def test_what_a_subclass_adds_stays_with_its_sample(stored):
    """What fills in comes as a whole, with its own label; a single index of such a subclass has nothing to fill in."""
    dataset = stored.dataset(Paired, on_error=Skip(fill=True))
    assert dataset.__getitems__([2, 3, 5]) == [(2, 2), (5, 5), (5, 5)]
    assert dataset.skipped == 2
    with pytest.raises(BrokenError, match="bad 3"):
        dataset[3]
    assert dataset.skipped == 2


@pytest.mark.parametrize("on_error", [Skip(share=1.0), Skip(share=1.0, fill=True)])
def test_samples_that_are_put_together_belong_together(stored, on_error):
    """A StackDataset gets no sample of another index: what was skipped is an error there, alone and in batches."""
    images, masks = stored.dataset(on_error=on_error), stored.dataset(transform=lambda reader: reader.key)
    for stack in (StackDataset(images, masks), StackDataset(image=images, mask=masks)):
        assert len(stack.__getitems__([1, 2])) == 2
        for batch in ([3], [2, 3, 5], [3, 4]):
            with pytest.raises(BadSamplesError, match="were skipped, as the log says, and StackDataset would put"):
                stack.__getitems__(batch)
        with pytest.raises(BrokenError, match="bad 3"):
            stack[3]
    replaced = stored.dataset(on_error=lambda error, item, index: -index)
    assert StackDataset(replaced, masks).__getitems__([2, 3]) == [(2, "002"), (-3, "003")]


@_SHOWN
def test_an_error_of_a_subclass_is_named(stored):
    """The error of a subclass's own lines names the object as well."""
    with pytest.raises(BrokenError) as caught:
        stored.dataset(Labelled).__getitems__([3])
    assert caught.value.__notes__ == ["Sample 3, s3://bucket/003"]


# --- Skip in streams --------------------------------------------------------------------------------------------------


def _stream(stored: Stored, **options: object) -> S3IterableDataset:
    return stored.dataset(S3IterableDataset, **options)


def test_a_stream_goes_on(stored, caplog):
    """A stream is shorter by what was skipped; what was begun goes on, and nothing is requested twice."""
    dataset = _stream(stored, on_error="skip")
    assert list(dataset) == GOOD
    assert dataset.skipped == len(BAD)
    assert dataset.client.stats.requests == _COUNT
    assert pending(dataset) == 0
    assert caplog.messages[0].startswith("Sample 3, s3://bucket/003 was skipped (1 of 4 ")


def test_the_window_gets_its_room_back(stored):
    """What was skipped counts for nothing in the window any more."""
    samples = iter(_stream(stored, on_error=Skip(fill=True)))
    assert [next(samples) for _ in range(6)] == [0, 1, 2, 2, 2, 5]
    window = samples._window
    assert window._bytes == sum(begun.footprint for begun in window) > 0
    samples.close()
    dataset = stored.dataset(on_error="skip")
    window = dataset._new_look_ahead()
    dataset._new_look_ahead = lambda: window
    dataset.__getitems__([2, 3, 4])
    assert window._bytes == 0


@pytest.mark.parametrize(
    ("bad", "due"),
    [({3, 4}, [0, 1, 2, 2, 2, 5]), ({0, 1}, [2, 2, 2, 3]), ({39}, [0, 1])],
)
def test_a_stream_is_filled(stored, bad, due):
    """With ``fill`` as many samples come as there are objects: a good one beside each bad one comes once more."""
    for each in BAD:
        stored.server.objects[f"{each:03}"] = b"%d" % each
    stored.break_(*bad)
    dataset = _stream(stored, on_error=Skip(fill=True))
    found = list(dataset)
    assert len(found) == _COUNT
    assert found[: len(due)] == due
    assert set(found) == set(range(_COUNT)) - bad
    assert dataset.client.stats.requests == _COUNT + len(bad)


def test_workers_and_ranks_of_a_filled_stream(stored):
    """Each worker fills its own share, so all have as many samples as objects; the index is that among all."""
    dataset = _stream(stored, on_error=Skip(fill=True), enable_sharding=True)
    loader = DataLoader(dataset, None, num_workers=3, multiprocessing_context="fork")
    found = list(loader)
    assert len(found) == _COUNT
    assert set(found) == set(GOOD)


def test_the_index_of_a_stream_is_that_among_all(stored, caplog, monkeypatch):
    """A rank names the samples by their numbers among those of all ranks."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(_stream(stored, on_error="skip", enable_sharding=True)) == [each for each in GOOD if each % 2]
    assert [message.partition(" was")[0] for message in caplog.messages] == [
        "Sample 3, s3://bucket/003",
        "Sample 17, s3://bucket/017",
    ]


def test_a_stream_without_a_good_sample(stored):
    """If nothing can fill in, that is said once; then the stream is at its end."""
    stored.break_(*range(_COUNT))
    samples = iter(_stream(stored, on_error=Skip(share=1.0, fill=True)))
    found, errors = taken(samples, BadSamplesError)
    assert found == []
    assert [str(error) for error in errors] == [
        f"{_COUNT} samples of this stream cannot be made, and there is no good one to fill in for them."
    ]
    assert list(_stream(stored, on_error=Skip(share=1.0))) == []


def test_a_good_sample_that_turns_bad(stored):
    """What was good and cannot be read again is not asked for a third time: the next good one fills in."""
    reads = []

    def transform(reader) -> int:
        reads.append(reader.key)
        if reads.count("002") == 2 and reader.key == "002":
            raise BrokenError("bad at second sight")
        return number(reader)

    found = list(_stream(stored, on_error=Skip(fill=True), transform=transform))
    assert found[:6] == [0, 1, 2, 5, 5, 5]
    assert len(found) == _COUNT


def test_a_filled_stream_keeps_its_length_over_jobs(stored):
    """What is owed when a job ends comes in the next one. The state counts samples, which all ranks have as many of."""
    stored.break_(0, 1)
    for received in range(5):
        dataset = _stream(stored, on_error=Skip(fill=True))
        samples = iter(dataset)
        found = [next(samples) for _ in range(received)]
        state = dataset.state_dict()
        assert state["consumed"] == received
        later = _stream(stored, on_error=Skip(fill=True))
        later.load_state_dict(state)
        found += later
        assert len(found) == _COUNT
        assert set(found) == set(GOOD) - {0, 1}


def test_what_turns_bad_ends_no_stream_in_errors(stored):
    """A good sample that is one too many at second sight is given up: whoever goes on comes to the end."""
    reads = []

    def transform(reader) -> int:
        reads.append(reader.key)
        if reader.key == "002" and reads.count("002") > 1:
            raise BrokenError("bad at second sight")
        return number(reader)

    dataset = _stream(stored, on_error=Skip(at_most=1, fill=True), transform=transform)
    found, errors = taken(iter(dataset), BadSamplesError)
    assert sorted(set(found)) == GOOD
    assert reads.count("002") == 2
    assert len(errors) == len(BAD)


def test_after_too_many_a_stream_goes_on(stored):
    """Whoever catches that error goes on behind the sample that was too many, and nothing is in flight meanwhile."""
    dataset = _stream(stored, on_error=Skip(at_most=1))
    in_flight = []
    found, errors = taken(iter(dataset), BadSamplesError, on_error=lambda: in_flight.append(pending(dataset)))
    assert found == GOOD
    assert set(in_flight) == {0}
    assert len(errors) == len(BAD) - 1


@pytest.mark.parametrize("fill", [False, True])
def test_interrupts(stored, fill):
    """What is no Exception is nobody's bad sample: it is raised, not counted, and the sample is not lost."""
    raised, in_flight = [], []

    def transform(reader) -> int:
        if reader.key == "004" and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return number(reader)

    dataset = _stream(stored, on_error=Skip(fill=fill), transform=transform)
    samples = iter(dataset)
    found, errors = taken(samples, KeyboardInterrupt, on_error=lambda: in_flight.append(pending(dataset)))
    assert len(errors) == 1
    assert in_flight == [0]
    assert dataset.skipped == len(BAD)
    assert sorted(set(found)) == GOOD
    assert len(found) == _COUNT if fill else len(found) == len(GOOD)
    batch = stored.dataset(on_error="skip", transform=transform)
    raised.clear()
    with pytest.raises(KeyboardInterrupt):
        batch.__getitems__([3, 4])
    assert batch.skipped == 1
    assert pending(batch) == 0


# --- Limits -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1))
def test_how_many_may_be_skipped(read: int, at_most: int, share: float):
    """A number is a number, a share is one of at least 1,000, both hold where both are given; 1 % where none is."""
    of_share = int(share * max(read, 1000))
    assert Skip(at_most=at_most).most(read) == at_most
    assert Skip(share=share).most(read) == of_share
    assert Skip(share=share, at_most=at_most).most(read) == min(at_most, of_share)
    assert Skip().most(read) == max(10, int(read * 0.01))


@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize("on_error", [Skip(at_most=10), "skip"])
def test_too_many(stored, kind, on_error):
    """One sample more than may be skipped is an error that says the numbers and the last cause, which it has."""
    stored.break_(*range(12, 24))
    dataset = stored.dataset(kind, on_error=on_error)
    with pytest.raises(BadSamplesError) as caught:
        list(DataLoader(dataset, 8))
    assert str(caught.value).startswith(
        "11 of 21 samples that this process has read cannot be made, and 10 may be skipped. The last one: Sample 20, "
        "s3://bucket/020: BrokenError: bad 20. "
    )
    assert isinstance(caught.value.__cause__, BrokenError)
    assert pending(dataset) == 0


def test_no_sample_is_good(stored):
    """If not one sample of the dataset can be made, that is said, also where all may be skipped."""
    stored.break_(*range(_COUNT))
    with pytest.raises(BadSamplesError, match=f"None of the {_COUNT} samples .* BrokenError: bad 0"):
        stored.dataset(on_error=Skip(share=1.0)).__getitems__([1])


@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize("fill", [False, True])
def test_the_same_sample_in_each_epoch(stored, kind, fill):
    """A bad sample comes again in each epoch, and counts once for the limit: a long training ends as a short one."""
    dataset = stored.dataset(kind, on_error=Skip(at_most=len(BAD), fill=fill))
    for epoch in range(1, 5):
        found = [sample for batch in DataLoader(dataset, 8) for sample in batch.tolist()]
        assert len(found) == (_COUNT if fill else len(GOOD))
        assert set(found) == set(GOOD)
        assert dataset.skipped >= epoch * len(BAD)
    stored.break_(GOOD[0])
    with pytest.raises(BadSamplesError, match=f"^{len(BAD) + 1} of [0-9]+ samples"):
        list(DataLoader(dataset, 8))


def test_counts_are_of_the_process(stored):
    """A dataset that is pickled counts anew; its own counts stay."""
    dataset = stored.dataset(on_error=Skip(at_most=2))
    dataset.__getitems__([3, 5])
    again = pickle.loads(pickle.dumps(dataset))
    assert (dataset.skipped, again.skipped) == (1, 0)
    assert again.__getitems__([3, 4, 5]) == [5]
    again.client.close()


@pytest.mark.parametrize(
    ("error", "is_skipped"),
    [
        (ValueError("decode"), True),
        (MemoryError("a header says so"), True),
        (ObjectNotFoundError("gone"), True),
        (IntegrityError("damaged"), True),
        (ArgumentError("seek"), True),
        (AccessDeniedError("no"), False),
        (BucketNotFoundError("no bucket"), False),
        (ConnectionFailedError("down"), False),
        (BadSamplesError("too many of another dataset"), False),
    ],
)
def test_what_is_of_one_sample(error: Exception, is_skipped: bool):
    """What concerns all objects is raised, also where it is the cause of an error of the transform."""
    item = S3BucketKeyData("bucket", "key")
    due = SKIP if is_skipped else "raise"
    for raised in (error, _because_of(error), _beside(error)):
        found = BadSamples("skip").answer(raised, item, 0)
        assert (found if found is SKIP else found.value) == due


def _because_of(error: Exception) -> Exception:
    outer = ValueError("cannot decode")
    outer.__cause__ = error
    error.__cause__ = None
    return outer


def _beside(error: Exception) -> Exception:
    try:
        try:
            raise error
        except type(error):
            raise ValueError("cannot decode")  # noqa: B904  # as programs do
    except ValueError as outer:
        return outer


def test_a_server_that_is_down(stored, monkeypatch):
    """A server that is away skips nothing."""
    forget_pauses(monkeypatch)
    dataset = stored.dataset(on_error="skip")
    dataset.__getitems__([1])
    stored.server.__exit__(None, None, None)
    with pytest.raises(S3Error):
        dataset.__getitems__([2, 5])
    assert dataset.skipped == 0
    stored.server.__enter__()


# --- A callable -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [S3MapDataset, Labelled])
def test_a_callable_is_asked(stored, kind, caplog):
    """It gets error, object and index, once for each bad sample, and says what takes its place; SKIP leaves it out."""
    asked = []

    def on_error(error, item, index):
        asked.append((str(error), item.key, index))
        return SKIP if index == 3 else -index

    dataset = stored.dataset(kind, on_error=on_error)
    found = dataset.__getitems__([2, 3, 4, 5])
    assert found == ([2, -4, 5] if kind is S3MapDataset else [(2, 2), -4, (5, 5)])
    assert asked == [("bad 3", "003", 3), ("bad 4", "004", 4)]
    assert dataset.skipped == len(caplog.messages) == 1


def test_a_callable_is_asked_once(stored):
    """Also where the ``__getitem__`` of a subclass calls ours, which asks: the batch takes that answer for its own."""
    asked = []

    def on_error(error, item, index):
        asked.append((item.key, index))
        if index == 4:
            return SKIP
        raise error

    dataset = stored.dataset(Halved, on_error=on_error)
    assert dataset.__getitems__([1, 2, 3]) == [2, 6]
    assert dataset.skipped == 1
    stored.break_(10)
    with pytest.raises(BrokenError, match="bad 10"):
        dataset.__getitems__([1, 5])
    assert asked == [("004", 4), ("010", 10)]


def test_a_callable_for_streams_and_single_samples(stored):
    """So it is in a stream. Of a single index, which cannot be left out, the error is raised."""
    assert list(_stream(stored, on_error=lambda error, item, index: -index))[:6] == [0, 1, 2, -3, -4, 5]
    assert list(_stream(stored, on_error=lambda error, item, index: SKIP)) == GOOD
    assert stored.dataset(on_error=lambda error, item, index: -index)[3] == -3
    with pytest.raises(BrokenError, match="bad 3"):
        stored.dataset(on_error=lambda error, item, index: SKIP)[3]


@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
def test_what_takes_the_place_of_what_cannot_be_opened(stored, kind):
    """A sample for an object that has no key, as a program's own listing may say, ends nothing: all others come."""

    def listing(client):
        return [S3BucketKeyData("bucket", key) for key in ("000", "", "002")]

    dataset = kind(
        "us-east-1",
        listing,
        stored.server.endpoint,
        number,
        stored.server.config,
        on_error=lambda error, item, index: -index,
    )
    assert next(iter(DataLoader(dataset, 3, collate_fn=list))) == [0, -1, 2]
    dataset.client.close()


@pytest.mark.parametrize("kind", [S3MapDataset, Labelled, S3IterableDataset])
def test_a_callable_that_raises(stored, kind):
    """What it raises is raised: the same error as it was, or its own, which names the sample as well."""
    asked = []

    def again(error, item, index):
        asked.append(index)
        raise error

    def other(error, item, index):
        asked.append(index)
        raise KeyError(index) from error

    for on_error, due in ((again, BrokenError), (other, KeyError)):
        dataset = stored.dataset(kind, on_error=on_error)
        with pytest.raises(due) as caught:
            list(DataLoader(dataset, 5))
        assert caught.value.__notes__ == ["Sample 3, s3://bucket/003"]
        assert pending(dataset) == 0
    assert asked == [3, 3]
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "other"


def test_a_callable_gets_all_errors(stored):
    """It may skip what concerns all objects, too: that is its own choice."""
    dataset = stored.dataset(transform=_denied, on_error=lambda error, item, index: index)
    assert dataset.__getitems__([7, 8]) == [7, 8]


def _denied(_reader) -> None:
    raise AccessDeniedError("no")


# --- What errors keep -------------------------------------------------------------------------------------------------


class _Big:
    """Memory that a transform holds."""


@pytest.mark.parametrize("kind", [S3MapDataset, Labelled, S3IterableDataset])
@pytest.mark.parametrize("on_error", ["raise", Skip(at_most=0), "again"])
def test_errors_hold_nothing(stored, kind, on_error):
    """An error that is dropped is gone with the collector off: nothing of ours makes it hold itself."""

    def again(error, item, index):
        raise error

    dataset = stored.dataset(kind, on_error=again if on_error == "again" else on_error)
    collect_what_others_left()
    gc.disable()
    try:
        try:
            list(DataLoader(dataset, 5))
        except (BrokenError, BadSamplesError):
            pass
        kinds = (BrokenError, BadSamplesError)
        # Of other tests there may be weak proxies, which isinstance would ask.
        assert [each for each in gc.get_objects() if issubclass(type(each), kinds)] == []
    finally:
        gc.enable()


# --- The option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", [None, 5, Skip, ["skip"]])
def test_a_wrong_type(on_error):
    """What is none of the four is refused by name, also Skip without parentheses."""
    for kind in (S3MapDataset, S3IterableDataset):
        with pytest.raises(ArgumentTypeError, match="on_error must be"):
            kind.from_objects([], on_error=on_error)


def test_an_unknown_word():
    """A word that is none is refused."""
    with pytest.raises(ArgumentError, match="got 'ignore'"):
        S3MapDataset.from_objects([], on_error="ignore")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"at_most": -1}, ArgumentError),
        ({"at_most": 1.5}, ArgumentTypeError),
        ({"share": 1.01}, ArgumentError),
        ({"share": -0.1}, ArgumentError),
        ({"share": float("nan")}, ArgumentError),
        ({"share": "1%"}, ArgumentTypeError),
        ({"fill": 1}, ArgumentTypeError),
    ],
)
def test_wrong_limits(arguments, error):
    """A limit that cannot be is refused by name."""
    (name,) = arguments
    with pytest.raises(error, match=name):
        Skip(**arguments)


def test_collated(stored):
    """Short batches are collated as any other."""
    loader = DataLoader(stored.dataset(on_error="skip"), 5, collate_fn=default_collate)
    assert [len(batch) for batch in loader] == [3, 5, 5, 4, 5, 5, 5, 5]
