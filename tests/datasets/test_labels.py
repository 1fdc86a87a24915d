"""Labels by folder: the layout of torchvision's ImageFolder, which is not installed here, so it is written out."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, WeightedRandomSampler

from s3torch import S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader
from s3torch.compat import datasets as drop_in
from s3torch.datasets import Filter, ObjectTable, Prefix, S3BucketKeyData, by_folder, by_stem
from s3torch.datasets import labels as labels_module
from s3torch.datasets.labels import label, within
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    EmptyDatasetError,
    InvalidURIError,
    LoaderStateError,
    SampleLayoutError,
)

KINDS = [S3MapDataset, S3IterableDataset]
# Sorted by code points, as keys and Python's strings are: upper case comes first.
KEYS = ["Zebra/1.jpg", "cat/1.jpg", "cat/young/2.jpg", "dog/1.jpg", "dog/2.jpg", "ähre/1.jpg"]
CLASSES = ["Zebra", "cat", "dog", "ähre"]
TARGETS = [0, 1, 1, 2, 2, 3]


def name(reader: S3Reader) -> str:
    """Return what is below the test's prefix."""
    return reader.key.partition("/")[2]


def first_letter(item: S3BucketKeyData) -> str:
    """Name a class by the first letter of the folder."""
    return item.key.partition("/")[2][0]


def _as_given(samples: list) -> list:
    return samples


def _all(dataset: S3MapDataset | S3IterableDataset) -> list:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


@pytest.fixture
def stored(s3, prefix, put) -> str:
    """Store objects in folders, and the marker of an empty folder; returns their prefix."""
    for each in KEYS:
        put(prefix + each, each.encode())
    put(f"{prefix}empty/", b"")
    return prefix


@pytest.fixture
def uri(bucket, stored) -> str:
    """The URI of that prefix."""
    return f"s3://{bucket}/{stored}"


# --- Names of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "key", "expected"),
    [
        ("s3://b/train/", "train/cat/1.jpg", "cat"),
        ("s3://b/train/", "train/cat/young/1.jpg", "cat"),
        ("s3://b/train", "train/cat/1.jpg", "cat"),
        ("s3://b/train", "train2/cat/1.jpg", None),
        ("s3://b/tra", "train/cat/1.jpg", None),
        ("s3://b/train/", "train/1.jpg", None),
        ("s3://b/train/", "train//1.jpg", None),
        ("s3://b/train/", "other/cat/1.jpg", None),
        ("s3://b", "cat/1.jpg", "cat"),
        ("s3://b", "1.jpg", None),
        ("s3://c/train/", "train/cat/1.jpg", None),
        (None, "train/cat/young/1.jpg", "young"),
        (None, "cat/1.jpg", "cat"),
        (None, "1.jpg", None),
        (None, "cat//1.jpg", None),
    ],
)
def test_the_folder_of_a_key(below: str | None, key: str, expected: str | None):
    """The first folder below a prefix names the class, else the last of the key. A prefix is no folder by itself."""
    labels = by_folder(below)
    assert labels(S3BucketKeyData("b", key)) == expected
    assert pickle.loads(pickle.dumps(labels)) == labels


def test_by_folder_is_a_value():
    """Equal ones are equal, the repr is what a program would write, and it looks below a dataset's prefix."""
    assert by_folder() == by_folder(None) != by_folder("s3://b/p")
    assert repr(by_folder()) == "by_folder()"
    assert repr(by_folder("s3://b/p", classes=["a"], allow_empty=True)) == (
        "by_folder(below='s3://b/p', classes=('a',), allow_empty=True)"
    )
    assert len({by_folder(classes=["a"]), by_folder(classes=("a",))}) == 1
    assert within(by_folder(classes=["a"]), Prefix("s3://b/p")) == by_folder("s3://b/p", classes=["a"])
    assert within(by_folder("s3://b/q"), Prefix("s3://b/p")) == by_folder("s3://b/q")
    assert within(by_folder(), None) == by_folder()
    assert within(first_letter, Prefix("s3://b/p")) is first_letter


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: by_folder("train"), InvalidURIError, "Only s3://"),
        (lambda: by_folder(classes="cat"), ArgumentTypeError, "must be a list of names, got 'cat'"),
        (lambda: by_folder(classes=[1]), ArgumentTypeError, "must be str"),
        (lambda: by_folder(classes=[]), ArgumentError, "at least one class"),
        (lambda: by_folder(classes=["a", "a"]), ArgumentError, "none of them twice"),
        (lambda: by_folder(allow_empty=1), ArgumentTypeError, "allow_empty must be a bool"),
        (lambda: S3MapDataset.from_prefix("s3://b/p", labels="folder"), ArgumentTypeError, "made by by_folder"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], match: str):
    """What cannot work is refused where it is made."""
    with pytest.raises(error, match=match):
        make()


