"""Samples of several objects: which belong together, and how they are read."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info

from s3torch import S3Client, S3ClientConfig, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader, S3ReaderConfig
from s3torch._aws.listing import ObjectInfo
from s3torch.datasets import Filter, ObjectTable, S3BucketKeyData, SampleReaders, by_stem
from s3torch.datasets.grouping import Groups, group
from s3torch.datasets.look_ahead import LookAhead
from s3torch.datasets.members import SampleTable
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConcurrentUseError,
    EmptyDatasetError,
    LoaderStateError,
    ObjectNotFoundError,
    SampleLayoutError,
)
from s3torch.testing import FaultyServer
from tests.support.iterating import taken
from tests.support.server import Request, ScriptedServer, Wire, serve_object

KINDS = [S3MapDataset, S3IterableDataset]
STEMS = [f"{folder}/{number}" for folder in ("cat", "dog") for number in range(6)]
BY_STEM = by_stem(".jpg", ".json", optional=[".seg.jpg"])


def content(key: str) -> bytes:
    """Return what lies under a key."""
    return key.encode() * len(key)


def contents(sample: SampleReaders) -> dict[str, bytes]:
    """Read all of a sample, in the order of its members."""
    return {name: reader.read() for name, reader in sample.items()}


def names(sample: SampleReaders) -> list[str]:
    """Return the last two parts of the keys."""
    return ["/".join(reader.key.split("/")[-2:]) for reader in sample.values()]


def first_half(item: S3BucketKeyData) -> tuple[str, str] | None:
    """Join objects by what stands before ``-``, as a program's own function does."""
    sample, dash, member = item.key.rpartition("/")[2].partition("-")
    return (sample, member) if dash else None


def in_the_parent(item: S3BucketKeyData) -> tuple[str, str] | None:
    """Join objects by their suffixes, but never in a worker."""
    if get_worker_info() is not None:
        raise AssertionError(f"{item} was joined in a worker")
    return by_stem(".jpg", ".json")(item)


def _as_given(samples: list) -> list:
    return samples


def _expected(prefix: str) -> list[dict[str, bytes]]:
    suffixes = [[".jpg", ".json", *([".seg.jpg"] if stem.endswith("3") else [])] for stem in STEMS]
    return [
        {suffix: content(prefix + stem + suffix) for suffix in some} for stem, some in zip(STEMS, suffixes, strict=True)
    ]


def _all(dataset: S3MapDataset | S3IterableDataset) -> list:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


@pytest.fixture
def stored(s3, bucket, prefix, put) -> str:
    """Store 12 samples, of which two have an object more, and some other objects; returns their prefix."""
    for stem in STEMS:
        for suffix in (".jpg", ".json", *([".seg.jpg"] if stem.endswith("3") else [])):
            put(prefix + stem + suffix, content(prefix + stem + suffix))
    for other in ("README", "cat/notes.txt"):
        put(prefix + other, b"x")
    return prefix


@pytest.fixture
def uri(bucket, stored) -> str:
    """The URI of that prefix."""
    return f"s3://{bucket}/{stored}"


# --- By stem ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b.jpg", ("a/b", ".jpg")),
        ("a/b.seg.jpg", ("a/b", ".seg.jpg")),
        ("a/b.c.json", ("a/b.c", ".json")),
        ("a/.json", ("a/", ".json")),
        ("a/b.JPG", None),
        ("a/b.txt", None),
        ("jpg", None),
    ],
)
def test_the_longest_suffix_counts(key: str, expected):
    """A key is taken apart by the longest suffix that it ends in; upper and lower case count."""
    assert BY_STEM(S3BucketKeyData("b", key)) == expected
    assert pickle.loads(pickle.dumps(BY_STEM))(S3BucketKeyData("b", key)) == expected


def test_the_order_of_suffixes_does_not_count():
    """The longest one that fits is taken, wherever it stands, and whatever comes first in the alphabet."""
    for suffixes in ((".png", ".a.png"), (".a.png", ".png"), (".png", ".z.png"), (".z.png", ".png")):
        longer = max(suffixes, key=len)
        assert by_stem(*suffixes)(S3BucketKeyData("b", f"1{longer}")) == ("1", longer)
        assert by_stem(*suffixes)(S3BucketKeyData("b", "1.png")) == ("1", ".png")


