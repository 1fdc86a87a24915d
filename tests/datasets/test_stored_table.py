"""``table_at``: one table for all ranks and later jobs, at a place that they all can read."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed
from torch.utils.data import DataLoader

from s3torch import S3Client, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader
from s3torch._objects import novelty
from s3torch.datasets import (
    Filter,
    Objects,
    ObjectTable,
    Prefix,
    S3BucketKeyData,
    Table,
    by_folder,
    by_stem,
    job,
    stored_table,
)
from s3torch.datasets.options import Selection
from s3torch.datasets.stored_table import StoredTable, check_note, note_of, patience_of, place_of
from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    ArgumentTypeError,
    EmptyDatasetError,
    InvalidURIError,
    ObjectChangedError,
    ObjectTableError,
)
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.objects import operation_of

KINDS = [S3MapDataset, S3IterableDataset]
PREFIX = "s3://bucket/train/"
KEYS = [f"train/{number:02}.bin" for number in range(20)]
AT = "s3://bucket/tables/run.table"
BIN = Filter(suffix=".bin")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def name(reader: S3Reader) -> str:
    """Return a sample: the key of its object."""
    return reader.key


def name_and_content(reader: S3Reader) -> tuple[str, bytes]:
    """Return a sample that had to be read."""
    return reader.key, reader.read()


def is_even(item: S3BucketKeyData) -> bool:
    """Return whether an object's number is even."""
    return int(item.key[-6:-4]) % 2 == 0


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """A server that may ignore conditions is asked again at once."""
    monkeypatch.setattr(stored_table, "_SETTLE", 0.0)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def store(faulty: FaultyServer) -> FaultyServer:
    """A server that counts, with some objects."""
    faulty.objects.update({key: key.encode() for key in KEYS})
    return faulty


def _options(server: FaultyServer, **more: Any) -> dict[str, Any]:
    return {"region": "us-east-1", "endpoint": server.endpoint, "s3client_config": server.config, **more}


def _keys(dataset: Any) -> list[str]:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


def _lists(server: FaultyServer) -> int:
    return sum(operation_of(request) == "ListObjectsV2" for request in server.requests)


def _reads(server: FaultyServer) -> int:
    return sum(request.method == "GET" and request.path.endswith(".table") for request in server.requests)


# --- Decisions -------------------------------------------------------------------------------------------------------


def test_places(tmp_path, monkeypatch):
    """A place is an object or a file that is none of those which are listed; True is beside the folder."""
    monkeypatch.chdir(tmp_path)
    assert place_of(True, Prefix("s3://b/a/train/")) == "s3://b/a/train.s3torch-table"
    assert place_of("s3://b/t", Prefix("s3://b/train")) == "s3://b/t"
    assert place_of("s3://other/train/t", Prefix("s3://b/train/")) == "s3://other/train/t"
    assert place_of("t", Prefix("s3://b/train")) == place_of(Path("t"), Prefix("s3://b/")) == tmp_path / "t"
    for prefix in ("s3://b/train", "s3://b", "s3://b/"):
        with pytest.raises(ArgumentError, match=r"does not end in '/'.*one of its objects.*or name a place"):
            place_of(True, Prefix(prefix))
    for at, prefix in (("s3://b/train/t", "s3://b/train/"), ("s3://b/train-t", "s3://b/train"), ("s3://b/t", "s3://b")):
        with pytest.raises(ArgumentError, match=rf"table_at='{at}' lies in {prefix}.*Choose a place beside"):
            place_of(at, Prefix(prefix))
    for at in ("s3://b", "s3://b/", "s3://b/tables/"):
        with pytest.raises(ArgumentError, match="must name an object or a file"):
            place_of(at, Prefix("s3://c/train/"))
    with pytest.raises(InvalidURIError):
        place_of("s3://", Prefix("s3://c/train/"))


