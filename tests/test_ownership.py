"""Two things at once: each call owns what it began, and nobody else receives, loses or prolongs it.

Each test is the smallest input of a coincidence that once went wrong. The simulator (tests/simulate) looks for others.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from torch.utils.data import DataLoader

from s3torch import (
    LookAheadBatchSampler,
    S3Client,
    S3ClientConfig,
    S3Error,
    S3IterableDataset,
    S3MapDataset,
    S3ReaderConfig,
)
from s3torch._access import leftovers
from s3torch._aws.operations import HeadObject
from s3torch._transfer import engine as engine_module
from s3torch._transfer.engine import Engine
from s3torch.datasets.objects import S3BucketKeyData
from s3torch.errors import ConcurrentUseError
from s3torch.testing import FaultyServer, faults
from s3torch.testing.simulate.coincidences import places_of
from s3torch.testing.simulate.tracing import trace_bytecodes
from tests.support.collecting import collect_what_others_left
from tests.support.iterating import taken

KiB = 1024
MiB = 1024 * KiB


def content_of(number: int) -> bytes:
    """Return what the object of a number holds."""
    return f"{number:05}".encode() * 20_000


CONTENTS = [content_of(number) for number in range(64)]


def read(reader) -> bytes:
    """A transform."""
    return reader.read()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A server with 64 objects of 100 kB."""
    with FaultyServer({f"{number:05}": content for number, content in enumerate(CONTENTS)}) as server:
        yield server


@pytest.fixture
def client(server: FaultyServer) -> Iterator[S3Client]:
    """A client of the server."""
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
    yield client
    client.close()


@pytest.fixture
def dataset(server: FaultyServer) -> Iterator[Callable[..., S3MapDataset]]:
    """Makes map datasets of all objects."""
    made = []

    def dataset(transform=read, *, missing: int = 0) -> S3MapDataset:
        uris = [f"s3://bucket/{number:05}" for number in range(64 + missing)]
        made.append(
            S3MapDataset.from_objects(
                uris, region="us-east-1", endpoint=server.endpoint, transform=transform, s3client_config=server.config
            )
        )
        return made[-1]

    yield dataset
    for each in made:
        each.client.close()


def pending(client: S3Client) -> int:
    """Return how many requests of a client are in flight or queued."""
    return sum(engine.pending for engine in client._access.engines)


# Batches


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_failed_batch_and_the_next(dataset, ahead: bool, keeps: bool):
    """A batch of which an object is missing raises; the batches behind it are whole, whoever keeps the error."""
    objects = dataset(missing=8)
    chance = [(number * 29) % 72 for number in range(72)]
    batches = [chance[start : start + 8] for start in range(0, 72, 8)]
    sampler = LookAheadBatchSampler(batches) if ahead else batches
    kept, samples, good = [], [], 0
    loader = iter(DataLoader(objects, batch_sampler=sampler, collate_fn=list))
    for batch in batches:
        try:
            samples = next(loader)
        except S3Error as error:
            assert max(batch) >= 64
            kept.append(error if keeps else None)
        else:
            assert samples == [CONTENTS[index] for index in batch]
            good += 1
    assert good >= 3
    assert kept


def test_batches_of_several_threads(dataset):
    """Threads that share a dataset get their own batches each."""
    objects = dataset()
    wrong: list[object] = []

    def work(number: int) -> None:
        sampler = LookAheadBatchSampler(
            [[(number * 7 + step + place) % 64 for place in range(8)] for step in range(12)]
        )
        for batch in sampler:
            samples = objects.__getitems__(batch)
            if samples != [CONTENTS[index] for index in batch]:
                wrong.append((number, batch))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("ahead", [False, True])