@given(
    st.lists(st.lists(st.sampled_from(["a", "B", "ä", "a b", "1"]), min_size=1, max_size=3), min_size=1, max_size=12)
)
def test_labels_are_those_of_image_folder(paths: list[list[str]]):
    """Classes, indices and targets are those of a few lines that do what ImageFolder does."""
    keys = sorted("root/" + "/".join([*path, f"{number}.jpg"]) for number, path in enumerate(paths))
    expected = [PurePosixPath(key).parts[1] for key in keys]
    classes = sorted(set(expected))
    found = label(ObjectTable(S3BucketKeyData("b", key) for key in keys), None, by_folder("s3://b/root/"))
    assert list(found.classes) == classes
    assert list(found.targets) == [classes.index(each) for each in expected]


# --- Samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
def test_a_sample_is_a_pair(made, uri):
    """What the transform makes, and the index of the class, by the first folder below the prefix."""
    for each in (uri, uri.rstrip("/")):
        dataset = made.from_prefix(each, labels=by_folder(), transform=name)
        assert dataset.classes == CLASSES
        assert dataset.class_to_idx == {each: index for index, each in enumerate(CLASSES)}
        assert list(dataset.targets) == TARGETS
        assert _all(dataset) == list(zip(KEYS, TARGETS, strict=True))
        assert _all(pickle.loads(pickle.dumps(dataset))) == list(zip(KEYS, TARGETS, strict=True))


@pytest.mark.parametrize("made", KINDS)
def test_without_a_transform(made, uri):
    """The sample is the reader and the index of its class."""
    (reader, target), *_ = _all(made.from_prefix(uri, labels=by_folder()))
    assert (reader.read(), target) == (b"Zebra/1.jpg", 0)


def test_targets_for_samplers(uri):
    """The targets are numbers as numpy, torch and its samplers take them, and nobody changes them."""
    dataset = S3MapDataset.from_prefix(uri, labels=by_folder(), transform=name)
    assert np.asarray(dataset.targets).tolist() == TARGETS
    assert torch.tensor(dataset.targets).tolist() == TARGETS
    counts = np.bincount(dataset.targets)
    sampler = WeightedRandomSampler((1 / counts)[np.asarray(dataset.targets)], 10)
    assert len(list(DataLoader(dataset, None, sampler=sampler))) == 10
    with pytest.raises(TypeError, match="read-only"):
        dataset.targets[0] = 1


@pytest.mark.parametrize("made", KINDS)
def test_other_sources(made, uri):
    """Of URIs and tables the last folder names the class, unless it is said below what."""
    table = S3MapDataset.from_prefix(uri).objects
    uris = [f"s3://{item.bucket}/{item.key}" for item in table]
    for dataset in (
        made.from_objects(uris, labels=by_folder(uri), transform=name),
        made.from_table(table, labels=by_folder(uri), transform=name),
        made(None, lambda _client: iter(list(table)), labels=by_folder(uri), transform=name),
    ):
        assert dataset.classes == CLASSES
        for _ in range(2):
            assert _all(dataset) == list(zip(KEYS, TARGETS, strict=True))
    last = made.from_table(table, labels=by_folder(), transform=name)
    assert last.classes == ["Zebra", "cat", "dog", "young", "ähre"]
    assert [target for _, target in _all(last)] == [0, 1, 3, 2, 2, 4]


