"""Where the objects of a dataset come from: values that list, compare and pickle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from s3torch.client import S3Client
from s3torch.datasets.listing import list_table
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData, list_prefix, table_of_uris
from s3torch.errors import ArgumentTypeError
from s3torch.uri import parse_s3_uri

__all__ = ["Known", "Objects", "Prefix", "Source", "Table", "buckets_of"]


@runtime_checkable
class Source(Protocol):
    """Where the objects of a dataset come from.

    Attributes:
        is_listed: Whether the server is asked which objects there are: two times may then differ.
    """

    is_listed: ClassVar[bool]

    def __call__(self, client: S3Client, /) -> Iterable[S3BucketKeyData]:
        """Return the objects as they become known."""

    def table(self, client: S3Client, /, *, etags: bool = False) -> ObjectTable:
        """Return all objects, which takes fewer round trips than to wait for one page after the other.

        Args:
            client: Sends the requests.
            etags: Whether the table is to have ETags, where the source tells them.
        """

    def opened(self, client: S3Client, /) -> Source:
        """Return the source with what it is made of read, once: a dataset asks for this when it is made."""


@dataclass(frozen=True)
class Prefix:
    """All objects whose keys begin with a prefix, in the order of their keys.

    Markers of directories (0-byte keys that end in ``/``) are left out.

    Args:
        s3_uri: ``s3://bucket/prefix``; the prefix is a string, not a directory.

    Raises:
        InvalidURIError: ``s3_uri`` is not of that form.
        ArgumentTypeError: It is not a string.
    """

    s3_uri: str
    is_listed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        parse_s3_uri(self.s3_uri)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Yield the objects as their pages come."""
        return list_prefix(client, *parse_s3_uri(self.s3_uri))

    def table(self, client: S3Client, *, etags: bool = False) -> ObjectTable:
        """Return all objects, listed many pages at a time."""
        return list_table(client, *parse_s3_uri(self.s3_uri), etags=etags)

    def opened(self, _client: S3Client) -> Prefix:
        """Return this: it is listed when the objects are asked for."""
        return self


class Known:
    """Objects that are in a table.

    Args:
        table: They.
        origin: Where they come from, for errors.
    """

    is_listed: ClassVar[bool] = False

    def __init__(self, table: ObjectTable, origin: str = "the dataset's source") -> None:
        self._objects = table
        self.origin = origin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self._objects._identity == other._objects._identity

    def __hash__(self) -> int:
        return hash(self._objects.digest)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._objects!r}>"

    def __call__(self, _client: S3Client) -> ObjectTable:
        """Return the objects."""
        return self._objects

    def table(self, _client: S3Client, *, etags: bool = False) -> ObjectTable:  # noqa: ARG002  # it has them or not
        """Return the objects."""
        return self._objects

    def opened(self, _client: S3Client) -> Known:
        """Return this: all is known."""
        return self


class Objects(Known):
    """The objects that URIs name, in their order.

    Args:
        object_uris: ``s3://bucket/key`` each; a single string is one object. They are read once, here, so that a
            generator serves more than one epoch.

    Raises:
        InvalidURIError: A URI is not of that form.
        ArgumentTypeError: It is neither a string nor an iterable of strings.
    """

    def __init__(self, object_uris: str | Iterable[str]) -> None:
        super().__init__(table_of_uris(object_uris))


@dataclass(frozen=True)
class Table:
    """The objects of a table, in its order: nothing is listed.

    Args:
        place: Another dataset's ``objects``, or the path or S3 URI where ``ObjectTable.save`` put it. That is read
            when a dataset is made of it, once.

    Raises:
        ArgumentTypeError: It is none of these.
    """

    place: ObjectTable | str | os.PathLike[str]
    is_listed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.place, (ObjectTable, str, os.PathLike)):
            raise ArgumentTypeError(f"A table of objects is an ObjectTable, a path or an S3 URI, got {self.place!r}.")

    def __call__(self, client: S3Client) -> ObjectTable:
        """Return the objects."""
        return self.table(client)

    def table(self, client: S3Client, *, etags: bool = False) -> ObjectTable:  # noqa: ARG002  # it has them or not
        """Return the objects.

        Raises:
            ObjectTableError: What is there is no saved table, or damaged.
            S3Error: It could not be read from S3.
            OSError: It could not be read from a file.
        """
        return self.place if isinstance(self.place, ObjectTable) else ObjectTable.load(self.place, client=client)

    def opened(self, client: S3Client) -> Known:
        """Return the objects; raises what ``table`` does."""
        table = self.table(client)
        return Known(table) if table is self.place else Known(table, str(self.place))


def buckets_of(source: object) -> tuple[str, ...]:
    """Return the bucket that objects of a source lie in, the first one's; nothing if that must be asked for.

    It serves to prepare for them. Others are found where they are used.
    """
    if isinstance(source, Prefix):
        return parse_s3_uri(source.s3_uri)[:1]
    if isinstance(source, Known) and len(source._objects):
        return (source._objects[0].bucket,)
    return ()
