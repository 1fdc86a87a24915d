"""Checks of what training needs: datasets, workers, checkpoints. They need torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnavailableError, UnfulfilledError, equal, same_bytes, that
from s3torch.testing.conformance.ranges import READ
from s3torch.testing.conformance.site import MiB

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from s3torch.readers import S3Reader
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()

_SAMPLES = 30
_WORKER_TIMEOUT = 60.0  # seconds that a DataLoader waits for a batch of a few kilobytes
_DATA = (*READ, "list.prefix", "list.pages")
_SAVED = (*READ, "range.parallel", "multipart.upload")


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise UnavailableError("torch is not installed") from None


def _content(reader: S3Reader) -> tuple[str, bytes]:
    """Make a sample; a function of this module, so that workers of every kind can be sent it."""
    return reader.key, bytes(reader.read())


def _put_samples(site: Site, name: str) -> tuple[str, dict[str, bytes]]:
    """Store samples; returns their prefix, and their contents by key."""
    folder = f"{site.folder()}{name}/"
    contents = {f"{folder}{number:03}": os.urandom(1000 + number) for number in range(_SAMPLES)}
    for key, content in contents.items():
        site.put(content, key)
    return folder, contents


def _check_samples(samples: Iterable[tuple[str, bytes]], contents: dict[str, bytes], what: str) -> None:
    """Check that each sample came once, with its bytes."""
    got = list(samples)
    equal(sorted(key for key, _ in got), sorted(contents), f"the keys of {what}")
    for key, content in got:
        same_bytes(content, contents[key], f"the sample {key!r} of {what}")


def _flat(batches: Iterable[object]) -> list[tuple[str, bytes]]:
    return [sample for batch in batches for sample in batch]  # type: ignore[attr-defined]  # lists, by _as_it_is


def _as_it_is(batch: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Collate nothing."""
    return batch


@CHECKS.add(
    "dataset.map",
    "A map-style dataset of a prefix has each object once, singly and in batches that are fetched together.",
    "S3MapDataset.from_prefix cannot be used; from_objects may.",
    needs=_DATA,
)
def _map(site: Site) -> None:
    _require_torch()
    from s3torch.datasets import S3MapDataset

    folder, contents = _put_samples(site, "map")
    dataset = S3MapDataset.from_prefix(
        site.uri(folder), region=site.region, endpoint=site.endpoint, s3client_config=site.config, transform=_content
    )
    equal(len(dataset), _SAMPLES, "the length of the dataset")
    _check_samples((dataset[index] for index in range(_SAMPLES)), contents, "a map-style dataset")
    _check_samples(dataset.__getitems__(list(range(_SAMPLES))), contents, "a batch of a map-style dataset")


@CHECKS.add(
    "dataset.iterable",
    "An iterable dataset of a prefix yields each object once.",
    "S3IterableDataset.from_prefix cannot be used; from_objects may.",
    needs=[*_DATA, "list.etag"],
)
def _iterable(site: Site) -> None:
    _require_torch()
    from s3torch.datasets import S3IterableDataset

    folder, contents = _put_samples(site, "iterable")
    dataset = S3IterableDataset.from_prefix(
        site.uri(folder), region=site.region, endpoint=site.endpoint, s3client_config=site.config, transform=_content
    )
    _check_samples(dataset, contents, "an iterable dataset")


@CHECKS.add(
    "dataset.workers",
    "Two workers of a DataLoader share a prefix: together they yield each object once.",
    "Use DataLoader(num_workers=0).",
    needs=["dataset.map", "dataset.iterable"],
)
def _workers(site: Site) -> None:
    _require_torch()
    from torch.utils.data import DataLoader

    from s3torch.datasets import S3IterableDataset, S3MapDataset

    folder, contents = _put_samples(site, "workers")
    mapped = S3MapDataset.from_prefix(
        site.uri(folder), region=site.region, endpoint=site.endpoint, s3client_config=site.config, transform=_content
    )
    sharded = S3IterableDataset.from_prefix(
        site.uri(folder),
        region=site.region,
        endpoint=site.endpoint,
        s3client_config=site.config,
        transform=_content,
        enable_sharding=True,
    )
    for what, dataset in (("a map-style dataset", mapped), ("a sharded iterable dataset", sharded)):
        loader: DataLoader[object] = DataLoader(
            dataset,
            batch_size=4,
            num_workers=2,
            collate_fn=_as_it_is,
            timeout=_WORKER_TIMEOUT,
        )
        _check_samples(_flat(loader), contents, f"{what} with two workers")


