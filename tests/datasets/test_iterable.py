"""S3IterableDataset: samples as a stream, divided among ranks and DataLoader workers."""

from __future__ import annotations

import itertools
import os
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext

import pytest
import torch.distributed
from torch.utils.data import ChainDataset, DataLoader

from s3torch import ReaderType, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Reader, S3ReaderConfig
from s3torch.datasets import S3BucketKeyData
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
)

_COUNT = 23
READERS = {
    "sequential": S3ReaderConfig.sequential(),
    "range_based": S3ReaderConfig.range_based(),
    "buffered": S3ReaderConfig.range_based(64),
}


def decode(reader: S3Reader) -> int:
    """Return the number that is an object's content."""
    return int(reader.read())


def as_given(samples: list) -> list:
    """Collate nothing."""
    return samples


@pytest.fixture(scope="module")
def stored(client, bucket) -> str:
    """The prefix under which the samples lie."""
    prefix = "iterable/"
    for number in range(_COUNT):
        with client.put_object(bucket, f"{prefix}{number:02}") as writer:
            writer.write(b"%d" % number)
    return prefix


@pytest.fixture
def uri(s3, bucket, stored) -> str:
    """The URI of that prefix, on the server that is found in the environment."""
    return f"s3://{bucket}/{stored}"


def _loader(
    dataset: S3IterableDataset, num_workers: int, context: str | BaseContext = "fork", **arguments: object
) -> DataLoader:
    return DataLoader(
        dataset,
        None,
        num_workers=num_workers,
        collate_fn=as_given,
        multiprocessing_context=context if num_workers else None,
        **arguments,
    )


# --- What is in it ---------------------------------------------------------------------------------------------------


def test_from_prefix(uri):
    """A prefix's objects are the samples, in the order of their keys, epoch after epoch."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode)
    for _ in range(2):
        assert list(dataset) == list(range(_COUNT))


def test_markers_of_directories_are_left_out(s3, bucket, prefix, put):
    """Keys of 0 bytes that end in a slash are no samples."""
    put(f"{prefix}a/", b"")
    put(f"{prefix}a/1", b"1")
    assert list(S3IterableDataset.from_prefix(f"s3://{bucket}/{prefix}", transform=decode)) == [1]


def test_from_objects(uri):
    """URIs are samples in the order given, from a list, a generator or a single string, for more than one epoch."""
    order = [3, 0, 7, 3]
    uris = [f"{uri}{number:02}" for number in order]
    for given in (uris, iter(uris), tuple(uris)):
        dataset = S3IterableDataset.from_objects(given, transform=decode)
        assert list(dataset) == list(dataset) == order
    assert list(S3IterableDataset.from_objects(uris[2], transform=decode)) == [7]
    assert list(S3IterableDataset.from_objects([], allow_empty=True)) == []


def test_get_dataset_objects(s3, bucket, stored):
    """The constructor takes what returns the objects; it is asked for each iteration anew."""
    asked = []

    def objects(client):
        asked.append(client)
        return [S3BucketKeyData(bucket, f"{stored}{number:02}") for number in (5, len(asked))]

    dataset = S3IterableDataset(None, objects, transform=decode)
    assert asked == []
    assert list(dataset) == [5, 1]
    assert list(dataset) == [5, 2]
    assert asked == [dataset.client] * 2


def test_listed_anew(s3, bucket, prefix, put):
    """What is stored between two iterations is in the second."""
    put(f"{prefix}1", b"1")
    dataset = S3IterableDataset.from_prefix(f"s3://{bucket}/{prefix}", transform=decode)
    assert list(dataset) == [1]
    put(f"{prefix}0", b"0")
    assert list(dataset) == [0, 1]


def test_lazy(uri):
    """Making a dataset sends nothing; an iteration lists, and then reads as many objects ahead as is configured."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, s3client_config=S3ClientConfig(max_objects_ahead=1))
    assert dataset.client.stats.requests == 0
    samples = iter(dataset)
    assert [next(samples), next(samples)] == [0, 1]
    assert dataset.client.stats.requests == 3


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers(uri, reader):
    """The transform gets the reader that was configured; without a transform that is the sample."""
    samples = list(S3IterableDataset.from_prefix(uri, reader_config=reader))
    kind = "SequentialS3Reader" if reader.reader_type is ReaderType.SEQUENTIAL else "RangedS3Reader"
    assert {type(sample).__name__ for sample in samples} == {kind}
    assert [decode(sample) for sample in samples] == list(range(_COUNT))
    assert list(S3IterableDataset.from_prefix(uri, reader_config=reader, transform=decode)) == list(range(_COUNT))


