"""The table of a job at a place that all its ranks, its workers and later jobs can read: ``table_at``.

Theory of operation. Whoever finds no table at the place lists, and stores one by a write that replaces nothing
(``If-None-Match: *`` in S3, a hard link among files). Then all read what is there, also those who have stored: so it
does not matter who was first, and nobody uses a listing that is not stored.

- **Who lists.** If ranks meet in a store (see ``job``), whoever of them comes first looks, lists and stores; the others
  are told that it is done, or its error, and read. Else rank 0 lists, and the others look again and again: that the
  place has no table yet is all that they can know. Without known ranks everyone who finds nothing lists.
- **Rank 0 may have died, may have found nothing, or may have no such dataset.** Nothing says so: a note of it would be
  there for the next job as well. So who has waited long lists as well, and gets a table or the same error. Rank 1 does
  after 5 minutes, and every 5 minutes there are twice as many: few repeat a listing that is slow, and of 1,024 ranks
  the last one ends within an hour. An error instead would have to wait longer than any listing takes.
- **Never a wrong table.** It says in its head of what it is. One of another prefix or filter, a damaged one and any
  other file are refused, and stay as they are.
- **Servers that ignore the condition.** The client asks them for the object just before. Two writers may still both
  find none; so who has stored there, or came too late to, pauses before it reads. They differ only if one of them takes
  longer, from its question to the end of its write, than the other pauses.
- A write that fails in the middle leaves nothing to be seen: an object appears when it is complete, a file by its link.
"""

from __future__ import annotations

import io
import logging
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from s3torch.client import S3Client
from s3torch.datasets.filters import Filter, described
from s3torch.datasets.here import rank_and_world_size
from s3torch.datasets.job import JobListing
from s3torch.datasets.objects import ObjectTable
from s3torch.datasets.options import Selection
from s3torch.datasets.sources import Prefix
from s3torch.datasets.table_file import is_table, note_in, read_open_file, write_file
from s3torch.errors import ArgumentError, EmptyDatasetError, ObjectExistsError, ObjectNotFoundError, ObjectTableError
from s3torch.uri import parse_s3_uri

__all__ = ["StoredTable", "check_note", "note_of", "patience_of", "place_of"]

_log = logging.getLogger(__name__)

_SUFFIX = ".s3torch-table"
_PATIENCE = 300.0  # seconds after which rank 1 lists as well; a listing of ten million keys takes less
_FIRST_LOOK, _LAST_LOOK = 0.1, 5.0  # seconds between two looks: 1,024 ranks then ask 300 times a second, of 5,500
_BEGINNING = 64  # bytes that tell a table from any other file
_SETTLE = 1.0  # seconds, at least, until a server that may ignore the condition is asked what there is in the end
_KEPT = "It was left as it is: delete it if nobody needs it, or choose another place by table_at."


# --- Decisions --------------------------------------------------------------------------------------------------------


def place_of(table_at: str | os.PathLike[str] | Literal[True], source: object) -> str | Path:
    """Return where the table of a dataset is kept: the URI of an object, or an absolute path.

    Args:
        table_at: The option.
        source: Of the dataset.

    Raises:
        ArgumentError: The source is no prefix, or the table would be an object of it.
        InvalidURIError: It is no URI of an object.
    """
    if not isinstance(source, Prefix):
        raise ArgumentError(
            f"table_at={table_at!r} is for a prefix, whose listing is kept. The objects of {source!r} are known or are "
            "a program's own: save them once, dataset.objects.save(...), and use from_table."
        )
    bucket, prefix = parse_s3_uri(source.s3_uri)
    if table_at is True:
        if not prefix.endswith("/"):
            raise ArgumentError(
                f"table_at=True keeps the table beside a folder, and {source.s3_uri} does not end in '/': the table "
                f"would be one of its objects. End the prefix with '/', or name a place: "
                f"table_at='s3://bucket/tables/name.table'."
            )
        return f"s3://{bucket}/{prefix[:-1]}{_SUFFIX}"
    if not isinstance(table_at, str) or not table_at.startswith("s3://"):
        return Path(table_at).absolute()
    own_bucket, key = parse_s3_uri(table_at)
    if not key or key.endswith("/"):
        raise ArgumentError(
            f"table_at must name an object or a file, got {table_at!r}. Write 's3://bucket/name.table'."
        )
    if own_bucket == bucket and key.startswith(prefix):
        raise ArgumentError(
            f"table_at={table_at!r} lies in {source.s3_uri}, so the table would be one of the objects that are listed. "
            "Choose a place beside the prefix."
        )
    return table_at