def test_by_stem_is_a_value():
    """Equal ones are equal, and the repr is what a program would write."""
    assert by_stem(".a", ".b") == by_stem(".a", ".b") != by_stem(".a", ".b", missing="skip")
    assert len({by_stem(".a"), by_stem(".a")}) == 1
    assert repr(by_stem(".a", ".b")) == "by_stem('.a', '.b')"
    assert repr(by_stem(".a", optional=[".b"], missing="skip")) == "by_stem('.a', optional=('.b',), missing='skip')"
    with pytest.raises(AttributeError):
        by_stem(".a").missing = "skip"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (by_stem, ArgumentError, "at least one suffix"),
        (lambda: by_stem(optional=[".a"]), ArgumentError, "at least one suffix"),
        (lambda: by_stem(".a", ""), ArgumentError, "empty suffix"),
        (lambda: by_stem(".a", ".a"), ArgumentError, r"by_stem\('.a', '.a'\) names a suffix twice"),
        (lambda: by_stem(".a", optional=[".a"]), ArgumentError, "names a suffix twice"),
        (lambda: by_stem([".a", ".b"]), ArgumentTypeError, "must be a str"),
        (lambda: by_stem(".a", optional=".b"), ArgumentTypeError, r"Write optional=\('.b',\)"),
        (lambda: by_stem(".a", missing="ignore"), ArgumentError, "must be one of 'raise', 'skip', got 'ignore'"),
        (lambda: S3MapDataset.from_prefix("s3://b/p", samples=".jpg"), ArgumentTypeError, "made by by_stem"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], match: str):
    """What cannot work is refused where it is made."""
    with pytest.raises(error, match=match):
        make()


# --- Which belong together -------------------------------------------------------------------------------------------

_object = st.builds(
    lambda bucket, stem, suffix: S3BucketKeyData(bucket, stem + suffix),
    st.sampled_from("bc"),
    st.sampled_from(["", "a", "b", "a.b", "d/a", "ä"]),
    st.sampled_from([".x", ".y", ".x.y", ".z", ""]),
)
_objects = st.one_of(st.lists(_object, max_size=14, unique_by=lambda item: item.key), st.lists(_object, max_size=14))
_groupings = st.sampled_from(
    [
        by_stem(*required, optional=optional, missing=missing)
        for required, optional in (([".x"], []), ([".x", ".y"], [".x.y"]), ([".z", ".x"], [".y"]))
        for missing in ("raise", "skip")
    ]
)


def _oracle(objects: list[S3BucketKeyData], grouping) -> list[dict[str, int]] | str:
    """Return the samples as dicts from suffixes to places, or what is wrong."""
    samples: dict[str, dict[str, int]] = {}
    for place, item in enumerate(objects):
        fitting = [suffix for suffix in (*grouping.suffixes, *grouping.optional) if item.key.endswith(suffix)]
        if not fitting:
            continue
        suffix = max(fitting, key=len)
        sample = samples.setdefault(item.key[: len(item.key) - len(suffix)], {})
        if suffix in sample:
            return "twice"
        sample[suffix] = place
    whole = [sample for sample in samples.values() if all(suffix in sample for suffix in grouping.suffixes)]
    if len(whole) < len(samples) and grouping.missing == "raise":
        return "missing"
    order = [*grouping.suffixes, *grouping.optional]
    return [{suffix: sample[suffix] for suffix in order if suffix in sample} for sample in whole]


def _samples(groups: Groups) -> list[dict[str, int]]:
    starts = [0, *groups.ends[:-1]]
    return [
        {groups.names[groups.kinds[place]]: groups.members[place] for place in range(start, end)}
        for start, end in zip(starts, groups.ends, strict=False)
    ]


