"""All options together, at random, against an oracle that is written from the documentation.

Each example makes a bucket, some of whose objects are missing, replaced or damaged, a dataset of it by some source and
options, and some jobs that read it one after the other. What each rank receives, batch by batch, what its state says
and how many samples were skipped must be what the oracle says, which knows no dataset.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Subset

from s3torch import S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader
from s3torch.datasets import SKIP, Filter, ObjectTable, S3Mixture, SampleReaders, Skip, by_folder, by_stem
from s3torch.errors import BadSamplesError, ObjectChangedError, ObjectNotFoundError
from tests.support.in_memory import MemoryClient, over

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch, about few cores

CLIENT = MemoryClient()
FOLDERS = ("owl", "cat", "dog/young")


class DamagedError(Exception):
    """What the transform raises of a damaged object."""


# --- What lies in the bucket, and what is read of it ------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """Some samples, numbered.

    Attributes:
        count: How many.
        folders: Each lies in one of so many.
        without_json: Those that have an image alone.
        with_text: Those that have a text as well.
        damage: What happens to an object: (sample, member, what).
    """

    count: int
    folders: int
    without_json: frozenset[int]
    with_text: frozenset[int]
    damage: tuple[tuple[int, int, str], ...]

    def keys(self) -> dict[int, list[str]]:
        """Return the keys of each sample."""
        found = {}
        for number in range(self.count):
            stem = f"data/{FOLDERS[number % self.folders]}/{number:02}"
            suffixes = [
                ".jpg",
                *([".json"] * (number not in self.without_json)),
                *([".txt"] * (number in self.with_text)),
            ]
            found[number] = [stem + suffix for suffix in suffixes]
        return found

    def damaged(self, kinds: Sequence[str]) -> dict[str, str]:
        """Return what happens to which key."""
        keys = self.keys()
        return {
            keys[number % self.count][member % len(keys[number % self.count])]: what
            for number, member, what in self.damage
            if what in kinds
        }


BUCKETS = st.builds(
    Bucket,
    count=st.integers(1, 14),
    folders=st.integers(1, 3),
    without_json=st.frozensets(st.integers(0, 13), max_size=3),
    with_text=st.frozensets(st.integers(0, 13), max_size=3),
    damage=st.lists(
        st.tuples(st.integers(0, 13), st.integers(0, 2), st.sampled_from(["missing", "replaced", "broken"])), max_size=9
    ).map(tuple),
)


@dataclass(frozen=True)
class Options:
    """How a dataset is made.

    Attributes:
        source: ``"prefix"``, ``"objects"``, ``"table"`` or ``"manifest"``.
        kind: ``"map"``, ``"stream"``, or a wrapper or subclass of the first.
        samples: Whether objects of one stem are a sample.
        labels: Whether the folder is the label.
        classes: Whether the classes are named.
        on_error: ``"raise"``, ``"skip"``, ``"fill"`` or ``"ask"``.
        order: Of the URIs.
    """

    source: str
    kind: str
    samples: bool
    labels: bool
    classes: bool
    on_error: str
    order: int


OPTIONS = st.builds(
    Options,
    source=st.sampled_from(["prefix", "objects", "table", "manifest"]),
    kind=st.sampled_from(["map", "map", "stream", "subclass", "subset", "concat"]),
    samples=st.booleans(),
    labels=st.booleans(),
    classes=st.booleans(),
    on_error=st.sampled_from(["raise", "skip", "fill", "ask"]),
    order=st.integers(0, 3),
)


def content(key: str) -> bytes:
    """Return what was stored under a key."""
    return f"{key}!".encode() * 3


def read(sample: S3Reader | SampleReaders) -> object:
    """Make a sample: the transform of all datasets here."""
    if isinstance(sample, SampleReaders):
        return tuple((suffix, read(reader)) for suffix, reader in sample.items())
    found = sample.read()
    if found.startswith(b"broken"):
        raise DamagedError(sample.key)
    return found


def ask(_error: Exception, _item: object, index: int) -> object:
    """Replace each second bad sample, and leave out the others."""
    return ("instead", index) if index % 2 else SKIP


ON_ERROR = {"raise": "raise", "skip": Skip(share=1.0), "fill": Skip(share=1.0, fill=True), "ask": ask}


class Paired(S3MapDataset):
    """A dataset whose samples have a name that its ``__getitem__`` knows."""

    def __getitem__(self, index):
        return super().__getitem__(index), f"name of {index}"


# --- The oracle -------------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """What a dataset is to do.

    Attributes:
        samples: What each is, or the class of its error.
        on_error: As in Options.
        instead: Returns what takes the place of a bad one, if ``on_error`` is asked.
        skipped: How many were skipped so far.
    """

    samples: list[Any]
    on_error: str
    instead: Callable[[int], Any] = lambda index: ("instead", index)
    skipped: int = 0

    def batch(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of a batch; raises the error that it is to raise."""
        found: list[Any] = []
        for index in indices:
            found += self._one(index)
        if not found and indices:
            found.append(self._next(indices[-1]))
        return found

    def alone(self, index: int) -> Any:
        """Return the sample of a single index."""
        if self.on_error == "fill":
            return self._one(index)[0]
        if self._is_bad(index):
            if self.on_error == "ask" and index % 2:
                return self.instead(index)
            raise self.samples[index]
        return self.samples[index]

    def _is_bad(self, index: int) -> bool:
        return isinstance(self.samples[index], type)

    def _one(self, index: int) -> list[Any]:
        if not self._is_bad(index):
            return [self.samples[index]]
        if self.on_error == "raise":
            raise self.samples[index]
        if self.on_error == "ask" and index % 2:
            return [self.instead(index)]
        self.skipped += 1
        return [self._next(index)] if self.on_error == "fill" else []

    def _next(self, index: int) -> Any:
        for step in range(1, len(self.samples)):
            other = (index + step) % len(self.samples)
            if not self._is_bad(other):
                return self.samples[other]
            if self.on_error == "ask" and other % 2:
                return self.instead(other)
            self.skipped += 1
        raise BadSamplesError("none")


