"""Random programs: what a seed says is done, and with what. See ``running`` for what happens in the middle of it.

It is one file of over 450 lines: each kind of program is a function, and all draw from the same few.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from s3torch import S3ClientConfig
from s3torch.testing.simulate.coincidences import Coincidence
from s3torch.testing.simulate.forking import Fork
from s3torch.testing.simulate.model import key_of
from s3torch.testing.simulate.steps import (
    Batch,
    Churn,
    CloseClient,
    Drop,
    Elsewhere,
    EndWriter,
    Epoch,
    ForgetErrors,
    Head,
    Iterate,
    ListPages,
    Load,
    LoseInCycle,
    Next,
    Open,
    OpenWriter,
    Prefetch,
    Read,
    ReadInto,
    ReadLine,
    ReadRange,
    ReadRanges,
    ReplaceObject,
    Resume,
    Save,
    Seek,
    Step,
    Together,
    Workers,
    Write,
    WriteTo,
)
from s3torch.testing.simulate.world import FAULTS

__all__ = ["KINDS", "DatasetSpec", "Program", "draft", "kind_of"]

KiB = 1024

# What happens beside the program; the middle of its steps is hit by those of the second line.
KINDS = (
    *("plain", "faults", "deadline", "replaced", "workers", "churn", "threads"),
    *("interrupts", "signals", "collections", "silence", "forks"),
)

# A tenth of the defaults: what waits does so in turns of the loop, and these take time in earnest.
_TIMEOUTS = {"connect_timeout": 1.0, "first_byte_timeout": 3.0, "stall_timeout": 2.0}

_SIZES = (0, 1, 90, 300, 300, 4_000, 4_000, 20_000, 20_000, 70_000, 200_000)
_READERS = ("sequential", "sequential", "range", "buffered", "adaptive", "adaptive")
_TRANSFORMS = (
    *("read", "read", "read", "pieces", "name", "reader", "oops", "stop"),
    *("nested batch", "nested read", "nested close", "nested list"),
)


@dataclass(frozen=True)
class DatasetSpec:
    """How a dataset of a program is made.

    Args:
        kind: ``map`` or ``iterable``.
        source: ``prefix`` lists what is there; ``objects`` names all objects, missing ones too.
        transform: What makes a sample.
        reader: The kind of reader.
        special: With which object the transform does something special.
        is_sharded: Whether workers share the objects.
    """

    kind: str
    source: str = "prefix"
    transform: str = "read"
    reader: str = "sequential"
    special: int = 0
    is_sharded: bool = False


@dataclass(frozen=True, repr=False)
class Program:
    """What is done, with what, and what happens in the middle of it.

    Args:
        seed: Of all that is left to chance while it runs: delays, pieces of answers, turns of threads.
        objects: The size of each object; None is a key without an object.
        steps: What is done.
        datasets: With which datasets.
        options: Of S3ClientConfig.
        coincidences: What happens in the middle.
        faults: What happens to which request, counted from 1.
        is_tls: Whether connections behave as those of TLS do.
    """

    seed: int
    objects: tuple[int | None, ...] = (100,)
    steps: tuple[Step, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    coincidences: tuple[Coincidence, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    is_tls: bool = False

    def __repr__(self) -> str:
        lines = ["Program("]
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name in ("steps", "datasets", "coincidences") and value:
                lines += [f"    {each.name}=(", *(f"        {item!r}," for item in value), "    ),"]
            elif each.name == "seed" or value:
                lines.append(f"    {each.name}={value!r},")
        return "\n".join([*lines, ")"])

    @property
    def config(self) -> S3ClientConfig:
        """The configuration of its clients."""
        return S3ClientConfig(unsigned=True, **{**_TIMEOUTS, **self.options})

    @property
    def has_faults(self) -> bool:
        """Whether something goes wrong on the network."""
        return bool(self.faults)

    @property
    def keys(self) -> list[str]:
        """The keys of its objects, missing ones too."""
        return [key_of(number) for number in range(len(self.objects))]

    def keys_of(self, dataset: int, present: Iterable[str]) -> list[str]:
        """Return the keys of a dataset, while these are there."""
        if self.datasets[dataset].source == "objects":
            return self.keys
        return [key for key in present if key.startswith("k/")]

    def key_of_special(self, spec: DatasetSpec) -> str:
        """Return the object with which a dataset's transform does something special."""
        return key_of(spec.special % len(self.objects))


