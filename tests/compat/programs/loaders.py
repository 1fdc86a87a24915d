"""Reads a folder by DataLoaders whose workers are started in each way, and prints what they have yielded."""

import json
import multiprocessing
import sys
import warnings

from s3torchconnector import S3IterableDataset, S3MapDataset, S3ReaderConstructor
from torch.utils.data import DataLoader

REGION = "us-east-1"


def name_and_size(reader):
    """Make a sample."""
    return reader.key.rpartition("/")[2], len(reader.read())


def as_listed(batch):
    """Collate nothing."""
    return batch


def load(uri, method):
    """Return batches of a map dataset, samples of an iterable one that workers share, and of one that they do not."""
    workers = {"num_workers": 2, "multiprocessing_context": method, "collate_fn": as_listed}
    one = {
        **workers,
        "num_workers": 1 if method == "spawn" else 2,
    }  # each that is spawned takes seconds to import torch
    given = {"region": REGION, "transform": name_and_size}
    ranged = S3ReaderConstructor.range_based(buffer_size=1024)
    map_dataset = S3MapDataset.from_prefix(uri, reader_constructor=ranged, **given)
    sharded = S3IterableDataset.from_prefix(uri, enable_sharding=True, **given)
    whole = S3IterableDataset.from_prefix(uri, **given)
    map_dataset[0]  # the parent is connected, too, when its workers are started
    return [
        list(DataLoader(map_dataset, batch_size=5, **one)),
        [sample for batch in DataLoader(sharded, **workers) for sample in batch],
        [sample for batch in DataLoader(whole, **workers) for sample in batch] if method == "fork" else None,
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    multiprocessing.set_forkserver_preload(["s3torchconnector", "torch.utils.data"])  # once for all workers
    json.dump({method: load(sys.argv[1], method) for method in ("fork", "spawn", "forkserver")}, sys.stdout)
