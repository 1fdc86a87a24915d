"""What each rank of a job does with one prefix: ``program_of_ranks.py ENDPOINT FOLDER``, for torchrun.

Each case makes a dataset, and writes the keys that this rank read to ``FOLDER/CASE.RANK.json``.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed
from torch.utils.data import DataLoader, DistributedSampler

from s3torch import S3ClientConfig, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader

METHODS = ["fork", "spawn", "forkserver"]


def name(reader: S3Reader) -> str:
    """Return a sample: the key of its object."""
    return reader.key


def main(endpoint: str, folder: str) -> None:
    """Read in all ways."""
    rank = int(os.environ["RANK"])
    multiprocessing.set_forkserver_preload(["s3torch.datasets"])  # once for all workers of a rank
    options = {
        "region": "us-east-1",
        "endpoint": endpoint,
        "transform": name,
        "s3client_config": S3ClientConfig(unsigned=True, hedging=False),
    }
    cases = []

    def case(label: str, loader: DataLoader) -> None:
        keys = [key for batch in loader for key in batch]
        Path(folder, f"{label}.{rank}.json").write_text(json.dumps(keys))
        cases.append(label)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def mapped() -> S3MapDataset[str]:
        return S3MapDataset.from_prefix("s3://b/k/", **options)

    def stream(**more: object) -> S3IterableDataset[str]:
        return S3IterableDataset.from_prefix("s3://b/k/", enable_sharding=True, **options, **more)

    case("no group", S3DataLoader(mapped(), 3, shuffle=True))
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    case("map", S3DataLoader(mapped(), 3, shuffle=True))
    case("stream", S3DataLoader(stream(shuffle=True), 3))
    case("stream alone", DataLoader(stream(), 3))
    case("sampler", DataLoader(dataset := mapped(), 3, sampler=DistributedSampler(dataset, shuffle=False)))
    for method, num_workers in itertools.product(METHODS, (2,)):
        context = multiprocessing.get_context(method)
        case(
            f"workers {method}",
            S3DataLoader(mapped(), 3, num_workers=num_workers, multiprocessing_context=context),
        )
    # Workers ask for the table before the process that started them does.
    torch.distributed.barrier()
    context = multiprocessing.get_context("fork")
    indices = [[place] for place in range(rank, 20, 2)]
    case(
        "workers first",
        DataLoader(mapped(), batch_sampler=indices, num_workers=2, multiprocessing_context=context),
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