@pytest.mark.parametrize("made", KINDS)
def test_what_cannot_be_kept(made):
    """What is not listed, or not known again, is refused when the dataset is made."""
    for source in (Objects(["s3://b/k"]), Table(ObjectTable()), lambda _client: []):
        with pytest.raises(ArgumentError, match="is for a prefix, whose listing is kept"):
            made.from_source(source, table_at=AT)
    threshold = 3
    for chosen in (
        lambda _: True,
        lambda item: item.object_info.size > threshold,
        SimpleNamespace().__eq__,
        [].append,
        str,
    ):
        with pytest.raises(ArgumentError, match="table_at cannot tell the filter"):
            made.from_prefix(PREFIX, table_at=AT, filter=chosen)
    for wrong in (3, b"s3://b/k", 1.5):
        with pytest.raises(ArgumentTypeError, match="table_at must be an S3 URI, a path or True"):
            made.from_prefix(PREFIX, table_at=wrong)
    assert made.from_prefix(PREFIX, table_at=False)._stored is None


def test_what_a_table_says_of_itself():
    """It is known by prefix, filter and pinning; each that differs is named with both sides."""
    due = note_of(Prefix(PREFIX), Selection(filter=BIN, pin_etags=True))
    assert due == {"prefix": PREFIX, "filter": "Filter(suffix='.bin')", "pin_etags": True}
    assert note_of(Prefix(PREFIX), Selection(filter=is_even))["filter"] == f"{__name__}.is_even"
    check_note(dict(due), due, "here")
    for found, said in (
        ({**due, "prefix": "s3://b/"}, rf"prefix 's3://b/' \(here '{PREFIX}'\)"),
        ({**due, "filter": None}, r"filter None \(here \"Filter\(suffix='.bin'\)\"\)"),
        ({**due, "pin_etags": False}, r"pin_etags False \(here True\)"),
        ({**due, "pin_etags": 1}, r"pin_etags 1 \(here True\)"),
        ({**due, "newer": 1}, r"newer 1 \(here None\)"),
        ({"prefix": PREFIX, "pin_etags": True}, r"filter None \(here \"Filter\(suffix='.bin'\)\"\)"),
    ):
        with pytest.raises(ObjectTableError, match=rf"at here is of another dataset: {said}\. It was left as it is"):
            check_note(found, due, "here")
    for found in (None, [], "x"):
        with pytest.raises(ObjectTableError, match="does not say of what it is"):
            check_note(found, due, "here")


def test_who_waits_how_long():
    """Rank 0 does not wait; rank 1 waits five minutes; of 1,024 all list within an hour, and in 30 minutes few do."""
    waits = [patience_of(rank) for rank in range(1024)]
    assert waits[:3] == [0, 300, 600]
    assert waits == sorted(waits)
    assert waits[-1] < 3600
    assert sum(wait < 1800 for wait in waits) == 32


# --- One dataset -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [True, AT, "path"])
@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("pins", [True, False])
def test_a_later_job_lists_nothing(made, at, pins, store, tmp_path):
    """It reads what the first one stored, which has what belongs to the dataset, whatever was added since."""
    at = tmp_path / "run.table" if at == "path" else at
    options = _options(store, transform=name, table_at=at, filter=is_even, pin_etags=pins)
    first = made.from_prefix(PREFIX, **options)
    assert _keys(first) == KEYS[::2]
    assert _lists(store) > 0
    store.objects["train/00.bin.bin"] = b""
    listed = _lists(store)
    later = made.from_prefix(PREFIX, **options)
    assert _keys(later) == KEYS[::2] == _keys(first) == _keys(pickle.loads(pickle.dumps(later)))
    assert later.objects.digest == first.objects.digest
    assert later.objects.has_etags is pins
    assert _lists(store) == listed
    assert {key for key in store.objects if not key.startswith("train/")} == (
        set() if isinstance(at, Path) else {"train.s3torch-table" if at is True else "tables/run.table"}
    )
    # It is a usual table as well.
    place = "s3://bucket/train.s3torch-table" if at is True else at
    assert made.from_table(place, **_options(store)).objects.digest == first.objects.digest


