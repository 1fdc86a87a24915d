"""What the storage does, beside what the library's own does with local folders."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
from pathlib import Path

import pytest
from torch_checkpointing.storage.base_storage import ReadArgs
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from s3torch import S3ReaderConfig
from s3torch.checkpoint import mark_complete
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    S3Error,
)
from s3torch.testing import FaultyServer, faults
from s3torch.torch_checkpointing import S3StorageConfig, clean

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture
def there(bucket, prefix) -> Path:
    """A folder in S3 that no other test uses."""
    return Path(f"s3://{bucket}/{prefix}run")


@pytest.fixture
def storage():
    """A storage of S3."""
    return S3StorageConfig().create_storage()


@pytest.fixture
def both(there, tmp_path, storage):
    """Storages and folders: the library's, and ours."""
    here = LocalFileSystemStorageConfig(use_direct_io=False).create_storage()
    (tmp_path / "run").mkdir()
    return [(here, tmp_path / "run"), (storage, there)]


def _save(storage, folder: Path, files: dict[str, bytes]) -> None:
    """Do what the library does: write into a temporary folder, and rename that."""
    temporary = folder.with_name(f"tmp_{folder.name}")
    for name, content in files.items():
        storage.mkdir((temporary / name).parent)
        storage.write(temporary / name, content)
    storage.rename(temporary, folder, is_directory=True)


def _outcome(action, *arguments, **options) -> object:
    """Return what an action returns, or which of the errors it raises that the library speaks of."""
    try:
        return action(*arguments, **options)
    except FileNotFoundError:
        return FileNotFoundError
    except OSError:
        return OSError


def _seen(storage, path: Path) -> list[object]:
    """Return what a storage says of a path; of a folder no size, which is arbitrary."""
    seen = [storage.exists(path), storage.isdir(path)]
    if storage.isdir(path):
        return [*seen, sorted(storage.ls(path))]
    return [*seen, _outcome(storage.getsize, path), _outcome(storage.read, path)]


def test_a_checkpoint(both):
    """A checkpoint has the same files, sizes and bytes, and nothing else is there."""
    files = {"model_0.pt": b"model", "deep/er/file": bytes(3_000_000), "empty": b""}
    outcomes = []
    for storage, root in both:
        _save(storage, root / "step-1", files)
        storage.write(root / "note.txt", b"beside")
        paths = [
            root,
            *(root / "step-1" / name for name in ["", *files, "deep", "deep/er", "deep/none", "none"]),
            *(root / name for name in ["tmp_step-1", "step-2", "step", "note.txt", "note", "tmp_step-1/model_0.pt"]),
        ]
        outcomes.append([(path.relative_to(root), *_seen(storage, path)) for path in paths])
        assert storage.glob(str(root / "st*")) == [str(root / "step-1")]
    assert outcomes[0] == outcomes[1]


def _in_doubt(storage, root: Path, kind: str, path: Path) -> None:
    """Put something where a rename goes to."""
    if kind == "file":
        storage.write(path, b"there")
    elif kind == "folder":
        _save(storage, path, {"file": b"there"})


@pytest.mark.parametrize(
    ("source", "destination"), list(itertools.product(["folder", "file", "nothing"], ["nothing", "file", "folder"]))
)
def test_the_table_of_renames(both, source, destination):
    """A rename does what the library's interface demands for each kind of source and destination."""
    outcomes = []
    for storage, root in both:
        _in_doubt(storage, root, destination, root / "target")
        old, new = (root / "tmp_target", root / "target") if source == "folder" else (root / "source", root / "target")
        if source == "folder":
            storage.mkdir(old)
            storage.write(old / "model", b"new")
        elif source == "file":
            storage.write(old, b"new")
        outcome = _outcome(storage.rename, old, new, is_directory=source == "folder")
        found = {path: storage.exists(root / path) for path in ("source", "target", "target/model", "target/file")}
        content = _outcome(storage.read, root / "target") if found["target"] else None
        inside = _outcome(storage.read, root / "target" / "model")
        outcomes.append((outcome, found, content if isinstance(content, bytes) else None, inside == b"new"))
    assert outcomes[0] == outcomes[1]


def test_what_is_not_there(both):
    """What is not there is a FileNotFoundError of both."""
    for storage, root in both:
        for action in (storage.read, storage.getsize, storage.delete, storage.rmdir, storage.ls):
            with pytest.raises(FileNotFoundError):
                action(root / "nothing" / "here")
        with pytest.raises(FileNotFoundError), storage.stream_read(root / "none", ReadArgs(pre_read_full_file=False)):
            pass


