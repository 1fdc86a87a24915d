"""S3MapDataset: samples by index, alone and in DataLoader workers."""

from __future__ import annotations

import itertools
import operator
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, StackDataset, Subset
from torch.utils.data.distributed import DistributedSampler

from s3torch import ReaderType, S3Client, S3ClientConfig, S3MapDataset, S3Reader, S3ReaderConfig
from s3torch._aws.listing import ObjectInfo
from s3torch.compat import datasets as drop_in
from s3torch.datasets import S3BucketKeyData
from s3torch.datasets.sampling import LookAheadBatchSampler
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
)
from tests.support.server import ScriptedServer, serve_object

_COUNT = 11
READERS = {
    "default": None,
    "sequential": S3ReaderConfig.sequential(),
    "range_based": S3ReaderConfig.range_based(),
    "buffered": S3ReaderConfig.range_based(64),
}


def _content(number: int) -> bytes:
    return bytes([number]) * (number * 100)


def decode(reader: S3Reader) -> tuple[str, bytes]:
    """Return what identifies a sample: the last part of its key, and its content."""
    return reader.key.rpartition("/")[2], reader.read()


def decode_tensor(reader: S3Reader) -> torch.Tensor:
    """Return an object's first bytes as a tensor."""
    return torch.frombuffer(bytearray(reader.read(4).ljust(4, b"\0")), dtype=torch.uint8)


def _samples(numbers=range(_COUNT)) -> list[tuple[str, bytes]]:
    return [(f"{number:02}", _content(number)) for number in numbers]


def _as_given(samples: list) -> list:
    return samples


@pytest.fixture(scope="module")
def stored(client, bucket) -> str:
    """The prefix under which the samples lie."""
    prefix = "map/"
    for number in range(_COUNT):
        with client.put_object(bucket, f"{prefix}{number:02}") as writer:
            writer.write(_content(number))
    return prefix


@pytest.fixture
def uri(s3, bucket, stored) -> str:
    """The URI of that prefix, on the server that is found in the environment."""
    return f"s3://{bucket}/{stored}"


@pytest.fixture
def dataset(uri) -> S3MapDataset[tuple[str, bytes]]:
    """A dataset of the samples."""
    return S3MapDataset.from_prefix(uri, transform=decode)


class Numbered(S3MapDataset):
    """A dataset whose samples are something else than what its transform makes."""

    def __getitem__(self, index):
        return index, super().__getitem__(index)


def test_own_getitem(uri):
    """A subclass's own ``__getitem__`` makes each sample of a DataLoader's batches, too."""
    dataset = S3MapDataset.from_prefix(uri, transform=decode)
    numbered = Numbered(None, dataset._get_dataset_objects, transform=decode)
    (batch,) = DataLoader(numbered, batch_size=_COUNT, collate_fn=_as_given)
    assert batch == list(enumerate(_samples()))


# --- What is in it ---------------------------------------------------------------------------------------------------


def test_from_prefix(dataset):
    """A prefix's objects are the samples, in the order of their keys."""
    assert len(dataset) == _COUNT
    assert [dataset[index] for index in range(_COUNT)] == _samples()


def test_a_prefix_is_a_string(uri, bucket, stored):
    """A prefix need not end at a slash, may be a whole key, and may match nothing."""
    for prefix, count in (("map/0", 10), ("map/10", 1), ("map/x", 0)):
        assert len(S3MapDataset.from_prefix(f"s3://{bucket}/{prefix}", allow_empty=True)) == count
    assert len(S3MapDataset.from_prefix(f"s3://{bucket}")) >= _COUNT


def test_markers_of_directories_are_left_out(s3, bucket, prefix, put):
    """Keys of 0 bytes that end in a slash are no samples; empty objects are."""
    for key in ("a/", "a/1", "empty", "z/"):
        put(prefix + key, b"x" if key == "a/1" else b"")
    dataset = S3MapDataset.from_prefix(f"s3://{bucket}/{prefix}", transform=decode)
    assert [dataset[index] for index in range(len(dataset))] == [("1", b"x"), ("empty", b"")]