@pytest.mark.parametrize("made", KINDS)
def test_a_callable(made, uri):
    """A program's own function names the classes."""
    dataset = made.from_prefix(uri, labels=first_letter, transform=name)
    assert dataset.classes == ["Z", "c", "d", "ä"]
    assert [target for _, target in _all(dataset)] == TARGETS


@pytest.mark.parametrize("made", KINDS)
def test_what_a_callable_may_not_return(made, uri):
    """A class is a str. None is no class, and the error counts such objects."""
    with pytest.raises(ArgumentTypeError, match=r"must return the name of a class, a str\. For s3://.*has returned 3"):
        _all(made.from_prefix(uri, labels=lambda _item: 3))
    with pytest.raises(SampleLayoutError, match="6 of 6 objects are in no class, by "):
        _all(made.from_prefix(uri, labels=lambda _item: None))


@pytest.mark.parametrize("made", KINDS)
def test_objects_in_no_folder(made, uri, put, stored):
    """They are an error that counts them and names the first; a filter leaves them out."""
    for number in range(5):
        put(f"{stored}{number}.txt", b"x")
    with pytest.raises(SampleLayoutError, match="5 of 11 objects are in no folder that names a class") as caught:
        _all(made.from_prefix(uri, labels=by_folder()))
    assert f"below='{uri}'" in str(caught.value)
    assert f"{uri}0.txt, {uri}1.txt, {uri}2.txt, and 2 more" in str(caught.value)
    dataset = made.from_prefix(uri, labels=by_folder(), filter=Filter(suffix=".jpg"), transform=name)
    assert [target for _, target in _all(dataset)] == TARGETS


@pytest.mark.parametrize("made", KINDS)
def test_classes_that_are_named(made, uri):
    """Their order is that of the indices. One without objects, and a folder that is none of them, are errors."""
    named = ["dog", "cat", "ähre", "Zebra"]
    dataset = made.from_prefix(uri, labels=by_folder(classes=named), transform=name)
    assert dataset.classes == named
    assert [target for _, target in _all(dataset)] == [3, 1, 1, 0, 0, 2]
    more = [*named, "bird", "empty"]
    with pytest.raises(SampleLayoutError, match=r"2 of 6 classes have no sample: 'bird', 'empty'\. Pass allow_empty"):
        _all(made.from_prefix(uri, labels=by_folder(classes=more)))
    dataset = made.from_prefix(uri, labels=by_folder(classes=more, allow_empty=True), transform=name)
    assert dataset.classes == more
    assert [target for _, target in _all(dataset)] == [3, 1, 1, 0, 0, 2]
    with pytest.raises(SampleLayoutError, match="3 objects lie in 2 folders that are no class: 'dog', 'ähre'"):
        _all(made.from_prefix(uri, labels=by_folder(classes=["Zebra", "cat"])))


@pytest.mark.parametrize("made", KINDS)
def test_no_objects(made, uri):
    """A dataset that may be empty has no classes."""
    with pytest.raises(EmptyDatasetError):
        _all(made.from_prefix(f"{uri}nothing/", labels=by_folder()))
    dataset = made.from_prefix(f"{uri}nothing/", labels=by_folder(), allow_empty=True)
    assert (_all(dataset), dataset.classes, list(dataset.targets)) == ([], [], [])


def test_samples_of_several_objects(uri, put, stored):
    """All objects of a sample have the same class; objects of no sample need none."""
    for each in KEYS:
        put((stored + each).replace(".jpg", ".txt"), b"text")
    put(f"{stored}README", b"text")
    joined = by_stem(".jpg", ".txt")
    dataset = S3MapDataset.from_prefix(
        uri, samples=joined, labels=by_folder(), transform=lambda sample: sample[".txt"].read()
    )
    assert len(dataset) == 6
    assert _all(dataset) == [(b"text", target) for target in TARGETS]
    assert list(dataset.targets) == TARGETS

    def join(item: S3BucketKeyData) -> tuple[str, str]:
        return item.key.rpartition("/")[2], item.key

    apart = S3MapDataset.from_prefix(uri, samples=join, labels=by_folder(), filter=Filter(suffix="1.jpg"))
    with pytest.raises(SampleLayoutError, match=r"several classes: s3://.*Zebra/1.jpg is 'Zebra', and .* is 'cat'"):
        len(apart)


