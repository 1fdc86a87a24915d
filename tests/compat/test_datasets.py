"""Datasets, as programs written for s3torchconnector use them: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.compat.connector import OBJECTS, content_of, importable, run_program

with importable():
    from s3torchconnector import S3IterableDataset, S3MapDataset, S3Reader, S3ReaderConstructor
    from s3torchconnector._s3bucket_key_data import S3BucketKeyData
    from s3torchconnector._s3client import S3Client

pytestmark = pytest.mark.usefixtures("found")

REGION = "us-east-1"
KINDS = [S3MapDataset, S3IterableDataset]
READERS = [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.range_based(0)]


@pytest.fixture
def uris(folder) -> list[str]:
    """The URIs of its objects."""
    return [f"{folder}{number:03}" for number in range(OBJECTS)]


def number_and_content(reader: S3Reader) -> tuple[int, bytes]:
    """Make a sample: the number that is an object's name, and its content."""
    return int(reader.key.rpartition("/")[2]), reader.read()


def as_listed(batch: list[Any]) -> list[Any]:
    """Collate nothing."""
    return batch


WHOLE = [(number, content_of(number)) for number in range(OBJECTS)]


def test_first_example(folder, bucket):
    """The first example of the documentation: iterate over one dataset, index the other."""
    iterable_dataset = S3IterableDataset.from_prefix(folder, region=REGION)
    assert [item.key for item in iterable_dataset] == [f"compat/images/{number:03}" for number in range(OBJECTS)]
    map_dataset = S3MapDataset.from_prefix(folder, region=REGION)
    assert len(map_dataset) == OBJECTS
    item = map_dataset[0]
    assert isinstance(item, S3Reader)
    assert (item.bucket, item.key) == (bucket, "compat/images/000")
    content = item.read()
    assert content == content_of(0)
    assert [item.read() for item in map_dataset] == [content for _, content in WHOLE]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constructor", READERS)
def test_all_ways_to_make_one(folder, uris, kind: Any, constructor: Any):
    """By prefix, by URIs, by a generator of them, and by a function: the same samples, in order, again and again."""

    def listed(client: S3Client) -> list[S3BucketKeyData]:
        bucket, _, prefix = folder.removeprefix("s3://").partition("/")
        pages = client.list_objects(bucket, prefix)
        return [S3BucketKeyData(bucket, info.key, info) for page in pages for info in page.object_info]

    given = {"region": REGION, "transform": number_and_content, "reader_constructor": constructor}
    made = [
        kind.from_prefix(folder, **given),
        kind.from_prefix(s3_uri=folder, **given),
        kind.from_objects(uris, **given),
        kind.from_objects(object_uris=tuple(uris), **given),
        kind(get_dataset_objects=listed, **given),
        kind(REGION, listed, None, number_and_content, None, reader_constructor=constructor),
    ]
    for dataset in made:
        assert list(dataset) == WHOLE
        assert list(dataset) == WHOLE


def test_one_object(uris):
    """One URI, as a str, is a dataset of one object; none is an empty one; a generator's are taken once."""
    assert [reader.read() for reader in S3MapDataset.from_objects(uris[3], region=REGION)] == [content_of(3)]
    assert len(S3MapDataset.from_objects([], region=REGION)) == 0
    assert list(S3IterableDataset.from_objects([], region=REGION)) == []
    dataset = S3MapDataset.from_objects((uri for uri in uris), region=REGION)
    assert (len(dataset), len(dataset), dataset[-1].key[-3:]) == (OBJECTS, OBJECTS, "022")


def test_prefix_is_no_folder(folder, uris):
    """A prefix is the begin of a key, whatever follows; without one, a bucket is all of its objects."""
    both = S3MapDataset.from_prefix(folder.removesuffix("/"), region=REGION)
    assert {reader.key for reader in both} == {"compat/images-2", *(uri.split("/", 3)[3] for uri in uris)}
    assert len(S3MapDataset.from_prefix("s3://" + folder.split("/")[2], region=REGION)) > OBJECTS
    assert len(S3MapDataset.from_prefix(f"{folder}nothing", region=REGION)) == 0


