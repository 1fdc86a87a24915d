"""Which rank sends which bytes of which file, when ranks write a model together. Pure.

The layout of a safetensors file follows from names, dtypes and shapes, so it is known before a byte is written. A file
is one multipart upload, and its parts are cut where the memory of one rank ends and that of another begins. What would
be less than S3 takes for a part (5 MiB) goes into one part with what follows, and one rank, which has most of it, gets
the bytes of the others.

A tensor is taken apart into runs of rows (indices of one dimension), each of which has the same chunks from end to end.
Most chunks are whole rows: then a run is bytes of one rank as they lie in its memory. Chunks of columns share each row,
and are put together by the rank that sends the part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from s3torch.errors import ArgumentError

__all__ = [
    "Chunk",
    "FilePlan",
    "PartPlan",
    "Piece",
    "Run",
    "TensorPlan",
    "plan_file",
    "with_exchanges",
    "without_copies",
]

# The least that Amazon S3 takes for a part that is not the last, and how many parts an upload may have, with some room
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
_SMALLEST_PART = 5 * 1024**2
_MOST_PARTS = 9000
# Bytes of a row from which on the next dimension is taken for rows, too: parts can be cut between rows only.
_LARGE_ROW = 1024**2


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one rank has of a tensor.

    Attributes:
        rank: Who has it.
        item: Its number among all chunks of that rank.
        offsets: Its first index in each dimension of the tensor.
        sizes: Its size in each dimension.
    """

    rank: int
    item: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor of a file.

    Attributes:
        name: Its name.
        shape: As torch has it; never without a dimension.
        item_size: Bytes of an item in the file.
        chunks: Of all ranks.
    """

    name: str
    shape: tuple[int, ...]
    item_size: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk has of a run.

    Attributes:
        rank: Who has it.
        item: Which chunk of that rank.
        inside: Where it lies in the chunk: first index and the one after the last, of each dimension.
        place: Where it lies in the run, in the same way; the first dimension is rows.
    """

    rank: int
    item: int
    inside: tuple[tuple[int, int], ...]
    place: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of a tensor that have the same chunks.

    Attributes:
        shape: Rows, and the dimensions of each.
        size: In bytes.
        pieces: Which together are the run.
    """

    shape: tuple[int, ...]
    size: int
    pieces: tuple[Piece, ...]

    def bytes_by_rank(self) -> dict[int, int]:
        """Return how many bytes each rank has of it."""
        items = prod(self.shape)
        found: dict[int, int] = {}
        for piece in self.pieces:
            share = prod(stop - start for start, stop in piece.place)
            found[piece.rank] = found.get(piece.rank, 0) + share * self.size // items
        return found


@dataclass(frozen=True, slots=True)
class PartPlan:
    """A part of a file's upload.

    Attributes:
        number: From 1.
        owner: The rank that sends it.
        head: Bytes of the file's header that it begins with; none but of the first.
        runs: What follows.
        exchange: In which exchange between ranks the owner gets what others have of it; None if it has all.
    """

    number: int
    owner: int
    head: bytes
    runs: tuple[Run, ...]
    exchange: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.head) + sum(run.size for run in self.runs)

    def bytes_by_rank(self) -> dict[int, int]:
        """Return how many bytes of the runs each rank has, in the order of ranks."""
        found: dict[int, int] = {}
        for run in self.runs:
            for rank, size in run.bytes_by_rank().items():
                found[rank] = found.get(rank, 0) + size
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file.

    Attributes:
        key: Of the object.
        parts: In order.
    """

    key: str
    parts: tuple[PartPlan, ...]


def without_copies(tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
    """Return the tensors with each chunk once: what several ranks have is sent by the one that has least to send."""
    load: dict[int, int] = {}
    found = []
    for tensor in tensors:
        same: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Chunk]] = {}
        for chunk in tensor.chunks:
            same.setdefault((chunk.offsets, chunk.sizes), []).append(chunk)
        chosen = []
        for chunks in same.values():
            one = min(chunks, key=lambda chunk: (load.get(chunk.rank, 0), chunk.rank, chunk.item))
            load[one.rank] = load.get(one.rank, 0) + prod(one.sizes) * tensor.item_size
            chosen.append(one)
        found.append(TensorPlan(tensor.name, tensor.shape, tensor.item_size, tuple(chosen)))
    return found