def test_two_iterations_at_once(uri):
    """Two iterators of one dataset do not disturb each other."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode)
    first, second = iter(dataset), iter(dataset)
    assert [next(first), next(first), next(second), next(first)] == [0, 1, 0, 2]


def test_chained(uri):
    """It is torch's IterableDataset, and can be chained as one."""
    dataset = S3IterableDataset.from_objects([f"{uri}01"], transform=decode)
    assert list(dataset + dataset) == list(ChainDataset([dataset, dataset])) == [1, 1]


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_user_agent(reader):
    """The user agent says that an iterable dataset asks, and by which reader."""
    dataset = S3IterableDataset.from_objects([], reader_config=reader)
    assert dataset.client.user_agent.endswith(f" (md/dataset#iterable md/reader_type#{reader.reader_type.value})")


def test_repr():
    """The repr tells whether it is sharded, and the reader."""
    dataset = S3IterableDataset.from_objects([], enable_sharding=True)
    assert repr(dataset) == "<S3IterableDataset sharding on, reader sequential>"
    dataset = S3IterableDataset.from_objects([], reader_config=S3ReaderConfig.range_based())
    assert repr(dataset) == "<S3IterableDataset sharding off, reader range_based>"


class _Labelled(S3IterableDataset):
    def __iter__(self):
        return (("label", sample) for sample in super().__iter__())


def test_subclasses(uri):
    """A subclass is made by all three constructors, with all their arguments."""
    table = S3IterableDataset.from_objects([f"{uri}00", f"{uri}01"]).objects
    for each in (
        _Labelled.from_prefix(uri, transform=decode, enable_sharding=True),
        _Labelled.from_objects([f"{uri}00"], transform=decode, enable_sharding=True),
        _Labelled.from_table(table, transform=decode, enable_sharding=True),
    ):
        assert type(each) is _Labelled
        assert next(iter(each)) == ("label", 0)
        assert repr(each) == "<_Labelled sharding on, reader sequential>"


def test_pickle(uri, s3):
    """A dataset pickles, without secrets."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, s3client_config=S3ClientConfig(max_attempts=3))
    next(iter(dataset))
    pickled = pickle.dumps(dataset)
    assert s3.secret_key.encode() not in pickled
    restored = pickle.loads(pickled)
    assert restored.client.s3client_config.max_attempts == 3
    assert list(restored) == list(range(_COUNT))


# --- Workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_share(uri, num_workers, reader):
    """With sharding each object comes once over all workers, in every epoch."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True, reader_config=reader)
    loader = _loader(dataset, num_workers)
    epochs = [list(loader), list(loader)]
    assert epochs[0] == epochs[1]
    assert sorted(epochs[0]) == list(range(_COUNT))


# Who is spawned imports torch, which takes seconds; test_one_listing.py has such workers.
@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.soak), "forkserver"])
def test_workers_that_are_not_forked(uri, forkserver, method):
    """A dataset is pickled to workers that are not forked, and divided among them as well."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
    context = forkserver if method == "forkserver" else method
    assert sorted(_loader(dataset, 2, context)) == list(range(_COUNT))


def test_persistent_workers(uri):
    """Workers that stay for the next epoch read it anew."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
    loader = _loader(dataset, 2, persistent_workers=True)
    assert [sorted(loader), sorted(loader)] == [list(range(_COUNT))] * 2


def test_batches(uri):
    """Each worker makes batches of its own share."""
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
    batches = list(DataLoader(dataset, 5, num_workers=2, multiprocessing_context="fork"))
    assert sorted(len(batch) for batch in batches) == [1, 2, 5, 5, 5, 5]
    assert sorted(torch.cat(batches).tolist()) == list(range(_COUNT))


def test_more_workers_than_objects(uri):
    """Workers without an object yield nothing."""
    dataset = S3IterableDataset.from_objects([f"{uri}04"], transform=decode, enable_sharding=True)
    assert list(_loader(dataset, 2)) == [4]


