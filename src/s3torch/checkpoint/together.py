"""Bytes that all ranks of a group need, read once: each rank reads its share, and all gather them.

What is to be read is a row of targets: byte ranges of objects, and memory for each. The row is cut into rounds, each
round into one piece for each rank. A rank reads its pieces ahead, and a round whose pieces have arrived everywhere is
gathered while the next ones arrive. A round that lies in one large tensor is received and gathered where it belongs.
Small tensors share rounds, which pass through memory that is used again: so beside the tensors there are some pieces,
never a second copy.

The order of all collectives follows from the targets' sizes and the number of ranks alone, which are the same on all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from s3torch._transfer.scope import Scope
from s3torch.checkpoint.storages import memory

if TYPE_CHECKING:
    import torch.distributed as dist

    from s3torch._aws.operations import GetObject
    from s3torch._objects.remote import RemoteObject
    from s3torch.checkpoint.ranks import Ranks

__all__ = ["Target", "bytes_in", "read_together"]

# Bytes of one rank's piece, and of a round of many ranks, at most: two rounds are held. Not tuned.
_LARGEST_PIECE = 8 * 1024**2
_SMALLEST_PIECE = 256 * 1024
_LARGEST_ROUND = 64 * 1024**2
_ROUNDS = 2
# Of the bytes that a thread may wait for (S3ClientConfig.max_bytes_in_flight), what pieces take.
_SHARE_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Target:
    """Bytes of an object and where they go.

    Attributes:
        remote: The object: the same version on all ranks.
        start: The first byte.
        memory: uint8, one dimension, contiguous; as many as are wanted.
    """

    remote: RemoteObject
    start: int
    memory: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Fragment:
    """Some bytes of a target, and where they are in their round."""

    target: Target
    first: int
    place: int
    count: int

    @property
    def memory(self) -> torch.Tensor:
        return self.target.memory[self.first : self.first + self.count]


@dataclass(frozen=True, slots=True)
class _Round:
    """What is gathered at once.

    Attributes:
        fragments: In order, without a gap.
        piece: Bytes of each rank's piece; those of the last ranks may have less in them, or nothing.
        is_alone: Whether it is a part of one target, and fills all pieces.
    """

    fragments: tuple[_Fragment, ...]
    piece: int
    is_alone: bool

    def share(self, rank: int) -> Iterator[_Fragment]:
        """Return what a rank reads; places are counted from the begin of its piece."""
        begin, end = rank * self.piece, (rank + 1) * self.piece
        for each in self.fragments:
            left, right = max(each.place, begin), min(each.place + each.count, end)
            if left < right:
                yield _Fragment(each.target, each.first + left - each.place, left - begin, right - left)


def bytes_in(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a contiguous tensor, on whatever device, as bytes."""
    found = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    begin = tensor.storage_offset() * tensor.element_size()
    return found.set_(tensor.untyped_storage(), begin, (tensor.nbytes,), (1,))


def read_together(ranks: Ranks, targets: Sequence[Target], progress: Callable[[int], object] | None = None) -> None:
    """Fill memory on all ranks with what each of them reads a share of.

    Args:
        ranks: That call this, each with targets of the same objects, ranges and order.
        targets: To fill.
        progress: Is told how many bytes more have arrived on all ranks.

    Raises:
        S3Error: A rank could not read its share: the same error on all ranks. Memory may be partly overwritten.
    """
    reading = _Reading(ranks, _rounds(targets, ranks.size))
    try:
        reading.run(progress)
    finally:
        reading.end()


