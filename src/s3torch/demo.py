"""``s3torch demo``: from images in S3 to a trained network and back, on a server of its own."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

from s3torch._transfer.stats import TransferStats
from s3torch.checkpoint import S3Checkpoint
from s3torch.client import S3Client
from s3torch.config import S3ReaderConfig
from s3torch.datasets import S3DataLoader, S3IterableDataset, S3MapDataset
from s3torch.readers import S3Reader
from s3torch.testing import LocalS3

__all__ = ["run"]

_BUCKET = "s3torch-demo"
_HELD_OUT = 5  # every fifth digit is held out
_BATCH = 64
_REQUIRED_ACCURACY = 0.95
_MiB = 1024 * 1024
_LARGE = 64 * _MiB
_SLICE = (40 * _MiB, 41 * _MiB)

Sample = tuple[Tensor, int]


@dataclass
class Batch:
    """Images (float32 [n, 1, 8, 8]), labels (int64 [n]), and what the worker that made it has transferred so far."""

    images: Tensor
    labels: Tensor
    worker: int
    stats: TransferStats


@dataclass
class Traffic:
    """What all workers transferred: each reports its own running total with every batch."""

    totals: dict[tuple[int, int], TransferStats] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0

    def add(self, epoch: int, batch: Batch) -> None:
        """Take note of a batch; workers are made anew for each epoch."""
        self.totals[epoch, batch.worker] = batch.stats
        self.samples += len(batch.labels)

    @property
    def total(self) -> TransferStats:
        """The sum over all workers of all epochs."""
        return sum(self.totals.values(), TransferStats())


def run(*, epochs: int, workers: int) -> int:
    """Run the demo; returns 0, or 1 if the network or a check fell short."""
    torch.manual_seed(0)
    print("starting a local S3 server ...")
    with LocalS3() as server, server.activated():
        print(f"  SeaweedFS at {server.endpoint}, process {server.pid}")
        server.create_bucket(_BUCKET)
        client = S3Client()
        _upload_digits(client)
        model, traffic = _train(epochs, workers)
        accuracy = _accuracy(model, workers)
        reloaded_accuracy = _accuracy(_save_and_reload(model), workers)
        received = _read_slice(client)
    total = traffic.total
    print()
    print(f"accuracy on held-out digits   {accuracy:.1%}")
    print(f"  of the reloaded checkpoint  {reloaded_accuracy:.1%}")
    print(f"training samples/s            {traffic.samples / traffic.seconds:,.0f}")
    print(f"training requests             {total.requests:,} ({total.retries} retries)")
    print(f"training bytes received       {total.bytes_received:,}")
    print(
        f"range read of {_SLICE[1] - _SLICE[0]:,} B     {received:,} B crossed the wire, of an object of {_LARGE:,} B"
    )
    if accuracy < _REQUIRED_ACCURACY or reloaded_accuracy != accuracy:
        print(f"FAILED: at least {_REQUIRED_ACCURACY:.0%} and the same after reloading was expected", file=sys.stderr)
        return 1
    return 0


def _upload_digits(client: S3Client) -> None:
    digits = load_digits()
    pairs = zip(digits.images, digits.target, strict=True)
    for number, (pixels, label) in enumerate(tqdm(pairs, "uploading digits", total=len(digits.target), unit="PNG")):
        part = "test" if number % _HELD_OUT == 0 else "train"
        with client.put_object(_BUCKET, f"{part}/{label}/{number:04}.png") as writer:
            writer.write(_png(pixels))


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _decode(reader: S3Reader) -> Sample:
    """Return image (float32 [1, 8, 8], 0 to 1) and label of one object."""
    pixels = np.asarray(Image.open(reader), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None], int(reader.key.split("/")[1])


def _collate(samples: Sequence[Sample]) -> Batch:
    images, labels = zip(*samples, strict=True)
    worker = get_worker_info()
    if worker is None or not isinstance(worker.dataset, (S3MapDataset, S3IterableDataset)):
        raise AssertionError("the demo loads by workers, from its own datasets")
    return Batch(torch.stack(images), torch.tensor(labels), worker.id, worker.dataset.client.stats)


def _train(epochs: int, workers: int) -> tuple[nn.Module, Traffic]:
    dataset = S3MapDataset.from_prefix(f"s3://{_BUCKET}/train/", transform=_decode)
    print(f"training on {len(dataset):,} objects")
    loader = S3DataLoader(dataset, _BATCH, shuffle=True, num_workers=workers, collate_fn=_collate)
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    traffic = Traffic()
    for epoch in range(epochs):
        with _timed(traffic), tqdm(total=len(dataset), desc=f"epoch {epoch + 1}/{epochs}", unit="sample") as progress:
            for batch in loader:
                loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's
                optimizer.step()
                traffic.add(epoch, batch)
                progress.update(len(batch.labels))
                progress.set_postfix(loss=f"{loss.item():.3f}")
    return model, traffic


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@contextmanager
def _timed(traffic: Traffic) -> Iterator[None]:
    start = time.perf_counter()
    yield
    traffic.seconds += time.perf_counter() - start


@torch.no_grad()
def _accuracy(model: nn.Module, workers: int) -> float:
    """Return the share of held-out digits that the network names; read as a stream, divided among the workers."""
    dataset = S3IterableDataset.from_prefix(f"s3://{_BUCKET}/test/", transform=_decode, enable_sharding=True)
    loader = DataLoader(dataset, _BATCH, num_workers=workers, collate_fn=_collate)
    right = total = 0
    for batch in loader:
        right += int((model(batch.images).argmax(1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total


def _save_and_reload(model: nn.Module) -> nn.Module:
    checkpoint = S3Checkpoint()
    uri = f"s3://{_BUCKET}/checkpoints/model.pt"
    with checkpoint.writer(uri) as writer:
        torch.save(model.state_dict(), writer)
    reloaded = _network()
    with checkpoint.reader(uri) as reader:
        reloaded.load_state_dict(torch.load(reader, weights_only=True))
    print(f"saved and reloaded {uri}")
    return reloaded


def _read_slice(client: S3Client) -> int:
    """Return how many bytes crossed the wire for a slice of a large object."""
    content = os.urandom(_LARGE)
    with (
        client.put_object(_BUCKET, "large.bin") as writer,
        tqdm(total=_LARGE, desc="uploading a large object", unit="B", unit_scale=True) as progress,
    ):
        for start in range(0, _LARGE, 8 * _MiB):
            progress.update(writer.write(content[start : start + 8 * _MiB]))
    start, stop = _SLICE
    before = client.stats.bytes_received
    with client.get_object(_BUCKET, "large.bin", reader_config=S3ReaderConfig.range_based()) as reader:
        reader.seek(start)
        if reader.read(stop - start) != content[start:stop]:
            raise AssertionError("the slice is not what was written")
    return client.stats.bytes_received - before
