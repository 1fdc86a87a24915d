"""Trains on several processes, is killed at any moment, and goes on with any number of processes where it was.

Run it with objects and a place for checkpoints of yours, and run the same line again after it was killed::

    torchrun --nproc-per-node 2 examples/train_torchrun.py s3://my-bucket/train/ s3://my-bucket/run-1

Each object is a sample here: its bytes are the features. ``--fsdp`` shards the model (FSDP2); without, each process
holds all of it (DistributedDataParallel). ``--nproc-per-node`` may be another one each time.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from s3torch import S3DataLoader, S3MapDataset, S3Reader
from s3torch.checkpoint import latest
from s3torch.dcp import S3StorageReader, S3StorageWriter

_FEATURES = 64


def decode(reader: S3Reader) -> torch.Tensor:
    """Return the sample of an object."""
    content = bytearray(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"))
    return torch.frombuffer(content, dtype=torch.uint8).float()


def model_of(*, fsdp: bool) -> nn.Module:
    """Return an autoencoder that all processes train together."""
    torch.manual_seed(1)  # the same weights on all processes
    model = nn.Sequential(nn.Linear(_FEATURES, 256), nn.ReLU(), nn.Linear(256, _FEATURES))
    if not fsdp:
        return DistributedDataParallel(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def job_of(model: nn.Module, optimizer: torch.optim.Optimizer, loader: S3DataLoader[Any], step: int) -> dict[str, Any]:
    """Return all that the next job needs: what each process has of the model, and where the loader is."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "loader": loader.state_dict(), "step": step}


def main() -> None:
    """Train, from the newest checkpoint on if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    parser.add_argument("run", help="prefix of the checkpoints")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="of each process")
    parser.add_argument("--save-every", type=int, default=3, help="steps")
    arguments = parser.parse_args()

    dist.init_process_group("gloo")  # "nccl" for GPUs
    dataset = S3MapDataset.from_prefix(arguments.data, transform=decode)
    # Each step needs all processes: even= gives them as many batches.
    loader = S3DataLoader(dataset, arguments.batch_size, shuffle=True, seed=1, even="wrap", num_workers=1)
    model = model_of(fsdp=arguments.fsdp)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0

    newest = [latest(arguments.run) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(newest)  # all go on from the same one
    if newest[0] is not None:
        job = job_of(model, optimizer, loader, step)
        dcp.load(job, storage_reader=S3StorageReader(None, newest[0]))
        set_state_dict(model, optimizer, model_state_dict=job["model"], optim_state_dict=job["optimizer"])
        loader.load_state_dict(job["loader"])
        step = job["step"]
        print(f"rank {dist.get_rank()} goes on after step {step}, in epoch {loader.epoch}")

    while loader.epoch < arguments.epochs:
        for batch in loader:
            loss = nn.functional.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % arguments.save_every == 0:
                path = f"{arguments.run.rstrip('/')}/step-{step:06}"
                dcp.save(job_of(model, optimizer, loader, step), storage_writer=S3StorageWriter(None, path))
    print(f"rank {dist.get_rank()} is done after step {step}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