def test_deleting(both):
    """Files and folders are deleted, and nothing beside them."""
    for storage, root in both:
        _save(storage, root / "step-1", {"model": b"1", "inner/file": b"2"})
        _save(storage, root / "step-10", {"model": b"3"})
        storage.write(root / "note", b"4")
        storage.rmdir(root / "step-1")
        assert sorted(storage.ls(root)) == ["note", "step-10"]
        storage.delete(root / "note")
        assert storage.ls(root) == ["step-10"]
        assert storage.read(root / "step-10" / "model") == b"3"
        storage.rmdir(root)
        assert not storage.exists(root)


def test_streams(both):
    """A stream reads, seeks and tells as a local one; one that is written is there when it is closed."""
    content = os.urandom(3_000_000)
    for storage, root in both:
        storage.mkdir(root / "tmp_step")
        with storage.stream_write(root / "tmp_step" / "file") as file:
            for start in range(0, len(content), 700_000):
                file.write(memoryview(content)[start : start + 700_000])
        storage.rename(root / "tmp_step", root / "step", is_directory=True)
        for args in (None, ReadArgs(), ReadArgs(pre_read_full_file=False, known_size_bytes=len(content))):
            with storage.stream_read(root / "step" / "file", args) as file:
                assert file.seek(1_000_000) == 1_000_000
                memory = bytearray(2_000_000)
                got = 0
                while got < len(memory):
                    got += file.readinto(memoryview(memory)[got:])
                assert memory == content[1_000_000:]
                assert file.readinto(bytearray(1)) == 0
                file.seek(-5, io.SEEK_END)
                assert file.read() == content[-5:]
                assert file.tell() == len(content)


def test_an_exception_while_writing(storage, there):
    """What could not be written is not left out in silence: the commit fails until it is written, or deleted."""
    for name in ("bad", "worse"):
        with contextlib.suppress(KeyError), storage.stream_write(there / "tmp_step" / name) as file:
            file.write(b"half")
            raise KeyError
    storage.write(there / "tmp_step" / "good", b"whole")
    with pytest.raises(S3Error, match="bad, worse could not be written"):
        storage.rename(there / "tmp_step", there / "step", is_directory=True)
    assert not storage.exists(there / "step")
    storage.write(there / "tmp_step" / "bad", b"whole")
    with pytest.raises(FileNotFoundError):
        storage.delete(there / "tmp_step" / "worse")
    storage.rename(there / "tmp_step", there / "step", is_directory=True)
    assert storage.ls(there / "step") == ["bad", "good"]


def test_files_that_were_deleted_meanwhile(storage, there):
    """A temporary folder whose files are gone is still there: the library would take the save for done."""
    storage.write(there / "tmp_step" / "file", b"content")
    assert len(clean(str(there), older_than=0)) == 1
    assert storage.exists(there / "tmp_step")
    with pytest.raises(S3Error, match="file could not be written, or was deleted"):
        storage.rename(there / "tmp_step", there / "step", is_directory=True)
    assert not storage.exists(there / "step")


def test_a_file_that_was_written_twice(storage, there):
    """Of two files with one name the later is committed, whichever was longer, and the other one deleted."""
    storage.write(there / "tmp_step" / "file", b"first")
    storage.write(there / "tmp_step" / "file", b"2nd")
    assert storage.read(there / "tmp_step" / "file") == b"2nd"
    storage.rename(there / "tmp_step", there / "step", is_directory=True)
    assert storage.read(there / "step" / "file") == b"2nd"
    assert clean(str(there), older_than=0) == []


def test_files_of_a_complete_checkpoint_stay(storage, there):
    """No file of a complete checkpoint is replaced or deleted alone; another one may be put beside them."""
    _save(storage, there / "step", {"file": b"content"})
    for action in (
        lambda: storage.write(there / "step" / "file", b"x"),
        lambda: storage.stream_write(there / "step" / "file"),
        lambda: storage.delete(there / "step" / "file"),
        lambda: storage.rename(there / "step" / "file", there / "other"),
    ):
        with pytest.raises(ObjectExistsError, match="complete checkpoint"):
            action()
    storage.write(there / "step" / "extra.json", b"{}")
    assert storage.ls(there / "step") == ["extra.json", "file"]
    assert storage.read(there / "step" / "extra.json") == b"{}"
    assert storage.read(there / "step" / "file") == b"content"
    assert clean(str(there), older_than=0) == []


