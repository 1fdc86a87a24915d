"""The checkpoints of one training run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load as load_bytes

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.multipart import CreateMultipartUpload
from s3torch.checkpoint import clean, keep_last, latest, mark_complete, unfinished
from s3torch.errors import ArgumentError, ArgumentTypeError, BucketNotFoundError, InvalidURIError, S3Error
from s3torch.safetensors import load_file, save_file
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.exchange import Exchange
from s3torch.testing.faulty.faults import Fault

MiB = 1024 * 1024


@pytest.fixture
def run(bucket, prefix) -> str:
    """The URI of a run's folder."""
    return f"s3://{bucket}/{prefix}run/"


def _keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    return [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info]


def test_nothing(client, run):
    """Without a checkpoint there is no latest, and nothing to delete."""
    assert latest(run, client=client) is None
    assert keep_last(run, 1, client=client) == []


def test_objects(client, put, prefix, run, bucket):
    """The latest is the one that was completed last; of the same second, the one whose number is the highest."""
    for step in (9, 100, 10, 11):
        put(f"{prefix}run/step-{step}.pt", b"x")
    assert latest(run, client=client) in (f"{run}step-100.pt", f"{run}step-11.pt", f"{run}step-10.pt")
    with FaultyServer() as server:
        faulty = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        for step in (9, 100, 10, 11):
            server.objects[f"run/step-{step}.pt"] = b"x"
        assert latest("s3://bucket/run", client=faulty) == "s3://bucket/run/step-100.pt"
        assert keep_last("s3://bucket/run", 2, client=faulty) == [
            "s3://bucket/run/step-9.pt",
            "s3://bucket/run/step-10.pt",
        ]
        assert sorted(server.objects) == ["run/step-100.pt", "run/step-11.pt"]


def test_folders(client, put, prefix, run, bucket):
    """A folder counts when it is complete: by DCP's metadata, or by its mark."""
    put(f"{prefix}run/a/__0_0.distcp", b"x")
    assert latest(run, client=client) is None
    put(f"{prefix}run/a/.metadata", b"x")
    assert latest(run, client=client) == f"{run}a"
    put(f"{prefix}run/b/model.safetensors", b"x")
    assert latest(run, client=client) == f"{run}a"
    mark_complete(f"{run}b", client=client)
    assert latest(run, client=client) == f"{run}b"
    put(f"{prefix}run/c/half", b"x")
    assert keep_last(run, 1, client=client) == [f"{run}a"]
    assert _keys(client, bucket, f"{prefix}run/") == [
        f"{prefix}run/b/_COMPLETE",
        f"{prefix}run/b/model.safetensors",
        f"{prefix}run/c/half",
    ]


def test_what_makes_it_complete_goes_first():
    """A folder that is deleted stops being complete with the first request."""
    with FaultyServer() as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        for name in ("1/.metadata", "1/-a", "1/z", "2/.metadata"):
            server.objects[f"run/{name}"] = b"x"
        keep_last("s3://bucket/run", 1, client=client)
        deleted = [request.path for request in server.requests if request.method == "DELETE"]
    assert deleted[0] == "/bucket/run/1/.metadata"
    assert sorted(deleted[1:3]) == ["/bucket/run/1/-a", "/bucket/run/1/z"]
    assert [path.startswith("/bucket/run/.s3torch/") for path in deleted[3:]] == [True]  # the note of it


def test_another_runs_checkpoints_are_left_alone(client, put, prefix, run, bucket):
    """A folder whose name only begins so is another's."""
    put(f"{prefix}run2/step-1.pt", b"x")
    put(f"{prefix}run/step-1.pt", b"x")
    put(f"{prefix}run/step-2.pt", b"x")
    assert keep_last(run.rstrip("/"), 1, client=client) == [f"{run}step-1.pt"]
    assert _keys(client, bucket, f"{prefix}run2") == [f"{prefix}run2/step-1.pt"]


@pytest.mark.parametrize(("count", "kind"), [(0, ArgumentError), (-1, ArgumentError), ("2", ArgumentTypeError)])
def test_one_is_kept(client, run, count, kind):
    """All checkpoints are never deleted."""
    with pytest.raises(kind, match="count"):
        keep_last(run, count, client=client)