def truth_of(bucket: Bucket, options: Options) -> Truth:
    """Return what a dataset is to do, from the documentation alone."""
    keys = [key for each in bucket.keys().values() for key in each]
    if options.source == "prefix":
        keys.sort()
    else:
        random.Random(options.order).shuffle(keys)
    damaged = bucket.damaged(KINDS_OF_DAMAGE[options.source])

    def of_object(key: str) -> Any:
        what = damaged.get(key)
        if what == "missing":
            return ObjectNotFoundError
        if what == "replaced":  # nobody knows the size of one that a URI names
            return b"other" if options.source == "objects" else ObjectChangedError
        return DamagedError if what == "broken" else content(key)

    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rpartition(".")[0] if options.samples else key, []).append(key)
    if options.samples:
        groups = {stem: each for stem, each in groups.items() if f"{stem}.json" in each}
    else:
        groups = {key: each for key, each in groups.items() if not key.endswith(".txt")}  # the filter
    folder = 1 if options.source == "prefix" else -2  # below the prefix, or the last one
    names = [each[0].split("/")[folder] for each in groups.values()]
    classes = NAMED if options.classes else sorted(set(names))
    samples: list[Any] = []
    for (_, each), name in zip(groups.items(), names, strict=True):
        if options.samples:
            members = [
                (suffix, of_object(key)) for suffix in (".jpg", ".json", ".txt") for key in each if key.endswith(suffix)
            ]
            bad = next((what for _, what in members if isinstance(what, type)), None)
            made: Any = tuple(members) if bad is None else bad
        else:
            made = of_object(each[0])
        samples.append((made, classes.index(name)) if options.labels and not isinstance(made, type) else made)
    if options.kind == "subclass":
        samples = [made if isinstance(made, type) else (made, f"name of {n}") for n, made in enumerate(samples)]
        return Truth(samples, options.on_error, lambda index: (("instead", index), f"name of {index}"))
    return Truth(samples, options.on_error)


# What can happen to an object between its listing and its reading: a prefix is listed when a job begins.
KINDS_OF_DAMAGE = {
    "prefix": ("broken",),
    "objects": ("missing", "replaced", "broken"),
    "table": ("missing", "replaced", "broken"),
    "manifest": ("missing", "replaced", "broken"),
}
NAMED = ["young", "owl", "dog", "cat", "nobody"]


