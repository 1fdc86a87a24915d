"""The checkpoints of a run against a plain model: random saves, requests that fail at random, ``keep_last``, ``clean``.

A program is a list of random steps on one bucket in memory, whose clock is the test's. A step may be killed: from some
request on the server refuses everything, as if the process had died there. The model knows what each name may hold:
what was saved last, and, where a step was killed, either what was there before or what was being written. Never
anything else: no mixture, no part, and nothing of others is touched.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from s3torch import S3Client
from s3torch.checkpoint import clean, keep_last, latest, mark_complete, unfinished
from s3torch.errors import ArgumentError, ObjectChangedError, ObjectNotFoundError, S3Error
from s3torch.safetensors import load_file, save_file
from s3torch.testing import FaultyServer, faults
from s3torch.uri import parse_s3_uri

DAY = 86_400
RUN = "s3://bucket/run/"
FOREIGN = ("run/config.json", "run/train.log", "run/notes/readme.txt", "run2/step-1.pt", "run2/a/.metadata", "runs.pt")
NAMES = ("step-1.pt", "step-9.pt", "step-10.pt", "a b+ü&.ckpt", "m.safetensors", "n.safetensors", "f-1", "f-2", "g")
GONE = None


@dataclass
class World:
    """A bucket, a clock, and what each checkpoint may hold by the model: values, or ``GONE``."""

    server: FaultyServer
    client: S3Client
    chance: random.Random
    now: float = 1_800_000_000.0
    values: int = 0
    held: dict[str, set[int | None]] = field(default_factory=lambda: {name: {GONE} for name in NAMES})
    log: list[str] = field(default_factory=list)

    @contextmanager
    def killed_at_random(self) -> Iterator[list[bool]]:
        """Refuse all requests of the block from a random one on; or, mostly, none. Tells whether it was so."""
        was = [False]
        if self.chance.random() < 0.4:
            before = [faults.none()] * self.chance.randrange(14)
            self.server.script(*before, *[faults.status(403, "AccessDenied")] * 300)
        try:
            yield was
        except S3Error as error:
            if error.code != "AccessDenied":
                raise
            was[0] = True
        finally:
            self.server.script()

    def new_value(self) -> int:
        """Return a value that was never saved."""
        self.values += 1
        return self.values


@contextmanager
def world_of(seed: int) -> Iterator[World]:
    """A world whose steps are chosen by a seed."""
    with FaultyServer() as server, pytest.MonkeyPatch.context() as patch:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        world = World(server, client, random.Random(seed))
        server.objects.clock = lambda: world.now
        patch.setattr(unfinished, "clock", lambda: world.now)
        for key in FOREIGN:
            server.objects[key] = b"foreign"
        yield world
        client.close()


def put(world: World, key: str, content: bytes) -> None:
    """Store an object."""
    with world.client.put_object("bucket", key) as writer:
        writer.write(content)


def save(world: World, name: str, value: int) -> None:
    """Save a checkpoint in the way that its name stands for."""
    if name.endswith(".safetensors"):
        tensors = {f"t{number}": torch.full((8,), value, dtype=torch.int64) for number in range(3)}
        shard = world.chance.choice([None, 64, 128])
        world.log[-1] += f" shards of {shard}"
        save_file(tensors, RUN + name, max_shard_size=shard, client=world.client)
    elif "." in name:
        put(world, f"run/{name}", b"%d" % value)
    else:
        for rank in range(2):
            put(world, f"run/{name}/__{rank}_0.distcp", b"%d" % value)
        if name == "g":
            mark_complete(RUN + name, client=world.client)
        else:
            put(world, f"run/{name}/.metadata", b"metadata of %d" % value)


def is_complete(world: World, name: str) -> bool:
    """Return whether there is what completes a checkpoint."""
    keys = set(world.server.objects)
    if name.endswith(".safetensors"):
        return bool({f"run/{name}", f"run/{name}.index.json"} & keys)
    return bool({f"run/{name}", f"run/{name}/.metadata", f"run/{name}/_COMPLETE"} & keys)


def held(world: World, name: str) -> int | None:
    """Return the value that a checkpoint holds; fail if it is a mixture or cannot be loaded."""
    objects = world.server.objects
    if not is_complete(world, name):
        return GONE
    if name.endswith(".safetensors"):
        # As a folder is loaded: by the index if there is one.
        uri = f"{RUN}{name}.index.json" if f"run/{name}.index.json" in objects else RUN + name
        tensors = load_file(uri, client=world.client)
        values = {int(value) for tensor in tensors.values() for value in tensor}
        assert sorted(tensors) == ["t0", "t1", "t2"], f"a part of {name}"
    elif "." in name:
        values = {int(objects[f"run/{name}"])}
    else:
        values = {int(objects[f"run/{name}/__{rank}_0.distcp"]) for rank in range(2)}
    assert len(values) == 1, f"{name} is a mixture of {values}"
    return values.pop()


def order(world: World) -> list[str]:
    """Return the names that hold something, the oldest first, by what decides it: time, then the name."""

    def age(name: str) -> tuple[float, int]:
        marks = [f"run/{name}{end}" for end in ("", ".index.json", "/.metadata", "/_COMPLETE")]
        times = [int(world.server.objects.modified_at(key)) for key in marks if key in world.server.objects]
        return max(times), sorted(NAMES, key=lambda each: (each.rstrip("0123456789.pt"), len(each), each)).index(name)

    return sorted((name for name in NAMES if held(world, name) is not GONE), key=age)


def uri_of(world: World, name: str) -> set[str]:
    """Return what ``latest`` may call a checkpoint."""
    if f"run/{name}.index.json" in world.server.objects and f"run/{name}" in world.server.objects:
        return {f"{RUN}{name}.index.json", RUN + name}
    return {f"{RUN}{name}.index.json" if f"run/{name}.index.json" in world.server.objects else RUN + name}


def check(world: World) -> None:
    """Check that everything holds what it may, and remember what it does."""
    for name in NAMES:
        found = held(world, name)
        assert found in world.held[name], f"{name} holds {found}, which is none of {world.held[name]}"
        world.held[name] = {found}
    for key in FOREIGN:
        assert world.server.objects.get(key) == b"foreign", f"{key} was touched"
    newest = latest(RUN, client=world.client)
    names = order(world)
    if not names:
        assert newest is None
        return
    times = {name: _times(world, name) for name in names}
    last = max(max(each) for each in times.values())
    candidates = [name for name in names if max(times[name]) == last]
    assert newest in {uri for name in candidates for uri in uri_of(world, name)}, (
        f"latest is {newest}, not {candidates}"
    )


def _times(world: World, name: str) -> list[float]:
    keys = [f"run/{name}{end}" for end in ("", ".index.json", "/.metadata", "/_COMPLETE")]
    return [int(world.server.objects.modified_at(key)) for key in keys if key in world.server.objects]


def step_save(world: World) -> None:
    """Save something under one of the names."""
    name, value = world.chance.choice(NAMES), world.new_value()
    world.log.append(f"save {name} = {value}")
    is_folder = "." not in name
    if is_folder and held(world, name) is not GONE:
        return  # files of a folder are replaced one by one: no library can do that as one
    with world.killed_at_random() as was_killed:
        save(world, name, value)
    world.held[name] = world.held[name] | {value} if was_killed[0] else {value}


def step_keep_last(world: World) -> None:
    """Keep some; only older ones may be gone afterwards."""
    count = world.chance.randrange(1, 4)
    world.log.append(f"keep_last {count}")
    before = order(world)
    twins = [name for name in before if len(uri_of(world, name)) == 2]  # a kill left the old one beside the new one
    with world.killed_at_random():
        keep_last(world.chance.choice([RUN, RUN[:-1]]), count, client=world.client)
    times = sorted((time for name in before for time in _times(world, name)), reverse=True)
    limit = times[count - 1] if len(times) >= count else 0.0
    for name in before:
        ages = _times(world, name)
        if not ages or min(ages) < limit or twins or len(before) > count:
            world.held[name] |= {GONE}
    gone = [name for name in before if not is_complete(world, name)]
    assert len(before) - len(gone) >= min(count, len(before)) or twins
    assert gone == before[: len(gone)] or len({_times(world, name)[0] for name in before if name not in gone}) < len(
        before
    )


def step_clean(world: World) -> None:
    """Clean up."""
    world.log.append("clean")
    with world.killed_at_random():
        clean(RUN, client=world.client)


def step_wait(world: World) -> None:
    """Let time go by."""
    world.now += world.chance.choice([0.4, 1.0, 60.0, 2 * DAY])


STEPS: list[Callable[[World], None]] = [step_save, step_save, step_save, step_keep_last, step_clean, step_wait]


@pytest.mark.parametrize(
    "seed", [*range(40), *[pytest.param(seed, marks=pytest.mark.soak) for seed in range(40, 1000)]]
)
def test_random_programs(seed: int):
    """Whatever was killed, each name holds what was saved, ``latest`` is the newest, and nothing is left for ever."""
    with world_of(seed) as world:
        try:
            for _ in range(25):
                world.chance.choice(STEPS)(world)
                check(world)
            world.now += 2 * DAY
            world.log.append("the end")
            keep_last(RUN, 1, client=world.client)
            world.now += 2 * DAY
            clean(RUN, client=world.client)
            keep_last(RUN, 1, client=world.client)
            _check_nothing_is_left(world)
        except (AssertionError, ObjectNotFoundError, ArgumentError) as error:
            error.add_note("; ".join(world.log)) if hasattr(error, "add_note") else None
            raise


def _check_nothing_is_left(world: World) -> None:
    """Check that what is there belongs to others, to the one that was kept, or to a folder that is not complete."""
    kept = [name for name in NAMES if is_complete(world, name)]
    assert len(kept) <= 1
    for key in world.server.objects:
        if key in FOREIGN:
            continue
        folder = key.split("/")[1]
        if key.count("/") == 2 and folder in NAMES:
            continue  # a save that was killed
        assert kept, f"{key} is left"
        assert key.startswith(f"run/{kept[0].removesuffix('.safetensors')}"), f"{key} is left"
    if kept and kept[0].endswith(".safetensors"):
        assert len(uri_of(world, kept[0])) == 1
        assert held(world, kept[0]) is not GONE
        name = f"run/{kept[0]}.index.json"
        shards = [key for key in world.server.objects if "-of-" in key]
        assert bool(shards) == (name in world.server.objects)
        assert len(shards) in (0, 2, 3), f"{shards} are left"


@pytest.mark.parametrize("where", ["memory", "real"])
def test_all_at_once(where: str, s3, bucket: str, prefix: str):
    """Two that save, two that delete and one that loads, at the same time: no mixture, nothing lost, nothing left."""
    with FaultyServer() as server:
        clients = [
            S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
            if where == "memory"
            else S3Client(s3.region, endpoint=s3.endpoint)
            for _ in range(5)
        ]
        server.objects.clock = time.time
        run = "s3://bucket/run" if where == "memory" else f"s3://{bucket}/{prefix}run"
        errors: list[BaseException] = []
        loaded: list[int] = []
        done = threading.Event()

        def guarded(work: Callable[[S3Client], None], client: S3Client) -> None:
            try:
                work(client)
            except BaseException as error:
                errors.append(error)
                raise

        def save_all(client: S3Client, name: str) -> None:
            for number in range(12):
                tensors = {f"t{each}": torch.full((8,), number) for each in range(3)}
                save_file(tensors, f"{run}/{name.format(number)}", max_shard_size=64, client=client)

        def delete_all(client: S3Client) -> None:
            while not done.is_set():
                keep_last(run, 2, client=client)

        def load_all(client: S3Client) -> None:
            while not done.is_set():
                uri = latest(run, client=client)
                try:
                    tensors = load_file(uri, client=client) if uri is not None else {}
                except (ObjectNotFoundError, ObjectChangedError):
                    continue  # it was replaced or deleted meanwhile
                values = {int(value) for tensor in tensors.values() for value in tensor}
                assert len(values) == 1 or uri is None, f"{uri} is a mixture of {values}"
                loaded.extend(values)

        savers = [
            threading.Thread(target=guarded, args=(lambda client, name=name: save_all(client, name), client))
            for name, client in zip(("same.safetensors", "step-{}.safetensors"), clients, strict=False)
        ]
        others = [
            threading.Thread(target=guarded, args=(work, client))
            for work, client in zip((delete_all, delete_all, load_all), clients[2:], strict=True)
        ]
        for thread in (*savers, *others):
            thread.start()
        for thread in savers:
            thread.join()
        done.set()
        for thread in others:
            thread.join()
        assert errors == []
        assert loaded
        keep_last(run, 1, client=clients[0])
        keep_last(run, 1, client=clients[0])
        page = next(clients[0].list_objects(*parse_s3_uri(f"{run}/")))
        assert len(page.object_info) == 4, [info.key for info in page.object_info]
        uri = latest(run, client=clients[0])
        assert {int(value) for tensor in load_file(uri, client=clients[0]).values() for value in tensor} == {11}
        for client in clients:
            client.close()
