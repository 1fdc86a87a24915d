"""S3IterableDataset: samples as a stream."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch.utils.data
from torch.utils.data import IterableDataset

from s3torch._buffer import as_index
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.base import GetDatasetObjects, S3Dataset, identity
from s3torch.datasets.divided import check_divided_once
from s3torch.datasets.here import rank_and_world_size
from s3torch.datasets.labels import ByColumn, ByFolder, FirstClasses, Labels
from s3torch.datasets.manifest import Manifest
from s3torch.datasets.members import Items, SampleTable
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import DatasetOptions, StreamOptions, Transform
from s3torch.datasets.samples import Samples
from s3torch.datasets.sharding import Position
from s3torch.datasets.sources import Objects, Prefix, Source, Table
from s3torch.datasets.stream_cursor import StreamCursor
from s3torch.errors import ArgumentTypeError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["S3IterableDataset"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class S3IterableDataset(S3Dataset[T_co], IterableDataset[T_co]):
    """An iterable-style dataset over objects in S3: yields ``transform`` of a reader of each object.

    With several DataLoader workers or ranks, set ``enable_sharding=True``: without it each of them yields every
    object, and a warning says so. With it each object comes exactly once over all of them; ranks may differ by one
    sample.

    Each iteration lists anew, unless ``table_at`` says where the table is kept. If the objects of a prefix are divided
    among DataLoader workers, one of them lists for all, by a directory for temporary files, and reading begins when all
    is listed (not on Windows, where each lists by itself). For that make the dataset before the workers start.
    DataLoaders that are seeded alike, and were not read by all of their workers, may share a listing.

    **Ranks** that read without workers share each listing, if they meet in the TCP store of a process group or of
    torchrun. With workers each rank lists by itself, and so do workers whose objects come from a
    ``get_dataset_objects`` of yours: they must all find the same objects. If the prefix may change meanwhile, use
    S3DataLoader, which lists once for all; or say where the table is kept for all of them, and all epochs:
    ``table_at``.

    A subclass is made by ``from_prefix`` and its siblings, too, if its constructor takes the
    arguments of this one.

    Args:
        region: Of the bucket; None finds it.
        get_dataset_objects: A source (Prefix, Objects, Table, Manifest), or what returns the objects, given the client;
            called for each iteration. Mostly ``from_prefix`` or one of its siblings is used instead.
        endpoint: URL of the server; None finds it.
        transform: Makes a sample of a reader, or of a SampleReaders if ``samples`` is given. With DataLoader workers
            that are not forked it must pickle: a function of a module, not a lambda.
        s3client_config: See S3ClientConfig.
        enable_sharding: Divide the objects among ranks and workers.
        reader_config: Which reader ``transform`` gets; None is ``S3ReaderConfig.sequential()``.
        shuffle: Each epoch in another order; see ``set_epoch``.
        seed: Of the orders: any integer, the same on all ranks.
        options: See DatasetOptions.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ConfigError: The endpoint is not a URL.
    """

    _kind = "iterable"

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Transform[T_co] = identity,  # type: ignore[assignment]  # T_co is S3Reader then
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        reader_config: S3ReaderConfig | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        **options: Unpack[DatasetOptions],
    ) -> None:
        super().__init__(region, get_dataset_objects, endpoint, transform, s3client_config, reader_config, options)
        for name, value in (("enable_sharding", enable_sharding), ("shuffle", shuffle)):
            if not isinstance(value, bool):
                raise ArgumentTypeError(f"{name} must be a bool, got {value!r}.")
        self._enable_sharding = enable_sharding
        self._rank, self._world_size = rank_and_world_size((0, 1))
        self._iterations = 0
        self._cursor = StreamCursor(shuffle=shuffle, seed=as_index("seed", seed))
        named = self._selection.labels
        if self._is_listed and not (isinstance(named, (ByFolder, ByColumn)) and named.classes is not None):
            self._first_classes = FirstClasses()  # each iteration lists anew

    @classmethod
    def from_source(cls, source: Source, **options: Unpack[StreamOptions[T_co]]) -> Self:
        """Return a dataset of the objects of a source.

        Args:
            source: Prefix, Objects, Table or Manifest.
            options: See StreamOptions.

        Raises:
            S3Error: What the source is made of could not be read.
        """
        return cls._of(source, options)

    @classmethod
    def from_prefix(cls, s3_uri: str, **options: Unpack[StreamOptions[T_co]]) -> Self:
        """Return a dataset of all objects whose keys begin with a prefix, in the order of their keys; see Prefix.

        Args:
            s3_uri: ``s3://bucket/prefix``; the prefix is a string, not a directory.
            options: See StreamOptions.

        Raises:
            InvalidURIError: ``s3_uri`` is not of that form.
        """
        return cls._of(Prefix(s3_uri), options)

    @classmethod
    def from_objects(cls, object_uris: str | Iterable[str], **options: Unpack[StreamOptions[T_co]]) -> Self:
        """Return a dataset of the objects that URIs name, in their order; see Objects.

        Args:
            object_uris: ``s3://bucket/key`` each; a single string is one object.
            options: See StreamOptions.

        Raises:
            InvalidURIError: A URI is not of that form.
        """
        return cls._of(Objects(object_uris), options)

    @classmethod
    def from_table(cls, table: ObjectTable | str | os.PathLike[str], **options: Unpack[StreamOptions[T_co]]) -> Self:
        """Return a dataset of the objects of a table, in its order: nothing is listed; see Table.

        Args:
            table: Another dataset's ``objects``, or the path or S3 URI where ``ObjectTable.save`` put it. That is read
                once, here.
            options: See StreamOptions.

        Raises:
            ObjectTableError: What is there is no saved table, or damaged.
            S3Error: The table could not be read from S3.
            OSError: The table could not be read from a file.
        """
        return cls._of(Table(table), options)

    @classmethod
    def from_manifest(cls, place: str | os.PathLike[str], **options: Unpack[StreamOptions[T_co]]) -> Self:
        """Return a dataset of the objects that a file names, in its order: nothing is listed; see Manifest.

        Args:
            place: The path or S3 URI of a saved table, of CSV, JSON Lines or Parquet with a column ``uri``, or of the
                ``manifest.json`` of an S3 Inventory. It is read once, here. To say which of them it is, use
                ``from_source(Manifest(place, format=...))``.
            options: See StreamOptions.

        Raises:
            ManifestError: A line is none of an object, the file is damaged, or of another format.
            ObjectTableError: It is a saved table that is damaged.
            S3Error: It could not be read from S3.
            OSError: It could not be read from a file.
        """
        return cls._of(Manifest(place), options)

    def __getstate__(self) -> dict[str, object]:
        # A worker that is not forked has no process group: it is told what is known here by now.
        rank, world_size = rank_and_world_size((self._rank, self._world_size))
        return {**super().__getstate__(), "_rank": rank, "_world_size": world_size}

    def __repr__(self) -> str:
        sharding = "on" if self._enable_sharding else "off"
        return f"<{type(self).__name__} sharding {sharding}, reader {self._reader_config.get_reader_type_string()}>"

    @property
    def objects(self) -> ObjectTable:
        """All objects, of all ranks and workers. It can be saved for the next job.

        Each time they are listed anew; but not in a job of several ranks, where all have what the first one found, nor
        with ``table_at``.
        """
        return self._list_objects()

    def __iter__(self) -> Iterator[T_co]:
        """Yield the samples of this rank and worker; lists the objects anew.

        Raises:
            S3Error: The listing, or the object that is next, could not be read. After an error of the listing each
                further sample raises it again.
        """
        position = self._position()
        begin = partial(self._cursor.begin, self._items_of(self._objects_of_iteration()))
        if self._enable_sharding:
            check_divided_once(position.world_size, "S3IterableDataset", "enable_sharding=False")
        else:
            _warn_of_duplicates(position)
            position = Position()
        return Samples(begin, position, self._new_look_ahead(), self)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with an epoch, at its start. The epoch that is due anyway is not begun anew.

        Epochs advance by themselves, each with another order, where the iteration is. A DataLoader whose workers start
        anew for each epoch iterates over copies, so call this before each epoch, or use S3DataLoader.

        Raises:
            ArgumentError: It is negative.
        """
        self._cursor.set_epoch(as_index("epoch", epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iteration over this dataset is, as plain values that JSON can hold.

        It is of this process. Once all ranks have received as many samples it is the same on all of them, and any
        number of them goes on; but not where ``on_error`` has skipped some and nothing fills in. For a DataLoader with
        workers use S3DataLoader, or torchdata's StatefulDataLoader, which asks each worker.

        Raises:
            ArgumentError: The iteration reads a listing page by page: ask once before it, or use ``shuffle=True``.
            S3Error: The objects could not be listed.
        """
        return self._cursor.state(self._all_items, self._selection)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Begin the next iteration where another one was; lists the objects.

        Raises:
            LoaderStateError: The state is of other data or another order, is damaged, or of a newer version.
            S3Error: The objects could not be listed.
        """
        self._cursor.load(state_dict, self._all_items(), self._selection)

    def _objects_of_iteration(self) -> Callable[[], Iterable[S3BucketKeyData]]:
        """Return what lists the objects. Workers that share them have one listing for each iteration, ranks have, too.

        It is called when the first object is asked for: a DataLoader takes errors of ``iter()`` for the end.
        """
        worker = torch.utils.data.get_worker_info()
        position = self._position()
        is_shared = self._enable_sharding and self._job_listing is not None
        seed = getattr(worker, "seed", None)  # tests of programs patch in what has none
        if worker is not None and worker.num_workers > 1 and seed is not None and is_shared:
            self._iterations += 1
            # What the workers of one DataLoader have in common, and those of another have not. Persistent workers, and
            # those that begin anew by themselves, count.
            name = f"{seed - worker.id}-{position.rank}-{self._iterations}"
            return partial(self._one_listing.agree, name, self._list_alone, worker.id, worker.num_workers)
        if worker is None and position.world_size > 1 and is_shared:
            self._iterations += 1
            return partial(self._list_objects, f"iteration {self._iterations}")
        if self._cursor.needs_table or self._selection.makes_samples:
            return self._list_objects if self._job_listing is None else self._list_alone
        if isinstance(self._get_dataset_objects, Source):
            return self._given_objects
        objects = self._given_objects()  # a program's own is called by iter(), as it is in s3torchconnector
        return lambda: objects

    def _all_items(self) -> Items:
        """Return what all samples are made of."""
        objects = self._list_objects()
        return self._samples_of(objects) if self._selection.makes_samples else objects

    def _items_of(
        self, listing: Callable[[], Iterable[S3BucketKeyData]]
    ) -> Callable[[], Iterable[S3BucketKeyData] | SampleTable]:
        """Return what returns all that samples are made of: objects, or what is made of all of them."""
        return (lambda: self._samples_of(listing())) if self._selection.makes_samples else listing

    @property
    def _labels(self) -> Labels | None:
        return None if self._selection.labels is None else self._samples_of(self._list_objects()).labels

    def _position(self) -> Position:
        rank, world_size = rank_and_world_size((self._rank, self._world_size))
        worker = torch.utils.data.get_worker_info()  # by this name tests of programs patch it
        if worker is None:
            return Position(rank, world_size)
        return Position(rank, world_size, worker.id, worker.num_workers)


def _warn_of_duplicates(position: Position) -> None:
    if not position.is_alone and position.rank == 0 and position.worker == 0:
        warnings.warn(
            f"Each of {position.world_size} ranks x {position.num_workers} DataLoader workers yields every object of "
            "this S3IterableDataset. Pass enable_sharding=True to read each object once.",
            stacklevel=3,
        )