# --- The dataset ------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """Makes datasets of a bucket.

    Attributes:
        bucket: What lies there.
        options: How they are made.
        folder: For tables and manifests.
    """

    bucket: Bucket
    options: Options
    folder: Path

    def __post_init__(self) -> None:
        CLIENT.objects.clear()
        keys = [key for each in self.bucket.keys().values() for key in each]
        for key in keys:
            CLIENT.objects[key] = content(key)
        self.uris = [f"s3://bucket/{key}" for key in keys]
        random.Random(self.options.order).shuffle(self.uris)
        listed = {item.key: item for item in over(CLIENT, S3MapDataset.from_prefix("s3://bucket/data/")).objects}
        items = [listed[uri.removeprefix("s3://bucket/")] for uri in self.uris]
        if self.options.source == "table":
            ObjectTable(items).save(self.folder / "table")
        if self.options.source == "manifest":
            lines = [f"{uri},{item.object_info.size}" for uri, item in zip(self.uris, items, strict=True)]
            (self.folder / "manifest.csv").write_text("\n".join(["uri,size", *lines, ""]))
        for key, what in self.bucket.damaged(KINDS_OF_DAMAGE[self.options.source]).items():
            if what == "missing":
                CLIENT.objects.discard(key)
            else:
                CLIENT.objects[key] = b"other" if what == "replaced" else b"broken".ljust(len(content(key)))

    def dataset(self, kind: Callable[..., Any] | None = None) -> Any:
        """Return a dataset, as it is made for each rank of each job."""
        options = self.options
        if kind is None:
            kind = {"stream": S3IterableDataset, "subclass": Paired}.get(options.kind, S3MapDataset)
        made = {
            "transform": read,
            "on_error": ON_ERROR[options.on_error],
            "samples": by_stem(".jpg", ".json", optional=[".txt"], missing="skip") if options.samples else None,
            "labels": None,
            "filter": None if options.samples else Filter(suffix=(".jpg", ".json")),
        }
        if options.labels:
            made["labels"] = by_folder(classes=NAMED, allow_empty=True) if options.classes else by_folder()
        if options.source == "prefix":
            return over(CLIENT, kind.from_prefix("s3://bucket/data/", **made))
        if options.source == "objects":
            return over(CLIENT, kind.from_objects(self.uris, **made))
        if options.source == "table":
            return over(CLIENT, kind.from_table(self.folder / "table", **made))
        return over(CLIENT, kind.from_manifest(self.folder / "manifest.csv", **made))


# --- Jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What one job does until it is killed.

    Attributes:
        world_size: Its ranks.
        batch_size: Of a rank.
        num_workers: Of a rank.
        batches_ahead: Of a loader.
        batches: How many each rank receives, over all epochs.
        teller: The rank whose state is saved.
        even: What makes ranks equal.
        drop_last: Whether the last batch is left out.
    """

    world_size: int
    batch_size: int
    num_workers: int
    batches_ahead: int | None
    batches: int
    teller: int
    even: str | None
    drop_last: bool


def jobs(workers: st.SearchStrategy[int]) -> st.SearchStrategy[list[Job]]:
    """Return jobs that follow each other."""
    return st.lists(
        st.builds(
            Job,
            world_size=st.integers(1, 3),
            batch_size=st.integers(1, 5),
            num_workers=workers,
            batches_ahead=st.sampled_from([None, 1, 3]),
            batches=st.integers(0, 7),
            teller=st.integers(0, 2),
            even=st.sampled_from([None, None, "drop", "pad", "wrap"]),
            drop_last=st.booleans(),
        ),
        min_size=1,
        max_size=3,
    )


def share(job: Job, rank: int, order: list[int], consumed: int) -> tuple[list[list[int]], int]:
    """Return the batches of a rank for the rest of an epoch, and where the last place of all ranks ends."""
    left = order[consumed:]
    step = job.world_size * job.batch_size
    if job.drop_last:
        left = left[: len(left) - len(left) % step]
    elif job.even == "drop":
        left = left[: len(left) - len(left) % job.world_size]
    own = left[rank :: job.world_size]
    odd = len(left) % job.world_size
    if odd and rank >= odd and job.even == "pad":
        own.append(order[-1])
    if odd and rank >= odd and job.even == "wrap":
        own.append(order[rank - odd])
    return [own[first : first + job.batch_size] for first in range(0, len(own), job.batch_size)], consumed + len(left)


