"""What can be said of a dataset besides its source: each option stands here once, for all ways to make one.

The constructors have s3torchconnector's arguments at the places that they have there. What came later is in
DatasetOptions, and MapOptions and StreamOptions are all that ``from_prefix`` and its siblings take. A new option is a
line in DatasetOptions, for those who write programs, and one in Selection, with its default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from typing_extensions import TypedDict  # typing's cannot be generic on Python 3.10

from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.bad_samples import OnError, check_on_error
from s3torch.datasets.filters import Filter, check_filter
from s3torch.datasets.grouping import Grouping, check_grouping
from s3torch.datasets.labels import Labelling, check_labelling
from s3torch.datasets.members import SampleReaders
from s3torch.datasets.objects import S3BucketKeyData
from s3torch.errors import ArgumentTypeError
from s3torch.readers import S3Reader

__all__ = ["DatasetOptions", "MapOptions", "Selection", "StreamOptions", "Transform"]

T = TypeVar("T")

# The second one is that of a dataset whose samples are several objects.
Transform = Callable[[S3Reader], T] | Callable[[SampleReaders], T]


class DatasetOptions(TypedDict, total=False):
    """What each way to make a dataset takes by keyword.

    Args:
        filter: Which objects belong to the dataset: a Filter, or a callable that takes an S3BucketKeyData and returns
            whether it does. None: all.
        allow_empty: Whether a dataset may have no object. False (default): that is an EmptyDatasetError, which names
            the nearest prefixes that have some.
        samples: Which objects are one sample together: ``by_stem(".jpg", ".json")``, or a callable that takes an
            S3BucketKeyData and returns the names of its sample and of what it is in that, or None if it is in none.
            ``transform`` gets a SampleReaders then. None: each object is a sample.
        labels: The class of each sample: ``by_folder()``, ``by_column("label")`` of a manifest, or a callable that
            takes an S3BucketKeyData and returns the name of its class. A sample is ``(transform(reader), index of its
            class)`` then. None: there are no classes.
        on_error: What happens to a sample that cannot be made. ``"raise"`` (default): its error is raised, with a note
            that names the object, the index and the DataLoader worker. ``"skip"``, or a Skip with limits: it is left
            out, a warning is logged, and ``skipped`` counts it; too many are a BadSamplesError. Or a callable, which
            takes error, S3BucketKeyData (the first one of a sample of several objects) and index, and returns another
            sample, with its label if there are labels, or SKIP, or raises.
        pin_etags: Whether the table of objects must keep their ETags, some 42 bytes for each: an object that was
            replaced since it was listed is an ObjectChangedError then, also by one of its size, also of a saved table
            weeks later. A source that tells no ETag of an object is an ArgumentError. False (default): the table of a
            prefix pins the sizes alone, a table that has ETags pins them all the same.
        table_at: Where the table of a prefix is kept for all ranks and later jobs: ``s3://bucket/key``, a path that all
            of them see, or True for a place beside the prefix (``s3://bucket/train.s3torch-table`` for
            ``s3://bucket/train/``). Whoever finds none there lists and stores it, unless another one was faster; all
            use what is stored, and nothing is listed from then on. A table of another prefix, filter or ``pin_etags``,
            or anything else at that place, is an ObjectTableError and is never replaced. None (default): the table is
            not kept.
    """

    filter: Filter | Callable[[S3BucketKeyData], bool] | None
    allow_empty: bool
    samples: Grouping | None
    labels: Labelling | None
    on_error: OnError
    pin_etags: bool
    table_at: str | os.PathLike[str] | bool | None


class MapOptions(DatasetOptions, Generic[T], total=False):
    """What ``S3MapDataset.from_prefix`` and its siblings take by keyword, with what DatasetOptions has.

    Args:
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        transform: Makes a sample of a reader, or of a SampleReaders if ``samples`` is given; without it that itself is
            the sample. With DataLoader workers that are not forked it must pickle: a function of a module, not a
            lambda.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``transform`` gets; None is ``S3ReaderConfig.sequential()``.
    """

    region: str | None
    endpoint: str | None
    transform: Transform[T]
    s3client_config: S3ClientConfig | None
    reader_config: S3ReaderConfig | None


class StreamOptions(MapOptions[T], Generic[T], total=False):
    """What ``S3IterableDataset.from_prefix`` and its siblings take by keyword, with what MapOptions has.

    Args:
        enable_sharding: Divide the objects among ranks and workers.
        shuffle: Each epoch in another order, by arithmetic; all objects are listed before the first is read.
        seed: Of the orders: any integer, the same on all ranks.
    """

    enable_sharding: bool
    shuffle: bool
    seed: int


@dataclass(frozen=True)
class Selection:
    """The values of DatasetOptions that a dataset has, checked.

    Raises:
        ArgumentError: One is an unknown word.
        ArgumentTypeError: One has the wrong type.
    """

    filter: Filter | Callable[[S3BucketKeyData], bool] | None = None
    allow_empty: bool = False
    samples: Grouping | None = None
    labels: Labelling | None = None
    on_error: OnError = "raise"
    pin_etags: bool = False
    table_at: str | os.PathLike[str] | bool | None = None

    def __post_init__(self) -> None:
        check_filter(self.filter)
        check_grouping(self.samples)
        check_labelling(self.labels)
        check_on_error(self.on_error)
        for name in ("allow_empty", "pin_etags"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(f"{name} must be a bool, got {getattr(self, name)!r}.")
        if self.table_at is not None and not isinstance(self.table_at, (str, os.PathLike, bool)):
            raise ArgumentTypeError(f"table_at must be an S3 URI, a path or True, got {self.table_at!r}.")

    @property
    def makes_samples(self) -> bool:
        """Whether a sample is more than an object: all objects have to be known before the first one."""
        return self.samples is not None or self.labels is not None