def note_of(source: Prefix, selection: Selection) -> dict[str, object]:
    """Return what a stored table says of itself: of what it is, wherever the server is.

    Raises:
        ArgumentError: The filter has no name that tells it from another one.
    """
    chosen = selection.filter
    if chosen is not None and not isinstance(chosen, Filter):
        name = getattr(chosen, "__qualname__", "<")
        if "<" in name or hasattr(chosen, "__self__") or isinstance(chosen, type):
            raise ArgumentError(
                f"table_at cannot tell the filter {chosen!r} from another one in a later job, and would give that the "
                "wrong objects. Use a Filter, or a function of a module, which is known by its name."
            )
    return {"prefix": source.s3_uri, "filter": described(chosen), "pin_etags": selection.pin_etags}


def check_note(found: object, due: Mapping[str, object], where: str) -> None:
    """Check that a table is that of the dataset.

    Args:
        found: What the table says of itself.
        due: What it must say.
        where: The table is.

    Raises:
        ObjectTableError: It is of something else, or does not say of what; both sides are named.
    """
    if not isinstance(found, dict):
        raise ObjectTableError(
            f"The table of objects at {where} does not say of what it is: it was not stored by table_at. {_KEPT} A "
            "table that was saved is read by from_table."
        )
    different = [
        f"{name} {found.get(name)!r} (here {due.get(name)!r})"
        for name in {**due, **found}
        if name not in found or name not in due or found[name] != due[name] or type(found[name]) is not type(due[name])
    ]
    if different:
        raise ObjectTableError(
            f"The table of objects at {where} is of another dataset: {', '.join(different)}. {_KEPT}"
        )


def patience_of(rank: int) -> float:
    """Return how many seconds a rank waits for the table of another one before it lists as well."""
    return _PATIENCE * (1 + math.log2(rank)) if rank else 0.0


# --- Places -----------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A table, and what it says of itself."""

    table: ObjectTable
    note: object


class _Place(Protocol):
    """Where one table is kept."""

    def find(self) -> _Found | None:
        """Return the table, or None if nothing is there."""

    def store(self, parts: Sequence[memoryview | bytes]) -> None:
        """Store a table, unless something is there by then."""


class _InS3:
    """An object."""

    def __init__(self, client: S3Client, uri: str) -> None:
        self._client = client
        self._uri = uri
        self._bucket, self._key = parse_s3_uri(uri)

    def find(self) -> _Found | None:
        try:
            with self._client.get_object(self._bucket, self._key) as reader:
                content = reader.read(_BEGINNING)
                if is_table(content):  # anything else may be too large to be read
                    content += reader.read()
        except ObjectNotFoundError:
            return None
        return _Found(ObjectTable._from_bytes(content, self._uri), note_in(io.BytesIO(content), self._uri))

    def store(self, parts: Sequence[memoryview | bytes]) -> None:
        began = time.monotonic()
        size = sum(map(len, parts))
        try:
            with self._client.put_object(self._bucket, self._key, if_none_match=True, size=size) as writer:
                for part in parts:
                    writer.write(part)
        except ObjectExistsError:
            pass  # another one was first, or an attempt of this one whose answer was lost
        if not self._client._access.bucket(self._bucket).endpoint.is_amazons:
            # It may ignore the condition: a writer that has asked before this one wrote may be about to replace it.
            time.sleep(max(_SETTLE, 2 * (time.monotonic() - began)))