@pytest.mark.parametrize("endpoint", ["http://localhost", "http://127.0.0.1"])
def test_a_server_of_another_name_has_the_same_table(endpoint, store):
    """The table does not depend on where the bucket answers."""
    S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=AT)).objects  # noqa: B018  # stores it
    listed = _lists(store)
    port = store.endpoint.rpartition(":")[2]
    other = _options(store, table_at=AT) | {"endpoint": f"{endpoint}:{port}"}
    assert len(S3MapDataset.from_prefix(PREFIX, **other)) == len(KEYS)
    assert _lists(store) == listed


@pytest.mark.parametrize("made", KINDS)
def test_labels_and_samples(made, store):
    """They are made of the stored table, which has the objects alone."""
    for folder, number, suffix in itertools.product(("cat", "dog"), range(3), (".jpg", ".json")):
        store.objects[f"pets/{folder}/{number}{suffix}"] = b"x"
    options = _options(store, table_at=True, transform=len)
    uri = "s3://bucket/pets/"
    paired = made.from_prefix(uri, samples=by_stem(".jpg", ".json"), labels=by_folder(), **options)
    assert _keys(paired) == [(2, 0)] * 3 + [(2, 1)] * 3
    listed = _lists(store)
    again = made.from_prefix(uri, labels=by_folder(), **{**options, "transform": name})
    assert again.classes == ["cat", "dog"]
    assert len(_keys(again)) == 12
    assert _lists(store) == listed


def test_a_stored_table_pins_weeks_later(store):
    """An object that was replaced by one of its size since the table was stored is refused."""
    options = _options(store, table_at=AT, pin_etags=True, transform=S3Reader.read)
    assert S3MapDataset.from_prefix(PREFIX, **options)[3] == KEYS[3].encode()
    store.objects[KEYS[3]] = KEYS[3][::-1].encode()
    later = S3MapDataset.from_prefix(PREFIX, **options)
    assert later[2] == KEYS[2].encode()
    with pytest.raises(ObjectChangedError, match=KEYS[3]):
        later[3]


def test_a_stream_has_one_table_for_all_epochs(store):
    """Each epoch reads it, and its state is known without a first question."""
    stream = S3IterableDataset.from_prefix(PREFIX, **_options(store, table_at=AT, transform=name))
    iterator = iter(stream)
    assert [next(iterator) for _ in range(5)] == KEYS[:5]
    state = stream.state_dict()
    store.objects["train/ .bin"] = b""
    listed, read = _lists(store), _reads(store)
    other = S3IterableDataset.from_prefix(PREFIX, **_options(store, table_at=AT, transform=name, shuffle=False))
    other.load_state_dict(json.loads(json.dumps(state)))
    assert _keys(other) == KEYS[5:]
    assert _keys(other) == KEYS
    assert _keys(stream) == KEYS
    assert (_lists(store), _reads(store)) == (listed, read + 1)


