"""What a client corrects after an answer, and what it must not take for more than it says."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch._aws.endpoint import Endpoint, endpoint_of_bucket_url
from s3torch._aws.session import AwsSession
from s3torch.errors import (
    AccessDeniedError,
    ClockSkewError,
    ConnectionFailedError,
    CredentialsError,
    ObjectExistsError,
    ObjectNotFoundError,
    ProtocolError,
    RequestError,
    S3Error,
    ServerError,
    TransientError,
)
from tests.support.environment import forget_pauses, know_only
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, first, serve_object

MiB = 1024 * 1024
CONTENT = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known credentials, nothing else from this machine, and no pauses between attempts."""
    know_only(monkeypatch, tmp_path, ACCESS_KEY_ID="ACCESS", SECRET_ACCESS_KEY="SECRET")
    forget_pauses(monkeypatch)


def scope(request: Request) -> tuple[str, str]:
    """Return access key and region that a request was signed with."""
    match = re.search(r"Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request", request.headers["authorization"])
    assert match is not None
    return match[1], match[2]


def client_of(server: ScriptedServer, **options: object) -> S3Client:
    """Return a client that makes three attempts at most."""
    config = S3ClientConfig(**{"max_attempts": 3, "hedging": False, **options})
    return S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)


def in_region(region: str, refuse: Handler, then: Handler) -> Handler:
    """Return a handler that refuses what is signed for another region."""
    return lambda request, wire: (then if scope(request)[1] == region else refuse)(request, wire)


def says(status: int, body: str = "", **fields: str) -> Handler:
    """Return a handler that answers all requests alike."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda request, wire: wire.respond(status, headers, b"" if request.method == "HEAD" else body.encode())


TELLING = {
    "301 and a field": says(301, x_amz_bucket_region="eu-west-1"),
    "307 and a field": says(307, "<Error><Code>TemporaryRedirect</Code></Error>", x_amz_bucket_region="eu-west-1"),
    "302 and a field": says(302, x_amz_bucket_region="eu-west-1"),
    "308 and a field": says(308, x_amz_bucket_region="eu-west-1"),
    "307 and its host": says(
        307,
        "<Error><Code>TemporaryRedirect</Code><Bucket>bucket</Bucket>"
        "<Endpoint>bucket.s3-eu-west-1.amazonaws.com</Endpoint></Error>",
    ),
    "301 and its host": says(
        301, "<Error><Code>PermanentRedirect</Code><Endpoint>bucket.s3.eu-west-1.amazonaws.com</Endpoint></Error>"
    ),
    "307 and its region": says(307, "<Error><Code>TemporaryRedirect</Code><Region>eu-west-1</Region></Error>"),
    "307 and a place": says(307, location="https://bucket.s3.dualstack.eu-west-1.amazonaws.com/key?x=y"),
    "400 and its region": says(
        400, "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    ),
    "400 and a message": says(
        400,
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the region "
        "'us-east-1' is wrong; expecting 'eu-west-1'</Message></Error>",
    ),
    "400 and a constraint": says(
        400,
        "<Error><Code>IllegalLocationConstraintException</Code><Message>The eu-west-1 location constraint is "
        "incompatible for the region specific endpoint this request was sent to.</Message></Error>",
    ),
}


@pytest.mark.parametrize("refuse", TELLING.values(), ids=TELLING)
@pytest.mark.parametrize("method", ["get", "head"])
def test_region_is_learned(refuse: Handler, method: str):
    """Whatever tells the bucket's region, the next request is signed for it; HEAD asks by a GET if it must."""
    with ScriptedServer(in_region("eu-west-1", refuse, serve_object(CONTENT))) as server:
        client = client_of(server)
        if method == "get":
            assert client.read_range("bucket", "key", 0) == CONTENT
            assert [scope(request)[1] for request in server.requests] == ["us-east-1", "eu-west-1"]
        else:
            assert client.head_object("bucket", "key").size == len(CONTENT)
            assert len(server.requests) <= 3
        client.close()


