"""Programs written for s3torchconnector: nothing here knows of s3torch. Run by test_programs.py.

``programs.py loader PREFIX METHOD`` reads by DataLoader workers; ``programs.py ranks PREFIX PATH`` is one rank of many.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from s3torchconnector import S3IterableDataset, S3MapDataset, S3ReaderConstructor
from s3torchconnector.dcp import BinaryPrefixStrategy, HexPrefixStrategy, S3StorageReader, S3StorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.data import DataLoader

REGION = "us-east-1"
ROWS = 1030  # no multiple of 3


def sample(reader):
    """Return what a model would be given, and which object it is of."""
    return reader.key, len(reader.read())


def loader(prefix, method):
    """Read everything by two workers, as a map and as a stream, by two kinds of readers."""
    options = {"region": REGION, "transform": sample}
    stored = S3MapDataset.from_prefix(prefix, reader_constructor=S3ReaderConstructor.range_based(1024), **options)
    mapped = DataLoader(stored, batch_size=4, num_workers=2, multiprocessing_context=method)
    stream = S3IterableDataset.from_prefix(prefix, enable_sharding=True, **options)
    streamed = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=method)
    expected = [(f"{prefix.split('/', 3)[3]}{number:02}", number) for number in range(1, 21)]
    assert sorted((key, int(size)) for batch in mapped for key, size in zip(*batch, strict=True)) == expected
    assert sorted((key, int(size)) for key, size in streamed) == expected


def check_sharding(prefix):
    """Each object comes once over all ranks and workers."""
    stream = S3IterableDataset.from_prefix(prefix, region=REGION, transform=sample, enable_sharding=True)
    mine = [key for key, _ in DataLoader(stream, batch_size=None, num_workers=2)]
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    keys = [key for keys in everyones for key in keys]
    assert (len(keys), len(set(keys))) == (20, 20), keys


def state(*, is_blank):
    """Return a sharded tensor, a replicated one and a number."""
    whole = torch.randn(ROWS, 40, generator=torch.Generator().manual_seed(1))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = torch.zeros_like(whole) if is_blank else whole
    return {
        "rows": distribute_tensor(rows, mesh, [Shard(0)]),
        "bias": torch.zeros(7) if is_blank else torch.arange(7.0),
        "step": 0 if is_blank else 5,
    }


def full(tensor):
    """Return a whole tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_checkpoints(path):
    """What is saved, by each number of threads and prefix strategy, is loaded by each reader."""
    expected = state(is_blank=False)
    constructors = [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()]
    constructors += [S3ReaderConstructor.dcp_optimized(), S3ReaderConstructor.default()]
    strategies = [None, BinaryPrefixStrategy(epoch_num=1), HexPrefixStrategy(min_prefix_length=2)]
    for number, (threads, strategy) in enumerate(zip((1, 4, 4), strategies, strict=True)):
        place = f"{path}/test_[+re.name]!@$%^&*_(src)-{number}/"
        for _ in range(2):  # the second replaces the first
            writer = S3StorageWriter(REGION, place, thread_count=threads, prefix_strategy=strategy, overwrite=True)
            dcp.save(state(is_blank=False), storage_writer=writer)
        for constructor in constructors:
            found = state(is_blank=True)
            dcp.load(found, storage_reader=S3StorageReader(REGION, place, reader_constructor=constructor))
            assert torch.equal(full(found["rows"]), full(expected["rows"])), (number, constructor)
            assert torch.equal(found["bias"], expected["bias"])
            assert found["step"] == 5
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save(state(is_blank=False), storage_writer=S3StorageWriter(REGION, place, overwrite=False))


def ranks(prefix, path):
    """Be one rank."""
    dist.init_process_group("gloo")
    check_sharding(prefix)
    check_checkpoints(path)
    dist.barrier()
    sys.stdout.write(f"rank {dist.get_rank()} of {dist.get_world_size()} is done\n")
    sys.stdout.flush()
    os._exit(0)  # torch's threads may abort while the interpreter ends


if __name__ == "__main__":
    {"loader": loader, "ranks": ranks}[sys.argv[1]](*sys.argv[2:])
