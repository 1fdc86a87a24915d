"""Prints the names of the objects that this rank and its workers yield: for torchrun."""

import json
import sys

import torch.distributed as dist
from s3torchconnector import S3IterableDataset, S3MapDataset
from torch.utils.data import DataLoader, DistributedSampler


def name_of(reader):
    """Make a sample."""
    assert reader.read()
    return reader.key.rpartition("/")[2]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    dataset = S3IterableDataset.from_prefix(sys.argv[1], region="us-east-1", transform=name_of, enable_sharding=True)
    share = list(DataLoader(dataset, batch_size=None, num_workers=2))
    map_dataset = S3MapDataset.from_prefix(sys.argv[1], region="us-east-1", transform=name_of)
    sampler = DistributedSampler(map_dataset, shuffle=False)
    sampled = list(DataLoader(map_dataset, batch_size=None, sampler=sampler))
    names = [map_dataset[index] for index in range(dist.get_rank(), len(map_dataset), dist.get_world_size())]
    assert sampled[: len(names)] == names, sampled
    sys.stdout.write(json.dumps(share) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()
