"""Models that ranks write together: the files are what one rank would have written, or nothing changes."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from s3torch.checkpoint import clean
from s3torch.safetensors import load_file, save_sharded
from tests.checkpoint.safetensors import ranks as these
from tests.checkpoint.test_group import run  # noqa: F401  # a fixture

pytestmark = pytest.mark.usefixtures("s3")

MiB = 1024 * 1024


def _read(client, bucket, key):
    return client.get_object(bucket, key).read()


def _check(found: dict[str, torch.Tensor], export_dtype: torch.dtype | None = None) -> None:
    expected = these.whole()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        wanted = expected[name].resolve_conj()
        if export_dtype is not None and wanted.dtype in (torch.float32, torch.bfloat16):
            wanted = wanted.to(export_dtype)
        assert tensor.dtype == wanted.dtype, name
        assert these._bits(tensor) == these._bits(wanted), name


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_file(run, client, bucket, prefix, count):  # noqa: F811
    """The safetensors library reads what any number of ranks wrote, and hardly more was sent than the file has."""
    sent = sum(run(count, these.save, f"s3://{bucket}/{prefix}model.safetensors"))
    content = _read(client, bucket, f"{prefix}model.safetensors")
    _check(safetensors.torch.load(content))
    assert sent <= 1.02 * len(content)
    _check(load_file(f"s3://{bucket}/{prefix}model.safetensors"))


def test_what_is_told(run, client, bucket, prefix):  # noqa: F811
    """The first rank tells of the file and of what all ranks have sent for it, which all knew before."""
    found = run(3, these.save_and_tell, f"s3://{bucket}/{prefix}model.safetensors")
    size = client.head_object(bucket, f"{prefix}model.safetensors").size
    assert len({estimate for _, estimate, _ in found}) == 1
    estimated, objects, requests = found[0][1]
    assert (estimated, objects) == (size, 1)
    assert sum(sent for _, _, sent in found) == requests
    assert [told for told, _, _ in found] == [[(size, requests - 1)], [], []]  # one asks whether there is an index


def test_several_files(run, client, bucket, prefix):  # noqa: F811
    """An index names the files, whose names no other save has, and says how large all is."""
    uri = f"s3://{bucket}/{prefix}model.safetensors"
    for _ in range(2):
        run(2, these.save, uri, max_shard_size=9 * MiB)
    index = json.loads(_read(client, bucket, f"{prefix}model.safetensors.index.json"))
    found = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors = safetensors.torch.load(_read(client, bucket, prefix + file))
        assert all(index["weight_map"][name] == file for name in tensors)
        found |= tensors
    _check({name: found[name] for name in these.whole()})
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert len(set(index["weight_map"].values())) > 2
    _check(load_file(f"{uri}.index.json"))


def test_export(run, client, bucket, prefix):  # noqa: F811
    """Tensors are converted on their way, and stay as they are."""
    run(2, these.save, f"s3://{bucket}/{prefix}model.safetensors", export_dtype=torch.float16)
    _check(safetensors.torch.load(_read(client, bucket, f"{prefix}model.safetensors")), torch.float16)


def test_alone(client, bucket, prefix):
    """Without a group one process saves all."""
    uri = f"s3://{bucket}/{prefix}model.safetensors"
    tied = torch.arange(12.0).view(3, 4)
    state = {"a": tied, "b": tied, "overlap": tied[1:], "turned": tied.t(), "spread": torch.ones(1).expand(5)}
    save_sharded(state, uri)
    found = safetensors.torch.load(_read(client, bucket, f"{prefix}model.safetensors"))
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_sub_byte(bucket, prefix):
    """Dtypes of the format that torch packs, or has no arithmetic for, are saved bit by bit."""
    uri = f"s3://{bucket}/{prefix}model.safetensors"
    state = {}
    for name in ("float4_e2m1fn_x2", "float8_e8m0fnu", "float8_e5m2fnuz"):
        if hasattr(torch, name):
            state[name] = torch.arange(24, dtype=torch.uint8).view(4, 6).view(getattr(torch, name))
    save_sharded(state, uri)
    found = load_file(uri)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


FAILURES = {
    "denied": ("S3Error", "Rank 1: no such luck"),
    "shape": ("ArgumentError", "disagree on tensor 'plain'"),
    "dtype": ("ArgumentError", "torch.int32 of [300, 11] on rank 1"),
    "hole": ("ArgumentError", "Tensor 'rows' of shape [4099, 1500] is not whole"),
    "meta": ("ArgumentError", "Rank 1: Tensor 'plain' is on the meta device"),
    "quantised": ("ArgumentError", "Rank 1: Tensor 'plain' is quantised"),
    "surrogate": ("ArgumentError", "the name of tensor '\\ud800' cannot be written"),
    "complex128": ("ArgumentError", "Tensor 'z' has the dtype torch.complex128"),
    "no tensor": ("ArgumentTypeError", "Rank 1: tensors must map str to tensors, got 'plain': int"),
    "uri": ("ArgumentError", "uri is"),
    "lost": ("S3Error", "that rank 1 was to send, is missing"),
    "never comes": ("DeadlineError", "Rank 1 of 2 did not come to the save to"),
    "killed": ("DeadlineError", "Rank 1 (process "),
    "hangs": ("DeadlineError", "Rank 1 did not answer"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_failures(run, client, bucket, prefix, how):  # noqa: F811
    """Whatever fails on a rank is an error on all that names it; what was there stays, and no upload is left."""
    key = f"{prefix}model.safetensors"
    with client.put_object(bucket, key) as writer:
        writer.write(b"old")
    found = run(2, these.fail, f"s3://{bucket}/{key}", how)
    name, text = FAILURES[how]
    for rank, result in enumerate(found):
        if rank == 0 or how not in ("never comes", "killed", "hangs"):
            assert result[0] == name, result
            assert text in result[1], result
    assert _read(client, bucket, key) == b"old"
    assert clean(f"s3://{bucket}/{prefix}", older_than=0, client=client) == []
    assert [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info] == [key]


@pytest.mark.parametrize("has_server", [False, True])
def test_a_first_rank_that_is_killed(run, client, bucket, prefix, has_server):  # noqa: F811
    """Nobody is there to abort its uploads: nothing new is visible, the others name it, and ``clean`` finds them."""
    key = f"{prefix}model.safetensors"
    with client.put_object(bucket, key) as writer:
        writer.write(b"old")
    found = run(2, these.fail, f"s3://{bucket}/{key}", "killed", 0, has_server=has_server)
    assert found[0] is None
    name, text = found[1]
    assert name == "DeadlineError"
    assert ("mostly rank 0, has ended" if has_server else "Rank 0 (process ") in text
    assert _read(client, bucket, key) == b"old"
    assert [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info] == [key]
    assert clean(f"s3://{bucket}/{prefix}", client=client) == []  # it is younger than a day
    assert [left.key for left in clean(f"s3://{bucket}/{prefix}", older_than=0, client=client)] == [key]
    assert clean(f"s3://{bucket}/{prefix}", older_than=0, client=client) == []


def test_a_slow_rank(run, client, bucket, prefix):  # noqa: F811
    """A rank that sends more than the others has the time that it takes: they wait while it gets on."""
    sent = run(2, these.be_slow, f"s3://{bucket}/{prefix}model.safetensors")
    assert sent[1] * these.SLOW_PART > these.SHORT_TIMEOUT
    (weight,) = load_file(f"s3://{bucket}/{prefix}model.safetensors", client=client).values()
    assert [half.unique().tolist() for half in weight.chunk(2)] == [[0], [1]]