@given(_objects, _groupings)
def test_grouping_is_that_of_plain_python(objects: list[S3BucketKeyData], grouping):
    """Samples, their order, that of their members, and what is wrong, are those of a few lines with dicts."""
    expected = _oracle(objects, grouping)
    if isinstance(expected, str):
        with pytest.raises(SampleLayoutError, match="Two objects are" if expected == "twice" else "lack an object"):
            group(ObjectTable(objects), grouping)
        return
    found = _samples(group(ObjectTable(objects), grouping))
    assert [list(sample.items()) for sample in found] == [list(sample.items()) for sample in expected]
    table = SampleTable(ObjectTable(objects), grouping, None)
    assert len(table) == len(expected)
    for index, sample in enumerate(expected):
        for each in (index, index - len(expected)):
            item = table[each]
            assert item.names == tuple(sample)
            assert list(item.objects) == [objects[place] for place in sample.values()]
    for beyond in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match=f"there are {len(expected)} samples"):
            table[beyond]


def test_the_groups_of_many_objects_are_small():
    """Each object takes 10 bytes and each sample 8, however long their names are."""
    objects = ObjectTable(
        S3BucketKeyData("b", f"{'x' * 50}{number:06}{suffix}") for number in range(2000) for suffix in (".jpg", ".json")
    )
    assert len(pickle.dumps(group(objects, by_stem(".jpg", ".json")))) < 2000 * (2 * 10 + 8) + 1000


def test_members_of_a_callable():
    """A callable's members come in the order in which their names are first seen."""
    keys = ["1-b", "1-a", "2-a", "2-b", "3-c", "x"]
    groups = group(ObjectTable(S3BucketKeyData("b", key) for key in keys), first_half)
    assert [list(sample.items()) for sample in _samples(groups)] == [
        [("b", 0), ("a", 1)],
        [("b", 3), ("a", 2)],
        [("c", 4)],
    ]


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
def test_a_sample_is_a_mapping(made, uri, stored):
    """The transform gets a mapping from suffixes to readers, in the order of the suffixes."""
    dataset = made.from_prefix(uri, samples=BY_STEM, transform=contents)
    assert _all(dataset) == _expected(stored)
    assert [list(sample) for sample in _all(dataset)] == [list(sample) for sample in _expected(stored)]
    assert len(dataset.objects) == 2 * len(STEMS) + 2 + 2
    assert _all(pickle.loads(pickle.dumps(dataset))) == _expected(stored)


@pytest.mark.parametrize("made", KINDS)
def test_without_a_transform(made, uri, stored):
    """The sample is the mapping itself then, which pickles as its readers do."""
    dataset = made.from_prefix(uri, samples=BY_STEM)
    samples = _all(dataset)
    assert [contents(sample) for sample in samples] == _expected(stored)
    copy = pickle.loads(pickle.dumps(dataset[0] if made is S3MapDataset else next(iter(dataset))))
    assert isinstance(copy, SampleReaders)
    assert contents(copy) == _expected(stored)[0]
    assert ".jpg" in copy
    assert len(copy) == 2
    assert repr(copy).startswith("<SampleReaders {'.jpg': <SequentialS3Reader")


@pytest.mark.parametrize("reader_config", [S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()])
@pytest.mark.parametrize("made", KINDS)
def test_other_readers(made, reader_config, uri, stored):
    """Readers of other kinds, which fetch nothing ahead, are members as well."""
    dataset = made.from_prefix(uri, samples=BY_STEM, transform=contents, reader_config=reader_config)
    assert _all(dataset) == _expected(stored)


@pytest.mark.parametrize("made", KINDS)
def test_other_sources(made, uri, stored, tmp_path):
    """Objects that URIs name, whose sizes are not known, and those of a table, are joined as well."""
    table = S3MapDataset.from_prefix(uri).objects
    uris = [f"s3://{item.bucket}/{item.key}" for item in table]
    table.save(tmp_path / "table")
    for dataset in (
        made.from_objects(uris, samples=BY_STEM, transform=contents),
        made.from_table(tmp_path / "table", samples=BY_STEM, transform=contents),
        made(None, lambda _client: iter(list(table)), samples=BY_STEM, transform=contents),
    ):
        for _ in range(2):
            assert _all(dataset) == _expected(stored)


@pytest.mark.parametrize("made", KINDS)
def test_a_callable(made, uri, put, stored):
    """A program's own function joins objects of any keys."""
    for name in ("1-b", "1-a", "2-a"):
        put(f"{stored}mine/{name}", content(name))
    dataset = made.from_prefix(uri, samples=first_half, transform=contents)
    assert _all(dataset) == [{"a": content("1-a"), "b": content("1-b")}, {"a": content("2-a")}]


