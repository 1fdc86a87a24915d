"""Saves a sharded model to S3 by all ranks together, and loads it again into a new one.

Run it with a bucket of yours::

    torchrun --nproc-per-node 2 examples/dcp_fsdp.py s3://my-bucket/checkpoints/step-1

The checkpoint can be loaded by any number of ranks: run it again with ``--nproc-per-node 3`` and ``--load-only``.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from s3torch.dcp import S3StorageReader, S3StorageWriter


def sharded_model(seed: int) -> nn.Module:
    """Return a model of which each rank holds a part."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 10))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def main() -> None:
    """Save, load and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--load-only", action="store_true")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    saved = get_model_state_dict(sharded_model(seed=1))
    if not arguments.load_only:
        dcp.save(saved, storage_writer=S3StorageWriter(None, arguments.path, thread_count=2))
    loaded = get_model_state_dict(sharded_model(seed=2))
    dcp.load(loaded, storage_reader=S3StorageReader(None, arguments.path))
    for name, tensor in saved.items():
        if not torch.equal(loaded[name].to_local(), tensor.to_local()):
            raise SystemExit(f"{name} differs")
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {len(saved)} tensors are equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
