"""The datasets of s3torchconnector: s3torch's, with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from s3torch import datasets
from s3torch.client import S3Client as CoreClient
from s3torch.compat.client import S3Client, UserAgent, is_of_the_other
from s3torch.compat.readers import (
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    choose_constructor,
    is_own,
)
from s3torch.compat.wording import worded
from s3torch.config import ReaderType, S3ClientConfig, S3ReaderConfig
from s3torch.datasets.base import S3Dataset, identity
from s3torch.datasets.look_ahead import Begun, LookAhead, Source
from s3torch.datasets.members import Item
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData, list_prefix, table_of_uris
from s3torch.datasets.sources import Objects, Prefix
from s3torch.uri import parse_s3_uri

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["S3BucketIterable", "S3IterableDataset", "S3MapDataset", "get_objects_from_prefix", "get_objects_from_uris"]

GetDatasetObjects = Callable[[S3Client], Iterable[S3BucketKeyData]]


def get_objects_from_uris(object_uris: str | Iterable[str], client: CoreClient) -> Iterator[S3BucketKeyData]:
    """Return the objects that URIs name."""
    del client
    return iter(table_of_uris(object_uris))


def get_objects_from_prefix(s3_uri: str, client: CoreClient) -> Iterator[S3BucketKeyData]:
    """Return the objects whose keys begin with a prefix, as they are listed."""
    return iter(S3BucketIterable(client, *parse_s3_uri(s3_uri)))


class S3BucketIterable:
    """The objects whose keys begin with a prefix, listed anew by each iteration.

    Args:
        client: Lists them.
        bucket: Of the objects.
        prefix: Of their keys.
    """

    def __init__(self, client: CoreClient, bucket: str, prefix: str) -> None:
        self._arguments = client, bucket, prefix

    def __iter__(self) -> Iterator[S3BucketKeyData]:
        return list_prefix(*self._arguments)


class _NoLookAhead(LookAhead):
    """Readers of a program's own, opened when it is their turn."""

    def take(self, items: Iterator[tuple[int, Item]], source: Source) -> Begun | None:
        found = next(items, None)
        return None if found is None else Begun(*found, source._open(found[1]), 0)

    def settle(self, begun: Begun) -> None:
        """Do nothing: nothing is counted."""

    def discard(self, begun: Begun | None) -> None:
        """Do nothing: nothing was begun."""


class _Dataset(S3Dataset[Any]):
    """What both datasets do with a reader constructor, and with what s3torchconnector has pickled."""

    _reader_constructor: S3ReaderConstructorProtocol

    def _set_up(
        self,
        s3client_config: S3ClientConfig | None,
        reader_constructor: S3ReaderConstructorProtocol | None,
        reader_config: S3ReaderConfig | None,
        reader_type: ReaderType | None,
    ) -> None:
        """Take a client that knows reader constructors."""
        self._reader_constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        kind = S3ReaderConstructor.get_reader_type_string(self._reader_constructor)
        self._client = S3Client(
            self.region,  # type: ignore[arg-type]  # None finds it
            endpoint=self.endpoint,
            user_agent=UserAgent([f"md/dataset#{self._kind} md/reader_type#{kind}"]),
            s3client_config=s3client_config,
        )

    def _get_client(self) -> Any:  # noqa: ANN401  # a program's own dataset may have another
        return self._client

    @property
    def client(self) -> Any:  # noqa: ANN401  # the core declares its own client
        """The client that reads the objects."""
        return self._get_client()

    def _open_object(self, item: S3BucketKeyData) -> Any:  # noqa: ANN401  # whatever the constructor makes
        return self.client.get_object(
            item.bucket, item.key, object_info=item.object_info, reader_constructor=self._reader_constructor
        )

    def _new_look_ahead(self) -> LookAhead:
        return super()._new_look_ahead() if is_own(self._reader_constructor) else _NoLookAhead(1, 1)

    def _list_alone(self) -> ObjectTable:
        return worded(super()._list_alone)()