class _Writer:
    """Writes one program."""

    def __init__(self, chance: random.Random, kind: str) -> None:
        self.chance = chance
        self.kind = kind
        self.count = chance.choice((3, 6, 12, 24))
        missing = chance.choice((0.0, 0.15, 0.3) if kind == "collections" else (0.0, 0.0, 0.15))
        self.objects: list[int | None] = [
            None if chance.random() < missing else chance.choice(_SIZES) for _ in range(self.count)
        ]
        if chance.random() < 0.1:
            self.objects[chance.randrange(self.count)] = 700_000
        if all(size is None for size in self.objects):
            self.objects[0] = 300
        self.datasets: list[DatasetSpec] = []
        self.names = 0

    def name(self, letter: str) -> str:
        self.names += 1
        return f"{letter}{self.names}"

    def key(self) -> str:
        return key_of(self.chance.randrange(self.count))

    def dataset(self, kind: str, **fixed: Any) -> int:  # noqa: ANN401  # of DatasetSpec
        chance = self.chance
        options: dict[str, Any] = {
            "source": "objects" if None in self.objects or chance.random() < 0.4 else "prefix",
            "transform": chance.choice(_TRANSFORMS),
            "reader": chance.choice(_READERS),
            "special": chance.randrange(self.count),
        }
        self.datasets.append(DatasetSpec(kind, **{**options, **fixed}))
        return len(self.datasets) - 1

    def old_dataset(self, kind: str) -> int:
        known = [number for number, spec in enumerate(self.datasets) if spec.kind == kind]
        return self.chance.choice(known) if known and self.chance.random() < 0.6 else self.dataset(kind)

    def places(self) -> tuple[int, ...]:
        return tuple(self.chance.randrange(self.count) for _ in range(self.chance.choice((1, 2, 4, 8, 16))))

    # Each of these returns some steps that belong together.

    def map_batches(self) -> list[Step]:
        chance = self.chance
        dataset = self.old_dataset("map")
        keep = chance.random() < 0.4
        if chance.random() < 0.5:
            batches = tuple(self.places() for _ in range(chance.randint(2, 4)))
            return [Epoch(dataset, batches, chance.choice((0, 1, 2)), keep)]
        steps: list[Step] = []
        upcoming: tuple[int, ...] = ()
        for _ in range(chance.randint(1, 3)):
            wanted = upcoming or self.places()
            upcoming = self.places() if chance.random() < 0.5 else ()
            steps.append(Batch(dataset, wanted, upcoming, keep))
            if chance.random() < 0.15:
                steps.append(CloseClient(dataset))
        return steps

    def batch_maybe_ahead(self, dataset: int) -> Step:
        return Batch(dataset, self.places(), self.places() if self.chance.random() < 0.3 else ())

    def iteration(self) -> list[Step]:
        chance = self.chance
        names = [self.name("i") for _ in range(chance.choice((1, 1, 2)))]
        steps: list[Step] = [Iterate(name, self.old_dataset("iterable")) for name in names]
        for _ in range(chance.randint(1, 3)):
            steps.append(Next(chance.choice(names), chance.choice((1, 2, 5, 100))))
            if chance.random() < 0.15:
                steps.append(CloseClient(chance.randrange(len(self.datasets))))
        if chance.random() < 0.5:
            steps.append(self.loss(chance.choice(names)))
        return steps

    def loss(self, name: str) -> Step:
        return LoseInCycle(name) if self.kind == "collections" and self.chance.random() < 0.7 else Drop(name)

    def reader_call(self, name: str) -> Step:
        chance = self.chance
        size = chance.choice((1, 50, 500, 5_000, 30_000, 100_000, -1))
        return chance.choice(
            (
                Read(name, size),
                Read(name, size),
                ReadInto(name, max(size, 10)),
                ReadLine(name),
                Seek(name, chance.choice((0, 10, 3_000, 60_000, 10**6))),
                Prefetch(name),
            )
        )

    def reading(self) -> list[Step]:
        chance = self.chance
        name = self.name("r")
        steps: list[Step] = [Open(name, self.key(), chance.choice(_READERS), chance.random() < 0.5)]
        for _ in range(chance.randint(1, 4)):
            call = self.reader_call(name)
            steps.append(Elsewhere((call,)) if chance.random() < 0.15 else call)
            if chance.random() < 0.1:
                steps.append(CloseClient())
        if chance.random() < 0.4:
            steps.append(self.loss(name))
        return steps

    def ranges(self) -> list[Step]:
        chance = self.chance
        number = chance.choice([place for place, size in enumerate(self.objects) if size is not None])
        key, size = key_of(number), self.objects[number] or 0
        into = chance.random() < 0.6
        if chance.random() < 0.5:
            start = chance.randrange(size + 1)
            stop = chance.choice((None, start + chance.choice((1, 100, 10_000, 300_000))))
            return [ReadRange(key, start, stop, into)]
        ends = sorted(chance.randrange(size + 1) for _ in range(2 * chance.randint(1, 4)))
        if chance.random() < 0.4:
            ends[0], ends[-1] = 0, size
        ranges = list(zip(ends[::2], ends[1::2], strict=True))
        chance.shuffle(ranges)
        return [ReadRanges(key, tuple(ranges), into)]

    def lost_thing(self) -> list[Step]:
        """Return steps that leave something under way, and to the garbage collector."""
        chance = self.chance
        shape = chance.choice(("writer", "writer", "reader", "iterator"))
        if shape == "writer":
            name = self.name("w")
            return [
                OpenWriter(name, self.name("w/")),
                *[WriteTo(name, 60_000)] * chance.randint(1, 3),
                LoseInCycle(name),
            ]
        if shape == "reader":
            name = self.name("r")
            return [Open(name, self.key()), Prefetch(name), LoseInCycle(name)]
        name = self.name("i")
        return [Iterate(name, self.old_dataset("iterable")), Next(name, 1), LoseInCycle(name)]

    def write_sizes(self) -> tuple[int, ...]:
        chance = self.chance
        return tuple(chance.choice((1, 500, 9_000, 30_000, 60_000)) for _ in range(chance.randint(1, 4)))

    def writing(self) -> list[Step]:
        chance = self.chance
        key = self.name("w/")
        if chance.random() < 0.5:
            return [Write(key, self.write_sizes(), chance.choice(("close", "close", "abort", "raise", "drop")))]
        name = self.name("w")
        steps: list[Step] = [OpenWriter(name, key)]
        steps += [WriteTo(name, size) for size in self.write_sizes()]
        ends: tuple[Step, ...] = (EndWriter(name, "close"), EndWriter(name, "abort"), self.loss(name))
        return [*steps, chance.choice(ends)]

    def checkpointing(self) -> list[Step]:
        chance = self.chance
        key = self.name("c/")
        if chance.random() < 0.4:
            size = chance.choice((9_000, 40_000, 130_000))
            ends = [chance.choice(("raise", "raise", "close")) for _ in range(chance.randint(1, 2))]
            return [Resume(key, size, how) for how in (*ends, "close")]
        steps: list[Step] = []
        for _ in range(chance.randint(1, 2)):
            sizes = tuple(chance.choice((1, 500, 9_000, 60_000)) for _ in range(chance.randint(1, 3)))
            steps.append(Save(key, sizes))
            if chance.random() < 0.7:
                steps.append(Load(key))
        return steps

    def listing(self) -> list[Step]:
        chance = self.chance
        return [ListPages("k/", chance.choice((1, 2, 5, 1000)), chance.choice((1, 2, 100)))]

    def little(self) -> list[Step]:
        chance = self.chance
        return [chance.choice((Head(self.key()), CloseClient(), ForgetErrors()))]

    def some(self, count: int) -> list[Step]:
        themes = (
            *(self.map_batches,) * 4,
            *(self.iteration,) * 3,
            *(self.reading,) * 3,
            *(self.ranges,) * 2,
            *(self.writing,) * 2,
            self.checkpointing,
            self.listing,
            self.little,
        )
        steps: list[Step] = []
        for _ in range(count):
            steps += self.chance.choice(themes)()
        return steps

    def fork_after(self, before: Iterable[Step]) -> Fork:
        """Return a fork whose child uses what these steps have left."""
        chance = self.chance
        kinds = {step.name: type(step) for step in before if isinstance(step, (Open, Iterate))}
        steps: list[Step] = []
        for _ in range(chance.randint(1, 3)):
            theme = chance.choice(("dataset", "dataset", "thing", "thing", "ranges", "listing", "writing"))
            if theme == "thing" and kinds:
                name = chance.choice(list(kinds))
                steps.append(self.reader_call(name) if kinds[name] is Open else Next(name, chance.choice((1, 3, 100))))
            elif theme == "writing":
                steps.append(Write("w/child", self.write_sizes()))
            elif theme == "listing":
                steps += self.listing()
            elif theme == "dataset" and self.datasets:
                number = chance.randrange(len(self.datasets))
                is_map = self.datasets[number].kind == "map"
                steps += [self.batch_maybe_ahead(number)] if is_map else [Iterate("child", number), Next("child", 100)]
            else:
                steps += self.ranges()
        return Fork(tuple(steps))

    def forking(self) -> list[Step]:
        """Return steps with forks between them, or by one of several threads."""
        chance = self.chance
        if chance.random() < 0.2:
            *steps, together = self.together()
            assert isinstance(together, Together)
            threads = list(together.threads)
            number = chance.randrange(len(threads))
            at = chance.randint(0, len(threads[number]))
            # Who forks has the turn until the child ends, which may not wait in earnest for a thread that lists.
            self.datasets = [dataclasses.replace(spec, source="objects") for spec in self.datasets]
            threads[number] = (*threads[number][:at], self.fork_after(()), *threads[number][at:])
            return [*steps, dataclasses.replace(together, threads=tuple(threads))]
        steps = self.some(chance.randint(1, 2))
        for _ in range(chance.randint(1, 2)):
            at = chance.randint(1, len(steps))
            steps.insert(at, self.fork_after(steps[:at]))
        return steps

    def together(self) -> list[Step]:
        """Return steps with several threads that share a dataset, a reader, an iterator or only the client."""
        chance = self.chance
        steps: list[Step] = []
        shared = chance.choice(("dataset", "dataset", "reader", "iterator", "client", "client"))
        threads: list[tuple[Step, ...]] = []
        if shared == "dataset":
            dataset = self.dataset("map", transform=chance.choice(("read", "pieces", "name", "nested read")))
            for _ in range(chance.randint(2, 4)):
                count = chance.randint(1, 3)
                threads += [tuple(self.batch_maybe_ahead(dataset) for _ in range(count))]
        elif shared == "reader":
            name = self.name("r")
            steps.append(Open(name, self.key(), chance.choice(_READERS), chance.random() < 0.5))
            threads += [tuple(self.reader_call(name) for _ in range(chance.randint(1, 3))) for _ in range(2)]
        elif shared == "iterator":
            name = self.name("i")
            steps.append(Iterate(name, self.dataset("iterable", transform="read")))
            threads += [(Next(name, chance.choice((1, 3, 100))),) for _ in range(2)]
        else:
            self.datasets += [DatasetSpec("map"), DatasetSpec("iterable")]
            threads += [tuple(self.some(1)) for _ in range(chance.randint(2, 3))]
        return [*steps, Together(tuple(threads), chance.choice((30, 150, 600, 10**6)))]


