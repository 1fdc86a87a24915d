"""The sequential reader as torch.load uses it: large pieces into the caller's memory, and a look at the end before."""

from __future__ import annotations

import io
import itertools
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch import S3Client, S3ClientConfig
from s3torch._objects.version import ObjectVersion
from s3torch.errors import ObjectChangedError
from s3torch.readers import SequentialS3Reader, sequential
from s3torch.testing.faulty import FaultyServer
from s3torch.testing.simulate.tracing import trace_bytecodes

KiB = 1024
MiB = 1024 * KiB
SIZE = 24 * MiB + 12_345
CONTENT = random.Random(2).randbytes(SIZE)


@pytest.fixture(scope="module")
def server():
    """A server with one large object, and one that is smaller than a part."""
    with FaultyServer({"large": CONTENT, "small": CONTENT[: 3 * MiB]}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FaultyServer):
    """A client of it."""
    config = S3ClientConfig(unsigned=True, hedging=False)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    yield client
    client.close()


def bytes_received(client: S3Client, before: int) -> int:
    """How many bytes have come since."""
    return client.stats.bytes_received - before


STEPS = st.one_of(
    st.tuples(st.just("readinto"), st.sampled_from([1, 30, 4096, 700 * KiB, MiB, 3 * MiB, 9 * MiB, 30 * MiB])),
    st.tuples(st.just("read"), st.sampled_from([0, 1, 100, 64 * KiB, 2 * MiB, 10 * MiB, -1])),
    st.tuples(st.just("read1"), st.sampled_from([1, 100, 64 * KiB, -1])),
    st.tuples(st.just("seek"), st.integers(0, SIZE)),
    st.tuples(st.just("skip"), st.sampled_from([-100, 1, 50, 4000, 5000, 3 * MiB])),
    st.tuples(st.just("tail"), st.integers(0, 2 * MiB)),
    st.tuples(st.just("line"), st.just(0)),
)


