"""The interface of torch_checkpointing that was implemented, beside that of the version that is installed.

It is a young package, whose interface may change with any version. A test that fails here says what to look at before
the range of versions in pyproject.toml is widened.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from torch_checkpointing.checkpoint_reader import CheckpointReader
from torch_checkpointing.checkpoint_writer import DEFAULT_TEMP_DIR_PREFIX, CheckpointWriter, CheckpointWriterConfig
from torch_checkpointing.storage import torch_serialization
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from s3torch.torch_checkpointing import S3Storage, S3StorageConfig

ABSTRACT = {
    "delete": "path",
    "exists": "path",
    "getsize": "path",
    "isdir": "path",
    "ls": "path",
    "mkdir": "path recursive",
    "remap_path": "path",
    "rename": "src_path dst_path is_directory background_cleanup",
    "rmdir": "path",
    "stream_read": "path read_args",
    "stream_write": "path",
    "write": "path data",
}
INHERITED = {
    "get_write_stream": "path data",
    "glob": "pattern",
    "mmap_fill_chunk_bytes": None,
    "mmap_fill_workers": None,
    "read": "path read_args",
}


def _parameters(function: object) -> str | None:
    return " ".join(list(inspect.signature(function).parameters)[1:]) if callable(function) else None


def test_the_storage_has_all_that_is_asked_of_one():
    """Nothing is abstract that is not implemented here, with the same parameters."""
    assert {name: _parameters(getattr(Storage, name)) for name in Storage.__abstractmethods__} == ABSTRACT
    assert S3Storage.__abstractmethods__ == frozenset()
    assert {name: _parameters(getattr(S3Storage, name)) for name in ABSTRACT} == ABSTRACT


def test_nothing_else_is_offered():
    """A method that has a default, and that another storage may do better, is looked at when it is new."""
    offered = {name for name in vars(Storage) if not name.startswith("_")}
    assert offered == ABSTRACT.keys() | INHERITED.keys()
    assert {name: _parameters(getattr(S3Storage, name)) for name in INHERITED} == INHERITED


def test_configurations():
    """A configuration makes a storage, and is asked for nothing else."""
    assert StorageConfig.__abstractmethods__ == {"create_storage"}
    assert S3StorageConfig.__abstractmethods__ == frozenset()
    assert [field.name for field in dataclasses.fields(StorageConfig)] == []


def test_arguments_of_reading():
    """What may be asked of a read is known."""
    assert [field.name for field in dataclasses.fields(ReadArgs)] == [
        "pre_read_full_file",
        "direct_io",
        "timeout_us",
        "known_size_bytes",
    ]


def test_the_hook_for_native_fills():
    """The reader takes what makes a fill of a storage, and the fill is called with these arguments."""
    assert "mmap_fill_factory" in inspect.signature(CheckpointReader).parameters
    source = inspect.getsource(torch_serialization._mmap_with_callback)
    assert "mmap_fill(expected, path, workers, chunk_bytes)" in source
    assert _parameters(S3Storage.mmap_fill) == "expected path workers chunk_bytes"


def test_how_a_checkpoint_is_committed():
    """The writer writes into a folder whose name begins with the prefix, and renames it by the storage."""
    assert DEFAULT_TEMP_DIR_PREFIX == CheckpointWriterConfig().temp_dir_prefix == S3StorageConfig().temp_dir_prefix
    assert "self._storage.rename(tmp_dir_path, final_path, is_directory=True)" in inspect.getsource(CheckpointWriter)


def test_a_new_abstract_method_is_noticed():
    """A storage that lacks one cannot be made: the tests above would say which."""

    class Newer(Storage):
        @property
        def mmap_fill_workers(self):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Newer()
