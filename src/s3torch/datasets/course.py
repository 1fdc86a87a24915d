"""What the state of a loader knows of its data: the table, what chose and joined its objects, and their labels."""

from __future__ import annotations

from s3torch.datasets.cursor import Course
from s3torch.datasets.filters import described
from s3torch.datasets.members import Items, SampleTable
from s3torch.datasets.options import Selection

__all__ = ["course_of"]


def course_of(samples: int, items: Items, selection: Selection, *, shuffle: bool, seed: int) -> Course:
    """Return what the order of all epochs is made of.

    Args:
        samples: How many they are in an epoch.
        items: What the samples are made of.
        selection: What chose and joined them.
        shuffle: Whether epochs are shuffled.
        seed: Of the shuffled orders.
    """
    objects, labels = (items.objects, items.labels) if isinstance(items, SampleTable) else (items, None)
    return Course(
        samples,
        objects.digest,
        filter=described(selection.filter),
        grouping=described(selection.samples),
        labels=None if labels is None else f"{len(labels.classes)} classes, {labels.digest}",
        shuffle=shuffle,
        seed=seed,
    )