@pytest.mark.parametrize("made", KINDS)
def test_what_a_callable_may_not_return(made, uri):
    """Anything but two strings or None is an error that names the object and the value."""
    for bad in ("ab", ("a",), ("a", 1), ["a", "b"], True):
        dataset = made.from_prefix(uri, samples=lambda _item, bad=bad: bad)
        with pytest.raises(ArgumentTypeError, match="must return two strings") as caught:
            _all(dataset)
        assert f"{uri}README it has returned {bad!r}" in str(caught.value)
    dataset = made.from_prefix(uri, samples=lambda item: (item.key, item.key))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("s3torch.datasets.grouping._MOST_MEMBERS", 5)
        with pytest.raises(SampleLayoutError, match="more than 5 kinds of members"):
            _all(dataset)


@pytest.mark.parametrize("made", KINDS)
def test_a_missing_object(made, uri, boto, bucket, stored):
    """A sample that lacks an object is an error that says how many do, and names the first few with what they lack."""
    for name in ("cat/0.json", "cat/2.jpg", "dog/1.json", "dog/5.json"):
        boto.delete_object(Bucket=bucket, Key=stored + name)
    with pytest.raises(SampleLayoutError) as caught:
        _all(made.from_prefix(uri, samples=BY_STEM))
    assert str(caught.value).startswith(
        "4 of 12 samples of by_stem('.jpg', '.json', optional=('.seg.jpg',)) lack an object: "
        f"'{stored}cat/0' has no .json, '{stored}cat/2' has no .jpg, '{stored}dog/1' has no .json, and 1 more."
    )


@pytest.mark.parametrize("made", KINDS)
def test_leaving_out_what_is_not_whole(made, uri, boto, bucket, stored, caplog):
    """``missing="skip"`` leaves such samples out, and a warning says how many, and names the first."""
    boto.delete_object(Bucket=bucket, Key=f"{stored}cat/0.json")
    with caplog.at_level(logging.INFO, "s3torch"):
        found = _all(made.from_prefix(uri, samples=by_stem(".jpg", ".json", missing="skip"), transform=contents))
    # ".seg.jpg" is no suffix here: a stem ends in ".seg" then, and has no ".json".
    assert found == [{name: sample[name] for name in (".jpg", ".json")} for sample in _expected(stored)[1:]]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert (
        f"3 of 14 samples of by_stem('.jpg', '.json', missing='skip') lack an object: '{stored}cat/0' has"
        in warnings[0]
    )
    assert "left out" in warnings[0]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert any("11 samples; 2 objects belong to none, the first is " in each for each in messages)


def test_an_object_that_is_there_twice(uri):
    """One that was named twice, or lies in two buckets, is an error that names both."""
    uris = [f"{uri}cat/1.jpg", f"{uri}cat/1.json", f"{uri}cat/1.jpg"]
    with pytest.raises(SampleLayoutError, match=r"Two objects are '.jpg' of the sample .*cat/1'.*1 objects in all"):
        len(S3MapDataset.from_objects(uris, samples=BY_STEM))
    with pytest.raises(SampleLayoutError, match=r"s3://a/1.jpg and s3://b/1.jpg"):
        len(S3MapDataset.from_objects(["s3://a/1.jpg", "s3://b/1.jpg", "s3://b/1.json"], samples=BY_STEM))
    both = S3MapDataset.from_objects(["s3://a/1.jpg", "s3://b/1.json"], samples=BY_STEM)
    assert [reader.bucket for reader in both[0].values()] == ["a", "b"]


@pytest.mark.parametrize("made", KINDS)
def test_no_sample(made, uri):
    """That there are objects and no sample is an error, unless it is allowed."""
    with pytest.raises(EmptyDatasetError, match=r"samples=by_stem\('.png'\) makes no sample of the 28 objects"):
        _all(made.from_prefix(uri, samples=by_stem(".png")))
    assert _all(made.from_prefix(uri, samples=by_stem(".png"), allow_empty=True)) == []
    assert _all(made.from_prefix(f"{uri}nothing", samples=by_stem(".png"), allow_empty=True)) == []
    with pytest.raises(EmptyDatasetError, match="There is no object"):
        _all(made.from_prefix(f"{uri}nothing", samples=by_stem(".png")))


