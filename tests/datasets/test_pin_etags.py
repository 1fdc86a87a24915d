"""``pin_etags=True``: an object that was replaced since it was listed is refused, also by one of its size."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from s3torch import S3Client, S3ClientConfig, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader, S3ReaderConfig
from s3torch._aws.listing import ObjectInfo
from s3torch.datasets import Filter, ObjectTable, S3BucketKeyData, SampleReaders, by_folder, by_stem
from s3torch.errors import ArgumentError, ArgumentTypeError, ObjectChangedError
from tests.support.collecting import collect_what_others_left
from tests.support.server import ScriptedServer

KINDS = [S3MapDataset, S3IterableDataset]
NAMES = ["cat/1.jpg", "cat/1.json", "cat/2.jpg", "cat/2.json", "dog/3.png"]
REPLACED = "cat/2.jpg"
JPG = Filter(suffix=".jpg")


def together(sample: SampleReaders) -> bytes:
    """Read all of a sample of several objects."""
    return b"".join(reader.read() for reader in sample.values())


@pytest.fixture
def uri(s3, bucket, prefix, put) -> str:
    """Store some objects, and return their prefix."""
    for name in NAMES:
        put(prefix + name, b"old")
    return f"s3://{bucket}/{prefix}"


@pytest.fixture
def replace(uri, prefix, put):
    """Replaces one of them by one of its size."""
    return lambda: put(prefix + REPLACED, b"new")


def _of_a_program(uri: str, options: dict[str, bool]) -> S3MapDataset[bytes]:
    found = list(S3MapDataset.from_prefix(uri, pin_etags=True).objects)
    return S3MapDataset(None, lambda _client: found, transform=S3Reader.read, **options)


# Each lists before the object is replaced, and reads afterwards.
_WAYS = {
    "map": lambda uri, options: S3MapDataset.from_prefix(uri, transform=S3Reader.read, **options),
    "filter": lambda uri, options: S3MapDataset.from_prefix(uri, transform=S3Reader.read, filter=JPG, **options),
    "labels": lambda uri, options: S3MapDataset.from_prefix(
        uri, transform=S3Reader.read, labels=by_folder(), filter=JPG, **options
    ),
    "samples": lambda uri, options: S3MapDataset.from_prefix(
        uri + "cat/", transform=together, samples=by_stem(".jpg", ".json"), **options
    ),
    "source of a program": _of_a_program,
    "loader": lambda uri, options: S3DataLoader(
        S3MapDataset.from_prefix(uri, transform=S3Reader.read, **options), 1, shuffle=True
    ),
    "loader of a stream": lambda uri, options: S3DataLoader(
        S3IterableDataset.from_prefix(uri, transform=S3Reader.read, filter=JPG, **options), 1
    ),
    "loader with workers": lambda uri, options: S3DataLoader(
        S3IterableDataset.from_prefix(uri, transform=S3Reader.read, **options), 1, num_workers=2
    ),
}


@pytest.mark.parametrize("way", _WAYS)
def test_an_object_that_was_replaced(way, uri, replace):
    """Whatever reads it raises, and says which it is; without the option the sizes alone are compared."""
    pinned, usual = _WAYS[way](uri, {"pin_etags": True}), _WAYS[way](uri, {})
    assert len(pinned) == len(usual)  # they list
    replace()
    with pytest.raises(ObjectChangedError, match=REPLACED):
        [pinned[index] for index in range(len(pinned))] if isinstance(pinned, S3MapDataset) else list(pinned)
    collect_what_others_left()  # the iterator of a loader that has failed, which a forked worker would complain of
    read = [usual[index] for index in range(len(usual))] if isinstance(usual, S3MapDataset) else list(usual)
    assert b"new" in str(read).encode()


@pytest.mark.parametrize(
    "options",
    [{}, {"filter": JPG}, {"shuffle": True}, {"enable_sharding": True}, {"samples": by_stem(".jpg", ".json")}],
    ids=str,
)
def test_a_stream_pins_what_it_has_listed(options, uri, replace):
    """An object that is replaced between its listing and its reading is refused, page by page and of a table."""
    unread = S3ReaderConfig.range_based()  # nothing is read ahead
    stream = S3IterableDataset.from_prefix(uri + "cat/", reader_config=unread, pin_etags=True, **options)
    readers = list(stream)
    replace()
    with pytest.raises(ObjectChangedError):
        [together(each) if isinstance(each, SampleReaders) else each.read() for each in readers]


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("chosen", [None, JPG], ids=str)
def test_weeks_later(made, chosen, uri, replace, tmp_path):
    """A table that was saved refuses what was replaced, whatever became of the dataset."""
    made.from_prefix(uri, filter=chosen, pin_etags=True).objects.save(tmp_path / "objects.table")
    replace()
    later = made.from_table(tmp_path / "objects.table", transform=S3Reader.read, pin_etags=True)
    assert later.objects.has_etags
    with pytest.raises(ObjectChangedError, match=REPLACED):
        later[1 if chosen else 2] if isinstance(later, S3MapDataset) else list(later)


def test_workers_share_pinned_objects(uri):
    """The listing that one worker makes for all has the ETags."""
    dataset = S3MapDataset.from_prefix(uri, transform=S3Reader.read, pin_etags=True)
    assert list(DataLoader(dataset, None, sampler=[0, 1, 2], num_workers=2)) == [b"old"] * 3
    assert dataset.objects.has_etags
    assert dataset.objects._first_unpinned() is None
    stream = S3IterableDataset.from_prefix(uri, transform=S3Reader.read, pin_etags=True, enable_sharding=True)
    assert list(DataLoader(stream, None, num_workers=2)) == [b"old"] * len(NAMES)


@pytest.mark.parametrize("made", KINDS)
def test_sources_without_etags(made, uri, tmp_path):
    """What cannot be pinned is an error that names the first object which is not."""
    usual = S3MapDataset.from_prefix(uri).objects
    usual.save(tmp_path / "objects.table")
    partly = tmp_path / "partly.csv"
    partly.write_text(f'uri,size,etag\n{uri}cat/1.jpg,3,"abc"\n{uri}{REPLACED},3,\n')
    name = f"{uri}cat/1.jpg"
    for dataset, where, first in (
        (made.from_objects([name], pin_etags=True), "the dataset's source", name),
        (made.from_table(usual, pin_etags=True), "the dataset's source", name),
        (made.from_table(tmp_path / "objects.table", pin_etags=True), str(tmp_path / "objects.table"), name),
        (made.from_manifest(partly, pin_etags=True), str(partly), uri + REPLACED),
        (made(None, lambda _: iter(usual), pin_etags=True), "the dataset's source", name),
        (made(None, lambda _: [S3BucketKeyData("b", "k")], pin_etags=True), "the dataset's source", "s3://b/k"),
    ):
        with pytest.raises(ArgumentError, match="pin_etags=True needs size and ETag of each object") as caught:
            list(dataset.objects)
        assert f"{where} does not tell both of {first}." in str(caught.value)
        with pytest.raises(ArgumentError, match="pin_etags"):
            list(dataset) if isinstance(dataset, S3IterableDataset) else dataset[0]


def test_only_what_belongs_to_the_dataset_is_pinned(uri, tmp_path):
    """An object without an ETag that the filter leaves out does not matter, and an empty dataset has none."""
    partly = tmp_path / "partly.csv"
    partly.write_text(f'uri,size,etag\n{uri}cat/1.jpg,3,"abc"\n{uri}dog/3.png,3,\n')
    for made in KINDS:
        assert len(made.from_manifest(partly, pin_etags=True, filter=JPG).objects) == 1
        assert len(made.from_table(ObjectTable(), pin_etags=True, allow_empty=True).objects) == 0


@pytest.mark.parametrize("made", KINDS)
def test_a_server_that_tells_no_etags(made):
    """The listing of such a server is refused, in parallel and page by page."""

    def answer(_request, wire):
        objects = "<Contents><Key>k/1</Key><Size>1</Size></Contents>"
        document = f"<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
        wire.respond(200, {"Content-Type": "application/xml"}, document.encode())
        return True

    with ScriptedServer(answer) as server:
        config = S3ClientConfig(unsigned=True)
        dataset = made.from_prefix(
            "s3://b/k/", region="us-east-1", endpoint=server.endpoint, s3client_config=config, pin_etags=True
        )
        for ask in (lambda: dataset.objects, lambda: next(iter(dataset))):
            with pytest.raises(ArgumentError, match="s3://b/k/ does not tell both of s3://b/k/1"):
                ask()


def test_a_table_knows_its_first_object_that_is_not_pinned():
    """It is one without a size, or without an ETag."""

    def table(*etags: str | None, keeps: bool = True) -> ObjectTable:
        infos = [None if each is None else ObjectInfo("k", each, 0, 0) for each in etags]
        return ObjectTable((S3BucketKeyData("b", "k", info) for info in infos), etags=keeps)

    assert table()._first_unpinned() is None
    assert table('"a"', '"b"')._first_unpinned() is None
    assert table('"a"', "", '"b"')._first_unpinned() == 1
    assert table("", '"b"')._first_unpinned() == 0
    assert table('"a"', '"b"', None)._first_unpinned() == 2
    assert table('"a"', keeps=False)._first_unpinned() == 0


def test_a_stream_that_is_refused_stays_so(uri):
    """Who asks again after the error gets it again, and not the objects behind."""
    infos = [ObjectInfo("k", etag, 3, 0) for etag in ('"a"', "", '"b"')]
    objects = [S3BucketKeyData("b", "k", info) for info in infos]
    iterator = iter(S3IterableDataset(None, lambda _: iter(objects), pin_etags=True))
    next(iterator)
    for _ in range(2):
        with pytest.raises(ArgumentError, match="pin_etags"):
            next(iterator)


def test_a_state_knows_whether_objects_are_pinned(uri, replace):
    """A table with ETags has another digest, and so has one of objects that were replaced."""
    first = S3MapDataset.from_prefix(uri, pin_etags=True).objects.digest
    assert first != S3MapDataset.from_prefix(uri).objects.digest
    replace()
    assert first != S3MapDataset.from_prefix(uri, pin_etags=True).objects.digest


def test_a_value_that_is_no_bool():
    """It is refused where the dataset is made."""
    with pytest.raises(ArgumentTypeError, match="pin_etags must be a bool, got 1"):
        S3MapDataset.from_prefix("s3://b/p", pin_etags=1)


def test_the_pages_of_a_listing_bring_the_etags(s3, bucket, uri):
    """All ways to list give what HeadObject says."""
    dataset = S3MapDataset.from_prefix(uri, pin_etags=True)
    client = S3Client()
    told = [client.head_object(bucket, item.key).etag for item in dataset.objects]
    for objects in (dataset.objects, S3IterableDataset.from_prefix(uri, pin_etags=True)._given_objects()):
        assert [item.object_info.etag for item in objects] == told
