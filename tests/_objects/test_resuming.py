"""Uploads that go on where they were interrupted, on servers that take parts in different ways."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.endpoint import Endpoint
from s3torch._objects.upload import MultipartUpload
from s3torch._transfer import plan
from s3torch.errors import RequestError, S3Error
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import Answer, Objects, error_answer, operation_of, query_of
from s3torch.testing.faulty.wire import Request, Wire

PART = 100  # bytes; S3 takes no part below 5 MiB, these servers do
CONTENT = os.urandom(4 * PART + 50)  # of five parts
_NAMED = re.compile(rb"<PartNumber>(\d+)</PartNumber><ETag>([^<]*)</ETag>")


@dataclass
class Habits:
    """How a server takes parts; by default in any way.

    Attributes:
        names_all: It completes no upload with a part that is not named, as Ceph.
        has_no_gaps: The numbers that are named must be 1, 2, 3, and so on, as for Amazon S3 where there are checksums.
        most: The largest number of a part; Swift takes 1,000.
        joins_all: It joins parts that are not named as well.
        server: What it calls itself in each answer.
    """

    names_all: bool = False
    has_no_gaps: bool = False
    most: int = 10_000
    joins_all: bool = False
    server: str = ""


KINDS = {
    "any": Habits(),
    "Ceph": Habits(names_all=True),
    "Swift": Habits(most=1000),
    "no gaps": Habits(has_no_gaps=True),
    "Amazon": Habits(has_no_gaps=True, server="AmazonS3"),
}


@dataclass
class Bucket:
    """A bucket with habits, which can stop to answer.

    Attributes:
        habits: Its.
        objects: What is in it.
        log: The operations that it was asked for, those on parts with their number.
        named: The numbers that completed an upload.
        left: How many requests it still answers; None for all.
    """

    habits: Habits
    objects: Objects = field(default_factory=lambda: Objects("bucket"))
    log: list[str] = field(default_factory=list)
    named: list[list[int]] = field(default_factory=list)
    left: int | None = None

    def __call__(self, request: Request, wire: Wire) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                wire.close()
                return
        operation, query = operation_of(request), query_of(request)
        self.log.append(f"{operation} {query.get('partNumber', '')}".strip())
        answer = self._refusal(operation, query, request) or self.objects.answer(request)
        wire.respond(
            answer.status,
            {**answer.fields, **({"Server": self.habits.server} if self.habits.server else {})},
            answer.body,
        )

    def _refusal(self, operation: str, query: dict[str, str], request: Request) -> Answer | None:
        if operation == "UploadPart" and int(query["partNumber"]) > self.habits.most:
            return error_answer(400, "InvalidArgument")
        upload = self.objects._uploads.get(query.get("uploadId", ""))
        if operation != "CompleteMultipartUpload" or upload is None:
            return None
        parts = {int(number): etag.decode().replace("&quot;", '"') for number, etag in _NAMED.findall(request.body)}
        if list(parts) != sorted(parts) or any(
            self.objects._etag_of([upload.parts.get(number, b"")]) != etag for number, etag in parts.items()
        ):
            return error_answer(400, "InvalidPart")
        if self.habits.has_no_gaps and list(parts) != list(range(1, len(parts) + 1)):
            return error_answer(400, "InvalidPartOrder")
        if self.habits.names_all and parts.keys() != upload.parts.keys():
            return error_answer(400, "InvalidPart")
        self.named.append(list(parts))
        if not self.habits.joins_all:
            return None
        answer = self.objects.answer(request)
        self.objects[upload.key] = b"".join(part for _, part in sorted(upload.parts.items()))
        return answer


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 100 bytes are permitted."""
    monkeypatch.setattr("s3torch.config._MIN_PART_SIZE", 1)


@contextlib.contextmanager
def serving(habits: Habits) -> Iterator[tuple[Bucket, S3Client]]:
    """Yield a bucket, and a client of it."""
    bucket = Bucket(habits)
    with ScriptedServer(bucket) as server:
        client = client_of(server)
        yield bucket, client
        client.close()


def client_of(server: ScriptedServer, part_size: int = PART) -> S3Client:
    """Return a client that sends parts of a size, each request once."""
    config = S3ClientConfig(unsigned=True, part_size=part_size, max_attempts=1)
    return S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)