@pytest.mark.parametrize("made", KINDS)
def test_a_filter_comes_first(made, uri, stored):
    """What a filter leaves out belongs to no sample."""
    dataset = made.from_prefix(uri, filter=Filter(glob="*/cat/*"), samples=BY_STEM, transform=contents)
    assert _all(dataset) == _expected(stored)[:6]


# --- Loaders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "workers"), [(None, 0), ("fork", 2), ("forkserver", 2)])
def test_loaders(uri, stored, forkserver, method, workers):
    """Batches, with workers that are forked and such as are not, have each sample once."""
    context = forkserver if method == "forkserver" else method
    options = {"num_workers": workers, "collate_fn": _as_given, "multiprocessing_context": context}
    dataset = S3MapDataset.from_prefix(uri, samples=BY_STEM, transform=contents)
    assert [sample for batch in DataLoader(dataset, 5, **options) for sample in batch] == _expected(stored)
    loader = S3DataLoader(dataset, 5, shuffle=True, seed=3, **options)
    assert len(loader) == 3
    found = [sample for batch in loader for sample in batch]
    assert found != _expected(stored)
    assert sorted(found, key=repr) == sorted(_expected(stored), key=repr)
    stream = S3IterableDataset.from_prefix(uri, samples=BY_STEM, transform=contents, enable_sharding=True)
    found = [sample for batch in DataLoader(stream, 5, **options) for sample in batch]
    assert sorted(found, key=repr) == sorted(_expected(stored), key=repr)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_have_what_was_joined_before(uri, forkserver, method):
    """Which objects are together is found once, and the workers get it, in each epoch."""
    context = forkserver if method == "forkserver" else method
    options = {"num_workers": 2, "collate_fn": _as_given, "multiprocessing_context": context}
    chosen = {"filter": Filter(glob="*/cat/[0-2]*"), "samples": in_the_parent, "transform": names}
    dataset = S3MapDataset.from_prefix(uri, **chosen)
    stream = S3IterableDataset.from_table(dataset.objects, enable_sharding=True, **chosen)
    expected = [[f"cat/{number}.jpg", f"cat/{number}.json"] for number in range(3)]
    assert len(dataset) == len(list(stream)) == 3
    for each in (dataset, stream):
        for _ in range(2):
            found = [sample for batch in DataLoader(each, 2, **options) for sample in batch]
            assert sorted(found) == expected


class Named(S3MapDataset):
    """A dataset whose samples are something else than what its transform makes."""

    def __getitem__(self, index):
        return index, super().__getitem__(index)


def test_a_subclass(uri, stored):
    """Its own ``__getitem__`` makes each sample of a batch."""
    dataset = Named.from_prefix(uri, samples=BY_STEM, transform=contents)
    (batch,) = DataLoader(dataset, 20, collate_fn=_as_given)
    assert batch == list(enumerate(_expected(stored)))


def test_a_state_knows_how_samples_are_made(uri):
    """A state is refused where objects are joined in another way, and the error names both."""

    def loader(samples):
        return S3DataLoader(S3MapDataset.from_prefix(uri, samples=samples, transform=contents), 4, num_workers=0)

    state = loader(BY_STEM).state_dict()
    loader(BY_STEM).load_state_dict(state)
    assert state["samples"] == 12
    assert state["grouping"] == repr(BY_STEM)
    other = by_stem(".json", ".jpg", optional=[".seg.jpg"])
    with pytest.raises(LoaderStateError, match=r"grouping .*by_stem\('.jpg'.* \(here .*by_stem\('.json'"):
        loader(other).load_state_dict(state)
    with pytest.raises(LoaderStateError, match="here None"):
        loader(None).load_state_dict(state)


