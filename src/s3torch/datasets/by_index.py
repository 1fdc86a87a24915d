"""A stream as S3DataLoader reads it: by index, in the order that it has."""

from __future__ import annotations

from typing import Any, TypeVar

from s3torch.datasets.base import S3Dataset
from s3torch.datasets.batch_sampler import S3BatchSampler
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.map import S3MapDataset
from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["by_index", "go_on", "order_of_stream"]

T_co = TypeVar("T_co", covariant=True)


def order_of_stream(stream: S3IterableDataset[Any], *, shuffle: bool, seed: int) -> tuple[bool, int]:
    """Return how a loader shuffles a stream, which may say that itself."""
    own = stream._cursor
    if not own.shuffle:
        return shuffle, seed
    if seed not in (0, own.seed):
        raise ArgumentError(f"S3DataLoader(seed={seed}) contradicts its dataset, which shuffles by seed {own.seed}.")
    return True, own.seed


def by_index(stream: S3IterableDataset[T_co]) -> S3MapDataset[T_co]:
    """Return the samples of a stream by index: workers then need no share of their own.

    Raises:
        ArgumentTypeError: The stream makes its samples by a way of its own.
    """
    kind = type(stream)
    own_readers = kind._open is not S3Dataset._open or kind._open_object is not S3Dataset._open_object
    if kind.__iter__ is not S3IterableDataset.__iter__ or own_readers:
        raise ArgumentTypeError(
            f"S3DataLoader reads the objects of a stream by index, and {kind.__name__} has an __iter__ "
            "or readers of its own. Use torch.utils.data.DataLoader, or torchdata's StatefulDataLoader."
        )
    dataset = S3MapDataset(
        stream.region,
        stream._get_dataset_objects,
        stream.endpoint,
        stream._transform,
        stream.client.s3client_config,
        stream._reader_config,
        **vars(stream._selection),
    )
    dataset._client = stream._client  # one set of connections and statistics
    dataset._bad_samples = stream._bad_samples  # and one count of those
    dataset._first_classes = stream._first_classes  # an index of a class means the same in both
    return dataset


def go_on(sampler: S3BatchSampler, stream: S3IterableDataset[Any]) -> None:
    """Begin with the state that a stream has loaded, or with the epoch that it was set to, as its next iteration would.

    Raises:
        LoaderStateError: The loader has another order than the stream that has loaded the state.
    """
    cursor = stream._cursor
    if cursor.has_loaded:
        sampler.load_state_dict(stream.state_dict())
    elif not cursor.has_begun:
        sampler.set_epoch(cursor.due.epoch)
