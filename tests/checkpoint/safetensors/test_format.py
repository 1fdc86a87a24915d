"""The safetensors format: what is taken, and what is refused with which words."""

from __future__ import annotations

import json
from math import prod

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from s3torch.checkpoint.safetensors.format import (
    BITS,
    build_header,
    parse_header,
    parse_header_size,
    parse_index,
    shard_names,
    split_into_shards,
)
from s3torch.errors import ArgumentError, CheckpointFormatError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _parse(document: object, size: int = 8):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_header(text, 8 + len(text) + size, "s3://b/k")


def _b(**changes: object) -> dict[str, object]:
    return {"a": A, "b": {**A, "data_offsets": [8, 16], **changes}}


def test_a_header():
    """Tensors come in the order of their bytes, with their place in the file."""
    header = _parse(
        {
            "__metadata__": {"x": "y"},
            "b": {**A, "data_offsets": [8, 16]},
            "a": A,
            "e": {**A, "extra": 1} | {"shape": [0], "data_offsets": [16, 16]},
        },
        16,
    )
    assert list(header.tensors) == ["a", "b", "e"]
    begin = header.tensors["a"].start
    assert [info.stop - begin for info in header.tensors.values()] == [8, 16, 16]
    assert header.metadata == {"x": "y"}


REFUSED = [
    (b"", 0, "a JSON object must stand where b''"),
    (b"[]", 0, "a JSON object must stand"),
    (b"{", 0, "its JSON cannot be read"),
    (b'{"a":"\xff"}', 0, "its JSON cannot be read"),
    (b'{"\\ud800":1}', 0, "its JSON cannot be read"),
    (b'{"a":' + b"[" * 100_000, 0, "its JSON cannot be read"),
    (b'{"a":NaN}', 0, "NaN is no JSON"),
    (b'{"a":1,"a":2}', 0, "the name 'a' occurs twice"),
    (b'{"a":{"dtype":"F32","dtype":"F16"}}', 0, "the name 'dtype' occurs twice"),
    ({"__metadata__": {"a": 1}}, 0, "its __metadata__ is not text by name"),
    ({"a": 1}, 0, "'a' is not described by a JSON object"),
    ({"a": {**A, "dtype": "F128"}}, 8, "'a' has the dtype 'F128', which this version does not know"),
    ({"a": {**A, "dtype": ["F32"]}}, 8, "which this version does not know"),
    ({"a": {**A, "shape": [-2]}}, 8, r"the shape \[-2\]"),
    ({"a": {**A, "shape": [2.0]}}, 8, r"the shape \[2.0\]"),
    ({"a": {**A, "shape": [True, 2]}}, 8, "the shape"),
    ({"a": {**A, "shape": [2**62, 2**62, 0]}}, 8, "more than memory can have"),
    ({"a": {**A, "shape": [2**64]}}, 8, "the shape"),
    ({"a": {**A, "shape": [3]}}, 8, "'a' has 8 bytes, where F32 of shape .3. takes 96 bits"),
    ({"a": {**A, "dtype": "F4", "shape": [15]}}, 8, "takes 60 bits"),
    ({"a": {**A, "data_offsets": [8, 0]}}, 8, r"the data_offsets \[8, 0\]"),
    ({"a": {**A, "data_offsets": [0, 8, 9]}}, 8, "the data_offsets"),
    ({"a": {**A, "data_offsets": [-8, 0]}}, 8, "the data_offsets"),
    (_b(data_offsets=[4, 12]), 16, "'b' overlaps the one before it"),
    (_b(data_offsets=[0, 8]), 16, "'b' overlaps the one before it"),
    (_b(data_offsets=[12, 20]), 20, "'b' leaves 4 bytes before it"),
    ({"a": {**A, "data_offsets": [1, 9]}}, 9, "'a' leaves 1 bytes before it"),
    ({"a": A}, 9, "its tensors end at byte"),
    ({"a": A}, 7, "its tensors end at byte"),
    ({}, 1, "its tensors end at byte"),
]


@pytest.mark.parametrize(("document", "size", "message"), REFUSED)
def test_what_is_refused(document, size, message):
    """A header that cannot be true is refused, and the message says where and why."""
    with pytest.raises(CheckpointFormatError, match=f"^s3://b/k is no safetensors file .*{message}"):
        _parse(document, size)