def test_from_objects(uri):
    """URIs are samples in the order given, as often as given."""
    order = [3, 0, 7, 3]
    dataset = S3MapDataset.from_objects([f"{uri}{number:02}" for number in order], transform=decode)
    assert len(dataset) == 4
    assert [dataset[index] for index in range(4)] == _samples(order)


def test_from_one_object(uri):
    """A single string is one URI, not a sequence of letters."""
    assert S3MapDataset.from_objects(f"{uri}05", transform=decode)[0] == ("05", _content(5))


def test_from_a_generator(uri):
    """URIs can come from a generator, and the dataset be used more than once."""
    dataset = S3MapDataset.from_objects((f"{uri}{number:02}" for number in (1, 2)), transform=decode)
    for _ in range(2):
        assert [dataset[0], dataset[1], len(dataset)] == [*_samples([1, 2]), 2]


def test_from_nothing():
    """No URIs are a dataset without samples."""
    dataset = S3MapDataset.from_objects([], allow_empty=True)
    assert len(dataset) == 0
    with pytest.raises(IndexError):
        dataset[0]


def test_get_dataset_objects(s3, bucket, stored, client):
    """The constructor takes what returns the objects, gives it the client, and asks it once."""
    seen = []

    def objects(its_client: S3Client):
        seen.append(its_client)
        (page,) = its_client.list_objects(bucket, stored)
        yield S3BucketKeyData(bucket, f"{stored}04", page.object_info[4])
        yield S3BucketKeyData(bucket, f"{stored}02")

    dataset = S3MapDataset("us-east-1", objects, transform=decode)
    assert seen == []
    for _ in range(2):
        assert [dataset[0], dataset[-1], len(dataset)] == [*_samples([4, 2]), 2]
    assert seen == [dataset.client]


def test_several_buckets(s3, bucket, uri, client):
    """The objects of a dataset can lie in several buckets."""
    s3.create_bucket("other")
    with client.put_object("other", "99") as writer:
        writer.write(b"other")
    dataset = S3MapDataset.from_objects([f"{uri}01", "s3://other/99", f"{uri}02"], transform=decode)
    assert [dataset[index] for index in range(3)] == [*_samples([1]), ("99", b"other"), *_samples([2])]


class _Labelled(S3MapDataset):
    """A dataset with a ``__getitem__``, and an argument, of its own."""

    def __init__(self, *arguments, label="none", **named):
        super().__init__(*arguments, **named)
        self.label = label

    def __getitem__(self, index):
        return self.label, super().__getitem__(index)


def test_subclasses(uri, dataset):
    """A subclass is made by all three constructors, and it is its own that is asked, in batches too."""
    made = [
        _Labelled.from_prefix(uri, transform=decode, reader_config=S3ReaderConfig.range_based()),
        _Labelled.from_objects([f"{uri}00", f"{uri}01"], transform=decode),
        _Labelled.from_table(dataset.objects, transform=decode),
    ]
    for each in made:
        assert type(each) is _Labelled
        assert each[1] == ("none", _samples([1])[0])
        assert next(iter(DataLoader(each, 2, collate_fn=_as_given))) == [
            ("none", sample) for sample in _samples([0, 1])
        ]
    assert repr(made[0]) == f"<_Labelled {_COUNT} objects, digest {made[0].objects.digest}, reader range_based>"


@pytest.mark.parametrize("kind", [drop_in.S3MapDataset, drop_in.S3IterableDataset])
def test_the_drop_in_from_a_table(dataset, kind):
    """The datasets of s3torchconnector are made of a table as well, and are its classes."""
    made = kind.from_table(dataset.objects, region="us-east-1", transform=decode)
    assert type(made) is kind
    assert list(itertools.islice(made, 2)) == _samples([0, 1])


