"""The log: what it tells, how often, what it never tells, and that it costs nothing while it is off."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._transfer.connection import AddressBook
from s3torch._transfer.facts import OriginFacts
from s3torch.errors import S3Error
from tests.support.environment import forget_pauses, know_only
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, first, serve_object

CONTENT = b"content " * 1000
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # of the documentation
TOKEN = "FwoGZXIvYXdzEBYaDExampleSessionToken0123456789=="


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known credentials, nothing else from this machine, and no pauses between attempts."""
    know_only(monkeypatch, tmp_path, ACCESS_KEY_ID="ACCESS", SECRET_ACCESS_KEY=SECRET, SESSION_TOKEN=TOKEN)
    forget_pauses(monkeypatch)


@contextlib.contextmanager
def serving(handler: Handler, **options: object) -> Iterator[tuple[ScriptedServer, S3Client]]:
    """A server, and a client."""
    config = S3ClientConfig(**{"max_attempts": 3, "hedging": False, "part_size": 5 * 1024 * 1024, **options})
    with ScriptedServer(handler) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        yield server, client
        client.close()


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return the messages of a level that are ours."""
    return [record.getMessage() for record in caplog.records if record.name == "s3torch" and record.levelno == level]


def test_each_request_is_told(caplog: pytest.LogCaptureFixture):
    """DEBUG tells of each attempt: what was asked, what was answered, how many bytes, how long, where."""
    caplog.set_level(logging.DEBUG, "s3torch")
    with serving(first(1, fail(500, "InternalError", "Ouch."), serve_object(CONTENT))) as (_, client):
        assert client.read_range("bucket", "key", 10, 20) == CONTENT[10:20]
        client.head_object("bucket", "key")
    failed, read, head = told(caplog, logging.DEBUG)
    number = r"[0-9]+"
    assert re.fullmatch(
        rf"GetObject GET s3://bucket/key bytes=10-19: 500, {number} bytes received, {number} sent, {number}\.[0-9] ms, "
        r"attempt 1, connection 1, request REQUEST: ServerError: .* failed at GetObject on s3://bucket/key: Ouch\.\.",
        failed,
    )
    assert re.fullmatch(
        rf"GetObject GET s3://bucket/key bytes=10-19: 206, {number} bytes received, {number} sent, {number}\.[0-9] ms, "
        r"attempt 2, connection 1, request REQUEST",
        read,
    )
    assert head.startswith("HeadObject HEAD s3://bucket/key: 200, ")


def test_what_breaks_is_told(caplog: pytest.LogCaptureFixture):
    """A connection that breaks off before an answer is told with its reason."""
    caplog.set_level(logging.DEBUG, "s3torch")
    with serving(first(1, lambda _, wire: wire.close(), serve_object(CONTENT))) as (_, client):
        client.read_range("bucket", "key", 0, 10)
    broken, read = told(caplog, logging.DEBUG)
    assert "no answer, 0 bytes received" in broken
    assert "request -: ConnectionFailedError: " in broken
    assert "attempt 2, connection 2" in read


def test_why_a_head_was_refused_is_told(caplog: pytest.LogCaptureFixture):
    """The GET that asks why a HEAD was refused is told as what it is."""
    caplog.set_level(logging.DEBUG, "s3torch")
    with serving(fail(403, "AccessDenied")) as (_, client), pytest.raises(S3Error):
        client.head_object("bucket", "key")
    assert [line.partition(":")[0].split()[:2] for line in told(caplog, logging.DEBUG)] == [
        ["HeadObject", "HEAD"],
        ["HeadObject", "GET"],
    ]


@pytest.mark.parametrize("key", ["line\nbreak", "\x1b[31mred", "\u2028", "a\x00b"])
def test_a_line_is_a_line(caplog: pytest.LogCaptureFixture, key: str):
    """Whatever a key or an answer holds, it writes no line of its own."""
    caplog.set_level(logging.DEBUG, "s3torch")
    refuse = fail(400, "InvalidArgument", f"bad {key}".replace("\x00", ""))
    with serving(refuse) as (_, client), pytest.raises(S3Error):
        client.read_range("bucket", key, 0, 10)
    (line,) = told(caplog, logging.DEBUG)
    assert line.isprintable()


def test_level_is_heeded_at_once(caplog: pytest.LogCaptureFixture):
    """The log can be switched on and off between two calls."""
    with serving(serve_object(CONTENT)) as (_, client):
        for level in (logging.INFO, logging.DEBUG, logging.INFO, logging.DEBUG):
            caplog.set_level(level, "s3torch")
            client.read_range("bucket", "key", 0, 10)
    assert len(told(caplog, logging.DEBUG)) == 2


def test_corrections_are_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """INFO tells once of a region, a clock and credentials that were corrected."""
    caplog.set_level(logging.INFO, "s3torch")
    answers = [
        fail(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
        fail(403, "RequestTimeTooSkewed", headers={"Date": "Sun, 01 Jan 2040 12:00:00 GMT"}),
        fail(400, "ExpiredToken"),
    ]
    remaining = iter(answers)

    def handle(request: Request, wire: Wire) -> None:
        next(remaining, serve_object(CONTENT))(request, wire)

    with serving(handle) as (server, client):
        for _ in range(3):
            client.read_range("bucket", "key", 0, 10)
        region, clock, credentials = told(caplog, logging.INFO)
        assert region == f"Bucket 'bucket' lies in region 'eu-west-1': it is asked at {server.endpoint} now."
        assert re.fullmatch(r"This machine's clock is off by -[0-9]+ s: requests are signed by .*", clock)
        assert credentials == f"{server.endpoint} refuses the credentials (ExpiredToken): they are looked for anew."


def test_throttling_is_told_once(caplog: pytest.LogCaptureFixture):
    """INFO tells once a minute that a service asks for fewer requests, and how many there are now."""
    caplog.set_level(logging.INFO, "s3torch")
    with serving(first(4, fail(503, "SlowDown"), serve_object(CONTENT)), max_attempts=6) as (server, client):
        client.read_ranges("bucket", "key", [(0, 10), (100, 110), (200, 210)], max_gap=0)
        (line,) = told(caplog, logging.INFO)
        assert re.fullmatch(rf"{server.endpoint} asks for fewer requests: [0-9]+ at a time now\.", line)
    facts = OriginFacts()
    assert [facts.is_to_tell_of_throttling(now) for now in (0.0, 1.0, 59.0, 60.0, 61.0)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_dead_addresses_are_told_once(caplog: pytest.LogCaptureFixture):
    """INFO tells of an address that takes no connection, once until it is tried again."""
    caplog.set_level(logging.INFO, "s3torch")
    book = AddressBook()
    for now in (0.0, 1.0, 100.0):
        book.note_dead((2, ("192.0.2.1", 443)), now)
    lines = told(caplog, logging.INFO)
    assert len(lines) == 2
    assert "192.0.2.1" in lines[0]


def test_no_secret_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Whatever is read, written, copied, corrected or refused: no log of any package tells a secret."""
    caplog.set_level(logging.DEBUG)
    for name in ("s3torch", "botocore", "urllib3"):
        caplog.set_level(logging.DEBUG, name)
    sealed = base64.b64encode(b"sealed key of 32 bytes in base64").decode()
    key_file = tmp_path / "key"
    key_file.write_text(sealed)
    signatures: set[str] = set()
    turn = iter(range(1000))

    def handle(request: Request, wire: Wire) -> None:
        signatures.add(request.headers["authorization"].rpartition("Signature=")[2])
        number = next(turn)
        if number % 5 == 1:  # a proxy that repeats what it was sent
            text = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
            wire.respond(500, {}, text.encode())
        elif number % 7 == 2:
            wire.close()
        elif request.method == "PUT":
            wire.respond(200, {"ETag": '"e"'}, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")
        elif request.method == "POST" and "uploads" in request.target:
            wire.respond(
                200, {}, b"<InitiateMultipartUploadResult><UploadId>U</UploadId></InitiateMultipartUploadResult>"
            )
        elif request.method == "POST":
            wire.respond(200, {}, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        else:
            serve_object(CONTENT)(request, wire)

    with serving(handle, max_attempts=10, sse_customer_key_file=key_file) as (_, client):
        for _ in range(4):
            client.read_range("bucket", "key", 0)
            client.head_object("bucket", "key")
            client.copy_object("bucket", "key", "bucket", "copy")
            with client.put_object("bucket", "key") as writer:
                writer.write(bytes(6 * 1024 * 1024))
        client._access._sessions().forget_credentials()
        client.read_range("bucket", "key", 0)
    text = caplog.text + "".join(str(record.args) + str(record.exc_info) for record in caplog.records)
    assert "s3torch" in text
    assert signatures
    for secret in (SECRET, TOKEN, sealed, *signatures):
        assert secret not in text


def test_off_it_costs_no_call():
    """While the log is off, a request of many makes no call into it: the loop looks at an attribute."""
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        del arg
        if event == "call" and frame.f_code.co_filename in (logging.__file__, sys.modules["s3torch._log"].__file__):
            calls += 1

    with serving(serve_object(CONTENT)) as (_, client):
        client.read_range("bucket", "key", 0, 10)
        sys.setprofile(count)
        try:
            client.read_ranges("bucket", "key", [(start, start + 5) for start in range(0, 6000, 20)], max_gap=0)
        finally:
            sys.setprofile(None)
    assert calls < 10  # one when it begins, and one each quarter of a second