def plan_file(
    key: str, head: bytes, tensors: Sequence[TensorPlan], part_size: int, load: dict[int, int] | None = None
) -> FilePlan:
    """Cut a file into parts.

    Args:
        key: Of the object.
        head: Its length and header.
        tensors: In the order of their bytes, each chunk once.
        part_size: Bytes of a part, as far as the chunks allow.
        load: Bytes that each rank sends already; is added to. None for nothing.

    Raises:
        ArgumentError: Chunks do not cover a tensor, or overlap.
    """
    load = {} if load is None else load
    total = len(head) + sum(prod(tensor.shape) * tensor.item_size for tensor in tensors)
    least = max(_SMALLEST_PART, -(-total // _MOST_PARTS))
    target = max(part_size, least)
    cutter = _Cutter(head, least, target, load)
    runs = (run for tensor in tensors for run in _runs(tensor))
    for _, stretch in itertools.groupby(runs, key=lambda run: frozenset(piece.rank for piece in run.pieces)):
        cutter.add(list(stretch))
    return FilePlan(key, cutter.finish())


def with_exchanges(files: Sequence[FilePlan], most: int) -> tuple[list[FilePlan], int]:
    """Say in which exchange between ranks each part gets what others than its owner have of it.

    Args:
        files: All of a model's.
        most: Bytes of one exchange, in all, unless a single part takes more.

    Returns:
        The files, and how many exchanges there are.
    """
    number, moved, is_begun = 0, 0, False
    found = []
    for file in files:
        parts = []
        for part in file.parts:
            others = sum(size for rank, size in part.bytes_by_rank().items() if rank != part.owner)
            if others:
                if is_begun and moved + others > most:
                    number, moved = number + 1, 0
                is_begun, moved = True, moved + others
            parts.append(replace(part, exchange=number if others else None))
        found.append(FilePlan(file.key, tuple(parts)))
    return found, number + 1 if is_begun else 0


class _Cutter:
    """Gathers runs into parts."""

    def __init__(self, head: bytes, least: int, target: int, load: dict[int, int]) -> None:
        self._head = head
        self._least = least
        self._target = target
        self._load = load
        self._runs: list[Run] = []
        self._size = len(head)
        self._parts: list[PartPlan] = []

    def add(self, stretch: list[Run]) -> None:
        """Add runs of the same ranks. If all that waits is enough for a part, parts end where they end."""
        left = sum(run.size for run in stretch)
        whole = self._size + left
        if whole < self._least:
            self._runs += stretch
            self._size = whole
            return
        target = whole // max(1, whole // self._target)
        waiting = list(reversed(stretch))
        while waiting:
            run = waiting.pop()
            rows, row = run.shape[0], run.size // run.shape[0]
            wanted = -(-(target - self._size) // row)
            if 0 < wanted < rows and left - wanted * row >= self._least:
                waiting.append(_rows_of(run, wanted, rows))
                run = _rows_of(run, 0, wanted)
            self._runs.append(run)
            self._size += run.size
            left -= run.size
            if self._size >= target and left >= self._least:
                self._close()
        self._close()

    def finish(self) -> tuple[PartPlan, ...]:
        """Return all parts."""
        if self._size or not self._parts:
            self._close()
        return tuple(self._parts)

    def _close(self) -> None:
        part = PartPlan(len(self._parts) + 1, 0, self._head, tuple(self._runs))
        found = part.bytes_by_rank()
        owner = min(found, key=lambda rank: (-found[rank], self._load.get(rank, 0), rank), default=0)
        self._load[owner] = self._load.get(owner, 0) + self._size
        self._parts.append(replace(part, owner=owner))
        self._head, self._runs, self._size = b"", [], 0


def _rows_of(run: Run, first: int, last: int) -> Run:
    """Return some rows of a run."""
    pieces = tuple(
        Piece(
            piece.rank,
            piece.item,
            _moved(piece.inside, run, first, last),
            ((0, last - first), *piece.place[1:]),
        )
        for piece in run.pieces
    )
    return Run((last - first, *run.shape[1:]), run.size // run.shape[0] * (last - first), pieces)


def _moved(inside: tuple[tuple[int, int], ...], run: Run, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Return where rows of a run lie in a chunk: the dimension of rows comes before those that each row has."""
    rows = len(inside) - len(run.shape)
    start = inside[rows][0]
    return (*inside[:rows], (start + first, start + last), *inside[rows + 1 :])


def _runs(tensor: TensorPlan) -> Iterator[Run]:
    """Take a tensor apart into runs, in the order of their bytes."""
    if prod(tensor.shape):
        yield from _runs_below(tensor, (), tensor.chunks)


def _runs_below(tensor: TensorPlan, prefix: tuple[int, ...], chunks: Sequence[Chunk]) -> Iterator[Run]:
    depth = len(prefix)
    inner = tensor.shape[depth + 1 :]
    row = prod(inner) * tensor.item_size
    if inner and row > _LARGE_ROW:
        for index in range(tensor.shape[depth]):
            below = [each for each in chunks if each.offsets[depth] <= index < each.offsets[depth] + each.sizes[depth]]
            yield from _runs_below(tensor, (*prefix, index), below)
        return
    ends = {0, tensor.shape[depth]}
    for chunk in chunks:
        ends |= {chunk.offsets[depth], chunk.offsets[depth] + chunk.sizes[depth]}
    for first, last in itertools.pairwise(sorted(ends)):
        here = [
            each
            for each in chunks
            if each.offsets[depth] <= first
            and last <= each.offsets[depth] + each.sizes[depth]
            and _items(each.sizes) > 0
        ]
        _check_cover(tensor, (*prefix, first), here)
        pieces = tuple(_piece(each, prefix, first, last) for each in here)
        yield Run((last - first, *inner), (last - first) * row, pieces)


def _piece(chunk: Chunk, prefix: tuple[int, ...], first: int, last: int) -> Piece:
    depth = len(prefix)
    inside = [(index - chunk.offsets[d], index - chunk.offsets[d] + 1) for d, index in enumerate(prefix)]
    inside.append((first - chunk.offsets[depth], last - chunk.offsets[depth]))
    inside += [(0, size) for size in chunk.sizes[depth + 1 :]]
    place = [(0, last - first)]
    pairs = zip(chunk.offsets[depth + 1 :], chunk.sizes[depth + 1 :], strict=True)
    place += [(offset, offset + size) for offset, size in pairs]
    return Piece(chunk.rank, chunk.item, tuple(inside), tuple(place))


def _check_cover(tensor: TensorPlan, where: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Check that chunks are all of a row, once.

    Raises:
        ArgumentError: They are not.
    """
    depth = len(where)
    inner = tensor.shape[depth:]
    covered = sum(_items(chunk.sizes[depth:]) for chunk in chunks)
    owners = sorted({chunk.rank for chunk in chunks})
    if covered < prod(inner) or not chunks:
        raise ArgumentError(
            f"Tensor {tensor.name!r} of shape {list(tensor.shape)} is not whole: no rank has all of index "
            f"{list(where)}, of which rank{'s' if len(owners) != 1 else ''} {owners or 'none'} "
            f"{'have' if len(owners) != 1 else 'has'} {covered} of {prod(inner)} items."
        )
    boxes = sorted(chunks, key=lambda chunk: chunk.offsets[depth:])
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            if depth < len(tensor.shape) and other.offsets[depth] >= one.offsets[depth] + one.sizes[depth]:
                break
            if _overlap(one, other, depth):
                raise ArgumentError(
                    f"Tensor {tensor.name!r} of shape {list(tensor.shape)}: the chunks of rank {one.rank} and of rank "
                    f"{other.rank} overlap at index {list(where)}."
                )


def _items(sizes: tuple[int, ...]) -> int:
    return prod(sizes)


def _overlap(one: Chunk, other: Chunk, depth: int) -> bool:
    return all(
        left < right_start + right_size and right_start < left + left_size
        for left, left_size, right_start, right_size in zip(
            one.offsets[depth:], one.sizes[depth:], other.offsets[depth:], other.sizes[depth:], strict=True
        )
    )