class _Fewer(S3MapDataset):
    def __init__(self, folder):
        super().__init__(None, lambda _client: [])


def test_a_subclass_of_other_arguments():
    """A subclass whose constructor takes other arguments is told which ones it gets."""
    with pytest.raises(TypeError, match=r"_Fewer.__init__\(\) takes 2 positional arguments but 4 were given"):
        _Fewer.from_prefix("s3://bucket/")
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'transform'"):
        _Fewer.from_prefix("s3://bucket/", transform=decode)


# --- Access ----------------------------------------------------------------------------------------------------------


def test_indices(dataset):
    """Indices count from the end too, and can be of any integer type."""
    assert dataset[-1] == dataset[_COUNT - 1] == _samples()[-1]
    assert dataset[-_COUNT] == dataset[0] == _samples()[0]
    assert dataset[np.int64(3)] == dataset[torch.tensor(3)] == dataset[np.uint8(3)] == _samples()[3]


@pytest.mark.parametrize("index", [_COUNT, -_COUNT - 1, 10**20])
def test_index_out_of_range(dataset, index):
    """There is nothing beyond either end."""
    with pytest.raises(IndexError, match=f"there are {_COUNT} objects"):
        dataset[index]


@pytest.mark.parametrize("index", [slice(3), "1", 1.0, None, [1], torch.tensor([1, 2])])
def test_no_index(dataset, index):
    """A slice, and whatever else is no integer, is a TypeError that says so."""
    with pytest.raises(ArgumentTypeError, match="index must be an integer"):
        dataset[index]


class _Before:
    """A dataset that passes on, to the one that it stands before, what it has not itself."""

    def __init__(self, base):
        self.base = base

    def __getattr__(self, name):
        return getattr(self.base, name)

    def __getitem__(self, index):
        return self.base[index], index


class _ByHelper(_Before):
    def __getattr__(self, name):
        return self._helper(name)

    def _helper(self, name):
        return operator.attrgetter(name)(self.base)


