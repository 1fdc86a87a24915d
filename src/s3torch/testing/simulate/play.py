"""A program that runs: its objects by name, and the checks of all that its calls return and raise.

It is one file of over 450 lines: each step of a program needs the same state, and its judge is beside it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from s3torch import S3Checkpoint, S3Client, S3IterableDataset, S3MapDataset, S3ReaderConfig
from s3torch.errors import (
    ArgumentError,
    CheckpointFormatError,
    ClosedError,
    DeadlineError,
    NotFoundError,
    ObjectChangedError,
    RequestError,
    S3Error,
    TransientError,
)
from s3torch.readers import S3Reader
from s3torch.testing.simulate import probe, seam
from s3torch.testing.simulate.invariants import Finding
from s3torch.testing.simulate.model import BucketModel, Stored, bytes_of
from s3torch.testing.simulate.world import EndlessError, World

if TYPE_CHECKING:
    from s3torch.testing.simulate.coincidences import Tracer
    from s3torch.testing.simulate.programs import DatasetSpec, Program
    from s3torch.testing.simulate.steps import Step

__all__ = ["FAILED", "IterationState", "OopsError", "Play", "ReaderState", "Transform", "longest_call", "reader_config"]

FAILED = object()

# Virtual seconds that a call may take: without faults, with them, and after an interrupt. With few connections the
# objects ahead run out of attempts in turns, while a server says nothing and a call waits for the last of them.
_LONGEST_CALL = 60.0
_LONGEST_CALL_WITH_FAULTS = 400.0
_CONNECTIONS_AHEAD = 8
_LONGEST_INTERRUPT = 2.0
# How often a call may turn the loop although nothing can move: at most half of this was seen in 25,000 calls. A loop
# looks for late answers each 0.02 s; one that turns more often is busy, not waiting.
_TURNS = 100
_TURNS_A_SECOND = 100
_TURNS_A_REQUEST = 10

_CANARY = 0xC5
_numbers = itertools.count()
_plays: weakref.WeakValueDictionary[int, Play] = weakref.WeakValueDictionary()


class OopsError(Exception):
    """What a transform of a program raises."""


def longest_call(program: Program) -> float:
    """Return how many virtual seconds a call may take."""
    if not program.has_faults:
        return _LONGEST_CALL
    connections = int(program.options.get("max_connections", _CONNECTIONS_AHEAD))
    return _LONGEST_CALL_WITH_FAULTS * max(1.0, _CONNECTIONS_AHEAD / connections)


def reader_config(kind: str) -> S3ReaderConfig:
    """Return the configuration of a reader by its short name."""
    if kind == "range":
        return S3ReaderConfig.range_based()
    if kind == "buffered":
        return S3ReaderConfig.range_based(buffer_size=5000)
    return S3ReaderConfig.adaptive() if kind == "adaptive" else S3ReaderConfig.sequential()


@dataclass
class ReaderState:
    """A reader, and what it must return next.

    Attributes:
        position: Where it stands.
        versions: The contents that it may be of; None until something was read.
        is_loose: Whether two threads used it, so that nobody knows the position.
    """

    reader: S3Reader
    key: str
    position: int = 0
    versions: list[bytes] | None = None
    is_loose: bool = False


@dataclass
class IterationState:
    """An iterator of a dataset, and what came of it.

    Attributes:
        keys: The objects that it must yield.
        seen: Those that it has yielded.
        has_failed: Whether it has raised, or ended.
        is_loose: Whether two threads used it.
    """

    iterator: Iterator[Any]
    dataset: int
    keys: list[str]
    seen: list[str] = field(default_factory=list)
    has_failed: bool = False
    is_loose: bool = False


class Transform:
    """Makes a sample of a reader, in one of several ways; pickles.

    Args:
        play: The number of the play that it belongs to.
        dataset: The number of its dataset.
        kind: What it does.
        key: With which object it does something special.
    """

    def __init__(self, play: int, dataset: int, kind: str, key: str) -> None:
        self._play = play
        self._dataset = dataset
        self._kind = kind
        self._key = key

    def __call__(self, reader: S3Reader) -> tuple[str, bytes | None]:
        """Return the key, and what was read."""
        kind, is_special = self._kind, reader.key == self._key
        if kind == "name":
            return reader.key, None
        if kind == "pieces":
            return reader.key, self._in_pieces(reader)
        if kind == "stop" and is_special:
            raise StopIteration
        if kind == "oops" and is_special:
            raise OopsError(reader.key)
        content = reader.read()
        if kind.startswith("nested") and is_special:
            _plays[self._play].nest(self._dataset, kind)
        return reader.key, content

    @staticmethod
    def _in_pieces(reader: S3Reader) -> bytes:
        memory = bytearray(100)
        first = reader.read(7)
        count = reader.readinto(memory)
        return first + memory[:count] + reader.read()


class Play:
    """A program that runs.

    Args:
        program: What runs.
        world: Where it runs.
        ignored: Invariants that are known not to hold.

    Attributes:
        findings: What was found so far.
        happened: What happened so far, beside the steps.
        pairs: What of it met a kind of step.
        step: The step that runs.
    """

    def __init__(self, program: Program, world: World, ignored: frozenset[str] = frozenset()) -> None:
        self.program = program
        self._ignored = ignored
        self.world = world
        self.bucket: BucketModel = world.server.bucket
        self.client = seam.client_of(program.config)
        self.clients: list[S3Client] = [self.client]
        self.things: dict[str, Any] = {}
        self.kept: list[BaseException] = []
        self.findings: list[Finding] = []
        self.happened: set[str] = set()
        self.pairs: set[tuple[str, str]] = set()
        self.step: Step | None = None
        self.interrupted_at: float | None = None
        self.has_interrupted = False
        self.has_lost = False
        self.is_in_the_middle = False
        self.is_lax = False
        self.tracer: Tracer | None = None
        self.shared: set[str] = set()
        self.resumed: set[str] = set()
        self.depth = 0
        self.budget_before = probe.budget_held()
        self.number = next(_numbers)
        _plays[self.number] = self
        self._checkpoint: S3Checkpoint | None = None
        self._states: dict[str, list[dict[str, Any]]] = {}
        self._mine: dict[int, object] = {}  # what the program gave to calls
        self._memory: list[bytearray] = []
        self._results: list[tuple[bytes, bytes]] = []
        self._written = itertools.count()
        self.datasets = [self._new_dataset(number, spec) for number, spec in enumerate(program.datasets)]
        self.tables: dict[int, list[str]] = {}

    # What steps ask for.

    def attempt(
        self,
        what: str,
        keys: Iterable[str],
        function: Callable[[], Any],
        *,
        keep: bool = False,
        may: tuple[type[BaseException], ...] = (),
        shared: bool = False,
    ) -> Any:  # noqa: ANN401  # whatever the function returns
        """Make a call and judge how it ends; returns FAILED if it raised.

        Args:
            what: Names the call in findings.
            keys: The objects that it is about.
            function: Makes it.
            keep: Whether to keep the exception.
            may: What it may raise beside the documented errors.
            shared: Whether it uses what another thread uses at the same time.
        """
        began, turns, requests = self.world.now, self.world.empty_turns, self.world.requests_begun
        self.world.begin_call()
        try:
            return function()
        except S3Error as error:
            if not shared and not isinstance(error, may):
                self._judge(what, list(keys), error)
            if keep:
                self._keep(error)
        except KeyboardInterrupt:
            if self.interrupted_at is None:
                raise
            waited, self.interrupted_at = self.world.now - self.interrupted_at, None
            if waited > _LONGEST_INTERRUPT:
                self.find("time", f"{what} took {waited:.1f} s to leave after Ctrl-C")
        except EndlessError as error:
            self.find("time", f"{what}: {error}")
        except may as error:
            self.happened.add(f"a transform raised {type(error).__name__}")
            if keep and isinstance(error, Exception):
                self._keep(error)
        except Exception as error:  # noqa: BLE001  # every one of them is what is looked for
            was_interrupted = self.has_interrupted and "interrupted while it was listing" in str(error)
            if not was_interrupted and not (shared and type(error) is RuntimeError and "same time" in str(error)):
                self.find("documented errors", f"{what} raised {_named(error)}")
        finally:
            if self.world.now - began > longest_call(self.program) and not self.depth:
                self.find("time", f"{what} took {self.world.now - began:.0f} s")
            turns, seconds = self.world.empty_turns - turns, self.world.now - began
            most = _TURNS + _TURNS_A_SECOND * seconds + _TURNS_A_REQUEST * (self.world.requests_begun - requests)
            if turns > most and self.world.scheduler is None:
                self.find("time", f"{what} turned the loop for nothing {turns} times in {seconds:.3f} s")
        return FAILED

    def _keep(self, error: BaseException) -> None:
        self.happened.add("an error was kept")
        self.kept.append(error)

    def find(self, invariant: str, detail: str) -> None:
        """Take down that an invariant does not hold."""
        if invariant not in self._ignored:
            self.findings.append(Finding(invariant, detail))

    def memory(self, size: int) -> bytearray:
        """Return memory for a call."""
        memory = bytearray(b"\xaa" * size)
        self._mine[id(memory)] = memory
        return memory

    def over(self, memory: bytearray) -> None:
        """Take down that the call that memory was for is over: no byte may change from now on."""
        memory[:] = bytes([_CANARY]) * len(memory)
        self._memory.append(memory)

    def hold(self, found: bytes) -> None:
        """Take down what a call returned: it may not change any more."""
        if len(self._results) < 200:
            self._results.append((found, bytes(bytearray(found))))

    def check_memory(self, when: str) -> None:
        """Check that nobody wrote into memory whose call is over."""
        for memory in self._memory:
            if memory.count(_CANARY) != len(memory):
                self.find("memory", f"{when}: bytes were written into memory whose call is over")
                memory[:] = bytes([_CANARY]) * len(memory)
        for found, expected in self._results:
            if found != expected:
                self.find("memory", f"{when}: bytes that a call has returned were changed")
        self._results = [pair for pair in self._results if pair[0] == pair[1]]

    def replace(self, key: str, size: int | None) -> None:
        """Store another version of an object, as somebody else might."""
        self.happened.add("an object was replaced")
        if size is None:
            self.bucket.remove(key)
        else:
            version = len(self.bucket.versions(key)) + 10
            self.bucket.put(key, Stored.of(bytes_of(key, version, size)))

    def next_bytes(self, key: str, size: int) -> bytes:
        """Return bytes to write."""
        content = bytes_of(key, 1000 + next(self._written), size)
        self._mine[id(content)] = content
        return content

    def same_bytes(self, key: str, size: int) -> bytes:
        """Return bytes to write, the same ones each time."""
        content = bytes_of(key, 999, size)
        self._mine[id(content)] = content
        return content

    @property
    def checkpoint(self) -> S3Checkpoint:
        """What saves and loads checkpoints."""
        if self._checkpoint is None:
            self._checkpoint = S3Checkpoint(**seam.where(), s3client_config=self.program.config)
            self.clients.append(probe.client_of_checkpoint(self._checkpoint))
        return self._checkpoint

    def new_state(self, key: str, sizes: Sequence[int]) -> dict[str, Any]:
        """Return a state to save, and remember it."""
        contents = [bytearray(self.next_bytes(key, size)) for size in sizes]
        self._mine |= {id(each): each for each in contents}
        state = {f"layer {number}": torch.frombuffer(each, dtype=torch.uint8) for number, each in enumerate(contents)}
        self._states.setdefault(key, []).append(state)
        return state

    def states_of(self, key: str) -> Sequence[dict[str, Any]]:
        """Return all that was saved, or begun to be."""
        return self._states.get(key, ())

    def begin_in_child(self) -> None:
        """Go on in a child that was forked: it tells what it finds itself."""
        self.findings.clear()
        self.happened.clear()
        self.tracer = None
        self.world.begin_in_child()

    def has_open_upload(self, key: str) -> bool:
        """Whether an upload of this key is open."""
        return any(upload.key == key for upload in self.world.server.uploads.values())

    def drop(self, name: str) -> None:
        """Drop a reader, a writer or an iterator."""
        if self.things.pop(name, None) is not None:
            self.is_lax = True

    def forget_checkpoints(self) -> None:
        """Drop what saves and loads checkpoints."""
        self._checkpoint = None

    # Datasets.

    def keys_of(self, number: int) -> list[str] | None:
        """Return the keys of a map dataset, in order; None if it could not be listed."""
        if number not in self.tables:
            dataset = self.datasets[number]
            listed = self.attempt("objects", (), lambda: [item.key for item in dataset.objects])
            if listed is FAILED:
                return None
            due = self.program.keys_of(number, self.bucket.keys)
            if listed != due and not self.bucket.was_replaced(set(listed) | set(due)):
                self.find("results", f"objects of dataset {number} are {listed}, and {due} are there")
            self.tables[number] = listed
        return self.tables[number]

    def batch(self, number: int, places: Sequence[int], *, upcoming: Sequence[int] = (), keep: bool = False) -> None:
        """Get a batch of a map dataset and check it."""
        keys = self.keys_of(number)
        if not keys:
            return
        indices = _Indices(place % len(keys) for place in places)
        indices.upcoming = [place % len(keys) for place in upcoming]
        self.is_lax |= bool(upcoming)
        self.batch_of(number, indices, keys, keep=keep)

    def batch_of(self, number: int, indices: Sequence[int], keys: list[str], *, keep: bool = False) -> None:
        """Get a batch of a map dataset by its indices and check it."""
        spec, dataset = self.program.datasets[number], self.datasets[number]
        wanted = [keys[index] for index in indices]
        special = self.special_key(spec)
        may: tuple[type[BaseException], ...] = (OopsError,) if spec.transform == "oops" and special in wanted else ()
        stops = spec.transform == "stop" and special in wanted
        what = f"batch {list(indices)} of dataset {number}"
        found = self.attempt(
            what, wanted, lambda: dataset.__getitems__(indices), keep=keep, may=(*may, RuntimeError) if stops else may
        )
        if found is FAILED:
            return
        if len(found) != len(wanted):
            self.find("results", f"{what} has {len(found)} samples")
            return
        for key, sample in zip(wanted, found, strict=True):
            if self.world.is_silent:
                return  # a reader that is read here would only wait
            self.check_sample(what, spec, key, sample)

    def check_sample(self, what: str, spec: DatasetSpec, key: str, sample: Any) -> None:  # noqa: ANN401  # a transform's
        """Check one sample of a dataset."""
        if spec.transform == "reader":
            if sample.key != key:
                self.find("results", f"{what}: the reader of {sample.key} came for {key}")
                return
            content = self.attempt(f"{what}: reading {key}", [key], sample.read)
            if content is FAILED:
                return
            sample = key, content
        found, content = sample
        if found != key:
            self.find("results", f"{what}: the sample of {found} came for {key}")
        elif content is not None and not self.bucket.is_slice(key, 0, None, content):
            self.find("results", f"{what}: the sample of {key} has wrong bytes ({len(content)})")
        elif content is not None:
            self.hold(content)

    def special_key(self, spec: DatasetSpec) -> str:
        """Return the object with which a dataset's transform does something special."""
        return self.program.key_of_special(spec)

    def nest(self, number: int, kind: str) -> None:
        """Use the client or the dataset in the middle of a transform."""
        if self.depth >= 2:
            return
        self.depth += 1
        self.happened.add(kind)
        try:
            self._nest(number, kind)
        finally:
            self.depth -= 1

    def _nest(self, number: int, kind: str) -> None:
        key = self.program.keys[-1]
        if kind == "nested batch" and isinstance(self.datasets[number], S3MapDataset):
            keys = self.keys_of(number)
            special = self.special_key(self.program.datasets[number])
            self.batch_of(number, [place for place, key in enumerate(keys or ()) if key != special][:3], keys or [])
        elif kind == "nested read":
            client = self.datasets[number].client
            found = self.attempt("nested read_range", [key], lambda: client.read_range(seam.BUCKET, key, 0, 50))
            if found is not FAILED and not self.bucket.is_slice(key, 0, 50, found):
                self.find("results", f"nested read_range of {key} has wrong bytes")
        elif kind == "nested close":
            self.datasets[number].client.close()
        elif kind == "nested list":
            client = self.datasets[number].client
            self.attempt("nested listing", (), lambda: list(client.list_objects(seam.BUCKET, "k/", max_keys=3)))

    # What is documented.

    def _judge(self, what: str, keys: list[str], error: S3Error) -> None:
        """Check that an error has a reason in the program."""
        has_reason = False
        if isinstance(error, NotFoundError):
            has_reason = any(self.bucket.was_missing(key) for key in keys)
        elif isinstance(error, CheckpointFormatError):
            has_reason = False  # what was saved can be loaded, whatever happens to the transfer
        elif isinstance(error, (ObjectChangedError, ArgumentError)):  # a range may be beyond the end of the new version
            has_reason = self.bucket.was_replaced(keys)
        elif isinstance(error, DeadlineError) and self.program.config.call_timeout is not None:
            self.happened.add("a deadline passed")
            has_reason = True
        elif isinstance(error, TransientError):
            has_reason = self.program.has_faults or self.has_interrupted
        elif isinstance(error, RequestError) and error.status == 409:  # to HEAD: no body says that it is only for now
            has_reason = any(name == "conflict" for _, name in self.program.faults)
        elif "Whether the object was stored is not known" in str(error):
            has_reason = self.program.has_faults
        if isinstance(error, ClosedError):
            has_reason = self.has_interrupted
        # An error of a signal handler has that one for its context which is handled where it came, with all its frames.
        if not self.is_in_the_middle and (held := probe.held_by(error, self._mine)):
            self.find("errors", f"whoever keeps the error of {what} keeps {held[0]}")
        if not has_reason:
            self.find("documented errors", f"{what} raised {_named(error)} without a reason")

    def _new_dataset(self, number: int, spec: DatasetSpec) -> Any:  # noqa: ANN401  # either dataset
        made: Any = S3MapDataset if spec.kind == "map" else S3IterableDataset
        options: dict[str, Any] = {
            **seam.where(),
            "s3client_config": self.program.config,
            "reader_config": reader_config(spec.reader),
        }
        if spec.transform != "reader":
            options["transform"] = Transform(self.number, number, spec.transform, self.special_key(spec))
        if spec.is_sharded:
            options["enable_sharding"] = True
        if spec.source == "prefix":
            dataset = made.from_prefix(f"s3://{seam.BUCKET}/k/", **options)
        else:
            uris = [f"s3://{seam.BUCKET}/{key}" for key in self.program.keys_of(number, ())]
            dataset = made.from_objects(uris, **options)
        self.clients.append(dataset.client)
        return dataset


class _Indices(list[int]):
    """Indices of a batch as LookAheadBatchSampler yields them."""

    upcoming: list[int]


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