def test_indices(uris):
    """A map dataset is indexed as a list is."""
    dataset = S3MapDataset.from_objects(uris, region=REGION, transform=number_and_content)
    assert dataset[OBJECTS - 1] == dataset[-1] == WHOLE[-1]
    assert dataset[-OBJECTS] == WHOLE[0]
    for index in (OBJECTS, -OBJECTS - 1):
        with pytest.raises(IndexError, match="list index out of range"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset["0"]


def test_kinds():
    """They are datasets of torch; an iterable one has no length."""
    assert issubclass(S3MapDataset, Dataset)
    assert issubclass(S3IterableDataset, IterableDataset)
    assert not isinstance(S3MapDataset.from_objects([], region=REGION), IterableDataset)
    dataset = S3IterableDataset.from_objects([], region=REGION)
    with pytest.raises(TypeError, match=r"has no len\(\)"):
        len(dataset)


def test_attributes(s3, uris):
    """Both tell region and endpoint."""
    for kind in KINDS:
        dataset = kind.from_objects(uris, region=REGION, endpoint=s3.endpoint)
        assert (dataset.region, dataset.endpoint) == (REGION, s3.endpoint)
        assert kind.from_objects(uris, region=REGION).endpoint is None


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_transform(uris, kind: Any):
    """What a transform raises comes out as it is."""

    def refuse(reader: S3Reader) -> None:
        raise LookupError(reader.key)

    with pytest.raises(LookupError, match="compat/images/000"):
        next(iter(kind.from_objects(uris, region=REGION, transform=refuse)))


@pytest.mark.parametrize("kind", KINDS)
def test_pickles(folder, kind: Any):
    """A dataset pickles, before it was used and after."""
    dataset = kind.from_prefix(folder, region=REGION, transform=number_and_content)
    assert list(pickle.loads(pickle.dumps(dataset))) == WHOLE
    assert next(iter(dataset)) == WHOLE[0]
    assert list(pickle.loads(pickle.dumps(dataset))) == WHOLE


def test_loaders_in_this_process(folder):
    """Batches of a map dataset, shuffled; an iterable one; both without workers."""
    shuffled = S3MapDataset.from_prefix(folder, region=REGION, transform=number_and_content)
    batches = list(DataLoader(shuffled, batch_size=4, shuffle=True, collate_fn=as_listed))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert sorted(sample for batch in batches for sample in batch) == WHOLE
    stream = S3IterableDataset.from_prefix(folder, region=REGION, transform=number_and_content, enable_sharding=True)
    batches = list(DataLoader(stream, batch_size=4, drop_last=True, collate_fn=as_listed))
    assert [sample for batch in batches for sample in batch] == WHOLE[:20]


def test_workers_of_each_start_method(folder):
    """A program's DataLoaders yield every object exactly once by each start method, in torch's order."""
    found = json.loads(run_program("loaders", folder))
    everything = [[f"{number:03}", len(content)] for number, content in WHOLE]
    assert set(found) == {"fork", "spawn", "forkserver"}
    for method, (batches, stream, unsharded) in found.items():
        assert [sample for batch in batches for sample in batch] == everything, method
        assert sorted(stream) == everything, method
        assert [stream[0], stream[1]] == [everything[0], everything[1]], method  # a sample of each worker in turn
        assert unsharded is None or sorted(unsharded) == sorted(everything * 2), method


# Classes of the program's own


class Labelled(Dataset):
    """A dataset of the program's own, which stands before another and passes on what it has not itself."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.base, name)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.base[index], index * 10


def test_datasets_before_it(uris):
    """A DataLoader's batches are made by the ``__getitem__`` of a dataset that stands before a map dataset."""
    labelled = Labelled(S3MapDataset.from_objects(uris, region=REGION, transform=number_and_content))
    batches = list(DataLoader(labelled, batch_size=5, collate_fn=as_listed))
    assert [sample for batch in batches for sample in batch] == [(sample, sample[0] * 10) for sample in WHOLE]
    assert labelled.region == REGION


class Odd(S3MapDataset):
    """A dataset that filters what was listed."""

    @property
    def _dataset_bucket_key_pairs(self) -> Any:
        return [pair for pair in super()._dataset_bucket_key_pairs if int(pair.key[-3:]) % 2]


class Numbered(S3MapDataset):
    """A dataset that opens objects itself."""

    def __getitem__(self, index: int) -> Any:
        return index, self._get_object(index).read()


class Reversed(S3IterableDataset):
    """A dataset that iterates itself."""

    def __iter__(self) -> Any:
        pairs = list(self._get_dataset_objects(self._get_client()))
        return map(self._get_transformed_object, reversed(pairs))


def test_filtered_objects(folder):
    """What a program leaves of the objects is what there is."""
    odd = Odd.from_prefix(folder, region=REGION, transform=number_and_content)
    assert (len(odd), odd[1], list(odd)) == (OBJECTS // 2, WHOLE[3], WHOLE[1::2])
    assert list(DataLoader(odd, batch_size=None, collate_fn=as_listed)) == WHOLE[1::2]
    few = S3MapDataset.from_prefix(folder, region=REGION, transform=number_and_content)
    few._bucket_key_pairs = few._dataset_bucket_key_pairs[:2]
    assert list(few) == WHOLE[:2]


def test_overridden_methods(folder):
    """Methods of the program's own open objects as those of the package do."""
    assert Numbered.from_prefix(folder, region=REGION)[3] == WHOLE[3]
    assert list(Reversed.from_prefix(folder, region=REGION, transform=number_and_content)) == WHOLE[::-1]


@pytest.mark.parametrize("base", KINDS)
def test_other_client(folder, base: Any):
    """A dataset of the program's own may have another client."""
    given = S3Client(REGION)

    class Other(base):
        def _get_client(self) -> S3Client:
            return given

    for dataset in (Other.from_prefix(folder, region="eu-west-3", endpoint="http://127.0.0.1:9"),):
        assert [reader.read() for reader in dataset] == [content for _, content in WHOLE]


class WithRegion(S3MapDataset):
    """A dataset that has attributes of its own, whatever their names."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._region = "its own"
        self.label = 5


def test_attributes_of_its_own(uris):
    """Attributes of a subclass are pickled with it."""
    dataset = WithRegion.from_objects(uris, region=REGION, transform=number_and_content)
    again = pickle.loads(pickle.dumps(dataset))
    assert (again._region, again.label) == ("its own", 5)


def test_facts_of_listed_objects(folder, client, bucket):
    """A constructor of the program's own is told all that a listing tells, of both datasets."""
    told = []

    def constructor(bucket: str, key: str, get_object_info: Any, get_stream: Any) -> str:
        told.append(get_object_info())
        return key

    S3MapDataset.from_prefix(folder, region=REGION, reader_constructor=constructor)[3]
    next(iter(S3IterableDataset.from_prefix(folder, region=REGION, reader_constructor=constructor)))
    for number, info in zip((3, 0), told, strict=True):
        expected = client.head_object(bucket, f"compat/images/{number:03}")
        assert (info.etag.strip('"'), info.size) == (expected.etag.strip('"'), expected.size)
        assert abs(info.last_modified - expected.last_modified) <= 1