def with_part_size(client: S3Client, part_size: int, **options: Any) -> S3Client:
    """Return the like of a client that sends parts of another size."""
    config = S3ClientConfig(unsigned=True, part_size=part_size, max_attempts=1, **options)
    return S3Client("us-east-1", endpoint=client.endpoint, s3client_config=config)


def write(client: S3Client, content: bytes, *, is_known: bool) -> None:
    """Write the object."""
    with client.put_object("bucket", "key", resume=True, size=len(content) if is_known else None) as writer:
        writer.write(content)


def interrupt(client: S3Client, content: bytes, *, is_known: bool, size: int | None = None) -> None:
    """Write the beginning, let all parts that are full arrive, and fail."""
    size = len(CONTENT) if size is None else size
    writer = client.put_object("bucket", "key", resume=True, size=size if is_known else None)
    writer.write(content)
    assert writer._upload is not None
    writer._upload._wait_for_parts()
    writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


@pytest.mark.parametrize("is_known", [False, True], ids=["a stream", "a known size"])
@pytest.mark.parametrize("kind", KINDS)
def test_resume(kind: str, is_known: bool):
    """What was interrupted goes on where it was, whatever way a server has with parts."""
    with serving(KINDS[kind]) as (bucket, client):
        interrupt(client, CONTENT[:350], is_known=is_known)
        assert len(bucket.objects.uploads) == 1
        bucket.log.clear()
        write(client, CONTENT, is_known=is_known)
        assert bucket.objects["key"] == CONTENT
        assert bucket.objects.uploads == []
        assert not {"UploadPart 1", "UploadPart 2", "UploadPart 3"} & {*bucket.log}
        assert "UploadPart 4" in bucket.log