def test_resuming(uri, stored):
    """A job that was stopped goes on with the samples that are left."""

    def loader(batch_size: int, workers: int) -> S3DataLoader:
        dataset = S3MapDataset.from_prefix(uri, samples=BY_STEM, transform=contents)
        return S3DataLoader(dataset, batch_size, shuffle=True, seed=1, num_workers=workers, collate_fn=_as_given)

    first = loader(3, 2)
    batches = iter(first)
    found = [*next(batches), *next(batches)]
    state = first.state_dict()
    del batches
    second = loader(4, 0)
    second.load_state_dict(state)
    found += [sample for batch in second for sample in batch]
    assert sorted(found, key=repr) == sorted(_expected(stored), key=repr)


# --- What is in flight -----------------------------------------------------------------------------------------------


def _client_options(server: ScriptedServer | FaultyServer, **options) -> dict:
    config = S3ClientConfig(max_attempts=1, hedging=False, **options)
    return {"region": "us-east-1", "endpoint": server.endpoint, "s3client_config": config}


@pytest.fixture
def _keys(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ACCESS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("way", ["index", "batch", "stream"])
def test_the_objects_of_a_sample_are_fetched_together(way: str):
    """No object is answered before all of the sample were asked for."""
    together = threading.Barrier(3, timeout=20)
    serve = serve_object(b"content")

    def handle(request: Request, wire: Wire) -> None:
        together.wait()
        serve(request, wire)

    uris = [f"s3://bucket/1.{suffix}" for suffix in "abc"]
    options = {"samples": by_stem(".a", ".b", ".c"), "transform": contents}
    expected = dict.fromkeys([".a", ".b", ".c"], b"content")
    with ScriptedServer(handle) as server:
        options |= _client_options(server)
        if way == "stream":
            assert list(S3IterableDataset.from_objects(uris, **options)) == [expected]
        else:
            dataset = S3MapDataset.from_objects(uris, **options)
            assert (dataset[0] if way == "index" else dataset.__getitems__([0])[0]) == expected


def _pending(client: S3Client) -> int:
    return sum(engine.pending for engine in client._access.engines)


def _in_memory(count: int, **missing: int) -> FaultyServer:
    """Return a server with samples of three objects; of some of them the named one is missing."""
    objects = {f"{number:02}.{suffix}": bytes([number]) * 50_000 for number in range(count) for suffix in "abc"}
    for suffix, number in missing.items():
        del objects[f"{number:02}.{suffix}"]
    return FaultyServer(objects)


def _of_server(made, server: FaultyServer, transform, count: int, **options):
    uris = [f"s3://bucket/{number:02}.{suffix}" for number in range(count) for suffix in "abc"]
    return made.from_objects(
        uris, samples=by_stem(".a", ".b", ".c"), transform=transform, **_client_options(server, **options)
    )


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("missing", ["a", "b", "c"])
def test_an_object_that_fails_ends_the_transfers_of_the_sample(missing: str):
    """Nothing is in flight after it, by index and in a batch, and the other samples come."""
    with _in_memory(4, **{missing: 1}) as server:
        dataset = _of_server(S3MapDataset, server, contents, 4)
        for ask in (lambda: dataset[1], lambda: dataset.__getitems__([0, 1, 2])):
            with pytest.raises(ObjectNotFoundError, match=f"01.{missing}"):
                ask()
            assert _pending(dataset.client) == 0
        assert [sample[".b"][0] for sample in dataset.__getitems__([0, 2, 3])] == [0, 2, 3]
        stream = _of_server(S3IterableDataset, server, contents, 4)
        in_flight: list[int] = []
        samples, errors = taken(
            iter(stream), ObjectNotFoundError, most=10, on_error=lambda: in_flight.append(_pending(stream.client))
        )
        assert [sample[".b"][0] for sample in samples] == [0, 2, 3]
        assert len(errors) == 1
        assert in_flight == [0]


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("made", KINDS)
def test_a_transform_that_fails(made):
    """What it had not read yet is cancelled, and each reader is closed."""
    seen: list[SampleReaders] = []

    def fail(sample: SampleReaders) -> None:
        seen.append(sample)
        sample[".a"].read()
        raise ValueError("bad")

    with _in_memory(3) as server:
        dataset = _of_server(made, server, fail, 3)
        with pytest.raises(ValueError, match="bad"):
            dataset[0] if made is S3MapDataset else next(iter(dataset))
        assert [reader.closed for reader in seen[0].values()] == [True] * 3
        assert _pending(dataset.client) == 0


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("made", KINDS)
def test_what_a_transform_does_not_read(made):
    """An object that the transform leaves unread is in flight no longer than its sample."""
    with _in_memory(8) as server:
        dataset = _of_server(made, server, lambda sample: sample[".b"].read()[0], 8)
        found = dataset.__getitems__(list(range(8))) if made is S3MapDataset else list(dataset)
        assert found == list(range(8))
        assert _pending(dataset.client) == 0


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("made", KINDS)
def test_next_has_no_default_in_a_transform(made):
    """The error names the sample by its first object."""
    with _in_memory(1) as server:
        dataset = _of_server(made, server, lambda _sample: next(iter(())), 1)
        with pytest.raises(RuntimeError, match=r"StopIteration for s3://bucket/00.a"):
            dataset[0] if made is S3MapDataset else next(iter(dataset))


# --- Bounds ----------------------------------------------------------------------------------------------------------


class Member:
    """Stands for a reader, and for the object that it reads."""

    object_info = None

    def __init__(self, footprint: int, *, is_known: bool = True, is_used: bool = False) -> None:
        self.footprint = footprint
        self.known_size = footprint if is_known else None
        self.begun = self.closed = False
        self.is_used = is_used

    def expect(self, size: int) -> None:
        assert self.known_size is None
        self.footprint = size

    def prefetch(self, *, send: bool) -> None:
        self.begun = True

    def close(self) -> None:
        if self.is_used:
            raise ConcurrentUseError("used elsewhere")
        self.closed = True


class Opens:
    """Stands for a dataset: items are the readers of their samples."""

    def _open(self, item: _Sample) -> SampleReaders:
        return item.readers

    def _nudge(self, interval: float) -> None:
        pass


class _Sample:
    object_info = "known"

    def __init__(self, members: list[Member], max_bytes: int) -> None:
        self.members = members
        self.readers = SampleReaders({str(number): member for number, member in enumerate(members)}, max_bytes)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), max_size=15), st.integers(1, 8), st.integers(1, 100)
)
def test_bounds(sizes: list[list[int]], max_objects: int, max_bytes: int):
    """A sample counts with all its objects and bytes; only the first one of a window may exceed a bound."""
    samples = [_Sample([Member(size) for size in some], max_bytes) for some in sizes]
    window = LookAhead(max_objects, max_bytes)
    items: Iterator = iter(list(enumerate(samples)))
    handed_out: list[_Sample] = []
    while (begun := window.take(items, Opens())) is not None:
        handed_out.append(begun.item)
        held = [sample for sample in samples if any(member.begun for member in sample.members)]
        held = [sample for sample in held if sample not in handed_out[:-1]]
        in_flight = sum(member.footprint for sample in held for member in sample.members if member.begun)
        first = next(
            member.footprint for member in held[0].members if member.footprint or member is held[0].members[-1]
        )
        assert in_flight <= max(max_bytes, first)
        assert sum(len(sample.members) for sample in held[:-1]) < max_objects
        window.settle(begun)
    assert handed_out == samples