def test_without_sharding_everybody_reads_everything(uri):
    """Without sharding each worker yields all objects."""
    dataset = S3IterableDataset.from_objects([f"{uri}01", f"{uri}02"], transform=decode)
    assert sorted(_loader(dataset, 2, worker_init_fn=_ignore_warnings)) == [1, 1, 2, 2]


def _ignore_warnings(_worker: int) -> None:
    warnings.simplefilter("ignore")


@pytest.mark.parametrize(("rank", "warns"), [(0, True), (1, False)])
def test_warning(uri, monkeypatch, rank, warns):
    """That everybody reads everything is warned of once, by the first rank, at the iteration."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = S3IterableDataset.from_objects([f"{uri}01"], transform=decode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(dataset) == [1]
    sentence = (
        "Each of 2 ranks x 1 DataLoader workers yields every object of this S3IterableDataset. "
        "Pass enable_sharding=True to read each object once."
    )
    assert [str(warning.message) for warning in caught] == warns * [sentence]
    assert all(warning.filename == __file__ for warning in caught)


def test_no_warning(uri):
    """A single reader has nobody to share with, and sharding has nothing to warn of."""
    for enable_sharding in (False, True):
        dataset = S3IterableDataset.from_objects([f"{uri}01"], transform=decode, enable_sharding=enable_sharding)
        assert list(dataset) == list(_loader(dataset, 1)) == [1]  # warnings are errors


# --- Ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_of_the_environment(uri, monkeypatch, num_workers):
    """Ranks are those of torchrun's variables where there is no process group, in workers too."""
    per_rank = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
        per_rank.append(sorted(_loader(dataset, num_workers)))
    assert [len(samples) for samples in per_rank] == [8, 8, 7]
    assert sorted(itertools.chain(*per_rank)) == list(range(_COUNT))


def _rank(rank: int, uri: str, meeting: str) -> list[list[int]]:
    """Be one of two ranks; returns its samples of two epochs, with two workers, and of one without."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # here, as the forkserver's environment is not the test's
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
        return [list(_loader(dataset, 2)), list(_loader(dataset, 2)), list(dataset)]
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_of_a_process_group(uri, tmp_path, forkserver):
    """Over two ranks of two workers each, every object comes exactly once in every epoch."""
    meeting = str(tmp_path / "meeting")
    with ProcessPoolExecutor(2, forkserver) as pool:
        ranks = [pool.submit(_rank, rank, uri, meeting) for rank in range(2)]
        found = [rank.result() for rank in ranks]
    for first, second in zip(*found, strict=True):
        assert (len(first), len(second)) == (12, 11)
        assert sorted(first + second) == list(range(_COUNT))


def _late_rank(rank: int, uri: str, meeting: str) -> list[int]:
    """Be one of two ranks whose process group is made after the dataset; returns what a worker yields.

    That of the second is spawned, and has no process group. It is the one that would take itself for the only one.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dataset = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        return list(_loader(dataset, 1, "spawn" if rank else "fork"))
    finally:
        torch.distributed.destroy_process_group()


def test_a_process_group_that_is_made_later(uri, tmp_path, forkserver):
    """Ranks share though the dataset was made before the process group, and its workers have none."""
    meeting = str(tmp_path / "meeting")
    with ProcessPoolExecutor(2, forkserver) as pool:
        ranks = [pool.submit(_late_rank, rank, uri, meeting) for rank in range(2)]
        first, second = (rank.result() for rank in ranks)
    assert (len(first), len(second)) == (12, 11)
    assert sorted(first + second) == list(range(_COUNT))


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["", "bucket/key", "s3://", "s3:///key"])
def test_bad_uris(uri):
    """A URI that is none is refused where it is given."""
    with pytest.raises(InvalidURIError, match=f"got {uri!r}"):
        S3IterableDataset.from_prefix(uri)
    with pytest.raises(InvalidURIError, match=f"got {uri!r}"):
        S3IterableDataset.from_objects(["s3://bucket/key", uri])


@pytest.mark.parametrize("uris", [None, 5, [None]])
def test_no_uris(uris):
    """What is no string, or no iterable of strings, is refused by name."""
    with pytest.raises(ArgumentError):
        S3IterableDataset.from_objects(uris)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"reader_config": "range_based"}, "reader_config"),
        ({"transform": None}, "transform"),
        ({"s3client_config": {}}, "s3client_config"),
        ({"enable_sharding": "no"}, "enable_sharding"),
    ],
)
def test_wrong_types(arguments, name):
    """An argument of a wrong type is refused by name when the dataset is made."""
    with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
        S3IterableDataset.from_objects([], **arguments)


