"""What a process takes of its node: by the number of processes, the memory of its container, and what the user says."""

from __future__ import annotations

import pickle
import sys
import time
import types
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from s3torch import S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Reader
from s3torch._access import node as node_module
from s3torch._access.node import Node, Share, here, local_ranks, memory_limit, share_of, workers
from s3torch.compat.config import S3ClientConfig as DropInConfig
from tests.support.server import Request, ScriptedServer, Wire

MiB = 1024**2
GiB = 1024 * MiB
_FLOOR = Share(connections=16, bytes_in_flight=16 * MiB)


@pytest.fixture(autouse=True)
def _a_node_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on how much memory there is here, or on how it was started."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(node_module, "_PROC", tmp_path / "none")


# --- What is decided --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "connections", "in_flight"),
    [
        (Node(), 128, 256 * MiB),  # alone
        (Node(memory=64 * GiB), 128, 256 * MiB),
        (Node(memory=2 * GiB), 128, 256 * MiB),
        (Node(memory=1 * GiB), 128, 128 * MiB),
        (Node(memory=64 * MiB), 128, 16 * MiB),  # the floor
        (Node(memory=0), 128, 16 * MiB),
        (Node(workers=1), 128, 256 * MiB),
        (Node(workers=2), 128, 256 * MiB),
        (Node(workers=4), 64, 256 * MiB),
        (Node(workers=8), 32, 128 * MiB),
        (Node(workers=3), 85, 256 * MiB),
        (Node(local_ranks=2), 128, 256 * MiB),
        (Node(local_ranks=8), 32, 128 * MiB),
        (Node(local_ranks=2, workers=8), 16, 64 * MiB),
        (Node(local_ranks=2, workers=8, memory=4 * GiB), 16, 32 * MiB),
        (Node(local_ranks=8, workers=16), 16, 16 * MiB),  # 2,048 and 2 GiB: the floors
    ],
)
def test_shares(node: Node, connections: int, in_flight: int):
    """A process alone takes 128 connections and 256 MiB; those of a node share 256 and 1 GiB."""
    assert share_of(S3ClientConfig(), node) == Share(connections=connections, bytes_in_flight=in_flight)


nodes = st.builds(
    Node,
    workers=st.integers(0, 256),
    local_ranks=st.integers(1, 64),
    memory=st.none() | st.integers(0, 1 << 45),
)