@pytest.mark.parametrize("at", [AT, "path"])
def test_what_else_is_there_is_refused_and_stays(at, store, tmp_path):
    """A table of something else, a damaged one and any other object are errors that name them."""
    path = tmp_path / "run.table"
    place = path if at == "path" else at

    def put(content: bytes) -> None:
        path.write_bytes(content)
        store.objects["tables/run.table"] = content

    def got() -> bytes:
        return path.read_bytes() if at == "path" else bytes(store.objects["tables/run.table"])

    def dataset(prefix: str = PREFIX, **more: Any) -> S3MapDataset[Any]:
        return S3MapDataset.from_prefix(prefix, **_options(store, table_at=place, **more))

    assert len(dataset(filter=BIN)) == len(KEYS)
    good = got()
    listed = _lists(store)
    for other, said in (
        (dataset(), r"filter \"Filter\(suffix='.bin'\)\" \(here None\)"),
        (dataset("s3://bucket/val/", filter=BIN), rf"prefix '{PREFIX}' \(here 's3://bucket/val/'\)"),
        (dataset(filter=BIN, pin_etags=True), r"pin_etags False \(here True\)"),
    ):
        with pytest.raises(ObjectTableError, match=rf"{place} is of another dataset: {said}"):
            len(other)
    saved = b"".join(ObjectTable()._to_bytes())
    old = (Path(__file__).parent / "data").glob("*")
    for content, said in (
        (saved, "does not say of what it is: it was not stored by table_at"),
        (next(each.read_bytes() for each in old if each.suffix == ".table"), "is damaged|does not say of what"),
        (b"", "is no saved table of objects: it begins with b''"),
        (b"PK\3\4" + bytes(100_000), "is no saved table of objects"),
        (good[:-1], "cut off or damaged"),
        (good[:50] + b"\xff" + good[51:], "the checksum of its head is wrong"),
        (good[:-1] + bytes([good[-1] ^ 1]), "damaged"),
    ):
        put(content)
        with pytest.raises(ObjectTableError, match=said) as caught:
            list(dataset(filter=BIN).objects)
        # A block of a mapped file is verified when it is used.
        assert "It was left as it is" in str(caught.value) or (at == "path" and "is damaged: the" in str(caught.value))
        assert str(place) in str(caught.value)
        assert got() == content
    assert _lists(store) == listed


def test_a_foreign_object_is_not_read_whole(store):
    """Whatever is at the place by mistake may be large."""
    store.objects["tables/run.table"] = bytes(32 << 20)
    dataset = S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=AT))
    with pytest.raises(ObjectTableError, match="no saved table"):
        len(dataset)
    assert dataset.client.stats.bytes_received < 16 << 20


@pytest.mark.parametrize("made", KINDS)
def test_nothing_is_stored_of_nothing(made, store, tmp_path):
    """A prefix without objects is an error each time, unless that may be; then all have the empty table."""
    for at in (AT, tmp_path / "empty.table"):
        for more in ({}, {"filter": Filter(suffix=".png")}):
            prefix = PREFIX if more else "s3://bucket/trial/"
            for _ in range(2):
                with pytest.raises(EmptyDatasetError):
                    _keys(made.from_prefix(prefix, **_options(store, table_at=at, **more)))
        assert set(store.objects) == set(KEYS)
        assert list(tmp_path.iterdir()) == []
    options = _options(store, table_at=AT)
    assert _keys(made.from_prefix("s3://bucket/trial/", allow_empty=True, **options)) == []
    store.objects["trial/1"] = b""
    assert _keys(made.from_prefix("s3://bucket/trial/", allow_empty=True, **options)) == []
    with pytest.raises(EmptyDatasetError, match=f"The table at {AT} has no object"):
        _keys(made.from_prefix("s3://bucket/trial/", **options))


def test_a_write_that_fails_leaves_nothing(store):
    """The error of the write is raised, nothing is there, and the next one stores it."""
    options = _options(store, table_at=AT)
    store.script(faults.on("PutObject", fault=faults.status(403, "AccessDenied")))
    with pytest.raises(AccessDeniedError, match=r"tables/run\.table"):
        len(S3MapDataset.from_prefix(PREFIX, **options))
    assert set(store.objects) == set(KEYS)
    assert list(store.objects.uploads) == []
    assert len(S3MapDataset.from_prefix(PREFIX, **options)) == len(KEYS)