@CHECKS.add(
    "dataset.look-ahead",
    "A batch is fetched while the one before it is used (LookAheadBatchSampler).",
    "Leave LookAheadBatchSampler out.",
    needs=["dataset.map"],
)
def _look_ahead(site: Site) -> None:
    _require_torch()
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    from s3torch.datasets import LookAheadBatchSampler, S3MapDataset

    folder, contents = _put_samples(site, "look-ahead")
    dataset = S3MapDataset.from_prefix(
        site.uri(folder), region=site.region, endpoint=site.endpoint, s3client_config=site.config, transform=_content
    )
    sampler = LookAheadBatchSampler(BatchSampler(RandomSampler(dataset), 7, drop_last=False))
    loader: DataLoader[object] = DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_it_is)
    _check_samples(_flat(loader), contents, "a dataset whose batches are fetched ahead")


def _state(site: Site) -> dict[str, torch.Tensor]:
    """Return tensors of 7 MiB, which take two parts, with values that tell a place from another."""
    import torch

    del site
    return {
        "weight": torch.arange(7 * MiB // 4, dtype=torch.int32).reshape(7, -1),
        "bias": torch.arange(10.0),
        "empty": torch.zeros(0),
    }


def _check_state(seen: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    import torch

    equal(sorted(seen), sorted(wanted), "the names of the tensors")
    for name, tensor in wanted.items():
        that(torch.equal(seen[name], tensor), f"the tensor {name!r} has other values than were saved")


@CHECKS.add(
    "checkpoint.torch",
    "A state is saved by torch.save in parts and loaded by torch.load, its tensors by ranges.",
    "S3Checkpoint cannot be used.",
    needs=[*_SAVED, "range.vectors"],
)
def _torch(site: Site) -> None:
    _require_torch()
    from s3torch.checkpoint import S3Checkpoint

    checkpoint = S3Checkpoint(site.region, site.endpoint, site.config)
    uri = site.uri(site.key("step-1.pt"))
    state = _state(site)
    checkpoint.save(state, uri, progress=False)
    _check_state(checkpoint.load(uri, weights_only=True, progress=False), state)
    checkpoint.save_async(state, uri).result(timeout=_WORKER_TIMEOUT)
    _check_state(checkpoint.load(uri, weights_only=True, progress=False), state)


@CHECKS.add(
    "checkpoint.dcp",
    "A distributed checkpoint is saved and loaded in place by torch.distributed.checkpoint.",
    "s3torch.dcp cannot be used.",
    needs=[*_SAVED, "range.vectors", "list.prefix"],
)
def _dcp(site: Site) -> None:
    _require_torch()
    import warnings

    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    from s3torch.dcp import S3StorageReader, S3StorageWriter

    uri = site.uri(site.folder() + "step-1")
    state = _state(site)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    writer = S3StorageWriter(site.region, uri, site.config, endpoint=site.endpoint)
    reader = S3StorageReader(site.region, uri, site.config, endpoint=site.endpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as no_dist=True asks for
        try:
            save(dict(state), storage_writer=writer, no_dist=True)
            load(loaded, storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # no Exception, and its text is a whole traceback
            raise UnfulfilledError("; ".join(str(failure[0]) for failure in error.failures.values())) from None
    _check_state(loaded, state)


@CHECKS.add(
    "checkpoint.safetensors",
    "A safetensors file is saved, loaded whole, and loaded by single tensors.",
    "s3torch.safetensors cannot be used.",
    needs=[*_SAVED, "range.vectors"],
)
def _safetensors(site: Site) -> None:
    _require_torch()
    from s3torch.safetensors import load_file, save_file

    uri = site.uri(site.key("model.safetensors"))
    state = _state(site)
    save_file(state, uri, client=site.client, progress=False)
    _check_state(load_file(uri, client=site.client, progress=False), state)
    _check_state(load_file(uri, keys=["bias"], client=site.client, progress=False), {"bias": state["bias"]})