class S3MapDataset(_Dataset, datasets.S3MapDataset[Any]):
    """s3torch's map dataset with the arguments of s3torchconnector; see ``s3torch.S3MapDataset``.

    Args:
        region: Of the bucket.
        get_dataset_objects: Returns the objects, given the client.
        endpoint: URL of the server; None finds it.
        transform: Makes a sample of a reader.
        s3client_config: See S3ClientConfig.
        reader_constructor: Makes the readers; None is sequential.
        reader_config: An older way to choose them.
        reader_type: The oldest way.
    """

    def __init__(
        self,
        region: str,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> None:
        source: Any = get_dataset_objects
        super().__init__(region, source, endpoint, transform, s3client_config, allow_empty=True)
        self._set_up(s3client_config, reader_constructor, reader_config, reader_type)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not is_of_the_other(state):
            super().__setstate__(state)
            return
        S3MapDataset.__init__(self, **_arguments(state))
        pairs = state.pop("_bucket_key_pairs")
        self._listed = None if pairs is None else ObjectTable(pairs)
        self.__dict__.update(_rest(state))

    @classmethod
    def from_prefix(  # type: ignore[override]  # the arguments of s3torchconnector
        cls,
        s3_uri: str,
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> Self:
        """Return a dataset of all objects whose keys begin with a prefix."""
        constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        return cls(
            region,
            Prefix(s3_uri),
            endpoint,
            transform=transform,
            s3client_config=s3client_config,
            reader_constructor=constructor,
        )

    @classmethod
    def from_objects(  # type: ignore[override]  # the arguments of s3torchconnector
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> Self:
        """Return a dataset of the objects that URIs name."""
        constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        return cls(
            region,
            Objects(object_uris),
            endpoint,
            transform=transform,
            s3client_config=s3client_config,
            reader_constructor=constructor,
        )

    # What programs' own datasets use of s3torchconnector's: they filter the objects, and open them.

    @property
    def _bucket_key_pairs(self) -> Any:  # noqa: ANN401  # a table, or a list of a program's own
        return self._listed

    @_bucket_key_pairs.setter
    def _bucket_key_pairs(self, pairs: Any) -> None:  # noqa: ANN401  # as above
        self._listed = pairs

    @property
    def _dataset_bucket_key_pairs(self) -> Any:  # noqa: ANN401  # as above
        return super()._table

    @property
    def _table(self) -> Any:  # noqa: ANN401  # as above
        return self._dataset_bucket_key_pairs

    def _get_object(self, item: Any) -> Any:  # noqa: ANN401  # an index
        return self._open(self._table[item])


class S3IterableDataset(_Dataset, datasets.S3IterableDataset[Any]):
    """s3torch's iterable dataset with the arguments of s3torchconnector; see ``s3torch.S3IterableDataset``.

    Args:
        region: Of the bucket.
        get_dataset_objects: Returns the objects, given the client; called for each iteration.
        endpoint: URL of the server; None finds it.
        transform: Makes a sample of a reader.
        s3client_config: See S3ClientConfig.
        enable_sharding: Divide the objects among ranks and workers.
        reader_constructor: Makes the readers; None is sequential.
        reader_config: An older way to choose them.
        reader_type: The oldest way.
    """

    def __init__(
        self,
        region: str,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> None:
        source: Any = get_dataset_objects
        super().__init__(region, source, endpoint, transform, s3client_config, bool(enable_sharding), allow_empty=True)
        self._set_up(s3client_config, reader_constructor, reader_config, reader_type)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not is_of_the_other(state):
            self.__dict__.update(state)
            return
        S3IterableDataset.__init__(self, **_arguments(state))
        self.__dict__.update(_rest(state))

    @classmethod
    def from_prefix(  # type: ignore[override]  # the arguments of s3torchconnector
        cls,
        s3_uri: str,
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> Self:
        """Return a dataset of all objects whose keys begin with a prefix."""
        constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        return cls(
            region,
            Prefix(s3_uri),
            endpoint,
            transform=transform,
            s3client_config=s3client_config,
            enable_sharding=enable_sharding,
            reader_constructor=constructor,
        )

    @classmethod
    def from_objects(  # type: ignore[override]  # the arguments of s3torchconnector
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str,
        endpoint: str | None = None,
        transform: Callable[[Any], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> Self:
        """Return a dataset of the objects that URIs name."""
        constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        return cls(
            region,
            Objects(object_uris),
            endpoint,
            transform=transform,
            s3client_config=s3client_config,
            enable_sharding=enable_sharding,
            reader_constructor=constructor,
        )

    def _get_transformed_object(self, bucket_key: S3BucketKeyData) -> Any:  # noqa: ANN401  # a sample
        return self._transform(self._open(bucket_key))  # for programs' own datasets


def _arguments(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataset was made of that s3torchconnector has pickled."""
    source = state["_get_dataset_objects"]
    if isinstance(source, partial) and source.func is get_objects_from_prefix:
        source = Prefix(*source.args)
    names = ("region", "endpoint", "transform", "s3client_config", "reader_constructor")
    return {"get_dataset_objects": source, **{name: state[f"_{name}"] for name in names}}


def _rest(state: dict[str, Any]) -> dict[str, Any]:
    """Return rank and sharding, and what a class that derives from the dataset has added."""
    ours = {"_get_dataset_objects", "_bucket_key_pairs", "_client", "_region", "_endpoint", "_s3client_config"}
    return {name: value for name, value in state.items() if name not in ours}