def test_clean(small_parts, bucket, prefix, run):
    """Uploads that nobody goes on with are aborted, below the prefix and of that age only."""
    for name in ("run/a", "run/b", "other"):
        writer = small_parts.put_object(bucket, f"{prefix}{name}", resume=True)
        writer.write(bytes(5 * MiB + 1))
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    both = [f"{prefix}run/a", f"{prefix}run/b"]
    assert clean(run, older_than=3600, client=small_parts) == []
    assert clean(run, client=small_parts) == []
    assert [upload.key for upload in clean(run, older_than=0, dry_run=True, client=small_parts)] == both
    assert [upload.key for upload in clean(run, older_than=timedelta(0), client=small_parts)] == both
    left = small_parts.list_multipart_uploads(bucket, prefix)
    assert [upload.key for upload in left] == [f"{prefix}other"]
    clean(f"s3://{bucket}/{prefix}", older_than=0, client=small_parts)
    assert small_parts.list_multipart_uploads(bucket, prefix) == []


def test_bad_input(client, run):
    """What makes no sense is refused by name."""
    with pytest.raises(ArgumentError, match="older_than=-1"):
        clean(run, older_than=-1, client=client)
    with pytest.raises(ArgumentError, match="older_than=nan"):
        clean(run, older_than=float("nan"), client=client)
    for call in (latest, clean, mark_complete):
        with pytest.raises(InvalidURIError):
            call("run", client=client)
    with pytest.raises(BucketNotFoundError):
        latest("s3://nobody-has-this-bucket/run", client=client)


def test_client_of_their_own(s3, run):
    """Without a client they make one from the environment."""
    assert latest(run) is None
    assert S3ClientConfig() == S3Client().s3client_config


# --- Models in several files, what fails in the middle, and others beside --------------------------------------------

DAY = 86_400


class Bucket:
    """A bucket in memory, whose clock is the test's."""

    def __init__(self, server: FaultyServer) -> None:
        self.server = server
        self.objects = server.objects
        self.client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        self.now = 1_800_000_000.0
        self.objects.clock = lambda: self.now

    def put(self, key: str, content: bytes = b"x") -> None:
        """Store an object, a minute after the one before."""
        self.now += 60
        self.objects[key] = content

    def save(self, name: str, value: float, shard: int | None = 64) -> None:
        """Save a model of three tensors, by default in three files, a minute after what was before."""
        self.now += 60
        tensors = {f"t{number}": torch.full((16,), value) for number in range(3)}
        save_file(tensors, f"s3://bucket/run/{name}", max_shard_size=shard, client=self.client)

    def load(self, name: str) -> set[float]:
        """Return the values that the tensors of a model have."""
        tensors = load_file(f"s3://bucket/run/{name}", client=self.client)
        assert sorted(tensors) == ["t0", "t1", "t2"]
        return {float(value) for tensor in tensors.values() for value in tensor}

    def found(self, prefix: str = "run/") -> list[str]:
        """Return the keys that there are."""
        return sorted(key for key in self.objects if key.startswith(prefix))


@pytest.fixture
def there(monkeypatch) -> Iterator[Bucket]:
    """A bucket in memory; what is old is so by its clock."""
    with FaultyServer() as server:
        bucket = Bucket(server)
        monkeypatch.setattr(unfinished, "clock", lambda: bucket.now)
        yield bucket
        bucket.client.close()


def before(operation: str, act: Callable[[Exchange], object], key: str = "") -> Fault:
    """Return a fault that does something before such a request is answered, which is well."""

    def fault(exchange: Exchange) -> None:
        if key in exchange.key:
            act(exchange)
        exchange.send()

    return Fault("before", fault, frozenset({operation}))


REFUSED = faults.status(405, "MethodNotAllowed")


def test_a_sharded_model_is_one_checkpoint(there: Bucket):
    """It is found by its index, kept whole, and deleted whole, the index first."""
    for step in (1, 2, 3):
        there.save(f"step-{step}.safetensors", step)
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/step-3.safetensors.index.json"
    begun = len(there.server.requests)
    assert keep_last("s3://bucket/run", 2, client=there.client) == ["s3://bucket/run/step-1.safetensors.index.json"]
    deleted = [request.path for request in there.server.requests[begun:] if request.method == "DELETE"]
    assert deleted[0] == "/bucket/run/step-1.safetensors.index.json"
    assert len(deleted) == 5  # with the note
    assert len(there.found()) == 8
    assert there.load("step-2.safetensors.index.json") == {2}
    assert there.load("step-3.safetensors.index.json") == {3}


