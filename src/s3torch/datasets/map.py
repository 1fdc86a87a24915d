"""S3MapDataset: samples by index."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

from torch.utils.data import Dataset, StackDataset

from s3torch._buffer import as_index
from s3torch._forks import NO_FORK
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.datasets.bad_samples import RAISE, SKIP, said
from s3torch.datasets.base import GetDatasetObjects, S3Dataset, identity
from s3torch.datasets.labels import Labels
from s3torch.datasets.manifest import Manifest
from s3torch.datasets.members import Item, Items, SampleTable
from s3torch.datasets.objects import ObjectTable
from s3torch.datasets.options import DatasetOptions, MapOptions, Transform
from s3torch.datasets.sources import Objects, Prefix, Source, Table
from s3torch.datasets.windows import Windows
from s3torch.errors import BadSamplesError, ConcurrentUseError
from s3torch.readers import S3Reader

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["S3MapDataset"]

T_co = TypeVar("T_co", covariant=True)


class S3MapDataset(S3Dataset[T_co], Dataset[T_co]):
    """A map-style dataset over objects in S3: ``dataset[i]`` is ``transform`` of a reader of the i-th object.

    Nothing is listed before the first ``len()`` or ``[i]``; the listing is then kept for the life of the dataset, as
    ``objects``. DataLoader workers inherit it. If they start without it, the first of them lists, and all others, and
    the process that made the dataset, take its listing from a directory for temporary files (not on Windows, where each
    lists by itself: ask for ``len(dataset)`` before).

    The ranks of a job list once, too: they meet in the TCP store of their process group, or of torchrun; see
    docs/loader.md. Ranks that have no such store list by themselves. If the prefix may change while such a job starts,
    say where the table is kept for all of them: ``table_at``.

    A subclass is made by ``from_prefix`` and its siblings, too, if its constructor takes the
    arguments of this one.

    Args:
        region: Of the bucket; None finds it.
        get_dataset_objects: A source (Prefix, Objects, Table, Manifest), or what returns the objects, given the client.
            Mostly ``from_prefix`` or one of its siblings is used instead.
        endpoint: URL of the server; None finds it.
        transform: Makes a sample of a reader, or of a SampleReaders if ``samples`` is given. With DataLoader workers
            that are not forked it must pickle: a function of a module, not a lambda.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``transform`` gets; None is ``S3ReaderConfig.sequential()``.
        options: See DatasetOptions.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ConfigError: The endpoint is not a URL.
    """

    _kind = "map"

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: GetDatasetObjects,
        endpoint: str | None = None,
        transform: Transform[T_co] = identity,  # type: ignore[assignment]  # T_co is S3Reader then
        s3client_config: S3ClientConfig | None = None,
        reader_config: S3ReaderConfig | None = None,
        **options: Unpack[DatasetOptions],
    ) -> None:
        super().__init__(region, get_dataset_objects, endpoint, transform, s3client_config, reader_config, options)
        self._listed: ObjectTable | None = None
        self._windows = Windows()

    @classmethod
    def from_source(cls, source: Source, **options: Unpack[MapOptions[T_co]]) -> Self:
        """Return a dataset of the objects of a source.

        Args:
            source: Prefix, Objects, Table or Manifest.
            options: See MapOptions.

        Raises:
            S3Error: What the source is made of could not be read.
        """
        return cls._of(source, options)

    @classmethod
    def from_prefix(cls, s3_uri: str, **options: Unpack[MapOptions[T_co]]) -> Self:
        """Return a dataset of all objects whose keys begin with a prefix, in the order of their keys; see Prefix.

        Args:
            s3_uri: ``s3://bucket/prefix``; the prefix is a string, not a directory.
            options: See MapOptions.

        Raises:
            InvalidURIError: ``s3_uri`` is not of that form.
        """
        return cls._of(Prefix(s3_uri), options)

    @classmethod
    def from_objects(cls, object_uris: str | Iterable[str], **options: Unpack[MapOptions[T_co]]) -> Self:
        """Return a dataset of the objects that URIs name, in their order; see Objects.

        Args:
            object_uris: ``s3://bucket/key`` each; a single string is one object.
            options: See MapOptions.

        Raises:
            InvalidURIError: A URI is not of that form.
        """
        return cls._of(Objects(object_uris), options)

    @classmethod
    def from_table(cls, table: ObjectTable | str | os.PathLike[str], **options: Unpack[MapOptions[T_co]]) -> Self:
        """Return a dataset of the objects of a table, in its order: nothing is listed; see Table.

        Args:
            table: Another dataset's ``objects``, or the path or S3 URI where ``ObjectTable.save`` put it. That is read
                once, here.
            options: See MapOptions.

        Raises:
            ObjectTableError: What is there is no saved table, or damaged.
            S3Error: The table could not be read from S3.
            OSError: The table could not be read from a file.
        """
        return cls._of(Table(table), options)

    @classmethod
    def from_manifest(cls, place: str | os.PathLike[str], **options: Unpack[MapOptions[T_co]]) -> Self:
        """Return a dataset of the objects that a file names, in its order: nothing is listed; see Manifest.

        Args:
            place: The path or S3 URI of a saved table, of CSV, JSON Lines or Parquet with a column ``uri``, or of the
                ``manifest.json`` of an S3 Inventory. It is read once, here. To say which of them it is, use
                ``from_source(Manifest(place, format=...))``.
            options: See MapOptions.

        Raises:
            ManifestError: A line is none of an object, the file is damaged, or of another format.
            ObjectTableError: It is a saved table that is damaged.
            S3Error: It could not be read from S3.
            OSError: It could not be read from a file.
        """
        return cls._of(Manifest(place), options)

    def __repr__(self) -> str:
        # Grain compares this text to tell whether a state of its own is of the same data.
        listed = self._listed
        state = "not listed yet" if listed is None else f"{len(listed)} objects, digest {listed.digest}"
        return f"<{type(self).__name__} {state}, reader {self._reader_config.get_reader_type_string()}>"

    @property
    def objects(self) -> ObjectTable:
        """The objects, in order; lists them if that was not done before. It can be saved for the next job."""
        return self._table

    def __len__(self) -> int:
        """Return the number of samples; lists the objects if that was not done before."""
        return len(self._items)

    def __getitem__(self, index: SupportsIndex) -> T_co:
        """Return a sample; negative indices count from the end.

        Raises:
            IndexError: There is no such sample.
            ArgumentTypeError: The index is no integer (slices are not supported).
            S3Error: The object could not be read; the other transfers of the sample are cancelled. Skip without
                ``fill`` does not help here: an index is one sample. Nor does ``fill`` where the ``__getitem__`` of a
                subclass calls this: it may add to a sample what belongs to its index. A batch then fills in by that.
            Exception: Whatever the transform raised.
        """
        index = as_index("index", index)
        item = self._items[index]
        try:
            return self._read(item)
        except Exception as error:  # what is of this sample may be skipped
            place = range(len(self._items))[index]
            fills = not (self._is_overridden or _is_for_stack())
            found = self._bad_samples.answer(error, item, place, is_alone=True, fills=fills)
            if found is RAISE:
                raise
        return self._next_good(place, self._made) if found is SKIP else found  # type: ignore[return-value]  # the program's

    def _read(self, item: Item) -> T_co:
        """Return the sample of an item alone; the objects of one that has several are fetched together."""
        reader = self._open(item)
        if isinstance(reader, S3Reader) or self._transform is identity:
            return self._sample(item, reader)
        try:
            reader.prefetch()
            return self._sample(item, reader)
        except BaseException:
            with suppress(ConcurrentUseError):  # the transform has given one to another thread
                reader.close()
            raise

    @property
    def __getitems__(self) -> Callable[[Sequence[SupportsIndex]], list[T_co]]:
        """Returns the samples of a batch, whose objects are fetched concurrently; a DataLoader calls this.

        If the indices come from a LookAheadBatchSampler, the objects of the next batch are begun as well. A subclass
        that has a ``__getitem__`` of its own gets one call of it for each sample.

        Raises:
            IndexError: There is no such object.
            S3Error: An object could not be read; the other transfers are cancelled.
            BadSamplesError: More samples were skipped than may be; or one was, and a StackDataset asks.
            AttributeError: A wrapper of this dataset passes on whatever it is asked for. It may have a ``__getitem__``
                of its own, which a DataLoader is to call.
        """
        if not _caller_names("__getitems__"):
            raise AttributeError("__getitems__ is this dataset's own, and not that of a wrapper.")
        return self._samples_for_stack if _is_for_stack() else self._samples

    def _samples_for_stack(self, indices: Sequence[SupportsIndex]) -> list[T_co]:
        """Return the samples of a batch, each of which is put together with another dataset's of the same index."""
        before = self.skipped
        samples = self._samples(indices)
        if count := self.skipped - before:
            samples.clear()  # whoever keeps the error keeps this frame
            raise BadSamplesError(
                f"{count} samples of a batch were skipped, as the log says, and StackDataset would put others in their "
                "places together with what does not belong to them. Where objects belong together make one dataset of "
                'them, by samples=by_stem(...); or leave on_error="raise" there.'
            )
        return samples

    def _samples(self, indices: Sequence[SupportsIndex]) -> list[T_co]:
        wanted = [as_index("index", index) for index in indices]
        if self._is_overridden or self._transform is identity:  # whose readers are kept, unread: there is no hurry
            return self._one_by_one(wanted)
        plan = [*wanted, *getattr(indices, "upcoming", ())]
        call = object()
        try:
            return self._read_batch(plan, len(wanted), call)
        except BaseException:
            self._windows.cancel(call)
            raise

    def _read_batch(self, plan: Sequence[int], count: int, call: object) -> list[T_co]:
        """Return the samples of the first objects, and begin those behind them.

        Args:
            plan: Indices.
            count: How many of them are wanted now.
            call: Owns what is begun.
        """
        window = self._windows.claim(plan, call)
        if window is None:
            window = self._new_look_ahead()
        window.go_on()
        items = ((index, self._items[index]) for index in plan[len(window) :])
        samples: list[T_co] = []
        begun = None
        try:
            for index in plan[:count]:
                try:
                    begun = window.take(items, self)
                    if begun is not None and begun.place == index:
                        samples.append(self._sample(begun.item, begun.reader))
                except Exception as error:
                    bad = window.failed if begun is None else (begun.place, begun.item)
                    window.discard(begun)  # it alone: what was begun behind it goes on
                    if bad is None or not self._is_answered(error, *bad, samples):
                        raise
                else:
                    if begun is None or begun.place != index:
                        raise AssertionError(f"object {index} is due and {begun} was begun")
                if begun is not None:
                    window.settle(begun)
                begun = None  # and with it what its reader holds
            if not samples and count:
                samples.append(self._next_good(range(len(self._items))[plan[count - 1]], self._made))
            if len(window):
                self._nudge(0.0)  # whoever asked for so many will be busy with them
            self._windows.give_back(window, call)
        except BaseException:
            window.discard(begun)
            window.cancel()
            samples.clear()  # whoever keeps the error keeps this frame
            raise
        return samples

    def _is_answered(self, error: Exception, index: int, item: Item, samples: list[T_co]) -> bool:
        """Add what takes the place of a bad sample to a batch, if anything does; whether the batch goes on."""
        place = range(len(self._items))[index]
        return self._is_put(self._bad_samples.answer(error, item, place), place, samples, self._made)

    def _one_by_one(self, wanted: Sequence[int]) -> list[T_co]:
        """Return the samples of a batch by ``__getitem__``, which may be that of a subclass."""
        samples: list[T_co] = []
        try:
            for index in wanted:
                try:
                    samples.append(self[index])
                except Exception as error:
                    if self._listed is None or not -len(self) <= index < len(self):
                        raise  # the listing has failed, or there is no such sample
                    place = range(len(self))[index]
                    found = self._bad_samples.answer_again(error, self._item_of(place), place)
                    if not self._is_put(found, place, samples, self.__getitem__):
                        raise
            if not samples and wanted:
                samples.append(self._next_good(range(len(self))[wanted[-1]], self.__getitem__))
        except BaseException:
            samples.clear()  # whoever keeps the error keeps this frame
            raise
        return samples

    def _is_put(self, found: object, place: int, samples: list[T_co], make: Callable[[int], T_co]) -> bool:
        """Do with a bad sample what was found for it; whether its error need not be raised."""
        if found is RAISE:
            return False
        if found is not SKIP:
            samples.append(found)  # type: ignore[arg-type]  # what the program wants as a sample
        elif self._bad_samples.fills:
            samples.append(self._next_good(place, make))
        return True

    def _next_good(self, place: int, make: Callable[[int], T_co]) -> T_co:
        """Return the next sample by index that can be made; behind the last comes the first.

        Args:
            place: Of the one that cannot.
            make: Makes a sample.

        Raises:
            BadSamplesError: There is none, or more failed than may be skipped.
        """
        count, last = len(self), ""
        for step in range(1, count):
            other = (place + step) % count
            try:
                return make(other)
            except Exception as error:
                found = self._bad_samples.answer_again(error, self._item_of(other), other)
                if found is RAISE:
                    raise
                last = f" The last error: {said(error)}"
            if found is not SKIP:
                return found  # type: ignore[return-value]  # what the program wants as a sample
        raise BadSamplesError(f"None of the {count} samples of the dataset can be made.{last}")

    def _made(self, index: int) -> T_co:
        return self._read(self._items[index])

    def _item_of(self, place: int) -> Item | None:
        """Return what a sample is made of; None in a subclass whose indices may mean something else."""
        is_ours = not self._is_overridden or type(self).__len__ is S3MapDataset.__len__
        return self._items[place] if is_ours else None

    @property
    def _is_overridden(self) -> bool:
        """Whether a subclass has a ``__getitem__`` of its own, which alone makes its samples."""
        return type(self).__getitem__ is not S3MapDataset.__getitem__

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_windows": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({**state, "_windows": Windows()})

    @property
    def _items(self) -> Items:
        """What each sample is made of."""
        return self._sample_table if self._selection.makes_samples else self._table

    @property
    def _sample_table(self) -> SampleTable:
        if self._known_samples is None:
            made = self._samples_of(self._table)
            with NO_FORK:  # a lock of all threads as well
                if self._known_samples is None:
                    self._known_samples = made
        return self._known_samples

    @property
    def _labels(self) -> Labels | None:
        return None if self._selection.labels is None else self._sample_table.labels

    @property
    def _table(self) -> ObjectTable:
        return self._list_once() if self._listed is None else self._listed

    def _list_once(self) -> ObjectTable:
        """List, in agreement with all processes and threads that have this dataset."""
        if not self._is_listed:
            return self._keep(self._list_objects())
        alone: ObjectTable | None = None
        if not self._one_listing.is_shared:
            alone = self._list_objects()
            with NO_FORK:  # who is forked from here on has the table
                if not self._one_listing.is_shared:
                    return self._keep(alone)
        return self._keep(self._one_listing.agree("objects", lambda: self._list_objects() if alone is None else alone))

    def _keep(self, table: ObjectTable) -> ObjectTable:
        with NO_FORK:  # a lock of all threads as well: the first one's table is that of all
            if self._listed is None:
                self._listed = table
            return self._listed


def _caller_names(name: str) -> bool:
    """Whether the code that asks for an attribute of this module's dataset has its name in it.

    A DataLoader asks ``hasattr(dataset, "__getitems__")``, and calls that instead of ``dataset[index]``. A wrapper that
    passes on every attribute (``getattr(self.wrapped, name)``) would answer with our method, so that its own
    ``__getitem__`` were never called, and its labels lost, without an error. Nothing that is handed to us tells the two
    apart, so this looks at the caller: what wants batches has the name in its code, what passes on any name has not.
    """
    code = sys._getframe(2).f_code
    return name in code.co_names or name in code.co_consts


def _is_for_stack() -> bool:
    """Whether the code that asks this module's dataset for samples is a StackDataset of torch.

    That takes the samples of several datasets for those of the same indices. What fills in for a bad one would be put
    together with what belongs to that one, without an error, so this looks at the caller.
    """
    frame = sys._getframe(2)
    for _ in range(2):  # it itself, or a comprehension in it
        if isinstance(frame.f_locals.get("self"), StackDataset):
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