class _ByEverything(_Before):
    def __getattribute__(self, name):
        if name in ("base", "__class__", "__getitem__", "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "base"), name)


class _WithBatches(_Before):
    def __getitems__(self, indices):
        return [(sample, "batch") for sample in self.base.__getitems__(indices)]


@pytest.mark.parametrize("kind", [_Before, _ByHelper, _ByEverything])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_a_dataset_before_it(dataset, kind, num_workers):
    """A DataLoader asks what stands before it for each sample, and it itself for batches."""
    before = kind(dataset)
    loader = DataLoader(before, 2, sampler=[3, 5], num_workers=num_workers, collate_fn=list)
    assert list(loader) == [[(dataset[3], 3), (dataset[5], 5)]]
    assert list(DataLoader(Subset(before, [3, 5]), 2, collate_fn=list)) == [[(dataset[3], 3), (dataset[5], 5)]]
    assert before.client is dataset.client
    assert not hasattr(before, "__getitems__")


def test_batches_where_they_are_wanted(dataset, monkeypatch):
    """Code that names batches gets them: the DataLoader's, torch's own datasets, a wrapper that has some, a user's."""
    assert dataset.__getitems__([3, 5]) == getattr(dataset, "__getitems__")([3, 5]) == [dataset[3], dataset[5]]  # noqa: B009
    assert list(DataLoader(_WithBatches(dataset), 2, sampler=[3], collate_fn=list)) == [[(dataset[3], "batch")]]
    samples = [dataset[3], dataset[5]]
    monkeypatch.setattr(S3MapDataset, "__getitem__", None)  # batches do without, also within torch's own
    for each in (Subset(dataset, [3, 5]), Subset(Subset(dataset, [5, 3]), [1, 0])):
        assert list(DataLoader(each, 2, collate_fn=list)) == [samples]
    assert StackDataset(dataset, dataset).__getitems__([3]) == [(samples[0], samples[0])]


def test_sequence_protocol(dataset):
    """It can be iterated as a sequence, and parts of it be taken as torch's datasets."""
    assert list(itertools.islice(dataset, 3)) == _samples(range(3))
    subset = Subset(dataset, [5, 1])
    assert [subset[0], subset[1]] == _samples([5, 1])


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers(uri, reader):
    """The transform gets the reader that was configured; without a transform that is the sample."""
    dataset = S3MapDataset.from_prefix(uri, reader_config=reader)
    kind = (reader or S3ReaderConfig()).reader_type
    sample = dataset[7]
    assert isinstance(sample, S3Reader)
    assert type(sample).__name__ == {ReaderType.SEQUENTIAL: "SequentialS3Reader"}.get(kind, "RangedS3Reader")
    assert (sample.key, sample.tell(), sample.read()) == ("map/07", 0, _content(7))
    decoded = S3MapDataset.from_prefix(uri, reader_config=reader, transform=decode)
    assert [decoded[index] for index in range(_COUNT)] == _samples()


def test_requests(dataset, uri):
    """Listing is one request for up to 1,000 objects, made once; a sample is one more, without asking for its size."""
    assert dataset.client.stats.requests == 0
    len(dataset)
    assert dataset.client.stats.requests == 1
    for index in (1, 1, -1):
        dataset[index]
    assert dataset.client.stats.requests == 4
    sample = S3MapDataset.from_prefix(uri)[3]
    assert sample.size == 300
    given = S3MapDataset.from_objects([f"{uri}03"], transform=decode)
    assert given[0] == ("03", _content(3))
    assert given.client.stats.requests == 1


def test_lazy(s3):
    """Making a dataset sends nothing, whether its bucket exists or not."""
    dataset = S3MapDataset.from_prefix("s3://no-such-bucket/")
    assert dataset.client.stats.requests == 0
    assert repr(dataset) == "<S3MapDataset not listed yet, reader sequential>"


def test_repr(dataset, uri):
    """The repr tells which objects they are, once that is known, and the reader."""
    digest = dataset.objects.digest
    assert repr(dataset) == f"<S3MapDataset {_COUNT} objects, digest {digest}, reader sequential>"
    ranged = S3MapDataset.from_objects([], reader_config=S3ReaderConfig.range_based())
    assert repr(ranged) == "<S3MapDataset not listed yet, reader range_based>"


@pytest.mark.parametrize("reader", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based()])
def test_user_agent(reader):
    """The user agent says that a map-style dataset asks, and by which reader."""
    dataset = S3MapDataset.from_objects([], reader_config=reader)
    assert dataset.client.user_agent.endswith(f" (md/dataset#map md/reader_type#{reader.reader_type.value})")


def test_configuration_reaches_the_client():
    """Region, endpoint and configuration are the client's."""
    config = S3ClientConfig(max_attempts=3)
    dataset = S3MapDataset.from_objects([], region="eu-west-1", endpoint="http://h:9", s3client_config=config)
    client = dataset.client
    assert (client.region, client.endpoint, client.s3client_config) == ("eu-west-1", "http://h:9", config)
    assert (dataset.region, dataset.endpoint) == ("eu-west-1", "http://h:9")


# --- DataLoader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [S3ReaderConfig.sequential(), S3ReaderConfig.range_based()], ids=["seq", "ranged"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_loader(uri, reader, num_workers):
    """A DataLoader yields every sample once, in order, with workers as without, epoch after epoch."""
    dataset = S3MapDataset.from_prefix(uri, transform=decode, reader_config=reader)
    loader = DataLoader(
        dataset, 4, num_workers=num_workers, collate_fn=_as_given, multiprocessing_context=_fork(num_workers)
    )
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4, 3]
        assert list(itertools.chain(*batches)) == _samples()


def _fork(num_workers: int) -> str | None:
    return "fork" if num_workers else None