def test_a_transform_that_reads_another_batch(dataset, ahead: bool):
    """A transform may read another batch of its dataset, as mixing augmentations do."""

    def mix(reader) -> tuple[bytes, list[bytes]]:
        number = int(reader.key)
        partners = plain.__getitems__([(number + 1) % 64, (number + 2) % 64]) if number % 2 else []
        return reader.read(), partners

    plain = objects = dataset()
    objects = dataset(mix)
    plain = objects if not ahead else plain
    objects._transform = lambda reader: mix(reader) if plain is not objects else (reader.read(), nested(reader))
    depth = []

    def nested(reader) -> list[bytes]:
        if depth or not int(reader.key) % 2:
            return []
        depth.append(None)
        number = int(reader.key)
        found = [sample[0] for sample in objects.__getitems__([(number + 1) % 64, (number + 2) % 64])]
        depth.pop()
        return found

    batches = [list(range(start, start + 8)) for start in range(0, 32, 8)]
    for batch in LookAheadBatchSampler(batches) if ahead else batches:
        samples = objects.__getitems__(batch)
        assert [sample for sample, _ in samples] == [CONTENTS[index] for index in batch]
        for index, (_, partners) in zip(batch, samples, strict=True):
            assert partners == ([CONTENTS[index + 1], CONTENTS[index + 2]] if index % 2 else [])


def test_closing_between_two_batches(dataset):
    """The client may be closed between two batches: what was begun for the second is sent again."""
    objects = dataset()
    first, second = LookAheadBatchSampler([[0, 1, 2, 3], [4, 5, 6, 7]])
    objects.__getitems__(first)
    assert [kept.window.places for kept in objects._windows] == [[4, 5, 6, 7]]
    objects.client.close()
    assert objects.__getitems__(second) == CONTENTS[4:8]


def test_a_bad_index_ahead(dataset):
    """An index that does not exist costs its own batch alone."""
    objects = dataset()
    first, second, third = LookAheadBatchSampler([[0, 1], [2, 999], [4, 5]])
    assert objects.__getitems__(first) == CONTENTS[:2]
    with pytest.raises(IndexError):
        objects.__getitems__(second)
    assert objects.__getitems__(third) == CONTENTS[4:6]


def test_an_epoch_that_is_broken_off(dataset):
    """What an epoch that was broken off has begun is cancelled, soon after another has begun."""
    objects = dataset()
    for batch in LookAheadBatchSampler([[0, 1], [2, 3]]):
        objects.__getitems__(batch)
        break
    assert [kept.window.places for kept in objects._windows] == [[2, 3]]
    for number in range(4):
        assert objects.__getitems__([10 + number]) == [CONTENTS[10 + number]]
    assert list(objects._windows) == []
    assert pending(objects.client) == 0


def test_prefetch_and_close(client: S3Client):
    """A reader whose prefetch was begun reads all the same after the client was closed."""
    reader = client.get_object("bucket", "00003")
    reader.prefetch()
    client.close()
    assert reader.read() == CONTENTS[3]


# Streams


def iterable(server: FaultyServer, transform=read) -> S3IterableDataset:
    """Return an iterable dataset of all objects."""
    return S3IterableDataset.from_prefix(
        "s3://bucket/",
        region="us-east-1",
        endpoint=server.endpoint,
        transform=transform,
        s3client_config=server.config,
    )


def test_breaking_off(server: FaultyServer):
    """``break`` gives everything back at once."""
    dataset = iterable(server)
    for sample in dataset:
        assert sample == CONTENTS[0]
        break
    assert pending(dataset.client) == 0


def test_going_on_after_an_error(server: FaultyServer):
    """An object that cannot be read costs that sample alone, and nothing stays in flight for it."""

    def picky(reader) -> bytes:
        if int(reader.key) % 10 == 3:
            raise ValueError(reader.key)
        return reader.read()

    dataset = iterable(server, picky)
    in_flight: list[int] = []
    samples, errors = taken(
        iter(dataset), ValueError, most=64, on_error=lambda: in_flight.append(pending(dataset.client))
    )
    assert not any(in_flight)
    assert [str(error) for error in errors] == [f"{number:05}" for number in range(3, 64, 10)]
    assert samples == [content for number, content in enumerate(CONTENTS) if number % 10 != 3]


def test_going_on_after_an_interrupt(server: FaultyServer):
    """A sample whose making was interrupted is the next one."""
    interrupts = [KeyboardInterrupt()]

    def interrupted(reader) -> bytes:
        if reader.key == "00005" and interrupts:
            raise interrupts.pop()
        return reader.read()

    iterator = iter(iterable(server, interrupted))
    samples = [next(iterator) for _ in range(5)]
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert samples + list(iterator) == CONTENTS