def _options(chance: random.Random, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"part_size": chance.choice((16, 16, 64, 8192)) * KiB}
    if chance.random() < 0.5:
        options["max_connections"] = chance.choice((1, 2, 4, 16))
    if chance.random() < 0.3:
        options["max_objects_ahead"] = chance.choice((1, 2, 5))
    if chance.random() < 0.3:
        options["max_bytes_in_flight"] = chance.choice((16, 100, 500)) * KiB
    if chance.random() < 0.3:
        options["checksums"] = chance.choice(("off", "strict"))
    if kind in ("faults", "deadline") and chance.random() < 0.5:
        options["max_attempts"] = chance.choice((1, 2, 3))
    if kind == "collections" and chance.random() < 0.4:  # calls that fail cancel what they began
        options["call_timeout"] = chance.choice((0.01, 0.02, 0.05))
    if kind == "deadline":
        options["call_timeout"] = chance.choice((0.001, 0.01, 0.05, 0.3, 5.0))
    return options


def kind_of(seed: int, only: str | None = None) -> str:
    """Return which of KINDS the program of a seed is."""
    return only or random.Random(seed).choice(KINDS)


def draft(seed: int, only: str | None = None) -> Program:
    """Return the program of a seed, without what happens in the middle of its steps.

    Args:
        seed: Any.
        only: One of KINDS, or None to let the seed choose.
    """
    kind = kind_of(seed, only)
    chance = random.Random(f"{kind} {seed}")
    writer = _Writer(chance, kind)
    is_traced = kind in ("interrupts", "signals", "collections", "silence", "forks")
    if kind == "workers":
        shape = chance.choice(("map", "iterable"))
        dataset = writer.dataset(shape, source="prefix", transform="read", is_sharded=shape == "iterable")
        writer.objects = [300 if size is None else size for size in writer.objects]
        steps: list[Step] = [Workers(dataset, chance.choice((2, 4)), chance.choice(("", "k/-", "k/~")))]
    elif kind == "churn":
        steps = [*writer.some(1), Churn(chance.randint(3, 8), writer.key())]
    elif kind == "threads":
        steps = [*writer.together(), *(writer.some(1) if chance.random() < 0.5 else [])]
    elif kind == "forks" and chance.random() < 0.6:
        steps = writer.forking()
    elif kind == "collections" and chance.random() < 0.5:
        steps = [*writer.lost_thing(), *(writer.ranges() if chance.random() < 0.5 else writer.some(1))]
    elif kind == "silence":
        steps = chance.choice((writer.writing, writer.writing, writer.checkpointing, partial(writer.some, 1)))()
    else:
        steps = writer.some(chance.randint(1, 2 if is_traced else 4))
    faults: list[tuple[int, str]] = []
    if kind in ("faults", "deadline"):
        faults = [
            (chance.randint(1, 40), chance.choice(FAULTS if chance.random() < 0.2 else FAULTS[:-1]))
            for _ in range(chance.choice((1, 2, 5, 12)))
        ]
    if kind == "silence":
        faults = [(chance.randint(1, 6), "silence")]
    if kind == "replaced":
        for _ in range(chance.randint(1, 3)):
            change = ReplaceObject(writer.key(), chance.choice((None, *_SIZES)))
            steps.insert(chance.randint(1, len(steps)), change)
    return Program(
        seed=seed,
        objects=tuple(writer.objects),
        steps=tuple(steps),
        datasets=tuple(writer.datasets),
        options=_options(chance, kind),
        faults=tuple(sorted(dict(faults).items())),
        is_tls=chance.random() < 0.2,
    )