@given(nodes)
def test_the_sum_of_a_node(node: Node):
    """All processes of a node take what the node may take together, or each of them has no more than the floor."""
    share = share_of(S3ClientConfig(), node)
    processes = node.local_ranks * max(1, node.workers)
    assert share.connections == _FLOOR.connections or share.connections * processes <= 256
    memory = GiB if node.memory is None else min(GiB, node.memory // 8)
    assert share.bytes_in_flight == _FLOOR.bytes_in_flight or share.bytes_in_flight * processes <= memory
    assert _FLOOR.connections <= share.connections <= 128
    assert _FLOOR.bytes_in_flight <= share.bytes_in_flight <= 256 * MiB


@given(nodes, st.integers(1, 10_000), st.integers(MiB, 1 << 40))
def test_the_users_numbers_stay(node: Node, connections: int, in_flight: int):
    """What the user says is for each process, however many there are."""
    config = S3ClientConfig(max_connections=connections, max_bytes_in_flight=in_flight)
    assert share_of(config, node) == Share(connections=connections, bytes_in_flight=in_flight)
    assert share_of(S3ClientConfig(max_connections=connections), node).connections == connections
    assert share_of(S3ClientConfig(max_bytes_in_flight=in_flight), node).bytes_in_flight == in_flight


def test_a_throughput_to_aim_at():
    """No more connections than the throughput takes, and no more than the share; what nobody has chosen is no aim."""
    crowded = Node(local_ranks=2, workers=8)
    assert share_of(S3ClientConfig(throughput_target_gbps=10.0), Node()).connections == 16
    assert share_of(S3ClientConfig(throughput_target_gbps=1.0), crowded).connections == 2
    assert share_of(S3ClientConfig(throughput_target_gbps=100.0), crowded).connections == 16
    assert share_of(S3ClientConfig(throughput_target_gbps=100.0, max_connections=150), crowded).connections == 150
    assert share_of(DropInConfig(), Node()).connections == 128
    assert share_of(DropInConfig(), crowded).connections == 16
    assert share_of(DropInConfig(max_connections=64), crowded).connections == 64
    assert share_of(DropInConfig(throughput_target_gbps=1.0), crowded).connections == 2


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_ranks(monkeypatch: pytest.MonkeyPatch):
    """The ranks of a node are torchrun's; those of all nodes say nothing of this one."""
    monkeypatch.setenv("WORLD_SIZE", "1024")
    assert local_ranks() == 1
    for text, ranks in {"8": 8, "1": 1, "0": 1, "": 1, "many": 1, "-2": 1}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
        assert local_ranks() == ranks


def test_workers(monkeypatch: pytest.MonkeyPatch):
    """A DataLoader worker knows how many there are; a stand-in of a program's tests may not."""
    assert workers() == 0
    for worker, count in ((SimpleNamespace(num_workers=8), 8), (SimpleNamespace(num_workers=0), 1), (object(), 1)):
        monkeypatch.setattr("torch.utils.data.get_worker_info", lambda worker=worker: worker)
        assert workers() == count
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.ModuleType("torch.utils.data"))  # is being imported
    assert workers() == 0
    monkeypatch.delitem(sys.modules, "torch.utils.data")
    assert workers() == 0


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the control groups."""
    monkeypatch.setattr(node_module, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(node_module, "_PROC", tmp_path / "self")
    return tmp_path


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_memory_of_version_2(groups: Path):
    """The smallest limit of the groups that a process is nested in counts."""
    root = groups / "cgroup"
    _write(groups / "self", "0::/pod/container\n")
    assert memory_limit() is None
    _write(root / "pod/container/memory.max", "max\n")
    assert memory_limit() is None
    _write(root / "pod/memory.max", f"{8 * GiB}\n")
    assert memory_limit() == 8 * GiB
    _write(root / "pod/container/memory.max", f"{2 * GiB}\n")
    assert memory_limit() == 2 * GiB
    _write(root / "pod/other/memory.max", "1\n")
    _write(root / "memory.max", f"{1 * GiB}\n")  # a container that sees its own group as the root
    assert memory_limit() == 1 * GiB


def test_memory_of_version_1(groups: Path):
    """The older files are read as well; what they say where there is no limit is none."""
    root = groups / "cgroup"
    _write(groups / "self", "9:name=systemd:/\n4:cpu,memory:/a/b\n1:cpu:/c\n0::/\n")
    for path in ("memory/a/b", "memory/a", "memory"):
        _write(root / path / "memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit() is None
    _write(root / "memory/a/memory.limit_in_bytes", f"{3 * GiB}\n")
    _write(root / "cpu/c/memory.limit_in_bytes", "1\n")
    assert memory_limit() == 3 * GiB
    assert here().memory == 3 * GiB


@pytest.mark.parametrize("text", ["", "0::", "no group", "0::/../../outside", "x:memory:/a\n\n:::", "0::/\xff"])
def test_groups_that_say_nothing(groups: Path, text: str):
    """Whatever the system says, and where it says nothing, there is an answer; nothing beside the groups is read."""
    _write(groups / "memory.max", "1\n")
    _write(groups / "outside/memory.max", "1\n")
    (groups / "self").write_bytes(text.encode("latin-1"))
    assert memory_limit() is None
    (groups / "self").unlink()
    assert memory_limit() is None


# --- Where it counts --------------------------------------------------------------------------------------------------


def test_a_client_decides_once_in_each_process(monkeypatch: pytest.MonkeyPatch):
    """A client keeps its share; a forked child, and who unpickles it, decides anew."""
    client = S3Client("us-east-1", s3client_config=S3ClientConfig(unsigned=True))
    assert client._access.share == Share(connections=128, bytes_in_flight=256 * MiB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert client._access.share.connections == 128
    assert pickle.loads(pickle.dumps(client))._access.share.connections == 16
    here, there = get_context("fork").Pipe(duplex=False)
    child = get_context("fork").Process(target=lambda: there.send(client._access.share.connections))
    child.start()
    assert here.recv() == 16
    child.join()


def length(reader: S3Reader) -> int:
    """Return how long an object is."""
    return len(reader.read())


def _answer_late(_: Request, wire: Wire) -> None:
    time.sleep(0.05)  # so that a client which may open one more connection does
    wire.respond(200, {"ETag": '"a"'}, b"content")


@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize(("most", "connections"), [(None, 32), (24, 48)])
def test_connections_of_workers(monkeypatch: pytest.MonkeyPatch, kind: type, most: int | None, connections: int):
    """The workers of a node's ranks open together what fits the node; of a user's number each opens as many."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = S3ClientConfig(unsigned=True, hedging=False, max_connections=most)
    with ScriptedServer(_answer_late) as server:
        dataset = kind.from_objects(
            [f"s3://bucket/{number}" for number in range(128)],
            region="us-east-1",
            endpoint=server.endpoint,
            transform=length,
            s3client_config=config,
            **({"enable_sharding": True} if kind is S3IterableDataset else {}),
        )
        loader = DataLoader(dataset, batch_size=64, num_workers=2, multiprocessing_context="fork")
        assert sum(int(batch.sum()) for batch in loader) == 128 * len(b"content")
        assert server.connections == connections