# --- Attributes ------------------------------------------------------------------------------------------------------


class Mine(S3MapDataset):
    """A program's dataset that has classes of its own."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.classes = ["mine"]


class MineToo(drop_in.S3MapDataset):
    """The same, made of the drop-in."""

    targets = (1, 2)


def test_attributes_of_a_program(uri):
    """A subclass may have attributes of these names; a dataset without labels has none, and lists nothing to say so."""
    assert Mine.from_prefix(uri).classes == ["mine"]
    assert Mine.from_prefix(uri, labels=by_folder()).class_to_idx["cat"] == 1
    assert MineToo.from_prefix(uri, region="us-east-1").targets == (1, 2)
    for made in KINDS:
        dataset = made.from_prefix(uri)
        for each in ("classes", "class_to_idx", "targets"):
            assert not hasattr(dataset, each)
            assert not hasattr(made, each)
        with pytest.raises(AttributeError, match=r"without labels has no classes. Give it some: labels=by_folder\(\)"):
            _ = dataset.classes
        assert dataset.client.stats.requests == 0


# --- Loaders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "workers"), [(None, 0), ("fork", 2), ("forkserver", 2)])
def test_loaders(uri, forkserver, method, workers):
    """Batches are collated as pairs of a batch of samples and a tensor of targets."""
    context = forkserver if method == "forkserver" else method
    options = {"num_workers": workers, "multiprocessing_context": context}
    dataset = S3MapDataset.from_prefix(uri, labels=by_folder(), transform=name)
    for loader in (DataLoader(dataset, 4, **options), S3DataLoader(dataset, 4, shuffle=True, seed=2, **options)):
        found = {}
        for names, targets in loader:
            assert targets.dtype == torch.int64
            found.update(zip(names, targets.tolist(), strict=True))
        assert found == dict(zip(KEYS, TARGETS, strict=True))
    stream = S3IterableDataset.from_prefix(uri, labels=by_folder(), transform=name, enable_sharding=True)
    assert stream.classes == CLASSES
    found = [sample for batch in DataLoader(stream, 4, collate_fn=_as_given, **options) for sample in batch]
    assert sorted(found) == sorted(zip(KEYS, TARGETS, strict=True))


def test_workers_that_cannot_know_the_classes(uri, errors_of):
    """Each epoch's workers list anew, so they might disagree on the indices: the classes have to be known before."""

    def stream(**options) -> S3IterableDataset:
        return S3IterableDataset.from_prefix(uri, labels=by_folder(**options), transform=name, enable_sharding=True)

    errors = errors_of(DataLoader(stream(), 2, num_workers=2, multiprocessing_context="fork"))
    assert errors
    assert all(isinstance(error, ArgumentError) for error in errors)
    assert "Ask for dataset.classes before the workers start" in str(errors[0])
    named = DataLoader(stream(classes=CLASSES), None, num_workers=2, multiprocessing_context="fork")
    assert sorted(map(tuple, named)) == sorted(zip(KEYS, TARGETS, strict=True))


def test_classes_that_come_and_go(uri, put, boto, bucket, stored):
    """A stream whose prefix gets another class refuses to go on with other indices; named classes say what is wrong."""
    stream = S3IterableDataset.from_prefix(uri, labels=by_folder(), transform=name)
    assert len(list(stream)) == 6
    put(f"{stored}bird/1.jpg", b"bird")
    boto.delete_object(Bucket=bucket, Key=f"{stored}ähre/1.jpg")
    with pytest.raises(SampleLayoutError, match=r"1 are new \['bird'\], 1 are gone \['ähre'\]"):
        list(stream)
    with pytest.raises(SampleLayoutError, match="1 folders that are no class: 'bird'"):
        list(S3IterableDataset.from_prefix(uri, labels=by_folder(classes=CLASSES)))