def test_replaced_during_the_iteration(s3, bucket, prefix, put):
    """An object that was replaced after it was listed raises: no sample is cut, padded or of another version."""
    for number in range(2):
        put(f"{prefix}{number}", b"12345")
    config = S3ClientConfig(max_objects_ahead=1)  # else it is fetched before it is replaced
    uri = f"s3://{bucket}/{prefix}"
    samples = iter(S3IterableDataset.from_prefix(uri, transform=decode, s3client_config=config))
    assert next(samples) == 12345
    put(f"{prefix}1", b"54321")
    with pytest.raises(ObjectChangedError, match=f"s3://{bucket}/{prefix}1"):
        next(samples)


class _Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("raised", "again", "message"),
    [
        (ObjectNotFoundError("gone", key="k"), ObjectNotFoundError, "gone"),
        (ValueError("mine"), RuntimeError, "cannot go on, as it has failed before: ValueError: mine"),
        (_Stopped("now"), RuntimeError, "cannot go on: it was interrupted while it was listing"),
    ],
)
def test_after_an_error_there_is_no_end(uri, bucket, stored, raised, again, message):
    """A listing that failed fails again for who goes on: an end would say that all samples have come."""

    def objects(_client):
        yield S3BucketKeyData(bucket, f"{stored}01")
        raise raised

    samples = iter(
        S3IterableDataset(None, objects, transform=decode, s3client_config=S3ClientConfig(max_objects_ahead=1))
    )
    assert next(samples) == 1
    with pytest.raises(type(raised)):
        next(samples)
    for _ in range(2):
        with pytest.raises(again, match=message) as caught:
            next(samples)
        assert getattr(caught.value, "key", "k") == "k"


@pytest.mark.parametrize("objects", [None, 5])
@pytest.mark.parametrize("kind", [S3IterableDataset, S3MapDataset])
def test_what_returns_no_objects(kind, objects):
    """What get_dataset_objects returns must be iterable: else an error of type shows it."""
    with pytest.raises(
        ArgumentTypeError, match=f"get_dataset_objects must return an iterable of objects, got {objects}"
    ):
        next(iter(kind(None, lambda _client: objects)))


@pytest.mark.parametrize("make", [S3IterableDataset.from_prefix, S3MapDataset.from_prefix, S3MapDataset.from_objects])
def test_lone_surrogates(make):
    """A prefix or a key that no request can hold is refused where it is given."""
    with pytest.raises(InvalidURIError, match="surrogates not allowed"):
        make("s3://bucket/\ud800")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols(uri, client, bucket, stored, protocol):
    """Datasets, clients and readers pickle by every protocol."""
    stream = S3IterableDataset.from_prefix(uri, transform=decode, enable_sharding=True)
    by_index = S3MapDataset.from_prefix(uri, transform=decode)
    assert by_index[3] == 3
    for dataset in (stream, by_index):
        again = pickle.loads(pickle.dumps(dataset, protocol))
        assert list(again) == list(range(_COUNT))
        again.client.close()
    for dataset in (stream, by_index):
        dataset.client.close()
    for reader_config in READERS.values():
        reader = client.get_object(bucket, f"{stored}07", reader_config=reader_config)
        again = pickle.loads(pickle.dumps(reader, protocol))
        assert again.read() == b"7"
        again.close()
    assert pickle.loads(pickle.dumps(client, protocol)).stats.requests == 0


def test_errors_in_workers(s3, errors_of):
    """Errors in workers arrive as what they are: of the listing, and of an object."""
    dataset = S3IterableDataset.from_prefix("s3://no-such-bucket/", transform=decode)
    errors = errors_of(_loader(dataset, 1))  # again and again, as an end would say that all samples have come
    assert {type(error) for error in errors} == {BucketNotFoundError}
    assert "Bucket 'no-such-bucket'" in str(errors[0])
    dataset = S3IterableDataset.from_objects(["s3://tests/no-such-key"] * 2, transform=decode)
    errors = errors_of(_loader(dataset, 1))
    assert {type(error) for error in errors} == {ObjectNotFoundError}
    assert "s3://tests/no-such-key does not exist" in str(errors[0])
