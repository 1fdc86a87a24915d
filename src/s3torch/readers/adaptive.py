"""The adaptive reader: exact ranges at first, then whatever the pattern of the reads suggests.

What to fetch is decided in ``window.py``. Here it is fetched and kept: a window that moves along with the reads, and
the object's head and tail. Large reads go straight into the caller's memory; only what is read ahead of them is kept.
All that adaptive readers keep counts against one budget of the process: when it is used up they fetch exactly what is
asked for.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from s3torch._exclusive import exclusive
from s3torch._transfer.buffers import BytesBuffer
from s3torch.readers.base import S3Reader
from s3torch.readers.budget import BUDGET, MemoryBudget
from s3torch.readers.window import BLOCK, Block, Kind, ReadAhead, Step

if TYPE_CHECKING:
    from s3torch._objects.remote import RemoteObject

__all__ = ["AdaptiveS3Reader"]


_NOTHING = Block(0, b"")
# Steps that begin where the caller reads on, so that any part of them is of use.
_MOVING = (Kind.FORWARD, Kind.JUMP)
# Reads of this many bytes go straight into the caller's memory; smaller ones are copied there, in 10 us. Not tuned.
_LARGE = 64 * 1024


class AdaptiveS3Reader(S3Reader):
    """Reads parts like a range-based reader, and fetches ahead like a sequential one where reads follow each other.

    Args:
        remote: The object.
        max_window: Bytes to read ahead, and to hold, at most; head and tail (up to 80 KiB) come on top.
        budget: Of the memory of all such readers.
    """

    def __init__(self, remote: RemoteObject, max_window: int, budget: MemoryBudget = BUDGET) -> None:
        super().__init__(remote)
        self._max_window = max_window
        self._start_afresh(budget)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_max_window": self._max_window}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._start_afresh(BUDGET)

    @exclusive
    def close(self) -> None:
        """Close it and release what it holds."""
        if not self.closed:
            self._drop_all()
        super().close()

    def _start_afresh(self, budget: MemoryBudget) -> None:
        self._share = budget.share()
        self._pattern = ReadAhead(self._max_window)
        self._window = self._head = self._tail = _NOTHING
        self._lent = (0, 0)  # the bytes that lines were last cut from

    def _learn_size(self) -> int:
        if self._remote.size is None:
            self._load(self._pattern.plan(0, 1, None), 1)  # the answer tells the size, and the head is often wanted
        return super()._learn_size()

    def _read_at(self, start: int, stop: int | None) -> bytes:
        size = self._remote.size
        if size is not None:
            stop = size if stop is None else min(stop, size)
        elif stop is None or stop - start > BLOCK:
            return self._read_directly(start, stop)
        if stop <= start:
            return b""
        held = self._held_at(start)
        if stop <= held.start + len(held.content):
            self._pattern.note_read(start, stop)
            return held.content[start - held.start : stop - held.start]
        buffer = BytesBuffer(stop - start)
        try:
            count = self._readinto_at(start, buffer.view)
        except BaseException as error:
            buffer.release()
            traceback.clear_frames(error.__traceback__)  # those below hold slices; whoever keeps the error keeps them
            raise
        content = buffer.to_bytes()
        return content if count == len(content) else content[:count]

    def _readinto_at(self, start: int, view: memoryview) -> int:
        position, stop = start, start + len(view)
        while position < stop and not self._is_end(position):
            held = self._held_at(position)
            if held is _NOTHING:
                count = self._fetch(position, view[position - start :])
            else:
                offset = position - held.start
                count = min(len(held.content) - offset, stop - position)
                view[position - start :][:count] = memoryview(held.content)[offset : offset + count]
            self._pattern.note_read(position, position + count)
            position += count
        return position - start

    def _chunk_at(self, start: int) -> tuple[bytes, int]:
        lent_start, lent_stop = self._lent
        if lent_start <= start <= lent_stop:  # lines were cut up to here
            self._pattern.note_read(lent_start, start)
        held = self._held_at(start)
        if held is _NOTHING and not self._is_end(start):
            self._pattern.note_asked(BLOCK)  # a line's length is not known, so a block of lines is what is asked for
            if not self._load(self._pattern.plan(start, start + BLOCK, self._remote.size), 1):
                return self._remote.read(start, start + BLOCK), 0
            held = self._held_at(start)
        self._lent = (start, held.start + len(held.content))
        return held.content, start - held.start if held is not _NOTHING else 0

    def _is_end(self, position: int) -> bool:
        return self._remote.size is not None and position >= self._remote.size

    def _held_at(self, position: int) -> Block:
        """Return a block that holds the byte at ``position``, or _NOTHING."""
        for block in (self._window, self._head, self._tail):
            if block.start <= position < block.start + len(block.content):
                return block
        return _NOTHING

    def _read_directly(self, start: int, stop: int | None) -> bytes:
        """Read without knowing the size, into memory that is made once it is known."""
        content = self._remote.read(start, stop)
        self._pattern.note_fetched(Step(start, start + len(content), Kind.JUMP), len(content))
        self._pattern.note_read(start, start + len(content))
        return content

    def _fetch(self, position: int, view: memoryview) -> int:
        """Fetch what the pattern suggests; returns how many bytes went into ``view``: 0 if they are held now."""
        step = self._pattern.plan(position, position + len(view), self._remote.size)
        needed = min(len(view), step.stop - position)
        if needed >= _LARGE and step.kind in _MOVING:
            return self._fetch_large(step, view[:needed])
        if self._load(step, needed):
            return 0
        return self._fetch_large(Step(position, position + needed, Kind.JUMP), view[:needed])

    def _fetch_large(self, step: Step, view: memoryview) -> int:
        """Fetch into ``view``, and the rest of the step, as far as memory allows, into a new window."""
        self._drop_window()
        stop = step.start + len(view)
        ahead = self._share.take(step.stop - stop)
        if not ahead:
            count = self._remote.read_into(step.start, view)
            self._pattern.note_fetched(Step(step.start, stop, step.kind), count)
            return count
        buffer = BytesBuffer(ahead)
        try:
            self._remote.read_ranges([(step.start, stop), (stop, stop + ahead)], [view, buffer.view], 0)
            self._window = Block(stop, buffer.to_bytes())
        except BaseException:
            buffer.release()  # whoever keeps the error keeps this frame
            raise
        finally:
            self._settle()
        self._pattern.note_fetched(Step(step.start, stop + ahead, step.kind), len(view) + ahead)
        return len(view)

    def _load(self, step: Step, needed: int) -> bool:
        """Fetch a step into a block that is held; returns False, and fetches nothing, if there is no memory for that.

        Args:
            step: What to fetch. For want of memory it may end earlier, if it begins where the caller reads on.
            needed: Bytes of it that are indispensable then.
        """
        if step.kind not in (Kind.HEAD, Kind.TAIL):
            self._drop_window()
        least = needed if step.kind in _MOVING else step.stop - step.start
        taken = self._share.take(step.stop - step.start)
        if taken < least:
            self._drop_all()
            taken += self._share.take(step.stop - step.start - taken)
        content = b""
        try:
            if taken >= least:
                content = self._remote.read(step.start, step.start + taken)
                self._hold(step.kind, Block(step.start, content))
        finally:
            self._settle()
        if taken < least:
            return False
        self._pattern.note_fetched(Step(step.start, step.start + len(content), step.kind), len(content))
        return True

    def _hold(self, kind: Kind, block: Block) -> None:
        if kind is Kind.HEAD:
            self._head = block
        elif kind is Kind.TAIL:
            self._tail = block
        else:
            self._window = block

    def _drop_window(self) -> None:
        self._window = _NOTHING
        self._settle()

    def _drop_all(self) -> None:
        self._window = self._head = self._tail = _NOTHING
        self._settle()
        self._pattern.note_dropped()

    def _settle(self) -> None:
        """Count against the budget what is held, and nothing else."""
        self._share.held = len(self._window.content) + len(self._head.content) + len(self._tail.content)