def test_what_was_never_renamed_is_not_there(storage, there):
    """A folder without a marker is no checkpoint: its files are seen by their own save, in the temporary folder."""
    storage.write(there / "tmp_step" / "inner" / "file", b"content")
    other = S3StorageConfig().create_storage()
    for path in (there, there / "step", there / "step" / "inner" / "file", there / "step" / "inner"):
        assert not storage.exists(path)
        assert not other.exists(path)
        assert not storage.isdir(path)
    assert storage.exists(there / "tmp_step" / "inner")
    assert storage.isdir(there / "tmp_step" / "inner")
    assert storage.ls(there / "tmp_step") == ["inner"]
    assert storage.ls(there / "tmp_step" / "inner") == ["file"]
    assert storage.read(there / "tmp_step" / "inner" / "file") == b"content"
    assert not other.exists(there / "tmp_step")
    storage.delete(there / "tmp_step" / "inner" / "file")
    assert not storage.exists(there / "tmp_step")


def test_a_folder_that_was_marked(storage, there):
    """What others have put into a folder is a checkpoint when ``mark_complete`` says so."""
    storage.write(there / "step" / "model.safetensors", b"content")
    mark_complete(f"s3://{str(there).partition(':/')[2]}/step")
    assert storage.exists(there / "step")
    assert storage.ls(there / "step") == ["model.safetensors"]
    assert storage.read(there / "step" / "model.safetensors") == b"content"
    storage.rmdir(there / "step")
    assert not storage.exists(there / "step")


def test_a_marker_that_is_damaged(storage, there, client, bucket, prefix):
    """What cannot be read is an error: neither there, nor not there. ``clean`` deletes nothing that it might name."""
    _save(storage, there / "step", {"file": b"content"})
    with client.put_object(bucket, f"{prefix}run/step/_COMPLETE") as writer:
        writer.write(b"{}")
    other = S3StorageConfig().create_storage()
    for action in (other.exists, other.ls, other.rmdir):
        with pytest.raises(CheckpointFormatError, match="step"):
            action(there / "step")
    with pytest.raises(CheckpointFormatError, match="step"):
        clean(str(there), older_than=0)


def test_two_jobs_that_save_one_name(there):
    """The first that renames has its checkpoint, whole; the other one an error, and nothing of it is mixed in."""
    storages = [S3StorageConfig(save_id=name).create_storage() for name in ("one", "two")]
    for number, storage in enumerate(storages):
        for name in ("model_0.pt", f"only-{number}"):
            storage.write(there / "tmp_step" / name, b"%d" % number)
    storages[1].rename(there / "tmp_step", there / "step", is_directory=True)
    assert storages[0].exists(there / "tmp_step")
    with pytest.raises(ObjectExistsError):  # what it has written is deleted; its library asks whether that is there
        storages[0].rename(there / "tmp_step", there / "step", is_directory=True)
    assert storages[0].ls(there / "step") == ["model_0.pt", "only-1"]
    assert storages[0].read(there / "step" / "model_0.pt") == b"1"
    storages[0].write(there / "tmp_step" / "model_0.pt", b"0")
    with pytest.raises(ObjectExistsError):
        storages[0].rename(there / "tmp_step", there / "step", is_directory=True)
    assert storages[0].read(there / "step" / "model_0.pt") == b"1"


def test_what_is_in_the_way(storage, there):
    """A folder with objects of others does not become a checkpoint; neither does one that is another's part."""
    storage.write(there / "step" / "note", b"mine")
    storage.write(there / "tmp_step" / "file", b"x")
    with pytest.raises(ObjectExistsError, match="no empty folder"):
        storage.rename(there / "tmp_step", there / "step", is_directory=True)
    storage.write(there / "tmp_other" / "tmp_inner" / "file", b"x")
    storage.write(there / "tmp_other" / "file", b"x")
    with pytest.raises(ArgumentError, match="would be missing"):
        storage.rename(there / "tmp_other", there / "other", is_directory=True)
    storage.write(there / "tmp_third" / "file", b"x")
    with pytest.raises(ArgumentError, match="can become"):
        storage.rename(there / "tmp_third", there / "elsewhere", is_directory=True)
    storage.write(there / "new_fourth" / "file", b"x")
    with pytest.raises(ArgumentError, match="temp_dir_prefix"):
        storage.rename(there / "new_fourth", there / "fourth", is_directory=True)


def test_another_prefix(there):
    """The prefix may be another one, as that of the writer may."""
    storage = S3StorageConfig(temp_dir_prefix="new-").create_storage()
    storage.write(there / "tmp_x" / "new-step" / "file", b"content")
    storage.rename(there / "tmp_x" / "new-step", there / "tmp_x" / "step", is_directory=True)
    assert storage.read(there / "tmp_x" / "step" / "file") == b"content"