def _rounds(targets: Sequence[Target], ranks: int) -> list[_Round]:
    """Cut targets into rounds."""
    largest = max(_SMALLEST_PIECE, min(_LARGEST_PIECE, _LARGEST_ROUND // ranks))
    rounds: list[_Round] = []
    small: list[_Fragment] = []
    filled = 0

    def close() -> None:
        nonlocal small, filled
        if small:
            rounds.append(_Round(tuple(small), -(-filled // ranks), is_alone=False))
        small, filled = [], 0

    for target in targets:
        size, first = target.memory.numel(), 0
        if size >= ranks * largest:
            count = -(-size // (ranks * largest))
            piece = size // (ranks * count)
            for _ in range(count):
                rounds.append(_Round((_Fragment(target, first, 0, ranks * piece),), piece, is_alone=True))
                first += ranks * piece
        while first < size:  # a small one, or the few bytes that are left
            taken = min(size - first, ranks * largest - filled)
            small.append(_Fragment(target, first, filled, taken))
            first, filled = first + taken, filled + taken
            if filled == ranks * largest:
                close()
    close()
    return rounds


class _Piece:
    """This rank's share of a round, under way.

    Attributes:
        content: Memory that holds it once it has arrived, on the CPU.
    """

    def __init__(self, one: _Round, rank: int, content: torch.Tensor) -> None:
        self.round = one
        self.content = content
        self._shares = list(one.share(rank))
        self._reads: list[tuple[RemoteObject, list[GetObject], list[tuple[int, int]]]] = []

    def begin(self, scope: Scope) -> None:
        """Queue the requests."""
        view = memory(self.content.untyped_storage())[self.content.storage_offset() :]
        wanted: dict[RemoteObject, list[tuple[int, int, int]]] = {}
        for each in self._shares:
            known = wanted.setdefault(each.target.remote, [])
            start, place = each.target.start + each.first, each.place
            if known and (known[-1][1], known[-1][2] + known[-1][1] - known[-1][0]) == (start, place):
                start, _, place = known.pop()  # it goes on where the one before ends, in the object and in the piece
            known.append((start, each.target.start + each.first + each.count, place))
        for remote, known in wanted.items():
            ranges = [(start, stop) for start, stop, _ in known]
            gets = remote.vector(ranges, [view[place : place + stop - start] for start, stop, place in known])
            self._reads.append((remote, gets, ranges))
            for get in gets:
                scope.submit(get)

    @property
    def gets(self) -> list[GetObject]:
        """Its requests."""
        return [get for _, gets, _ in self._reads for get in gets]

    def conclude(self) -> None:
        """Check what has arrived, and drop the requests."""
        reads, self._reads = self._reads, []
        for remote, gets, ranges in reads:
            remote.conclude_vector(gets, ranges)


@dataclass(frozen=True, slots=True)
class _Gather:
    """A round that is being gathered.

    Attributes:
        piece: This rank's part of it.
        whole: Where it is gathered.
        works: That do it, one for each rank's piece.
        is_staged: Whether ``whole`` is memory that is used again, and its content to be copied.
    """

    piece: _Piece
    whole: torch.Tensor
    works: list[dist.Work]
    is_staged: bool


class _Reading:
    """The rounds of one call."""

    def __init__(self, ranks: Ranks, rounds: Sequence[_Round]) -> None:
        self._ranks = ranks
        self._rounds = deque(rounds)
        remote = rounds[0].fragments[0].target.remote if rounds else None
        self._engine = None if remote is None else remote.access.engine()
        self._ahead = 0 if remote is None else remote.access.share.bytes_in_flight // _SHARE_AHEAD
        self._scope = None if self._engine is None else Scope(self._engine)
        self._pieces: deque[_Piece] = deque()
        self._bytes = 0
        self._gathers: deque[_Gather] = deque()
        self._free: dict[tuple[int, bool], list[torch.Tensor]] = {}

    def run(self, progress: Callable[[int], object] | None) -> None:
        """Read and gather all rounds."""
        self._ranks.idle = self._idle
        while self._rounds or self._pieces:
            piece = None
            failure = None
            try:
                self._begin_pieces()
                piece = self._pieces[0]
                self._await(piece)
            except Exception as error:  # noqa: BLE001  # it is raised by all ranks
                failure = error
            self._ranks.settle(failure, is_round=True)
            if piece is None:
                raise AssertionError("a piece that never was has arrived")
            self._pieces.popleft()
            self._bytes -= piece.content.numel()
            if len(self._gathers) == _ROUNDS:
                self._conclude(progress)
            self._gather(piece)
        while self._gathers:
            self._conclude(progress)

    def end(self) -> None:
        """Cancel what is under way, and keep nothing: whoever keeps an error keeps this."""
        self._ranks.idle = None
        if self._scope is not None:
            self._scope.cancel()
        self._pieces.clear()
        self._rounds.clear()
        for each in self._gathers:
            for work in each.works if self._ranks.is_usable else ():
                self._ranks.wait(work)  # all ranks take part in it
        self._gathers.clear()
        self._free.clear()

    def _begin_pieces(self) -> None:
        while self._rounds and (not self._pieces or self._bytes + self._rounds[0].piece <= self._ahead):
            one = self._rounds.popleft()
            piece = _Piece(one, self._ranks.rank, self._memory_of(one))
            self._pieces.append(piece)
            self._bytes += one.piece
            if self._scope is not None:
                piece.begin(self._scope)

    def _memory_of(self, one: _Round) -> torch.Tensor:
        """Return where a piece is received: in its tensor, if the round is one of it and is gathered there."""
        target = one.fragments[0].memory
        if one.is_alone and target.device == self._ranks.device == torch.device("cpu"):
            return target[self._ranks.rank * one.piece : (self._ranks.rank + 1) * one.piece]
        return self._take(one.piece, is_host=True)

    def _take(self, size: int, *, is_host: bool) -> torch.Tensor:
        free = self._free.setdefault((size, is_host), [])
        if free:
            return free.pop()
        if is_host:
            return torch.empty(size, dtype=torch.uint8, pin_memory=self._ranks.device.type == "cuda")
        return torch.empty(size, dtype=torch.uint8, device=self._ranks.device)

    def _idle(self) -> bool:
        if self._engine is None or not self._engine.pending:
            return False
        self._engine.nudge()
        return True

    def _await(self, piece: _Piece) -> None:
        if self._engine is None:
            raise AssertionError("a piece without a request")
        deadline = self._engine.deadline()
        gets = piece.gets
        while not all(get.is_done for get in gets) and all(get.error is None for get in gets):
            self._engine.turn(deadline)
            self._ranks.look()
        self._engine.wait(gets, deadline)  # raises what has failed
        piece.conclude()

    def _gather(self, piece: _Piece) -> None:
        one, device = piece.round, self._ranks.device
        target = one.fragments[0].memory
        is_staged = not one.is_alone or target.device != device
        # Broadcasts into the tensors themselves: gloo's all-gather passes all bytes through new memory of its own,
        # which took three times the CPU time and up to six times as long.
        whole = self._take(self._ranks.size * one.piece, is_host=False) if is_staged else target
        pieces = torch.split(whole, one.piece)
        if pieces[self._ranks.rank].data_ptr() != piece.content.data_ptr():
            pieces[self._ranks.rank].copy_(piece.content, non_blocking=True)
        works = [self._ranks.broadcast(each, rank) for rank, each in enumerate(pieces)]
        self._gathers.append(_Gather(piece, whole, works, is_staged))

    def _conclude(self, progress: Callable[[int], object] | None) -> None:
        done = self._gathers[0]
        for work in done.works:
            self._ranks.wait(work)
        self._gathers.popleft()
        one = done.piece.round
        if done.is_staged:
            for each in one.fragments:
                each.memory.copy_(done.whole[each.place : each.place + each.count])
            self._free.setdefault((done.whole.numel(), False), []).append(done.whole)
        if done.is_staged or self._ranks.device.type != "cpu":  # else it was received in its tensor
            self._free.setdefault((done.piece.content.numel(), True), []).append(done.piece.content)
        if progress is not None:
            progress(sum(each.count for each in one.fragments))
