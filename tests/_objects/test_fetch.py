"""Reads of one object, piece by piece: what they bring, and what they learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.operations import GetObject
from s3torch._objects.remote import RemoteObject
from s3torch.errors import ArgumentError
from tests.support.server import ScriptedServer, serve_object

CONTENT = bytes(range(100))
MiB = 1024 * 1024


@pytest.fixture
def remote() -> Iterator[RemoteObject]:
    """An object of which nothing is known."""
    with ScriptedServer(serve_object(CONTENT)) as server:
        config = S3ClientConfig(unsigned=True, hedging=False)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        yield client.get_object("b", "k")._remote
        client.close()


def test_a_range_tells_size_and_version(remote: RemoteObject):
    """A read of a range fills all pieces of memory, and what its answer tells of the object holds for later reads."""
    pieces = [bytearray(3), bytearray(7)]
    fetch = remote.new_range_fetch(5, *map(memoryview, pieces))
    fetch.begin()
    fetch.finish()
    assert b"".join(pieces) == CONTENT[5:15]
    assert remote.size == 100
    assert remote.etag is not None


def test_a_range_beyond_the_end(remote: RemoteObject):
    """A range of which the object has only some bytes is an error."""
    fetch = remote.new_range_fetch(95, memoryview(bytearray(10)))
    fetch.begin()
    with pytest.raises(ArgumentError, match="beyond"):
        fetch.finish()


def test_progress_is_told(remote: RemoteObject):
    """Who asks for progress is told the bytes of each request once it is done."""
    told: list[int] = []
    memory = [bytearray(10), bytearray(20)]
    remote.read_ranges([(0, 10), (50, 70)], [memoryview(each) for each in memory], 0, told.append)
    assert told == [10, 20]
    assert memory == [CONTENT[:10], CONTENT[50:70]]


def test_progress_that_is_not_wanted_any_more(remote: RemoteObject):
    """If who is told of progress raises, nothing is under way afterwards."""

    def refuse(_count: int) -> None:
        raise ZeroDivisionError

    memory = [bytearray(10), bytearray(20), bytearray(30)]
    with pytest.raises(ZeroDivisionError):
        remote.read_ranges([(0, 10), (20, 40), (50, 80)], [memoryview(each) for each in memory], 0, refuse)
    assert remote.access.engine().pending == 0


def note_parts(monkeypatch) -> list[tuple[int, int, list[int]]]:
    """Return a list that gets, of each request from now on, its range and how long each piece of its memory is."""
    parts: list[tuple[int, int, list[int]]] = []
    construct = GetObject.__init__

    def note(get, bucket, key, start, stop, into, **options: object) -> None:
        parts.append((start, stop, [len(into)] if isinstance(into, memoryview) else [*map(len, into)]))
        construct(get, bucket, key, start, stop, into, **options)

    monkeypatch.setattr(GetObject, "__init__", note)
    return parts


@pytest.fixture
def large() -> Iterator[RemoteObject]:
    """An object of several parts, whose size is known."""
    with ScriptedServer(serve_object(bytes(15 * MiB))) as server:
        config = S3ClientConfig(unsigned=True, hedging=False)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        yield RemoteObject(client._access, "b", "k", size=15 * MiB)
        client.close()


@pytest.mark.parametrize(
    "read",
    [
        lambda remote: remote.read(MiB, 14 * MiB),
        lambda remote: remote.read_vector([(MiB, 14 * MiB)], None, 0),
        lambda remote: remote.read_vector([(MiB, 14 * MiB)], [bytearray(13 * MiB)], 0),
    ],
)
def test_each_part_has_memory_of_its_own(large: RemoteObject, monkeypatch, read):
    """The memory of a part is as long as the part: whatever its answer brings reaches no byte of another part."""
    parts = note_parts(monkeypatch)
    read(large)
    assert len(parts) > 1
    assert [sum(lengths) for _, _, lengths in parts] == [stop - start for start, stop, _ in parts]


def test_parts_of_a_range_in_several_pieces(monkeypatch):
    """Each part fills the pieces that it reaches, and no byte of those before and behind it."""
    content = bytes(range(251)) * (12 * MiB // 251)
    with ScriptedServer(serve_object(content)) as server:
        config = S3ClientConfig(unsigned=True, hedging=False)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        remote = RemoteObject(client._access, "b", "k", size=len(content))
        pieces = [bytearray(size) for size in (5, 4 * MiB - 1, 7, 3 * MiB, 11, 100)]
        expected = memoryview(content)[3 : 3 + sum(map(len, pieces))]
        parts = note_parts(monkeypatch)
        fetch = remote.new_range_fetch(3, *map(memoryview, pieces))
        fetch.begin()
        fetch.finish()
        client.close()
    assert b"".join(pieces) == expected
    assert len(parts) > 1
    assert [sum(lengths) for _, _, lengths in parts] == [stop - start for start, stop, _ in parts]
