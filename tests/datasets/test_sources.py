"""What a dataset is made of: sources, options, and which objects belong to it."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest
from torch.utils.data import DataLoader

from s3torch import S3Client, S3ClientConfig, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader
from s3torch.datasets import Filter, Objects, ObjectTable, Prefix, S3BucketKeyData, Table, by_stem
from s3torch.datasets.filters import described
from s3torch.datasets.listing import list_table
from s3torch.datasets.options import DatasetOptions, MapOptions, Selection, StreamOptions
from s3torch.datasets.sources import Source
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    EmptyDatasetError,
    InvalidURIError,
    LoaderStateError,
    ObjectChangedError,
    ObjectTableError,
)

KINDS = [S3MapDataset, S3IterableDataset]
KEYS = {"cat/1.jpg": 3, "cat/1.json": 5, "cat/2.jpg": 0, "dog/3.JPG": 7, "dog/4.png": 9}


def key(reader: S3Reader) -> str:
    """Return the last two parts of a key."""
    return "/".join(reader.key.split("/")[-2:])


def is_jpg(item: S3BucketKeyData) -> bool:
    """Return whether an object's name says that it is a JPEG, in whatever case."""
    return item.key.lower().endswith(".jpg")


@pytest.fixture
def uri(s3, bucket, prefix, put) -> str:
    """Store some objects, and return their prefix."""
    for name, size in KEYS.items():
        put(prefix + name, bytes(size))
    return f"s3://{bucket}/{prefix}"


def _keys(dataset: S3MapDataset | S3IterableDataset) -> list[str]:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


# --- Sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
def test_all_sources(made, uri, tmp_path):
    """A dataset of a source is that of the constructor which is named after it."""
    every = sorted(KEYS)
    table = S3MapDataset.from_prefix(uri).objects
    table.save(tmp_path / "objects.table")
    uris = [uri + name for name in every]
    for source in (Prefix(uri), Objects(uris), Table(table), Table(tmp_path / "objects.table")):
        assert isinstance(source, Source)
        assert len(pickle.loads(pickle.dumps(source)).table(S3Client())) == len(every)
        assert _keys(made.from_source(source, transform=key)) == every
        assert _keys(made(None, source, transform=key)) == every
    assert _keys(made.from_prefix(uri, transform=key)) == every
    assert _keys(made.from_objects(uris, transform=key)) == every
    assert _keys(made.from_table(table, transform=key)) == every


def test_sources_are_values():
    """Sources of the same objects are equal, and have a repr that says what they are."""
    assert Prefix("s3://b/p") == Prefix("s3://b/p") != Prefix("s3://b/q")
    assert repr(Prefix("s3://b/p")) == "Prefix(s3_uri='s3://b/p')"
    assert Objects(["s3://b/k"]) == Objects("s3://b/k") != Objects("s3://b/l")
    assert len({Objects("s3://b/k"), Objects(["s3://b/k"])}) == 1
    assert "1 objects" in repr(Objects("s3://b/k"))
    with pytest.raises(AttributeError):
        Prefix("s3://b/p").s3_uri = "s3://b/q"


def test_a_table_is_read_once_when_the_dataset_is_made(uri, tmp_path):
    """Workers and later epochs do not look at the file, which may be replaced meanwhile."""
    place = tmp_path / "objects.table"
    S3MapDataset.from_prefix(uri).objects.save(place)
    dataset = S3IterableDataset.from_table(place, transform=key)
    place.unlink()
    assert _keys(pickle.loads(pickle.dumps(dataset))) == _keys(dataset) == sorted(KEYS)