def test_a_write_that_is_interrupted_leaves_nothing(store, tmp_path, monkeypatch):
    """An interrupt in the middle leaves neither object nor file."""
    parts = ObjectTable._to_bytes

    def interrupted(self, note=None):
        made = parts(self, note)

        def pieces():
            yield from made[:1]
            raise KeyboardInterrupt

        class Parts(list):
            def __iter__(self):
                return pieces()

        return Parts(made)

    monkeypatch.setattr(ObjectTable, "_to_bytes", interrupted)
    monkeypatch.setattr(stored_table, "sum", lambda _: 10**6, raising=False)
    for at in (AT, tmp_path / "run.table"):
        with pytest.raises(KeyboardInterrupt):
            len(S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=at)))
    assert set(store.objects) == set(KEYS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_stored(store, tmp_path, monkeypatch):
    """The error names the place and what it needs; nothing is left there."""
    with pytest.raises(ObjectTableError, match=r"cannot be stored at .*nowhere/run.table.*directory must be there"):
        len(S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=tmp_path / "nowhere" / "run.table")))

    def no_links(*_args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ObjectTableError, match="know hard links"):
        len(S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=tmp_path / "run.table")))
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_somebody_deletes(store):
    """That it is gone when it is read back is an error, and no other listing is used in its place."""
    dataset = S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=AT))
    place = SimpleNamespace(find=lambda: None, store=lambda _parts: None)
    with pytest.raises(ObjectTableError, match=f"{AT} was stored, and is gone"):
        dataset._stored._made(place, dataset._list_alone)


# --- Races -----------------------------------------------------------------------------------------------------------

ONE, OTHER = (ObjectTable([S3BucketKeyData("bucket", f"train/{key}")]) for key in ("1", "2"))


@pytest.mark.parametrize("at", [AT, "path"])
def test_who_comes_later_takes_what_is_there(at, store, tmp_path):
    """Whoever loses the race has the winner's table, and stores nothing."""
    dataset = S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=tmp_path / "t" if at == "path" else at))
    second = pickle.loads(pickle.dumps(dataset))

    def slow() -> ObjectTable:
        assert list(second._stored.agree(second.client, lambda: OTHER)) == list(OTHER)
        return ONE

    assert list(dataset._stored.agree(dataset.client, slow)) == list(OTHER)


def test_a_server_that_ignores_conditions(store, monkeypatch):
    """Of two writers that have both found nothing both use the table that is there in the end."""
    store.rates({faults.ignore_condition: 1.0})
    asked, written = threading.Barrier(2), threading.Barrier(2)
    check = novelty.check_is_new

    def both_find_nothing(*arguments: Any) -> None:
        check(*arguments)
        asked.wait(60)
        while threading.current_thread().name == "last" and "tables/run.table" not in store.objects:
            time.sleep(0.01)

    monkeypatch.setattr(novelty, "check_is_new", both_find_nothing)
    pause = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: written.wait(60))
    monkeypatch.setattr(stored_table, "time", pause)
    found: dict[str, ObjectTable] = {}

    def write(table: ObjectTable) -> None:
        dataset = S3MapDataset.from_prefix(PREFIX, **_options(store, table_at=AT))
        found[threading.current_thread().name] = dataset._stored.agree(dataset.client, lambda: table)
        dataset.client.close()

    threads = [
        threading.Thread(target=write, args=[table], name=each) for each, table in (("first", ONE), ("last", OTHER))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(found[each]) for each in ("first", "last")] == [list(OTHER)] * 2


# --- Waiting ---------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        """Return seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The time that ranks see."""
    clock = Clock()
    monkeypatch.setattr(stored_table, "time", clock)
    return clock


def _rank(rank: int, monkeypatch: pytest.MonkeyPatch) -> StoredTable:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "8")
    return StoredTable(Prefix(PREFIX), Selection(table_at=AT), None)


def test_a_rank_looks_until_the_table_is_there(clock, monkeypatch):
    """It lists nothing, and looks at pauses that grow and are random."""
    stored = _rank(3, monkeypatch)
    there = stored_table._Found(ONE, stored._note)
    place = SimpleNamespace(find=lambda: there if clock.now > 60 else None)
    assert stored._awaited(place) is ONE
    assert 60 < clock.now < 70
    assert max(clock.pauses) <= 5
    assert clock.pauses[0] <= 0.1
    assert len(set(clock.pauses)) > 10


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_rank_that_has_waited_long_lists(rank, clock, monkeypatch, caplog):
    """Rank 0 does at once; others after their bound, as nobody says what became of rank 0."""
    stored = _rank(rank, monkeypatch)
    assert stored._awaited(SimpleNamespace(find=lambda: None)) is None
    assert clock.now == pytest.approx(patience_of(rank))
    assert (
        f"There is no table at {AT} after {patience_of(rank):.0f} s: rank {rank} lists, too" in caplog.text
    ) == bool(rank)