def test_one_iterator_of_two_threads(server: FaultyServer):
    """Whoever comes into the middle of an iterator's call is told what is shared."""
    inside, goes_on = threading.Event(), threading.Event()

    def slow(reader) -> bytes:
        inside.set()
        goes_on.wait(30)
        return reader.read()

    iterator = iter(iterable(server, slow))
    thread = threading.Thread(target=lambda: next(iterator))
    thread.start()
    inside.wait(30)
    with pytest.raises(ConcurrentUseError, match="An iterator over a dataset is used by two threads at the same time"):
        next(iterator)
    goes_on.set()
    thread.join()
    assert next(iterator) == CONTENTS[1]


@pytest.mark.parametrize("kind", ["map", "iterable"])
def test_a_transform_that_raises_stop_iteration(server: FaultyServer, dataset, kind: str):
    """StopIteration of a transform is an error that names the object, and not the end of the data."""

    def first_line(reader) -> object:
        return next(iter(())) if reader.key == "00002" else reader.key

    data = dataset(first_line) if kind == "map" else iterable(server, first_line)
    with pytest.raises(RuntimeError, match=r"StopIteration for s3://bucket/00002"):
        list(DataLoader(data, batch_size=4))


def test_unknown_sizes_fill_the_window(server: FaultyServer):
    """Objects whose size nobody has told are begun ahead as many as those of a listing."""
    uris = [f"s3://bucket/{number:05}" for number in range(64)]
    dataset = S3IterableDataset.from_objects(
        uris, region="us-east-1", endpoint=server.endpoint, transform=read, s3client_config=server.config
    )
    iterator = iter(dataset)
    assert next(iterator) == CONTENTS[0]
    assert len(iterator._window) == 63


# Ranges


def test_joined_ranges_that_are_the_whole_object(client: S3Client, server: FaultyServer):
    """Ranges that are joined to one request of the whole object come right: gaps cannot be verified, and are not."""
    content = bytes(range(250)) * 800
    server.objects["ranges"] = content
    ranges = [(0, 100), (200, 300), (400, 200_000)]
    assert client.read_ranges("bucket", "ranges", ranges) == [content[start:stop] for start, stop in ranges]


def test_one_reader_of_two_threads(client: S3Client, server: FaultyServer):
    """The second thread in the middle of a read is told what is shared; the first one gets its bytes."""
    reader = client.get_object("bucket", "00001", reader_config=S3ReaderConfig.range_based())
    server.script(faults.late(0.5))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(reader.read(1000)))
    thread.start()
    while not reader._users:
        time.sleep(0.001)
    with pytest.raises(ConcurrentUseError, match="The reader of s3://bucket/00001 is used by two threads"):
        reader.read(1000)
    thread.join()
    assert found == [CONTENTS[1][:1000]]
    assert reader.read(1000) == CONTENTS[1][1000:2000]


# Signal handlers