def epoch_order(samples: int, epoch: int, *, shuffle: bool) -> list[int]:
    """Return the order of an epoch, as one rank has it that reads numbers."""
    loader = S3DataLoader(range(samples), batch_size=max(1, samples), shuffle=shuffle, seed=5, collate_fn=list)
    loader.set_epoch(epoch)
    return next(iter(loader), [])


def outcome(make: Callable[[], Any]) -> Any:
    """Return what a call returns, or the class of the error that it raises."""
    try:
        return make()
    except StopIteration:
        return None
    except Exception as error:  # noqa: BLE001  # which it is, is compared
        return type(error)


def play(
    schedule: list[Job],
    samples: int,
    make: Callable[[], Any],
    due: Callable[[list[int]], Any],
    *,
    order: Callable[[int], list[int]],
    same: Callable[[Any, Any], bool] = lambda found, wanted: found == wanted,
    **options: Any,
) -> Iterator[tuple[Job, list[Any]]]:
    """Play some jobs that follow each other; yields each with its datasets when it is killed.

    Args:
        schedule: The jobs.
        samples: Of an epoch.
        make: Makes the dataset of a rank.
        due: Returns what a batch of indices is, or the class of its error.
        order: Returns that of an epoch.
        same: Compares a batch with what was due.
        options: Of each loader.
    """
    epoch = consumed = 0
    state: dict[str, Any] | None = None
    for job in schedule:
        loaders = [
            S3DataLoader(
                make(),
                job.batch_size,
                drop_last=job.drop_last,
                even=job.even,
                num_workers=job.num_workers,
                batches_ahead=job.batches_ahead,
                rank=rank,
                world_size=job.world_size,
                collate_fn=list,
                multiprocessing_context="fork" if job.num_workers else None,
                **options,
            )
            for rank in range(job.world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        left = job.batches
        where = [(epoch, consumed)] * job.world_size
        while left:
            assert {loader.epoch for loader in loaders} == {epoch}
            shares = [share(job, rank, order(epoch), consumed) for rank in range(job.world_size)]
            begin, step = consumed, job.world_size * job.batch_size
            if job.even is not None:
                assert len({len(batches) for batches, _ in shares}) == 1
            iterators = [iter(loader) for loader in loaders]
            taken = 0
            while left:
                for rank, (batches, stop) in enumerate(shares):
                    wanted = due(batches[taken]) if taken < len(batches) else None
                    found = outcome(partial(next, iterators[rank]))
                    assert same(found, wanted), (job, rank, taken, found, wanted)
                    is_over = taken >= len(batches)
                    where[rank] = (epoch + 1, 0) if is_over else (epoch, min(begin + (taken + 1) * step, stop))
                if taken >= max(len(batches) for batches, _ in shares):
                    break
                taken += 1
                left -= 1
            if left:
                is_nothing = not taken and not begin
                epoch, consumed = epoch + 1, 0
                if is_nothing:
                    break  # and so it will be in each epoch
            else:
                del iterators
        states = [loader.state_dict() for loader in loaders]
        assert [(each["epoch"], each["consumed"]) for each in states] == where
        assert len({json.dumps({**each, "epoch": 0, "consumed": 0}) for each in states}) == 1
        state = states[job.teller % job.world_size]
        assert len(json.dumps(state)) < 1000
        epoch, consumed = where[job.teller % job.world_size]
        yield job, [loader.dataset for loader in loaders]


def check_loader(made: Made, schedule: list[Job], *, shuffle: bool) -> None:
    """Compare what jobs receive of a dataset with what the documentation says."""
    options = made.options
    truth = truth_of(made.bucket, options)
    count = len(truth.samples)
    assume(count)

    def wrapped() -> Any:
        dataset = made.dataset()
        if options.kind == "subset":
            return Subset(dataset, list(range(count))[::-1])
        if options.kind == "concat":
            return ConcatDataset([dataset, made.dataset()])
        return dataset

    def due(indices: list[int]) -> Any:
        if options.kind == "subset":
            return outcome(lambda: truth.batch([count - 1 - index for index in indices]))
        if options.kind == "concat":
            return outcome(lambda: [truth.alone(index % count) for index in indices])
        return outcome(lambda: truth.batch(indices))

    total = 2 * count if options.kind == "concat" else count
    assume(all(job.even is None or total >= job.world_size for job in schedule))
    orders: dict[int, list[int]] = {}

    def order(epoch: int) -> list[int]:
        return orders.setdefault(epoch, epoch_order(total, epoch, shuffle=shuffle))

    for job, datasets in play(schedule, total, wrapped, due, order=order, shuffle=shuffle, seed=5):
        if not job.num_workers and options.kind in ("map", "stream", "subclass"):
            assert sum(dataset.skipped for dataset in datasets) == truth.skipped
        truth.skipped = 0


ALL = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is skipped is logged, and there is much of it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@settings(ALL, max_examples=25)
@given(BUCKETS, OPTIONS, jobs(st.just(0)), st.booleans())
def test_loaders(tmp_path, bucket, options, schedule, shuffle):
    """Batches, labels, counts and states are what the documentation says, whatever is combined."""
    check_loader(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)


@pytest.mark.soak
@settings(ALL, max_examples=3000)
@given(BUCKETS, OPTIONS, jobs(st.just(0)), st.booleans())
def test_many_loaders(tmp_path, bucket, options, schedule, shuffle):
    """The same, longer."""
    check_loader(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)


@settings(ALL, max_examples=2)
@given(BUCKETS, OPTIONS, jobs(st.sampled_from([0, 2, 2])), st.booleans())
def test_loaders_with_workers(tmp_path, bucket, options, schedule, shuffle):
    """The same with forked workers."""
    check_loader(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)


@pytest.mark.soak
@settings(ALL, max_examples=100)
@given(BUCKETS, OPTIONS, jobs(st.sampled_from([0, 2, 2])), st.booleans())
def test_many_loaders_with_workers(tmp_path, bucket, options, schedule, shuffle):
    """The same, longer."""
    check_loader(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)


# --- Mixtures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """What mixes two datasets.

    Attributes:
        weights: Of the two.
        stop: When an epoch ends.
        shuffle: Whether each is shuffled.
    """

    weights: tuple[int, int]
    stop: str
    shuffle: bool


MIXES = st.builds(
    Mix,
    weights=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stop=st.sampled_from(["first", "longest", "never"]),
    shuffle=st.booleans(),
)


def check_mixture(made: Made, schedule: list[Job], mix: Mix) -> None:
    """Compare what jobs receive of a mixture of a dataset and a part of it with what the documentation says."""
    truth = truth_of(made.bucket, made.options)
    count = len(truth.samples)
    assume(count and made.options.kind in ("map", "subclass"))
    chosen = list(range(0, count, 2))

    def mixture(parts: list[Any]) -> S3Mixture:
        return S3Mixture(list(zip(parts, mix.weights, strict=True)), stop=mix.stop, shuffle=mix.shuffle, seed=3)

    numbers = mixture([range(count), range(len(chosen))])
    assume(all(job.even is None or len(numbers) >= job.world_size for job in schedule))

    def due(indices: list[int]) -> Any:
        def make() -> list[Any]:
            turns = numbers.locate(indices)
            found = []
            for number in dict.fromkeys(turn.source for turn in turns):
                inner = [turn.number for turn in turns if turn.source == number]
                found += truth.batch([chosen[index] for index in inner] if number else inner)
            return found

        return outcome(make)

    def same(found: Any, wanted: Any) -> bool:
        if isinstance(found, list) and isinstance(wanted, list):
            return Counter(map(repr, found)) == Counter(map(repr, wanted))
        return found == wanted

    def both() -> S3Mixture:
        return mixture([made.dataset(), Subset(made.dataset(), chosen)])

    def order(epoch: int) -> list[int]:
        return [epoch * len(numbers) + place for place in range(len(numbers))]

    for _ in play(schedule, len(numbers), both, due, order=order, same=same):
        truth.skipped = 0


@settings(ALL, max_examples=10)
@given(BUCKETS, OPTIONS, jobs(st.just(0)), MIXES)
def test_mixtures(tmp_path, bucket, options, schedule, mix):
    """So it is with mixtures."""
    check_mixture(Made(bucket, options, tmp_path), schedule, mix)


@pytest.mark.soak
@settings(ALL, max_examples=1000)
@given(BUCKETS, OPTIONS, jobs(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 0, 2])), MIXES)
def test_many_mixtures(tmp_path, bucket, options, schedule, mix):
    """The same, longer."""
    check_mixture(Made(bucket, options, tmp_path), schedule, mix)


# --- Streams that are iterated over -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What one job does with a stream.

    Attributes:
        world_size: Its ranks.
        samples: How many each takes before it is killed; over all epochs.
        teller: The rank whose state is saved.
    """

    world_size: int
    samples: int
    teller: int


READINGS = st.lists(
    st.builds(Reading, world_size=st.integers(1, 3), samples=st.integers(0, 20), teller=st.integers(0, 2)),
    min_size=1,
    max_size=4,
)


def streamed(truth: Truth, indices: list[int]) -> Iterator[tuple[Any, int]]:
    """Yield what a stream yields or raises for these samples, and how many of them are done with then."""
    good: Any = None
    owed = 0
    for done, index in enumerate(indices, 1):
        made = truth.samples[index]
        if not isinstance(made, type):
            good = made
            yield good, done - owed
        elif truth.on_error == "raise":
            yield made, done
        elif truth.on_error == "ask" and index % 2:
            yield truth.instead(index), done
        else:
            truth.skipped += 1
            owed += truth.on_error == "fill"
        while owed and good is not None:
            owed -= 1
            yield good, done - owed
    if owed:
        yield BadSamplesError, len(indices)


def check_stream(made: Made, schedule: list[Reading], *, shuffle: bool) -> None:
    """Compare what jobs receive of a stream with what the documentation says."""
    truth = truth_of(made.bucket, replace(made.options, kind="stream"))
    count = len(truth.samples)
    assume(count)
    epoch = consumed = 0
    state = None
    for job in schedule:
        streams = []
        for rank in range(job.world_size):
            streams.append(made.dataset(S3IterableDataset))
            streams[rank]._enable_sharding, streams[rank]._cursor.shuffle, streams[rank]._cursor.seed = True, shuffle, 5
            streams[rank]._rank, streams[rank]._world_size = rank, job.world_size
            streams[rank].state_dict()  # so that all is listed first
            if state is not None:
                streams[rank].load_state_dict(json.loads(json.dumps(state)))
        order = epoch_order(count, epoch, shuffle=shuffle)
        states = []
        for rank, stream in enumerate(streams):
            wanted = streamed(truth, order[consumed + rank :: job.world_size])
            samples = iter(stream)
            now = (epoch, consumed)
            for _ in range(job.samples):
                found = outcome(partial(next, samples))
                what, done = next(wanted, (None, 0))
                assert found == what, (job, rank, found, what)
                now = (epoch, min(consumed + done * job.world_size, count)) if what is not None else (epoch + 1, 0)
                if what is None:
                    break
            states.append(stream.state_dict())
            if truth.on_error in ("raise", "fill"):  # else the skipped ones behind the last sample are not due yet
                assert (states[-1]["epoch"], states[-1]["consumed"]) == now, (job, rank)
        state = states[job.teller % job.world_size]
        epoch, consumed = state["epoch"], state["consumed"]


@settings(ALL, max_examples=20)
@given(BUCKETS, OPTIONS, READINGS, st.booleans())
def test_streams(tmp_path, bucket, options, schedule, shuffle):
    """So it is with streams that are iterated over."""
    check_stream(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)


@pytest.mark.soak
@settings(ALL, max_examples=2000)
@given(BUCKETS, OPTIONS, READINGS, st.booleans())
def test_many_streams(tmp_path, bucket, options, schedule, shuffle):
    """The same, longer."""
    check_stream(Made(bucket, options, tmp_path), schedule, shuffle=shuffle)
