"""Trains with Ray Train on several processes, and goes on where it was with any number of them.

Run it with objects and a place for checkpoints of yours, and run the same line again after it was killed::

    python examples/train_ray.py s3://my-bucket/train/ s3://my-bucket/run-1 --workers 2

Before that, tasks of Ray Data decode each object, as one would to measure the data. Tasks get URIs, and workers get the
prefix: no table of objects and no iterator is pickled.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from s3torch import S3Checkpoint, S3DataLoader, S3MapDataset, S3Reader
from s3torch.checkpoint import latest

_FEATURES = 64


def decode(reader: S3Reader) -> torch.Tensor:
    """Return the sample of an object."""
    content = bytearray(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"))
    return torch.frombuffer(content, dtype=torch.uint8).float()


def means(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the mean of each object that a task of Ray Data has the URI of."""
    dataset = S3MapDataset.from_objects(list(batch["uri"]), transform=decode)
    samples = dataset.__getitems__(range(len(dataset)))  # all of them side by side
    return {"uri": batch["uri"], "mean": [float(sample.mean()) for sample in samples]}


def train(config: dict[str, Any]) -> None:
    """Train in one of the processes, from the newest checkpoint on if there is one."""
    dataset = S3MapDataset.from_prefix(config["data"], transform=decode)
    # Each step needs all processes: even= gives them as many batches.
    loader = S3DataLoader(dataset, batch_size=4, shuffle=True, seed=1, even="wrap")
    model = ray.train.torch.prepare_model(nn.Linear(_FEATURES, _FEATURES))  # and not prepare_data_loader
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkpoint = S3Checkpoint()
    step = 0

    newest = [latest(config["run"]) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(newest)  # all go on from the same one
    if newest[0] is not None:
        job = checkpoint.load(newest[0])
        model.load_state_dict(job["model"])
        optimizer.load_state_dict(job["optimizer"])
        loader.load_state_dict(job["loader"])
        step = job["step"]

    while loader.epoch < config["epochs"]:
        for batch in loader:
            loss = nn.functional.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % config["save_every"] == 0:
                if dist.get_rank() == 0:  # the state of the loader is the same on all
                    job = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    job |= {"loader": loader.state_dict(), "step": step}
                    checkpoint.save(job, f"{config['run'].rstrip('/')}/step-{step:06}.pt", progress=False)
                ray.train.report({"step": step, "loss": loss.item()})  # by all


def main() -> None:
    """Measure the objects, and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    parser.add_argument("run", help="prefix of the checkpoints")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=3, help="steps")
    arguments = parser.parse_args()

    uris = [{"uri": f"s3://{each.bucket}/{each.key}"} for each in S3MapDataset.from_prefix(arguments.data).objects]
    measured = ray.data.from_items(uris).map_batches(means, batch_size=32)
    print(f"{measured.count()} objects, mean {measured.mean('mean'):.3f}")
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config=vars(arguments),
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