# Who is spawned imports torch, which takes seconds; test_one_listing.py has such workers.
@pytest.mark.parametrize(("method", "workers"), [pytest.param("spawn", 1, marks=pytest.mark.soak), ("forkserver", 2)])
def test_workers_that_are_not_forked(dataset, forkserver, method, workers):
    """A dataset is pickled to workers that are not forked, and reads there."""
    context = forkserver if method == "forkserver" else method
    loader = DataLoader(dataset, 4, num_workers=workers, collate_fn=_as_given, multiprocessing_context=context)
    assert list(itertools.chain(*loader)) == _samples()


def test_forked_after_use(dataset):
    """Workers can be forked from a process whose dataset has connections open, which goes on using them."""
    assert dataset[1] == _samples()[1]
    loader = DataLoader(dataset, 4, num_workers=2, collate_fn=_as_given, multiprocessing_context="fork")
    for batch in loader:
        assert batch[0] == dataset[int(batch[0][0])]
    assert dataset.client.stats.connections_opened == 1


def test_shuffle_and_tensors(uri):
    """Shuffled batches of tensors hold each sample once, by the seed's order."""
    dataset = S3MapDataset.from_prefix(uri, transform=decode_tensor)
    loader = DataLoader(
        dataset,
        3,
        shuffle=True,
        num_workers=2,
        multiprocessing_context="fork",
        generator=torch.Generator().manual_seed(1),
    )
    values = torch.cat(list(loader))
    assert values.shape == (_COUNT, 4)
    assert sorted(values[:, 0].tolist()) == list(range(_COUNT)) != values[:, 0].tolist()


def test_batch_sampler(dataset):
    """A sampler of batches says which samples come together."""
    sampler = BatchSampler([4, 2, 9], 2, drop_last=False)
    assert list(DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_given)) == [_samples([4, 2]), _samples([9])]


def test_distributed_sampler(dataset):
    """The ranks of a DistributedSampler share the samples: all of them, padded to equal counts."""
    per_rank = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        loader = DataLoader(dataset, 3, sampler=sampler, num_workers=0, collate_fn=_as_given)
        per_rank.append(list(itertools.chain(*loader)))
    assert [len(samples) for samples in per_rank] == [6, 6]
    assert {name for samples in per_rank for name, _ in samples} == {name for name, _ in _samples()}


def test_readers_travel(uri, s3):
    """Without a transform workers return readers, which read on where they arrive."""
    dataset = S3MapDataset.from_objects([f"{uri}03", f"{uri}05"])
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=_as_given, multiprocessing_context="fork")
    (batch,) = loader
    assert [decode(reader) for reader in batch] == _samples([3, 5])


def test_pickle(dataset, s3):
    """A dataset pickles with its listing and without secrets; a lambda as transform does not pickle."""
    len(dataset)
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert s3.secret_key.encode() not in pickled
    restored = pickle.loads(pickled)
    assert len(restored) == _COUNT
    assert restored.client.stats.requests == 0
    assert restored[3] == dataset[3]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(S3MapDataset.from_objects([], transform=lambda reader: reader))


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["", "bucket/key", "http://bucket/key", "s3://", "s3:///key"])
def test_bad_uris(uri):
    """A URI that is none is refused where it is given, not in a worker an hour later."""
    with pytest.raises(InvalidURIError, match=f"got {uri!r}"):
        S3MapDataset.from_prefix(uri)
    for uris in (uri, ["s3://bucket/key", uri], iter([uri])):
        with pytest.raises(InvalidURIError, match=f"got {uri!r}"):
            S3MapDataset.from_objects(uris)


