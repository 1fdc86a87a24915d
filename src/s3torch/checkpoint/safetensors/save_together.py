"""A model that ranks write together: each sends the bytes that it has as parts of the files' uploads.

Nothing is written to a disk, and nothing is put together afterwards: the parts of all ranks are the file. The first
rank begins the uploads, and completes them when all parts of all files are there; before that nothing can be seen. What
is less than a part goes to the rank that has most of that part, in exchanges in which all ranks take part.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch

from s3torch._objects.shared_upload import SentPart, SharedUpload, UploadTicket
from s3torch.checkpoint.safetensors.dtypes import bytes_of
from s3torch.checkpoint.safetensors.format import INDEX_SUFFIX
from s3torch.checkpoint.safetensors.layout import (
    PartPlan,
    Piece,
    Run,
)
from s3torch.checkpoint.safetensors.model_plan import ModelPlan, exported
from s3torch.checkpoint.safetensors.replacing import OneFile, Sharded
from s3torch.checkpoint.together import bytes_in
from s3torch.checkpoint.uploads import UploadStats, tell
from s3torch.errors import S3Error

if TYPE_CHECKING:
    from s3torch.checkpoint.ranks import Ranks
    from s3torch.checkpoint.uploads import OnUpload
    from s3torch.client import S3Client

__all__ = ["Parts", "complete", "write_parts"]

Parts = dict[tuple[int, int], SentPart]  # by file and number


def write_parts(
    ranks: Ranks,
    client: S3Client,
    bucket: str,
    plan: ModelPlan,
    tensor_of: Callable[[int], torch.Tensor],
    uploads: list[SharedUpload],
    count: Callable[[int], object],
) -> Parts:
    """Send this rank's parts, and wait for those of all others.

    Args:
        ranks: That all call this.
        client: Sends the requests.
        bucket: Of the files.
        plan: All of it, or what this rank must know.
        tensor_of: Returns a chunk of this rank by its number.
        uploads: An empty list, which gets the uploads of the files: the first rank must complete or abort them.
        count: Is told how many bytes more this rank has begun to send.

    Returns:
        The parts of all ranks.

    Raises:
        S3Error: A rank could not send its parts: the same error on all.
    """

    def begin() -> list[UploadTicket]:
        for file in plan.files:
            uploads.append(SharedUpload(client._access, bucket, file.key, on_part=ranks.tell))
            tickets.append(uploads[-1].ticket())
        return tickets

    tickets: list[UploadTicket] = []
    tickets = ranks.from_first(begin)
    if ranks.rank:
        pairs = zip(plan.files, tickets, strict=True)
        uploads += [
            SharedUpload(client._access, bucket, file.key, ticket, on_part=ranks.tell) for file, ticket in pairs
        ]
    writing = _Writing(ranks, uploads, plan.of_rank(ranks.rank), tensor_of, count)
    try:
        failure = writing.run()
        ranks.settle(failure)
        found = {(place, number): part for place, each in enumerate(uploads) for number, part in each.arrived().items()}
    except BaseException:
        for upload in uploads:
            upload.cancel()
        raise
    finally:
        writing.end()
    return {place: part for of_rank in ranks.all_of(found) for place, part in of_rank.items()}


def complete(
    client: S3Client,
    bucket: str,
    plan: ModelPlan,
    parts: Parts,
    uploads: Sequence[SharedUpload],
    on_upload: OnUpload | None,
    on_file: Callable[[], object] = lambda: None,
) -> None:
    """Make the files appear, and then the index, in the place of what had the name; on the first rank.

    Args:
        client: Sends the requests.
        bucket: Of the files.
        plan: All of it.
        parts: Of all ranks.
        uploads: Of the files.
        on_upload: Is told of each file that is stored.
        on_file: Is called when a file is complete, as ``Ranks.tell``.

    Raises:
        S3Error: A part is missing, or a file could not be completed.
    """
    for place, file in enumerate(plan.files):
        for part in file.parts:
            there = parts.get((place, part.number))
            if there is None or there.length != part.size:
                raise S3Error(
                    f"Part {part.number} of s3://{bucket}/{file.key}, {part.size} bytes that rank {part.owner} was to "
                    f"send, {'is missing' if there is None else f'has {there.length}'}: nothing was saved.",
                    bucket=bucket,
                    key=file.key,
                )

    def complete_all() -> None:
        for place, (file, upload) in enumerate(zip(plan.files, uploads, strict=True)):
            of_file = {part.number: parts[place, part.number] for part in file.parts}
            upload.complete_with(of_file)
            on_file()
            tell(on_upload, _stats(bucket, file.key, upload, of_file.values()))

    if plan.index is None:
        model = OneFile(client, bucket, plan.files[0].key)
        complete_all()
        model.take_over()
        return
    key, text = plan.index
    sharded = Sharded(client, bucket, key.removesuffix(INDEX_SUFFIX), [file.key for file in plan.files])
    try:
        sharded.begin()
        complete_all()
        sharded.commit(text)
    except BaseException:
        sharded.give_up()
        raise


def _stats(bucket: str, key: str, upload: SharedUpload, parts: Iterable[SentPart]) -> UploadStats:
    """Return what all ranks together have sent for a file, and the seconds since it was begun."""
    sent = list(parts)
    return UploadStats(
        bucket=bucket,
        key=key,
        size=sum(part.length for part in sent),
        seconds=time.perf_counter() - upload.began,
        requests=upload.requests + sum(part.attempts for part in sent),
        retries=upload.retries + sum(part.attempts - 1 for part in sent),
    )


class _Mine(NamedTuple):
    """A part that this rank sends, and the number of its file."""

    file: int
    part: PartPlan


class _Writing:
    """This rank's work on the parts of all files."""

    def __init__(
        self,
        ranks: Ranks,
        uploads: Sequence[SharedUpload],
        plan: ModelPlan,
        tensor_of: Callable[[int], torch.Tensor],
        count: Callable[[int], object],
    ) -> None:
        self._ranks = ranks
        self._uploads = uploads
        self._plan = plan
        self._tensor_of = tensor_of
        self._count = count
        self._failure: Exception | None = None

    def run(self) -> Exception | None:
        """Do it; returns what has failed here. What others wait for is sent to them nevertheless."""
        self._ranks.idle = self._idle
        parts = [_Mine(place, part) for place, file in enumerate(self._plan.files) for part in file.parts]
        whole = deque(each for each in parts if each.part.exchange is None)
        exchanges: dict[int | None, list[_Mine]] = {}
        for each in parts:
            exchanges.setdefault(each.part.exchange, []).append(each)
        for number in range(self._plan.exchanges):
            self._exchange(exchanges.get(number, []), whole)
        while whole:
            self._upload(whole.popleft(), {})
        for upload in self._uploads:
            self._try(upload.arrived)
        return self._failure

    def end(self) -> None:
        """Keep nothing."""
        self._ranks.idle = None
        self._failure = None

    def _try(self, act: Callable[[], object]) -> None:
        if self._failure is None:
            try:
                act()
            except Exception as error:  # it is raised by all ranks, in the end
                if not self._ranks.is_usable:  # another one has left: nobody waits for anything any more
                    raise
                self._failure = error

    def _idle(self) -> bool:
        busy = [upload for upload in self._uploads if upload.is_busy]
        for upload in busy:
            upload.nudge()
        return bool(busy)

    def _exchange(self, parts: Sequence[_Mine], whole: deque[_Mine]) -> None:
        """Exchange what the owners of parts need, and send those that are this rank's.

        Args:
            parts: Of one exchange.
            whole: Parts that need none, some of which are sent meanwhile.
        """
        rank, size = self._ranks.rank, self._ranks.size
        outgoing: list[list[torch.Tensor]] = [[] for _ in range(size)]
        incoming: list[list[tuple[int, int]]] = [[] for _ in range(size)]  # which part, and how many bytes
        for place, (_, part) in enumerate(parts):
            sizes = part.bytes_by_rank()
            if part.owner == rank:
                for other, count in sizes.items():
                    if other != rank:
                        incoming[other].append((place, count))
            else:
                outgoing[part.owner].append(self._mine(part, sizes[rank]))
        sent = [sum(content.numel() for content in contents) for contents in outgoing]
        taken = [sum(count for _, count in counts) for counts in incoming]
        ours = torch.cat([content for contents in outgoing for content in contents] or [_NOTHING])
        theirs = torch.empty(sum(taken), dtype=torch.uint8, device=self._ranks.device)
        are_all_here = self._ranks.arrive()
        while whole and not are_all_here():
            self._upload(whole.popleft(), {})
        self._ranks.until(are_all_here)
        work = self._ranks.exchange(theirs, ours.to(self._ranks.device), taken, sent)
        while whole and not work.is_completed():
            self._upload(whole.popleft(), {})
        self._ranks.wait(work)
        received = theirs.cpu()
        found: list[dict[int, torch.Tensor]] = [{} for _ in parts]
        begin = 0
        for other, counts in enumerate(incoming):
            for place, count in counts:
                found[place][other] = received[begin : begin + count]
                begin += count
        for each, contents in zip(parts, found, strict=True):
            if each.part.owner == rank:
                self._upload(each, contents)

    def _mine(self, part: PartPlan, size: int) -> torch.Tensor:
        """Return what this rank has of another's part; anything, if this rank has failed."""
        found = torch.empty(size, dtype=torch.uint8)

        def gather() -> None:
            begin = 0
            for run in part.runs:
                for piece in run.pieces:
                    if piece.rank == self._ranks.rank:
                        content = self._bytes(piece)
                        found[begin : begin + content.numel()] = content
                        begin += content.numel()

        self._try(gather)
        return found

    def _upload(self, one: _Mine, received: Mapping[int, torch.Tensor]) -> None:
        def send() -> None:
            self._uploads[one.file].send_part(one.part.number, self._content(one.part, received))
            self._count(one.part.size)

        self._try(send)

    def _content(self, part: PartPlan, received: Mapping[int, torch.Tensor]) -> list[memoryview]:
        """Return the bytes of a part.

        Args:
            part: That this rank sends.
            received: What each of the others has of it, in order.
        """
        used = dict.fromkeys(received, 0)
        found = [memoryview(part.head)]
        for run in part.runs:
            pieces: list[tuple[Piece, torch.Tensor]] = []
            for piece in run.pieces:
                if piece.rank == self._ranks.rank:
                    pieces.append((piece, self._bytes(piece)))
                else:
                    begin = used[piece.rank]
                    used[piece.rank] = begin + _size(piece, run)
                    pieces.append((piece, received[piece.rank][begin : used[piece.rank]]))
            found.append(bytes_of(_joined(run, pieces)))
        return found

    def _bytes(self, piece: Piece) -> torch.Tensor:
        """Return a piece of a chunk as bytes: where they are, if they can be sent from there."""
        tensor = self._tensor_of(piece.item).detach()
        dtype = exported(tensor.dtype, self._plan.export_dtype)
        tensor = (tensor if tensor.dim() else tensor.reshape(1)).resolve_conj().resolve_neg()
        if dtype == tensor.dtype:  # not all dtypes can be copied, and all that is wanted are bytes
            tensor = tensor.view(_INTEGERS[tensor.element_size()])
            dtype = tensor.dtype
        for dimension, (start, stop) in enumerate(piece.inside):
            tensor = tensor.narrow(dimension, start, stop - start)
        return bytes_in(tensor.to(device="cpu", dtype=dtype).contiguous())


_NOTHING = torch.empty(0, dtype=torch.uint8)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _size(piece: Piece, run: Run) -> int:
    return prod(stop - start for start, stop in piece.place) * (run.size // prod(run.shape))


def _joined(run: Run, pieces: Sequence[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
    """Return the bytes of a run, from those of its pieces."""
    if len(pieces) == 1:
        return pieces[0][1]
    width = run.size // prod(run.shape)
    joined = torch.empty((*run.shape[:-1], run.shape[-1] * width), dtype=torch.uint8)
    for piece, content in pieces:
        place = joined
        last = len(piece.place) - 1
        for dimension, (start, stop) in enumerate(piece.place):
            scale = width if dimension == last else 1
            place = place.narrow(dimension, start * scale, (stop - start) * scale)
        place.copy_(content.view(place.shape))
    return joined.view(-1)