@pytest.mark.parametrize(
    ("head", "size", "message"),
    [
        (b"1234567", 7, "it has 7 bytes"),
        ((100_000_001).to_bytes(8, "little"), 2**40, "100000001 bytes, and 100000000 are permitted"),
        (b"\xff" * 8, 2**62, "18446744073709551615 bytes"),
        ((3).to_bytes(8, "little"), 10, "3 bytes, and the whole file has 10"),
    ],
)
def test_lengths_that_are_refused(head, size, message):
    """A header that the file cannot hold is not asked for."""
    with pytest.raises(CheckpointFormatError, match=message):
        parse_header_size(head, size, "s3://b/k")


names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
tensors = st.dictionaries(names, st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 4), max_size=4)))
metadata = st.none() | st.dictionaries(names, names)


@given(tensors, metadata)
def test_round_trip(drawn, metadata):
    """What is built is parsed again, aligned, and taken by the safetensors package."""
    described = {
        name: (dtype, shape, BITS[dtype] * prod(shape) // 8)
        for name, (dtype, shape) in drawn.items()
        if BITS[dtype] * prod(shape) % 8 == 0
    }
    head, order = build_header(described, metadata)
    content = head + bytes(sum(size for _, _, size in described.values()))
    assert len(head) % 8 == 0
    found = parse_header(head[8 : 8 + parse_header_size(head, len(content), "k")], len(content), "k")
    assert found.metadata == metadata
    assert sorted(order) == sorted(found.tensors) == sorted(described)
    for name, info in found.tensors.items():
        assert (info.dtype, list(info.shape), info.stop - info.start) == described[name]
        assert info.dtype in ("F4", "F6_E2M3", "F6_E3M2") or info.start % (BITS[info.dtype] // 8) == 0
    theirs = dict(safetensors.deserialize(content))
    assert {name: (each["dtype"], each["shape"]) for name, each in theirs.items()} == {
        name: (dtype, shape) for name, (dtype, shape, _) in described.items()
    }


@given(st.binary(max_size=120), st.integers(0, 40))
def test_what_we_take_the_package_takes(data, cut):
    """Nothing is read that the reference implementation refuses."""
    head, _ = build_header({"a": ("F32", (2,), 8), "b": ("U8", (3,), 3)}, {"c": "d"})
    content = head[: 8 + cut] + data[:3] + head[8 + cut + len(data[:3]) :] + bytes(11)
    try:
        parse_header(content[8 : len(head)], len(content), "k")
    except CheckpointFormatError:
        return
    safetensors.deserialize(content)


def test_what_cannot_be_written():
    """Names and metadata that no reader would take are refused."""
    with pytest.raises(ArgumentError, match="'__metadata__'"):
        build_header({"__metadata__": ("U8", (1,), 1)}, None)
    with pytest.raises(ArgumentError, match="metadata must map str to str"):
        build_header({}, {"a": 1})
    with pytest.raises(ArgumentError, match="cannot be written as UTF-8"):
        build_header({"\ud800": ("U8", (1,), 1)}, None)


@pytest.mark.parametrize("file", ["", "../m", "/m", "a//m", "./m", "a/.."])
def test_files_of_an_index(file):
    """An index names files beside it, and no others."""
    assert parse_index(b'{"weight_map":{"a":"x/m","b":"n","c":"x/m"}}', "i") == {"x/m": ["a", "c"], "n": ["b"]}
    with pytest.raises(CheckpointFormatError, match="which is no file beside it"):
        parse_index(json.dumps({"weight_map": {"a": file}}).encode(), "i")


@pytest.mark.parametrize("text", [b"{}", b'{"weight_map":{}}', b'{"weight_map":{"a":1}}', b'{"weight_map":[]}'])
def test_no_index(text):
    """What has no weight_map is no index."""
    with pytest.raises(CheckpointFormatError, match="weight_map"):
        parse_index(text, "i")


def test_shards():
    """Tensors stay in order; one that is too large is alone."""
    assert split_into_shards({"a": 4, "b": 4, "c": 9, "d": 1, "e": 0}, 8) == [["a", "b"], ["c"], ["d", "e"]]
    assert shard_names("x/m.safetensors", 2, "t0") == [
        "x/m-t0-00001-of-00002.safetensors",
        "x/m-t0-00002-of-00002.safetensors",
    ]
