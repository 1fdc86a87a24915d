"""S3FileSystem: what torch's checkpoints call."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3torch import S3ReaderConfig
from s3torch.dcp import S3FileSystem
from s3torch.errors import ArgumentError, ArgumentTypeError, InvalidURIError, NotFoundError

ODD_NAMES = ["plain", "test_[+re.name]!@$%^&*_(src)", "a b/ü%20?#"]


@pytest.fixture
def files(client) -> S3FileSystem:
    """The files of the shared client's server."""
    return S3FileSystem(s3_client=client)


@pytest.fixture
def base(bucket, prefix) -> str:
    """A path that no other test uses."""
    return f"s3://{bucket}/{prefix.rstrip('/')}"


def _write(files: S3FileSystem, path: str, content: bytes) -> None:
    with files.create_stream(path, "wb") as stream:
        stream.write(content)


def _write_and_fail(files: S3FileSystem, path: str) -> None:
    with files.create_stream(path, "wb") as stream:
        stream.write(b"half")
        raise RuntimeError("out of luck")


def _read(files: S3FileSystem, path: str) -> bytes:
    with files.create_stream(path, "rb") as stream:
        return stream.read()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_streams(files, base, name):
    """What was written is read, whatever characters the key has."""
    path = files.concat_path(base, name)
    _write(files, path, b"content")
    assert _read(files, path) == b"content"


def test_an_exception_leaves_nothing(files, base):
    """An exception while a file is written leaves no file."""
    with pytest.raises(RuntimeError, match="out of luck"):
        _write_and_fail(files, f"{base}/x")
    assert not files.exists(f"{base}/x")


@pytest.mark.parametrize("mode", ["r", "ab", "", "rb+"])
def test_modes(files, base, mode):
    """Any other mode is refused in the reference connector's words."""
    expected = f"Invalid mode='{mode}' mode argument: create_stream only supports rb (read mode) & wb (write mode)"
    with pytest.raises(ArgumentError) as caught, files.create_stream(f"{base}/x", mode):
        pass
    assert str(caught.value) == expected.replace("'rb+'", repr(mode))


@pytest.mark.parametrize("path", ["s3://bucket/a", "s3://bucket/a/", Path("a")])
def test_concat_path(files, path):
    """A file's path has one slash between."""
    assert files.concat_path(path, "b/c").endswith("a/b/c")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_rename(files, base, name):
    """A renamed object is at its new place only, with its content."""
    old, new = files.concat_path(base, name), files.concat_path(base, f"new {name}")
    _write(files, old, b"content")
    files.rename(old, new)
    assert _read(files, new) == b"content"
    assert not files.exists(old)


def test_rename_onto_itself(files, base):
    """An object that is renamed to its own name is still there."""
    _write(files, f"{base}/x", b"content")
    files.rename(f"{base}/x", f"{base}/x")
    assert _read(files, f"{base}/x") == b"content"


def test_rename_across_buckets(files, base):
    """Another bucket is refused before anything is sent."""
    with pytest.raises(ArgumentError, match="Source and destination buckets cannot be different"):
        files.rename(f"{base}/x", "s3://other/x")


def test_rename_of_nothing(files, base):
    """What does not exist cannot be renamed."""
    with pytest.raises(NotFoundError, match="does not exist"):
        files.rename(f"{base}/x", f"{base}/y")


def test_exists_and_rm_file(files, base):
    """An object exists until it is removed; removing what is not there is no error."""
    _write(files, f"{base}/x", b"")
    assert files.exists(f"{base}/x")
    files.rm_file(f"{base}/x")
    assert not files.exists(f"{base}/x")
    files.rm_file(f"{base}/x")


def test_ls(files, base):
    """A listing has what is directly below the path, and nothing of a path that only begins so."""
    for name in ("a", "b", "deeper/c"):
        _write(files, f"{base}/{name}", b"")
    _write(files, f"{base}-other/a", b"")
    assert sorted(files.ls(base)) == sorted(files.ls(f"{base}/")) == [f"{base}/a", f"{base}/b"]


def test_mkdir(files, base):
    """Making a directory makes nothing."""
    files.mkdir(base)
    assert files.ls(base) == []


@pytest.mark.parametrize(
    ("checkpoint_id", "valid"),
    [("s3://bucket/a", True), (Path("a"), True), ("/tmp/a", False), ("gs://bucket/a", False), ("s3://", False)],
)
def test_validate_checkpoint_id(checkpoint_id, valid):
    """S3 URIs name a checkpoint, and Paths as the reference connector has it."""
    assert S3FileSystem.validate_checkpoint_id(checkpoint_id) is valid


def test_reader_config(client, base):
    """Streams are opened by the reader that is configured."""
    files = S3FileSystem(s3_client=client, reader_config=S3ReaderConfig.range_based())
    with files.create_stream(f"{base}/x", "rb") as stream:
        assert type(stream).__name__ == "RangedS3Reader"


def test_user_agent(server):
    """Requests tell that checkpoints are loaded, and by which reader."""
    files = S3FileSystem(server.region, endpoint=server.endpoint)
    assert "(dcp; " in files.client.user_agent
    assert files.client.user_agent.endswith("; md/reader_type#sequential)")


def test_bad_arguments(files):
    """An argument of a wrong type, or a path that is no URI, is refused by name."""
    with pytest.raises(ArgumentTypeError, match="s3_client must be an S3Client, got 5"):
        S3FileSystem(s3_client=5)
    with pytest.raises(ArgumentTypeError, match="reader_config must be"):
        S3FileSystem(reader_config="sequential")
    with pytest.raises(InvalidURIError, match="got '/tmp/x'"):
        files.exists("/tmp/x")
