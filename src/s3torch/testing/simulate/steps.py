"""The statements of programs. Each is a call or a few of the public API, and checks what comes of it.

It is one file of over 450 lines: each step of a program is some twenty of them, and who looks for one looks here.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import context
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data._utils.worker as torch_worker

from s3torch import LookAheadBatchSampler
from s3torch.testing.simulate import seam
from s3torch.testing.simulate.play import FAILED, IterationState, OopsError, Play, ReaderState, reader_config
from s3torch.testing.simulate.scheduler import Scheduler

if TYPE_CHECKING:
    from s3torch import S3Writer

__all__ = [
    "Batch",
    "Churn",
    "CloseClient",
    "Drop",
    "Elsewhere",
    "EndWriter",
    "Epoch",
    "ForgetErrors",
    "Head",
    "Iterate",
    "ListPages",
    "Load",
    "LoseInCycle",
    "Next",
    "Open",
    "OpenWriter",
    "Prefetch",
    "Read",
    "ReadInto",
    "ReadLine",
    "ReadRange",
    "ReadRanges",
    "ReplaceObject",
    "Resume",
    "Save",
    "Seek",
    "Step",
    "Together",
    "Workers",
    "Write",
    "WriteTo",
]

BUCKET = seam.BUCKET
_NEVER = 10**6  # bytecodes between two switches: threads take turns only where they wait


class Step:
    """A statement of a program."""

    def run(self, play: Play) -> None:
        """Do it, and check it."""
        raise NotImplementedError

    @property
    def names(self) -> set[str]:
        """The readers, writers and iterators that it uses."""
        name = getattr(self, "name", "")
        return {name} if name else set()


@dataclass(frozen=True)
class Batch(Step):
    """``dataset.__getitems__`` of a map dataset."""

    dataset: int
    places: tuple[int, ...]
    upcoming: tuple[int, ...] = ()
    keep: bool = False

    def run(self, play: Play) -> None:
        """Get the batch."""
        play.batch(self.dataset, self.places, upcoming=self.upcoming, keep=self.keep)


@dataclass(frozen=True)
class Epoch(Step):
    """A loop over batches, each error of s3torch followed by ``continue``."""

    dataset: int
    batches: tuple[tuple[int, ...], ...]
    ahead: int = 0
    keep: bool = False

    def run(self, play: Play) -> None:
        """Get the batches."""
        keys = play.keys_of(self.dataset)
        if not keys:
            return
        batches = [[place % len(keys) for place in batch] for batch in self.batches]
        sampler: Any = LookAheadBatchSampler(batches, batches_ahead=self.ahead) if self.ahead else batches
        for batch in sampler:
            play.batch_of(self.dataset, batch, keys, keep=self.keep)


@dataclass(frozen=True)
class Iterate(Step):
    """``iter(dataset)`` of an iterable dataset."""

    name: str
    dataset: int

    def run(self, play: Play) -> None:
        """Make the iterator."""
        keys = play.program.keys_of(self.dataset, play.bucket.keys)
        iterator = play.attempt("iter", (), lambda: iter(play.datasets[self.dataset]))
        if iterator is not FAILED:
            play.things[self.name] = IterationState(iterator, self.dataset, keys)


@dataclass(frozen=True)
class Next(Step):
    """A few samples of an iterator."""

    name: str
    count: int

    def run(self, play: Play) -> None:
        """Take them."""
        state = play.things.get(self.name)
        for _ in range(self.count):
            if state is None or not self._take(play, state):
                return

    def _take(self, play: Play, state: IterationState) -> bool:
        spec = play.program.datasets[state.dataset]
        what = f"next({self.name})"
        special = play.special_key(spec)
        may: tuple[type[BaseException], ...] = {"oops": (OopsError,), "stop": (RuntimeError,)}.get(spec.transform, ())
        keys = state.keys if spec.source == "objects" else play.program.keys
        is_shared = self.name in play.shared
        state.is_loose |= is_shared
        if is_shared:
            may = (*may, ValueError)  # "generator already executing", which Python itself says
        sample = play.attempt(what, keys, lambda: next(state.iterator, None), may=may, shared=is_shared)
        if sample is FAILED:
            state.has_failed = True
            return False
        is_certain = not (state.has_failed or state.is_loose or play.has_interrupted)
        has_changed = spec.source == "prefix" and play.bucket.was_replaced([*play.program.keys, *state.keys])
        if sample is None:
            if is_certain and state.seen != state.keys and not has_changed:
                missed = [key for key in state.keys if key not in state.seen]
                why = f", whose transform raised StopIteration at {special}" if spec.transform == "stop" else ""
                play.find("results", f"{what} ended after {len(state.seen)} of {len(state.keys)}{why}; not {missed}")
            state.has_failed = True
            return False
        key = sample.key if spec.transform == "reader" else sample[0]
        if is_certain and not has_changed:
            due = state.keys[len(state.seen)] if len(state.seen) < len(state.keys) else None
            if key != due:
                play.find("results", f"{what} is of {key}, and {due} is next")
        if spec.transform == "stop" and key == special:
            play.find("results", f"{what} is of {key}, whose transform raised StopIteration")
        state.seen.append(key)
        play.check_sample(what, spec, key, sample)
        return True


@dataclass(frozen=True)
class Drop(Step):
    """``del`` of a reader, a writer or an iterator; an iterator may be closed first, as by ``break``."""

    name: str

    def run(self, play: Play) -> None:
        """Drop it."""
        if not isinstance(play.things.get(self.name), IterationState):
            play.is_lax = True
        play.happened.add("an iterator or a reader was dropped")
        play.attempt("del", (), lambda: play.things.pop(self.name, None) and None)


@dataclass(frozen=True)
class LoseInCycle(Step):
    """A reader, a writer or an iterator is dropped, and only the garbage collector will find it."""

    name: str

    def run(self, play: Play) -> None:
        """Put it into a cycle."""
        thing = play.things.pop(self.name, None)
        if thing is not None:
            play.happened.add("something was left to the collector")
            play.has_lost = play.is_lax = True
            cycle: list[object] = [thing]
            cycle.append(cycle)


@dataclass(frozen=True)
class ForgetErrors(Step):
    """The exceptions that were kept are dropped."""

    def run(self, play: Play) -> None:
        """Drop them."""
        play.kept.clear()


@dataclass(frozen=True)
class Open(Step):
    """``client.get_object``."""

    name: str
    key: str
    kind: str = "sequential"
    told: bool = False

    def run(self, play: Play) -> None:
        """Open the reader."""
        told = None
        if self.told:
            told = play.attempt("head_object", [self.key], lambda: play.client.head_object(BUCKET, self.key))
            if told is FAILED:
                return
        config = reader_config(self.kind)
        reader = play.attempt(
            "get_object",
            [self.key],
            lambda: play.client.get_object(BUCKET, self.key, object_info=told, reader_config=config),
        )
        if reader is not FAILED:
            play.things[self.name] = ReaderState(reader, self.key)


class _ReaderStep(Step):
    """A call of a reader that moves its position."""

    name: str

    def run(self, play: Play) -> None:
        """Make the call."""
        state = play.things.get(self.name)
        if not isinstance(state, ReaderState):
            return
        is_shared = self.name in play.shared
        state.is_loose |= is_shared
        before = state.position
        what = f"{self!r}"
        memory = self.memory(play)
        found = play.attempt(what, [state.key], lambda: self.call(state, memory), shared=is_shared)
        if memory is not None:
            count = found if isinstance(found, int) else 0
            taken = bytes(memory[:count])
            play.over(memory)
            found = found if found is FAILED else taken
        if found is FAILED:
            self._check_position(play, state, before)
            return
        if memory is None:
            play.hold(found)
        self._check(play, what, state, before, found)

    def memory(self, play: Play) -> bytearray | None:
        """Return memory that the call is to fill, or None."""
        del play
        return None

    def call(self, state: ReaderState, memory: bytearray | None) -> object:
        """Make the call."""
        raise NotImplementedError

    def due(self, content: bytes, position: int) -> bytes:
        """Return what the call must return of an object."""
        raise NotImplementedError

    @staticmethod
    def _check_position(play: Play, state: ReaderState, before: int) -> None:
        if play.has_interrupted and not state.is_loose and not state.reader.closed:
            state.position = state.reader.tell()
        elif not state.is_loose and not state.reader.closed and state.reader.tell() != before:
            play.find("results", f"a read that failed moved the position from {before} to {state.reader.tell()}")

    def _check(self, play: Play, what: str, state: ReaderState, before: int, found: bytes) -> None:
        if state.is_loose:
            if not any(found in content for content in play.bucket.versions(state.key)):
                play.find("results", f"{what}: these bytes are not in {state.key}")
            return
        versions = play.bucket.versions(state.key) if state.versions is None else state.versions
        fitting = [content for content in versions if self.due(content, before) == found]
        if not fitting:
            play.find("results", f"{what} at {before} of {state.key} returned {len(found)} wrong bytes")
            return
        state.versions = fitting
        state.position = before + len(found)


@dataclass(frozen=True)
class Read(_ReaderStep):
    """``reader.read``."""

    name: str
    size: int

    def call(self, state: ReaderState, memory: bytearray | None) -> object:
        """Read."""
        del memory
        return state.reader.read(self.size)

    def due(self, content: bytes, position: int) -> bytes:
        """Return the bytes at the position."""
        return content[position:] if self.size < 0 else content[position : position + self.size]


@dataclass(frozen=True)
class ReadInto(_ReaderStep):
    """``reader.readinto``."""

    name: str
    size: int

    def memory(self, play: Play) -> bytearray | None:
        """Return memory of that size."""
        return play.memory(self.size)

    def call(self, state: ReaderState, memory: bytearray | None) -> object:
        """Read into the memory."""
        assert memory is not None
        return state.reader.readinto(memory)

    def due(self, content: bytes, position: int) -> bytes:
        """Return the bytes at the position."""
        return content[position : position + self.size]


@dataclass(frozen=True)
class ReadLine(_ReaderStep):
    """``reader.readline``."""

    name: str

    def call(self, state: ReaderState, memory: bytearray | None) -> object:
        """Read a line."""
        del memory
        return state.reader.readline()

    def due(self, content: bytes, position: int) -> bytes:
        """Return the line at the position."""
        newline = content.find(b"\n", position)
        return content[position:] if newline < 0 else content[position : newline + 1]


@dataclass(frozen=True)
class Seek(Step):
    """``reader.seek``."""

    name: str
    offset: int

    def run(self, play: Play) -> None:
        """Move the position."""
        state = play.things.get(self.name)
        if not isinstance(state, ReaderState):
            return
        is_shared = self.name in play.shared
        state.is_loose |= is_shared
        found = play.attempt(repr(self), [state.key], lambda: state.reader.seek(self.offset), shared=is_shared)
        if found is FAILED or state.is_loose:
            return
        versions = state.versions or play.bucket.versions(state.key)
        if not any(found == min(self.offset, len(content)) for content in versions) and found != self.offset:
            play.find("results", f"{self!r} returned {found}")
        state.position = found


@dataclass(frozen=True)
class Prefetch(Step):
    """``reader.prefetch``."""

    name: str

    def run(self, play: Play) -> None:
        """Begin to fetch."""
        state = play.things.get(self.name)
        if isinstance(state, ReaderState):
            is_shared = self.name in play.shared
            play.attempt(repr(self), [state.key], state.reader.prefetch, shared=is_shared)


@dataclass(frozen=True)
class ReadRange(Step):
    """``client.read_range``."""

    key: str
    start: int
    stop: int | None
    into: bool = False

    def run(self, play: Play) -> None:
        """Read the range."""
        if not self.into or self.stop is None:
            call = lambda: play.client.read_range(BUCKET, self.key, self.start, self.stop)  # noqa: E731
            found = play.attempt(repr(self), [self.key], call)
            if found is not FAILED:
                play.hold(found)
        else:
            memory, stop = play.memory(self.stop - self.start), self.stop
            count = play.attempt(
                repr(self), [self.key], lambda: play.client.read_range(BUCKET, self.key, self.start, stop, memory)
            )
            found = FAILED if count is FAILED else bytes(memory[:count])
            play.over(memory)
        if found is not FAILED and not play.bucket.is_slice(self.key, self.start, self.stop, found):
            play.find("results", f"{self!r} returned {len(found)} wrong bytes")


@dataclass(frozen=True)
class ReadRanges(Step):
    """``client.read_ranges``, of ranges that the object has."""

    key: str
    ranges: tuple[tuple[int, int], ...]
    into: bool = False

    def run(self, play: Play) -> None:
        """Read the ranges."""
        if not self.into:
            found = play.attempt(
                repr(self),
                [self.key],
                lambda: play.client.read_ranges(BUCKET, self.key, self.ranges),
                may=self._may(play),
            )
        else:
            memory = [play.memory(stop - start) for start, stop in self.ranges]
            done = play.attempt(
                repr(self),
                [self.key],
                lambda: play.client.read_ranges(BUCKET, self.key, self.ranges, memory),
                may=self._may(play),
            )
            found = FAILED if done is FAILED else [bytes(each) for each in memory]
            for each in memory:
                play.over(each)
        if found is not FAILED and not play.bucket.are_slices(self.key, self.ranges, found):
            play.find("results", f"{self!r} returned wrong bytes")

    def _may(self, play: Play) -> tuple[type[BaseException], ...]:
        end = max((stop for _, stop in self.ranges), default=0)
        is_beyond = any(end > len(content) for content in play.bucket.versions(self.key))
        return (ValueError,) if is_beyond else ()


@dataclass(frozen=True)
class Write(Step):
    """A writer from beginning to end: ``close``, ``abort``, an exception in the block (``raise``), or ``drop``."""

    key: str
    sizes: tuple[int, ...]
    how: str = "close"

    def run(self, play: Play) -> None:
        """Write."""
        play.is_lax |= self.how == "drop"
        pieces = [play.next_bytes(self.key, size) for size in self.sizes]
        done = play.attempt(repr(self), [self.key], lambda: self._write(play, pieces), may=(OopsError,))
        _check_written(play, repr(self), self.key, b"".join(pieces), is_certain=done == "close")

    def _write(self, play: Play, pieces: list[bytes]) -> str:
        writer = play.client.put_object(BUCKET, self.key)
        if self.how == "raise":
            with writer:
                writer.writelines(pieces)
                raise OopsError
        writer.writelines(pieces)
        if self.how == "close":
            writer.close()
        elif self.how == "abort":
            writer.abort()
        return self.how


@dataclass(frozen=True)
class Resume(Step):
    """A writer with ``resume=True``: goes on where an earlier one of this key was interrupted; see ``Write``."""

    key: str
    size: int
    how: str = "close"

    def run(self, play: Play) -> None:
        """Write, the same bytes each time."""
        play.resumed.add(self.key)
        play.is_lax |= self.how == "drop"
        content = play.same_bytes(self.key, self.size)
        done = play.attempt(repr(self), [self.key], lambda: self._write(play, content), may=(OopsError,))
        _check_written(play, repr(self), self.key, content, is_certain=done == "close")

    def _write(self, play: Play, content: bytes) -> str:
        writer = play.client.put_object(BUCKET, self.key, resume=True)
        play.happened.add("an upload was resumed" if play.has_open_upload(self.key) else "an upload may be resumed")
        with writer:
            writer.write(content)
            if self.how == "raise":
                raise OopsError
        return self.how


@dataclass(frozen=True)
class Save(Step):
    """``S3Checkpoint.save`` of a few tensors."""

    key: str
    sizes: tuple[int, ...]

    def run(self, play: Play) -> None:
        """Save."""
        state = play.new_state(self.key, self.sizes)
        done = play.attempt(
            repr(self), [self.key], lambda: play.checkpoint.save(state, f"s3://{BUCKET}/{self.key}", progress=False)
        )
        play.happened.add("a checkpoint was saved")
        if done is not FAILED and play.bucket.get(self.key) is None:
            play.find("results", f"{self!r} has stored nothing")


@dataclass(frozen=True)
class Load(Step):
    """``S3Checkpoint.load``."""

    key: str

    def run(self, play: Play) -> None:
        """Load, and compare with all that was saved there."""
        found = play.attempt(
            repr(self), [self.key], lambda: play.checkpoint.load(f"s3://{BUCKET}/{self.key}", progress=False)
        )
        if found is not FAILED:
            play.happened.add("a checkpoint was loaded")
            if not any(_are_equal(found, state) for state in play.states_of(self.key)):
                play.find("results", f"{self!r} returned another state than those that were saved")


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _check_written(play: Play, what: str, key: str, content: bytes, *, is_certain: bool) -> None:
    stored = play.bucket.get(key)
    if stored is None:
        if is_certain:
            play.find("results", f"{what} has stored nothing")
    elif all(content != each for each in play.bucket.versions(key)):  # another writer may have come last
        play.find("results", f"{what} has stored {len(stored.content)} other bytes")


@dataclass(frozen=True)
class OpenWriter(Step):
    """``client.put_object``."""

    name: str
    key: str

    def run(self, play: Play) -> None:
        """Open the writer."""
        writer = play.attempt(repr(self), [self.key], lambda: play.client.put_object(BUCKET, self.key))
        if writer is not FAILED:
            play.things[self.name] = writer
            play.things[f"{self.name} wrote"] = []


@dataclass(frozen=True)
class WriteTo(Step):
    """``writer.write``."""

    name: str
    size: int

    def run(self, play: Play) -> None:
        """Write."""
        writer: S3Writer | None = play.things.get(self.name)
        if writer is None or writer.closed:
            return
        key = writer.key  # now: what is interrupted there is no write
        content = play.next_bytes(key, self.size)
        play.things[f"{self.name} wrote"].append(content)
        if play.attempt(repr(self), [key], lambda: writer.write(content)) is FAILED and not writer.closed:
            writer.abort()  # as leaving ``with`` would: nobody knows whether a write that was interrupted took anything


@dataclass(frozen=True)
class EndWriter(Step):
    """``writer.close`` or ``writer.abort``."""

    name: str
    how: str = "close"

    def run(self, play: Play) -> None:
        """End it."""
        writer: S3Writer | None = play.things.get(self.name)
        if writer is None or writer.closed:
            return
        content, key = b"".join(play.things[f"{self.name} wrote"]), writer.key
        done = play.attempt(repr(self), [key], writer.close if self.how == "close" else writer.abort)
        _check_written(play, repr(self), key, content, is_certain=done is None and self.how == "close")


@dataclass(frozen=True)
class ListPages(Step):
    """Pages of a listing."""

    prefix: str = "k/"
    max_keys: int = 1000
    pages: int = 100

    def run(self, play: Play) -> None:
        """List them."""
        before = [key for key in play.bucket.keys if key.startswith(self.prefix)]
        found = play.attempt(repr(self), (), lambda: list(self._listed(play)))
        if found is FAILED or play.bucket.was_replaced({*before, *found}):
            return
        if found != before[: self.pages * self.max_keys]:
            play.find("results", f"{self!r} found {found}, and {before} are there")

    def _listed(self, play: Play) -> Iterator[str]:
        for number, page in enumerate(play.client.list_objects(BUCKET, self.prefix, max_keys=self.max_keys), 1):
            yield from (info.key for info in page.object_info)
            if number == self.pages:
                return


@dataclass(frozen=True)
class Head(Step):
    """``client.head_object``."""

    key: str

    def run(self, play: Play) -> None:
        """Ask for the size."""
        found = play.attempt(repr(self), [self.key], lambda: play.client.head_object(BUCKET, self.key))
        if found is not FAILED and all(found.size != len(content) for content in play.bucket.versions(self.key)):
            play.find("results", f"{self!r} says {found.size} bytes")


@dataclass(frozen=True)
class CloseClient(Step):
    """``client.close()`` of the program's client, or of a dataset's."""

    dataset: int | None = None

    def run(self, play: Play) -> None:
        """Close it."""
        play.happened.add("the client was closed")
        client = play.client if self.dataset is None else play.datasets[self.dataset].client
        play.attempt(repr(self), (), client.close)


@dataclass(frozen=True)
class ReplaceObject(Step):
    """Somebody else stores another version of an object, or deletes it."""

    key: str
    size: int | None

    def run(self, play: Play) -> None:
        """Do it."""
        play.replace(self.key, self.size)


@dataclass(frozen=True)
class Elsewhere(Step):
    """Steps in another thread, for whose end this one waits."""

    steps: tuple[Step, ...]

    def run(self, play: Play) -> None:
        """Run them there."""
        play.happened.add("another thread, one after the other")
        play.is_lax = True  # what this thread had begun and the other cancels is over with this one's next turn
        thread = threading.Thread(target=_run_all, args=(play, self.steps))
        thread.start()
        thread.join()


@dataclass(frozen=True)
class Churn(Step):
    """Threads that come, read, and go, one after the other."""

    threads: int
    key: str

    def run(self, play: Play) -> None:
        """Run them."""
        for _ in range(self.threads):
            Elsewhere((ReadRange(self.key, 0, 10),)).run(play)


@dataclass(frozen=True)
class Together(Step):
    """Steps in several threads at the same time, the first of which is the main thread.

    Args:
        threads: The steps of each.
        gap: Bytecodes between two switches, on average.
    """

    threads: tuple[tuple[Step, ...], ...]
    gap: int = 300

    @property
    def names(self) -> set[str]:
        """What any of them uses."""
        return {name for steps in self.threads for step in steps for name in step.names}

    def run(self, play: Play) -> None:
        """Run them."""
        play.is_lax = True  # what one thread has begun and another cancels is over with the first one's next turn
        used = [{name for step in steps for name in step.names} for steps in self.threads]
        play.shared = {name for names in used for name in names if sum(name in each for each in used) > 1}
        scheduler = Scheduler(play.world, play.world.chance, self.gap)
        tracer = play.tracer if self.gap < _NEVER else None

        def body(steps: tuple[Step, ...]) -> None:
            if tracer is not None:
                tracer.start()
            try:
                _run_all(play, steps)
            finally:
                if tracer is not None:
                    tracer.leave()

        if tracer is not None:
            tracer.take_turns(scheduler.draw, scheduler.switch)
        try:
            scheduler.run([partial(body, steps) for steps in self.threads])
        finally:
            if scheduler.switches:
                play.happened.add("threads in turn")
            if play.shared:
                play.happened.add("threads shared something")
            play.shared = set()
            if tracer is not None:
                tracer.end_turns()


def _run_all(play: Play, steps: tuple[Step, ...]) -> None:
    for step in steps:
        try:
            step.run(play)
        except KeyboardInterrupt:  # where no call of ours was the outermost
            play.interrupted_at = None


@dataclass(frozen=True)
class Workers(Step):
    """DataLoader workers, one after the other: a dataset is pickled to each, and an object is added in between.

    Args:
        dataset: Which dataset, not listed yet.
        workers: How many.
        key: Of the object that is added when the first has begun; empty for none.
    """

    dataset: int
    workers: int
    key: str = ""

    def run(self, play: Play) -> None:
        """Run them."""
        dataset, spec = play.datasets[self.dataset], play.program.datasets[self.dataset]
        due = play.program.keys_of(self.dataset, play.bucket.keys)
        copies = []
        for _ in range(self.workers):
            context.set_spawning_popen(self)  # type: ignore[arg-type]  # as multiprocessing does while it pickles for a process that it starts
            try:
                copies.append(pickle.loads(pickle.dumps(dataset)))  # noqa: S301  # our own
            finally:
                context.set_spawning_popen(None)
        play.clients += [copy.client for copy in copies]
        play.happened.add("workers")
        found: list[str] = []
        for worker, copy in enumerate(copies):
            torch_worker._worker_info = torch_worker.WorkerInfo(
                id=worker, num_workers=self.workers, seed=1000 + worker, dataset=copy
            )
            try:
                keys = play.attempt(repr(self), due, partial(self._keys, copy, worker, spec.kind))
            finally:
                torch_worker._worker_info = None
            if keys is FAILED:
                return
            found += keys
            if not worker and self.key:
                play.replace(self.key, 100)
        if sorted(key for key in found if key != self.key) != due:
            play.find("results", f"{self!r} yielded {sorted(found)}, and {due} were there")

    def _keys(self, copy: Any, worker: int, kind: str) -> list[str]:  # noqa: ANN401  # either dataset
        if kind != "map":
            return [sample[0] for sample in copy]
        places = [place for place in range(len(copy)) if place % self.workers == worker]
        return [sample[0] for sample in copy.__getitems__(places)] if places else []
