"""What both datasets share: how they are made, and how a sample comes of an object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch._forks import NO_FORK
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.bad_samples import BadSamples
from s3torch.datasets.filters import described
from s3torch.datasets.job import JobListing
from s3torch.datasets.labels import ByColumn, FirstClasses, Labels, check_column, within
from s3torch.datasets.look_ahead import LookAhead
from s3torch.datasets.manifest import Manifest
from s3torch.datasets.members import Item, SampleData, SampleReaders, SampleTable
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.one_listing import OneListing
from s3torch.datasets.options import Selection, Transform
from s3torch.datasets.selecting import select, select_from_table
from s3torch.datasets.sources import Source, buckets_of
from s3torch.datasets.stored_table import StoredTable
from s3torch.errors import ArgumentTypeError, EmptyDatasetError
from s3torch.readers import S3Reader, check_reader_config

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GetDatasetObjects", "Reads", "S3Dataset", "identity"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

GetDatasetObjects = Callable[[S3Client], Iterable[S3BucketKeyData]]

Reads = S3Reader | SampleReaders  # what a transform gets


def identity(reader: S3Reader) -> S3Reader:
    """Return the reader itself: the transform of a dataset that is given none."""
    return reader


class _OfLabels(Generic[T]):
    """An attribute of a dataset that has labels. A program's own attribute of that name hides it, as in a subclass.

    Args:
        name: Of the attribute.
        make: Makes it of the labels.
    """

    def __init__(self, name: str, make: Callable[[Labels], T]) -> None:
        self._name = name
        self._make = make

    def __get__(self, dataset: S3Dataset[Any] | None, _owner: type) -> T:
        labels = None if dataset is None else dataset._labels
        if labels is None:
            raise AttributeError(
                f"A dataset without labels has no {self._name}. Give it some: labels=by_folder().", name=self._name
            )
        return self._make(labels)


class S3Dataset(Generic[T_co]):
    """The configuration of a dataset; see S3MapDataset and S3IterableDataset.

    Attributes:
        classes: The names of the classes, by their indices, of a dataset with labels; lists the objects.
        class_to_idx: The index of each class.
        targets: The index of each sample's class.
    """

    _kind = "unknown"

    classes = _OfLabels("classes", lambda labels: list(labels.classes))
    class_to_idx = _OfLabels("class_to_idx", lambda labels: {name: index for index, name in enumerate(labels.classes)})
    targets = _OfLabels("targets", lambda labels: memoryview(labels.targets).toreadonly())

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None,
        transform: Transform[T_co],
        s3client_config: S3ClientConfig | None,
        reader_config: S3ReaderConfig | None,
        options: Mapping[str, Any],
    ) -> None:
        if not callable(get_dataset_objects):
            raise ArgumentTypeError(
                f"get_dataset_objects must be callable with an S3Client, got {get_dataset_objects!r}."
            )
        if not callable(transform):
            raise ArgumentTypeError(f"transform must be callable with an S3Reader, got {transform!r}.")
        self.region = region
        self.endpoint = endpoint
        self._reader_config = check_reader_config(reader_config)
        self._selection = _selection(type(self), options)
        self._transform: Callable[[Any], T_co] = transform
        self._bad_samples = BadSamples(self._selection.on_error)
        self._one_listing = OneListing()
        reader_type = self._reader_config.get_reader_type_string()
        self._client = S3Client(
            region,
            endpoint=endpoint,
            user_agent_comments=[f"md/dataset#{self._kind} md/reader_type#{reader_type}"],
            s3client_config=s3client_config,
        )
        source = get_dataset_objects
        self._get_dataset_objects = _opened(source, self._client, self._selection)
        self._known: ObjectTable | None = None
        self._job_listing: JobListing | None = None
        self._stored: StoredTable | None = None
        if self._selection.table_at not in (None, False):
            self._stored = StoredTable(source, self._selection, endpoint)
        elif isinstance(source, Source) and source.is_listed:
            chosen = self._selection
            self._job_listing = JobListing(f"{source!r} {endpoint} {described(chosen.filter)} {chosen.pin_etags}")
        self._known_samples: SampleTable | None = None
        self._first_classes: FirstClasses | None = None
        self._client._access.expect_children(buckets_of(self._get_dataset_objects))

    @classmethod
    def _of(cls, source: GetDatasetObjects, options: Mapping[str, Any]) -> Self:
        """Return a dataset of a source, made by whatever constructor a subclass has."""
        rest = dict(options)
        return cls(rest.pop("region", None), source, rest.pop("endpoint", None), **rest)

    def __getstate__(self) -> dict[str, object]:
        with NO_FORK:  # so that no listing is kept here alone between the two
            self._one_listing.hand_on()
            return dict(self.__dict__)

    @property
    def client(self) -> S3Client:
        """The client that reads the objects; its ``stats`` count what this process transferred."""
        return self._client

    @property
    def skipped(self) -> int:
        """How many samples this process has skipped; see ``on_error``. Each DataLoader worker counts its own."""
        return self._bad_samples.skipped

    @property
    def _is_listed(self) -> bool:
        """Whether the objects may be others the next time that they are asked for."""
        source = self._get_dataset_objects
        return self._stored is None and (source.is_listed if isinstance(source, Source) else True)

    def _list_objects(self, name: str = "objects") -> ObjectTable:
        """Return all objects that belong to the dataset, listing a prefix in parallel, and once for all ranks.

        Args:
            name: Of the listing: ranks that ask for the same one get the same table.
        """
        if self._known is not None:
            return self._known
        if self._job_listing is not None:
            return self._job_listing.agree(name, self._list_alone)
        table = self._list_alone() if self._stored is None else self._ask_for_stored(self._stored)
        if not self._is_listed:
            self._known = table
        return table

    def _ask_for_stored(self, stored: StoredTable) -> ObjectTable:
        """Return the table that is stored; of the workers of a dataset one asks for it, for all."""
        return self._one_listing.agree("stored", lambda: stored.agree(self.client, self._list_alone))

    def _list_alone(self) -> ObjectTable:
        source, etags = self._get_dataset_objects, self._selection.pin_etags
        objects = source.table(self.client, etags=etags) if isinstance(source, Source) else self._ask_for_objects()
        table = objects if isinstance(objects, ObjectTable) else ObjectTable(objects, etags=etags)
        return select_from_table(table, self._selection, source, self.client)

    def _given_objects(self) -> Iterable[S3BucketKeyData]:
        """Return the objects that belong to the dataset, as they become known."""
        if not self._is_listed:
            return self._list_objects()
        return select(self._ask_for_objects(), self._selection, self._get_dataset_objects, self.client)

    def _ask_for_objects(self) -> Iterable[S3BucketKeyData]:
        """Return what ``get_dataset_objects`` returns."""
        objects = self._get_dataset_objects(self.client)
        if not isinstance(objects, Iterable):
            raise ArgumentTypeError(f"get_dataset_objects must return an iterable of objects, got {objects!r}.")
        return objects

    @property
    def _labels(self) -> Labels | None:
        """The labels of all samples, or None if it has none."""
        raise NotImplementedError

    def _samples_of(self, objects: Iterable[S3BucketKeyData]) -> SampleTable:
        """Return what the samples are made of, where they are more than objects.

        Raises:
            EmptyDatasetError: There are none, and that was not allowed.
            SampleLayoutError: The objects do not make the samples that were asked for, or of other classes than before.
        """
        if self._known_samples is not None and self._known_samples.objects is objects:
            return self._known_samples
        selection = self._selection
        table = objects if isinstance(objects, ObjectTable) else ObjectTable(objects, etags=selection.pin_etags)
        labelling = selection.labels and within(selection.labels, self._get_dataset_objects)
        found = SampleTable(table, selection.samples, labelling)
        if table and not found and not selection.allow_empty:
            raise EmptyDatasetError(
                f"samples={selection.samples!r} makes no sample of the {len(table)} objects of the dataset. Pass "
                "allow_empty=True if that may be."
            )
        if found.labels is not None and self._first_classes is not None:
            self._first_classes.check(found.labels.classes)
        if table is self._known:  # it stays, and so does what is made of it
            self._known_samples = found
        return found

    def _open(self, item: Item) -> Reads:
        """Return the reader of an object, or those of a sample; sends nothing."""
        if not isinstance(item, SampleData):
            return self._open_object(item)
        if item.names is None:
            return self._open_object(item.objects[0])
        readers = {name: self._open_object(each) for name, each in zip(item.names, item.objects, strict=True)}
        return SampleReaders(readers, self.client._access.share.bytes_in_flight)

    def _open_object(self, item: S3BucketKeyData) -> S3Reader:
        return self._client.get_object(
            item.bucket, item.key, object_info=item.object_info, reader_config=self._reader_config
        )

    def _sample(self, item: Item, reader: Reads) -> T_co:
        """Return what the transform makes of an object, or of the objects of a sample, with its label if it has one.

        Raises:
            RuntimeError: The transform raised StopIteration. A loop over the samples would take that for their end.
        """
        self._bad_samples.read += 1
        try:
            made = self._transform(reader)
        except StopIteration as error:
            raise RuntimeError(
                f"The transform raised StopIteration for s3://{item.bucket}/{item.key}: a call of next() in it found "
                "nothing. It would end the data there. Give next() a default, or catch StopIteration."
            ) from error
        if isinstance(item, SampleData) and item.target is not None:
            return made, item.target  # type: ignore[return-value]  # T_co is a pair then
        return made

    def _new_look_ahead(self) -> LookAhead:
        access = self.client._access
        return LookAhead(access.config.max_objects_ahead, access.share.bytes_in_flight)

    def _nudge(self, interval: float) -> None:
        self._client._access.engine().nudge(interval)


def _opened(source: GetDatasetObjects, client: S3Client, selection: Selection) -> GetDatasetObjects:
    """Return a source with what it is made of read, and with the column of labels that is asked for.

    Raises:
        SampleLayoutError: It has no such column, which can be said now.
        S3Error: It could not be read.
    """
    opened = source
    if isinstance(source, Manifest) and isinstance(selection.labels, ByColumn):
        opened = source.opened(client, selection.labels.column)
    elif isinstance(source, Source):
        opened = source.opened(client)
    check_column(selection.labels, opened)
    return opened


def _selection(dataset: type, options: Mapping[str, Any]) -> Selection:
    if unknown := options.keys() - Selection.__dataclass_fields__.keys():
        known = ", ".join(Selection.__dataclass_fields__)
        raise ArgumentTypeError(
            f"{dataset.__name__} has no option {', '.join(sorted(unknown))}. Its own are {known}, beside those of "
            "s3torchconnector."
        )
    return Selection(**options)