def test_a_cancelled_window_is_empty():
    """After it was cancelled as many samples fit as in the beginning, and all that was begun is closed."""
    window = LookAhead(6, 100)
    for _ in range(3):
        samples = [_Sample([Member(1), Member(1)], 100) for _ in range(5)]
        window.take(iter(list(enumerate(samples))), Opens())
        assert [sample.members[1].begun for sample in samples] == [True, True, True, False, False]
        window.cancel()
        assert [sample.members[1].closed for sample in samples] == [False, True, True, False, False]


def test_a_sample_of_many_large_objects():
    """Of a sample that is larger than the window as much is begun as fits, and the first object in any case."""
    for sizes, begun in (([60, 60, 60], [True, False, False]), ([30, 60, 60], [True, True, False]), ([200], [True])):
        members = [Member(size) for size in sizes]
        readers = _Sample(members, 100).readers
        readers.prefetch(send=False)
        assert [member.begun for member in members] == begun
        assert readers.footprint == sum(member.footprint for member in members if member.begun)
        assert readers.known_size == sum(sizes)


def test_objects_of_unknown_size():
    """Each may be as large as a whole sample; what is known is summed up."""
    members = [Member(7), Member(0, is_known=False), Member(0, is_known=False)]
    readers = _Sample(members, 100).readers
    readers.expect(20)
    assert [member.footprint for member in members] == [7, 20, 20]
    assert readers.known_size == 7
    assert _Sample(members[1:], 100).readers.known_size is None