def test_saving_while_the_old_one_is_deleted(storage, there):
    """To delete a checkpoint leaves alone what is being saved under its name."""
    _save(storage, there / "step", {"file": b"old"})
    storage.write(there / "tmp_step" / "file", b"new")
    storage.rmdir(there / "step")
    assert not storage.exists(there / "step")
    storage.rename(there / "tmp_step", there / "step", is_directory=True)
    assert storage.read(there / "step" / "file") == b"new"
    storage.write(there / "tmp_step" / "file", b"newer")
    storage.rmdir(there / "tmp_step")
    assert storage.read(there / "step" / "file") == b"new"


def test_a_size_that_is_wrong(storage, there):
    """A size that the caller knows is compared before anything is received."""
    _save(storage, there / "step", {"file": b"content"})
    path = there / "step" / "file"
    for action in (
        lambda: storage.read(path, ReadArgs(known_size_bytes=8)),
        lambda: storage.stream_read(path, ReadArgs(pre_read_full_file=False, known_size_bytes=6)),
        lambda: storage.mmap_fill(8, path, 1, 1),
    ):
        with pytest.raises(ObjectChangedError):
            action()


def test_threads_share_a_storage(storage, there):
    """Files are written by several threads, as ``file_write_max_threads`` has it."""

    def write(number: int) -> None:
        storage.write(there / "tmp_step" / f"file-{number}", bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage.rename(there / "tmp_step", there / "step", is_directory=True)
    for number in range(8):
        assert storage.read(there / "step" / f"file-{number}") == bytes([number]) * 1000


def test_cleaning_that_fails_is_no_failure_of_the_save(caplog):
    """What earlier saves have left is deleted after the commit: that it cannot be is a warning."""
    with FaultyServer() as server:
        config = S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config)
        config.create_storage().write("s3://bucket/tmp_step/file", b"left")
        server.script(faults.on("DeleteObject", fault=faults.status(403, "AccessDenied")))
        storage = S3StorageConfig(
            endpoint=server.endpoint, s3client_config=server.config, save_id="another"
        ).create_storage()
        _save(storage, Path("s3://bucket/step"), {"file": b"content"})
        assert storage.read("s3://bucket/step/file") == b"content"
    assert "could not be deleted" in caplog.text


def test_a_commit_that_fails():
    """Where the marker could not be stored, there is no checkpoint, and to rename again makes it one."""
    with FaultyServer() as server:
        config = S3StorageConfig(endpoint=server.endpoint, s3client_config=server.config)
        storage = config.create_storage()
        storage.write("s3://bucket/tmp_step/file", b"content")
        server.script(faults.on("PutObject", fault=faults.status(403, "AccessDenied")))
        with pytest.raises(S3Error):
            storage.rename("s3://bucket/tmp_step", "s3://bucket/step", is_directory=True)
        assert not storage.exists("s3://bucket/step")
        storage.rename("s3://bucket/tmp_step", "s3://bucket/step", is_directory=True)
        assert storage.read("s3://bucket/step/file") == b"content"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"region": 3}, ArgumentTypeError),
        ({"endpoint": "ftp://host"}, ConfigError),
        ({"s3client_config": {}}, ArgumentTypeError),
        ({"reader_config": "adaptive"}, ArgumentTypeError),
        ({"save_id": ""}, ArgumentError),
        ({"save_id": 7}, ArgumentTypeError),
        ({"temp_dir_prefix": ""}, ArgumentError),
        ({"temp_dir_prefix": "a/b"}, ArgumentError),
        ({"kept_memory": -1}, ArgumentError),
        ({"kept_memory": 1.5}, ArgumentTypeError),
        ({"reclaimable": 1}, ArgumentTypeError),
        ({"progress": 1}, ArgumentTypeError),
    ],
)
def test_wrong_configurations(options, error):
    """What cannot work is refused where it is said."""
    with pytest.raises(error):
        S3StorageConfig(**options)


@pytest.mark.parametrize("kind", ["sequential", "range_based", "adaptive"])
def test_readers(there, kind):
    """Each kind of reader reads the same."""
    storage = S3StorageConfig(reader_config=getattr(S3ReaderConfig, kind)()).create_storage()
    content = os.urandom(1_000_000)
    _save(storage, there / "step", {"file": content})
    with storage.stream_read(there / "step" / "file", ReadArgs(pre_read_full_file=False)) as file:
        file.seek(-1000, io.SEEK_END)
        assert file.read() == content[-1000:]


def test_the_bucket_itself(storage, bucket):
    """A bucket is a folder, and no file or checkpoint."""
    assert storage.isdir(f"s3://{bucket}")
    with pytest.raises(ArgumentError):
        storage.write(f"s3://{bucket}", b"x")
    assert not storage.exists("s3://tests/none/")
