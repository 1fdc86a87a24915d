"""One listing for all workers of a dataset, however they start, whatever is stored and whoever dies meanwhile."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch import S3ClientConfig, S3IterableDataset, S3MapDataset
from s3torch.datasets import S3BucketKeyData
from s3torch.datasets.objects import ObjectTable
from s3torch.datasets.one_listing import OneListing, _note_taker
from s3torch.errors import AccessDeniedError, ObjectTableError
from tests.support.server import Request, ScriptedServer, Wire, fail, serve_object

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than there are cores
    pytest.mark.skipif(not hasattr(os, "fork"), reason="without fork there is no fcntl: each process lists by itself"),
]

KEYS = [f"k/{number:02}" for number in range(20)]
METHODS = ["fork", "spawn", "forkserver"]


class Growing:
    """A bucket in which a key is stored in front of all others after each listing."""

    def __init__(self) -> None:
        self.listings = 0
        self._lock = threading.Lock()

    def keys(self, listing: int) -> list[str]:
        """Return what a listing finds; the first one has the number 1."""
        return [*(f"k/ {99 - number}" for number in range(listing - 1, 0, -1)), *KEYS]

    def __call__(self, request: Request, wire: Wire) -> bool:
        if "list-type" not in dict(parse_qsl(urlsplit(request.target).query)):
            serve_object(b"x")(request, wire)
            return True
        with self._lock:
            self.listings += 1
            keys = self.keys(self.listings)
        objects = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
        document = f"<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
        wire.respond(200, {"Content-Type": "application/xml"}, document.encode())
        return True


@pytest.fixture
def bucket() -> Growing:
    """The bucket that grows."""
    return Growing()


@pytest.fixture
def endpoint(bucket) -> Iterator[str]:
    """Where it answers."""
    with ScriptedServer(bucket) as server:
        yield server.endpoint


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """The directory for temporary files."""
    multiprocessing.util.get_temp_dir()  # before: the socket of a fork server lies there, and its path must be short
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def context(request, forkserver, s3) -> BaseContext:
    """How workers start."""
    return forkserver if request.param == "forkserver" else multiprocessing.get_context(request.param)


def name(reader) -> str:
    """Return a sample: the key of its object."""
    return reader.key


def as_given(samples: list) -> list:
    """Collate nothing."""
    return samples


def _map(endpoint: str) -> S3MapDataset[str]:
    config = S3ClientConfig(unsigned=True, hedging=False)
    return S3MapDataset.from_prefix(
        "s3://b/k/", region="us-east-1", endpoint=endpoint, transform=name, s3client_config=config
    )


def _iterable(endpoint: str, *, enable_sharding: bool = True) -> S3IterableDataset[str]:
    return S3IterableDataset.from_prefix(
        "s3://b/k/",
        region="us-east-1",
        endpoint=endpoint,
        transform=name,
        s3client_config=S3ClientConfig(unsigned=True, hedging=False),
        enable_sharding=enable_sharding,
    )


def _stream(dataset, context: BaseContext, num_workers: int = 2, **arguments: object) -> DataLoader:
    return DataLoader(
        dataset, None, num_workers=num_workers, multiprocessing_context=context, collate_fn=as_given, **arguments
    )


# --- Streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", METHODS, indirect=True)
def test_each_object_comes_once_from_a_stream(bucket, endpoint, context, shared):
    """Workers share one listing in each epoch, and each epoch lists anew; nothing is left of an epoch but the lock."""
    dataset = _iterable(endpoint)
    loader = _stream(dataset, context)
    for epoch in (1,) if context.get_start_method() == "spawn" else (1, 2):  # which takes seconds
        assert sorted(loader) == bucket.keys(epoch)
        assert bucket.listings == epoch
        assert [path.name for path in shared.glob("s3torch-*/*")] == ["lock"]


def test_persistent_workers(bucket, endpoint):
    """Workers that stay list anew in each epoch, once for all of them."""
    loader = _stream(_iterable(endpoint), multiprocessing.get_context("fork"), 3, persistent_workers=True)
    for epoch in (1, 2, 3):
        assert sorted(loader) == bucket.keys(epoch)


def test_epochs_that_are_seeded_alike(bucket, endpoint):
    """An epoch with the seed of an earlier one lists anew, too."""
    dataset = _iterable(endpoint)
    for epoch in (1, 2):
        generator = torch.Generator().manual_seed(7)
        loader = _stream(dataset, multiprocessing.get_context("fork"), generator=generator)
        assert sorted(loader) == bucket.keys(epoch)


def test_an_epoch_that_was_left(bucket, endpoint):
    """After an epoch that was left early, seeded alike or not, each object comes once."""
    dataset = _iterable(endpoint)
    for _ in range(3):
        generator = torch.Generator().manual_seed(7)
        next(iter(_stream(dataset, multiprocessing.get_context("fork"), 3, generator=generator)))
        generator = torch.Generator().manual_seed(7)
        found = sorted(_stream(dataset, multiprocessing.get_context("fork"), 3, generator=generator))
        assert found == sorted(set(found))
        assert set(found) >= set(KEYS)


class Twice(torch.utils.data.IterableDataset):
    """Reads a dataset two times in each epoch."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(list(self.dataset), list(self.dataset))


