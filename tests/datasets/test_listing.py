"""Tests of a prefix that is listed into a table: against a real server, and against one that fails on the way."""

from __future__ import annotations

import io
import itertools
import logging
import multiprocessing
import pickle
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlsplit

import pytest

from s3torch import S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset
from s3torch._aws.sending import PutObject
from s3torch.datasets.listing import ListingProgress, _is_known_to_sort, list_table
from s3torch.datasets.objects import ObjectTable, list_prefix
from s3torch.errors import BucketNotFoundError, DeadlineError, ObjectNotFoundError, ObjectTableError, S3Error
from tests.support.server import Request, ScriptedServer, Wire, fail

BUCKET = "listed"
FOLDERS = ("train", "train-b", "val", "tést/日本")
KEYS = [f"data/{folder}/{number:04}.bin" for folder in FOLDERS for number in range(600)]
KEYS += [f"other/{number}" for number in range(100)]


@pytest.fixture(scope="module")
def client(server) -> Iterator[S3Client]:
    """Return a client of a server whose bucket has 2,500 objects, of which each fifth is empty."""
    with server.activated():
        server.create_bucket(BUCKET)
        client = S3Client()
        where = client._access.bucket(BUCKET)
        puts = [
            PutObject(where, key, [memoryview(b"x" * (number % 5))][: number % 5], None)
            for number, key in enumerate(KEYS)
        ]
        client._access.engine().run(puts)
        yield client
        client.close()


def _name(reader) -> str:
    return reader.key


def _keys(pickled: bytes) -> list[str]:
    return [item.key for item in pickle.loads(pickled)]


# --- A real server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1000, 100, 7])
@pytest.mark.parametrize("prefix", ["data/train/", "data/tést", "other/1", "", "data/", "nothing/"])
def test_a_table_is_what_a_listing_in_turn_gives(client: S3Client, prefix: str, page_size: int):
    """Keys, sizes and order are those of the pages one after the other; this server does not sort as S3 does."""
    table = list_table(client, BUCKET, prefix, page_size=page_size)
    one_by_one = ObjectTable(list_prefix(client, BUCKET, prefix))
    assert list(table) == list(one_by_one)
    assert sorted(item.key for item in table) == sorted(key for key in KEYS if key.startswith(prefix))


def test_ranges_are_listed_side_by_side(client: S3Client, caplog):
    """A sorted prefix takes the requests of ranges, and no second listing."""
    before = client.stats.requests
    with caplog.at_level(logging.INFO, "s3torch.datasets.listing"):
        assert len(list_table(client, BUCKET, "data/train/", page_size=20)) == 600
    assert 30 < client.stats.requests - before <= 90
    assert caplog.messages == []


def test_datasets_of_a_prefix_and_of_its_table(client: S3Client, tmp_path):
    """A dataset of a saved table, from a file or from S3, or of another's, is the dataset of the prefix."""
    listed = S3MapDataset.from_prefix(f"s3://{BUCKET}/data/val/", transform=_name)
    listed.objects.save(tmp_path / "table")
    listed.objects.save(f"s3://{BUCKET}/tables/val", client=client)
    expected = list(listed.objects)
    assert len(expected) == 600
    assert list(S3IterableDataset.from_prefix(f"s3://{BUCKET}/data/val/").objects) == expected
    for table in (listed.objects, tmp_path / "table", f"s3://{BUCKET}/tables/val"):
        again = S3MapDataset.from_table(table, transform=_name)
        assert list(again.objects) == expected
        assert again[-1] == expected[-1].key
        stream = S3IterableDataset.from_table(table, transform=_name)
        assert list(stream.objects) == expected
        assert list(stream)[:3] == [item.key for item in expected[:3]]


def test_tables_that_are_not_there(client: S3Client, tmp_path):
    """A table that is missing, or is none, is an error where the dataset is made."""
    with pytest.raises(ObjectNotFoundError):
        S3MapDataset.from_table(f"s3://{BUCKET}/tables/none")
    with pytest.raises(FileNotFoundError):
        S3IterableDataset.from_table(tmp_path / "none")
    with pytest.raises(ObjectTableError, match=f"s3://{BUCKET}/{KEYS[1]} is no saved table"):
        S3MapDataset.from_table(f"s3://{BUCKET}/{KEYS[1]}")


def test_a_table_travels_to_a_spawned_process(client: S3Client):
    """A listed table is usable in a process that inherits nothing, and travels as its columns."""
    table = list_table(client, BUCKET, "data/train/")
    pickled = pickle.dumps(table)
    assert len(pickled) < sum(len(item.key) + 20 for item in table) + 1024
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_keys, (pickled,)) == [item.key for item in table]


def test_a_bucket_that_is_not_there(client: S3Client):
    """A listing that fails says what was listed."""
    with pytest.raises(BucketNotFoundError, match="Listing s3://no-such-bucket/p failed: ") as caught:
        list_table(client, "no-such-bucket", "p")
    assert caught.value.bucket == "no-such-bucket"