def test_closing_closes_all():
    """A reader that another thread uses is said, when all others are closed."""
    members = [Member(1), Member(1, is_used=True), Member(1)]
    with pytest.raises(ConcurrentUseError, match="used elsewhere"):
        _Sample(members, 100).readers.close()
    assert [member.closed for member in members] == [True, False, True]


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("made", KINDS)
def test_the_bound_of_bytes_holds(made):
    """With room for one sample no second one is asked for while the first is in the transform's hands."""
    alone: list[int] = []
    size = 340 * 1024
    keys = [f"{number:02}.{suffix}" for number in range(6) for suffix in "abc"]
    table = ObjectTable(S3BucketKeyData("bucket", key, ObjectInfo(key, "", size, 0)) for key in keys)
    with FaultyServer({key: bytes(size) for key in keys}) as server:
        dataset = made.from_table(
            table,
            samples=by_stem(".a", ".b", ".c"),
            transform=lambda sample: contents(sample) and look(),
            **_client_options(server, max_bytes_in_flight=1024 * 1024),
        )

        def look() -> None:
            alone.append(_pending(dataset.client))

        list(dataset) if made is S3IterableDataset else dataset.__getitems__(list(range(6)))
    assert alone == [0] * 6
    assert dataset.client.stats.requests == len(keys)


def test_a_reader_is_what_it_was(uri):
    """Without the option a sample is a reader, as ever."""
    assert isinstance(S3MapDataset.from_prefix(uri)[0], S3Reader)


# --- Streams that are shuffled and resumed ---------------------------------------------------------------------------


def test_a_shuffled_stream(uri, stored):
    """It is shuffled by sample, resumes where it was, and a loader reads it by index in the same order."""

    def stream() -> S3IterableDataset:
        return S3IterableDataset.from_prefix(uri, samples=BY_STEM, transform=contents, shuffle=True, seed=5)

    whole = list(stream())
    assert whole != _expected(stored)
    assert sorted(whole, key=repr) == sorted(_expected(stored), key=repr)
    first = stream()
    iterator = iter(first)
    begun = [next(iterator) for _ in range(4)]
    state = first.state_dict()
    assert (state["samples"], state["consumed"], state["grouping"]) == (12, 4, repr(BY_STEM))
    second = stream()
    second.load_state_dict(state)
    assert begun + list(second) == whole
    loader = S3DataLoader(stream(), 3, num_workers=2, collate_fn=_as_given)
    loader.load_state_dict(state)
    assert begun + [sample for batch in loader for sample in batch] == whole
    other = S3IterableDataset.from_prefix(uri, samples=by_stem(".jpg"), shuffle=True, seed=5)
    with pytest.raises(LoaderStateError, match="grouping"):
        other.load_state_dict(state)


def test_a_stream_in_order_resumes(uri, stored):
    """All objects are listed before the first sample, so there is always a state."""
    first = S3IterableDataset.from_prefix(uri, samples=BY_STEM, transform=contents)
    iterator = iter(first)
    begun = [next(iterator) for _ in range(5)]
    second = S3IterableDataset.from_prefix(uri, samples=BY_STEM, transform=contents)
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == _expected(stored)


def test_readers_of_a_kind_of_its_own_are_not_read_by_index(uri):
    """A stream that opens its objects by itself would lose that in a loader, which says so."""

    class Own(S3IterableDataset):
        def _open_object(self, item):
            return super()._open_object(item)

    class OwnToo(S3IterableDataset):
        def _open(self, item):
            return super()._open(item)

    for kind in (Own, OwnToo):
        with pytest.raises(ArgumentTypeError, match="readers of its own"):
            S3DataLoader(kind.from_prefix(uri), 2)
