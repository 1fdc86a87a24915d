"""The class of each sample: by the folder in which its objects lie, as in torchvision's ImageFolder, or by a column."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.utils.data

from s3torch.datasets.grouping import Groups, first_of, numbers, uri_of
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.sources import Known, Prefix
from s3torch.errors import ArgumentError, ArgumentTypeError, ObjectTableError, SampleLayoutError
from s3torch.uri import parse_s3_uri

__all__ = [
    "ByColumn",
    "ByFolder",
    "FirstClasses",
    "Labelling",
    "Labels",
    "by_column",
    "by_folder",
    "check_column",
    "check_labelling",
    "label",
    "within",
]

_NO_CLASS = -1
_INTEGER = re.compile("0|-?[1-9][0-9]{0,99}")  # as Python writes them; longer ones it would not read


@dataclass(frozen=True)
class ByColumn:
    """Names the class of an object by a column of the manifest that names it; made by ``by_column``."""

    column: str
    classes: tuple[str, ...] | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.column, str):
            raise ArgumentTypeError(f"by_column needs the name of a column, got {self.column!r}.")
        _check_classes(self.classes, allow_empty=self.allow_empty)

    def __repr__(self) -> str:
        return f"by_column({', '.join([repr(self.column), *_given(self)])})"


Labelling = Callable[[S3BucketKeyData], "str | None"] | ByColumn


@dataclass(frozen=True)
class ByFolder:
    """Names the class of an object by a folder of its key; made by ``by_folder``."""

    below: str | None = None
    classes: tuple[str, ...] | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if self.below is not None:
            parse_s3_uri(self.below)
        _check_classes(self.classes, allow_empty=self.allow_empty)

    def __repr__(self) -> str:
        below = [f"below={self.below!r}"] if self.below is not None else []
        return f"by_folder({', '.join([*below, *_given(self)])})"

    def __call__(self, item: S3BucketKeyData) -> str | None:
        """Return the name of the folder; None if the object lies in none."""
        if self.below is None:
            return item.key.rpartition("/")[0].rpartition("/")[2] or None
        bucket, prefix = parse_s3_uri(self.below)
        rest = item.key[len(prefix) :]
        if item.bucket != bucket or not item.key.startswith(prefix):
            return None
        if prefix and not prefix.endswith("/"):
            # A prefix is a string: below "train" lies "train/cat/1", and "train2/cat/1" does not.
            if not rest.startswith("/"):
                return None
            rest = rest[1:]
        folder, slash, _ = rest.partition("/")
        return folder if slash and folder else None


def by_folder(below: str | None = None, *, classes: Iterable[str] | None = None, allow_empty: bool = False) -> ByFolder:
    """Return what names the class of a sample by the folder in which it lies.

    Below ``s3://bucket/train/``, the class of ``train/cat/1.jpg`` and of ``train/cat/young/2.jpg`` is ``cat``.

    Args:
        below: ``s3://bucket/prefix``: the first folder below it names the class. None: that is the prefix of the
            dataset; of a dataset that is made of URIs or a table, the last folder of the key names the class.
        classes: Names of all classes; their order is that of the indices, so that datasets of several parts agree.
            None: those of the folders that there are, sorted.
        allow_empty: Whether one of ``classes`` may have no sample.

    Raises:
        InvalidURIError: ``below`` is not of that form.
        ArgumentError: ``classes`` are none, or one comes twice.
        ArgumentTypeError: A name is no string.
    """
    if isinstance(classes, str):
        raise ArgumentTypeError(f"classes must be a list of names, got {classes!r}.")
    return ByFolder(below, None if classes is None else tuple(classes), allow_empty)


def by_column(column: str, *, classes: Iterable[str | int] | None = None, allow_empty: bool = False) -> ByColumn:
    """Return what names the class of a sample by a column of the manifest that the dataset is made of.

    The column has text, or integers, whose text is the name of the class. A table that such a dataset has saved keeps
    the column.

    Args:
        column: Its name in the manifest; upper and lower case count.
        classes: Names of all classes, or integers; their order is that of the indices, so that datasets of several
            parts agree. ``range(10)`` makes the index the integer itself. None: those that the samples have, sorted; as
            numbers if all are integers (``7``, not ``07``), else as text.
        allow_empty: Whether one of ``classes`` may have no sample.

    Raises:
        ArgumentError: ``classes`` are none, or one comes twice.
        ArgumentTypeError: ``column`` is no string, or a class is neither a string nor an integer.
    """
    if isinstance(classes, str):
        raise ArgumentTypeError(f"classes must be a list of names, got {classes!r}.")
    names = None if classes is None else tuple(str(each) if type(each) is int else each for each in classes)
    return ByColumn(column, names, allow_empty)  # type: ignore[arg-type]  # it checks that


def _check_classes(classes: tuple[str, ...] | None, *, allow_empty: bool) -> None:
    if classes is not None and not all(isinstance(name, str) for name in classes):
        raise ArgumentTypeError(f"The names of classes must be str, got {classes!r}.")
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ArgumentError(f"classes={classes!r} must name at least one class, and none of them twice.")
    if not isinstance(allow_empty, bool):
        raise ArgumentTypeError(f"allow_empty must be a bool, got {allow_empty!r}.")


def _given(labelling: ByFolder | ByColumn) -> list[str]:
    """Return what was said of classes, as a program would write it."""
    given = [f"classes={labelling.classes!r}"] if labelling.classes is not None else []
    return [*given, "allow_empty=True"] if labelling.allow_empty else given


def check_labelling(given: object) -> None:
    """Raise an ArgumentTypeError if this cannot be the option ``labels``."""
    if given is not None and not callable(given) and not isinstance(given, ByColumn):
        raise ArgumentTypeError(
            f"labels must be made by by_folder or by_column, or be callable with an S3BucketKeyData, got {given!r}. By "
            "the first folder below the prefix: labels=by_folder(). By a column of a manifest: labels=by_column('x')."
        )


def check_column(labelling: object, source: object) -> None:
    """Raise an error if a source surely has no such column.

    Raises:
        SampleLayoutError: It has none, or another one.
    """
    if isinstance(labelling, ByColumn):
        if isinstance(source, Prefix):
            raise _no_column(labelling, source.s3_uri, "a listing has no columns")
        if isinstance(source, Known):
            _column_of(source._objects, labelling, source.origin)


def _column_of(
    objects: ObjectTable, labelling: ByColumn, where: str = "the dataset's source"
) -> tuple[tuple[str, ...], array[int]]:
    """Return the names in a column, and the number of each object's."""
    if objects.label_column != labelling.column:
        kept = objects.label_column
        raise _no_column(labelling, where, "its objects have no columns" if kept is None else f"it has kept {kept!r}")
    return objects._numbered_labels()