def test_a_process_that_is_started_knows_its_rank(monkeypatch):
    """A worker of another start method has no process group, and no variables if the launcher set none."""
    stored = StoredTable(Prefix(PREFIX), Selection(table_at=AT), None)
    monkeypatch.setattr(stored_table, "rank_and_world_size", lambda _known: (3, 8))  # a group was made since
    pickled = pickle.dumps(stored)
    monkeypatch.undo()
    assert pickle.loads(pickled)._ranks == (3, 8)
    assert repr(pickle.loads(pickled)) == f"<StoredTable at {AT}>"


# --- Ranks that meet -------------------------------------------------------------------------------------------------


@pytest.fixture
def met(monkeypatch):
    """Two ranks of a job that meet in a store."""
    tcp = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(job, "_PATIENCE", 60.0)
    monkeypatch.setattr(job, "_address", lambda: job.Address("127.0.0.1", tcp.port, "0"))
    monkeypatch.setattr(StoredTable, "_awaited", None)  # nobody waits for rank 0

    def make(server: FaultyServer, prefix: str = PREFIX) -> S3MapDataset[Any]:
        monkeypatch.setattr(job, "_made", job.Counter())
        return S3MapDataset.from_prefix(prefix, **_options(server, table_at=AT))

    yield make
    assert tcp.port  # it must live until here


def test_ranks_that_meet_list_once(met, store):
    """Who comes first lists and stores, whatever its rank; the others read what is stored, and wait for no rank 0."""
    first, second = met(store), met(store)
    assert first.objects.digest == second.objects.digest
    assert second.client.stats.requests == 1  # to read the table
    assert _lists(store) == len({request.target for request in store.requests if "list-type" in request.target})


def test_ranks_that_meet_fail_together(met, store):
    """That there is nothing is the error of all, at once."""
    first, second = met(store, "s3://bucket/nothing/"), met(store, "s3://bucket/nothing/")
    for dataset, told in ((first, ""), (second, "The rank that lists for all has failed: ")):
        with pytest.raises(EmptyDatasetError, match=f"^{told}There is no object in s3://bucket/nothing/"):
            len(dataset)
    assert set(store.objects) == set(KEYS)


# --- Workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "at"), [("fork", AT), ("forkserver", AT), ("spawn", "path")])
def test_workers(method, at, s3, forkserver, store, tmp_path):
    """Workers of any start method, by index and as a stream, have the one table; one listing is made."""
    at = str(tmp_path / "run.table") if at == "path" else at
    options = _options(store, transform=name, table_at=at)
    context = forkserver if method == "forkserver" else multiprocessing.get_context(method)
    dataset = S3MapDataset.from_prefix(PREFIX, **options)
    loader = DataLoader(
        dataset, batch_sampler=[[n] for n in range(20)], num_workers=2, multiprocessing_context=context
    )  # they ask before this process does
    assert [key for batch in loader for key in batch] == KEYS
    listed = _lists(store)
    store.objects["train/ .bin"] = b""
    stream = S3IterableDataset.from_prefix(PREFIX, enable_sharding=True, **options)
    loader = DataLoader(stream, None, num_workers=2, multiprocessing_context=context)
    for _ in range(2 if method == "fork" else 1):  # workers start anew for each epoch
        assert sorted(loader) == KEYS
    loader = S3DataLoader(stream, 3, shuffle=True, num_workers=2, multiprocessing_context=context)
    assert sorted(key for batch in loader for key in batch) == KEYS
    assert _lists(store) == listed


# --- Processes -------------------------------------------------------------------------------------------------------


