"""The checkpoints of one training run."""

from __future__ import annotations

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch.checkpoint import clean, keep_last, latest, mark_complete
from s3torch.errors import ArgumentError, ArgumentTypeError, BucketNotFoundError, InvalidURIError
from s3torch.testing import FaultyServer

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
    assert sorted(deleted[1:]) == ["/bucket/run/1/-a", "/bucket/run/1/z"]


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
    assert clean(run, older_than=3600, client=small_parts) == []
    assert [upload.key for upload in clean(run, client=small_parts)] == [f"{prefix}run/a", f"{prefix}run/b"]
    left = small_parts.list_multipart_uploads(bucket, prefix)
    assert [upload.key for upload in left] == [f"{prefix}other"]
    clean(f"s3://{bucket}/{prefix}", client=small_parts)


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