def test_redirect_to_the_same_region():
    """A 307 to the region that has signed is waited out: the bucket's name is new, and leads elsewhere for a while."""
    away = says(307, "<Error><Code>TemporaryRedirect</Code></Error>", x_amz_bucket_region="us-east-1")
    with ScriptedServer(first(2, away, serve_object(CONTENT))) as server:
        client = client_of(server)
        assert client.read_range("bucket", "key", 0) == CONTENT
        client.close()
    with ScriptedServer(away) as server:
        client = client_of(server)
        with pytest.raises(ServerError):
            client.read_range("bucket", "key", 0)
        assert len(server.requests) == 3
        client.close()


def test_an_attempt_is_of_one_place(monkeypatch: pytest.MonkeyPatch):
    """Of 300 ranges that are queued when the first redirect comes, none goes to the old host signed for the new region.

    Nor does a connection to the old host, begun before, carry one.
    """
    old = says(301, x_amz_bucket_region="eu-west-1")
    with ScriptedServer(old) as there, ScriptedServer(serve_object(CONTENT)) as here:
        homes = {"us-east-1": there, "eu-west-1": here}

        def endpoint(_: AwsSession, bucket: str, region: str) -> Endpoint:
            return endpoint_of_bucket_url(f"{homes[region].endpoint}/{bucket}/")

        monkeypatch.setattr(AwsSession, "endpoint", endpoint)
        client = client_of(there, max_connections=20)
        extents = [(start, start + 100) for start in range(0, 60_000, 200)]
        assert client.read_ranges("bucket", "key", extents, max_gap=0) == [CONTENT[a:b] for a, b in extents]
        assert {scope(request)[1] for request in there.requests} == {"us-east-1"}
        assert {scope(request)[1] for request in here.requests} == {"eu-west-1"}
        assert len(there.requests) <= 20
        assert len(here.requests) == 300
        client.close()


def test_threads_that_correct_at_the_same_time(monkeypatch: pytest.MonkeyPatch):
    """Whatever one thread corrects while another one signs, each request is of one place."""
    old = says(301, x_amz_bucket_region="eu-west-1")
    with ScriptedServer(old) as there, ScriptedServer(serve_object(CONTENT)) as here:
        homes = {"us-east-1": there, "eu-west-1": here}
        monkeypatch.setattr(
            AwsSession,
            "endpoint",
            lambda _, bucket, region: endpoint_of_bucket_url(f"{homes[region].endpoint}/{bucket}/"),
        )
        client = client_of(there)
        got: list[bytes] = []

        def read() -> None:
            got.append(client.read_range("bucket", "key", 0))
            client.close()

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [CONTENT] * 8
        assert {scope(request)[1] for request in there.requests} == {"us-east-1"}
        assert {scope(request)[1] for request in here.requests} == {"eu-west-1"}


# HEAD


def expired_key(status: int, code: str, monkeypatch: pytest.MonkeyPatch) -> Handler:
    """Return a handler that refuses the first key, and tells why only where there is a body."""

    def handle(request: Request, wire: Wire) -> None:
        if scope(request)[0] == "FRESH":
            serve_object(CONTENT)(request, wire)
            return
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
        # S3 tells the region with each refusal
        says(status, f"<Error><Code>{code}</Code></Error>", x_amz_bucket_region="us-east-1")(request, wire)

    return handle


