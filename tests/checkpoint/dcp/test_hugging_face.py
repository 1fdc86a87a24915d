"""Hugging Face checkpoints of several ranks: what torch's own reader and the safetensors library read, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from s3torch.checkpoint import clean
from s3torch.dcp import S3HuggingFaceStorageReader, S3HuggingFaceStorageWriter
from s3torch.errors import ArgumentError, ObjectNotFoundError
from s3torch.safetensors import load_file
from tests.checkpoint.dcp import hugging_face as these
from tests.checkpoint.test_group import run  # noqa: F401  # a fixture

pytestmark = pytest.mark.usefixtures("s3")


def _files(client, bucket, prefix) -> dict[str, bytes]:
    keys = [info.key for page in client.list_objects(bucket, prefix) for info in page.object_info]
    return {key[len(prefix) :]: client.get_object(bucket, key).read() for key in keys}


@pytest.mark.parametrize(("savers", "loaders"), [(2, 3), (4, 1)])
def test_round_trip(run, client, bucket, prefix, tmp_path, savers, loaders):  # noqa: F811
    """Ranks save; the safetensors library, torch's reader and ours, in another number of ranks, load the same."""
    path = f"s3://{bucket}/{prefix}model"
    sent = sum(run(savers, these.save, path, max_shard_size=6_000_000))
    files = _files(client, bucket, f"{prefix}model/")
    index = json.loads(files["model.safetensors.index.json"])
    tensors = [(name, file) for file in files if file.endswith(".safetensors") for name in _load(files[file])]
    assert dict(tensors) == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in these.whole().values())
    assert len(files) == 3
    assert sent <= 1.02 * sum(map(len, files.values()))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    these.check({name: _load(files[file])[name] for name, file in tensors})
    these.check(load_file(f"{path}/"))
    run(loaders, these.load_with_torch, str(tmp_path))
    received = run(loaders, these.load, path)
    assert len(received) == loaders
    share = 600 * 4 * -(-these.ROWS // loaders)
    heads = 2 * 256 * 1024
    assert max(run(loaders, these.load_rows, path)) <= 1.1 * share + heads


def _load(content: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(content)


def test_what_torch_wrote(run, client, bucket, prefix, tmp_path):  # noqa: F811
    """Our reader loads what torch's writer has written; a scalar is not among it, as torch 2.13 loses its value."""
    run(2, these.save_with_torch, str(tmp_path))
    for file in Path(tmp_path).iterdir():
        if file.is_file():
            with client.put_object(bucket, f"{prefix}model/{file.name}") as writer:
                writer.write(file.read_bytes())
    assert len(run(2, these.load, f"s3://{bucket}/{prefix}model", ("scalar",))) == 2


def test_in_the_background(run, bucket, prefix):  # noqa: F811
    """async_save saves the same."""
    run(2, these.save_async, f"s3://{bucket}/{prefix}model")
    these.check(load_file(f"s3://{bucket}/{prefix}model/"))


def test_a_mapping_to_files(run, client, bucket, prefix):  # noqa: F811
    """Each tensor goes to the file that the mapping names; floats are converted on their way."""
    mapping = dict.fromkeys(these.whole(), 2) | {"bias": 1}
    options = {"fqn_to_index_mapping": mapping, "export_dtype": torch.bfloat16}
    run(2, these.save, f"s3://{bucket}/{prefix}model", **options)
    files = _files(client, bucket, f"{prefix}model/")
    index = json.loads(files["model.safetensors.index.json"])
    assert {name: int(file[-26:-21]) for name, file in index["weight_map"].items()} == mapping
    for name, file in index["weight_map"].items():
        assert torch.equal(_load(files[file])[name], these.whole()[name].bfloat16())


def test_alone(client, bucket, prefix):
    """One process saves and loads without a group; what is nested is flattened as torch does."""
    path = f"s3://{bucket}/{prefix}model"
    state = {"model": {"a": torch.arange(6.0).view(2, 3)}, "b": torch.ones(4)}
    dcp.save(state, storage_writer=S3HuggingFaceStorageWriter(None, path), no_dist=True)
    loaded = {"model": {"a": torch.zeros(2, 3)}, "b": torch.zeros(4, dtype=torch.float64)}
    dcp.load(loaded, storage_reader=S3HuggingFaceStorageReader(None, path), no_dist=True)
    assert torch.equal(loaded["model"]["a"], state["model"]["a"])
    assert torch.equal(loaded["b"], state["b"].double())


def test_an_index_that_names_what_is_not_there(client, bucket, prefix):
    """A file that the index names and that is not there is named."""
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    with client.put_object(bucket, f"{prefix}model/model.safetensors.index.json") as writer:
        writer.write(json.dumps(index).encode())
    reader = S3HuggingFaceStorageReader(None, f"s3://{bucket}/{prefix}model")
    with pytest.raises(ObjectNotFoundError, match="model-00001-of-00001"):
        reader.read_metadata()


FAILURES = {
    "no tensor": "'step' is no tensor",
    "meta": "Tensor 'bias' is on the meta device",
    "unknown": "Tensor 'z' has the dtype torch.complex128",
    "refused": "Rank 1: no such luck",
    "mapping": "has no file for tensor 'layers.0/rows'",
    "killed": "Rank 1 (process ",
    "hangs": "Rank 1 did not answer",
}


@pytest.mark.parametrize("how", FAILURES)
def test_failures(run, client, bucket, prefix, how):  # noqa: F811
    """What fails on a rank fails on all; the model that was there is still there, and no upload is left."""
    path = f"s3://{bucket}/{prefix}model"
    run(2, these.save, path)
    before = _files(client, bucket, f"{prefix}model/")
    found = run(2, these.fail, path, how)
    assert FAILURES[how] in found[0]
    assert found[0] != "nothing was raised"
    assert _files(client, bucket, f"{prefix}model/") == before
    assert clean(f"{path}/", older_than=0, client=client) == []


def test_a_first_rank_that_is_killed(run, client, bucket, prefix):  # noqa: F811
    """The other one names it, the model that was there is still there, and ``clean`` finds the upload."""
    path = f"s3://{bucket}/{prefix}model"
    run(2, these.save, path)
    before = _files(client, bucket, f"{prefix}model/")
    killed, told = run(2, these.fail, path, "killed", 0)
    assert killed is None
    assert "Rank 0 (process " in told
    assert _files(client, bucket, f"{prefix}model/") == before
    (left,) = clean(f"{path}/", older_than=0, client=client)
    assert left.key.endswith("-00001-of-00001.safetensors")
    assert left.key not in {f"{prefix}model/{file}" for file in before}
    assert clean(f"{path}/", older_than=0, client=client) == []
    these.check(load_file(f"{path}/"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_shard_size": 0}, "max_shard_size"),
        ({"export_dtype": torch.int8}, "export_dtype"),
        ({"fqn_to_index_mapping": {"a": 0}}, "fqn_to_index_mapping"),
        ({"fqn_to_index_mapping": {"a": 1}, "max_shard_size": 5}, "max_shard_size"),
        ({"group_timeout": 0}, "group_timeout"),
    ],
)
def test_arguments_that_cannot_be(options, named):
    """A wrong argument is named before anything is done."""
    with pytest.raises(ArgumentError, match=named):
        S3HuggingFaceStorageWriter(None, "s3://bucket/model", **options)