@pytest.mark.parametrize("far", [None, 0.0001, 0.004, 1.0], ids=["unknown", "near", "between", "far"])
@settings(max_examples=30, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=14), knows=st.booleans(), key=st.sampled_from(["large", "small"]))
def test_any_pattern_reads_right(client: S3Client, far: float | None, steps, knows: bool, key: str):
    """Whatever is read in whatever order, it is what the object holds, as a file in memory would tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectVersion, "usual_first_byte", lambda _: far)
        content = CONTENT if key == "large" else CONTENT[: 3 * MiB]
        model = io.BytesIO(content)
        known = {"object_info": client.head_object("bucket", key)} if knows else {}
        with client.get_object("bucket", key, **known) as reader:
            assert type(reader) is SequentialS3Reader
            for name, value in steps:
                if name == "readinto":
                    memory, wanted = bytearray(value), bytearray(value)
                    assert reader.readinto(memory) == model.readinto(wanted)
                    assert memory == wanted
                elif name == "read":
                    assert reader.read(value) == model.read(value)
                elif name == "read1":
                    found = reader.read1(value)
                    assert found == model.read(len(found))
                    assert found or model.tell() == len(content)
                elif name == "seek":
                    assert reader.seek(value) == model.seek(min(value, len(content)))
                elif name == "skip":
                    target = max(0, min(model.tell() + value, len(content)))
                    assert reader.seek(target) == model.seek(target)
                elif name == "tail":
                    target = max(0, len(content) - value)
                    assert reader.seek(target) == model.seek(target)
                else:
                    assert reader.readline(200) == model.readline(200)
                assert reader.tell() == model.tell()


def test_large_pieces_are_received_where_they_belong(client: S3Client, monkeypatch: pytest.MonkeyPatch):
    """From the first large piece on nothing is kept but what was there, and no byte is asked for twice."""
    monkeypatch.setattr(ObjectVersion, "usual_first_byte", lambda _: 0.0)
    before = client.stats.bytes_received
    found = bytearray(SIZE)
    with client.get_object("bucket", "large") as reader, memoryview(found) as view:
        position = 0
        while position < SIZE:
            position += reader.readinto(view[position : position + 3 * MiB])
            head = reader.read(100)  # of the next member
            view[position : position + len(head)] = head
            position += len(head)
        assert reader._complete is None
        assert reader._store.filled == 8 * MiB
    assert found == CONTENT
    assert bytes_received(client, before) < SIZE + 64 * KiB


def test_the_end_is_looked_at_alone(client: S3Client):
    """What stands at the end of a large object is read without all that lies before it, and once."""
    before = client.stats.bytes_received
    with client.get_object("bucket", "large") as reader:
        assert reader.read(4) == CONTENT[:4]
        for start in (22, 50, MiB, 100 * KiB, 900 * KiB, 40):
            reader.seek(-start, io.SEEK_END)
            assert reader.read(20) == CONTENT[SIZE - start :][:20]
        reader.seek(10)
        assert reader.read(8 * MiB - 10) == CONTENT[10 : 8 * MiB]
    assert bytes_received(client, before) < 8 * MiB + 1100 * KiB


def test_all_of_the_end(client: S3Client):
    """The last megabyte may be read at once."""
    with client.get_object("bucket", "large") as reader:
        assert reader.read(4) == CONTENT[:4]
        reader.seek(-MiB, io.SEEK_END)
        assert reader.read() == CONTENT[-MiB:]


def test_all_of_it_into_memory(client: S3Client):
    """Who has memory for all of an object of unknown size gets it there, but for the first part."""
    before = client.stats.bytes_received
    with client.get_object("bucket", "large") as reader:
        memory = bytearray(SIZE + 1)
        assert reader.readinto(memory) == SIZE
        assert memory[:SIZE] == CONTENT
        assert reader._store.filled == 8 * MiB
    assert bytes_received(client, before) < SIZE + 64 * KiB


def test_small_objects_are_kept(client: S3Client):
    """An object of less than a part is kept, whoever reads it: to read it again costs nothing."""
    with client.get_object("bucket", "small") as reader:
        memory = bytearray(3 * MiB)
        assert reader.readinto(memory) == 3 * MiB
        before = client.stats.requests
        reader.seek(0)
        assert reader.read() == memory == CONTENT[: 3 * MiB]
        assert client.stats.requests == before


def test_a_far_server_is_asked_for_more(client: S3Client, monkeypatch: pytest.MonkeyPatch):
    """The farther the server, the more is fetched behind a piece, twice what was read so far at most."""
    counts = {}
    for far in (0.0, 0.02):
        monkeypatch.setattr(ObjectVersion, "usual_first_byte", lambda _, far=far: far)
        before = client.stats.requests
        with client.get_object("bucket", "large") as reader:
            memory = bytearray(MiB)
            while reader.readinto(memory):
                pass
        counts[far] = client.stats.requests - before
    assert counts[0.02] < counts[0.0] / 2


def test_strict_keeps(server: FaultyServer):
    """With checksums="strict" nothing is handed out before all is there, large pieces neither."""
    config = S3ClientConfig(unsigned=True, hedging=False, checksums="strict")
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    with client.get_object("bucket", "large") as reader:
        memory = bytearray(2 * MiB)
        assert reader.readinto(memory) == 2 * MiB
        assert reader._complete is not None
    client.close()


def test_replaced_between_two_pieces(server: FaultyServer, client: S3Client):
    """Pieces of two versions are an error."""
    server.objects["replaced"] = CONTENT
    with client.get_object("bucket", "replaced") as reader:
        memory = bytearray(9 * MiB)
        assert reader.readinto(memory) == 9 * MiB
        server.objects["replaced"] = CONTENT[::-1]
        with pytest.raises(ObjectChangedError):
            [*iter(lambda: reader.readinto(memory), 0)]


def test_torch_load(server: FaultyServer, client: S3Client):
    """torch.load of a reader brings what was saved, and asks for the bytes of the object, and few more."""
    state = {f"layer.{number}": torch.randn(400_000) for number in range(20)} | {"step": 7}
    file = io.BytesIO()
    torch.save(state, file)
    server.objects["state.pt"] = file.getvalue()
    before = client.stats.bytes_received
    with client.get_object("bucket", "state.pt") as reader:
        loaded = torch.load(reader, weights_only=True)
        assert reader._behind is not None
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if name != "step")
    assert bytes_received(client, before) < len(file.getvalue()) + 200 * KiB


def test_what_is_complete_is_not_fetched_again(client: S3Client):
    """Who reads all of an object after a large piece has it: large pieces cost nothing then."""
    with client.get_object("bucket", "large") as reader:
        assert reader.readinto(bytearray(2 * MiB)) == 2 * MiB
        reader.seek(0)
        assert reader.read() == CONTENT
        before = client.stats.requests
        for _ in range(2):
            reader.seek(9 * MiB)
            memory = bytearray(2 * MiB)
            assert reader.readinto(memory) == len(memory)
            assert memory == CONTENT[9 * MiB : 11 * MiB]
        assert client.stats.requests == before
        assert reader._behind is None


def test_no_more_is_kept_by_a_small_read(client: S3Client):
    """A small read from what is kept on into what is not keeps no more of the object."""
    with client.get_object("bucket", "large") as reader:
        assert reader.readinto(bytearray(2 * MiB)) == 2 * MiB
        filled = reader._store.filled
        reader.seek(filled - 50)
        assert reader.read(100) == CONTENT[filled - 50 : filled + 50]
        assert reader._store.filled == filled


def test_prefetch_after_a_large_piece(client: S3Client):
    """Nothing is fetched ahead that no read would take."""
    with client.get_object("bucket", "large", object_info=client.head_object("bucket", "large")) as reader:
        assert reader.readinto(bytearray(2 * MiB)) == 2 * MiB
        reader.prefetch()
        assert reader._pending is None


def test_the_end_of_a_prefetched_object(server: FaultyServer):
    """What was prefetched is not gone on with up to the end, for a look at the directory there."""
    config = S3ClientConfig(unsigned=True, hedging=False, max_bytes_in_flight=8 * MiB)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
    with client.get_object("bucket", "large", object_info=client.head_object("bucket", "large")) as reader:
        reader.prefetch()
        reader.seek(-22, io.SEEK_END)
        assert reader.read() == CONTENT[-22:]
        reader.seek(0)
        assert reader.read(8 * MiB) == CONTENT[: 8 * MiB]
    assert bytes_received(client, 0) < 8 * MiB + 200 * KiB
    client.close()


class _Interruption:
    """Interrupts the reader at its n-th step, an instruction of the interpreter, in the code of windows."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame, _event, _argument):
        if frame.f_code.co_filename != sequential.__file__:
            return None
        trace_bytecodes(frame, self._count)
        return self._count

    def _count(self, _frame, event, _argument):
        if event == "opcode":
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._count


def test_interrupts_at_each_step(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C may come anywhere in a jump back: what is read next, wherever, is what the object holds."""
    for name, value in {"_LARGE": 20 * KiB, "_TAIL": 20 * KiB, "_NEAR": 8 * KiB, "_PADDING": 100}.items():
        monkeypatch.setattr(sequential, name, value)
    content = CONTENT[: 6 * MiB]
    config = S3ClientConfig(unsigned=True, hedging=False, part_size=5 * MiB)
    with FaultyServer({"k": content}) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        for nth in itertools.count(1):
            with client.get_object("bucket", "k") as reader:
                for start in (0, 5600 * KiB):
                    reader.seek(start)
                    reader.readinto(bytearray(30 * KiB))
                reader.seek(5300 * KiB)
                try:
                    with _Interruption(nth):
                        reader.readinto(bytearray(30 * KiB))
                except KeyboardInterrupt:
                    is_over = False
                else:
                    is_over = True
                for start in (5331, 5345, 5599, 5630, 5300):
                    reader.seek(start * KiB)
                    assert reader.read(300) == content[start * KiB :][:300]
            if is_over:
                break
        client.close()
    assert nth > 100
