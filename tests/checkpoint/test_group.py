"""Models and checkpoints that a group of ranks loads: each byte once, the same on all, and all fail together."""

from __future__ import annotations

import io
import uuid
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.shared_file import SharedFile
from s3torch.errors import ArgumentError
from s3torch.safetensors import load_file, save_file
from tests.checkpoint import group

pytestmark = pytest.mark.usefixtures("s3")

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def run(server, forkserver, tmp_path_factory):
    """Runs a function in so many ranks, each in a process of its own; returns what they return, None if killed."""
    folder = tmp_path_factory.mktemp("meetings")

    def run(ranks, act, *arguments, has_server=False, **options):
        meeting = str(folder / uuid.uuid4().hex)
        with server.activated():
            pools = [ProcessPoolExecutor(1, forkserver) for _ in range(ranks)]  # one may be killed without the others
            running = [
                pool.submit(group.be_rank, rank, ranks, meeting, act, arguments, options, has_server=has_server)
                for rank, pool in enumerate(pools)
            ]
            try:
                return [_result(each, group.stacks_of(meeting, rank)) for rank, each in enumerate(running)]
            finally:
                for pool in pools:
                    pool.shutdown()

    return run


def _result(future, stacks):
    """What a rank returned; None if it was killed. It ends by itself, see ``be_rank``."""
    try:
        return future.result()
    except BrokenProcessPool:
        assert not stacks.exists() or not stacks.read_text(), stacks.read_text()
        return None