@pytest.mark.parametrize("made", KINDS)
def test_bad_sources(made, tmp_path):
    """What cannot be a source is refused when the dataset is made, by name."""
    with pytest.raises(InvalidURIError, match="Only s3://"):
        made.from_prefix("b/p")
    with pytest.raises(InvalidURIError, match="must have a key"):
        made.from_objects("s3://b")
    with pytest.raises(ArgumentTypeError, match="ObjectTable, a path or an S3 URI, got 3"):
        made.from_table(3)
    (tmp_path / "x").write_bytes(b"no table")
    with pytest.raises(ObjectTableError, match="no saved table"):
        made.from_table(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        made.from_table(tmp_path / "missing")
    with pytest.raises(ArgumentTypeError, match="must be callable"):
        made.from_source("s3://b/p")


# --- Options ---------------------------------------------------------------------------------------------------------


def test_each_option_is_written_once():
    """What a program may write is what a dataset keeps, and all ways to make one have the same options."""
    assert DatasetOptions.__annotations__.keys() == Selection.__dataclass_fields__.keys()
    first = ("s3_uri", "object_uris", "table", "place", "source")
    for made, options in ((S3MapDataset, MapOptions), (S3IterableDataset, StreamOptions)):
        constructor = inspect.signature(made).parameters.keys() - {"get_dataset_objects", "options"}
        assert constructor | DatasetOptions.__annotations__.keys() == options.__annotations__.keys()
        for name in ("from_prefix", "from_objects", "from_table", "from_manifest", "from_source"):
            given = inspect.signature(getattr(made, name)).parameters
            assert [each for each in given if each not in first] == ["options"]


@pytest.mark.parametrize("made", KINDS)
def test_an_option_that_does_not_exist(made):
    """A misspelled option is named, with those that there are."""
    with pytest.raises(TypeError, match=r"has no option fliter\. Its own are filter, allow_empty"):
        made.from_prefix("s3://b/p", fliter=None)
    with pytest.raises(TypeError, match="has no option shard"):
        made(None, Prefix("s3://b/p"), shard=1)


class _Mine(S3MapDataset):
    """A subclass with a constructor of its own, which knows nothing of newer options."""

    def __init__(self, region, get_dataset_objects, endpoint=None, transform=key, s3client_config=None):
        super().__init__(region, get_dataset_objects, endpoint, transform, s3client_config)


def test_a_subclass_is_made_by_each_way(uri):
    """Only what was given is passed to the constructor of a subclass."""
    config = S3ClientConfig(max_attempts=3)
    mine = _Mine.from_prefix(uri, s3client_config=config, region="us-east-1")
    assert type(mine) is _Mine
    assert mine.client.s3client_config == config
    assert mine.region == "us-east-1"
    assert _keys(mine) == sorted(KEYS)


# --- Filters ---------------------------------------------------------------------------------------------------------

FILTERS = [
    (Filter(suffix=".jpg"), ["cat/1.jpg", "cat/2.jpg"]),
    (Filter(suffix=(".jpg", ".png")), ["cat/1.jpg", "cat/2.jpg", "dog/4.png"]),
    (Filter(glob="*/dog/*"), ["dog/3.JPG", "dog/4.png"]),
    (Filter(glob=("*/[12].jpg", "*.png")), ["cat/1.jpg", "cat/2.jpg", "dog/4.png"]),
    (Filter(min_size=5), ["cat/1.json", "dog/3.JPG", "dog/4.png"]),
    (Filter(max_size=0), ["cat/2.jpg"]),
    (Filter(suffix=".jpg", min_size=1), ["cat/1.jpg"]),
    (Filter(min_size=5, max_size=7), ["cat/1.json", "dog/3.JPG"]),
    (Filter(), sorted(KEYS)),
    (is_jpg, ["cat/1.jpg", "cat/2.jpg", "dog/3.JPG"]),
]


@pytest.mark.parametrize(("chosen", "expected"), FILTERS, ids=[described(each) for each, _ in FILTERS])
@pytest.mark.parametrize("made", KINDS)
def test_a_filter(made, chosen, expected, uri):
    """Only what a filter chooses belongs to the dataset, whatever its source, with workers and without."""
    dataset = made.from_prefix(uri, transform=key, filter=chosen)
    assert _keys(dataset) == expected
    assert [item.key.split("/", 1)[1].endswith(name) for item, name in zip(dataset.objects, expected, strict=True)]
    table = S3MapDataset.from_prefix(uri).objects
    assert _keys(made.from_table(table, transform=key, filter=chosen)) == expected
    assert _keys(pickle.loads(pickle.dumps(dataset))) == expected


def test_a_filter_and_workers(uri):
    """Workers that share a listing share what is left of it."""
    dataset = S3IterableDataset.from_prefix(uri, transform=key, filter=Filter(suffix=".jpg"), enable_sharding=True)
    assert sorted(DataLoader(dataset, None, num_workers=2)) == ["cat/1.jpg", "cat/2.jpg"]


def test_a_filter_keeps_the_etags(s3, bucket, prefix, put, uri):
    """What is left of a table that pins ETags pins them: an object that was replaced by one of its size is refused."""
    table = list_table(S3Client(), bucket, prefix, etags=True)
    dataset = S3MapDataset.from_table(table, transform=S3Reader.read, filter=Filter(suffix=".jpg"))
    assert dataset.objects.has_etags
    assert dataset[0] == bytes(3)
    put(prefix + "cat/1.jpg", b"abc")
    with pytest.raises(ObjectChangedError):
        dataset[0]


def test_sizes_that_nobody_knows(uri):
    """A filter by size refuses objects whose size is not known, and names one."""
    dataset = S3MapDataset.from_objects([uri + "cat/1.jpg"], filter=Filter(min_size=1))
    with pytest.raises(ArgumentError, match=r"Filter\(min_size=1\) needs the size of s3://.*cat/1.jpg"):
        len(dataset)


def test_bad_filters():
    """A filter that cannot work is refused where it is made."""
    for arguments in ({"suffix": 1}, {"suffix": ()}, {"glob": [".jpg"]}, {"suffix": (".jpg", 1)}):
        with pytest.raises(ArgumentTypeError, match="must be a str or a tuple"):
            Filter(**arguments)
    for arguments in ({"min_size": 1.5}, {"max_size": True}):
        with pytest.raises(ArgumentTypeError, match="must be an int"):
            Filter(**arguments)
    with pytest.raises(ArgumentError, match="at least 0"):
        Filter(min_size=-1)
    with pytest.raises(ArgumentError, match=r"min_size=2, max_size=1\) leaves no object"):
        Filter(min_size=2, max_size=1)
    with pytest.raises(ArgumentTypeError, match="filter must be a Filter or callable"):
        S3MapDataset.from_prefix("s3://b/p", filter=".jpg")
    with pytest.raises(ArgumentTypeError, match="allow_empty must be a bool"):
        S3MapDataset.from_prefix("s3://b/p", allow_empty="no")


def test_a_state_knows_its_filter(uri):
    """A state is refused under another filter, and the error names both."""

    def loader(chosen):
        return S3DataLoader(S3MapDataset.from_prefix(uri, transform=key, filter=chosen), 1)

    state = loader(Filter(suffix=".jpg")).state_dict()
    loader(Filter(suffix=".jpg")).load_state_dict(state)
    with pytest.raises(LoaderStateError, match=r"filter \"Filter\(suffix='.jpg'\)\" \(here None\)"):
        loader(None).load_state_dict(state)
    with pytest.raises(LoaderStateError, match=r"here 'tests.datasets.test_sources.is_jpg'"):
        loader(is_jpg).load_state_dict(state)
    assert described(None) is None


@pytest.mark.parametrize("letter", ["a", "\U0001f600"])
def test_a_state_stays_small(letter):
    """A filter or samples of many words are known by a digest: a state is below 1 kB, and no other is taken for it."""
    many = [f"*{letter * 9}{number}" for number in range(100)]

    def loader(last: int):
        return S3DataLoader(
            S3MapDataset.from_objects(
                [f"s3://bucket/{letter * 9}{number}" for number in range(100)],
                filter=Filter(glob=tuple(many[:last])),
                samples=by_stem(*many[:last], optional=["1"], missing="skip"),
                allow_empty=True,
            )
        )

    state = loader(99).state_dict()
    assert len(json.dumps(state)) < 1000
    loader(99).load_state_dict(state)
    with pytest.raises(LoaderStateError, match="filter"):
        loader(98).load_state_dict({**state, "digest": loader(98).state_dict()["digest"]})
    near = Filter(glob=(*many[:98], "other"))
    assert described(near) != described(Filter(glob=tuple(many[:99])))


# --- Nothing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
def test_an_empty_prefix(made, uri):
    """That there is nothing is an error that names what is near, and that it can be allowed."""
    for wrong, near in (("cats/", "cat/"), ("dog/3.jpg", "dog/3.JPG"), ("cat/1/2/3", "cat/1.jpg")):
        dataset = made.from_prefix(uri + wrong, transform=key)
        with pytest.raises(EmptyDatasetError, match="There is no object in") as caught:
            _keys(dataset)
        assert uri + wrong in str(caught.value)
        assert uri + near in str(caught.value)
        assert "allow_empty=True" in str(caught.value)
        assert _keys(made.from_prefix(uri + wrong, allow_empty=True)) == []


@pytest.mark.parametrize("made", KINDS)
def test_a_filter_that_leaves_nothing(made, uri):
    """The error says how many there were."""
    with pytest.raises(EmptyDatasetError, match=r"Filter\(suffix='.gif'\) leaves none of the 5 objects of s3://"):
        _keys(made.from_prefix(uri, filter=Filter(suffix=".gif")))
    assert _keys(made.from_prefix(uri, filter=Filter(suffix=".gif"), allow_empty=True)) == []


@pytest.mark.parametrize("made", KINDS)
def test_nothing_was_named(made):
    """A list of no URIs, an empty table, and a function that finds nothing, are empty as well."""
    for make in (
        lambda **options: made.from_objects([], **options),
        lambda **options: made.from_table(ObjectTable(), **options),
        lambda **options: made(None, lambda _client: [], **options),
    ):
        with pytest.raises(EmptyDatasetError, match="no object in the dataset's source"):
            _keys(make())
        assert _keys(make(allow_empty=True)) == []


def test_an_empty_stream_in_workers(uri):
    """A DataLoader with workers raises it, and does not end as if all had come."""
    dataset = S3IterableDataset.from_prefix(uri + "x/", transform=key, enable_sharding=True)
    with pytest.raises(EmptyDatasetError, match="There is no object in"):
        list(DataLoader(dataset, None, num_workers=2))


def test_a_bucket_without_an_object(s3, bucket):
    """Nothing is near where nothing is; a bucket that is missing is told by its own error."""
    with pytest.raises(EmptyDatasetError) as caught:
        len(S3MapDataset.from_prefix(f"s3://{bucket}/no-such-folder-at-all/x"))
    assert "allow_empty" in str(caught.value)