@pytest.mark.parametrize(
    ("kind", "is_known", "named"),
    [
        ("any", False, [1, 2, 3, 4, 10_000]),
        ("Swift", False, [1, 2, 3, 4, 1000]),
        ("any", True, [1, 2, 3, 4, 5]),
        ("no gaps", False, [1, 2, 3, 4, 5]),
        ("Amazon", False, [1, 2, 3, 4, 5]),
        ("Amazon", True, [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_part_replaces_the_note(kind: str, is_known: bool, named: list[int]):
    """All parts are named, the last by the number of the note; on Amazon S3 the note is part 10,000, and is not."""
    with serving(KINDS[kind]) as (bucket, client):
        write(client, CONTENT, is_known=is_known)
        assert bucket.objects["key"] == CONTENT
        assert bucket.named == [named]
        assert ("UploadPart 10000" in bucket.log) == (kind == "Amazon" or not is_known)


def test_amazon_by_its_name(monkeypatch: pytest.MonkeyPatch):
    """Where Amazon S3 is known by its address, the note is not replaced."""
    monkeypatch.setattr(Endpoint, "is_amazons", True)
    with serving(KINDS["any"]) as (bucket, client):
        write(client, CONTENT, is_known=False)
        assert bucket.named == [[1, 2, 3, 4, 5]]
        assert bucket.log.count("UploadPart 10000") == 1
        assert "HeadObject" not in bucket.log


def code_of(act: Callable[[], object]) -> str | None:
    """Return the code of the error of a request that is refused; None if none is."""
    try:
        act()
    except RequestError as error:
        return error.code
    return None


# What the second writer writes: the same, less, more, other bytes, and the same in other parts.
SECOND = {
    "the same": (CONTENT, PART),
    "less": (CONTENT[:250], PART),
    "one part": (CONTENT[:50], PART),
    "more": (CONTENT + os.urandom(300), PART),
    "other bytes": (os.urandom(len(CONTENT)), PART),
    "larger parts": (CONTENT, 2 * PART),
    "smaller parts": (CONTENT, PART // 2),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("is_known", [False, True], ids=["a stream", "a known size"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_each_request(kind: str, is_known: bool, second: str):
    """Wherever a writer was killed, the next one stores what it was given; if it raises, the one after it does."""
    content, part_size = SECOND[second]
    with serving(KINDS[kind]) as (bucket, two):
        # One connection: nothing of who was killed arrives later.
        first, then = (with_part_size(two, size, max_connections=1) for size in (PART, part_size))
        for count in range(1, 30):
            bucket.objects = Objects("bucket")
            bucket.left = count
            with contextlib.suppress(S3Error):
                write(first, CONTENT, is_known=is_known)
            is_over = bucket.left > 0
            bucket.left = None
            if refused := code_of(lambda: write(then, content, is_known=is_known)):
                # Parts of the first are in the way, and how many there will be was not known.
                assert refused == "InvalidPart"
                assert (kind, is_known) == ("Ceph", False)
                assert second in {"less", "larger parts"}
                assert bucket.objects.get("key") in (None, CONTENT)
                write(then, content, is_known=is_known)
            assert bucket.objects["key"] == content
            if is_over:
                break
        assert count > 8
        first.close()
        then.close()


@pytest.mark.parametrize("kind", KINDS)
def test_two_at_once(kind: str):
    """Of two writers that go on with one upload, each stores its own content whole, or raises."""
    other = CONTENT[:120] + os.urandom(len(CONTENT) - 120)
    with serving(KINDS[kind]) as (bucket, client):
        interrupt(client, CONTENT[:250], is_known=False)
        first = client.put_object("bucket", "key", resume=True)
        second = client.put_object("bucket", "key", resume=True)
        first.write(CONTENT[:310])
        second.write(other[:410])
        first.write(CONTENT[310:])
        second.write(other[410:])
        stored = []
        for writer, content in ((first, CONTENT), (second, other)):
            with contextlib.suppress(S3Error):
                writer.close()
                stored.append(content)
                assert bucket.objects["key"] == content
        assert bucket.objects.get("key") == (stored[-1] if stored else None)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_completes_while_another_sends(kind: str):
    """The note of an upload is gone with its last part: who comes then begins anew, and nothing is mixed."""
    with serving(KINDS[kind]) as (bucket, client):
        first = client.put_object("bucket", "key", resume=True)
        first.write(CONTENT)
        assert first._upload is not None
        first._upload.send(first._buffer, is_last=True)
        first._upload._wait_for_parts()
        write(client, CONTENT[::-1], is_known=False)
        assert bucket.objects["key"] == CONTENT[::-1]
        with contextlib.suppress(S3Error):
            first._upload.complete()
            assert bucket.objects["key"] == CONTENT
        first.abort()


def content_of_parts(count: int) -> bytes:
    """Return bytes of so many parts, where the first have 10 bytes."""
    return os.urandom(sum(plan.upload_part_size(number, 10) for number in range(1, count)) + 5)


@pytest.mark.parametrize("count", [999, 1000, 1001])
def test_as_many_parts_as_the_server_takes(count: int):
    """A note at 1,000 is replaced by the last part up to the thousandth; what has more parts is refused, never cut."""
    content = content_of_parts(count)
    with serving(KINDS["Swift"]) as (bucket, client):
        small = with_part_size(client, 10)
        if count <= 1000:
            write(small, content, is_known=False)
            assert bucket.objects["key"] == content
            assert bucket.named == [[*range(1, count), 1000]]
        else:
            with pytest.raises(RequestError, match="InvalidArgument"):
                write(small, content, is_known=False)
            assert "key" not in bucket.objects
        assert bucket.objects.uploads == []
        small.close()


@pytest.mark.parametrize("count", [999, 1000, 1001, 1002])
def test_a_part_behind_the_note(count: int):
    """Where a server has refused part 10,000 and takes more than 1,000 nevertheless, no part is lost."""

    class Once(Bucket):
        def _refusal(self, operation: str, query: dict[str, str], request: Request) -> Answer | None:
            is_first = query.get("partNumber") == "10000" and self.log.count("UploadPart 10000") == 1
            return error_answer(400, "InvalidArgument") if is_first else super()._refusal(operation, query, request)

    content = content_of_parts(count)
    bucket = Once(KINDS["Ceph"])
    with ScriptedServer(bucket) as server:
        client = client_of(server, 10)
        write(client, content, is_known=False)
        assert bucket.objects["key"] == content
        assert bucket.named == [[*range(1, count), max(count, 1000)]]
        client.close()


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Swift"])  # which has refused the note
def test_an_upload_of_an_older_version(kind: str, is_known: bool, monkeypatch: pytest.MonkeyPatch):
    """Before, the note was part 10,000 on every server: such an upload is gone on with where part 10,000 is taken."""
    with serving(Habits()) as (bucket, client):
        with monkeypatch.context() as patch:
            patch.setattr(Endpoint, "is_amazons", True)  # as it was for all
            interrupt(client, CONTENT[:350], is_known=is_known)
        bucket.habits = KINDS[kind]
        bucket.log.clear()
        write(client, CONTENT, is_known=is_known)
        assert bucket.objects["key"] == CONTENT
        assert "UploadPart 1" not in bucket.log
        assert bucket.objects.uploads == []


def test_parts_of_a_longer_object():
    """Where all parts must be named, an error says what is in the way, and the next writer finds it gone."""
    with serving(KINDS["Ceph"]) as (bucket, client):
        interrupt(client, CONTENT, is_known=False)
        with pytest.raises(RequestError, match=r"of an earlier writer .* Write the object again"):
            write(client, CONTENT[:250], is_known=False)
        assert "key" not in bucket.objects
        write(client, CONTENT[:250], is_known=False)
        assert bucket.objects["key"] == CONTENT[:250]
        assert bucket.objects.uploads == []


def test_a_known_size_begins_anew_beside_a_longer_object():
    """Who knows how many parts there will be does not go on with an upload that has more."""
    with serving(KINDS["Ceph"]) as (bucket, client):
        interrupt(client, CONTENT, is_known=False)
        [left] = bucket.objects.uploads
        write(client, CONTENT[:250], is_known=True)
        assert bucket.objects["key"] == CONTENT[:250]
        assert bucket.objects.uploads == [left]


@pytest.mark.parametrize("habits", [Habits(joins_all=True), Habits(joins_all=True, has_no_gaps=True)])
def test_parts_that_get_into_the_object(habits: Habits):
    """A server that joins parts that are not named is found out: the object is damaged, and an error says so."""
    with serving(habits) as (_, client):
        interrupt(client, CONTENT, is_known=False)
        with pytest.raises(S3Error, match=r"bytes, and 250 were written: .* without resume=True"):
            write(client, CONTENT[:250], is_known=False)


def test_what_fails_behind_the_note_is_aborted():
    """Once the note is replaced nobody could go on, so nothing is left."""
    with serving(KINDS["any"]) as (bucket, client):
        refused: Any = lambda *_: error_answer(403, "AccessDenied")  # noqa: E731
        bucket._refusal = lambda operation, query, request: (  # type: ignore[method-assign]
            refused() if operation == "CompleteMultipartUpload" else None
        )
        with pytest.raises(S3Error):
            write(client, CONTENT, is_known=False)
        assert bucket.objects.uploads == []


def test_the_last_part_waits_for_the_others(monkeypatch: pytest.MonkeyPatch):
    """An interrupt before the last part leaves the note: the others can be gone on with."""
    with serving(KINDS["any"]) as (bucket, client):
        wait = MultipartUpload._wait_for_parts

        def interrupted(upload: MultipartUpload) -> None:
            wait(upload)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MultipartUpload, "_wait_for_parts", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write(client, CONTENT, is_known=False)
        assert len(bucket.objects.uploads) == 1
        bucket.log.clear()
        write(client, CONTENT, is_known=False)
        assert [each for each in bucket.log if each.startswith("UploadPart ")] == ["UploadPart 10000"]
        assert bucket.objects["key"] == CONTENT


def test_no_note_where_etags_are_no_md5s(monkeypatch: pytest.MonkeyPatch):
    """Where nothing could be compared, nothing is noted."""
    monkeypatch.setattr("s3torch._aws.bucket.Bucket.has_md5_etags", False)
    with serving(KINDS["Ceph"]) as (bucket, client):
        write(client, CONTENT, is_known=False)
        assert bucket.objects["key"] == CONTENT
        assert "UploadPart 10000" not in bucket.log
        assert "ListMultipartUploads" not in bucket.log
