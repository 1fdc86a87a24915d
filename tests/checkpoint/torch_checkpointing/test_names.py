"""Where paths lead, which keys files get, and what a marker says."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.checkpoint.torch_checkpointing.names import Manifest, Place, Saved, StagedFile, StoredFile, place_of
from s3torch.errors import ArgumentTypeError, CheckpointFormatError, InvalidURIError

FOLDER = Place("bucket", "run/step")
ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/name"
SAVE = "0123456789abcdef"

_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name.strip(".")
)
_files = st.dictionaries(
    st.lists(_names, min_size=1, max_size=3).map("/".join), st.integers(0, 2**50), min_size=0, max_size=5
)


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/run/step",
        "s3:/bucket/run/step",
        "s3://bucket//run/./step/",
        Path("s3://bucket/run/step"),
        PurePosixPath("s3://bucket/run//step/"),
        PureWindowsPath("s3://bucket/run/step"),
    ],
)
def test_a_place_has_many_names(path):
    """A path leads to the same place as a str, and as what pathlib makes of it."""
    assert place_of(path) == FOLDER


def test_places():
    """Buckets, access points and keys with any characters are places."""
    assert place_of("s3://bucket") == place_of(Path("s3://bucket/")) == Place("bucket", "")
    assert place_of(Path(f"s3://{ARN}/run/step")) == Place(ARN, "run/step")
    assert place_of("s3://bucket/a b?#%20ä") == Place("bucket", "a b?#%20ä")


@pytest.mark.parametrize(
    "path", ["/local/folder", "run/step", Path("run"), "", "s3:bucket/key", "s3:///key", "gs://b/k"]
)
def test_other_places(path):
    """What leads elsewhere is refused."""
    with pytest.raises(InvalidURIError):
        place_of(path)


@pytest.mark.parametrize("path", [None, 3, b"s3://bucket/key"])
def test_what_is_no_path(path):
    """What is no path is said to be none."""
    with pytest.raises(ArgumentTypeError):
        place_of(path)


def test_a_folder_above_is_refused():
    """S3 does not know ``..``, and what the caller means by it might be another folder."""
    with pytest.raises(InvalidURIError, match=r"\.\."):
        place_of("s3://bucket/run/../other")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run/tmp_step/model_0.pt", StagedFile(FOLDER, "model_0.pt")),
        ("run/tmp_step/a/b/model_0.pt", StagedFile(FOLDER, "a/b/model_0.pt")),
        ("run/tmp_step/tmp_file", StagedFile(FOLDER, "tmp_file")),
        ("tmp_runs/tmp_step/x", StagedFile(Place("bucket", "tmp_runs/step"), "x")),
        ("tmp_step/x", StagedFile(Place("bucket", "step"), "x")),
        ("run/tmp_tmp_step/x", StagedFile(Place("bucket", "run/tmp_step"), "x")),
        ("run/step/x", None),
        ("run/tmp_/x", None),
        ("run/tmp_x", None),
        ("", None),
    ],
)
def test_staged(key, expected):
    """The last folder whose name begins with the prefix is what becomes a checkpoint."""
    assert Place("bucket", key).staged("tmp_") == expected


@given(_files)
def test_keys_are_taken_apart(files):
    """A key says what it was made of, and no two are the same."""
    keys = set()
    for name in files:
        key = StagedFile(FOLDER, name).new_key(SAVE)
        saved = Saved.parse(key)
        assert (saved.folder, saved.save, saved.name) == ("run/step", SAVE, name)
        keys |= {key, StagedFile(FOLDER, name).new_key(SAVE)}
    assert len(keys) == 2 * len(files)


@given(_files)
def test_a_marker_says_what_was_put_in(files):
    """A marker names each file with its key and size."""
    stored = {name: StoredFile("bucket", StagedFile(FOLDER, name).new_key(SAVE), size) for name, size in files.items()}
    manifest = Manifest(FOLDER, stored)
    assert Manifest.decode(FOLDER, manifest.encode()) == manifest
    assert manifest.encode() != manifest.encode()
    moved = Manifest.decode(Place("other", "elsewhere"), manifest.encode())
    assert all(file.key.startswith("elsewhere/.save-") for file in moved.files.values())


def test_a_marker_without_files():
    """What ``mark_complete`` stores names no file."""
    for content in (b"", b'{"mark": "3f2a9c1d0b5e7a64"}'):
        assert Manifest.decode(FOLDER, content) == Manifest(FOLDER, {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>", "no marker of s3torch"),
        (b"[]", "no marker of s3torch"),
        (b"\xff\xfe", "no marker of s3torch"),
        (b'{"format": "other", "version": 1}', "another kind"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 2, "files": {}}', "install a newer one"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1}', "damaged"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1, "files": []}', "damaged"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1, "files": {"x": ["k"]}}', "damaged"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1, "files": {"x": ["k", -1]}}', "damaged"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1, "files": {"x": ["", 1]}}', "damaged"),
        (b'{"format": "s3torch.torch_checkpointing", "version": 1, "files": {"x": [1, 1]}}', "damaged"),
    ],
)
def test_other_markers(content, said):
    """What is no marker, or cannot be understood, is an error that names the folder."""
    with pytest.raises(CheckpointFormatError, match=said) as error:
        Manifest.decode(FOLDER, content)
    assert "s3://bucket/run/step" in str(error.value)


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_marker(content):
    """Whatever a marker holds, it is read or refused."""
    try:
        Manifest.decode(FOLDER, content)
    except CheckpointFormatError:
        pass