@contextlib.contextmanager
def alarms(handler: Callable[[], None], interval: float) -> Iterator[None]:
    """Call a handler again and again, wherever the thread is."""

    def handle(_signum: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler()
        signal.setitimer(signal.ITIMER_REAL, interval)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_that_uses_the_client(client: S3Client, dataset, server: FaultyServer):
    """A signal handler may read, write and list by the client that it interrupts; both get what is theirs."""
    objects = dataset()
    handled: list[int] = []

    def handler() -> None:
        number = len(handled) % 64
        assert objects.client.read_range("bucket", f"{number:05}", 10, 5000) == CONTENTS[number][10:5000]
        assert objects.__getitems__([number, 63 - number]) == [CONTENTS[number], CONTENTS[63 - number]]
        with objects.client.put_object("bucket", "saved") as writer:
            writer.write(CONTENTS[number])
        assert bytes(server.objects["saved"]) == CONTENTS[number]
        handled.append(number)

    with alarms(handler, 0.002):
        for batch in LookAheadBatchSampler(
            [[(start + place) % 64 for place in range(16)] for start in range(0, 320, 5)]
        ):
            assert objects.__getitems__(batch) == [CONTENTS[index] for index in batch]
    assert handled
    assert pending(objects.client) == 0


def test_a_signal_handler_in_the_middle_of_a_save(server: FaultyServer):
    """An upload that a handler interrupts by another one is stored as it was written, and so is the other."""
    config = S3ClientConfig(part_size=5 * MiB, unsigned=True, force_path_style=True)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    handled: list[int] = []
    mine, others = b"mine" * MiB * 3, b"others" * MiB * 2

    def handler() -> None:
        with client.put_object("bucket", "others") as writer:
            writer.write(others)
        handled.append(1)

    with alarms(handler, 0.01):
        for _ in range(8):
            with client.put_object("bucket", "mine") as writer:
                for start in range(0, len(mine), MiB):
                    writer.write(mine[start : start + MiB])
            assert bytes(server.objects["mine"]) == mine
    assert handled
    assert bytes(server.objects["others"]) == others
    assert not server.objects.uploads
    client.close()


# Interrupts


def interrupt_at(frames: str, count: int, act: Callable[[], object], *, is_real: bool = False) -> bool:
    """Do something, and raise KeyboardInterrupt at the n-th bytecode of a module; returns whether it came so far.

    Args:
        frames: A part of the module's path.
        count: Which bytecode.
        act: Does it.
        is_real: Whether to count only the bytecodes before which this interpreter looks for signals.
    """
    left = [count]

    def is_finaliser(frame: FrameType | None) -> bool:
        """Python itself swallows what is raised there."""
        while frame is not None and frame.f_code.co_name != "__del__":
            frame = frame.f_back
        return frame is not None

    def trace(frame: FrameType, event: str, _argument: object):
        if frames not in frame.f_code.co_filename:
            return None
        trace_bytecodes(frame, trace)
        if event == "opcode" and (not is_real or frame.f_lasti in places_of(frame.f_code)):
            left[0] -= 1
            if left[0] <= 0 and not is_finaliser(frame):
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize(
    "place", ["_objects/fetch.py", "_transfer/engine.py", "_transfer/loop.py", "_objects/remote.py"]
)
def test_interrupts_between_any_two_bytecodes(client: S3Client, place: str):
    """A read that is interrupted anywhere is over: no later call sends its request or writes into its memory."""
    memory = bytearray(100_000)
    client.read_range("bucket", "00000", 0, 100_000, memory)
    count, step = 1, 1
    while interrupt_at(place, count, lambda: client.read_range("bucket", "00001", 0, 100_000, memory)):
        memory[:] = bytes(100_000)
        assert client.read_range("bucket", "00002", 0, 100) == CONTENTS[2][:100]
        assert not any(memory), count
        assert pending(client) == 0, count
        step += count // 40
        count += step
    assert count > 20
    assert bytes(memory) == CONTENTS[1]


@pytest.mark.parametrize("ends", ["interrupt", "collected", "exit"])
def test_a_silent_server_does_not_hold_up_an_interrupt(server: FaultyServer, ends: str):
    """An upload to a server that has fallen silent is left in two seconds; the log says what is left of it."""
    config = S3ClientConfig(part_size=5 * MiB, unsigned=True, force_path_style=True)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    writer = client.put_object("bucket", "key")
    writer.write(bytes(6 * MiB))
    while pending(client):
        client._access.engine().turn()
    server.script(*[faults.stall_before_head()] * 50)
    began = time.monotonic()
    if ends == "interrupt":
        with pytest.raises(KeyboardInterrupt), writer:
            raise KeyboardInterrupt
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del writer
        leftovers.send()  # what the next call, and the end of the interpreter, do
    # The bound is two seconds; the attempts of one request alone would take minutes.
    assert time.monotonic() - began < 20.0
    assert len(server.objects.uploads) == 1
    client.close()


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_engine_of_a_handler_that_has_returned(client: S3Client, is_busy: bool):
    """The engine that a handler was given is closed when it has returned, unless something is still under way there."""
    access = client._access
    usual = access.engine()
    usual.is_entered = True
    second = access.engine()
    assert second is not usual
    head = HeadObject(access.bucket("bucket"), "00000")
    if is_busy:
        second.submit(head)
    usual.is_entered = False
    assert access.engine() is usual
    usual.is_entered = True
    assert (access.engine() is second) is is_busy
    usual.is_entered = False
    second.cancel([head])


# The collector


def test_a_writer_that_is_collected_while_a_call_cancels(client: S3Client, monkeypatch: pytest.MonkeyPatch):
    """A writer that is found open in the middle of a cancel leaves a note, and nothing of the call stays in flight."""
    config = S3ClientConfig(part_size=5 * MiB, unsigned=True, force_path_style=True)
    other = S3Client("us-east-1", endpoint=client.endpoint, s3client_config=config)
    writers = [other.put_object("bucket", "key")]
    writers[0].write(bytes(6 * MiB))
    cancel = Engine.cancel

    def collecting(engine: Engine, exchanges) -> None:
        writers.clear()
        cancel(engine, exchanges)

    memory = bytearray(5)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setattr(Engine, "cancel", collecting)
        with pytest.raises(S3Error):
            other.read_range("bucket", "missing", 0, 5, memory)
    assert pending(other) == 0
    other.read_range("bucket", "00000", 0, 5)
    assert memory == bytes(5)
    other.close()


@pytest.mark.parametrize(
    "fail",
    [
        lambda client: client.get_object("bucket", "large").read(),
        lambda client: client.get_object("bucket", "large", reader_config=S3ReaderConfig.adaptive()).read(3 * MiB),
        lambda client: client.read_range("bucket", "large", 0, 3 * MiB),
        lambda client: client.read_ranges("bucket", "large", [(0, MiB), (2 * MiB, 3 * MiB)]),
    ],
)
@pytest.mark.parametrize("keeps", [False, True])
def test_errors_hold_nothing(server: FaultyServer, fail: Callable[[S3Client], object], keeps: bool):
    """Failed reads keep no memory, without the collector too, and even if their errors are kept."""
    server.objects["large"] = bytes(3 * MiB)
    config = S3ClientConfig(unsigned=True, force_path_style=True, max_attempts=2, hedging=False)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    kept = []

    def fail_once() -> None:
        server.script(*[faults.truncate(100 * KiB)] * 8)
        try:
            fail(client)
        except S3Error as error:
            kept.append(error)
        else:
            pytest.fail("it has not failed")

    fail_once()
    kept.clear()
    collect_what_others_left()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            fail_once()
            if not keeps:
                kept.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 10 * MiB  # of 30: the server, in this process, may be at the next one
    client.close()


def test_errors_are_part_of_no_cycle(client: S3Client):
    """What a failed read refers to is gone with its error, without the collector."""

    class Memory(bytearray):
        """One that can be referred to weakly."""

    gc.disable()
    try:
        memory = Memory(100)
        with pytest.raises(S3Error):
            client.read_range("bucket", "gone", 0, 100, memory)
        gone = weakref.ref(memory)
        del memory
        assert gone() is None
    finally:
        gc.enable()


def test_a_client_that_is_dropped(server: FaultyServer):
    """A client is part of no cycle: when the last reference to it goes its connections are closed."""
    gc.disable()
    try:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        client.read_range("bucket", "00000", 0, 5)
        engine = weakref.ref(client._access.engine())
        del client
        assert engine() is None
    finally:
        gc.enable()


def test_threads_that_come_and_go(client: S3Client):
    """What threads have counted is one sum when they are gone."""

    def work() -> None:
        client.read_range("bucket", "00000", 0, 5)

    for _ in range(30):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert client.stats.requests == 30
    assert client._access._process().ledger.records <= 1


def test_an_abandoned_listing(client: S3Client, server: FaultyServer):
    """A listing that asked for its next page ahead and was dropped leaves nothing in flight."""
    pages = client.list_objects("bucket", max_keys=10)
    pages.look_ahead = True
    next(pages)
    assert pending(client) == 1
    del pages
    assert pending(client) == 0


def test_checksums_are_told(server: FaultyServer):
    """The server tells checksums: otherwise the test of joined ranges would prove nothing."""
    config = S3ClientConfig(unsigned=True, force_path_style=True, checksums="strict")
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    assert client.get_object("bucket", "00001").read() == CONTENTS[1]
    client.close()


# What is found by reading: an error, an end or a note that another one's turn meets


def test_a_failure_that_a_handler_meets(client: S3Client, monkeypatch: pytest.MonkeyPatch):
    """An exchange that fails in a signal handler's turn, after its owner has looked, has failed for its owner, too."""
    engine = client._access.engine()
    mine = HeadObject(client._access.bucket("bucket"), "missing")
    turn, look = engine.turn, engine_module._raise_first_error

    def turn_beside_a_failure(deadline: float | None = None) -> None:
        turn(deadline)
        engine._loop.failures += 1  # of somebody else: the owner looks whether it is its own

    def look_and_be_interrupted(exchanges) -> None:
        look(exchanges)
        while not mine.is_done:
            turn()

    monkeypatch.setattr(engine, "turn", turn_beside_a_failure)
    monkeypatch.setattr(engine_module, "_raise_first_error", look_and_be_interrupted)
    with pytest.raises(S3Error):
        engine.run([mine])


def test_many_writers_that_were_dropped(server: FaultyServer, caplog: pytest.LogCaptureFixture):
    """What many finalisers have left is sent by the next call, which is not harmed by it."""
    config = S3ClientConfig(part_size=5 * MiB, unsigned=True, force_path_style=True)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(5):
            client.put_object("bucket", "dropped").write(bytes(6 * MiB))
    for _ in range(1200):
        leftovers.leave(lambda _seconds: client._access.engine() and None)
    assert client.read_range("bucket", "00000", 0, 5) == CONTENTS[0][:5]
    assert not leftovers.LEFT
    assert not server.objects.uploads
    assert "could not be sent" not in caplog.text  # as one inside the other, too many of them would be
    client.close()


def test_a_note_that_cannot_be_sent(client: S3Client, caplog: pytest.LogCaptureFixture):
    """What cannot be sent of a finaliser's is logged, and harms nobody who sends something else."""

    def broken(_seconds: float) -> None:
        raise ZeroDivisionError

    leftovers.leave(broken)
    assert client.read_range("bucket", "00000", 0, 5) == CONTENTS[0][:5]
    assert "could not be sent" in caplog.text


def test_an_object_that_cannot_be_opened(server: FaultyServer):
    """An object that cannot be opened costs its own sample alone, and the iteration comes to its end."""

    def objects(_client: S3Client) -> list[S3BucketKeyData]:
        return [S3BucketKeyData("bucket", key) for key in ("00000", "00001", "", "00003", "00004")]

    dataset = S3IterableDataset(
        "us-east-1", objects, endpoint=server.endpoint, transform=read, s3client_config=server.config
    )
    samples, errors = taken(iter(dataset), S3Error, most=5)
    assert len(errors) == 1
    assert samples == [CONTENTS[number] for number in (0, 1, 3, 4)]


@pytest.mark.parametrize("config", [S3ReaderConfig.range_based(buffer_size=64 * KiB), S3ReaderConfig.adaptive()])
def test_closing_in_the_middle_of_a_read(client: S3Client, server: FaultyServer, config: S3ReaderConfig):
    """A reader is not closed by one thread while another one reads: that read would come short."""
    reader = client.get_object("bucket", "00001", reader_config=config)
    server.script(faults.late(0.5))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(reader.read(1000)))
    thread.start()
    while not reader._users:
        time.sleep(0.001)
    with pytest.raises(ConcurrentUseError):
        reader.close()
    thread.join()
    assert found == [CONTENTS[1][:1000]]
    reader.close()