# --- Servers that do not behave --------------------------------------------------------------------------------------


class Listing:
    """A handler that lists sorted keys, after counting who asks for what."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.queries: list[dict[str, str]] = []
        self.knows_start_after = True
        self.keys_behind = lambda after: self.keys[bisect_right(self.keys, after) :]
        self._lock = threading.Lock()

    def __call__(self, request: Request, wire: Wire) -> bool:
        query = dict(parse_qsl(urlsplit(request.target).query))
        with self._lock:
            self.queries.append(query)
        keys = self.keys[int(query.get("continuation-token", 0)) :]
        if self.knows_start_after and "start-after" in query:
            keys = self.keys_behind(query["start-after"])
        page = keys[: int(query["max-keys"])]
        objects = "".join(f"<Contents><Key>{quote_plus(key)}</Key><Size>{len(key)}</Size></Contents>" for key in page)
        more = ""
        if len(page) < len(keys):
            token = f"<NextContinuationToken>{self.keys.index(page[-1]) + 1}</NextContinuationToken>"
            more = f"<IsTruncated>true</IsTruncated>{token}"
        body = f"<ListBucketResult><EncodingType>url</EncodingType>{more}{objects}</ListBucketResult>"
        wire.respond(200, {"Content-Type": "application/xml"}, body.encode())
        return True


def _client(server: ScriptedServer, **config: object) -> S3Client:
    return S3Client("us-east-1", endpoint=server.endpoint, s3client_config=S3ClientConfig(unsigned=True, **config))


def test_markers_of_directories_are_left_out():
    """Empty objects whose key ends in a slash are no objects of the table; others of either kind are."""
    keys = ["a/", "a/b", "a/c/", "a/c/d"]

    def handler(request: Request, wire: Wire) -> bool:
        sizes = (0, 0, 1, 2)
        objects = (f"<Contents><Key>{k}</Key><Size>{s}</Size></Contents>" for k, s in zip(keys, sizes, strict=True))
        wire.respond(200, {}, f"<ListBucketResult>{''.join(objects)}</ListBucketResult>".encode())
        return True

    with ScriptedServer(handler) as server:
        assert [item.key for item in list_table(_client(server), "b", "a/")] == ["a/b", "a/c/", "a/c/d"]


@pytest.mark.parametrize("connections", [1, 3, 64])
def test_as_many_requests_as_there_are_connections(connections: int):
    """The client's limit of connections holds for listings, and the table is the same."""
    listing = Listing([f"k/{number:05}" for number in range(3000)])
    with ScriptedServer(listing) as server:
        client = _client(server, max_connections=connections, hedging=False)
        table = list_table(client, "b", "k/", page_size=50)
        assert [item.key for item in table] == listing.keys
        assert table[7].object_info.size == 7
        assert client.stats.connections_opened <= min(connections, 32)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_without_start_after(refuses: bool):
    """Where start-after is ignored or refused the pages come one after the other, by their tokens."""
    listing = Listing([f"k/{number:05}" for number in range(500)])
    listing.knows_start_after = False

    def handler(request: Request, wire: Wire) -> bool:
        if refuses and "start-after" in request.target:
            return fail(501, "NotImplemented")(request, wire)
        return listing(request, wire)

    with ScriptedServer(handler) as server:
        assert [item.key for item in list_table(_client(server), "b", "k/", page_size=50)] == listing.keys


def test_a_server_of_two_orders():
    """Where start-after compares by another order than that of the pages, no key is lost."""
    keys = sorted(["a", "B", "c", "D", "e", "F"], key=str.lower)
    for page_size in range(1, 7):
        listing = Listing(keys)
        listing.keys_behind = lambda after: [key for key in keys if key > after]
        with ScriptedServer(listing) as server:
            table = list_table(_client(server), "b", "", page_size=page_size)
        assert [item.key for item in table] == keys


