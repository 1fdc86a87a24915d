"""Samples that are more than the reader of one object: of which objects they are made, and their readers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from s3torch._buffer import as_index
from s3torch.datasets.grouping import Grouping, Groups, group
from s3torch.datasets.labels import Labelling, Labels, label
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.errors import ConcurrentUseError
from s3torch.readers import S3Reader

__all__ = ["Item", "Items", "SampleData", "SampleReaders", "SampleTable"]


class SampleData(NamedTuple):
    """What one sample is made of.

    Attributes:
        names: Of the objects within the sample; None: the sample is a single object.
        objects: At least one.
        target: The index of its class; None: the dataset has no labels.
    """

    names: tuple[str, ...] | None
    objects: tuple[S3BucketKeyData, ...]
    target: int | None

    @property
    def bucket(self) -> str:
        """The bucket of the first object."""
        return self.objects[0].bucket

    @property
    def key(self) -> str:
        """The key of the first object: what the sample is called in errors."""
        return self.objects[0].key

    @property
    def object_info(self) -> object | None:
        """What a listing told of the first object; None if the size of any is not known."""
        return None if any(item.object_info is None for item in self.objects) else self.objects[0].object_info


Item = S3BucketKeyData | SampleData  # what one sample is made of


class SampleReaders(Mapping[str, S3Reader]):
    """The readers of the objects of one sample, by their names in it, such as ``sample[".jpg"]``.

    They are fetched together. After an error all of them are closed.

    Args:
        readers: By the names.
        max_bytes: How many bytes are fetched before they are read, at most; the first reader's in any case.
    """

    def __init__(self, readers: Mapping[str, S3Reader], max_bytes: int) -> None:
        self._readers = dict(readers)
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._readers!r}>"

    def __getitem__(self, name: str) -> S3Reader:
        return self._readers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def prefetch(self, *, send: bool = True) -> None:
        """Begin to fetch the objects, without waiting; see ``S3Reader.prefetch``."""
        for reader in self._together():
            reader.prefetch(send=send)

    def close(self) -> None:
        """Close all readers.

        Raises:
            ConcurrentUseError: Another thread is in the middle of a call of one; all others are closed.
        """
        in_use: ConcurrentUseError | None = None
        for reader in self._readers.values():
            try:
                reader.close()
            except ConcurrentUseError as error:
                in_use = error
        try:
            if in_use is not None:
                raise in_use
        finally:
            del in_use  # a frame that raised one of its own variables would be a cycle

    def expect(self, size: int) -> None:
        """Say how large the sample probably is: each object of unknown size may be all of it."""
        for reader in self._readers.values():
            if reader.known_size is None:
                reader.expect(size)

    @property
    def known_size(self) -> int | None:
        """Bytes of the objects whose sizes are known; None if that is none of them."""
        known = [size for reader in self._readers.values() if (size := reader.known_size) is not None]
        return sum(known) if known else None

    @property
    def footprint(self) -> int:
        """The bytes that ``prefetch`` fetches at most."""
        return sum(reader.footprint for reader in self._together())

    def _together(self) -> Iterator[S3Reader]:
        """Yield the readers that are fetched ahead: as many as fit, from the first one on."""
        total = 0
        for reader in self._readers.values():
            footprint = reader.footprint
            if total and total + footprint > self._max_bytes:
                return
            total += footprint
            yield reader


class SampleTable:
    """What the samples of a dataset are made of, by their indices.

    Args:
        objects: All of the dataset.
        grouping: Which are samples together; None: each is one.
        labelling: Names the class of an object; None: there are no labels.

    Attributes:
        objects: All of the dataset.
        labels: Of the samples, or None.

    Raises:
        ArgumentTypeError: ``grouping`` or ``labelling`` has returned something else than it should.
        SampleLayoutError: The objects do not make the samples that were asked for.
    """

    def __init__(self, objects: ObjectTable, grouping: Grouping | None, labelling: Labelling | None) -> None:
        self.objects = objects
        self._groups: Groups | None = None if grouping is None else group(objects, grouping)
        self.labels: Labels | None = None if labelling is None else label(objects, self._groups, labelling)

    def __len__(self) -> int:
        return len(self.objects) if self._groups is None else len(self._groups)

    def __getitem__(self, index: int) -> SampleData:
        """Return what a sample is made of; negative indices count from the end.

        Raises:
            IndexError: There is no such sample.
        """
        index = as_index("index", index)
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"list index out of range: there are {count} samples")
        index %= count
        target = None if self.labels is None else self.labels.targets[index]
        groups = self._groups
        if groups is None:
            return SampleData(None, (self.objects[index],), target)
        start, end = groups.ends[index - 1] if index else 0, groups.ends[index]
        kinds: array[int] = groups.kinds[start:end]
        objects = tuple(self.objects[each] for each in groups.members[start:end])
        return SampleData(tuple(groups.names[kind] for kind in kinds), objects, target)


Items = ObjectTable | SampleTable  # what all samples of a dataset are made of