def _job(options: dict[str, Any], rank: int, world_size: int, known: bool, more: dict[str, Any]) -> dict[str, Any]:
    """Do what one rank of a job does; returns what it has seen."""
    os.environ.update(more["environ"])  # a forkserver has that of the test which used it first
    if known:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    if more.get("barrier") is not None:
        more["barrier"].wait(60)
    if "adds" in more:  # so that each listing is another one
        client = S3Client()
        with client.put_object(*more["adds"]) as writer:
            writer.write(b"x")
    kind = S3IterableDataset if more["kind"] == "stream" else S3MapDataset
    dataset = kind.from_prefix(more["prefix"], transform=name_and_content, **options)
    where = {} if known else {"rank": rank, "world_size": world_size}
    loader = S3DataLoader(dataset, 1, shuffle=True, seed=1, collate_fn=list, **where)
    if more["state"] is not None:
        loader.load_state_dict(more["state"])
    keys, state = [], loader.state_dict()
    for batch in itertools.islice(loader, more["batches"]):
        keys += [key for key, _ in batch]
        state = loader.state_dict()
    return {"keys": keys, "state": state, "digest": loader.dataset.objects.digest}


def _in_process(results: Any, *arguments: Any) -> None:
    try:
        results.put(_job(*arguments))
    except BaseException as error:
        results.put({"error": f"{type(error).__name__}: {error}"})
        raise


def _run(context: Any, options: dict[str, Any], world_size: int, *, known: bool, **more: Any) -> list[dict[str, Any]]:
    """Run a job, all of whose processes begin at once; returns what each has seen."""
    more = {"kind": "map", "state": None, "batches": None, "prefix": PREFIX, **more}
    results = context.Queue()
    more["barrier"] = context.Barrier(world_size)
    more["environ"] = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    adds = more.pop("adds", None)
    processes = []
    for rank in range(world_size):
        own = {**more, **({"adds": adds(rank)} if adds else {})}
        processes.append(context.Process(target=_in_process, args=(results, options, rank, world_size, known, own)))
    for process in processes:
        process.start()
    seen = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    return seen


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("place", ["beside", "path"])
def test_four_processes_at_once(kind, place, s3, forkserver, bucket, prefix, put, tmp_path):
    """Without any group, each of them listing something else, all have one table; the real server keeps the first."""
    for number in range(12):
        put(f"{prefix}{number}", b"x")
    options = {"table_at": True if place == "beside" else str(tmp_path / "run.table")}
    seen = _run(
        forkserver,
        options,
        4,
        known=False,
        kind=kind,
        prefix=f"s3://{bucket}/{prefix}",
        adds=lambda rank: (bucket, f"{prefix}new-{rank}"),
    )
    assert [each for each in seen if "error" in each] == []
    assert len({each["digest"] for each in seen}) == 1
    where = f"s3://{bucket}/{prefix[:-1]}.s3torch-table" if place == "beside" else tmp_path / "run.table"
    table = ObjectTable.load(where)
    assert table.digest == seen[0]["digest"]
    assert sorted(key for each in seen for key in each["keys"]) == sorted(item.key for item in table)


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_job_of_known_ranks_and_the_next_one(kind, s3, forkserver, store):
    """Rank 0 lists, the others wait; a job of another size goes on where the first was killed, and lists nothing."""
    options = _options(store, table_at=AT)
    assert len(S3MapDataset.from_prefix(PREFIX, **_options(store))) == len(KEYS)
    one_listing = _lists(store)
    seen = _run(forkserver, options, 4, known=True, kind=kind, batches=3)
    assert [each for each in seen if "error" in each] == []
    assert _lists(store) == 2 * one_listing
    assert len({each["digest"] for each in seen}) == 1
    states = [each["state"] for each in seen]
    assert states == states[:1] * 4
    first = [key for each in seen for key in each["keys"]]
    store.objects["train/ .bin"] = b""
    seen = _run(forkserver, options, 3, known=True, kind=kind, state=states[0])
    assert [each for each in seen if "error" in each] == []
    assert sorted(first + [key for each in seen for key in each["keys"]]) == KEYS
    assert _lists(store) == 2 * one_listing