@pytest.mark.parametrize(
    ("bucket", "endpoint", "is_known"),
    [
        ("b", "https://s3.eu-west-1.amazonaws.com", True),
        ("b", "https://bucket.vpce-1a2b3c4d-5e6f.s3.eu-west-1.vpce.amazonaws.com", True),
        ("b", "https://s3.example.com", False),
        ("b", "https://amazonaws.com.example.com", False),
        ("b--ol-s3", "https://s3.eu-west-1.amazonaws.com", False),
        ("arn:aws:s3:eu-west-1:123456789012:accesspoint/b", None, True),
        ("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/b", None, False),
        ("arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-0123456789/accesspoint/b", None, False),
    ],
)
def test_who_is_known_to_sort(monkeypatch: pytest.MonkeyPatch, bucket: str, endpoint: str | None, is_known: bool):
    """Amazon S3 is, unless a program of the bucket's owner answers; other servers are not, whatever they are called."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    client = S3Client("eu-west-1", endpoint=endpoint, s3client_config=S3ClientConfig(unsigned=True))
    assert _is_known_to_sort(client._access.bucket(bucket)) is is_known


def test_directory_buckets_are_listed_in_turn():
    """A directory bucket is listed by tokens from the beginning, as it has no order, and is sorted here."""
    listing = Listing([f"k/{number:05}" for number in range(200)][::-1])
    with ScriptedServer(listing) as server:
        table = list_table(_client(server), "b--use1-az4--x-s3", "k/", page_size=50)
    assert [item.key for item in table] == sorted(listing.keys)
    assert [query.get("continuation-token") for query in listing.queries] == [None, "50", "100", "150"]


def test_an_error_in_the_middle():
    """An error in the middle of a listing names bucket and prefix, ends all requests, and the client can go on."""
    listing = Listing([f"k/{number:05}" for number in range(2000)])
    numbers = itertools.count(1)  # requests come side by side: each takes its number by itself

    def handler(request: Request, wire: Wire) -> bool:
        if next(numbers) == 10:
            return fail(403, "AccountProblem")(request, wire)
        return listing(request, wire)

    with ScriptedServer(handler) as server:
        client = _client(server)
        with pytest.raises(S3Error, match=r"^Listing s3://b/k/ failed: ") as caught:
            list_table(client, "b", "k/", page_size=50)
        assert caught.value.bucket == "b"
        assert repr(client._access.engine()).startswith("<Engine 0 in flight, 0 queued")
        assert len(list_table(client, "b", "k/00", page_size=1000)) == 2000


@pytest.mark.parametrize("bucket", ["b", "b--use1-az4--x-s3"])
def test_call_timeout(bucket: str):
    """A listing that takes longer than a call may is given up, whether its pages come side by side or in turn."""
    listing = Listing([f"k/{number:05}" for number in range(2000)])

    def handler(request: Request, wire: Wire) -> bool:
        if bucket == "b" and len(listing.queries) >= 10:
            return wire.stall()
        time.sleep(0.05)  # of the 40 pages in turn none is late, all together are
        return listing(request, wire)

    with ScriptedServer(handler) as server:
        config = S3ClientConfig(unsigned=True, call_timeout=0.5, hedging=False)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        with pytest.raises(DeadlineError, match=r"^Listing s3://b.*/k/ failed: .*not done within 0.5 s"):
            list_table(client, bucket, "k/", page_size=50)
        assert repr(client._access.engine()).startswith("<Engine 0 in flight, 0 queued")


# --- Progress --------------------------------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _progress(monkeypatch, stream: io.StringIO, seconds: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    now = 0.0
    progress = ListingProgress("s3://b/p", lambda: now)
    progress.add(1000)
    now = seconds
    progress.add(1000)
    progress.add(500)
    progress.close()
    return stream.getvalue()


@pytest.mark.parametrize("seconds", [2.0, 2.5])
def test_a_bar_appears_on_a_terminal(monkeypatch, seconds: float):
    """A listing that takes two seconds shows a bar with its keys, without a thread."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    before = threading.active_count()
    shown = _progress(monkeypatch, _Terminal(), seconds)
    assert "Listing s3://b/p" in shown
    assert "2.50k keys" in shown
    assert shown.count("\n") == 1  # one bar, and not one for each page
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("stream", "seconds", "disable"), [(_Terminal(), 1.9, ""), (io.StringIO(), 9.0, ""), (_Terminal(), 9.0, "1")]
)
def test_no_bar(monkeypatch, stream: io.StringIO, seconds: float, disable: str):
    """There is no bar for a short listing, away from a terminal, or where TQDM_DISABLE is set."""
    monkeypatch.setenv("TQDM_DISABLE", disable)
    assert _progress(monkeypatch, stream, seconds) == ""


def test_messages(caplog):
    """Every hundred pages a message tells how far the listing is."""
    progress = ListingProgress("s3://b/p")
    with caplog.at_level(logging.INFO, "s3torch.datasets.listing"):
        for _ in range(250):
            progress.add(1000)
    assert caplog.messages == [
        "Listing s3://b/p: 100000 keys in 100 pages so far",
        "Listing s3://b/p: 200000 keys in 200 pages so far",
    ]


def test_a_bar_begins_with_the_listing(monkeypatch):
    """The bar appears after two seconds, and counts the time and the keys from the beginning of the listing."""
    bars: list[Any] = []

    def new_bar(**_: object) -> Any:
        bars.append(SimpleNamespace(start_t=1000.0, keys=0, close=lambda: None))
        bars[-1].update = lambda keys: setattr(bars[-1], "keys", bars[-1].keys + keys)
        return bars[-1]

    monkeypatch.setattr("s3torch.datasets.listing.new_bar", new_bar)
    monkeypatch.setattr("s3torch.datasets.listing._is_terminal", lambda: True)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    now = 50.0
    progress = ListingProgress("s3://b/p", lambda: now)
    for now in (51.9, 52.0, 53.0):
        progress.add(1000)
        assert len(bars) == (now >= 52)
    assert (bars[0].start_t, bars[0].keys) == (998.0, 3000)