def test_a_sharded_model_on_a_real_server(client, run, bucket, prefix):
    """The same, where the server is a real one; the safetensors library reads what the index names."""
    tensors = {f"t{number}": torch.full((16,), float(number)) for number in range(3)}
    for step in (1, 2):
        save_file(tensors, f"{run}step-{step}.safetensors", max_shard_size=64, client=client)
    save_file(tensors, f"{run}step-2.safetensors", max_shard_size=128, client=client)  # replaces
    assert keep_last(run, 1, client=client) == [f"{run}step-1.safetensors.index.json"]
    index_key, *shards = sorted(_keys(client, bucket, f"{prefix}run/"), key=lambda key: not key.endswith(".json"))
    index = json.loads(client.read_range(bucket, index_key, 0))
    assert sorted(f"{prefix}run/{name}" for name in set(index["weight_map"].values())) == shards
    read = {name: tensor for key in shards for name, tensor in load_bytes(client.read_range(bucket, key, 0)).items()}
    assert {name: float(tensor[0]) for name, tensor in read.items()} == {"t0": 0.0, "t1": 1.0, "t2": 2.0}


@pytest.mark.parametrize("count", range(12))
def test_a_save_that_fails(there: Bucket, count: int):
    """Whichever request fails, the model before is the latest, and it is whole; or the new one is."""
    there.save("model.safetensors", 1)
    there.put("run/older.pt")
    there.objects._times["run/older.pt"] = 1.0
    there.server.script(*[faults.none()] * count, REFUSED)
    try:
        there.save("model.safetensors", 2)
        stored = {2.0}
    except S3Error:
        stored = there.load("model.safetensors.index.json")
    there.server.script()
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/model.safetensors.index.json"
    assert there.load("model.safetensors.index.json") == stored
    assert stored in ({1.0}, {2.0})
    there.now += 2 * DAY
    clean("s3://bucket/run", client=there.client)
    assert len(there.found()) == 5, "shards or notes are left"


def test_the_first_save_fails(there: Bucket):
    """Shards without an index are no checkpoint: the latest is the model before; what was written is deleted."""
    there.save("step-1.safetensors", 1)
    there.server.script(*[faults.none()] * 4, REFUSED)
    with pytest.raises(S3Error):
        there.save("step-2.safetensors", 2)
    there.server.script()
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/step-1.safetensors.index.json"
    assert not [key for key in there.found() if "step-2" in key]
    for number in (1, 2):
        there.put(f"run/alone-{number:05d}-of-00003.safetensors")
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/step-1.safetensors.index.json"


@pytest.mark.parametrize("then", [None, 64])
def test_another_kind_of_the_same_name(there: Bucket, then: int | None):
    """One file after several, and several after one: what was there before is gone, however it is loaded."""
    first = 64 if then is None else None
    there.save("model.safetensors", 1, first)
    there.save("model.safetensors", 2, then)
    assert there.load("") == {2}
    assert len(there.found()) == (1 if then is None else 4)