def _no_column(labelling: ByColumn, where: str, why: str) -> SampleLayoutError:
    return SampleLayoutError(
        f"There is no column {labelling.column!r} in {where}: {why}. labels={labelling!r} needs a manifest with that "
        "column (from_manifest), or a table that a dataset with these labels has saved."
    )


def within(labelling: Labelling, source: object) -> Labelling:
    """Return how the classes of a source's objects are named: ``by_folder()`` looks below its prefix."""
    if isinstance(labelling, ByFolder) and labelling.below is None and isinstance(source, Prefix):
        return replace(labelling, below=source.s3_uri)
    return labelling


@dataclass(frozen=True)
class Labels:
    """The classes of samples.

    Attributes:
        classes: Their names, by their indices.
        targets: The index of each sample's class.
    """

    classes: tuple[str, ...]
    targets: array[int]

    @cached_property
    def digest(self) -> str:
        """What tells these from others: the same on all machines. All are hashed, once."""
        state = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        values = self.targets
        if sys.byteorder == "big":
            values = values[:]
            values.byteswap()
        state.update(values)
        return state.hexdigest()


class FirstClasses:
    """The classes that were found when a prefix was listed first, for those who list it again.

    A class that comes or goes meanwhile would change the indices of others.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None

    def check(self, names: tuple[str, ...]) -> None:
        """Keep the first classes; others are an error.

        Raises:
            ArgumentError: They are the first ones, and this is a DataLoader worker.
            SampleLayoutError: They are others than the first ones.
        """
        if self._names is None:
            if torch.utils.data.get_worker_info() is not None:
                raise ArgumentError(
                    "The classes of this dataset are not known, and each epoch's workers may find others. Ask for "
                    "dataset.classes before the workers start, or name them: classes=[...] of by_folder or by_column."
                )
            self._names = names
        if names != self._names:
            new, gone = sorted({*names} - {*self._names}), sorted({*self._names} - {*names})
            raise SampleLayoutError(
                f"The classes are not those that were listed first: {len(new)} are new {new[:3]}, {len(gone)} are gone "
                f"{gone[:3]}. Their indices would change. Name them: classes=[...] of by_folder or by_column."
            )


def label(objects: ObjectTable, groups: Groups | None, labelling: Labelling) -> Labels:
    """Return the classes of samples.

    Args:
        objects: All of the dataset.
        groups: Which of them are samples together; None: each is one.
        labelling: Returns the name of an object's class.

    Raises:
        ArgumentTypeError: ``labelling`` has returned no string.
        SampleLayoutError: An object has no class, or not that of the other objects of its sample; or a class has no
            sample, or the objects no such column.
        ObjectTableError: The column is that of a damaged file.
    """
    members = None if groups is None else groups.members
    if isinstance(labelling, ByColumn):
        names, class_of = _in_column(objects, members, labelling)
    else:
        names, class_of = _named(objects, members, labelling)
    classes = _classes(names, class_of, labelling)
    indices = {name: index for index, name in enumerate(classes)}
    found = numbers(class_of)
    if names:
        found.copy_(torch.tensor([indices[name] for name in names])[found])
    if groups is None:
        return Labels(classes, class_of)
    return Labels(classes, _of_samples(objects, groups, classes, class_of))


def _classes(names: dict[str, int], class_of: array[int], labelling: Labelling) -> tuple[str, ...]:
    """Return the names of the classes, by their indices; names beside them, and empty classes, are errors."""
    if not isinstance(labelling, (ByFolder, ByColumn)) or labelling.classes is None:
        return tuple(_in_order(names) if isinstance(labelling, ByColumn) else sorted(names))
    classes = labelling.classes
    if unknown := sorted(names.keys() - {*classes}):
        counts = torch.bincount(numbers(class_of))
        many = sum(int(counts[names[name]]) for name in unknown)
        where = f"lie in {len(unknown)} folders" if isinstance(labelling, ByFolder) else f"have {len(unknown)} labels"
        raise SampleLayoutError(
            f"{many} objects {where} that are no class: {first_of(map(repr, unknown), len(unknown))}. {labelling!r} "
            f"names {len(classes)} classes. Name all, or leave the objects out by a filter."
        )
    empty = [name for name in classes if name not in names]
    if empty and not labelling.allow_empty:
        raise SampleLayoutError(
            f"{len(empty)} of {len(classes)} classes have no sample: {first_of(map(repr, empty), len(empty))}. Pass "
            f"allow_empty=True to {'by_folder' if isinstance(labelling, ByFolder) else 'by_column'} if that may be."
        )
    return classes


def _in_order(names: Iterable[str]) -> list[str]:
    """Return names sorted: as numbers, so that 2 comes before 10, if all are integers."""
    found = list(names)
    return sorted(found, key=int) if all(map(_INTEGER.fullmatch, found)) else sorted(found)


def _in_column(
    objects: ObjectTable, members: array[int] | None, labelling: ByColumn
) -> tuple[dict[str, int], array[int]]:
    """Return what ``_named`` does, of a column."""
    known, numbers_of = _column_of(objects, labelling)
    label_of = torch.frombuffer(numbers_of, dtype=torch.int32) if numbers_of else torch.zeros(0, dtype=torch.int32)
    if len(label_of) and not 0 <= int(label_of.min()) <= int(label_of.max()) < len(known):
        raise ObjectTableError(
            f"The table of objects contradicts itself: it has labels that its {len(known)} names do not name. s3torch "
            "did not write it so."
        )
    if members is not None:
        label_of = label_of[numbers(members)]
    used = torch.bincount(label_of, minlength=len(known)) > 0  # a filter may have left none of some
    names = {known[place]: number for number, place in enumerate(torch.nonzero(used).flatten().tolist())}
    class_of = array("q", bytes(8 * len(label_of)))
    numbers(class_of).copy_((used.cumsum(0) - 1)[label_of])
    return names, class_of


def _named(
    objects: ObjectTable, members: array[int] | None, labelling: Callable[[S3BucketKeyData], str | None]
) -> tuple[dict[str, int], array[int]]:
    """Return numbers of the names of classes, and that of each object, or of each member of samples."""
    names: dict[str, int] = {}
    class_of = array("q")
    for item in objects if members is None else (objects[each] for each in members):
        name = labelling(item)
        if name is not None and not isinstance(name, str):
            raise ArgumentTypeError(
                f"labels={labelling!r} must return the name of a class, a str. For {uri_of(item)} it has returned "
                f"{name!r}."
            )
        class_of.append(_NO_CLASS if name is None else names.setdefault(name, len(names)))
    if without := class_of.count(_NO_CLASS):
        bad = torch.nonzero(numbers(class_of) == _NO_CLASS).flatten()[:3].tolist()
        uris = [uri_of(objects[place if members is None else members[place]]) for place in bad]
        where = "in no folder that names a class" if isinstance(labelling, ByFolder) else "in no class"
        raise SampleLayoutError(
            f"{without} of {len(class_of)} objects are {where}, by {labelling!r}: {first_of(uris, without)}. Move them "
            "into one, or leave them out by a filter."
        )
    return names, class_of


def _of_samples(objects: ObjectTable, groups: Groups, classes: tuple[str, ...], class_of: array[int]) -> array[int]:
    """Return the class of each sample: that of all its members."""
    targets = array("q")
    start = 0
    for end in groups.ends:
        found = class_of[start:end]
        if found.count(found[0]) < len(found):
            other = next(place for place in range(start, end) if class_of[place] != class_of[start])
            said = [f"{uri_of(objects[groups.members[at]])} is {classes[class_of[at]]!r}" for at in (start, other)]
            raise SampleLayoutError(
                f"The objects of one sample are of several classes: {said[0]}, and {said[1]}. A sample has one class."
            )
        targets.append(found[0])
        start = end
    return targets
