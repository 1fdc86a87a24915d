"""What each rank of a training job does with S3, for torchrun: ``ranks.py FOLDER CHECKPOINTS [CHECKPOINT_TO_LOAD]``.

Prints the names of the objects that this rank and its workers have read, as a line of JSON.
"""

import json
import os
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from s3torchconnector import S3IterableDataset, S3MapDataset, S3ReaderConstructor
from s3torchconnector.dcp import (
    BinaryPrefixStrategy,
    HexPrefixStrategy,
    S3PrefixStrategyBase,
    S3StorageReader,
    S3StorageWriter,
)
from s3torchconnector.s3reader import SequentialS3Reader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler

REGION = "us-east-1"


# Datasets


def name_of(reader):
    """Make a sample."""
    assert reader.read()
    return reader.key.rpartition("/")[2]


def sharded_names(uri):
    """Return what this rank and its two workers read of an iterable dataset that all share."""
    dataset = S3IterableDataset.from_prefix(uri, region=REGION, transform=name_of, enable_sharding=True)
    return list(DataLoader(dataset, batch_size=None, num_workers=2))


def sampled_names(uri):
    """Return what this rank reads of a map dataset by a DistributedSampler."""
    dataset = S3MapDataset.from_prefix(uri, region=REGION, transform=name_of)
    sampler = DistributedSampler(dataset, shuffle=False, drop_last=True)
    return list(DataLoader(dataset, batch_size=None, sampler=sampler))


# Checkpoints


class FolderOfEachRank(S3PrefixStrategyBase):
    """A strategy of the program's own."""

    def generate_prefix(self, rank):
        """Return what the names of a rank's files begin with."""
        return f"rank-{rank}/part_"


def own_reader(bucket, key, get_object_info, get_stream):
    """Make a reader of the program's own."""
    return SequentialS3Reader(bucket, key, get_object_info, get_stream)


def strategies():
    """Return prefix strategies, which ask for the number of ranks when they are made."""
    return {
        "default": None,
        "binary": BinaryPrefixStrategy(epoch_num=1),
        "hex": HexPrefixStrategy(epoch_num=2, min_prefix_length=4, prefix_count=16),
        "own": FolderOfEachRank(),
    }


READERS = {
    "by default": None,
    "dcp_optimized": S3ReaderConstructor.dcp_optimized(),
    "dcp_optimized, one stream a range": S3ReaderConstructor.dcp_optimized(max_gap_size=0),
    "sequential": S3ReaderConstructor.sequential(),
    "range_based": S3ReaderConstructor.range_based(),
    "range_based, no buffer": S3ReaderConstructor.range_based(buffer_size=0),
    "own": own_reader,
}


def state(*, blank):
    """Return the state of a sharded model and its optimizer, as FSDP has it; or what it is loaded into."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(5)
    whole = {
        name: torch.randn(*shape, generator=generator) for name, shape in [("rows", (103, 60)), ("columns", (7, 9))]
    }
    if blank:
        whole = {name: torch.zeros_like(each) for name, each in whole.items()}
    return {
        "model": {
            "rows": distribute_tensor(whole["rows"], mesh, [Shard(0)]),
            "columns": distribute_tensor(whole["columns"], mesh, [Shard(1)]),
            "bias": torch.zeros(5) if blank else torch.arange(5.0),
        },
        "optimizer": {"exp_avg": distribute_tensor(whole["rows"] * 2, mesh, [Shard(0)]), "step": 0 if blank else 9},
    }


def whole(value):
    """Return what all ranks have of a tensor, or a number as one."""
    return value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value)


def check(path, reader_constructor):
    """Load a checkpoint, and compare it with what was saved."""
    loaded, expected = state(blank=True), state(blank=False)
    dcp.load(loaded, storage_reader=S3StorageReader(REGION, path, reader_constructor=reader_constructor))
    for part, values in expected.items():
        for name, value in values.items():
            found = loaded[part][name]
            assert torch.equal(whole(found), whole(value)), (path, part, name)


def check_model_only(path):
    """Load only the model, without the optimizer."""
    loaded = {"model": {"rows": state(blank=True)["model"]["rows"]}}
    dcp.load(loaded, storage_reader=S3StorageReader(region=REGION, path=path))
    assert torch.equal(loaded["model"]["rows"].full_tensor(), state(blank=False)["model"]["rows"].full_tensor())


def check_overwrite(path):
    """Save over what is there, but not if that is forbidden."""
    dcp.save(state(blank=False), storage_writer=S3StorageWriter(REGION, path))
    with pytest.raises(CheckpointException, match="already exists"):
        dcp.save(state(blank=False), storage_writer=S3StorageWriter(REGION, path, overwrite=False))
    check(path, None)


def main(folder, checkpoints, to_load=None):
    """Do it all."""
    sys.stdout.write(json.dumps([sharded_names(folder), sampled_names(folder)]) + "\n")
    for thread_count in (1, 4):
        for name, strategy in strategies().items():
            path = f"{checkpoints}/{name}-{thread_count}"
            writer = S3StorageWriter(REGION, path, prefix_strategy=strategy, thread_count=thread_count)
            dcp.save(state(blank=False), storage_writer=writer)
    for constructor in READERS.values():
        check(f"{checkpoints}/binary-4", constructor)
    check(f"{checkpoints}/default-1", None)
    check_model_only(f"{checkpoints}/own-1")
    check_overwrite(f"{checkpoints}/default-1")
    dcp.async_save(state(blank=False), storage_writer=S3StorageWriter(REGION, f"{checkpoints}/async")).result()
    check(f"{checkpoints}/async", None)
    if to_load:
        check(to_load, None)
        check(to_load, S3ReaderConstructor.sequential())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    main(*sys.argv[1:])
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's threads may abort while the interpreter ends