def test_a_loser_of_two_saves_leaves_nothing(there: Bucket):
    """Of two saves of one name at the same time one wins, whole, and the other's shards are deleted."""
    there.save("model.safetensors", 1)
    threads = [threading.Thread(target=there.save, args=("model.safetensors", value)) for value in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert there.load("model.safetensors.index.json") in ({2.0}, {3.0}, {4.0})
    assert len(there.found()) == 4


def test_shards_of_a_killed_save(there: Bucket):
    """They are found by the note of the save, a day later; one that is at work is spared."""
    there.server.script(*[faults.none()] * 3, *[REFUSED] * 100)
    with pytest.raises(S3Error):
        there.save("model.safetensors", 1)
    there.server.script()
    (note, shard) = there.found()
    assert note.startswith("run/.s3torch/")
    assert clean("s3://bucket/run", client=there.client) == []
    assert there.found() == [note, shard]
    there.now += DAY + 1
    assert [info.key for info in clean("s3://bucket/run", dry_run=True, client=there.client)] == [shard]
    assert there.found() == [note, shard]
    assert [info.key for info in clean("s3://bucket/run", client=there.client)] == [shard]
    assert there.found() == []


def test_what_is_no_checkpoint(there: Bucket):
    """Configurations, logs and folders without a mark are neither the latest nor deleted."""
    others = [
        "run/config.json",
        "run/train.log",
        "run/events.out.tfevents.1",
        "run/logs/1.pt",
        "run/x.index.json",
        "run/",
    ]
    for key in ("run/step-1.pt", "run/step-2.pt", *others):
        there.put(key)
    assert latest("s3://bucket/run/", client=there.client) == "s3://bucket/run/step-2.pt"
    assert keep_last("s3://bucket/run/", 1, client=there.client) == ["s3://bucket/run/step-1.pt"]
    assert there.found() == sorted(["run/step-2.pt", *others])


def test_pattern_and_formats(there: Bucket):
    """Others than those that the pattern and the formats name are neither counted nor deleted."""
    for key in ("best.pt", "step-1.pt", "step-2/.metadata", "step-3.mine", "ema-1.pt", "step-4.PT", "step-9.json"):
        there.put(f"run/{key}")
    there.save("step-5.safetensors", 1)
    options = {"client": there.client, "pattern": "step-*"}
    assert latest("s3://bucket/run", **options) == "s3://bucket/run/step-5.safetensors.index.json"
    assert latest("s3://bucket/run", client=there.client, pattern="ema*") == "s3://bucket/run/ema-1.pt"
    assert latest("s3://bucket/run", client=there.client, pattern="step-[13].*", formats=(".mine",)) == (
        "s3://bucket/run/step-3.mine"
    )
    assert keep_last("s3://bucket/run", 1, dry_run=True, **options) == [
        "s3://bucket/run/step-1.pt",
        "s3://bucket/run/step-2",
        "s3://bucket/run/step-4.PT",
    ]
    assert len(there.found()) == 11
    for wrong in ({"pattern": None}, {"formats": ".pt"}, {"formats": [""]}, {"formats": 3}):
        with pytest.raises(ArgumentTypeError):
            latest("s3://bucket/run", client=there.client, **wrong)
    with pytest.raises(ArgumentTypeError, match="dry_run"):
        keep_last("s3://bucket/run", 1, dry_run=1, client=there.client)


def test_prefixes(there: Bucket):
    """A prefix is a folder, with or without its slash; the empty one is the bucket; two slashes are another folder."""
    for key in ("run/a.pt", "run/b.pt", "run2/a.pt", "run", "run.pt", "run//c.pt", "/d.pt", "run/e/.metadata"):
        there.put(key)
    for prefix in ("s3://bucket/run", "s3://bucket/run/"):
        assert latest(prefix, client=there.client) == "s3://bucket/run/e"
        assert keep_last(prefix, 1, dry_run=True, client=there.client) == [
            "s3://bucket/run/a.pt",
            "s3://bucket/run/b.pt",
        ]
    for prefix in ("s3://bucket", "s3://bucket/"):
        assert latest(prefix, client=there.client) == "s3://bucket/run.pt"
    assert latest("s3://bucket//", client=there.client) == "s3://bucket//d.pt"
    assert latest("s3://bucket/run//", client=there.client) == "s3://bucket/run//c.pt"
    assert latest("s3://bucket/ru", client=there.client) is None
    with pytest.raises(InvalidURIError, match="bucket and no folder"):
        mark_complete("s3://bucket/", client=there.client)


def test_odd_keys(there: Bucket):
    """Names may hold anything."""
    names = ["a b+ü&.pt", "%41.pt", "q?versionId=1.pt", "h#.pt", "[x]*.pt", "\u200b'\".pt", "x" * 900 + ".pt"]
    for name in names:
        there.put(f"run/{name}")
        there.put(f"run/{name}/{name[:50]}")
        there.put(f"run/{name}/.metadata")
    assert latest("s3://bucket/run", client=there.client) == f"s3://bucket/run/{names[-1]}"
    deleted = keep_last("s3://bucket/run", 1, client=there.client)
    assert deleted == [uri for name in names for uri in [f"s3://bucket/run/{name}"] * 2][:-1]
    assert there.found() == sorted([f"run/{names[-1]}/.metadata", f"run/{names[-1]}/{names[-1][:50]}"])


def test_equal_times(there: Bucket):
    """Of those completed in the same second the name decides, with numbers as such, and for both functions alike."""
    there.now = 2e9
    for name in ("step-9.pt", "step-10/.metadata", "step-10.pt", "step-2.pt", "ema.pt"):
        there.objects[f"run/{name}"] = b"x"
    kept = latest("s3://bucket/run", client=there.client)
    assert kept == "s3://bucket/run/step-10.pt"
    assert keep_last("s3://bucket/run", 1, client=there.client) == [
        f"s3://bucket/run/{name}" for name in ("ema.pt", "step-2.pt", "step-9.pt", "step-10")
    ]


def test_many_objects(there: Bucket):
    """A checkpoint of more objects than a page of a listing has is deleted whole."""
    for number in range(1200):
        there.objects[f"run/1/__{number}_0.distcp"] = b"x"
    there.put("run/1/.metadata")
    there.put("run/2/.metadata")
    assert keep_last("s3://bucket/run", 1, client=there.client) == ["s3://bucket/run/1"]
    assert there.found() == ["run/2/.metadata"]


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("content", [b"new", b"x"])
def test_replaced_before_it_is_deleted(there: Bucket, heeds: bool, content: bytes):
    """What was saved again since the listing stays, whether the server compares or not, and be the bytes the same."""
    for name in ("1.pt", "2/.metadata", "2/a", "3.pt"):
        there.put(f"run/{name}")

    def replace(exchange: Exchange) -> None:
        for key in ("run/1.pt", "run/2/.metadata"):
            there.put(key, content)

    ignores = [] if heeds else [faults.ignore_condition()] * 50
    there.server.script(faults.none(), before("HeadObject", replace), *ignores)
    assert keep_last("s3://bucket/run", 1, client=there.client) == []
    assert there.found() == ["run/1.pt", "run/2/.metadata", "run/2/a", "run/3.pt"]


def test_replaced_between_the_look_and_the_delete(there: Bucket):
    """Where the server compares, nothing comes in between."""
    for name in ("1.pt", "2.pt"):
        there.put(f"run/{name}")
    there.server.script(faults.none(), faults.none(), before("DeleteObject", lambda _: there.put("run/1.pt", b"new")))
    assert keep_last("s3://bucket/run", 1, client=there.client) == []
    assert there.objects["run/1.pt"] == b"new"


def test_marks_differ(there: Bucket):
    """Two marks of one folder are told apart, so that a newer one is not deleted for an older."""
    mark_complete("s3://bucket/run/1", client=there.client)
    first = there.objects["run/1/_COMPLETE"]
    mark_complete("s3://bucket/run/1/", client=there.client)
    assert there.objects["run/1/_COMPLETE"] != first


def test_a_folder_that_is_written_anew(there: Bucket):
    """A folder in which something is newer than its mark is left alone for a day."""
    for name in ("1/a", "1/.metadata", "2/.metadata"):
        there.put(f"run/{name}")
    there.put("run/1/a", b"new")
    assert keep_last("s3://bucket/run", 1, client=there.client) == []
    there.now += 2 * DAY
    assert keep_last("s3://bucket/run", 1, client=there.client) == ["s3://bucket/run/1"]
    assert there.found() == ["run/2/.metadata"]


@pytest.mark.parametrize("count", range(1, 9))
def test_a_second_call_finishes_the_first(there: Bucket, count: int):
    """Whichever request fails, what is half deleted is no checkpoint, and the next call deletes the rest."""
    for name in ("1/a", "1/b", "1/.metadata", "2/.metadata"):
        there.put(f"run/{name}")
    there.server.script(*[faults.none()] * count, *[REFUSED] * 100)
    first: list[str] = []
    with pytest.raises(S3Error):
        first = keep_last("s3://bucket/run", 1, client=there.client)
    there.server.script()
    there.server.close_connections()  # nothing is done any more
    left = [key for key in there.found() if key.startswith("run/1/")]
    assert len(left) == 3 or "run/1/.metadata" not in left
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/2"
    would = keep_last("s3://bucket/run", 1, dry_run=True, client=there.client)
    assert would == (["s3://bucket/run/1"] if left else [])
    assert [key for key in there.found() if key.startswith("run/1/")] == left
    assert keep_last("s3://bucket/run", 1, client=there.client) == would
    there.now += 2 * DAY
    assert keep_last("s3://bucket/run", 1, client=there.client) == first == []
    assert there.found() == ["run/2/.metadata"]


def test_a_folder_that_is_saved_again_behind_a_failure(there: Bucket):
    """What a new save has stored in a folder that was half deleted is not deleted with the rest."""
    for name in ("1/a", "1/b", "1/.metadata", "2/.metadata"):
        there.put(f"run/{name}")
    there.server.script(*[faults.none()] * 5, *[REFUSED] * 100)
    with pytest.raises(S3Error):
        keep_last("s3://bucket/run", 1, client=there.client)
    there.server.script()
    assert "run/1/.metadata" not in there.objects
    there.put("run/1/a")  # the same bytes again
    keep_last("s3://bucket/run", 1, client=there.client)
    assert [key for key in there.found() if key.startswith("run/1/")] == ["run/1/a"]
    there.put("run/1/.metadata", b"new")
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/1"


def test_two_at_once(there: Bucket):
    """Two processes that delete the same checkpoints do not disturb each other, and leave nothing."""
    for step in range(8):
        there.put(f"run/{step}/a")
        there.put(f"run/{step}/.metadata", b"%d" % step)
    there.save("m.safetensors", 1)
    there.put("run/last.pt")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            keep_last("s3://bucket/run", 1, client=there.client)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert there.found() == ["run/last.pt"]


def test_an_index_that_is_replaced_meanwhile(there: Bucket):
    """A model that is saved again between the listing and the look at its index is the latest, and is not deleted."""
    there.save("model.safetensors", 1)
    there.put("run/older.pt")
    there.objects._times["run/older.pt"] = 1.0

    def save(_: Exchange) -> None:
        there.server.script()
        there.save("model.safetensors", 2)

    there.server.script(before("GetObject", save, "index.json"))
    assert latest("s3://bucket/run", client=there.client) == "s3://bucket/run/model.safetensors.index.json"
    there.put("run/newest.pt")
    there.server.script(before("GetObject", save, "index.json"))
    assert keep_last("s3://bucket/run", 1, client=there.client) == ["s3://bucket/run/older.pt"]
    assert there.load("model.safetensors.index.json") == {2}


def test_notes_of_others(there: Bucket):
    """What is no note is ignored, and a note cannot lead out of its folder."""
    there.put("other/a.pt")
    there.put("run/a.pt")
    at = int(there.objects.modified_at("other/a.pt"))
    etag = there.client.head_object("bucket", "other/a.pt").etag
    wrong = {"version": 1, "checkpoint": "run/x/", "old": [["other/a.pt", etag, at]], "new": ["other/a.pt"]}
    for number, text in enumerate([b"", b"{}", b"[]", b"\xff", json.dumps(wrong).encode()]):
        there.put(f"run/.s3torch/{number}.json", text)
    there.now += 2 * DAY
    keep_last("s3://bucket/run", 1, client=there.client)
    clean("s3://bucket/run", older_than=0, client=there.client)
    assert "other/a.pt" in there.objects


def test_clean_is_of_a_folder(there: Bucket):
    """Uploads of another run whose name only begins so are not aborted, nor those that are younger than a day."""
    for key in ("run/a.pt", "run2/a.pt", "run", "run.pt"):
        there.client._access.run([CreateMultipartUpload(there.client._access.bucket("bucket"), key)])
    assert clean("s3://bucket/run", client=there.client) == []
    there.now += DAY + 1
    there.client._access.run([CreateMultipartUpload(there.client._access.bucket("bucket"), "run/b.pt")])
    assert [upload.key for upload in clean("s3://bucket/run", client=there.client)] == ["run", "run/a.pt"]
    assert sorted(upload.key for upload in there.objects.open_uploads().values()) == ["run.pt", "run/b.pt", "run2/a.pt"]
    for wrong in (True, "1", None):
        with pytest.raises(ArgumentTypeError, match="older_than"):
            clean("s3://bucket/run", older_than=wrong, client=there.client)


# --- Folders of torch_checkpointing beside ----------------------------------------------------------------------------


def test_saves_of_torch_checkpointing(there: Bucket):
    """Both ways to clean know their own, on one prefix: a save that goes on, and the notes of others, stay."""
    clean_saves = pytest.importorskip("s3torch.torch_checkpointing").clean
    one, two = (f"run/step-{number}/.save-{7:016x}/{8:024x}/x_0.pt" for number in (1, 2))
    there.put(one)
    there.put("run/step-1/_COMPLETE", b'{"mark": "1"}')  # of a folder of plain objects, in which a save was begun
    there.put("run/step-1/plain")
    there.save("model.safetensors", 1.0)
    there.put("run/step-2/other")
    there.put(two)
    before = there.found()
    prefix = "s3://bucket/run"
    for age in (DAY, timedelta(days=1)):
        assert clean_saves(prefix, older_than=age, client=there.client) == []
        assert clean(prefix, older_than=age, client=there.client) == []
    assert there.found() == before
    there.now += 2 * DAY
    assert clean(prefix, client=there.client) == []
    assert keep_last(prefix, 2, client=there.client) == []
    assert there.found() == before
    assert sorted(clean_saves(prefix, client=there.client)) == [f"s3://bucket/{key}" for key in (one, two)]
    assert there.found() == [key for key in before if key not in (one, two)]
    assert there.load("model.safetensors.index.json") == {1.0}
    with pytest.raises(ArgumentError, match="older_than"):
        clean_saves(prefix, older_than=-1, client=there.client)