@pytest.mark.parametrize("uri", [None, 5, b"s3://bucket/key"])
def test_no_uris(uri):
    """What is no string is a TypeError that names it."""
    with pytest.raises(ArgumentTypeError):
        S3MapDataset.from_prefix(uri)
    with pytest.raises(ArgumentTypeError):
        S3MapDataset.from_objects([uri])
    with pytest.raises(ArgumentError):
        S3MapDataset.from_objects(uri)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_an_object_without_a_key(uri):
    """A URI of a bucket alone names no object: it is refused before any request."""
    with pytest.raises(ArgumentError, match=r"[Kk]ey"):
        S3MapDataset.from_objects([uri], transform=decode)[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"reader_config": "range_based"}, "reader_config"),
        ({"reader_config": ReaderType.RANGE_BASED}, "reader_config"),
        ({"transform": None}, "transform"),
        ({"transform": 5}, "transform"),
        ({"s3client_config": {}}, "s3client_config"),
        ({"region": 5}, "region"),
    ],
)
def test_wrong_types(arguments, name):
    """An argument of a wrong type is refused by name when the dataset is made."""
    for make in (S3MapDataset.from_prefix, S3MapDataset.from_objects):
        with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
            make("s3://bucket/", **arguments) if make == S3MapDataset.from_prefix else make([], **arguments)


def test_get_dataset_objects_must_be_callable():
    """What is to return the objects must be callable: a list of them is refused by name."""
    with pytest.raises(ArgumentTypeError, match="get_dataset_objects must be"):
        S3MapDataset(None, [S3BucketKeyData("bucket", "key")])


def test_replaced_since_the_listing(s3, bucket, prefix, put):
    """An object that changed its size since the listing raises: no sample is cut or padded."""
    for number in range(2):
        put(f"{prefix}{number}", b"x" * 100)
    for reader in READERS.values():
        dataset = S3MapDataset.from_prefix(f"s3://{bucket}/{prefix}", transform=decode, reader_config=reader)
        assert dataset[0] == ("0", b"x" * 100)
        put(f"{prefix}1", b"y" * 50)
        with pytest.raises(ObjectChangedError, match=f"s3://{bucket}/{prefix}1"):
            dataset[1]
        put(f"{prefix}1", b"x" * 100)
        assert dataset[1] == ("1", b"x" * 100)


def _missing(client: S3Client):
    return [S3BucketKeyData("no-such-bucket", "key"), S3BucketKeyData("tests", "no-such-key", ObjectInfo("", "", 9, 0))]


def test_errors_in_workers(s3, errors_of):
    """An error in a worker arrives as what it is, with its sentence, and the loader goes on."""
    dataset = S3MapDataset(None, _missing, transform=decode)
    errors = errors_of(DataLoader(dataset, None, num_workers=1, multiprocessing_context="fork"))
    assert [type(error) for error in errors] == [BucketNotFoundError, ObjectNotFoundError]
    assert "Bucket 'no-such-bucket' of s3://no-such-bucket/key does not exist" in str(errors[0])
    assert "s3://tests/no-such-key does not exist" in str(errors[1])


def test_listing_a_missing_bucket_in_a_worker(s3, errors_of):
    """So it does where the worker is the first to list."""
    dataset = S3MapDataset.from_prefix("s3://no-such-bucket/", transform=decode)
    with pytest.raises(BucketNotFoundError, match="s3://no-such-bucket"):
        len(dataset)
    loader = DataLoader(dataset, None, sampler=[0], num_workers=1, multiprocessing_context="fork")
    (error,) = errors_of(loader)
    assert isinstance(error, BucketNotFoundError)
    assert "s3://no-such-bucket" in str(error)


@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_what_was_begun_ahead_is_not_begun_again(batches_ahead: int):
    """Each object is requested once, also where the batch before it has begun it."""
    with ScriptedServer(serve_object(b"x" * 100)) as server:
        dataset = S3MapDataset.from_objects(
            [f"s3://b/{number}" for number in range(8)],
            region="us-east-1",
            endpoint=server.endpoint,
            transform=S3Reader.read,
            s3client_config=S3ClientConfig(unsigned=True, hedging=False),
        )
        for batch in LookAheadBatchSampler([[0, 1], [2, 3], [4, 5], [6, 7]], batches_ahead=batches_ahead):
            assert dataset.__getitems__(batch) == [b"x" * 100] * 2
        assert sorted(request.path for request in server.requests) == [f"/b/{number}" for number in range(8)]