class _InFile:
    """A file, on a file system that all processes of the job see."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = str(path)

    def find(self) -> _Found | None:
        try:
            with self._path.open("rb") as file:
                table = ObjectTable._checked(*read_open_file(file, self._name), name=self._name)
                file.seek(0)
                return _Found(table, note_in(file, self._name))
        except FileNotFoundError:
            return None

    def store(self, parts: Sequence[memoryview | bytes]) -> None:
        mine = self._path.with_name(f".s3torch-{secrets.token_hex(16)}")
        try:
            write_file(mine, parts)
            os.link(mine, self._path)  # a rename would replace what is there
        except FileExistsError:
            pass  # another one was first
        except OSError as error:
            raise ObjectTableError(
                f"The table of objects cannot be stored at {self._path}: {error}. The directory must be there, be "
                "writable, and know hard links, without which a file that is there may be replaced. Or keep the table "
                "in S3: table_at='s3://bucket/name.table'."
            ) from error
        finally:
            mine.unlink(missing_ok=True)


# --- The table of one dataset -----------------------------------------------------------------------------------------


class StoredTable:
    """The table of a dataset, which is stored by whoever lists first.

    Args:
        source: Of the dataset.
        selection: What belongs to it; its ``table_at`` is the place.
        endpoint: Of the dataset, which tells it from others of the process.

    Raises:
        ArgumentError: There can be no such table of it; see ``place_of`` and ``note_of``.
    """

    def __init__(self, source: object, selection: Selection, endpoint: str | None) -> None:
        table_at: Any = selection.table_at  # neither None nor False
        self._at = place_of(table_at, source)
        self._note = note_of(source, selection) if isinstance(source, Prefix) else {}
        self._allow_empty = selection.allow_empty
        self._job = JobListing(f"{self._at} {self._note} {endpoint}")
        self._ranks = rank_and_world_size()

    def __repr__(self) -> str:
        return f"<StoredTable at {self._at}>"

    def __getstate__(self) -> dict[str, object]:
        # A process that is not forked has no process group: it is told which rank it is of.
        return {**self.__dict__, "_ranks": rank_and_world_size(self._ranks)}

    def agree(self, client: S3Client, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """Return the table that is stored, which is the same for all; list and store it if there is none.

        Args:
            client: Reads and writes it.
            list_objects: Returns the objects of the dataset, or raises if there are none.

        Raises:
            EmptyDatasetError: There are no objects, and that was not allowed. Nothing is stored.
            ObjectTableError: What is stored is of another dataset, damaged or no table, or a file cannot be stored.
            S3Error: The listing failed, here or on the rank that came first, or S3 did not take or give the table.
            OSError: The file could not be read.
        """
        place: _Place = _InFile(self._at) if isinstance(self._at, Path) else _InS3(client, self._at)
        if not self._job.has_store:
            found = self._awaited(place)
            return self._made(place, list_objects) if found is None else found
        led: list[ObjectTable] = []

        def lead() -> ObjectTable:
            found = self._find(place)
            led.append(self._made(place, list_objects) if found is None else found)
            return ObjectTable()  # that the table is there is all that the others need to know

        self._job.agree("stored", lead)
        return led[-1] if led else self._stored(place)

    def _awaited(self, place: _Place) -> ObjectTable | None:
        """Return the table; None if there is none, and it is for this process to list."""
        rank, _ = rank_and_world_size(self._ranks)
        patience = patience_of(rank)
        began = time.monotonic()
        pause = _FIRST_LOOK
        while (table := self._find(place)) is None:
            left = began + patience - time.monotonic()
            if left <= 0:
                if rank:
                    _log.warning("There is no table at %s after %.0f s: rank %d lists, too", self._at, patience, rank)
                return None
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # so that ranks do not ask together
            pause = min(1.5 * pause, _LAST_LOOK)
        return table

    def _made(self, place: _Place, list_objects: Callable[[], ObjectTable]) -> ObjectTable:
        """List, and store the table; return what is stored then, which may be another one's."""
        place.store(list_objects()._to_bytes(self._note))
        return self._stored(place)

    def _stored(self, place: _Place) -> ObjectTable:
        table = self._find(place)
        if table is None:
            raise ObjectTableError(f"The table of objects at {self._at} was stored, and is gone: somebody deletes it.")
        return table

    def _find(self, place: _Place) -> ObjectTable | None:
        """Return the table that is at the place, or None if nothing is.

        Raises:
            ObjectTableError: It is none of the dataset.
            EmptyDatasetError: It has no object, and that is not allowed here.
        """
        try:
            found = place.find()
        except ObjectTableError as error:
            error.args = (f"{error.args[0]} {_KEPT}",)
            raise
        if found is None:
            return None
        check_note(found.note, self._note, str(self._at))
        if not found.table and not self._allow_empty:
            raise EmptyDatasetError(
                f"The table at {self._at} has no object: it was stored by a dataset that may be empty. {_KEPT}"
            )
        return found.table