def test_a_loader_of_a_stream_has_its_classes(uri, put, stored):
    """A loader lists its stream's prefix again: indices of other classes than the stream has said are refused."""
    stream = S3IterableDataset.from_prefix(uri, labels=by_folder(), transform=name)
    assert stream.classes == CLASSES
    loader = S3DataLoader(stream, batch_size=10, collate_fn=_as_given)
    assert list(loader) == [list(zip(KEYS, TARGETS, strict=True))]
    put(f"{stored}bird/1.jpg", b"bird")
    with pytest.raises(SampleLayoutError, match=r"1 are new \['bird'\], 0 are gone"):
        next(iter(S3DataLoader(stream, batch_size=10)))
    later = S3IterableDataset.from_prefix(uri, labels=by_folder(), transform=name)
    assert len(S3DataLoader(later)) == 7
    put(f"{stored}cow/1.jpg", b"cow")
    with pytest.raises(SampleLayoutError, match=r"1 are new \['cow'\], 0 are gone"):
        assert later.classes


def test_a_state_knows_its_labels(uri):
    """A state is refused where the samples have other labels, and resumed where they are the same, however named."""
    table = S3MapDataset.from_prefix(uri).objects

    def loader(labels, made=S3MapDataset.from_prefix, source=uri):
        return S3DataLoader(made(source, labels=labels, transform=name), 2)

    state = loader(by_folder()).state_dict()
    assert state["labels"].startswith("4 classes, ")
    loader(by_folder()).load_state_dict(state)
    loader(by_folder(uri), S3MapDataset.from_table, table).load_state_dict(state)
    for other, made, source in (
        (None, S3MapDataset.from_prefix, uri),
        (first_letter, S3MapDataset.from_prefix, uri),
        (by_folder(classes=CLASSES[::-1]), S3MapDataset.from_prefix, uri),
        (by_folder(), S3MapDataset.from_table, table),
    ):
        with pytest.raises(LoaderStateError, match=r"labels '4 classes, .*' \(here "):
            loader(other, made, source).load_state_dict(state)


def test_a_state_of_many_labels_is_made_at_once(monkeypatch):
    """A state is asked for after each batch: the labels of all samples are hashed once."""
    hashed = []
    digest_of = labels_module.hashlib.blake2b
    monkeypatch.setattr(
        labels_module.hashlib, "blake2b", lambda *args, **rest: hashed.append(1) or digest_of(*args, **rest)
    )
    found = label(ObjectTable(S3BucketKeyData("b", f"c/{number}") for number in range(5)), None, by_folder())
    assert len({found.digest for _ in range(3)}) == 1
    assert len(hashed) == 1


def test_the_labels_of_many_samples_are_small():
    """Each sample takes 8 bytes."""
    objects = ObjectTable(S3BucketKeyData("b", f"class {number % 10}/{number}") for number in range(5000))
    found = label(objects, None, by_folder())
    assert isinstance(found.targets, array)
    assert len(pickle.dumps(found)) < 5000 * 8 + 1000


def test_a_shuffled_stream(uri):
    """Each sample keeps its label in any order, and a state knows the labels."""

    def stream(**options) -> S3IterableDataset:
        return S3IterableDataset.from_prefix(uri, transform=name, shuffle=True, seed=3, **options)

    first = stream(labels=by_folder())
    iterator = iter(first)
    begun = [next(iterator), next(iterator)]
    state = first.state_dict()
    second = stream(labels=by_folder())
    second.load_state_dict(state)
    assert sorted(begun + list(second)) == sorted(zip(KEYS, TARGETS, strict=True))
    loader = S3DataLoader(stream(labels=by_folder()), 2, collate_fn=_as_given)
    assert loader.dataset.classes == CLASSES
    loader.load_state_dict(state)
    assert sorted(begun + [pair for batch in loader for pair in batch]) == sorted(zip(KEYS, TARGETS, strict=True))
    with pytest.raises(LoaderStateError, match="labels"):
        stream().load_state_dict(state)
