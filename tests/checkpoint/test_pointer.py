"""The pointer to the latest checkpoint, which is moved by compare-and-swap."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from s3torch import S3Client
from s3torch.checkpoint import Pointer, keep_last, latest, read_pointer, set_pointer
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from s3torch.testing import FaultyServer, faults

RUN = "s3://bucket/run"
NONE = Pointer(None, None)


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A bucket in memory."""
    with FaultyServer() as faulty:
        yield faulty


@pytest.fixture
def memory(faulty: FaultyServer) -> Iterator[S3Client]:
    """A client of that bucket."""
    client = S3Client("us-east-1", endpoint=faulty.endpoint, s3client_config=faulty.config)
    yield client
    client.close()


def test_it_is_moved(client: S3Client, run: str):
    """On a real server: it is made, moved by who has read it, and not by who has read an older one."""
    assert read_pointer(run, client=client) == NONE
    first = set_pointer(f"{run}1.pt", expected=NONE, client=client)
    assert read_pointer(run, client=client) == first
    assert first.uri == f"{run}1.pt"
    second = set_pointer(f"{run}2/", expected=first, client=client)
    assert second.uri == f"{run}2"
    with pytest.raises(ObjectChangedError, match="is not the version any more"):
        set_pointer(f"{run}3.pt", expected=first, client=client)
    with pytest.raises(ObjectExistsError):
        set_pointer(f"{run}3.pt", expected=NONE, client=client)
    assert latest(run, by_pointer=True, client=client) == f"{run}2"
    assert latest(run, client=client) is None  # there is no checkpoint
    again = set_pointer(f"{run}1.pt", expected=second, client=client)
    assert again.etag != first.etag  # there and back is another pointer


@pytest.fixture
def run(bucket, prefix) -> str:
    """The URI of a run's folder."""
    return f"s3://{bucket}/{prefix}run/"


def test_it_was_deleted(faulty: FaultyServer, memory: S3Client):
    """Who has read a pointer that is gone is told so."""
    first = set_pointer(f"{RUN}/1.pt", expected=NONE, client=memory)
    del faulty.objects["run/_LATEST"]
    with pytest.raises(ObjectNotFoundError):
        set_pointer(f"{RUN}/2.pt", expected=first, client=memory)
    assert "run/_LATEST" not in faulty.objects


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_an_answer_that_is_lost(faulty: FaultyServer, memory: S3Client, heeds: bool, is_first: bool):
    """A pointer that was stored by a request without an answer is one's own, and no conflict."""
    before = NONE if is_first else set_pointer(f"{RUN}/1.pt", expected=NONE, client=memory)
    ignored = [] if heeds else [faults.on("PutObject", fault=faults.ignore_condition())]
    faulty.script(faults.on("PutObject", fault=faults.answer_lost()), *ignored)
    moved = set_pointer(f"{RUN}/2.pt", expected=before, client=memory)
    assert read_pointer(RUN, client=memory) == moved == Pointer(f"{RUN}/2.pt", moved.etag)


def test_somebody_else_was_faster_than_the_retry(faulty: FaultyServer, memory: S3Client):
    """A conflict is none of one's own: another pointer with the same target has another token."""
    before = set_pointer(f"{RUN}/1.pt", expected=NONE, client=memory)
    faulty.script(
        faults.on("PutObject", fault=faults.status(500, "InternalError")),
    )
    other = S3Client("us-east-1", endpoint=faulty.endpoint, s3client_config=faulty.config)
    content = faulty.objects["run/_LATEST"].replace(b"1.pt", b"2.pt")
    faulty.objects["run/_LATEST"] = content
    with pytest.raises(ObjectChangedError):
        set_pointer(f"{RUN}/2.pt", expected=before, client=memory)
    assert faulty.objects["run/_LATEST"] == content
    other.close()


def test_many_at_once(faulty: FaultyServer, memory: S3Client):
    """Each move is from another pointer: none is lost."""
    moves: list[tuple[Pointer, Pointer]] = []

    def work(name: int) -> None:
        for number in range(5):
            while True:
                before = read_pointer(RUN, client=memory)
                try:
                    after = set_pointer(f"{RUN}/{name}-{number}.pt", expected=before, client=memory)
                except (ObjectChangedError, ObjectExistsError):
                    continue
                moves.append((before, after))
                break

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moves) == 20
    assert len({before.etag for before, _ in moves}) == 20
    last = {after.etag for _, after in moves} - {before.etag for before, _ in moves}
    assert last == {read_pointer(RUN, client=memory).etag}


def test_what_it_names_is_kept(faulty: FaultyServer, memory: S3Client):
    """``keep_last`` keeps it beside the last ones."""
    for number in range(5):
        faulty.objects[f"run/{number}.pt"] = b"x"
    faulty.objects["run/f/.metadata"] = b"x"
    faulty.objects["run/a/.metadata"] = b"x"
    pointer = set_pointer(f"{RUN}/1.pt", expected=NONE, client=memory)
    assert keep_last(RUN, 4, client=memory) == [f"{RUN}/0.pt", f"{RUN}/2.pt"]
    set_pointer(f"{RUN}/a", expected=pointer, client=memory)
    assert keep_last(RUN, 1, client=memory) == [f"{RUN}/{name}" for name in ("1.pt", "3.pt", "4.pt")]
    assert sorted(faulty.objects) == ["run/_LATEST", "run/a/.metadata", "run/f/.metadata"]


@pytest.mark.parametrize("content", [b"", b"step-3", b"[]", b'{"version": 2, "checkpoint": "a"}', b'{"version": 1}'])
def test_what_is_no_pointer(faulty: FaultyServer, memory: S3Client, content: bytes):
    """It is refused, and nothing is deleted by it."""
    faulty.objects.update({"run/_LATEST": content, "run/1.pt": b"x", "run/2.pt": b"x"})
    for call in (lambda: read_pointer(RUN, client=memory), lambda: keep_last(RUN, 1, client=memory)):
        with pytest.raises(CheckpointFormatError, match="s3://bucket/run/_LATEST is no pointer"):
            call()
    assert latest(RUN, client=memory) == f"{RUN}/2.pt"
    assert len(faulty.objects) == 3


def test_bad_arguments(memory: S3Client):
    """What makes no sense is refused by name."""
    for wrong in (None, (None, None), "s3://bucket/run/1.pt"):
        with pytest.raises(ArgumentTypeError, match="expected must be a Pointer"):
            set_pointer(f"{RUN}/1.pt", expected=wrong, client=memory)
    for wrong in ("s3://bucket", "s3://bucket/", "s3://bucket//"):
        with pytest.raises(ArgumentError, match="names no checkpoint"):
            set_pointer(wrong, expected=NONE, client=memory)
    with pytest.raises(ArgumentError, match="does not lie beside"):
        set_pointer(f"{RUN}/1.pt", expected=Pointer("s3://bucket/other/1.pt", '"e"'), client=memory)
    with pytest.raises(ArgumentTypeError, match="by_pointer"):
        latest(RUN, by_pointer=1, client=memory)