@pytest.mark.parametrize(
    ("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (400, "TokenRefreshRequired")]
)
def test_credentials_of_head_are_refreshed(monkeypatch: pytest.MonkeyPatch, status: int, code: str):
    """A HEAD that is refused without a reason asks for it by a GET of one byte, and is corrected as that one is."""
    with ScriptedServer(expired_key(status, code, monkeypatch)) as server:
        client = client_of(server, max_attempts=1)
        assert client.head_object("bucket", "key").size == len(CONTENT)
        sent = [(request.method, request.headers.get("range")) for request in server.requests]
        assert sent == [("HEAD", None), ("GET", "bytes=0-0"), ("HEAD", None)]
        client.close()


def test_clock_of_head_is_corrected():
    """A HEAD that is signed too early learns the time from the GET that asks why it was refused."""

    def handle(request: Request, wire: Wire) -> None:
        if request.headers["x-amz-date"].startswith("20400101T12"):
            serve_object(CONTENT)(request, wire)
        else:
            says(403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", Date="Sun, 01 Jan 2040 12:00:00 GMT")(
                request, wire
            )

    with ScriptedServer(handle) as server:
        client = client_of(server)
        assert client.head_object("bucket", "key").size == len(CONTENT)
        assert len(server.requests) == 3
        client.close()


@pytest.mark.parametrize(
    ("code", "kind", "requests"),
    [
        ("AccessDenied", AccessDeniedError, 2),
        ("", AccessDeniedError, 2),
        ("ExpiredToken", CredentialsError, 4),
        ("InvalidAccessKeyId", CredentialsError, 4),
        ("SignatureDoesNotMatch", CredentialsError, 2),
        ("RequestTimeTooSkewed", ClockSkewError, 2),
    ],
)
def test_head_that_stays_refused(code: str, kind: type[S3Error], requests: int):
    """A HEAD that goes on being refused is an error of its reason, after a few requests."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>" if code else ""
    with ScriptedServer(says(403, body)) as server:
        client = client_of(server)
        with pytest.raises(kind) as caught:
            client.head_object("bucket", "key")
        assert (caught.value.status, caught.value.code) == (403, code or None)
        assert len(server.requests) == requests
        client.close()


@pytest.mark.parametrize("size", [0, 1, len(CONTENT), 2 * MiB])
def test_head_alone_is_forbidden(size: int):
    """Where GET is answered and HEAD is not, the refusal of HEAD stays, and nothing is read that nobody wants."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD":
            wire.respond(403, {})
        elif size == 2 * MiB:
            wire.respond(200, {"ETag": '"e"'}, bytes(size))
        else:
            serve_object(CONTENT[:size])(request, wire)

    with ScriptedServer(handle) as server:
        client = client_of(server)
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                client.head_object("bucket", "key")
        assert len(server.requests) == 4
        client.close()


@pytest.mark.parametrize("fault", [Wire.close, Wire.reset, lambda wire: wire.respond(503, {})])
def test_nobody_says_why(fault: Callable[[Wire], object]):
    """Where the request that asks why a HEAD was refused fails in turn, the refusal stays."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD":
            wire.respond(403, {})
        else:
            fault(wire)

    with ScriptedServer(handle) as server:
        client = client_of(server)
        with pytest.raises(AccessDeniedError):
            client.head_object("bucket", "key")
        assert len(server.requests) <= 5
        client.close()


@pytest.mark.parametrize(("fields", "requests"), [({"x-amz-request-id": "R"}, 1), ({}, 2)])
def test_head_of_what_is_not_there(fields: dict[str, str | None], requests: int):
    """A 404 of S3's to HEAD needs no reason; for any other one a GET is asked."""
    body = b"<Error><Code>NoSuchKey</Code></Error>"
    with ScriptedServer(lambda request, wire: wire.respond(404, fields, body)) as server:
        client = client_of(server)
        with pytest.raises(ObjectNotFoundError):
            client.head_object("bucket", "key")
        assert len(server.requests) == requests
        client.close()


@pytest.mark.parametrize(
    ("answered", "kind"),
    [
        (lambda wire: wire.respond(404, {"Content-Type": "text/html"}, b"<html>Not found</html>"), ProtocolError),
        (lambda wire: wire.respond(200, {"ETag": '"e"'}, b"c"), ProtocolError),
        (lambda wire: wire.respond(403, {}, b"<Error><Code>AccessDenied</Code></Error>"), AccessDeniedError),
        (lambda wire: wire.respond(503, {}), TransientError),
        (lambda wire: wire.close(), ConnectionFailedError),
    ],
)
def test_404_to_head_that_is_not_s3s(answered: Callable[[Wire], object], kind: type[S3Error]):
    """What a router or a portal answers to HEAD is no missing object: whoever believed it would write it anew."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD":
            wire.respond(404, {"Content-Type": "text/html"})
        else:
            answered(wire)

    with ScriptedServer(handle) as server:
        client = client_of(server)
        with pytest.raises(kind):
            client.head_object("bucket", "key")
        assert len(server.requests) <= 6
        client.close()


def test_head_of_what_is_written_meanwhile():
    """An object that appears between HEAD and the GET behind it is found."""
    left = [404, 200]

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD" and left.pop(0) == 404:
            wire.respond(404, {})
        else:
            serve_object(CONTENT)(request, wire)

    with ScriptedServer(handle) as server:
        client = client_of(server)
        assert client.head_object("bucket", "key").size == len(CONTENT)
        assert [request.method for request in server.requests] == ["HEAD", "GET", "HEAD"]
        client.close()


# Uploads that must be new


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_conflict_is_tried_again(code: str):
    """409 with one of these codes says "try again"; other conflicts are final."""
    conflict = fail(409, code)
    turns = first(2, conflict, says(200, ETag='"e"'))

    def handler(request: Request, wire: Wire) -> None:
        (says(404, x_amz_request_id="R") if request.method == "HEAD" else turns)(
            request, wire
        )  # it is asked first whether the object is new

    with ScriptedServer(handler) as server:
        client = client_of(server)
        with client.put_object("bucket", "key", if_none_match=True) as writer:
            writer.write(b"content")
        assert len([request for request in server.requests if request.method == "PUT"]) == 3
        client.close()
    with ScriptedServer(conflict) as server:
        client = client_of(server)
        with pytest.raises(TransientError, match="under way"), client.put_object("bucket", "key") as writer:
            writer.write(b"content")
        assert len(server.requests) == 3
        client.close()
    with ScriptedServer(fail(409, "BucketNotEmpty")) as server:
        client = client_of(server)
        with pytest.raises(RequestError), client.put_object("bucket", "key") as writer:
            writer.write(b"content")
        assert len(server.requests) == 1
        client.close()


class Losing:
    """A server that stores what is put, answers the first PUT never, and refuses to replace.

    Args:
        head: The fields of its answers to HEAD.
        stored: What it stores instead of what is sent.
    """

    def __init__(self, head: Callable[[bytes], dict[str, str]], stored: bytes | None = None) -> None:
        self._head = head
        self._stored = stored
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []

    def __call__(self, request: Request, wire: Wire) -> None:
        self.log.append(request.method)
        if request.method == "HEAD" and request.path not in self.objects:
            wire.respond(404, {"x-amz-request-id": "R"})
        elif request.method == "HEAD":
            content = self.objects[request.path]
            wire.respond(200, {"Content-Length": str(len(content)), **self._head(content)})
        elif request.path.endswith("/other"):
            wire.respond(200, {"ETag": '"e"'})
        elif request.path not in self.objects:
            self.objects[request.path] = request.body if self._stored is None else self._stored
            wire.close()
        else:
            fail(412, "PreconditionFailed")(request, wire)


def md5_of(content: bytes) -> dict[str, str]:
    """Return the fields of an object whose ETag is its MD5."""
    return {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}


def crc32_of(content: bytes) -> dict[str, str]:
    """Return the fields of an object that has a CRC32, and an ETag of KMS."""
    value = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
    return {"ETag": '"kms"', "x-amz-checksum-crc32": value, "x-amz-checksum-type": "FULL_OBJECT"}


@pytest.mark.parametrize("head", [md5_of, crc32_of])
@pytest.mark.parametrize("is_reused", [False, True])
@pytest.mark.parametrize("checksums", ["on", "off"])
def test_own_object_is_recognised(head: Callable[[bytes], dict[str, str]], checksums: str, *, is_reused: bool):
    """A new object whose answer was lost is not taken for another's, also if the connection had been used before."""
    server = Losing(head)
    with ScriptedServer(server) as listener:
        client = client_of(listener, checksums=checksums)
        if is_reused:
            client.delete_object("bucket", "other")
        with client.put_object("bucket", "key", if_none_match=True) as writer:
            writer.write(b"content")
        assert server.log[-3:] == ["PUT", "PUT", "HEAD"]
        assert server.objects["/bucket/key"] == b"content"
        client.close()


@pytest.mark.parametrize(
    ("head", "stored", "is_known"),
    [
        (md5_of, b"another", True),
        (crc32_of, b"another", True),
        (md5_of, b"longer than it", True),
        (lambda _: {"ETag": '"kms"'}, b"content", False),
        (lambda _: {"ETag": f'"{0:032x}"', "x-amz-server-side-encryption": "aws:kms"}, b"content", False),
    ],
)
def test_object_of_another(head: Callable[[bytes], dict[str, str]], stored: bytes, *, is_known: bool):
    """What another one has stored meanwhile is an error; where nothing can be compared the error says that, too."""
    server = Losing(head, stored)
    with ScriptedServer(server) as listener:
        client = client_of(listener)
        with (
            pytest.raises(ObjectExistsError) as caught,
            client.put_object("bucket", "key", if_none_match=True) as writer,
        ):
            writer.write(b"content")
        assert ("not known" in str(caught.value)) is not is_known
        client.close()


def test_etags_that_are_no_md5s(tmp_path: Path):
    """With SSE-C an ETag may look like an MD5 and be none: an own object is not taken for another's by it."""
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    with ScriptedServer(Losing(lambda _: {"ETag": f'"{0:032x}"'})) as listener:
        client = client_of(listener, sse_customer_key_file=key)
        with (
            pytest.raises(ObjectExistsError, match="is not known"),
            client.put_object("bucket", "key", if_none_match=True) as writer,
        ):
            writer.write(b"content")
        client.close()


# What a process knows of a server


class Outage:
    """A server whose connections break off while it is down.

    Args:
        then: What it does else.

    Attributes:
        left: How many requests it still meets while it is down.
    """

    def __init__(self, then: Handler) -> None:
        self.left = 0
        self._then = then

    def __call__(self, request: Request, wire: Wire) -> None:
        if self.left:
            self.left -= 1
            wire.close()
        else:
            self._then(request, wire)


def in_a_thread(act: Callable[[], object]) -> None:
    """Do something in a thread that has sent nothing yet, and raise what it raises."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result()


@pytest.mark.parametrize("act", ["read", "save", "save_async", "abort", "abort_upload"])
def test_outage_in_another_thread(act: str):
    """A thread that begins in an outage goes on as long as one that had reached the server before: 10 attempts, not 4.

    Whether a server was ever reached is known to the process.
    """

    def serve(request: Request, wire: Wire) -> None:
        if request.method in ("GET", "HEAD"):
            serve_object(CONTENT)(request, wire)
        elif request.method == "POST":
            answer = "<InitiateMultipartUploadResult><UploadId>U</UploadId></InitiateMultipartUploadResult>"
            wire.respond(200, {}, answer.encode())
        else:
            wire.respond(200 if request.method == "PUT" else 204, {"ETag": '"e"'})

    outage = Outage(serve)
    with ScriptedServer(outage) as server:
        client = client_of(server, max_attempts=10, part_size=5 * MiB)
        checkpoint = S3Checkpoint(
            "us-east-1", endpoint=server.endpoint, s3client_config=S3ClientConfig(max_attempts=10, hedging=False)
        )
        client.read_range("bucket", "key", 0)
        writer = client.put_object("bucket", "key")
        writer.write(bytes(6 * MiB))
        outage.left = 8
        before = len(server.requests)
        if act == "read":
            in_a_thread(lambda: client.read_range("bucket", "key", 0))
        elif act == "save":
            in_a_thread(lambda: checkpoint.save({"a": 1}, "s3://bucket/checkpoint"))
        elif act == "save_async":
            checkpoint.save_async({"a": 1}, "s3://bucket/checkpoint").result(60)
        elif act == "abort":
            in_a_thread(writer.abort)
        else:
            in_a_thread(lambda: client.abort_multipart_upload("bucket", "key", "U"))
        assert outage.left == 0
        last = server.requests[-1]
        assert len(server.requests) - before >= 9
        assert last.method == {"read": "GET", "save": "PUT", "save_async": "PUT"}.get(act, "DELETE")
        writer.abort()
        client.close()


def test_size_that_is_asked_for_with_an_old_key(monkeypatch: pytest.MonkeyPatch):
    """The HEAD of a read, which asks for the size that a 416 does not tell, is corrected as any other."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD" and scope(request)[0] != "FRESH":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FRESH")
            wire.respond(403, {})
        elif request.headers.get("range", "") == "bytes=0-0" and scope(request)[0] != "FRESH":
            fail(403, "InvalidAccessKeyId")(request, wire)
        elif request.method == "GET":
            fail(416, "InvalidRange")(request, wire)
        else:
            serve_object(CONTENT)(request, wire)

    with ScriptedServer(handle) as server:
        client = client_of(server)
        assert client.read_range("bucket", "key", len(CONTENT), len(CONTENT) + 5) == b""
        assert [request.method for request in server.requests] == ["GET", "HEAD", "GET", "HEAD"]
        client.close()
