"""What the soak does to s3torch: epoch after epoch of both datasets, and checkpoints. A process of its own.

It is told what to read as JSON in its argument, ends after the epoch in which its standard input ends, and writes what
happened to standard output, a line of JSON each.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from s3torch import S3Checkpoint, S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Reader
from s3torch.datasets.objects import S3BucketKeyData, list_prefix
from s3torch.errors import S3Error

MiB = 1024 * 1024
WORKERS = 2  # of each DataLoader
BATCH = 32
KEPT_CHECKPOINTS = 3
# More patience than the defaults have: a server that is killed is back after some seconds, again and again.
CONFIG = S3ClientConfig(
    max_attempts=50, max_connections=16, max_bytes_in_flight=64 * MiB, first_byte_timeout=10.0, stall_timeout=10.0
)
SMALL_PARTS = S3ClientConfig(**{**CONFIG.__dict__, "part_size": 5 * MiB})


def tell(**what: object) -> None:
    """Write a line."""
    print(json.dumps(what), flush=True)


def sample(reader: S3Reader) -> tuple[str, str]:
    """Return the key and the content's digest."""
    return reader.key, hashlib.sha256(reader.read()).hexdigest()


def cause_of(error: BaseException) -> S3Error:
    """Return the error of ours that led to this one.

    Raises:
        BaseException: None did: this one.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, S3Error):
        cause = cause.__context__
    if cause is None:
        raise error
    return cause


class Shuffled:
    """Lists a prefix, in another order each time; the same one in all workers."""

    def __init__(self, bucket: str, prefix: str, seed: int) -> None:
        self._bucket, self._prefix, self._seed = bucket, prefix, seed
        self._epoch = 0

    def __call__(self, client: S3Client) -> Iterable[S3BucketKeyData]:
        """Return the objects."""
        found = list(list_prefix(client, self._bucket, self._prefix))
        random.Random(f"{self._seed} {self._epoch}").shuffle(found)
        self._epoch += 1
        return found


class Trainer:
    """The load.

    Args:
        plan: What to read, and how large a checkpoint is how often.
    """

    def __init__(self, plan: dict[str, object]) -> None:
        self._bucket, endpoint, seed = str(plan["bucket"]), str(plan["endpoint"]), int(str(plan["seed"]))
        self._digests: dict[str, str] = json.loads(Path(str(plan["digests"])).read_text())
        self._checkpoint_every = float(str(plan["checkpoint_every"]))
        self._checkpoint_bytes = int(str(plan["checkpoint_bytes"]))
        self._checkpoint = S3Checkpoint(endpoint=endpoint, s3client_config=SMALL_PARTS)
        self._saved = 0
        self._next_checkpoint = 0.0
        uri = f"s3://{self._bucket}/samples/"
        by_index = S3MapDataset.from_prefix(uri, endpoint=endpoint, transform=sample, s3client_config=CONFIG)
        listing = Shuffled(self._bucket, "samples/", seed)
        stream = S3IterableDataset(None, listing, endpoint, sample, CONFIG, enable_sharding=True)
        common = {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True, "collate_fn": list}
        order = torch.Generator().manual_seed(seed)
        self.loaders: dict[str, DataLoader[tuple[str, str]]] = {
            "map": DataLoader(by_index, shuffle=True, generator=order, **common),
            "iterable": DataLoader(stream, **common),
        }

    def epoch(self, kind: str) -> None:
        """See each sample once."""
        seen: Counter[str] = Counter()
        for batch in self.loaders[kind]:
            right = sum(self._digests.get(key) == digest for key, digest in batch)
            tell(event="batch", right=right, wrong=len(batch) - right)
            seen.update(key for key, _ in batch)
            if time.monotonic() >= self._next_checkpoint:
                self.save_and_load()
                self._next_checkpoint = time.monotonic() + self._checkpoint_every
        tell(event="epoch", kind=kind, complete=seen == Counter(dict.fromkeys(self._digests, 1)))

    def save_and_load(self) -> None:
        """Save a checkpoint, again if that failed, and compare what is loaded."""
        uri = f"s3://{self._bucket}/checkpoints/{self._saved % KEPT_CHECKPOINTS}.pt"
        weights = torch.randint(256, (self._checkpoint_bytes,), dtype=torch.uint8)
        while True:
            try:
                with self._checkpoint.writer(uri) as writer:
                    torch.save({"saved": self._saved, "weights": weights}, writer)
                break
            except (S3Error, RuntimeError) as error:  # what torch.save makes of an error while it writes
                cause = cause_of(error)
                tell(event="failed save", error=type(cause).__name__, text=str(cause))
        with self._checkpoint.reader(uri) as reader:
            loaded = torch.load(reader, weights_only=True)
        same = loaded["saved"] == self._saved and torch.equal(loaded["weights"], weights)
        tell(event="checkpoint", same=same)
        self._saved += 1


def main() -> None:
    """Train until standard input ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    torch.set_num_threads(1)
    trainer = Trainer(json.loads(sys.argv[1]))
    while True:
        for kind in trainer.loaders:
            trainer.epoch(kind)
        tell(event="round")  # both loaders have their workers now
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    tell(event="end")


if __name__ == "__main__":
    main()