def _tensors() -> dict[str, torch.Tensor]:
    """Large ones, whose size no number of ranks divides, and small ones of all kinds."""
    generator = torch.Generator().manual_seed(3)
    return {
        "large": torch.randn(9 * MiB + 17, generator=generator),
        "half": torch.randn(1021, 997, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "float8": torch.randn(33, generator=generator).to(torch.float8_e4m3fn),
        "complex": torch.randn(5, dtype=torch.complex64, generator=generator),
        "a/b \u00e9": torch.arange(70_000),
    }


@pytest.fixture(scope="module")
def model(server, bucket):
    """URI and size of a model in one file."""
    uri = f"s3://{bucket}/group/model.safetensors"
    with server.activated():
        save_file(_tensors(), uri)
    return uri, sum(tensor.nbytes for tensor in _tensors().values())


@pytest.fixture(scope="module")
def checkpoint(server, client, bucket):
    """URI and size of a file of torch.save."""
    file = io.BytesIO()
    torch.save({**_tensors(), "step": 7, "names": ["x"] * 3}, file)
    with client.put_object(bucket, "group/model.pt") as writer:
        writer.write(file.getvalue())
    return f"s3://{bucket}/group/model.pt", len(file.getvalue())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_model_is_read_once(run, model, ranks):
    """All ranks have what one would load alone, and receive no more than the file together."""
    uri, size = model
    found = run(ranks, group.load_model, uri)
    assert all(is_same for is_same, _ in found)
    assert sum(received for _, received in found) <= 1.02 * size


def test_some_keys(run, model):
    """Only the tensors that are named are read."""
    found = run(2, group.load_model, model[0], ["half", "scalar"])
    assert all(is_same for is_same, _ in found)
    assert sum(received for _, received in found) < 4 * MiB


@pytest.mark.parametrize("what", ["folder/", "folder/model.safetensors.index.json"])
def test_a_sharded_model(run, bucket, what):
    """The files of a sharded model are read as one."""
    save_file(_tensors(), f"s3://{bucket}/group/folder/model.safetensors", max_shard_size=2 * MiB)
    found = run(2, group.load_model, f"s3://{bucket}/group/{what}")
    assert all(is_same for is_same, _ in found)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_is_read_once(run, checkpoint, ranks):
    """A file of torch.save, too, is received once, and is the same on all ranks."""
    uri, size = checkpoint
    found = run(ranks, group.load_checkpoint, uri)
    assert all(is_same for is_same, _ in found)
    assert sum(received for _, received in found) <= 1.02 * size


@pytest.mark.parametrize("kind", ["small", "legacy", "not blind"])
def test_other_checkpoints(run, put, prefix, bucket, kind):
    """Small files, the format before torch 1.6, and pickles that may look at values are loaded by a group, too."""
    file = io.BytesIO()
    state: dict[str, object] = {"weight": torch.randn(200) if kind == "small" else torch.randn(600, 2000)}
    if kind == "not blind":
        state["kind"] = torch.Size([1, 2])
    torch.save(state, file, _use_new_zipfile_serialization=kind != "legacy")
    put(f"{prefix}file", file.getvalue())
    assert [is_same for is_same, _ in run(2, group.load_checkpoint, f"s3://{bucket}/{prefix}file")] == [True, True]


def test_who_reads_all_tells_the_others(put, client, prefix, bucket, monkeypatch):
    """While the first rank reads a file that nothing in it proves, the others know that it gets on."""
    content = bytes(range(256)) * 4096 * 5
    put(f"{prefix}file", content)
    told = []
    ranks = Ranks(None, 1.0, "test")
    monkeypatch.setattr(ranks, "tell", lambda: told.append(1))
    assert SharedFile(ranks, client, bucket, f"{prefix}file", None).read_all() == content
    assert told


def test_shared_memory_stays_shared(run, put, prefix, bucket):
    """Tensors that share memory do so when a group has loaded them."""
    one = torch.ones(400_000)
    file = io.BytesIO()
    torch.save({"one": one, "other": one[5:]}, file)
    put(f"{prefix}file", file.getvalue())
    assert run(2, group.load_shared, f"s3://{bucket}/{prefix}file") == [True, True]


def test_strict(run, model, checkpoint, put, client, prefix, bucket):
    """With checksums="strict" what was read is compared with what is stored; a byte that differs fails on all ranks."""
    assert [is_same for is_same, _ in run(2, group.load_checkpoint, checkpoint[0], checksums="strict")] == [True, True]
    content = bytearray(client.get_object(bucket, "group/model.pt").read())
    content[20 * MiB] ^= 1
    put(f"{prefix}damaged", bytes(content))
    uris = [f"s3://{bucket}/{prefix}damaged"] * 2
    for name, text in run(2, group.fail, uris, kind="checkpoint", checksums="strict"):
        assert name == "IntegrityError"
        assert "CRC-32" in text


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_missing(run, bucket, kind):
    """What is not there is the same error on all ranks."""
    found = run(3, group.fail, [f"s3://{bucket}/none"] * 3, kind=kind)
    assert {name for name, _ in found} == {"ObjectNotFoundError"}
    assert len({text.partition("at http")[0] for _, text in found}) == 1


def test_damaged(run, put, prefix, bucket):
    """A damaged header is an error on all ranks."""
    put(f"{prefix}bad", b"\xff" * 100)
    found = run(2, group.fail, [f"s3://{bucket}/{prefix}bad"] * 2)
    assert {name for name, _ in found} == {"CheckpointFormatError"}


def test_denied(run, model):
    """A rank that may not read makes all fail, with its number."""
    found = run(3, group.be_denied, model[0])
    assert {name for name, _ in found} <= {"AccessDeniedError", "CredentialsError"}
    assert all(text.startswith("Rank 1: ") for _, text in found)


def test_disagreement(run, model, bucket):
    """Ranks that are given different names all fail, and the group can be used again."""
    found = run(2, group.fail_and_go_on, [model[0], f"s3://{bucket}/other"], model[0])
    assert found == [("ArgumentError", True), ("ArgumentError", True)]


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_never_comes(run, model, late):
    """Who does not come is named, by all others."""
    found = run(3, group.be_late, model[0], late)
    for rank in {0, 1, 2} - {late}:
        name, text = found[rank]
        assert name == "DeadlineError"
        assert text.startswith(f"Rank {late} of 3 did not come to the load of s3://")


@pytest.mark.parametrize(("act", "ranks"), [(group.be_killed, 3), (group.be_killed_between, 3)])
def test_a_rank_that_is_killed(run, model, act, ranks):
    """Who is killed is named at once, and nobody waits for any timeout, nor when it leaves the group."""
    _check_killed(run(ranks, act, model[0]))


@pytest.mark.parametrize("seconds", [0.11, 0.19, 0.23])
def test_a_rank_that_is_killed_while_it_sends(run, seconds):
    """What was under way when a rank was killed is not waited for, not even by who leaves the group."""
    _check_killed(run(4, group.be_killed_while_sending, 4, seconds))


def test_a_rank_that_ends_early(run):
    """A rank may end when it has come to the end of a call: it is not missed."""
    assert run(2, group.end_early) == [True, None]


def _check_killed(found):
    assert found[1] is None
    for rank in {*range(len(found))} - {1}:
        name, text = found[rank]
        assert name == "DeadlineError"
        assert "Rank 1 (process " in text
        assert "was killed or ended" in text


def test_a_rank_that_is_interrupted(run, model):
    """Ctrl-C on one rank ends the load on all, and nobody waits for the timeout of the group."""
    found = run(3, group.be_interrupted, model[0])
    assert found[1] == ("KeyboardInterrupt", "")
    for rank in (0, 2):
        assert found[rank][1].startswith("Rank 1: ")


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "5", True])
def test_a_timeout_that_cannot_be(model, wrong):
    """The timeout is a positive number of seconds, and the group a process group."""
    with pytest.raises(ArgumentError, match="group_timeout"):
        load_file(model[0], group=object(), group_timeout=wrong)
    with pytest.raises(ArgumentError, match="process group"):
        load_file(model[0], group=object())


def test_a_strict_model(run, model, client, bucket, prefix, server):
    """With checksums="strict" a model, or a part of it, is compared with the checksum that it is stored with."""
    for keys in (None, ["half", "bytes"]):
        assert [is_same for is_same, _ in run(2, group.load_model, model[0], keys, checksums="strict")] == [True, True]
