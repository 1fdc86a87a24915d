"""What both datasets share: how they are made, and how a sample comes of an object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from s3torch._forks import NO_FORK
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.listing import list_table
from s3torch.datasets.look_ahead import LookAhead
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData, list_prefix
from s3torch.datasets.one_listing import OneListing
from s3torch.errors import ArgumentTypeError
from s3torch.readers import S3Reader, check_reader_config
from s3torch.uri import parse_s3_uri

__all__ = ["GetDatasetObjects", "GivenObjects", "ObjectsUnder", "S3Dataset", "given_table", "identity"]

T_co = TypeVar("T_co", covariant=True)

GetDatasetObjects = Callable[[S3Client], Iterable[S3BucketKeyData]]


def identity(reader: S3Reader) -> S3Reader:
    """Return the reader itself: the transform of a dataset that is given none."""
    return reader


class S3Dataset(Generic[T_co]):
    """The configuration of a dataset; see S3MapDataset and S3IterableDataset."""

    _kind = "unknown"

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None,
        transform: Callable[[S3Reader], T_co],
        s3client_config: S3ClientConfig | None,
        reader_config: S3ReaderConfig | None,
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
        self._get_dataset_objects = get_dataset_objects
        self._transform = transform
        self._one_listing = OneListing()
        reader_type = self._reader_config.get_reader_type_string()
        self._client = S3Client(
            region,
            endpoint=endpoint,
            user_agent_comments=[f"md/dataset#{self._kind} md/reader_type#{reader_type}"],
            s3client_config=s3client_config,
        )

    def __getstate__(self) -> dict[str, object]:
        with NO_FORK:  # so that no listing is kept here alone between the two
            self._one_listing.hand_on()
            return dict(self.__dict__)

    @property
    def client(self) -> S3Client:
        """The client that reads the objects; its ``stats`` count what this process transferred."""
        return self._client

    def _list_objects(self) -> ObjectTable:
        """Return all objects, listing a prefix in parallel."""
        source = self._get_dataset_objects
        objects = source.table(self.client) if isinstance(source, ObjectsUnder) else self._given_objects()
        return objects if isinstance(objects, ObjectTable) else ObjectTable(objects)

    def _given_objects(self) -> Iterable[S3BucketKeyData]:
        """Return what ``get_dataset_objects`` returns."""
        objects = self._get_dataset_objects(self.client)
        if not isinstance(objects, Iterable):
            raise ArgumentTypeError(f"get_dataset_objects must return an iterable of objects, got {objects!r}.")
        return objects

    def _open(self, item: S3BucketKeyData) -> S3Reader:
        return self._client.get_object(
            item.bucket, item.key, object_info=item.object_info, reader_config=self._reader_config
        )

    def _sample(self, item: S3BucketKeyData, reader: S3Reader) -> T_co:
        """Return what the transform makes of an object.

        Raises:
            RuntimeError: The transform raised StopIteration. A loop over the samples would take that for their end.
        """
        try:
            return self._transform(reader)
        except StopIteration as error:
            raise RuntimeError(
                f"The transform raised StopIteration for s3://{item.bucket}/{item.key}: a call of next() in it found "
                "nothing. It would end the data there. Give next() a default, or catch StopIteration."
            ) from error

    def _new_look_ahead(self) -> LookAhead:
        config = self.client.s3client_config
        return LookAhead(config.max_objects_ahead, config.max_bytes_in_flight)

    def _nudge(self, interval: float) -> None:
        self._client._access.engine().nudge(interval)


class ObjectsUnder:
    """What lists a prefix; callable as ``get_dataset_objects``, and pickles.

    Args:
        s3_uri: ``s3://bucket/prefix``.

    Raises:
        InvalidURIError: ``s3_uri`` is not of that form.
    """

    def __init__(self, s3_uri: str) -> None:
        self._bucket, self._prefix = parse_s3_uri(s3_uri)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Yield the objects as their pages come."""
        return list_prefix(client, self._bucket, self._prefix)

    def table(self, client: S3Client) -> ObjectTable:
        """Return all objects, which takes fewer round trips than to wait for page after page."""
        return list_table(client, self._bucket, self._prefix)


class GivenObjects:
    """Objects that need no listing; callable as ``get_dataset_objects``, and pickles."""

    def __init__(self, table: ObjectTable) -> None:
        self._table = table

    def __call__(self, _client: S3Client) -> ObjectTable:
        """Return the objects."""
        return self._table


def given_table(
    table: ObjectTable | str | os.PathLike[str],
    region: str | None,
    endpoint: str | None,
    s3client_config: S3ClientConfig | None,
) -> GivenObjects:
    """Return the objects of a table, which is loaded if it is the place of a saved one.

    Raises:
        ObjectTableError: What is there is no saved table.
        S3Error: It could not be read from S3.
        OSError: It could not be read from a file.
    """
    if isinstance(table, ObjectTable):
        return GivenObjects(table)
    client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
    try:
        return GivenObjects(ObjectTable.load(table, client=client))
    finally:
        client.close()