def test_two_iterations_in_one_epoch(bucket, endpoint):
    """What reads a dataset twice in each worker gets each object twice: of the first listing, and of the second."""
    loader = _stream(Twice(_iterable(endpoint)), multiprocessing.get_context("fork"))
    assert sorted(loader) == sorted(bucket.keys(1) + bucket.keys(2))


@pytest.mark.parametrize("seeds", [(1, 2), (7, 7)])
def test_two_loaders_at_once(endpoint, seeds):
    """Two DataLoaders over one dataset, also if they are seeded alike, get each object once."""
    dataset = _iterable(endpoint)
    context = multiprocessing.get_context("fork")
    loaders = [_stream(dataset, context, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    found = [list(filter(None, names)) for names in zip(*itertools.zip_longest(*loaders), strict=True)]
    for names in found:
        assert sorted(names) == sorted(set(names))
        assert set(names) >= set(KEYS)


def test_who_shares_nothing_lists_as_objects_are_read(bucket, endpoint, shared):
    """Without workers, with one, or without sharding nothing is agreed on, and no file is made."""
    context = multiprocessing.get_context("fork")
    assert list(_iterable(endpoint)) == bucket.keys(1)
    assert list(_stream(_iterable(endpoint), context, 1)) == bucket.keys(2)
    everything = _stream(_iterable(endpoint, enable_sharding=False), context, 2, worker_init_fn=_ignore_warnings)
    assert len(list(everything)) == len(bucket.keys(3) + bucket.keys(4))
    assert list(shared.iterdir()) == []


def _ignore_warnings(_worker: int) -> None:
    import warnings

    warnings.simplefilter("ignore")


# --- By index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "indices", "workers"),
    [  # each that is spawned imports torch, which takes seconds
        ("fork", None, 4),
        ("fork", range(20), 4),
        ("spawn", None, 2),
        pytest.param("spawn", None, 4, marks=pytest.mark.soak),
        ("forkserver", range(20), 4),
    ],
    indirect=["context"],
)
def test_each_object_comes_once_by_index(bucket, endpoint, context, indices, workers, shared):
    """Workers that start before anybody has listed share one listing, with the process that started them."""
    dataset = _map(endpoint)
    loader = DataLoader(
        dataset, 2, False, indices, num_workers=workers, multiprocessing_context=context, collate_fn=as_given
    )
    assert list(itertools.chain(*loader)) == KEYS
    assert list(dataset.objects) == [
        S3BucketKeyData("b", key, dataset.objects[0].object_info._replace(key=key)) for key in KEYS
    ]
    assert bucket.listings == 1


def test_two_loaders_of_one_dataset(bucket, endpoint, forkserver, s3):
    """Two DataLoaders whose workers start before anybody has listed have the same listing."""
    dataset = _map(endpoint)
    loaders = [
        DataLoader(dataset, None, sampler=range(20), num_workers=2, multiprocessing_context=method, collate_fn=as_given)
        for method in ("fork", forkserver)
    ]
    assert [list(names) for names in zip(*zip(*loaders, strict=True), strict=True)] == [KEYS, KEYS]
    assert bucket.listings == 1


def test_who_is_alone_touches_no_disk(bucket, endpoint, shared):
    """A dataset that no other process has lists by itself; workers that start afterwards have its listing."""
    dataset = _map(endpoint)
    assert len(dataset) == len(KEYS)
    loader = DataLoader(dataset, None, num_workers=2, multiprocessing_context="fork", collate_fn=as_given)
    assert list(loader) == KEYS
    assert (bucket.listings, list(shared.iterdir())) == (1, [])


def test_threads(bucket, endpoint):
    """Threads that list at the same time get the same table, though each may have asked for it."""
    dataset = _map(endpoint)
    barrier = threading.Barrier(4)
    found = []

    def look() -> None:
        barrier.wait(60)
        found.append(dataset.objects)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_a_fork_during_the_listing(endpoint, bucket):
    """Who is forked while another thread lists has that listing, too."""
    dataset = _map(endpoint)
    list_objects, is_listing, may_end = dataset._list_objects, threading.Event(), threading.Event()

    def slowly() -> ObjectTable:
        table = list_objects()
        is_listing.set()
        may_end.wait(60)
        return table

    dataset._list_objects = slowly
    thread = threading.Thread(target=len, args=[dataset])
    thread.start()
    assert is_listing.wait(60)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        dataset._list_objects = list_objects
        may_end.set()
        thread.join()
        assert pool.apply(_first, (dataset,)) == dataset.objects[0].key


def _first(dataset: S3MapDataset[str]) -> str:
    return dataset.objects[0].key


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_map, _iterable])
def test_errors_reach_every_worker(make, errors_of):
    """An error of the listing is that of each worker."""
    with ScriptedServer(fail(403, "AccessDenied")) as server:
        dataset = make(server.endpoint)
        arguments = {"sampler": [0, 1]} if make is _map else {}
        errors = errors_of(_stream(dataset, multiprocessing.get_context("fork"), **arguments))
    assert len(errors) >= 2
    for error in errors:
        assert isinstance(error, AccessDeniedError)
        assert "Listing s3://b/k/ failed" in str(error)


