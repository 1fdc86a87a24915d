"""What both datasets share: how they are made, and how a sample comes of an object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData, list_prefix
from s3torch.errors import ArgumentTypeError
from s3torch.readers import S3Reader, check_reader_config
from s3torch.uri import parse_s3_uri

__all__ = ["GetDatasetObjects", "GivenObjects", "S3Dataset", "identity", "objects_under"]

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
        reader_type = self._reader_config.get_reader_type_string()
        self._client = S3Client(
            region,
            endpoint=endpoint,
            user_agent_comments=[f"md/dataset#{self._kind} md/reader_type#{reader_type}"],
            s3client_config=s3client_config,
        )

    @property
    def client(self) -> S3Client:
        """The client that reads the objects; its ``stats`` count what this process transferred."""
        return self._client

    def _sample(self, item: S3BucketKeyData) -> T_co:
        reader = self._client.get_object(
            item.bucket, item.key, object_info=item.object_info, reader_config=self._reader_config
        )
        return self._transform(reader)


def objects_under(s3_uri: str) -> GetDatasetObjects:
    """Return what lists a prefix; it pickles, unlike a closure.

    Raises:
        InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/prefix``.
    """
    bucket, prefix = parse_s3_uri(s3_uri)
    return functools.partial(list_prefix, bucket=bucket, prefix=prefix)


class GivenObjects:
    """Objects that need no listing; callable as ``get_dataset_objects``, and pickles."""

    def __init__(self, table: ObjectTable) -> None:
        self._table = table

    def __call__(self, _client: S3Client) -> ObjectTable:
        """Return the objects."""
        return self._table