def test_storing_what_must_be_new_and_was_stored(client: S3Client, server: FaultyServer):
    """An object that must be new, and was stored by an attempt whose answer was lost, is stored."""
    server.script(faults.answer_lost())
    with client.put_object("bucket", "new", if_none_match=True) as writer:
        writer.write(b"12345")
    assert bytes(server.objects["new"]) == b"12345"
    with pytest.raises(S3Error), client.put_object("bucket", "new", if_none_match=True) as writer:
        writer.write(b"12345")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="signals come between nearly all bytecodes, also the last ones")
def test_interrupts_of_an_iteration(server: FaultyServer):
    """Wherever an iteration is interrupted, whoever goes on gets each sample once."""
    dataset = S3IterableDataset.from_objects(
        [f"s3://bucket/{number:05}" for number in range(4)],
        region="us-east-1",
        endpoint=server.endpoint,
        transform=read,
        s3client_config=server.config,
    )
    list(dataset)
    count = 1
    while True:
        samples: list[bytes] = []
        iterator = iter(dataset)

        def take_three(samples=samples, iterator=iterator) -> None:
            for _ in range(3):
                samples.append(next(iterator))

        was_interrupted = interrupt_at("datasets/samples.py", count, take_three, is_real=True)
        samples += iterator
        assert samples == CONTENTS[:4], count
        if not was_interrupted:
            break
        count += 1 + count // 20