def _lister(listing: OneListing, pipe, *, dies: bool) -> None:
    def list_objects() -> ObjectTable:
        pipe.send("lists")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return ObjectTable([S3BucketKeyData("b", str(os.getpid()))])

    pipe.send(listing.agree("t", list_objects)[0].key)


@pytest.mark.parametrize("context", ["fork", "forkserver"], indirect=True)
def test_who_is_killed_while_it_lists(context, shared):
    """If the process that lists is killed the next one lists, and all others have its table."""
    listing = OneListing()
    said = []
    for dies in (True, False, False):
        ours, theirs = context.Pipe()
        process = context.Process(target=_lister, args=(listing, theirs), kwargs={"dies": dies})
        process.start()
        theirs.close()
        messages = []
        while True:
            try:
                messages.append(ours.recv())
            except EOFError:
                break
        process.join()
        said.append((process.exitcode, messages))
    first = said[1][1][-1]
    assert said == [(-signal.SIGKILL, ["lists"]), (0, ["lists", first]), (0, [first])]


def test_a_fork_does_not_keep_the_lock(shared):
    """A child that was forked while another thread of its parent lists waits for that, and not for itself."""
    listing = OneListing()
    context = multiprocessing.get_context("fork")
    is_listing, may_end = threading.Event(), threading.Event()

    def list_objects() -> ObjectTable:
        is_listing.set()
        may_end.wait(60)
        return ObjectTable([S3BucketKeyData("b", "parent")])

    context.Process(target=int).start()  # from here on the listing is shared
    thread = threading.Thread(target=listing.agree, args=("t", list_objects))
    thread.start()
    assert is_listing.wait(60)
    ours, theirs = context.Pipe()
    process = context.Process(target=_lister, args=(listing, theirs), kwargs={"dies": False})
    process.start()
    may_end.set()
    assert ours.recv() == "parent"
    process.join()
    thread.join()


def _no_link(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def _asker(listing: OneListing, pipe) -> None:
    """Ask for the table, and tell what is in it."""
    mine = ObjectTable([S3BucketKeyData("b", f"child {os.getpid()}")])
    pipe.send([item.key for item in listing.agree("t", lambda: mine)])
    pipe.recv()


def test_who_asks_while_it_lists(shared):
    """What asks for the table from within its listing, as a signal handler can, does not wait: all take its table."""
    listing = _shared_listing()
    inner = ObjectTable([S3BucketKeyData("b", "inner")])
    outer = ObjectTable([S3BucketKeyData("b", "outer")])

    def list_objects() -> ObjectTable:
        assert listing.agree("t", lambda: inner) is inner
        return outer

    assert list(listing.agree("t", list_objects)) == list(inner)
    assert list(listing.agree("t", lambda: outer)) == list(inner)


@pytest.mark.parametrize(
    ("context", "links"),
    [
        *((method, True) for method in METHODS),
        ("fork", False),
        ("forkserver", False),
        pytest.param("spawn", False, marks=pytest.mark.soak),  # its children know as little of that as a fork server's
    ],
    indirect=["context"],
)
def test_who_starts_processes_while_it_lists(context, links, shared, monkeypatch):
    """A signal handler in the middle of a listing may start processes that list, and wait for them: all agree."""
    if not links:
        monkeypatch.setattr(os, "link", _no_link)
    listing = _shared_listing()
    found: list[object] = []

    def list_objects() -> ObjectTable:
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_asker, args=(listing, theirs))
            process.start()
            theirs.close()
            found.append(ours.recv() if ours.poll(60) else "nothing: it waits")
            process.kill()
            process.join()
        return ObjectTable([S3BucketKeyData("b", "parent")])

    found.append([item.key for item in listing.agree("t", list_objects)])
    assert found[0] == found[1] == found[2]
    assert found[0] not in (["parent"], "nothing: it waits")


