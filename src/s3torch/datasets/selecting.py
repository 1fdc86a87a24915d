"""The objects of a source that belong to a dataset; that there are none is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches

from s3torch.client import S3Client
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import Selection
from s3torch.datasets.sources import Known, Prefix
from s3torch.errors import ArgumentError, EmptyDatasetError, S3Error
from s3torch.uri import parse_s3_uri

__all__ = ["select", "select_from_table"]

_NEAREST = 3  # prefixes that an error names


def select_from_table(objects: ObjectTable, selection: Selection, source: object, client: S3Client) -> ObjectTable:
    """Return the objects of a table that belong to the dataset.

    Args:
        objects: All of the source.
        selection: What belongs to it.
        source: Where they come from, for the error.
        client: Looks for the nearest prefixes, for the error.

    Raises:
        EmptyDatasetError: There are none, and that was not allowed.
        ArgumentError: They are to have ETags, and one has none.
    """
    chosen = objects
    if selection.filter is not None:
        chosen = objects._chosen(selection.filter)
    if not chosen and not selection.allow_empty:
        raise _empty(len(objects), selection, source, client)
    if selection.pin_etags and (unpinned := chosen._first_unpinned()) is not None:
        raise _unpinned(chosen[unpinned], source)
    return chosen


def select(
    objects: Iterable[S3BucketKeyData], selection: Selection, source: object, client: S3Client
) -> Iterable[S3BucketKeyData]:
    """Return the objects that belong to the dataset, as they become known; see ``select_from_table``.

    That there are none is raised when the first one is asked for.
    """
    if isinstance(objects, ObjectTable):
        return select_from_table(objects, selection, source, client)
    if selection.filter is None and selection.allow_empty and not selection.pin_etags:
        return objects
    unpinned = (lambda item: _unpinned(item, source)) if selection.pin_etags else None
    return _Selected(objects, selection, lambda seen: _empty(seen, selection, source, client), unpinned)


class _Selected(Iterator[S3BucketKeyData]):
    """Objects that belong to a dataset. No generator: that would end after an error, as if all had come."""

    def __init__(
        self,
        objects: Iterable[S3BucketKeyData],
        selection: Selection,
        empty: Callable[[int], EmptyDatasetError],
        unpinned: Callable[[S3BucketKeyData], ArgumentError] | None,
    ) -> None:
        self._objects = iter(objects)
        self._belongs = selection.filter
        self._empty = None if selection.allow_empty else empty
        self._unpinned = unpinned
        self._seen = 0

    def __next__(self) -> S3BucketKeyData:
        while True:
            try:
                item = next(self._objects)
            except StopIteration:
                if self._empty is None:
                    raise
            else:
                self._seen += 1
                if self._belongs is None or self._belongs(item):
                    if self._unpinned is not None and not (item.object_info and item.object_info.etag):
                        raise self._unpinned(item)
                    self._empty = None
                    return item
                continue
            raise self._empty(self._seen)


def _place_of(source: object) -> str:
    if isinstance(source, (Known, Prefix)):
        return source.origin if isinstance(source, Known) else source.s3_uri
    return "the dataset's source"


def _unpinned(item: S3BucketKeyData, source: object) -> ArgumentError:
    return ArgumentError(
        f"pin_etags=True needs size and ETag of each object, and {_place_of(source)} does not tell both of "
        f"s3://{item.bucket}/{item.key}. Use a prefix, a table that was made with pin_etags=True, or a manifest with "
        "ETags; a get_dataset_objects has to pass on the object_info of a listing."
    )


def _empty(seen: int, selection: Selection, source: object, client: S3Client) -> EmptyDatasetError:
    where = _place_of(source)
    allowed = "Pass allow_empty=True if that may be."
    if seen:
        return EmptyDatasetError(
            f"The filter {selection.filter!r} leaves none of the {seen} objects of {where}. {allowed}"
        )
    near = _nearest(source, client) if isinstance(source, Prefix) else []
    hint = f" Near it there are: {', '.join(near)}." if near else ""
    return EmptyDatasetError(f"There is no object in {where}.{hint} {allowed}")


def _nearest(source: Prefix, client: S3Client) -> list[str]:
    """Return the prefixes that exist and are most like one that has no object, looking up its folders."""
    bucket, prefix = parse_s3_uri(source.s3_uri)
    folder = prefix
    while folder:
        folder = folder.rstrip("/").rpartition("/")[0]
        folder += "/" if folder else ""
        try:
            page = next(iter(client.list_objects(bucket, folder, delimiter="/")))
        except S3Error:  # the error to be told is another one
            return []
        found = [*page.common_prefixes, *(info.key for info in page.object_info)]
        if found:
            likely = get_close_matches(prefix, found, _NEAREST, 0.3) or found[:_NEAREST]
            return [f"s3://{bucket}/{each}" for each in likely]
    return []
