"""Reads batches of objects by Grain, the loader of JAX: an S3MapDataset is one of its data sources.

Run it with objects of yours::

    python examples/read_grain.py s3://my-bucket/train/

Grain shuffles, reads in 16 threads, and keeps the state: its iterators have ``get_state`` and ``set_state``.
"""

from __future__ import annotations

import argparse

import grain
import numpy as np

from s3torch import S3MapDataset, S3Reader

_FEATURES = 64


def decode(reader: S3Reader) -> np.ndarray:
    """Return the sample of an object."""
    return np.frombuffer(reader.read()[:_FEATURES].ljust(_FEATURES, b"\0"), np.uint8)


def main() -> None:
    """Read half of an epoch, and the rest of it by another iterator."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="prefix of the objects")
    arguments = parser.parse_args()
    source = S3MapDataset.from_prefix(arguments.data, transform=decode)
    pipeline = grain.MapDataset.source(source).shuffle(seed=1).batch(4).to_iter_dataset()

    iterator = iter(pipeline)
    batches = [next(iterator) for _ in range(len(source) // 8)]
    state = iterator.get_state()
    later = iter(pipeline)
    later.set_state(state)
    batches += later
    print(f"{sum(len(batch) for batch in batches)} samples of {len(source)} in {len(batches)} batches")


if __name__ == "__main__":
    main()