def test_nowhere_to_meet(monkeypatch, tmp_path):
    """Where no file can be written the error says what to do, and an error of the listing stays what it is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    listing = _shared_listing()
    with pytest.raises(ObjectTableError, match=r"cannot share its listing: .*Point TMPDIR to .* from_table"):
        listing.agree("t", ObjectTable)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^mine$"):
        listing.agree("t", _raise)


def test_a_dataset_that_needs_no_place_travels_without_one(monkeypatch, tmp_path):
    """Where there is no directory for temporary files only a listing that must be shared fails, not pickling."""
    monkeypatch.setattr(tempfile, "gettempdir", _no_directory)
    monkeypatch.chdir(tmp_path)
    dataset = S3MapDataset.from_objects(["s3://b/k"], transform=name)
    process = multiprocessing.get_context("spawn").Process(target=len, args=(dataset,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert dataset._one_listing.is_shared
    tmp_path.rmdir()
    with pytest.raises(ObjectTableError, match="cannot share its listing"):
        dataset._one_listing.agree("t", ObjectTable)


def _no_directory() -> str:
    raise FileNotFoundError("No usable temporary directory found")


def _raise() -> ObjectTable:
    raise FileNotFoundError("mine")


def _shared_listing() -> OneListing:
    listing = OneListing()
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    assert listing.is_shared
    return listing


# --- The files -------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_enter(shared):
    """Nobody else may look into the directory, whose name cannot be guessed."""
    listing = _shared_listing()
    listing.agree("t", ObjectTable)
    (directory,) = shared.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "lock").stat().st_mode & 0o777 == 0o600
    assert len(directory.name) == len("s3torch-") + 32


def test_files_go_with_the_dataset(shared):
    """When the dataset is collected its files are removed, but not when a child's copy is."""
    listing = _shared_listing()
    listing.agree("t", ObjectTable)
    process = multiprocessing.get_context("fork").Process(target=listing.__init__)
    process.start()
    process.join()
    assert len(list(shared.iterdir())) == 1
    del listing, process
    assert list(shared.iterdir()) == []


SCRIPT = """
import os, sys
from s3torch.datasets.objects import ObjectTable
from s3torch.datasets.one_listing import OneListing
listing = OneListing()
if os.fork() == 0:
    listing.agree("t", ObjectTable)
    os._exit(0)
os.wait()
print(len(os.listdir(sys.argv[1])))
"""


def test_files_go_with_the_process(tmp_path):
    """When the process that made the dataset ends the files are removed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_removed_by_the_last_who_takes_it(tmp_path):
    """That is when all workers of each DataLoader that asked for it have noted that they took it, and are alive."""
    table = tmp_path / "t.table"
    other = tmp_path / "o.table"
    other.touch()
    table.touch()
    _note_taker(other, 3, 0, 2)
    for group, taker in [(1, 1), (2, 0), (1, 0)]:
        _note_taker(table, group, taker, 2)
        assert table.exists()
    _note_taker(table, 2, 1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.3~0", "o.table"]
    process = multiprocessing.get_context("fork").Process(target=_note_taker, args=(other, 3, 1, 2))
    process.start()
    process.join()
    assert not other.exists()
    process = multiprocessing.get_context("fork").Process(target=_note_taker, args=(table, 1, 0, 2))
    table.touch()
    process.start()
    process.join()
    _note_taker(table, 1, 1, 2)
    assert table.exists()


def test_copies_that_share_nothing(shared):
    """A copy in the same process, or a pickle that is kept, is a dataset of its own."""
    listing = _shared_listing()
    copies = [copy.deepcopy(listing), *(pickle.loads(pickle.dumps(listing, protocol)) for protocol in range(6))]
    assert not any(each.is_shared for each in copies)
    assert len({each._name for each in (listing, *copies)}) == 8


def test_repr():
    """The repr tells whether other processes may have the same dataset."""
    assert repr(OneListing()) == "<OneListing of one process>"
    assert repr(_shared_listing()) == "<OneListing shared>"
